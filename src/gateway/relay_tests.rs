//! The relay, with one end in memory and the other on loopback.
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::net::TcpListener;

use super::super::sandboxes::tests::{sandbox, sandbox_with_bytes};
use super::*;

struct Rig {
    agent: DuplexStream,
    server: TcpStream,
    relay: tokio::task::JoinHandle<(End, u64, u64)>,
    live: Arc<Live>,
}

async fn rig(limits: Limits) -> Rig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut upstream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let (agent, inner) = duplex(64 * 1024);
    let live = Arc::new(Live::new(Arc::new(sandbox_with_bytes(1, 1 << 30)), &limits));
    let shared = Arc::clone(&live);
    let relay = tokio::spawn(async move {
        // As much at a time as a full record has.
        let (meter, mut inner) = (Meter::default(), BufReader::with_capacity(RECORD, inner));
        let end = Relay::new(&mut inner, &mut upstream, None, b"first ".to_vec(), (&meter, &shared, &limits))
            .run()
            .await;
        (end, meter.outward(), meter.inward())
    });
    Rig { agent, server, relay, live }
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let mut rig = rig(Limits::default()).await;
    let numbers = |count: u32| (0..count).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<u8>>();
    let (up, down) = (numbers(3_000_000), numbers(2_000_000));
    let (mut from_agent, mut to_agent) = tokio::io::split(rig.agent);
    let (mut from_server, mut to_server) = rig.server.into_split();
    let sending = tokio::spawn({
        let up = up.clone();
        async move {
            to_agent.write_all(&up).await.unwrap();
            to_agent.shutdown().await.unwrap();
        }
    });
    let answering = tokio::spawn({
        let down = down.clone();
        async move { to_server.write_all(&down).await.unwrap() }
    });
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    tokio::join!(async { from_server.read_to_end(&mut got_up).await.unwrap() }, async {
        from_agent.read_to_end(&mut got_down).await.unwrap()
    },);
    sending.await.unwrap();
    answering.await.unwrap();
    assert!(got_up.starts_with(b"first ") && got_up[6..] == up);
    assert_eq!(got_down, down);
    let (end, out, into) = (&mut rig.relay).await.unwrap();
    assert!(matches!(end, End::Closed), "{end:?}");
    assert_eq!((out, into), (3_000_006, 2_000_000));
}

#[tokio::test]
async fn one_direction_may_end_first() {
    let mut rig = rig(Limits::default()).await;
    rig.agent.write_all(b"question").await.unwrap();
    rig.agent.shutdown().await.unwrap();
    let mut question = String::new();
    rig.server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "first question");
    rig.server.write_all(b"answer").await.unwrap();
    drop(rig.server);
    let mut answer = String::new();
    rig.agent.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    assert!(matches!(rig.relay.await.unwrap().0, End::Closed));
}

#[tokio::test]
async fn silence_ends_it_and_bytes_do_not() {
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let mut rig = rig(limits).await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.server.write_all(b"x").await.unwrap();
    }
    assert!(!rig.relay.is_finished());
    let (end, _, into) = rig.relay.await.unwrap();
    assert!(matches!(end, End::Idle), "{end:?}");
    assert_eq!(into, 8);
}

#[tokio::test]
async fn a_server_that_breaks_off_is_told_from_one_that_ends() {
    let rig = rig(Limits::default()).await;
    rig.server.set_zero_linger().unwrap();
    drop(rig.server);
    assert!(matches!(rig.relay.await.unwrap().0, End::ServerLost(_)));
}

#[tokio::test]
async fn bytes_count_for_the_sandbox() {
    let mut rig = rig(Limits::default()).await;
    rig.live.update(Some(Arc::new(sandbox(2, &["a.example"]))));
    rig.agent.write_all(&[0; 1000]).await.unwrap();
    rig.server.read_exact(&mut [0; 1006]).await.unwrap();
    rig.server.write_all(&[0; 94]).await.unwrap();
    rig.agent.read_exact(&mut [0; 94]).await.unwrap();
    rig.live.update(Some(Arc::new(sandbox_with_bytes(3, 1100))));
    assert!(rig.live.exceeded());
    rig.live.update(Some(Arc::new(sandbox_with_bytes(4, 1101))));
    assert!(!rig.live.exceeded());
}
