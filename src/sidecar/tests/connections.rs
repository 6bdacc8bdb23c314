//! Connections of every kind, made and refused.
use rstest::rstest;

use super::*;

#[tokio::test]
async fn an_allowed_name_is_reached_by_its_address() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    case.gateway.route("a.example:7777", Route::To(echo().await));
    let mut stream = case.dial("A.example", 7777).await.unwrap();
    assert_eq!(exchange(&mut stream, b"hello").await.unwrap(), b"hello");
    let heads = case.gateway.connects();
    let expected = "CONNECT a.example:7777 HTTP/1.1\r\nHost: a.example:7777\r\nAuthorization: Bearer the-token\r\n\
                    x-agentsandbox-via: transparent\r\nx-agentsandbox-bytes: 0\r\n\r\n";
    assert_eq!(heads, [expected]);
    let summary = case.egress.settle();
    assert_eq!((summary.allowed, summary.denied, summary.bytes_out, summary.bytes_in), (1, 0, 5, 5));
    // The next head says what was moved.
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    exchange(&mut stream, b"").await.unwrap();
    assert!(case.gateway.connects()[1].contains("x-agentsandbox-bytes: 10\r\n"));
}

#[tokio::test]
async fn much_goes_both_ways() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    case.gateway.route("a.example:7777", Route::To(echo().await));
    let (mut reader, mut writer) = case.dial("a.example", 7777).await.unwrap().into_split();
    let data: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251).to_le_bytes()[0]).collect();
    let sent = data.clone();
    tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut answer = Vec::new();
    soon(reader.read_to_end(&mut answer)).await.unwrap();
    assert!(answer == data);
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    case.gateway.route("a.example:7777", Route::Greets(echo().await, b"SSH-2.0\r\n"));
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    let mut greeting = [0; 9];
    soon(stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"SSH-2.0\r\n");
    assert_eq!(exchange(&mut stream, b"x").await.unwrap(), b"x");
    assert_eq!(case.egress.settle().bytes_in, 10);
}

#[tokio::test]
async fn a_refused_connection_is_reset() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    let error = soon(stream.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let summary = case.egress.settle();
    assert_eq!((summary.allowed, summary.denied), (0, 1));
    assert_eq!(summary.last_denied.as_deref(), Some("a.example:7777 NoRule"));
    assert!(case.records().contains(
        r#""ConnectionRefused":{"reason":"NoRule","target":"a.example:7777","via":"transparent"}"#
    ));
}

