//! The object store that a URL names, with the settings of the environment.
//!
//! Invariants: a URL that an object store reads as another place than the one that is written is refused; settings that it
//! would fail on later are named now. Nothing is asked over the network.

use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::RequestsConfig;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::{Location, address};

/// Schemes of object stores, and the prefix of the environment variables that hold their credentials and settings.
const CLOUDS: [(&str, &str); 6] =
    [("s3", "AWS_"), ("s3a", "AWS_"), ("gs", "GOOGLE_"), ("az", "AZURE_"), ("abfs", "AZURE_"), ("abfss", "AZURE_")];

/// Settings of an object store: names in small letters, with their values.
type Settings = Vec<(String, String)>;

/// Credentials and settings come from the environment variables that each cloud's own tools read (`AWS_ACCESS_KEY_ID`,
/// `AWS_ENDPOINT`, …), never from the plan.
pub(super) fn cloud(scheme: &str, url: &str, requests: &RequestsConfig) -> Result<Location> {
    let environment = std::env::vars_os();
    let texts = environment.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    open(scheme, url, requests, texts)
}

fn open(
    scheme: &str,
    url: &str,
    requests: &RequestsConfig,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Location> {
    let fault =
        |why: &str| Error::new(ErrorKind::Plan, format!("the repository's url `{}` {why}", address::shown(url)));
    let Some((_, variables)) = CLOUDS.iter().find(|(known, _)| *known == scheme) else {
        return Err(fault("has a scheme that is not known")
            .hint("use a path, file://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"));
    };
    let parsed = Url::parse(url).map_err(|source| fault("is not a URL").caused_by(source))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // The URL itself is not repeated: it holds a secret.
        return Err(Error::new(ErrorKind::Plan, "the repository's url holds a user or a password")
            .hint(format!("put credentials into environment variables ({variables}…)")));
    }
    check_place(url, &parsed).map_err(|(why, hint)| fault(&why).hint(hint))?;
    // An empty variable is one that is not set, as for the clouds' own tools.
    let settings = environment
        .filter(|(name, value)| name.starts_with(variables) && !value.is_empty())
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect::<Settings>();
    check_endpoints(&settings)?;
    let built = build(&parsed, settings, requests);
    let (store, prefix) = built.map_err(|source| {
        Error::new(ErrorKind::Plan, format!("cannot use the object store of `{url}`"))
            .caused_by(source)
            .hint(format!("its credentials and settings come from environment variables ({variables}…)"))
    })?;
    let store = object_store::prefix::PrefixStore::new(store, prefix);
    Ok(Location { store: Arc::new(store), describe: format!("the repository at {url}") })
}

/// The store, and the place in it.
fn build(
    url: &Url,
    settings: Settings,
    requests: &RequestsConfig,
) -> object_store::Result<(Arc<dyn ObjectStore>, Path)> {
    // How often does not matter, only how long: ten attempts were used up in four seconds.
    let retry = RetryConfig { max_retries: usize::MAX, retry_timeout: requests.retry_for.0, ..RetryConfig::default() };
    let timeout = ("timeout".to_owned(), format!("{}s", requests.timeout.0.as_secs()));
    // The environment's settings come after ours, and count.
    let settings = || std::iter::once(timeout).chain(settings);
    macro_rules! built {
        ($builder:ty) => {{
            let builder = settings().fold(<$builder>::new().with_url(url.as_str()), |builder, (name, value)| {
                // Variables that are no setting of this store's are somebody else's.
                match name.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                }
            });
            Arc::new(builder.with_retry(retry).build()?)
        }};
    }
    let (scheme, prefix) = ObjectStoreScheme::parse(url)?;
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::GoogleCloudStorage => built!(GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => built!(MicrosoftAzureBuilder),
        _ => built!(AmazonS3Builder),
    };
    Ok((store, Path::parse(prefix)?))
}

/// Refuses a URL that is read as another place than what is written: `#` and `?` end it, `..` steps back, `%41` is an `A`.
fn check_place(url: &str, parsed: &Url) -> std::result::Result<(), (String, &'static str)> {
    let written = url.split_once("://").map_or("", |(_, rest)| rest);
    let (bucket, prefix) = written.split_once('/').unwrap_or((written, ""));
    if bucket.is_empty() {
        return Err(("names no bucket".to_owned(), "write s3://bucket/prefix, with two slashes before the bucket"));
    }
    if parsed.port().is_some() {
        let hint = "the server's address goes into AWS_ENDPOINT; the url names the bucket: s3://bucket/prefix";
        return Err(("has a port".to_owned(), hint));
    }
    let read = Path::from_url_path(parsed.path());
    let same = read.is_ok_and(|read| read.as_ref() == prefix.trim_end_matches('/'));
    if same && parsed.host_str() == Some(bucket) && parsed.query().is_none() && parsed.fragment().is_none() {
        return Ok(());
    }
    let why = "would be read as another place than it says: `#`, `?`, `%`, `//` and the steps `.` and `..` mean something \
               in a URL";
    Err((why.to_owned(), "choose a bucket and a prefix without them"))
}

