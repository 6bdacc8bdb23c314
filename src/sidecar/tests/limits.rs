//! Gateways that fail, tokens that change, bytes that run out.
use super::*;

#[tokio::test]
async fn another_gateway_is_tried_before_the_first_byte() {
    let authority = Authority::new();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let policy = PolicyUpdate { gateways: vec![dead], ..update(1, &[("a.example", &[7777])]) };
    let gateway = Fake::start(&authority, policy).await;
    let case = Case::start(&authority.pem(), gateway.address, gateway).await;
    case.has_policy().await;
    case.gateway.route("a.example:7777", Route::To(echo().await));
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    assert_eq!(exchange(&mut stream, b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn the_second_that_was_told_of_is_tried_also_where_the_service_leads_to_the_dead_one() {
    let authority = Authority::new();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = Fake::start(&authority, update(1, &[])).await;
    let policy = PolicyUpdate { gateways: vec![dead, other.address], ..update(1, &[("a.example", &[7777])]) };
    let gateway = Fake::start(&authority, policy).await;
    let case = Case::start(&authority.pem(), gateway.address, gateway).await;
    case.has_policy().await;
    case.gateway.route("a.example:7777", Route::HangUp);
    other.route("a.example:7777", Route::To(echo().await));
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    assert_eq!(exchange(&mut stream, b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn a_gateway_that_drains_knows_nothing_or_hangs_up_sends_to_another() {
    let deny = |reason: &str| Route::Deny(Denial { reason: reason.into(), message: String::new() });
    for route in [deny("Draining"), deny("PolicyUnknown"), Route::HangUp] {
        let authority = Authority::new();
        let other = Fake::start(&authority, update(1, &[])).await;
        let policy = PolicyUpdate { gateways: vec![other.address], ..update(1, &[("a.example", &[7777])]) };
        let gateway = Fake::start(&authority, policy).await;
        let case = Case::start(&authority.pem(), gateway.address, gateway).await;
        case.has_policy().await;
        case.gateway.route("a.example:7777", Route::To(echo().await));
        // The one that was told of comes first.
        other.route("a.example:7777", route);
        let mut stream = case.dial("a.example", 7777).await.unwrap();
        assert_eq!(exchange(&mut stream, b"x").await.unwrap(), b"x");
        assert_eq!(other.connects().len(), 1);
        assert_eq!(case.egress.settle().denied, 0);
    }
}

#[tokio::test]
async fn no_gateway_is_closed_and_says_so() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    case.gateway.route("a.example:7777", Route::HangUp);
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    assert!(soon(stream.read(&mut [0; 1])).await.is_err());
    let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
    let answer = exchange(&mut stream, b"CONNECT a.example:7777 HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", String::from_utf8_lossy(&answer));
    assert!(case.records().contains("GatewayUnreachable"));
}

#[tokio::test]
async fn only_the_operators_certificate_and_protocol_will_do() {
    let (authority, other) = (Authority::new(), Authority::new());
    let impostor = Fake::start(&other, update(1, &[("a.example", &[7777])])).await;
    let stranger = Fake::start_with(&authority, update(1, &[("a.example", &[7777])]), b"h2").await;
    for gateway in [impostor, stranger] {
        let case = Case::start(&authority.pem(), gateway.address, gateway).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!case.records().contains("PolicyTaken"));
        assert!(case.gateway.heads.lock().unwrap().is_empty());
        assert_eq!(case.resolve("a.example").await, Err(ResponseCode::Refused));
    }
}

#[tokio::test]
async fn every_request_has_the_token_of_now() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    case.gateway.route("a.example:7777", Route::To(echo().await));
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    exchange(&mut stream, b"x").await.unwrap();
    let next = case.directory.path().join("next");
    std::fs::write(&next, "another-token").unwrap();
    std::fs::rename(&next, case.directory.path().join("token")).unwrap();
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    exchange(&mut stream, b"x").await.unwrap();
    let heads = case.gateway.connects();
    assert!(heads[0].contains("Bearer the-token\r\n") && heads[1].contains("Bearer another-token\r\n"));
    std::fs::remove_file(case.directory.path().join("token")).unwrap();
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    assert!(soon(stream.read(&mut [0; 1])).await.is_err());
}

#[tokio::test]
async fn spare_connections_wait_for_the_next_tunnels() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    case.gateway.route("a.example:7777", Route::To(echo().await));
    let count = || *case.gateway.connections.lock().unwrap();
    // The policy stream, and nothing before there is a need.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count(), 1);
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    exchange(&mut stream, b"x").await.unwrap();
    until("two spares", || count() == 4).await;
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    exchange(&mut stream, b"x").await.unwrap();
    until("the one used is replaced", || count() == 5).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count(), 5);
}

#[tokio::test]
async fn not_a_byte_more_than_the_limit_goes_through() {
    let policy = PolicyUpdate { bytes: Some(1000), ..update(1, &[("a.example", &[7777])]) };
    let case = Case::new(policy).await;
    case.gateway.route("a.example:7777", Route::To(echo().await));
    let mut idle = case.dial("a.example", 7777).await.unwrap();
    idle.write_all(b"x").await.unwrap();
    soon(idle.read_exact(&mut [0; 1])).await.unwrap();
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    let mut seen = Vec::new();
    let _ = soon(async {
        stream.write_all(&[b'x'; 900]).await?;
        stream.read_to_end(&mut seen).await
    })
    .await;
    // At the limit every tunnel ends, also one that did nothing.
    let error = soon(idle.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let summary = case.egress.settle();
    assert_eq!(summary.bytes_out + summary.bytes_in, 1000);
    assert_eq!(summary.bytes_out, 901);
    let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
    let answer = exchange(&mut stream, b"CONNECT a.example:7777 HTTP/1.1\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("EgressBytesExceeded"), "{answer}");
    assert_eq!(case.records().matches(r#""BytesExceeded":{"bytes":1000}"#).count(), 1);
    // More may be given.
    case.gateway.policy.send_modify(|policy| {
        policy.generation = 2;
        policy.bytes = Some(2000);
    });
    until("the policy", || case.records().contains(r#""generation":2,"#)).await;
    let mut stream = case.dial("a.example", 7777).await.unwrap();
    assert_eq!(exchange(&mut stream, b"x").await.unwrap(), b"x");
}
