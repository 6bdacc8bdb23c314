//! What must hold for any bytes that a parser of untrusted input is given: the targets of `fuzz`, and a test over the
//! inputs that are kept in `fuzz/corpus`. Only there with `cfg(fuzzing)` and in tests; see
//! `docs/design/0009-fuzzing.md`.
//!
//! Each function panics where something does not hold, and else tells whether the input got as far as to be accepted: a
//! corpus in which nothing is would prove little.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "to panic is how an oracle speaks"
)]
mod host_name;
mod http_head;
pub(crate) mod pieces;

pub use host_name::host_name;
pub use http_head::http_head;

/// A query to the sidecar's name server.
pub fn dns_packet(packet: &[u8]) -> bool {
    crate::sidecar::fuzzing::dns_packet(packet)
}

/// The first bytes of an agent's connection at the gateway.
pub fn client_hello(stream: &[u8]) -> bool {
    crate::gateway::fuzzing::client_hello(stream)
}

/// What an agent sends to the sidecar's SOCKS5 proxy.
pub fn socks5(stream: &[u8]) -> bool {
    let target = crate::sidecar::fuzzing::socks5(stream);
    if let Some(target) = &target {
        crate::gateway::fuzzing::connect_means(target);
    }
    target.is_some()
}

/// Fails for one input in 2^56. Only a fuzzer that sees how far an input gets finds it: that this one does is checked
/// before anything it does not find is believed.
pub fn control(input: &[u8]) -> bool {
    let mut bytes = input.iter().copied();
    let mut next = || bytes.next().unwrap_or_default();
    // One branch for each byte: what gets a step farther is new.
    if next() == b'c'
        && next() == b'o'
        && next() == b'n'
        && next() == b't'
        && next() == b'r'
        && next() == b'o'
    {
        assert_ne!(next(), b'l', "the control was found, as it should be");
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rstest::rstest;

    use super::*;

    /// Whatever was found once stays mended, also where nobody fuzzes.
    #[rstest]
    #[case::client_hello("client_hello", client_hello)]
    #[case::dns_packet("dns_packet", dns_packet)]
    #[case::host_name("host_name", host_name)]
    #[case::http_head("http_head", http_head)]
    #[case::socks5("socks5", socks5)]
    fn the_corpus_holds(#[case] name: &str, #[case] target: fn(&[u8]) -> bool) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let (mut accepted, mut refused) = (0, 0);
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            // Says which, where it panics: output of a test that passes is not shown.
            println!("{}", path.display());
            if target(&fs::read(&path).unwrap()) { accepted += 1 } else { refused += 1 }
        }
        assert!(accepted >= 5 && refused >= 5, "{accepted} accepted, {refused} refused");
    }

    #[test]
    #[should_panic(expected = "the control was found")]
    fn the_control_can_fail() {
        assert!(!control(b"contrary"));
        control(b"control");
    }
}
