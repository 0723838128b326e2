//! Certificates for tests: an authority of their own, and what it signs, made by openssl(1).
//!
//! Invariant: keys and certificates lie in a temporary folder and vanish with their value; nothing trusts them otherwise.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// When certificates are valid, as openssl writes it: long ago, and for a long time.
const VALID: (&str, &str) = ("20200101000000Z", "20991231235959Z");
const EXPIRED: (&str, &str) = ("20200101000000Z", "20210101000000Z");
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
const CONFIGURATION: &str = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nnew_certs_dir=.\ncertificate=ca.crt\n\
    private_key=ca.key\ncrlnumber=crlnumber\ncrl_extensions=list\ndefault_md=sha256\npolicy=any\nunique_subject=no\nrand_serial=yes\n[any]\ncommonName=supplied\n\
    [list]\nauthorityKeyIdentifier=keyid\n[req]\ndistinguished_name=none\n[none]\n";

/// An authority.
#[derive(Debug)]
pub struct Certificates {
    folder: tempfile::TempDir,
    /// How many were made: each gets files of its own.
    made: AtomicUsize,
}

/// A certificate and its private key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes an authority.
    ///
    /// # Panics
    /// When openssl is not installed (`apt-get install openssl`).
    #[must_use]
    pub fn new() -> Self {
        Self::named("an authority for tests")
    }

    /// Makes an authority that is called `name`.
    ///
    /// # Panics
    /// As [`Certificates::new`].
    #[must_use]
    pub fn named(name: &str) -> Self {
        let authority = Self { folder: tempfile::tempdir().expect("a temporary folder"), made: AtomicUsize::new(0) };
        std::fs::write(authority.path("conf"), CONFIGURATION).expect("write the configuration");
        std::fs::write(authority.path("index"), "").expect("write the index");
        let subject = format!("/CN={name}");
        let subject = ["-config", "conf", "-subj", &subject, "-addext", "basicConstraints=critical,CA:TRUE"];
        let files = ["-keyout", "ca.key", "-out", "ca.crt", "-days", "3650"];
        authority.openssl(&[&["req", "-x509"], &NEW_KEY[..], &subject, &files].concat());
        std::fs::write(authority.path("crlnumber"), "01").expect("write the number of the next list");
        authority
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// A server for `localhost` and `127.0.0.1`.
    #[must_use]
    pub fn server(&self) -> Identity {
        self.sign("localhost", Some("DNS:localhost,IP:127.0.0.1"), VALID)
    }

    /// A server that has a common name, and no other.
    #[must_use]
    pub fn server_without_names(&self) -> Identity {
        self.sign("nameless", None, VALID)
    }

    /// A server for `localhost` and `127.0.0.1` whose certificate has expired.
    #[must_use]
    pub fn expired_server(&self) -> Identity {
        self.sign("expired", Some("DNS:localhost,IP:127.0.0.1"), EXPIRED)
    }

    /// A client whose common name is `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> Identity {
        self.sign(name, None, VALID)
    }

    /// A server for `localhost` and `127.0.0.1` that is its own authority.
    #[must_use]
    pub fn self_signed_server(&self) -> Identity {
        let identity = self.identity("alone");
        let (certificate, key) = (path_text(&identity.certificate), path_text(&identity.key));
        let subject = ["-config", "conf", "-subj", "/CN=alone", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
        let files =
            ["-addext", "basicConstraints=critical,CA:TRUE", "-keyout", key, "-out", certificate, "-days", "3650"];
        self.openssl(&[&["req", "-x509"], &NEW_KEY[..], &subject, &files].concat());
        identity
    }

    /// Takes a certificate back; lists that are made from now on have it.
    pub fn revoke(&self, identity: &Identity) {
        self.openssl(&["ca", "-config", "conf", "-revoke", path_text(&identity.certificate)]);
    }

    /// A new list of what was revoked, a PEM file of its own.
    #[must_use]
    pub fn revoked(&self) -> PathBuf {
        self.list(VALID)
    }

    /// The same, which was in force until some years ago.
    #[must_use]
    pub fn revoked_out_of_date(&self) -> PathBuf {
        self.list(EXPIRED)
    }

    fn list(&self, (start, end): (&str, &str)) -> PathBuf {
        let list = self.path(&format!("list-{}.crl", self.made.fetch_add(1, Ordering::Relaxed)));
        let dates = ["-crl_lastupdate", start, "-crl_nextupdate", end];
        self.openssl(&[&["ca", "-config", "conf", "-gencrl", "-out", path_text(&list)], &dates[..]].concat());
        list
    }

    fn sign(&self, name: &str, names: Option<&str>, (start, end): (&str, &str)) -> Identity {
        let identity = self.identity(name);
        let (request, extensions) = (format!("{name}.csr"), format!("{name}.ext"));
        let subject = format!("/CN={name}");
        let files = ["-config", "conf", "-subj", &subject, "-keyout", path_text(&identity.key), "-out", &request];
        self.openssl(&[&["req", "-new"], &NEW_KEY[..], &files].concat());
        let names = names.map_or_else(String::new, |names| format!("subjectAltName={names}\n"));
        std::fs::write(self.path(&extensions), format!("basicConstraints=CA:FALSE\n{names}"))
            .expect("write the extensions");
        let dates = ["-startdate", start, "-enddate", end, "-extfile", &extensions];
        let files = ["-in", &request, "-out", path_text(&identity.certificate)];
        self.openssl(&[&["ca", "-batch", "-notext", "-config", "conf"], &dates[..], &files].concat());
        identity
    }

    fn identity(&self, name: &str) -> Identity {
        let name = format!("{name}-{}", self.made.fetch_add(1, Ordering::Relaxed));
        Identity { certificate: self.path(&format!("{name}.crt")), key: self.path(&format!("{name}.key")) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[expect(clippy::disallowed_methods, reason = "a test's certificates are made outside of any host")]
    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        let output = command.output().expect("openssl runs: install it with `apt-get install openssl`");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("temporary folders are UTF-8")
}
