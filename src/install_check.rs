//! `agentsandbox check-install`: whether Services of the operator answer that they are ready, for `helm test`. It finds
//! them by the variables that the kubelet sets for every Service of the Pod's own namespace: no DNS and no token needed.
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest wait for a connection, and for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Time between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const ANSWER: u64 = 4096;

/// Options of `agentsandbox check-install`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Name of a Service of this namespace whose /readyz must answer 200. May be repeated.
    #[arg(long = "ready", value_name = "SERVICE", required = true)]
    pub ready: Vec<String>,
    /// Name of a Service of this namespace that must take connections. May be repeated.
    #[arg(long = "open", value_name = "SERVICE")]
    pub open: Vec<String>,
    /// Time in which all of it must come true, such as 60s.
    #[arg(long, default_value = "60s", value_parser = crate::controller::duration)]
    pub within: Duration,
}

/// Checks every Service and says what was found. Exit code 0: all is well.
#[allow(clippy::print_stdout, reason = "the answer of the command")]
pub fn run(options: &Options) -> ExitCode {
    let until = Instant::now() + options.within;
    let variable = |name: &str| std::env::var(name).ok();
    let checks =
        options.ready.iter().map(|name| (name, true)).chain(options.open.iter().map(|name| (name, false)));
    let mut well = true;
    for (name, ready) in checks {
        let result = patiently(until, || {
            let address = address(name, variable)?;
            if ready { is_ready(address) } else { connect(address).map(drop) }
        });
        well &= result.is_ok();
        match result {
            Ok(()) => println!("{name}: {}", if ready { "ready" } else { "open" }),
            Err(error) => println!("{name}: {error}"),
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn patiently(until: Instant, mut check: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    loop {
        match check() {
            Err(_) if Instant::now() + PAUSE < until => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Address of the Service `name`, by the variables that the kubelet sets.
fn address(name: &str, variable: impl Fn(&str) -> Option<String>) -> Result<SocketAddr, String> {
    let prefix = name.to_uppercase().replace('-', "_");
    let of = |part: &str| {
        let name = format!("{prefix}_SERVICE_{part}");
        variable(&name).ok_or_else(|| format!("there is no such Service: {name} is not set"))
    };
    let address: IpAddr = of("HOST")?.parse().map_err(|_| "its address cannot be read".to_owned())?;
    let port: u16 = of("PORT")?.parse().map_err(|_| "its port cannot be read".to_owned())?;
    Ok(SocketAddr::new(address, port))
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect_timeout(&address, LIMIT).map_err(|error| format!("{address}: {error}"))
}

fn is_ready(address: SocketAddr) -> Result<(), String> {
    let mut stream = connect(address)?;
    let ask = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        // In one piece: a server may answer and close after the first.
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{address}: {error}"))?;
    let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    let ready = line.strip_prefix("HTTP/1.1 ").is_some_and(|rest| rest.split(' ').next() == Some("200"));
    if ready { Ok(()) } else { Err(format!("{address}: not ready: {line:?}")) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_service_is_found_by_its_variables() {
        let set = |name: &str| match name {
            "AGENTSANDBOX_GATEWAY_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "AGENTSANDBOX_GATEWAY_SERVICE_PORT" => Some("8443".to_owned()),
            "ODD_SERVICE_HOST" => Some("x".to_owned()),
            _ => None,
        };
        assert_eq!(address("agentsandbox-gateway", set).unwrap().to_string(), "[fd00::1]:8443");
        assert!(address("absent", set).unwrap_err().contains("ABSENT_SERVICE_HOST"));
        assert!(address("odd", set).is_err());
    }

    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(answer.as_bytes());
        });
        address
    }

    #[test]
    fn only_200_is_ready() {
        assert_eq!(is_ready(answering("HTTP/1.1 200 OK\r\n\r\nok\n")), Ok(()));
        for answer in ["HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 2000 x\r\n\r\n", "200", ""] {
            assert!(is_ready(answering(answer)).is_err(), "{answer}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(is_ready(address).is_err() && connect(address).is_err());
    }
}
