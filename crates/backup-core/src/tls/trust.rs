//! Whom to believe: the authorities of the plan or of the system, and what of a certificate is compared.
//!
//! Invariant: whatever is not compared, the server proves that it holds the key of the certificate that it shows; a
//! channel binding to that certificate would mean nothing otherwise.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    VerifierBuilderError, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{TlsConfig, Verification, certificates, revocations};
use crate::error::{Error, ErrorKind, Result};

/// Decides about a server's certificate.
#[derive(Debug)]
pub(super) struct Trust {
    verify: Verification,
    authorities: Arc<RootCertStore>,
    /// What the plan's file holds: a certificate that stands there is believed as it is, also when it is its own authority.
    named: Vec<CertificateDer<'static>>,
    /// Looks at revocation lists, too, when the plan names some.
    revoked: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    pub(super) fn new(config: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<Self> {
        let verify = config.verify;
        let (authorities, named) = match (verify, config.ca.as_deref()) {
            (Verification::None, _) => (Arc::new(RootCertStore::empty()), Vec::new()),
            (_, None) => (of_the_system()?, Vec::new()),
            (_, Some(path)) => {
                let named = certificates(path)?;
                let mut authorities = RootCertStore::empty();
                let (added, _) = authorities.add_parsable_certificates(named.iter().cloned());
                if added == 0 {
                    let message = format!("no certificate in {} can be an authority", path.display());
                    return Err(Error::new(ErrorKind::Plan, message).hint("look at it: `openssl x509 -text -in FILE`"));
                }
                (Arc::new(authorities), named)
            }
        };
        let revoked = revocation_verifier(config, &authorities, provider)?;
        let algorithms = provider.signature_verification_algorithms;
        Ok(Self { verify, authorities, named, revoked, algorithms })
    }

    /// Whether an authority vouches for the certificate, and has not taken that back.
    fn vouched(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let Some(revoked) = &self.revoked else {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let (authorities, algorithms) = (&self.authorities, self.algorithms.all);
            return verify_server_cert_signed_by_trust_anchor(
                &certificate,
                authorities,
                intermediates,
                now,
                algorithms,
            );
        };
        match revoked.verify_server_cert(end_entity, intermediates, name, &[], now) {
            // It comes to the name when everything else is right; how far that matters is decided elsewhere.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether it is to be believed for standing in the plan's file. One that an authority has revoked is not.
    fn is_named(&self, end_entity: &CertificateDer<'_>, vouched: &Result<(), rustls::Error>) -> bool {
        let is_revoked = matches!(vouched, Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) if self.revoked.is_some());
        self.named.contains(end_entity) && !is_revoked
    }
}

/// What looks at the revocation lists of the plan.
fn revocation_verifier(
    config: &TlsConfig,
    authorities: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<WebPkiServerVerifier>>> {
    if config.crl.is_empty() || config.verify == Verification::None {
        return Ok(None);
    }
    let mut lists = Vec::new();
    for path in &config.crl {
        lists.extend(revocations(path)?);
    }
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::clone(authorities), Arc::clone(provider));
    let built = builder.with_crls(lists).enforce_revocation_expiration().build();
    built.map(Some).map_err(|source: VerifierBuilderError| {
        let names: Vec<String> = config.crl.iter().map(|path| path.display().to_string()).collect();
        Error::new(ErrorKind::Plan, format!("a revocation list in {} cannot be used", names.join(", ")))
            .hint("it must be of version 2 (`openssl crl -text -in FILE`; `crl_extensions` of openssl's configuration)")
            .caused_by(source)
    })
}

/// The system's authorities: the files that OpenSSL would read, `SSL_CERT_FILE` and `SSL_CERT_DIR` included.
fn of_the_system() -> Result<Arc<RootCertStore>> {
    static FOUND: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let mut authorities = RootCertStore::empty();
        authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(authorities)
    });
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Plan, "this machine knows no certificate authorities")
            .hint("install them (`apt-get install ca-certificates`), or name the server's own with `ca` of `tls`"));
    }
    Ok(Arc::clone(found))
}

/// A signature that does not fit is that of an authority which only has the name of a trusted one.
fn signed_by_another(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        error => error,
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.verify == Verification::None {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let vouched = self.vouched(end_entity, intermediates, server_name, now);
        if !self.is_named(end_entity, &vouched) {
            vouched.map_err(signed_by_another)?;
        }
        if self.verify == Verification::Full {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
