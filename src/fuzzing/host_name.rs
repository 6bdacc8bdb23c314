//! One name has one form, whoever reads it.
use std::net::IpAddr;

use hickory_proto::rr::Name;

use crate::gateway::fuzzing as gateway;
use crate::policy::{HostName, HostPattern};
use crate::sidecar::fuzzing as sidecar;

/// A name as somebody writes it, or a pattern as a rule has it.
pub fn host_name(bytes: &[u8]) -> bool {
    let name = HostName::from_bytes(bytes).ok();
    if let Some(name) = &name {
        canonical(bytes, name);
    }
    every_reader(bytes, name.as_ref());
    let text = std::str::from_utf8(bytes).ok();
    let pattern = text.and_then(|text| text.parse::<HostPattern>().ok());
    if let Some(pattern) = &pattern {
        written_as_read(pattern);
    }
    // Every name is a pattern, but for the dot at the end that only the network may write.
    let dotted = bytes.ends_with(b".");
    assert!(!dotted || pattern.is_none());
    assert!(name.is_none() || dotted || pattern == name.clone().map(HostPattern::Exact));
    pattern.is_some() || name.is_some()
}

/// What is checked is what was written, but for capitals and one dot, and what is resolved.
fn canonical(bytes: &[u8], name: &HostName) {
    let text = name.as_str();
    let lower = bytes.to_ascii_lowercase();
    assert_eq!(lower.strip_suffix(b".").unwrap_or(&lower), text.as_bytes());
    assert!(
        text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')),
        "{text}"
    );
    assert!(text.len() <= 253 && text.split('.').all(|label| (1..=63).contains(&label.len())), "{text}");
    assert_eq!(HostName::parse(text).as_ref(), Ok(name));
    assert_eq!(HostName::parse(&format!("{text}.")).as_ref(), Ok(name));
    assert!(text.parse::<IpAddr>().is_err(), "{text}");
    assert!(text.rsplit('.').next().unwrap().parse::<u64>().is_err(), "{text} is an address to inet_aton");
    let json = serde_json::to_string(name).unwrap();
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(serde_json::from_str::<HostName>(&json).unwrap(), *name);
    let resolved = Name::from_ascii(format!("{text}.")).unwrap();
    assert!(resolved.iter().eq(text.split('.').map(str::as_bytes)), "{resolved}");
}

/// Whoever takes a name from the network takes this one, or none where it is none.
fn every_reader(bytes: &[u8], name: Option<&HostName>) {
    assert_eq!(sidecar::asked_by_socks5(bytes).as_ref(), name, "by SOCKS5");
    assert_eq!(gateway::asked_by_hello(bytes).as_ref(), name, "by a server name");
    let labels = bytes.strip_suffix(b".").unwrap_or(bytes);
    if labels.split(|byte| *byte == b'.').all(|label| (1..=63).contains(&label.len())) {
        assert_eq!(sidecar::asked_by_dns(labels).as_ref(), name, "by DNS");
    }
    // What cannot stand in a line of HTTP, or ends a host there, makes another message.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && !b":/?#".contains(&byte)) {
        return;
    }
    assert_eq!(gateway::asked_by_connect(text).as_ref(), name, "by a sidecar's CONNECT");
    assert_eq!(sidecar::asked_by_proxy_connect(text).as_ref(), name, "by CONNECT");
    assert_eq!(sidecar::asked_by_proxy(text).as_ref(), name, "by a URL");
    let other: HostName = "other.invalid".parse().unwrap();
    let host = name.unwrap_or(&other);
    let path = name.map(|_| "/x".to_owned());
    assert_eq!(gateway::asked_by_request("/x", text, host), path, "by a Host field");
    let url = format!("http://{text}/x");
    assert_eq!(gateway::asked_by_request(&url, host.as_str(), host), path, "by a URL at the gateway");
}

fn written_as_read(pattern: &HostPattern) {
    assert_eq!(pattern.to_string().parse().as_ref(), Ok(pattern));
    let base = pattern.base();
    let below = |labels: &str| HostName::parse(&format!("{labels}.{base}")).ok();
    let matches = [Some(base.clone()), below("a"), below("a.b")]
        .map(|name| name.is_some_and(|name| pattern.matches(&name)));
    // A base may be so long that no name fits below it.
    let room = [true, below("a").is_some(), below("a.b").is_some()];
    let expected = match pattern {
        HostPattern::Exact(_) => [true, false, false],
        HostPattern::OneLabel(_) => [false, true, false],
        HostPattern::AnyDepth(_) => [false, true, true],
    };
    assert_eq!(matches, [0, 1, 2].map(|at| expected[at] && room[at]), "{pattern}");
}