/// An endpoint without a scheme makes the client panic, and one over http is refused late and without a reason.
fn check_endpoints(settings: &Settings) -> Result<()> {
    for (name, value) in settings {
        if !name.contains("endpoint") || name.contains("_use_") {
            continue;
        }
        let variable = name.to_ascii_uppercase();
        // The value may hold a password: it is not repeated.
        let fault = |why: &str| Error::new(ErrorKind::Plan, format!("the environment variable {variable} {why}"));
        let parsed = Url::parse(value).ok().filter(Url::has_host);
        match parsed.as_ref().map(Url::scheme) {
            Some("https") => {}
            Some("http") => {
                let cloud = name.split('_').next().unwrap_or_default();
                let allow = format!("{cloud}_allow_http");
                let allowed = settings.iter().any(|(name, value)| *name == allow && is_true(value));
                // The services that hand out credentials to machines speak http by design.
                let inner = ["metadata", "msi", "identity"].iter().any(|part| name.contains(part));
                if !allowed && !inner {
                    return Err(fault("names an address without TLS (http://)").hint(format!(
                        "use https://, or set {}=true if the network can be trusted",
                        allow.to_uppercase()
                    )));
                }
            }
            _ => return Err(fault("is not a URL").hint("write it with its scheme: https://s3.example.org")),
        }
    }
    Ok(())
}

fn is_true(value: &str) -> bool {
    ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use backup_core::plan::Span;
    use object_store::ObjectStoreExt;

    use super::*;

    fn with(url: &str, settings: &[(&str, &str)]) -> Result<Location> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        open(
            scheme,
            url,
            &RequestsConfig::default(),
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn urls_name_their_faults_and_secrets_are_not_repeated() {
        assert!(with("ftp://host/x", &[]).unwrap_err().to_string().contains("scheme"));
        for url in ["s3://key:hunter2@bucket/x", "ftp://key:hunter2@host/x", "s3://bucket/x?key=hunter2"] {
            let error = with(url, &[]).unwrap_err();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let resolved = with("s3://bucket/some/prefix", &[]).unwrap();
        assert_eq!(resolved.describe, "the repository at s3://bucket/some/prefix");
    }

    #[test]
    fn a_url_is_the_place_that_it_says_or_it_is_refused() {
        for good in
            ["s3://bucket", "s3://bucket/", "s3://bucket/a/b/", "s3://bucket/a b", "s3://bucket/ä", "gs://bucket/a"]
        {
            let fault = with(good, &[]).err().map(|error| error.to_string());
            // Whatever else the other clouds ask for: the place is understood.
            assert!(!fault.is_some_and(|fault| fault.contains("another place")), "{good}");
        }
        let bad = ["a#b", "a?b", "a/../b", "../b", "a/./b", "a//b", "/a", "a%20b", "a%2Fb", "a%2e%2e/b"];
        for prefix in bad {
            let error = with(&format!("s3://bucket/{prefix}"), &[]).unwrap_err();
            assert!(error.to_string().contains("another place"), "{prefix}: {error:?}");
        }
        for url in ["s3://bucket#x", "s3://bucket?x", "s3:///x", "s3://", "s3://minio:9000/bucket"] {
            assert_eq!(with(url, &[]).unwrap_err().kind(), ErrorKind::Plan, "{url}");
        }
    }

    #[test]
    fn an_endpoint_that_cannot_be_used_is_named() {
        let endpoint = |name, value| with("s3://bucket/x", &[(name, value)]);
        for value in ["minio:9000", "minio.example", "127.0.0.1:9000", "//minio", "https://", "ftp://minio"] {
            for name in ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
                let error = endpoint(name, value).unwrap_err();
                assert!(error.to_string().contains(&format!("{name} is not a URL")), "{name}={value}: {error:?}");
            }
        }
        assert!(endpoint("AWS_ENDPOINT", "https://minio.example:9000").is_ok());
        assert!(endpoint("AWS_ENDPOINT", "").is_ok(), "an empty variable is not set");
        let error = endpoint("AWS_ENDPOINT", "http://minio.example").unwrap_err();
        assert!(error.remedy().unwrap_or_default().contains("AWS_ALLOW_HTTP=true"), "{error:?}");
        let allowed = [("AWS_ENDPOINT", "http://minio.example"), ("AWS_ALLOW_HTTP", "true")];
        assert!(with("s3://bucket/x", &allowed).is_ok());
    }

    /// A store that says so often that it is too busy, then that there is no such object; and how often it was asked.
    fn busy(times: usize) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let status =
                    if counted.fetch_add(1, Ordering::SeqCst) < times { "503 Slow Down" } else { "404 Not Found" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (address, asked)
    }

    #[tokio::test]
    async fn a_busy_store_is_asked_as_long_as_the_plan_says() {
        let ask = async |retry_for: u64| {
            let (address, asked) = busy(2);
            let settings = [
                ("AWS_ENDPOINT", address.as_str()),
                ("AWS_ALLOW_HTTP", "true"),
                ("AWS_ACCESS_KEY_ID", "key"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
            ];
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let requests =
                RequestsConfig { retry_for: Span(Duration::from_secs(retry_for)), ..RequestsConfig::default() };
            let location = open("s3", "s3://bucket/x", &requests, settings).unwrap();
            let failed = location.store.get(&Path::from("config")).await.unwrap_err();
            (matches!(failed, object_store::Error::NotFound { .. }), asked.load(Ordering::SeqCst))
        };
        assert_eq!(ask(0).await, (false, 1), "not patient at all");
        assert_eq!(ask(600).await, (true, 3));
    }
}
