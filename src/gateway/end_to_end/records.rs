//! Records of connections that stay open.
use super::*;

#[tokio::test]
async fn what_stays_open_is_recorded_before_it_ends() {
    let limits = Limits { recorded_open: Duration::from_millis(300), ..Limits::default() };
    let mut rig = Rig::with(limits, vec![rule("a.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    // A short one has one record.
    let mut stream = rig.tls_through("a.example:443", "a.example").await.unwrap();
    stream.shutdown().await.unwrap();
    timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    assert_eq!(rig.record().await["activity_name"], "Close");
    let mut stream = rig.tls_through("a.example:443", "a.example").await.unwrap();
    let open = rig.record().await;
    assert_eq!(open["activity_name"], "Open");
    assert_eq!(open["dst_endpoint"]["ip"], "198.51.100.7");
    assert_eq!(open["firewall_rule"]["uid"], "spec.network.egress[0]");
    assert!(open["traffic"]["bytes_out"].as_i64().unwrap() > 200, "{open}");
    stream.shutdown().await.unwrap();
    timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    let closed = rig.record().await;
    assert_eq!(closed["activity_name"], "Close");
    assert_eq!(open["connection_info"]["uid"], closed["connection_info"]["uid"]);
    assert_eq!(open["start_time"], closed["start_time"]);
    rig.until_idle().await;
}

#[tokio::test]
async fn where_many_are_open_each_is_recorded_at_once() {
    let limits = Limits { tunnels: 2, ..Limits::default() };
    let mut rig = Rig::with(limits, vec![rule("a.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let _stream = rig.tls_through("a.example:443", "a.example").await.unwrap();
    assert_eq!(timeout(SOON, rig.record()).await.unwrap()["activity_name"], "Open");
}
