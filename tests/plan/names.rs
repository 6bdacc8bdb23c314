//! What is checked is what TLS verifies. Here and not beside the type, since the pure parts name no such crate.
use agentsandbox::policy::HostName;
use proptest::prelude::*;
use tokio_rustls::rustls::pki_types::ServerName;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tls_takes_every_host_name_for_the_same_name(text in "[a-zA-Z0-9_-]{1,9}([.][a-zA-Z0-9_-]{1,9}){0,4}[.]?") {
        let Ok(name) = text.parse::<HostName>() else { return Ok(()) };
        match ServerName::try_from(name.as_str()) {
            Ok(ServerName::DnsName(server)) => prop_assert_eq!(server.as_ref(), name.as_str()),
            other => prop_assert!(false, "{name}: {other:?}"),
        }
    }
}
