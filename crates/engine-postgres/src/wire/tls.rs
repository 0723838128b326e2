//! TLS as `libpq` means it: the parameters `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `sslcrl`,
//! `sslcrldir` of the plan's `url`.

use std::path::PathBuf;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tls::{TlsConfig, TlsConnector, Verification};
use tokio::net::TcpStream;

use super::frame::Transport;
use crate::config::Endpoint;
use crate::server::Server;

/// What is asked of the connection (PostgreSQL manual, "SSL Support", "Protection Provided in Different Modes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let system = endpoint.parameters.get("sslrootcert").is_some_and(|file| file == "system");
        match endpoint.parameters.get("sslmode").map(String::as_str) {
            // As libpq: the system's authorities vouch for anybody, so the name must be checked.
            None if system => Ok(Self::VerifyFull),
            None | Some("prefer") => Ok(Self::Prefer),
            Some("disable") => Ok(Self::Disable),
            Some("allow") => Ok(Self::Allow),
            Some("require") => Ok(Self::Require),
            Some("verify-ca") => Ok(Self::VerifyCa),
            Some("verify-full") => Ok(Self::VerifyFull),
            Some(other) => Err(Error::new(ErrorKind::Plan, format!("`sslmode={other}` is not known"))
                .hint("it is one of disable, allow, prefer, require, verify-ca, verify-full")),
        }
    }
}

/// Begins TLS. Returns the encrypted stream and the server's certificate in DER form.
///
/// # Errors
/// Those of [`TlsConnector::connect`]; also when a parameter asks for what is not done here.
pub(crate) async fn handshake(stream: TcpStream, server: &Server) -> Result<(Box<dyn Transport>, Option<Vec<u8>>)> {
    let endpoint = &server.endpoint;
    let (config, host) = (config(endpoint)?, endpoint.host.clone());
    let made = tokio::task::spawn_blocking(move || TlsConnector::new(&config, &host)).await;
    let connector = made.map_err(|source| Error::new(ErrorKind::Internal, "TLS panicked").caused_by(source))??;
    let refused = |error: Error| match error.remedy() {
        Some(hint) => {
            let hint = libpq_words(hint);
            error.with("server", server.describe()).hint(hint)
        }
        None => error.with("server", server.describe()),
    };
    let stream = connector.connect(stream).await.map_err(refused)?;
    let described = stream.describe();
    if endpoint.parameters.get("ssl_min_protocol_version").is_some_and(|least| least == "TLSv1.3")
        && !described.starts_with("TLSv1_3")
    {
        let message = format!("the server speaks {described} where `ssl_min_protocol_version` asks for TLS 1.3");
        return Err(Error::new(ErrorKind::Unsupported, message).hint("raise the server's `ssl_max_protocol_version`"));
    }
    let certificate = stream.peer_certificate().map(<[u8]>::to_vec);
    Ok((Box::new(stream), certificate))
}

/// The remedies of TLS name the fields of a plan that has a section for it; ours has the parameters of `libpq`.
fn libpq_words(hint: &str) -> String {
    let words = [
        ("`cert` and `key` of `tls`", "`sslcert` and `sslkey` in the plan's `url`"),
        ("`cert` of `tls`", "`sslcert` in the plan's `url`"),
        ("`crl` of `tls`", "`sslcrl` in the plan's `url`"),
        ("`ca` of `tls`", "`sslrootcert` in the plan's `url`"),
        ("set `server_name` of `tls` to", "connect to"),
        ("`verify: ca`", "`sslmode=verify-ca`"),
    ];
    words.iter().fold(hint.to_owned(), |hint, (theirs, ours)| hint.replace(theirs, ours))
}

fn config(endpoint: &Endpoint) -> Result<TlsConfig> {
    let parameter = |name: &str| endpoint.parameters.get(name).filter(|value| !value.is_empty());
    let system = parameter("sslrootcert").is_some_and(|file| file == "system");
    let named = parameter("sslrootcert").filter(|_| !system).map(PathBuf::from);
    let ca = named.or_else(|| standard("root.crt").filter(|_| !system));
    let verify = match SslMode::of(endpoint)? {
        SslMode::VerifyFull => Verification::Full,
        SslMode::VerifyCa => Verification::Ca,
        // As libpq: a file of authorities that is there is looked at.
        SslMode::Require if ca.is_some() => Verification::Ca,
        _ => Verification::None,
    };
    let cert = parameter("sslcert").map(PathBuf::from).or_else(|| standard("postgresql.crt"));
    let key = parameter("sslkey").map(PathBuf::from).or_else(|| standard("postgresql.key"));
    let key = key.filter(|_| cert.is_some());
    let mut crl: Vec<PathBuf> =
        ["sslcrl", "sslcrldir"].iter().filter_map(|name| parameter(name)).map(PathBuf::from).collect();
    if verify == Verification::None {
        if let Some(list) = crl.first() {
            let message = format!("the revocation lists in {} are not looked at with this `sslmode`", list.display());
            return Err(Error::new(ErrorKind::Plan, message).hint("set `sslmode=verify-full`, or leave them out"));
        }
    } else if crl.is_empty() {
        crl.extend(standard("root.crl"));
    }
    Ok(TlsConfig { ca: ca.filter(|_| verify != Verification::None), crl, cert, key, server_name: None, verify })
}

/// A file of `~/.postgresql`, when it is there.
fn standard(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".postgresql").join(name)).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn endpoint(parameters: &[(&str, &str)]) -> Endpoint {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Endpoint { host: "db".into(), parameters, ..Endpoint::socket(Path::new("/"), 1, "x") }
    }

    #[test]
    fn modes_mean_what_libpq_says() {
        type Case = (&'static [(&'static str, &'static str)], SslMode, Verification);
        let cases: [Case; 7] = [
            (&[], SslMode::Prefer, Verification::None),
            (&[("sslmode", "disable")], SslMode::Disable, Verification::None),
            (&[("sslmode", "require")], SslMode::Require, Verification::None),
            (&[("sslmode", "require"), ("sslrootcert", "/ca")], SslMode::Require, Verification::Ca),
            (&[("sslmode", "verify-ca"), ("sslrootcert", "/ca")], SslMode::VerifyCa, Verification::Ca),
            (&[("sslmode", "verify-full")], SslMode::VerifyFull, Verification::Full),
            (&[("sslrootcert", "system")], SslMode::VerifyFull, Verification::Full),
        ];
        for (parameters, mode, verify) in cases {
            let endpoint = endpoint(parameters);
            assert_eq!(SslMode::of(&endpoint).unwrap(), mode, "{parameters:?}");
            assert_eq!(config(&endpoint).unwrap().verify, verify, "{parameters:?}");
        }
        assert!(SslMode::of(&endpoint(&[("sslmode", "yes")])).is_err());
        assert!(config(&endpoint(&[("sslcrl", "/crl")])).is_err());
        let lists = [("sslcrl", "/crl"), ("sslcrldir", "/crls"), ("sslmode", "verify-full")];
        assert_eq!(config(&endpoint(&lists)).unwrap().crl, [Path::new("/crl"), Path::new("/crls")]);
    }
}
