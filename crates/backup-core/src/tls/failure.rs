//! What a failure of TLS means, and what to do about it.
//!
//! Invariant: every message says which side refused and why; the library's own words stay as the cause.

use std::io;

use rustls::{AlertDescription as Alert, CertificateError as Fault};

use crate::error::{Error, ErrorKind};

/// An error of reading or writing a [`TlsStream`](super::TlsStream), or any other stream: refusals of TLS are said in
/// plain words, the rest is what [`Error::from_io`] makes of it. `message` names what was being done.
#[must_use]
pub fn explain(message: &'static str, source: io::Error) -> Error {
    match of_tls(&source) {
        Some(error) => error.caused_by(source),
        None => Error::from_io(message, source),
    }
}

/// A handshake that failed.
pub(super) fn of_handshake(source: io::Error) -> Error {
    match of_tls(&source) {
        Some(error) => error.caused_by(source),
        None if matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            no_tls().caused_by(source)
        }
        None => Error::from_io("the TLS handshake failed", source),
    }
}

/// The server does not answer like one that speaks TLS.
pub(super) fn no_tls() -> Error {
    Error::new(ErrorKind::Unreachable, "the server does not speak TLS on this port")
        .hint("look which port it speaks TLS on, or leave TLS out where the way to it is private")
}

fn of_tls(source: &io::Error) -> Option<Error> {
    let inner = source.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match inner {
        rustls::Error::InvalidCertificate(fault) => of_certificate(fault),
        rustls::Error::InvalidCertRevocationList(_) => {
            let what = "a revocation list was not made by the authority of the server's certificate";
            Error::new(ErrorKind::PermissionDenied, what)
                .hint("name a list of each authority on its way with `crl` of `tls`")
        }
        rustls::Error::AlertReceived(alert) => of_alert(*alert),
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => no_tls(),
        rustls::Error::PeerIncompatible(_) => too_old(),
        _ => Error::new(ErrorKind::Tool, "TLS with the server failed"),
    })
}

/// What we do not accept of the server's certificate.
fn of_certificate(fault: &Fault) -> Error {
    let of = |message: String| Error::new(ErrorKind::PermissionDenied, message);
    match fault {
        Fault::UnknownIssuer => of("the server's certificate is of an authority that is not trusted".to_owned())
            .hint("name the authority's certificate with `ca` of `tls`"),
        Fault::NotValidForNameContext { expected, presented } => {
            let presented = if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") };
            of(format!("the server's certificate is not for `{}`, but for {presented}", expected.to_str()))
                .hint("set `server_name` of `tls` to a name that it has as subjectAltName; or `verify: ca`, which accepts any name")
        }
        Fault::NotValidForName => of("the server's certificate is for another name".to_owned())
            .hint("set `server_name` of `tls` to a name that it has; or `verify: ca`, which accepts any name"),
        Fault::Expired | Fault::ExpiredContext { .. } => of("the server's certificate has expired".to_owned())
            .hint("renew it, and look whether the clocks are right"),
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
            of("the server's certificate is not valid yet".to_owned()).hint("look whether the clocks are right")
        }
        Fault::Revoked => of("the server's certificate was revoked by its authority".to_owned())
            .hint("give the server a new one; somebody else may hold the key of the old one"),
        Fault::UnknownRevocationStatus => {
            of("no revocation list tells whether the server's certificate was revoked".to_owned())
                .hint("name a list of each authority on its way with `crl` of `tls`")
        }
        Fault::ExpiredRevocationList | Fault::ExpiredRevocationListContext { .. } => {
            of("the revocation list of the server's authority is out of date".to_owned())
                .hint("fetch the authority's newest list, and look whether the clocks are right")
        }
        Fault::BadSignature => of("the server does not hold the key of the certificate that it shows".to_owned())
            .hint("somebody may stand between; look at the certificate from the server's own side"),
        _ => of("the server's certificate cannot be accepted".to_owned()).hint(
            "when it is its own authority, name it with `ca` of `tls`; it must be of version 3 and made for servers \
             (`openssl s_client -connect HOST:PORT | openssl x509 -text` shows it)",
        ),
    }
}

/// What the server does not accept.
fn of_alert(alert: Alert) -> Error {
    let of = |message: &'static str| Error::new(ErrorKind::PermissionDenied, message);
    match alert {
        Alert::CertificateRequired => of("the server asks for a certificate of ours")
            .hint("name one that it trusts with `cert` and `key` of `tls`"),
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::UnsupportedCertificate
        | Alert::CertificateExpired
        | Alert::CertificateRevoked
        | Alert::DecryptError
        | Alert::AccessDenied => of("the server does not accept our certificate")
            .hint("look whether `cert` of `tls` is of an authority that the server trusts, and has not expired"),
        Alert::ProtocolVersion => too_old(),
        Alert::HandshakeFailure | Alert::InsufficientSecurity => of("the server refused the TLS handshake")
            .hint("it may ask for a certificate (`cert` and `key` of `tls`), or know no cipher of TLS 1.2 or 1.3"),
        Alert::UnrecognisedName => of("the server knows no certificate for this name")
            .hint("set `server_name` of `tls` to the name that it has"),
        _ => Error::new(ErrorKind::Tool, "the server ended TLS"),
    }
}

fn too_old() -> Error {
    Error::new(ErrorKind::Unsupported, "the server speaks neither TLS 1.2 nor TLS 1.3")
        .hint("allow one of them in the server's configuration; what is older is not safe")
}
