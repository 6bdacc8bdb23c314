//! What one sandbox may use, and what somebody without a token may.
use std::collections::BTreeMap;

use super::*;
use crate::gateway::memory::Usage;

#[tokio::test]
async fn who_is_slow_is_hung_up_on() {
    let limits = Limits {
        head: Duration::from_millis(300),
        first_byte: Duration::from_millis(600),
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, vec![rule("a.example"), rule_at("a.example", 80)]).await;
    let (server, _) = http_server().await;
    rig.site("a.example", "198.51.100.7", 443, server);
    rig.site("a.example", "198.51.100.7", 80, server);
    // A request of the sidecar, a hello, a head of a first and of a later request, and silence.
    let mut stream = rig.send("CONNECT a.ex").await;
    assert!(timeout(SOON, read_head(&mut stream)).await.unwrap().starts_with("HTTP/1.1 408 "));
    assert_eq!(rig.record().await["status_code"], "TooSlow");
    let whole = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for (port, bytes, reason) in [
        (443, hello_of("a.example")[..100].to_vec(), "TooSlow"),
        (80, b"GET / HTTP/1.1\r\n".to_vec(), "TooSlow"),
        (80, format!("{whole}GET").into_bytes(), "TooSlow"),
        (80, Vec::new(), "IdleTimeout"),
    ] {
        let mut stream = rig.connect(&format!("a.example:{port}")).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        timeout(SOON, async { while stream.read_u8().await.is_ok() {} }).await.unwrap();
        assert_eq!(rig.record().await["status_code"], reason);
    }
    // Dripping does not help.
    let mut stream = rig.connect("a.example:443").await.unwrap();
    let dripping = async {
        for byte in hello_of("a.example") {
            stream.write_all(&[byte]).await?;
            sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), std::io::Error>(())
    };
    let _ = timeout(SOON, dripping).await.expect("it ends");
    assert_eq!(rig.record().await["status_code"], "TooSlow");
}

