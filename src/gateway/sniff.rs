//! Which protocol the first bytes of a connection are.
use super::client_hello::HANDSHAKE;
use crate::policy::AppProtocol;

/// Longest method of a request that is taken for HTTP by its first bytes.
const MAX_METHOD: usize = 16;

/// What `bytes`, the first of a connection, are; `None` while they may still be more than one.
pub fn classify(bytes: &[u8]) -> Option<AppProtocol> {
    match bytes {
        [] | [HANDSHAKE] => None,
        [HANDSHAKE, 3, ..] => Some(AppProtocol::Tls),
        _ => method(bytes),
    }
}

/// HTTP/1 begins with a method in capitals and a blank. So does the preface of HTTP/2, which is not HTTP/1.
fn method(bytes: &[u8]) -> Option<AppProtocol> {
    let capitals = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match bytes.get(capitals) {
        _ if capitals > MAX_METHOD => Some(AppProtocol::Other),
        None => None,
        Some(b' ') if capitals > 0 && !bytes.starts_with(b"PRI ") => Some(AppProtocol::Http),
        Some(_) => Some(AppProtocol::Other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::tls(b"\x16\x03\x01\x02\x00\x01", Some(AppProtocol::Tls))]
    #[case::tls_not_yet(b"\x16", None)]
    #[case::ssl2(b"\x80\x2e\x01\x03\x01", Some(AppProtocol::Other))]
    #[case::get(b"GET / HTTP/1.1", Some(AppProtocol::Http))]
    #[case::own_method(b"PURGE /a", Some(AppProtocol::Http))]
    #[case::not_yet(b"GE", None)]
    #[case::ssh(b"SSH-2.0-OpenSSH_9.9\r\n", Some(AppProtocol::Other))]
    #[case::http2(b"PRI * HTTP/2.0\r\n", Some(AppProtocol::Other))]
    #[case::postgres(b"\0\0\0\x08\x04\xd2\x16\x2f", Some(AppProtocol::Other))]
    #[case::redis(b"*1\r\n$4\r\nPING\r\n", Some(AppProtocol::Other))]
    #[case::small(b"get / HTTP/1.1", Some(AppProtocol::Other))]
    #[case::blank(b" GET / HTTP/1.1", Some(AppProtocol::Other))]
    #[case::long(b"AAAAAAAAAAAAAAAAAAAA", Some(AppProtocol::Other))]
    fn first_bytes_tell(#[case] bytes: &[u8], #[case] expected: Option<AppProtocol>) {
        assert_eq!(classify(bytes), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_answer_stays_and_comes_soon(bytes in prop::collection::vec(any::<u8>(), 0..40), cut in 0..40_usize) {
            if let Some(early) = classify(&bytes[..cut.min(bytes.len())]) {
                prop_assert_eq!(classify(&bytes), Some(early));
            }
            prop_assert!(bytes.len() <= MAX_METHOD || classify(&bytes).is_some());
        }
    }
}