#[tokio::test]
async fn a_broken_tunnel_is_not_a_whole_answer() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    case.gateway.route("a.example:7777", Route::To(listener.local_addr().unwrap()));
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    server.write_all(b"part").await.unwrap();
    soon(stream.read_exact(&mut [0; 4])).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    let error = soon(stream.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn names_that_no_rule_has_are_refused_and_recorded() {
    let case = Case::new(update(1, &[("a.example", &[7777]), ("*.b.example", &[7778])])).await;
    assert_eq!(case.resolve("c.example").await, Err(ResponseCode::Refused));
    assert_eq!(case.resolve("b.example").await, Err(ResponseCode::Refused));
    let first = case.resolve("a.example").await.unwrap();
    assert_eq!(case.resolve("a.example").await, Ok(first));
    assert!(case.resolve("x.b.example").await.unwrap() > first);
    assert!(case.records().contains(r#""QueryRefused":{"kind":"A","name":"c.example","reason":"NoRule"}"#));
    assert!(case.gateway.connects().is_empty());
}

#[tokio::test]
async fn the_agents_own_servers_keep_their_ports() {
    let own = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = own.local_addr().unwrap().port();
    let ports = [port];
    let case = Case::new(update(1, &[("a.example", &ports)])).await;
    case.gateway.route(&format!("a.example:{port}"), Route::To(echo().await));
    let mut stream = case.dial("a.example", port).await.unwrap();
    assert_eq!(exchange(&mut stream, b"out").await.unwrap(), b"out");
    let _client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(soon(own.accept()).await.is_ok());
}

#[tokio::test]
async fn a_port_that_the_agent_has_everywhere_is_told_and_others_work() {
    let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = everywhere.local_addr().unwrap().port();
    let ports = [port, 7779];
    let case = Case::new(update(1, &[("a.example", &ports)])).await;
    case.gateway.route("a.example:7779", Route::To(echo().await));
    let mut stream = case.dial("a.example", 7779).await.unwrap();
    assert_eq!(exchange(&mut stream, b"out").await.unwrap(), b"out");
    let records = case.records();
    assert_eq!(records.matches("ListenerFailed").count(), 1, "{records}");
    // It is tried again.
    drop(everywhere);
    case.gateway.route(&format!("a.example:{port}"), Route::To(echo().await));
    let mut stream = case.dial("a.example", port).await.unwrap();
    assert_eq!(exchange(&mut stream, b"out").await.unwrap(), b"out");
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn http_connect_opens_a_tunnel() {
    let case = Case::new(update(1, &[("a.example", &[443])])).await;
    case.gateway.route("a.example:443", Route::To(echo().await));
    let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
    // Early bytes belong to the tunnel.
    stream.write_all(b"CONNECT A.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nearly ").await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(exchange(&mut stream, b"late").await.unwrap(), b"early late");
    assert!(case.gateway.connects()[0].contains("x-agentsandbox-via: http-connect\r\n"));
}

#[rstest]
#[case::no_rule("b.example:443", "HTTP/1.1 403 Forbidden (NoRule)", "write host: b.example:443", 1)]
#[case::address("198.51.100.1:443", "HTTP/1.1 403 Forbidden (InvalidName)", "198.51.100.1:443", 0)]
#[case::own_address("127.0.0.1:443", "HTTP/1.1 403 Forbidden (InvalidName)", "127.0.0.1:443", 0)]
#[case::no_port("b.example", "HTTP/1.1 400 Bad Request", "no port", 0)]
#[tokio::test]
async fn a_refused_connect_says_why_and_what_to_write(
    #[case] target: &str,
    #[case] first: &str,
    #[case] text: &str,
    #[case] asked: usize,
) {
    let case = Case::new(update(1, &[("a.example", &[443])])).await;
    let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let answer = String::from_utf8(exchange(&mut stream, request.as_bytes()).await.unwrap()).unwrap();
    assert!(answer.starts_with(first), "{answer}");
    assert!(answer.split_once("\r\n\r\n").unwrap().1.contains(text), "{answer}");
    assert_eq!(case.gateway.connects().len(), asked);
    let denied = i64::from(first.contains("403"));
    assert_eq!(case.egress.settle().denied, denied);
}

async fn socks(case: &Case, request: &[u8]) -> (u8, TcpStream) {
    let mut stream = TcpStream::connect(case.plan.socks).await.unwrap();
    stream.write_all(b"\x05\x01\x00").await.unwrap();
    let mut answer = [0; 2];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, [5, 0]);
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 10];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    (answer[1], stream)
}

#[tokio::test]
async fn socks_goes_by_name_and_by_our_addresses() {
    let case = Case::new(update(1, &[("a.example", &[22])])).await;
    case.gateway.route("a.example:22", Route::To(echo().await));
    let (code, mut stream) = socks(&case, b"\x05\x01\x00\x03\x09a.example\x00\x16").await;
    assert_eq!((code, exchange(&mut stream, b"x").await.unwrap().as_slice()), (0, &b"x"[..]));
    let address = case.resolve("a.example").await.unwrap();
    let request = [b"\x05\x01\x00\x01", address.octets().as_slice(), b"\x00\x16"].concat();
    let (code, mut stream) = socks(&case, &request).await;
    assert_eq!((code, exchange(&mut stream, b"y").await.unwrap().as_slice()), (0, &b"y"[..]));
    assert!(case.gateway.connects().iter().all(|head| head.contains("x-agentsandbox-via: socks5\r\n")));
    for (request, code) in [
        (&b"\x05\x01\x00\x03\x09b.example\x00\x16"[..], 2),
        (b"\x05\x01\x00\x01\xc6\x33\x64\x01\x00\x16", 2),
        (b"\x05\x01\x00\x03\x0c198.51.100.1\x00\x16", 2),
    ] {
        assert_eq!(socks(&case, request).await.0, code);
    }
    let summary = case.egress.settle();
    assert_eq!((summary.allowed, summary.denied), (2, 3));
    let deny = |reason: &str| Route::Deny(Denial { reason: reason.into(), message: String::new() });
    for (reason, code) in [("ResolutionFailed", 4), ("DialFailed", 5), ("PolicyUnknown", 2)] {
        case.gateway.route("a.example:22", deny(reason));
        assert_eq!(socks(&case, b"\x05\x01\x00\x03\x09a.example\x00\x16").await.0, code);
    }
    // What did not work is no denial.
    assert_eq!(case.egress.settle().denied, 4);
}
