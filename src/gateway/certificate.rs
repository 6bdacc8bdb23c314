//! The gateway's certificate: read again when its files change, and never shown after it has expired.
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::egress::wire::ALPN;

/// Why the files were not taken.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The files are no certificate and key.
    #[error("tls.crt and tls.key are not a PEM chain and its key: {0}")]
    Pem(String),
    /// The key is of another certificate, or of a kind that is not known.
    #[error(transparent)]
    Key(#[from] rustls::Error),
    /// The times of the certificate cannot be read.
    #[error("the certificate cannot be parsed: {0}")]
    Parse(String),
}

/// The certificate of a directory with `tls.crt` and `tls.key`.
#[derive(Debug)]
pub struct Certificates {
    directory: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<Option<Arc<Loaded>>>,
}

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// Seconds since the epoch.
    valid: std::ops::Range<i64>,
    /// Of both files.
    digest: [u8; 32],
}

impl Certificates {
    /// The certificate of `directory`, not read yet.
    pub fn new(directory: &Path) -> Self {
        let provider = Arc::new(ring::default_provider());
        Self { directory: directory.to_owned(), provider, current: RwLock::default() }
    }

    /// Reads the files again. `Ok(true)` if there is another certificate now. After an error the old one stays.
    pub fn reload(&self) -> Result<bool, CertificateError> {
        let read = |name: &str| {
            let path = self.directory.join(name);
            std::fs::read(&path).map_err(|error| CertificateError::Read(path, error))
        };
        let (chain, key) = (read("tls.crt")?, read("tls.key")?);
        let digest: [u8; 32] =
            Sha256::new().chain_update(&chain).chain_update([0]).chain_update(&key).finalize().into();
        if self.loaded().is_some_and(|loaded| loaded.digest == digest) {
            return Ok(false);
        }
        let loaded = self.load(&chain, &key, digest)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(loaded));
        Ok(true)
    }

    fn load(&self, chain: &[u8], key: &[u8], digest: [u8; 32]) -> Result<Loaded, CertificateError> {
        let pem = |error: rustls::pki_types::pem::Error| CertificateError::Pem(error.to_string());
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(pem)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(pem)?;
        let leaf =
            chain.first().ok_or_else(|| CertificateError::Pem("there is no certificate".to_owned()))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| CertificateError::Parse(error.to_string()))?;
        let validity = parsed.validity();
        let valid = validity.not_before.timestamp()..validity.not_after.timestamp();
        // Also checks that both belong together.
        let key = Arc::new(CertifiedKey::from_der(chain, key, &self.provider)?);
        Ok(Loaded { key, valid, digest })
    }

    fn loaded(&self) -> Option<Arc<Loaded>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long the certificate is valid yet; nothing if it is not.
    pub fn valid_for(&self) -> Option<Duration> {
        let (loaded, now) = (self.loaded()?, now());
        let left = loaded.valid.contains(&now).then(|| loaded.valid.end - now)?;
        Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// How connections are taken.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Sessions are taken up again from the client's ticket: nothing is kept here for them.
        config.ticketer = ring::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.loaded().filter(|loaded| loaded.valid.contains(&now())).map(|loaded| Arc::clone(&loaded.key))
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    /// An authority of the tests.
    pub struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        pub fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        pub fn certificate(&self) -> CertificateDer<'static> {
            self.0.der().clone()
        }

        pub fn pem(&self) -> String {
            self.0.pem()
        }

        /// Certificate and key of `name` in PEM, valid from and to these seconds from now.
        pub fn issue(&self, name: &str, from: i64, to: i64) -> (String, String) {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.not_before = OffsetDateTime::now_utc() + time::Duration::seconds(from);
            params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(to);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
        }

        /// Writes certificate and key where the gateway reads them.
        pub fn issue_into(&self, directory: &Path, name: &str, from: i64, to: i64) {
            let (certificate, key) = self.issue(name, from, to);
            std::fs::write(directory.join("tls.crt"), certificate).unwrap();
            std::fs::write(directory.join("tls.key"), key).unwrap();
        }
    }

    #[test]
    fn files_are_taken_when_they_change_and_only_when_they_fit() {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        let certificates = Certificates::new(directory.path());
        assert!(matches!(certificates.reload(), Err(CertificateError::Read(..))));
        assert_eq!(certificates.valid_for(), None);
        authority.issue_into(directory.path(), "gateway", -10, 1000);
        assert!(certificates.reload().unwrap());
        assert!(!certificates.reload().unwrap());
        // The certificate is written, and its key not yet.
        let (certificate, key) = authority.issue("gateway", -10, 5000);
        std::fs::write(directory.path().join("tls.crt"), &certificate).unwrap();
        assert!(certificates.reload().is_err());
        assert!(certificates.valid_for().unwrap() <= Duration::from_secs(1000), "the old one stays");
        std::fs::write(directory.path().join("tls.key"), &key).unwrap();
        assert!(certificates.reload().unwrap());
        assert!(certificates.valid_for().unwrap() > Duration::from_secs(4000));
        std::fs::write(directory.path().join("tls.crt"), "").unwrap();
        assert!(certificates.reload().is_err());
    }

    #[test]
    fn what_is_not_valid_is_not_shown() {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        for (from, to) in [(-100, -10), (10, 100)] {
            let certificates = Certificates::new(directory.path());
            authority.issue_into(directory.path(), "gateway", from, to);
            assert!(certificates.reload().unwrap());
            assert_eq!(certificates.valid_for(), None);
        }
    }
}
