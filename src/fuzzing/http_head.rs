//! HTTP heads and bodies, at the sidecar's proxy and at the gateway.
use crate::gateway::fuzzing as gateway;
use crate::sidecar::fuzzing::{self as sidecar, Proxied};

/// Bytes of an agent, of an origin, or of a sidecar: every reader of HTTP gets the same.
pub fn http_head(stream: &[u8]) -> bool {
    let inspected = gateway::requests(stream);
    let answered = sidecar::answered(stream);
    let Some((head, rest)) = sidecar::head_of(stream) else { return inspected || answered };
    let wire = gateway::wire_head(&head);
    let proxied = sidecar::proxied(&head, &rest);
    two_readings(&head);
    match &proxied {
        Some(Proxied::Tunnel(target)) => gateway::connect_means(target),
        Some(Proxied::Request { name, port, method, path, sent, whole }) => {
            // The gateway looks at what the sidecar sends when its rule wants that: one request, the one that the
            // sidecar read, or none. It may refuse a head that the sidecar takes, but no body.
            let found = gateway::inspect(sent, name, *port, usize::MAX);
            if let Some((judged_method, judged_path)) = found.judged.last() {
                let path = path.split('?').next().unwrap();
                assert_eq!((judged_method.as_str(), judged_path.as_str()), (method.as_str(), path));
                assert!(found.judged.len() <= 2 && found.good, "{found:?}");
                assert_eq!(found.whole, *whole, "where the request ends");
            } else {
                assert!(!found.good && found.out.is_empty());
            }
        }
        None => {}
    }
    inspected || answered || wire || proxied.is_some()
}

/// Both parsers of heads read the same, where both read anything.
fn two_readings(head: &[u8]) {
    let Some(strict) = gateway::strict_head(head) else { return };
    let Some((method, target, minor, fields)) = sidecar::request(head) else { return };
    assert_eq!((method.as_str(), target.as_str(), minor), (strict.method, strict.target, strict.minor));
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.trim_ascii())).collect();
    assert_eq!(fields, strict.fields);
}
