//! The HTTP proxy: `CONNECT`, and plain requests in absolute form (RFC 9112, 3.2.2 and 3.2.3).
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::accept;
use super::forward::{Origin, forward};
use super::gateway::denial;
use super::http1::{self, Request};
use super::ledger::printable;
use super::relay::relay;
use super::tunnel::{Agent, Target, Tunnels, Via, is_failure};
use crate::egress::wire::Denial;
use crate::policy::HostName;

/// Longest wait for the first byte of a next request.
const IDLE: Duration = Duration::from_mins(1);

/// Longest wait for the rest of its head, and for the peer to take an answer of ours.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves connections.
pub async fn serve(listener: TcpListener, tunnels: Arc<Tunnels>) {
    accept::serve(listener, move |agent| {
        let tunnels = Arc::clone(&tunnels);
        async move { converse(agent, &tunnels).await }
    })
    .await;
}

async fn converse(mut agent: Agent, tunnels: &Tunnels) -> io::Result<()> {
    let mut origin: Option<Origin> = None;
    loop {
        if !timeout(IDLE, agent.reader.some()).await?? {
            return Ok(());
        }
        let head = match timeout(PATIENCE, http1::read_head(&mut agent.reader)).await? {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return complain(&mut agent, 431, "HeadTooLong", "the request's head is too long").await;
            }
            Err(error) => return Err(error),
        };
        let request = match Request::parse(&head) {
            Ok(request) => request,
            Err(error) => return complain(&mut agent, 400, "BadRequest", &error.to_string()).await,
        };
        if request.method == "CONNECT" {
            return connect(agent, tunnels, &request).await;
        }
        let (target, path) = match absolute(&request) {
            Ok(both) => both,
            Err(Wrong::Message(text)) => return complain(&mut agent, 400, "BadRequest", &text).await,
            Err(Wrong::Name(host, text)) => {
                let why = denial("InvalidName", text);
                tunnels.refuse(&host, Via::Http, &why);
                return refuse(&mut agent, &host, &why).await;
            }
        };
        if request.minor == 0 {
            let text = "plain requests are served in HTTP/1.1 only";
            return complain(&mut agent, 505, "VersionNotSupported", text).await;
        }
        // One tunnel for one name and port: what the gateway was told must stay true.
        let kept = match origin.take() {
            Some(kept) if *kept.target() == target => kept.still_there(),
            _ => None,
        };
        let reached = match kept {
            Some(kept) => kept,
            None => match tunnels.open(&target, Via::Http).await {
                Ok(tunnel) => Origin::new(tunnel),
                Err(why) => return refuse(&mut agent, &target.to_string(), &why).await,
            },
        };
        match Box::pin(forward(&mut agent, reached, request, &path)).await {
            Ok(Some(kept)) => origin = Some(kept),
            Ok(None) => return Ok(()),
            Err(error) if error.begun => {
                // Part of an answer must not look like a whole one.
                agent.reset();
                return Ok(());
            }
            Err(error) => return complain(&mut agent, error.status, "BadGateway", &error.text).await,
        }
    }
}

async fn connect(mut agent: Agent, tunnels: &Tunnels, request: &Request) -> io::Result<()> {
    // Whatever follows the head belongs to the tunnel, and nobody else may think that it is a body.
    if request.fields.has("content-length") || request.fields.has("transfer-encoding") {
        return complain(&mut agent, 400, "BadRequest", "CONNECT with a body").await;
    }
    let target = match authority(&request.target, None) {
        Ok(target) => target,
        Err(Wrong::Message(text)) => return complain(&mut agent, 400, "BadRequest", &text).await,
        Err(Wrong::Name(host, text)) => {
            let why = denial("InvalidName", text);
            tunnels.refuse(&host, Via::HttpConnect, &why);
            return refuse(&mut agent, &host, &why).await;
        }
    };
    match tunnels.open(&target, Via::HttpConnect).await {
        Ok(tunnel) => {
            let answer = agent.writer.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
            timeout(PATIENCE, answer).await??;
            relay(agent, tunnel).await;
            Ok(())
        }
        Err(why) => refuse(&mut agent, &target.to_string(), &why).await,
    }
}

/// Why there is no target.
#[derive(Debug)]
pub enum Wrong {
    /// The message is not one for a proxy.
    Message(String),
    /// What was asked for, and why it is no name.
    Name(String, String),
}

/// Target and path of a request in absolute form.
pub fn absolute(request: &Request) -> Result<(Target, String), Wrong> {
    let message = |text: &str| Wrong::Message(text.to_owned());
    let scheme = request.target.get(..7);
    if !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
        return Err(message(
            "this is a proxy: requests for http:// in absolute form, for https:// by CONNECT",
        ));
    }
    let rest = request.target.get(7..).unwrap_or_default();
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('#') {
        return Err(message("a request target with a fragment"));
    }
    let target = authority(host, Some(80))?;
    let named = request.fields.one("host").map_err(|error| Wrong::Message(error.to_string()))?;
    let same = match named {
        Some(named) => authority(named, Some(80)).is_ok_and(|named| named == target),
        None => request.minor == 0,
    };
    if !same {
        return Err(message("the Host field and the request target name different hosts"));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok((target, path))
}

