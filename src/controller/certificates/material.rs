//! Certificates and keys as the two Secrets hold them. What cannot be read is as if it were not there: it is made anew.
use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rcgen::{KeyPair, PublicKeyData};
use ring::hmac;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// What a Secret holds, by key.
pub type Data = BTreeMap<String, ByteString>;

/// Key of the Secret with every certificate that may have signed the gateway's, PEM; the one that signs now is first.
pub const BUNDLE: &str = "ca.crt";
/// Key of the Secret with the private key that signs now.
pub const SIGNING_KEY: &str = "ca.key";
/// Key of the Secret with the private key that will sign next.
pub const NEXT_KEY: &str = "next.key";
/// Key of the Secret with the gateway's certificate.
pub const LEAF: &str = "tls.crt";
/// Key of the Secret with the gateway's private key.
pub const LEAF_KEY: &str = "tls.key";

const END: &str = "-----END CERTIFICATE-----";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// As it was written, with one line feed at its end.
    pub pem: String,
    /// Its bytes.
    pub der: CertificateDer<'static>,
    /// Start of its validity, in seconds since the epoch.
    pub from: i64,
    /// End of its validity.
    pub until: i64,
    /// Its public key (SubjectPublicKeyInfo, DER).
    public: Vec<u8>,
}

impl Certificate {
    /// Reads one certificate.
    pub fn read(pem: &str) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (rest, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let validity = parsed.validity();
        let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let (fits, public) = (rest.is_empty(), parsed.public_key().raw.to_vec());
        fits.then(|| Self { pem: format!("{}\n", pem.trim()), der, from, until, public })
    }

    fn is_of(&self, key: &KeyPair) -> bool {
        self.public == key.subject_public_key_info()
    }
}

/// A certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: Certificate,
    /// The private key, PEM (PKCS #8).
    pub key: String,
}

impl Pair {
    /// The first of `certificates` that `key` belongs to, with it.
    fn find(certificates: &[Certificate], key: Option<&str>) -> Option<Self> {
        let pair = KeyPair::from_pem(key?).ok()?;
        let certificate = certificates.iter().find(|certificate| certificate.is_of(&pair))?.clone();
        Some(Self { certificate, key: key?.to_owned() })
    }
}

/// The authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    /// The one that signs now.
    pub signer: Option<Pair>,
    /// The one that will sign next, and is known to the sandboxes that are made until then.
    pub next: Option<Pair>,
    /// Earlier ones, whose signatures may still be in use. Their keys are gone.
    pub earlier: Vec<Certificate>,
}

impl Authority {
    /// Reads the Secret of the authorities.
    pub fn read(data: &Data) -> Self {
        let certificates: Vec<Certificate> = text(data, BUNDLE)
            .unwrap_or_default()
            .split_inclusive(END)
            .filter_map(|part| Certificate::read(part.get(part.find(BEGIN)?..)?))
            .collect();
        let signer = Pair::find(&certificates, text(data, SIGNING_KEY));
        let next =
            Pair::find(&certificates, text(data, NEXT_KEY)).filter(|next| signer.as_ref() != Some(next));
        let used = |c: &Certificate| [&signer, &next].into_iter().flatten().any(|p| p.certificate == *c);
        let earlier = certificates.iter().filter(|c| !used(c)).cloned().collect();
        Self { signer, next, earlier }
    }

    /// What the Secret should hold; `None` for a key that should not be there.
    pub fn write(&self) -> BTreeMap<&'static str, Option<String>> {
        let key = |pair: &Option<Pair>| pair.as_ref().map(|pair| pair.key.clone());
        BTreeMap::from([
            (BUNDLE, Some(self.bundle())),
            (SIGNING_KEY, key(&self.signer)),
            (NEXT_KEY, key(&self.next)),
        ])
    }

    /// Key of what only the operator may be able to derive, from the private key that signs now: it changes with it,
    /// once a year.
    pub fn derived_key(&self) -> Option<[u8; 32]> {
        let key = self.signer.as_ref()?.key.as_bytes();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"agentsandbox directory");
        tag.as_ref().try_into().ok()
    }

    /// Every certificate, PEM.
    pub fn bundle(&self) -> String {
        let pairs = [&self.signer, &self.next].into_iter().flatten().map(|pair| &pair.certificate);
        pairs.chain(&self.earlier).map(|certificate| certificate.pem.as_str()).collect()
    }
}

/// Reads the Secret of the gateway's certificate.
pub fn read_leaf(data: &Data) -> Option<Pair> {
    Pair::find(&[Certificate::read(text(data, LEAF)?)?], text(data, LEAF_KEY))
}

/// What the Secret of the gateway's certificate should hold.
pub fn write_leaf(leaf: &Pair) -> BTreeMap<&'static str, Option<String>> {
    BTreeMap::from([(LEAF, Some(leaf.certificate.pem.clone())), (LEAF_KEY, Some(leaf.key.clone()))])
}

fn text<'a>(data: &'a Data, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&data.get(key)?.0).ok()
}
