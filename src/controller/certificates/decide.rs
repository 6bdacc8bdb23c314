//! When a certificate is made anew: pure.
//!
//! A sandbox gets the authorities' certificates at its creation and keeps them to its end. So an authority must have
//! been known for longer than a sandbox lives before it signs: the next one waits in the bundle for [`OVERLAP`].
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};

use super::material::{Authority, Certificate, Pair};

const DAY: i64 = 24 * 3600;
/// Life of an authority.
pub const AUTHORITY_LIFE: i64 = 365 * DAY;
/// Life of the gateway's certificate.
pub const LEAF_LIFE: i64 = 30 * DAY;
/// Age at which the gateway's certificate is made anew.
const LEAF_RENEWAL: i64 = 10 * DAY;
/// Time for which an authority is known before it signs: more than the longest life of a sandbox, 24 h to start and
/// 168 h to run.
const OVERLAP: i64 = 30 * DAY;
/// Rest of an authority's life in which the next one is made: the overlap, then time for a last certificate.
const STAGING: i64 = 90 * DAY;
/// Rest of an authority's life in which it no longer signs.
const LAST: i64 = DAY;
/// Rest of the life of the gateway's certificate in which it is made anew whatever its age.
const LEAF_REST: i64 = DAY / 2;
/// By how much a validity begins before now: clocks differ.
pub const BACKDATE: i64 = 3600;

/// What is to be done about the authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing.
    Keep,
    /// There is none that could sign: make one that signs at once. Sandboxes that run do not know it.
    Create,
    /// Make the next one.
    Stage,
    /// The next one signs from now on.
    Promote,
    /// Forget certificates that have ended.
    Prune,
}

/// Decides about the authorities at `now`, in seconds since the epoch.
pub fn renewal(now: i64, held: &Authority) -> Renewal {
    // Only the end counts: a certificate of a clock that was ahead is no reason to cut sandboxes off.
    let signs = |pair: &&Pair| now < pair.certificate.until - LAST;
    let next = held.next.as_ref().filter(signs);
    match (held.signer.as_ref().filter(signs), next) {
        (None, Some(_)) => Renewal::Promote,
        (None, None) => Renewal::Create,
        (Some(_), Some(next)) if now >= next.certificate.from + BACKDATE + OVERLAP => Renewal::Promote,
        (Some(signer), None) if now >= signer.certificate.until - STAGING => Renewal::Stage,
        _ if held.earlier.iter().any(|certificate| now >= certificate.until) => Renewal::Prune,
        _ => Renewal::Keep,
    }
}

/// Whether the gateway needs another certificate than `leaf` at `now`: it is old, or a sidecar that knows `signer`
/// alone would not take it for `name`.
pub fn leaf_is_due(now: i64, signer: &Certificate, leaf: Option<&Pair>, name: &str) -> bool {
    leaf.is_none_or(|leaf| {
        let leaf = &leaf.certificate;
        now >= leaf.from + BACKDATE + LEAF_RENEWAL
            || now >= leaf.until - LEAF_REST
            || !is_taken(now, std::slice::from_ref(signer), leaf, name)
    })
}

/// Whether a sidecar that knows `authorities` takes `leaf` for `name` at `now`.
pub fn is_taken(now: i64, authorities: &[Certificate], leaf: &Certificate, name: &str) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        if roots.add(authority.der.clone()).is_err() {
            return false;
        }
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let (Ok(verifier), Ok(name), Ok(now)) = (verifier, ServerName::try_from(name), u64::try_from(now)) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier.verify_server_cert(&leaf.der, &[], &name, &[], now).is_ok()
}
