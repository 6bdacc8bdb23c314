//! A CA of the test run and one certificate of it.
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, Error, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls::pki_types::CertificateDer;

/// What the HTTPS servers need.
pub struct Made {
    /// Certificate of the CA, PEM.
    pub ca_pem: String,
    /// The servers' certificate.
    pub certificate: CertificateDer<'static>,
    /// Its private key, PKCS #8 DER.
    pub key: Vec<u8>,
}

/// Makes a CA and a server certificate for `names`: DNS names and IP addresses.
pub fn make(names: Vec<String>) -> Result<Made, Error> {
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.distinguished_name.push(DnType::CommonName, "AgentSandbox end-to-end test CA");
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, "end-to-end test server");
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &ca)?;
    Ok(Made { ca_pem: ca.pem(), certificate: certificate.der().clone(), key: key.serialize_der() })
}