#[tokio::test]
async fn one_sandbox_cannot_take_all() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let mut rig = Rig::with(limits, vec![rule("a.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let first = rig.connect("a.example:443").await.unwrap();
    let _second = rig.connect("a.example:443").await.unwrap();
    let (status, denial) = rig.connect("a.example:443").await.unwrap_err();
    assert_eq!((status, denial.reason.as_str()), (429, "TooManyConnections"));
    assert_eq!(rig.record().await["status_code"], "TooManyConnections");
    drop(first);
    rig.record().await;
    rig.connect("a.example:443").await.unwrap();
}

#[tokio::test]
async fn when_memory_is_short_what_stands_still_ends_and_nothing_more_is_taken() {
    let limits = Limits { still: Duration::from_millis(300), ..Limits::default() };
    let any =
        |port: u16| rule_of(serde_json::json!({"host": "a.example", "ports": [port], "protocol": "TCP"}));
    let mut rig = Rig::with(limits, vec![any(7000), any(7001)]).await;
    let flood =
        serve(|mut stream| async move { while stream.write_all(&vec![0; 65536]).await.is_ok() {} }).await;
    let echo = serve(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    rig.site("a.example", "198.51.100.7", 7000, flood);
    rig.site("a.example", "198.51.100.7", 7001, echo);
    let mut still = rig.connect("a.example:7000").await.unwrap();
    let mut moving = rig.connect("a.example:7001").await.unwrap();
    let mut back = [0; 1];
    moving.write_all(b"x").await.unwrap();
    moving.read_exact(&mut back).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let look = |used| rig.context.memory.look(Some(Usage { used, limit: 100 }));
    look(10);
    let mut more = rig.connect("a.example:7001").await.unwrap();
    look(80);
    let (status, denial) = rig.connect("a.example:7001").await.unwrap_err();
    assert_eq!((status, denial.reason.as_str()), (503, "GatewayBusy"));
    let (one, other) = (rig.record().await, rig.record().await);
    let reset = if one["activity_name"] == "Reset" { one } else { other };
    assert_eq!(
        (&reset["status_code"], &reset["dst_endpoint"]["port"]),
        (&"GatewayBusy".into(), &7000.into())
    );
    let ended = async { while still.read_u8().await.is_ok() {} };
    timeout(SOON, ended).await.expect("it ended");
    for stream in [&mut moving, &mut more] {
        stream.write_all(b"x").await.unwrap();
        timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
    }
    rig.context.memory.look(Some(Usage { used: 10, limit: 100 }));
    rig.connect("a.example:7001").await.unwrap();
}

#[tokio::test]
async fn bytes_are_limited_also_those_of_other_gateways() {
    let mut rig = Rig::start(Vec::new()).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let mut object = object(2, vec![rule("a.example")]);
    object.spec.network.as_mut().unwrap().limits =
        Some(serde_json::from_value(serde_json::json!({"egressBytes": "1Mi"})).unwrap());
    rig.context.identity.sandboxes.take(Event::Apply(kube::core::DeserializeGuard(Ok(object))));
    let mut stream = rig.tls_through("a.example:443", "a.example").await.unwrap();
    let flooding = async {
        let mut back = [0; 1000];
        loop {
            stream.write_all(&[0; 1000]).await?;
            stream.read_exact(&mut back).await?;
        }
        #[allow(unreachable_code)]
        Ok::<(), std::io::Error>(())
    };
    assert!(timeout(SOON, flooding).await.expect("it ends").is_err());
    let record = rig.record().await;
    assert_eq!(record["status_code"], "EgressBytesExceeded");
    let bytes = record["traffic"]["bytes"].as_i64().unwrap();
    assert!((1_048_000..1_100_000).contains(&bytes), "{bytes}");
    assert_eq!(rig.connect("a.example:443").await.unwrap_err().1.reason, "EgressBytesExceeded");
}

#[tokio::test]
async fn what_the_sidecar_says_of_other_gateways_counts() {
    let rig = Rig::start(Vec::new()).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let sandbox = object(2, vec![rule("a.example")]);
    let mut limited = sandbox.clone();
    limited.spec.network.as_mut().unwrap().limits =
        Some(serde_json::from_value(serde_json::json!({"egressBytes": "1Mi"})).unwrap());
    rig.context.identity.sandboxes.take(Event::Apply(kube::core::DeserializeGuard(Ok(limited))));
    rig.connect_as("a.example:443", "good", 1000).await.unwrap();
    let (status, denial) = rig.connect_as("a.example:443", "good", 2 << 20).await.unwrap_err();
    assert_eq!((status, denial.reason.as_str()), (403, "EgressBytesExceeded"));
}

#[tokio::test]
async fn a_flood_of_strangers_is_counted_and_not_recorded_one_by_one() {
    let mut rig = Rig::start(Vec::new()).await;
    for _ in 0..60 {
        let _ = rig.connect_as("a.example:443", "bad", 0).await;
    }
    sleep(Duration::from_millis(600)).await;
    let _ = rig.connect_as("a.example:443", "bad", 0).await;
    let mut recorded = 0;
    loop {
        let record = rig.record().await;
        recorded += 1;
        if let Some(suppressed) = record["unmapped"]["suppressed"].as_u64() {
            assert!(suppressed > 0, "{record}");
            break;
        }
    }
    assert!(recorded < 40, "{recorded}");
}

#[tokio::test]
async fn who_is_silent_makes_room_for_who_asks() {
    let limits = Limits { places: 60, ..Limits::default() };
    let mut rig = Rig::with(limits, vec![rule("a.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    // A spare one of a sidecar, and then three addresses that open what they can and say nothing.
    let mut spare = rig.dial(ALPN).await.unwrap();
    let silent = |last: u8| {
        let rig = &rig;
        async move {
            let mut held = Vec::new();
            loop {
                held.extend(rig.dial_from([127, 0, 0, last], ALPN).await.ok());
                if held.len() > 40 {
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    };
    let asking = async {
        sleep(Duration::from_secs(1)).await;
        let mut tunnels = Vec::new();
        for _ in 0..20 {
            tunnels.push(rig.connect("a.example:443").await.unwrap());
            sleep(Duration::from_millis(20)).await;
        }
        spare.write_all(connect_request("a.example:443", "good", 0).as_bytes()).await.unwrap();
        assert!(read_head(&mut spare).await.starts_with("HTTP/1.1 200 "), "it was not its turn");
        tunnels.push(spare);
        tunnels
    };
    let tunnels = tokio::select! {
        () = async { tokio::join!(silent(2), silent(3), silent(4)); } => unreachable!(),
        tunnels = timeout(4 * SOON, asking) => tunnels.unwrap(),
    };
    assert_eq!(tunnels.len(), 21);
    drop(tunnels);
    rig.until_idle().await;
    unheard::settle(&rig.context, std::time::Instant::now()).await;
    rig.context.records.flush().await;
    let (tunnelled, counted) = served_and_counted(&mut rig);
    assert_eq!(tunnelled, 21);
    assert!(counted.keys().eq(["127.0.0.2", "127.0.0.3", "127.0.0.4"]), "{counted:?}");
    assert!(counted.values().all(|count| *count > 5), "{counted:?}");
}

/// How many records are of those who said who they are, and how many refusals were only counted, by address. A handshake
/// that was broken off may have a record of its own, and the number with it.
fn served_and_counted(rig: &mut Rig) -> (usize, BTreeMap<String, u64>) {
    let (mut served, mut counted) = (0, BTreeMap::<String, u64>::new());
    while let Some(record) = rig.record_now() {
        if record["status_code"] == "Unauthenticated" {
            let source = record["src_endpoint"]["ip"].as_str().unwrap().to_owned();
            *counted.entry(source).or_default() += record["unmapped"]["suppressed"].as_u64().unwrap_or(0);
        } else {
            served += 1;
        }
    }
    (served, counted)
}

#[tokio::test]
async fn who_says_nothing_is_counted() {
    let limits = Limits {
        handshake: Duration::from_millis(200),
        spare: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Vec::new()).await;
    let mut no_hello = TcpStream::connect(rig.address).await.unwrap();
    let mut no_request = rig.dial(ALPN).await.unwrap();
    for stream in [&mut no_hello as &mut (dyn tokio::io::AsyncRead + Unpin), &mut no_request] {
        let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("it ends");
    }
    let mut half = rig.send("CONNECT a.ex").await;
    half.shutdown().await.unwrap();
    let _ = timeout(SOON, half.read_to_end(&mut Vec::new())).await.expect("it ends");
    // These hang up by themselves, as sidecars do.
    drop((rig.dial(ALPN).await.unwrap(), TcpStream::connect(rig.address).await.unwrap()));
    sleep(Duration::from_millis(100)).await;
    unheard::settle(&rig.context, std::time::Instant::now()).await;
    let record = rig.record().await;
    assert_eq!(
        (&record["status_code"], &record["unmapped"]["suppressed"], &record["src_endpoint"]["ip"]),
        (&"Unauthenticated".into(), &3.into(), &"127.0.0.1".into())
    );
}

#[tokio::test]
async fn what_was_only_counted_is_recorded_when_nothing_follows() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let mut rig = Rig::with(limits, vec![rule("a.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let held = rig.connect("a.example:443").await.unwrap();
    let start = Instant::now();
    for _ in 0..30 {
        assert_eq!(rig.connect("a.example:443").await.unwrap_err().0, 429);
    }
    let told = 5 + start.elapsed().as_secs();
    // Its end, and that of its Pod, do not take the number with them.
    drop(held);
    rig.until_idle().await;
    rig.context
        .identity
        .sandboxes
        .take(Event::Delete(kube::core::DeserializeGuard(Ok(object(1, Vec::new())))));
    let early = std::time::Instant::now().checked_sub(Duration::from_mins(1)).unwrap();
    unheard::settle(&rig.context, early).await;
    unheard::settle(&rig.context, std::time::Instant::now()).await;
    unheard::settle(&rig.context, std::time::Instant::now()).await;
    rig.context.records.flush().await;
    let (mut single, mut counted) = (0, 0);
    while let Some(record) = rig.record_now() {
        if record["status_code"] != "TooManyConnections" {
            continue;
        }
        assert_eq!(record["metadata"]["correlation_uid"], "s-1");
        counted += record["unmapped"]["suppressed"].as_u64().unwrap_or(0);
        single += u64::from(record["dst_endpoint"]["hostname"] == "a.example");
    }
    assert_eq!(single + counted, 30);
    assert!((5..=told).contains(&single), "{single} of {told}");
}

#[tokio::test]
async fn who_has_most_idle_connections_makes_room_for_another_sandbox() {
    let limits = Limits { tunnels: 8, few: 3, still: Duration::from_millis(300), ..Limits::default() };
    let any = rule_of(serde_json::json!({"host": "a.example", "ports": [7000], "protocol": "TCP"}));
    let mut rig = Rig::with(limits, vec![any.clone()]).await;
    rig.other(vec![any]);
    let echo = serve(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    rig.site("a.example", "198.51.100.7", 7000, echo);
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(rig.connect("a.example:7000").await.unwrap());
    }
    assert_eq!(rig.connect("a.example:7000").await.unwrap_err().1.reason, "GatewayBusy");
    let busy = rig.connect_as("a.example:7000", "other", 0).await.unwrap_err().1.reason;
    assert_eq!(busy, "GatewayBusy", "nothing is idle for long enough");
    sleep(limits.still).await;
    // The first moves bytes, and the second is the one that has not for longest.
    let mut back = [0; 1];
    held[0].write_all(b"x").await.unwrap();
    held[0].read_exact(&mut back).await.unwrap();
    let mut others = vec![rig.connect_as("a.example:7000", "other", 0).await.unwrap()];
    assert!(timeout(SOON, held[1].read_u8()).await.unwrap().is_err(), "it was cut off");
    held[0].write_all(b"x").await.unwrap();
    held[0].read_exact(&mut back).await.unwrap();
    while others.len() < 4 {
        others.push(rig.connect_as("a.example:7000", "other", 0).await.unwrap());
    }
    // Both have as many, and nobody has to give up more.
    assert_eq!(rig.connect_as("a.example:7000", "other", 0).await.unwrap_err().1.reason, "GatewayBusy");
    let mut made = 0;
    rig.context.records.flush().await;
    while let Some(record) = rig.record_now() {
        if record["activity_name"] == "Reset" {
            assert_eq!(
                (&record["status_code"], &record["src_endpoint"]["uid"]),
                (&"GatewayBusy".into(), &"p-1".into())
            );
            made += 1;
        }
    }
    assert_eq!(made, 4);
    held[0].write_all(b"x").await.unwrap();
    held[0].read_exact(&mut back).await.unwrap();
}
