//! Policies that change, and gateways that go and come.
use super::*;

#[tokio::test]
async fn new_ports_and_names_open_and_removed_ones_close() {
    let case = Case::new(update(1, &[("a.example", &[7777]), ("b.example", &[7777])])).await;
    for target in ["a.example:7777", "a.example:7778", "b.example:7777", "c.example:7777"] {
        case.gateway.route(target, Route::To(echo().await));
    }
    let (a, b) = (case.resolve("a.example").await.unwrap(), case.resolve("b.example").await.unwrap());
    assert!(TcpStream::connect((a, 7778)).await.is_err());
    let mut kept = TcpStream::connect((a, 7777)).await.unwrap();
    let mut lost = TcpStream::connect((b, 7777)).await.unwrap();
    for stream in [&mut kept, &mut lost] {
        stream.write_all(b"x").await.unwrap();
        soon(stream.read_exact(&mut [0; 1])).await.unwrap();
    }
    case.gateway.policy.send_replace(update(2, &[("a.example", &[7777, 7778]), ("c.example", &[7777])]));
    // What is allowed no more is closed at once, what still is goes on.
    let error = soon(lost.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    kept.write_all(b"x").await.unwrap();
    soon(kept.read_exact(&mut [0; 1])).await.unwrap();
    // Without another question.
    let mut stream = TcpStream::connect((a, 7778)).await.unwrap();
    assert_eq!(exchange(&mut stream, b"new").await.unwrap(), b"new");
    assert!(TcpStream::connect((b, 7777)).await.is_err());
    assert_eq!(case.resolve("b.example").await, Err(ResponseCode::Refused));
    let c = case.resolve("c.example").await.unwrap();
    assert!(c > b);
    // An address stays its name's.
    case.gateway.policy.send_replace(update(3, &[("b.example", &[7777])]));
    until("the policy", || case.records().contains(r#""generation":3,"#)).await;
    assert_eq!(case.resolve("b.example").await, Ok(b));
    let mut stream = TcpStream::connect((b, 7777)).await.unwrap();
    assert_eq!(exchange(&mut stream, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn the_stream_is_opened_again_and_the_policy_kept_meanwhile() {
    let case = Case::new(update(1, &[("a.example", &[7777])])).await;
    let streams = || {
        case.gateway.heads.lock().unwrap().iter().filter(|head| head.starts_with("GET /v1/policy ")).count()
    };
    let before = streams();
    case.gateway.epoch.send_modify(|epoch| *epoch += 1);
    assert!(case.resolve("a.example").await.is_ok());
    until("another stream", || streams() > before).await;
    case.gateway.policy.send_replace(update(2, &[]));
    until("the policy", || case.records().contains(r#""generation":2,"#)).await;
    assert_eq!(case.resolve("a.example").await, Err(ResponseCode::Refused));
}

#[tokio::test]
async fn wildcards_have_an_address_for_each_name() {
    let case = Case::new(update(1, &[("**.example", &[7777])])).await;
    for name in ["a.example", "b.a.example"] {
        case.gateway.route(&format!("{name}:7777"), Route::To(echo().await));
        let mut stream = case.dial(name, 7777).await.unwrap();
        assert_eq!(exchange(&mut stream, name.as_bytes()).await.unwrap(), name.as_bytes());
    }
    let mut refused = 0;
    for index in 0..300 {
        refused +=
            usize::from(case.resolve(&format!("n{index}.example")).await == Err(ResponseCode::ServFail));
    }
    // The burst, less the two above; a second may have passed.
    assert!((40..=46).contains(&refused), "{refused}");
    assert!(case.records().contains("TooManyNewNames"));
}

/// The cost that `listeners.rs` speaks of. Run by name, with `--ignored`.
#[ignore = "a measurement"]
#[tokio::test]
async fn cost_of_4096_listeners() {
    let ports: Vec<u16> = (20_000..20_016).collect();
    let names: Vec<String> = (0..256).map(|index| format!("n{index}.example")).collect();
    let hosts: Vec<(&str, &[u16])> = names.iter().map(|name| (name.as_str(), ports.as_slice())).collect();
    let case = Case::new(update(1, &hosts)).await;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned()
    };
    let (before, began) = (resident(), std::time::Instant::now());
    for name in &names {
        case.resolve(name).await.unwrap();
    }
    println!("{:?}, before: {before}, after: {}", began.elapsed(), resident());
}