/// `name:port`, or `name` where there is a port by default.
pub fn authority(text: &str, default: Option<u16>) -> Result<Target, Wrong> {
    let (host, port) = match text.rsplit_once(':') {
        // Within brackets it is an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        Some("") | None => default,
        Some(port) if digits(port) => port.parse().ok(),
        Some(_) => None,
    };
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| Wrong::Message(format!("no port in {:?}", printable(text, 80))))?;
    match HostName::parse(host) {
        Ok(name) => Ok(Target { name, port }),
        Err(error) => Err(Wrong::Name(printable(&format!("{host}:{port}"), 262), error.to_string())),
    }
}

/// Tells the agent what was refused and how to ask for it.
async fn refuse(agent: &mut Agent, target: &str, why: &Denial) -> io::Result<()> {
    let status = match why.reason.as_str() {
        "GatewayTimeout" => 504,
        "TooManyConnections" | "GatewayBusy" => 503,
        reason if is_failure(reason) => 502,
        _ => 403,
    };
    complain(agent, status, &why.reason, &format!("{target}: {}", why.message)).await
}

async fn complain(agent: &mut Agent, status: u16, reason: &str, text: &str) -> io::Result<()> {
    let phrase = match status {
        400 => "Bad Request",
        403 => "Forbidden",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "HTTP Version Not Supported",
    };
    let body = format!("agentsandbox: {text} ({reason})\n");
    let answer = format!(
        "HTTP/1.1 {status} {phrase} ({reason})\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Agentsandbox-Reason: {reason}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    timeout(PATIENCE, async {
        agent.writer.write_all(answer.as_bytes()).await?;
        agent.writer.shutdown().await?;
        // Bytes that nobody has read would turn the end into a reset, before the agent has read the answer.
        let mut left = 256 * 1024_usize;
        while left > 0 && agent.reader.some().await? {
            let count = agent.reader.data().len();
            agent.reader.consume(count);
            left = left.saturating_sub(count);
        }
        Ok(())
    })
    .await?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parsed(target: &str, host: Option<&str>) -> Result<String, Wrong> {
        let host = host.map(|host| format!("Host: {host}\r\n")).unwrap_or_default();
        let head = format!("GET {target} HTTP/1.1\r\n{host}\r\n");
        let request = Request::parse(head.as_bytes()).map_err(|error| Wrong::Message(error.to_string()))?;
        absolute(&request).map(|(target, path)| format!("{target} {path}"))
    }

    #[rstest]
    #[case("http://a.example/x?y", "a.example", "a.example:80 /x?y")]
    #[case("HTTP://A.Example.:8080", "a.example:8080", "a.example:8080 /")]
    #[case("http://a.example?y=/", "A.EXAMPLE:80", "a.example:80 /?y=/")]
    #[case("http://a.example:/", "a.example", "a.example:80 /")]
    fn absolute_forms_are_understood(#[case] target: &str, #[case] host: &str, #[case] expected: &str) {
        assert_eq!(parsed(target, Some(host)).unwrap(), expected);
    }

    #[rstest]
    #[case::origin_form("/x", Some("a.example"))]
    #[case::https("https://a.example/", Some("a.example"))]
    #[case::no_host("http://a.example/", None)]
    #[case::other_host("http://a.example/", Some("b.example"))]
    #[case::other_port("http://a.example/", Some("a.example:81"))]
    #[case::two_hosts("http://a.example/", Some("a.example\r\nHost: a.example"))]
    #[case::user("http://b.example@a.example/", Some("a.example"))]
    #[case::backslash("http://a.example\\@b.example/", Some("b.example"))]
    #[case::fragment("http://a.example#b", Some("a.example"))]
    #[case::port_0("http://a.example:0/", Some("a.example:0"))]
    #[case::signed_port("http://a.example:+80/", Some("a.example"))]
    #[case::large_port("http://a.example:65616/", Some("a.example"))]
    #[case::address("http://198.51.100.1/", Some("198.51.100.1"))]
    #[case::v6("http://[::1]/", Some("[::1]"))]
    #[case::escaped("http://a%2eexample/", Some("a.example"))]
    #[case::empty("http:///", Some(""))]
    fn what_is_ambiguous_is_refused(#[case] target: &str, #[case] host: Option<&str>) {
        assert!(parsed(target, host).is_err());
    }

    #[rstest]
    #[case("a.example:443", true)]
    #[case("A.example.:443", true)]
    #[case("a.example", false)]
    #[case("a.example:", false)]
    #[case("a.example:99999", false)]
    #[case("8.8.8.8:443", false)]
    #[case("[::1]:443", false)]
    #[case("http://a.example:443", false)]
    fn connect_names_host_and_port(#[case] text: &str, #[case] good: bool) {
        assert_eq!(authority(text, None).is_ok(), good);
    }

    proptest! {
        #[test]
        fn no_target_makes_it_panic(target in "(http://)?[!-~]{0,60}", host in "[ -~]{0,30}") {
            if let Ok(text) = parsed(&target, Some(&host)) {
                // What it names is what the agent wrote, in its canonical form.
                prop_assert!(target.to_ascii_lowercase().contains(text.split(':').next().unwrap()));
            }
        }
    }
}
