//! What is said on a connection.
use super::*;

#[tokio::test]
async fn the_name_inside_tls_is_the_name_of_the_connection() {
    let mut rig = Rig::start(vec![rule("a.example"), rule("b.example")]).await;
    let got: Arc<Mutex<Vec<u8>>> = Arc::default();
    let seen = Arc::clone(&got);
    let server = serve(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            seen.lock().unwrap().extend(bytes);
        }
    })
    .await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let encrypted = hello_with(&[names(&["a.example"]), (0xfe0d, vec![0; 8])]);
    let twice = hello_with(&[names(&["a.example"]), names(&["a.example"])]);
    for (hello, alert, reason) in [
        (hello_of("b.example"), 112, "NameMismatch"),
        (hello_of("x.a.example"), 112, "NameMismatch"),
        (hello_of("198.51.100.7"), 112, "NameMismatch"),
        (encrypted.clone(), 49, "EchNotAllowed"),
        (twice, 50, "Malformed"),
    ] {
        let mut stream = rig.connect("a.example:443").await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, [21, 3, 3, 0, 2, 2, alert], "{reason}");
        let record = rig.record().await;
        assert_eq!(record["status_code"], reason);
        assert_eq!(record["activity_name"], "Refuse");
        assert_eq!(record["traffic"]["bytes"], 0);
    }
    assert!(got.lock().unwrap().is_empty(), "nothing reached the server");
    let allowed =
        serde_json::json!({"host": "a.example", "ports": [443], "tls": {"allowEncryptedClientHello": true}});
    rig.rules(2, vec![rule_of(allowed)]);
    let mut stream = rig.connect("a.example:443").await.unwrap();
    stream.write_all(&encrypted).await.unwrap();
    stream.shutdown().await.unwrap();
    timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    assert_eq!(*got.lock().unwrap(), encrypted);
}

#[tokio::test]
async fn every_http_request_is_checked() {
    let http = serde_json::json!({"host": "a.example", "ports": [80], "http": {"methods": ["GET"], "pathPrefixes": ["/v1"]}});
    let mut rig = Rig::start(vec![rule_of(http)]).await;
    let (server, got) = http_server().await;
    rig.site("a.example", "198.51.100.7", 80, server);
    let mut stream = rig.connect("a.example:80").await.unwrap();
    for path in ["/v1/a", "/v1/b?c"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
        let mut body = vec![0; format!("GET {path} HTTP/1.1").len()];
        stream.read_exact(&mut body).await.unwrap();
    }
    // A kept connection is no way round.
    stream.write_all(b"GET /v2 HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    let record = rig.record().await;
    assert_eq!(
        (&record["status_code"], &record["unmapped"]["requests"]),
        (&"PathNotAllowed".into(), &2.into())
    );
    for (request, reason) in [
        ("POST /v1 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n", "MethodNotAllowed"),
        ("GET /v1/../v2 HTTP/1.1\r\nHost: a.example\r\n\r\n", "PathNotAllowed"),
        ("GET /v1 HTTP/1.1\r\nHost: b.example\r\n\r\n", "NameMismatch"),
        ("GET http://b.example/v1 HTTP/1.1\r\nHost: a.example\r\n\r\n", "NameMismatch"),
        (
            "GET /v1 HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "ProtocolNotAllowed",
        ),
        ("CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "MethodNotAllowed"),
        ("GET /v1 HTTP/1.1\nHost: a.example\n\n", "Malformed"),
        (
            "GET /v1 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Malformed",
        ),
    ] {
        let mut stream = rig.connect("a.example:80").await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = timeout(SOON, read_head(&mut stream)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 403 "), "{request:?}: {head}");
        assert_eq!(rig.record().await["status_code"], reason, "{request:?}");
    }
    // TLS is no HTTP.
    let mut stream = rig.connect("a.example:80").await.unwrap();
    stream.write_all(&hello_of("a.example")).await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 49]);
    let got = got.lock().unwrap();
    assert_eq!(got.matches("HTTP/1.1\r\n").count(), 2, "{got}");
    assert!(!got.contains("b.example") && !got.contains("/v2"), "{got}");
}

#[tokio::test]
async fn a_change_of_the_policy_holds_for_the_next_request() {
    let mut rig = Rig::start(vec![rule_at("a.example", 80)]).await;
    let (server, _) = http_server().await;
    rig.site("a.example", "198.51.100.7", 80, server);
    let mut stream = rig.connect("a.example:80").await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    read_head(&mut stream).await;
    stream.read_exact(&mut [0; 15]).await.unwrap();
    let rules = |path: &str| {
        let http = serde_json::json!({"host": "a.example", "ports": [80], "http": {"pathPrefixes": [path]}});
        vec![rule_of(http)]
    };
    rig.rules(2, rules("/x"));
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    read_head(&mut stream).await;
    rig.rules(3, rules("/y"));
    timeout(SOON, async { while stream.read_u8().await.is_ok() {} }).await.unwrap();
    assert_eq!(rig.record().await["status_code"], "PolicyChanged");
}

#[tokio::test]
async fn other_protocols_need_a_rule_that_says_so() {
    let mut rig = Rig::start(vec![rule_at("a.example", 22)]).await;
    let server = serve(|mut stream| async move {
        stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    rig.site("a.example", "198.51.100.7", 22, server);
    let start = Instant::now();
    let mut stream = rig.connect("a.example:22").await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(
        answer.is_empty() && start.elapsed() < Duration::from_secs(2),
        "the server's greeting is not waited out"
    );
    assert_eq!(rig.record().await["status_code"], "ProtocolNotAllowed");
    let mut stream = rig.connect("a.example:22").await.unwrap();
    let _ = stream.write_all(b"SSH-2.0-client\r\n").await;
    timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.is_empty());
    assert_eq!(rig.record().await["status_code"], "ProtocolNotAllowed");
    let tcp = EgressRule { protocol: Some(Protocol::TCP), ..rule_at("a.example", 22) };
    rig.rules(2, vec![tcp]);
    let mut stream = rig.connect("a.example:22").await.unwrap();
    let mut greeting = [0; 14];
    timeout(SOON, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"SSH-2.0-test\r\n");
}

#[tokio::test]
async fn bytes_behind_the_request_are_the_agents() {
    let rig = Rig::start(vec![rule_at("a.example", 80)]).await;
    let (server, _) = http_server().await;
    rig.site("a.example", "198.51.100.7", 80, server);
    let request = connect_request("a.example:80", "good", 0) + "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let mut stream = rig.send(&request).await;
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 Connection Established"));
    assert!(timeout(SOON, read_head(&mut stream)).await.unwrap().starts_with("HTTP/1.1 200 OK"));
}
