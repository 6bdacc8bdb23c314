//! What stays in the sandbox's own Pod: no rule is asked.
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use super::{Answer, Endpoint, Finding, Said, Target};

/// Where the sidecar stands in for names that rules allow. See `docs/design/0007-egress.md`.
const STAND_INS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 64, 0, 0), 10);
/// Where its proxies are, and at which ports.
const PROXIES: (Ipv4Addr, [u16; 2]) = (Ipv4Addr::new(127, 64, 0, 1), [3128, 1080]);

/// Whether an address does not leave the Pod, so that no policy has a say.
pub(super) fn has(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// What is said of `target` where it does not leave the Pod.
pub(super) fn answer(target: &Target) -> Option<Answer> {
    let address = match &target.endpoint {
        // The Pod's `/etc/hosts` has it.
        Endpoint::Host(name) if name.as_str() == "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Endpoint::Address(address) => address.to_canonical(),
        _ => return None,
    };
    let is_proxy = target.said != Said::Udp && address == PROXIES.0 && PROXIES.1.contains(&target.port);
    let stands_in = matches!(address, IpAddr::V4(address) if STAND_INS.contains(&address));
    let (finding, reason) = if is_proxy {
        let reason = "a proxy of the sandbox's own sidecar, which needs no rule; what is asked of it does: ask for that name";
        (Finding::Allowed, reason)
    } else if stands_in {
        let reason = "the sandbox's own sidecar has 127.64.0.0/10 to stand in, over TCP, for names that host rules allow; which name has this address only the Pod knows: ask for the name";
        (Finding::Unknown, reason)
    } else if has(address) {
        (Finding::Allowed, "the sandbox's own loopback; no rule is needed")
    } else {
        return None;
    };
    Some(Answer::new(target, finding, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_in_the_pod_needs_no_rule() {
        let asked = |to: &str| answer(&Target::parse(to, "GET", false).unwrap());
        for (to, finding, said) in [
            ("localhost:8080", Finding::Allowed, "the sandbox's own loopback; no rule is needed\n"),
            ("http://LOCALHOST.", Finding::Allowed, "own loopback"),
            ("127.0.0.1:8080", Finding::Allowed, "own loopback"),
            ("udp://127.1.2.3:53", Finding::Allowed, "own loopback"),
            ("[::1]:8080", Finding::Allowed, "own loopback"),
            ("[::ffff:127.0.0.1]:8080", Finding::Allowed, "own loopback"),
            ("127.63.255.255:1", Finding::Allowed, "own loopback"),
            ("127.128.0.0:1", Finding::Allowed, "own loopback"),
            ("http://127.64.0.1:3128", Finding::Allowed, "what is asked of it does"),
            ("127.64.0.1:1080", Finding::Allowed, "what is asked of it does"),
            ("udp://127.64.0.1:3128", Finding::Unknown, "ask for the name"),
            ("127.64.0.1:80", Finding::Unknown, "ask for the name"),
            ("https://127.64.1.7", Finding::Unknown, "only the Pod knows: ask for the name"),
            ("127.127.255.255:443", Finding::Unknown, "ask for the name"),
        ] {
            let answer = asked(to).unwrap();
            assert_eq!(answer.finding, finding, "{answer}");
            assert!(answer.to_string().contains(said), "{answer}");
        }
        for to in
            ["a.localhost:80", "localhost.example:80", "127.1:80", "128.0.0.1:80", "[::2]:80", "0.0.0.0:80"]
        {
            assert_eq!(asked(to), None, "{to}");
        }
    }
}
