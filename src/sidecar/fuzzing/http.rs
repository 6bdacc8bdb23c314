//! The HTTP proxy: heads, bodies, and what it makes of them for the origin and for the agent.
use std::io;

use super::super::forward::{answer, request_head};
use super::super::http1::{Request, Response, copy_body, read_head};
use super::super::proxy::{absolute, authority};
use super::super::tunnel::Target;
use crate::egress::buffered::Buffered;
use crate::fuzzing::pieces::{Pieces, finish, sizes};
use crate::policy::HostName;

/// What the proxy does for an agent.
#[derive(Debug)]
pub(crate) enum Proxied {
    /// It makes a tunnel to `name:port`.
    Tunnel(String),
    /// It sends `sent` to `name`, which is to be one request; `whole` if the agent has sent all of it.
    Request { name: HostName, port: u16, method: String, path: String, sent: Vec<u8>, whole: bool },
}

/// The first head of a stream, with its end, and the bytes after it.
pub(crate) fn head_of(stream: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let read = |size| -> Result<_, io::ErrorKind> {
        let mut reader = Buffered::new(Pieces::new(stream, size));
        let head = finish(read_head(&mut reader)).map_err(|error| error.kind())?;
        while finish(reader.fill()).is_ok_and(|count| count > 0) {}
        Ok(head.map(|head| (head, reader.data().to_vec())))
    };
    let whole = read(usize::MAX);
    for size in sizes(stream) {
        assert_eq!(read(size), whole, "in pieces of {size}");
    }
    whole.ok()?
}

/// Method, target, minor version and fields of a head.
pub(crate) type Head = (String, String, u8, Vec<(String, Vec<u8>)>);

/// What the proxy reads in a head.
pub(crate) fn request(head: &[u8]) -> Option<Head> {
    let Request { method, target, minor, fields } = Request::parse(head).ok()?;
    Some((method, target, minor, fields.0))
}

/// A request to the proxy.
pub(crate) fn proxied(head: &[u8], rest: &[u8]) -> Option<Proxied> {
    let mut request = Request::parse(head).ok()?;
    let mut written =
        format!("{} {} HTTP/1.{}\r\n", request.method, request.target, request.minor).into_bytes();
    request.fields.write_to(&mut written);
    written.extend(b"\r\n");
    assert_eq!(Request::parse(&written).unwrap(), request, "written again it is another");
    if request.method == "CONNECT" {
        let target = authority(&request.target, None).ok()?;
        let (host, port) = request.target.rsplit_once(':').unwrap();
        assert_eq!(HostName::parse(host).as_ref(), Ok(&target.name));
        assert_eq!(port.parse(), Ok(target.port));
        return Some(Proxied::Tunnel(target.to_string()));
    }
    let (target, path) = absolute(&request).ok()?;
    let framing = request.framing().ok()?;
    let Target { name, port } = target.clone();
    let method = request.method.clone();
    let before = request.fields.clone();
    let sent = request_head(&method, &path, &mut request, &target, framing);
    for option in before.all("connection").flat_map(|value| value.split(|byte| *byte == b',')) {
        let stays =
            |(name, _): &&(String, Vec<u8>)| name.as_bytes().eq_ignore_ascii_case(option.trim_ascii());
        let kept = request.fields.0.iter().find(stays);
        assert!(kept.is_none_or(|(name, _)| name.eq_ignore_ascii_case("content-length")), "{kept:?}");
    }
    let copy = |size| {
        let mut reader = Buffered::new(Pieces::new(rest, size));
        let mut body = Vec::new();
        let whole = finish(copy_body(&mut reader, &mut body, framing)).map_err(|error| error.kind());
        while finish(reader.fill()).is_ok_and(|count| count > 0) {}
        (whole.is_ok(), body, whole.map(|()| reader.data().to_vec()))
    };
    let (whole, body, after) = copy(usize::MAX);
    if let Ok(after) = &after {
        assert!(rest.ends_with(after), "bytes after the body were changed");
    }
    for size in sizes(rest) {
        assert_eq!(copy(size), (whole, body.clone(), after.clone()), "in pieces of {size}");
    }
    Some(Proxied::Request { name, port, method, path, sent: [sent, body].concat(), whole })
}

/// An origin's answer, as the agent gets it.
pub(crate) fn answered(stream: &[u8]) -> bool {
    if let Some((head, _)) = head_of(stream)
        && let Ok(response) = Response::parse(&head)
    {
        let mut written =
            format!("HTTP/1.{} {:03} {}\r\n", response.minor, response.status, response.reason).into_bytes();
        response.fields.write_to(&mut written);
        written.extend(b"\r\n");
        assert_eq!(Response::parse(&written).unwrap(), response, "written again it is another");
    }
    // Of what does not begin like an answer, nothing but its head is read.
    if !stream.starts_with(b"HTTP/1.") {
        return false;
    }
    let mut good = false;
    for method in ["GET", "HEAD"] {
        let pass = |stream: &[u8], size| {
            let (mut reader, mut out) = (Buffered::new(Pieces::new(stream, size)), Vec::new());
            let result = finish(answer(&mut reader, &mut out, method, false, &mut false));
            (result.map_err(|error| error.kind()), out)
        };
        let (result, out) = pass(stream, usize::MAX);
        for size in sizes(stream) {
            assert_eq!(pass(stream, size), (result.as_ref().copied().map_err(|kind| *kind), out.clone()));
        }
        if result.is_ok() {
            good = true;
            assert_eq!(pass(&out, usize::MAX), (result, out.clone()), "what the agent gets reads otherwise");
        }
    }
    good
}

/// The name of a tunnel that a client of the proxy gets that writes `host`.
pub(crate) fn asked_by_proxy_connect(host: &str) -> Option<HostName> {
    let text = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n");
    match proxied(text.as_bytes(), b"")? {
        Proxied::Tunnel(target) => HostName::parse(target.strip_suffix(":443")?).ok(),
        Proxied::Request { .. } => None,
    }
}

/// The name that a plain request reaches through the proxy whose URL and `Host` have `host`.
pub(crate) fn asked_by_proxy(host: &str) -> Option<HostName> {
    let text = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    match proxied(text.as_bytes(), b"")? {
        Proxied::Request { name, .. } => Some(name),
        Proxied::Tunnel(_) => None,
    }
}
