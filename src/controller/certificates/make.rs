//! Makes certificates and their keys: P-256, signed with ECDSA and SHA-256.
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::decide::{AUTHORITY_LIFE, BACKDATE, LEAF_LIFE};
use super::material::{Certificate, Pair};
use crate::policy::digest::hex;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The key or the certificate.
    #[error("{0}")]
    Rcgen(#[from] rcgen::Error),
    /// A time that no certificate can hold.
    #[error("the clock is out of range: {0}")]
    Clock(#[from] time::error::ComponentRange),
    /// What was made cannot be read.
    #[error("the certificate that was made cannot be read")]
    Unreadable,
}

/// An authority that may sign for `name` and for nothing else.
pub fn authority(now: i64, name: &str) -> Result<Pair, MakeError> {
    let key = KeyPair::generate()?;
    let mut params = params(Vec::new(), now - BACKDATE, now + AUTHORITY_LIFE)?;
    // No two authorities have one subject, so that a verifier never tries the wrong one.
    let mut mark = hex(&Sha256::digest(key.subject_public_key_info()));
    mark.truncate(8);
    params.distinguished_name.push(DnType::CommonName, format!("AgentSandbox egress authority {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(name.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let issuer = CertifiedIssuer::self_signed(params, key)?;
    pair(&issuer.pem(), issuer.key())
}

/// A certificate of the gateway's for `name`, which never outlives its authority.
pub fn leaf(now: i64, signer: &Pair, name: &str) -> Result<Pair, MakeError> {
    let until = signer.certificate.until.min(now + LEAF_LIFE);
    let mut params = params(vec![name.to_owned()], now - BACKDATE, until)?;
    params.distinguished_name.push(DnType::CommonName, "agentsandbox-gateway");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let issuer = Issuer::from_ca_cert_der(&signer.certificate.der, KeyPair::from_pem(&signer.key)?)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    pair(&certificate.pem(), &key)
}

fn params(names: Vec<String>, from: i64, until: i64) -> Result<CertificateParams, MakeError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = OffsetDateTime::from_unix_timestamp(from)?;
    params.not_after = OffsetDateTime::from_unix_timestamp(until)?;
    Ok(params)
}

fn pair(pem: &str, key: &KeyPair) -> Result<Pair, MakeError> {
    let certificate = Certificate::read(pem).ok_or(MakeError::Unreadable)?;
    Ok(Pair { certificate, key: key.serialize_pem() })
}
