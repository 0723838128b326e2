//! From YAML text to a [`Plan`], and the JSON Schema that editors use.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema};
use serde::Deserialize;

use super::model::{DirectoryConfig, OnFailure, Plan, Promise, RepositoryConfig, SinkConfig, SourceConfig};
use super::node::{Key, Node, NodeValue};
use crate::engine::EngineDescriptor;
use crate::error::{Error, ErrorKind, Result};
use crate::names::{PlanName, SourceName};

const VERSION: u64 = 1;
const DEFAULT_CONCURRENCY: usize = 2;

/// The document as it is written; `sources` is taken apart by hand because its fields are the engines' names.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Stackward plan")]
struct Document {
    /// The version of the plan's format: 1.
    version: u64,
    /// The plan's name; snapshots carry it.
    name: PlanName,
    /// Keeps snapshots in a deduplicating, encrypted repository.
    repository: Option<RepositoryConfig>,
    /// Keeps snapshots as ordinary files in a folder.
    directory: Option<DirectoryConfig>,
    /// What is promised; drills are judged against it.
    #[serde(default)]
    promise: Promise,
    /// How many sources are worked on at the same time.
    #[schemars(range(min = 1, max = 64))]
    concurrency: Option<usize>,
    /// What happens to the run when a source fails.
    #[serde(default)]
    on_failure: OnFailure,
    /// What to back up: a name, and under it one engine with its settings.
    #[schemars(with = "BTreeMap<String, BTreeMap<String, serde_json::Value>>")]
    sources: Sources,
}

struct Sources;

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Parses and checks a plan. `engines` are the engines that exist.
///
/// # Errors
/// [`ErrorKind::Plan`] with line, field and remedy.
pub fn parse(text: &str, engines: &[EngineDescriptor]) -> Result<Plan> {
    let root = Node::from_yaml(text)?;
    let document: Document = root.parse()?;
    let Sources = document.sources;
    if document.version != VERSION {
        let message = format!("the plan has version {}; this program reads version {VERSION}", document.version);
        return Err(Error::new(ErrorKind::Plan, message).hint("use a newer stackward, or write `version: 1`"));
    }
    let concurrency = document.concurrency.unwrap_or(DEFAULT_CONCURRENCY);
    if !(1..=64).contains(&concurrency) {
        return Err(Error::new(ErrorKind::Plan, "`concurrency` must be 1 to 64"));
    }
    let NodeValue::Map(fields) = &root.value else { return Err(root.error("a plan is a mapping")) };
    let sources = fields.iter().find(|(key, _)| key.text == "sources").map_or(&root, |(_, node)| node);
    Ok(Plan {
        name: document.name,
        sink: choose_sink(document.repository, document.directory)?,
        promise: document.promise,
        concurrency,
        on_failure: document.on_failure,
        sources: parse_sources(sources, engines)?,
    })
}

fn choose_sink(repository: Option<RepositoryConfig>, directory: Option<DirectoryConfig>) -> Result<SinkConfig> {
    match (repository, directory) {
        (Some(repository), None) => {
            if !(1..=19).contains(&repository.compression_level) {
                return Err(Error::new(ErrorKind::Plan, "`repository.compression_level` must be 1 to 19"));
            }
            if repository.requests.timeout.0.is_zero() {
                return Err(Error::new(ErrorKind::Plan, "`repository.requests.timeout` must be 1s or more"));
            }
            Ok(SinkConfig::Repository(repository))
        }
        (None, Some(directory)) => Ok(SinkConfig::Directory(directory)),
        (None, None) => Err(Error::new(ErrorKind::Plan, "the plan does not say where to keep backups")
            .hint("add `repository: { url: …, recipients: [age1…] }`, or `directory: { path: … }` for plain files")),
        (Some(_), Some(_)) => {
            Err(Error::new(ErrorKind::Plan, "the plan names both a `repository` and a `directory`; choose one"))
        }
    }
}

fn parse_sources(node: &Node, engines: &[EngineDescriptor]) -> Result<Vec<SourceConfig>> {
    let NodeValue::Map(pairs) = &node.value else { return Err(node.error("`sources` must be a mapping of names")) };
    if pairs.is_empty() {
        return Err(node.error("`sources` is empty: there is nothing to back up"));
    }
    pairs.iter().map(|(key, value)| parse_source(key, value, engines)).collect()
}

fn parse_source(key: &Key, node: &Node, engines: &[EngineDescriptor]) -> Result<SourceConfig> {
    let at = key.at;
    let name =
        SourceName::new(key.text.clone()).map_err(|error| Error::new(ErrorKind::Plan, format!("{at}: {error}")))?;
    let known = || engines.iter().map(|engine| engine.name).collect::<Vec<_>>().join(", ");
    let NodeValue::Map(pairs) = &node.value else {
        return Err(node.error(format!("`sources.{name}` must name an engine")).hint(format!("engines: {}", known())));
    };
    let mut on_failure = None;
    let mut found: Option<(&Key, &Node)> = None;
    for (key, value) in pairs {
        if key.text == "on_failure" {
            on_failure = Some(value.parse()?);
        } else if engines.iter().any(|engine| engine.name == key.text) {
            if let Some((first, _)) = found {
                let message =
                    format!("{}: `sources.{name}` names two engines, `{}` and `{}`", key.at, first.text, key.text);
                return Err(Error::new(ErrorKind::Plan, message).hint("give each a name of its own under `sources`"));
            }
            found = Some((key, value));
        } else {
            let names = engines.iter().map(|engine| engine.name).chain(["on_failure"]);
            let hint = nearest(&key.text, names)
                .map_or_else(|| format!("engines: {}", known()), |near| format!("did you mean `{near}`?"));
            return Err(Error::new(
                ErrorKind::Plan,
                format!("{}: `sources.{name}`: unknown engine `{}`", key.at, key.text),
            )
            .hint(hint));
        }
    }
    let Some((engine, config)) = found else {
        return Err(node.error(format!("`sources.{name}` names no engine")).hint(format!("engines: {}", known())));
    };
    Ok(SourceConfig { name, engine: engine.text.clone(), config: config.clone(), on_failure })
}

/// The known name that `wrong` most likely stands for.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = wrong.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, name), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len() / 3))
        .min()
        .map(|(_, name)| name)
}

/// The JSON Schema of a plan with these engines.
///
/// # Panics
/// Never: the generated schema has the properties that are replaced here.
#[must_use]
pub fn schema(engines: &[EngineDescriptor]) -> Schema {
    let mut schema = schemars::schema_for!(Document);
    let mut definitions = serde_json::Map::new();
    let mut choices = Vec::new();
    for engine in engines {
        let mut config = (engine.schema)().to_value();
        if let Some(config) = config.as_object_mut() {
            config.remove("$schema");
            if let Some(serde_json::Value::Object(nested)) = config.remove("$defs") {
                definitions.extend(nested);
            }
            config.entry("description").or_insert_with(|| engine.summary.into());
        }
        let mut properties = serde_json::Map::new();
        properties.insert(engine.name.to_owned(), config);
        properties.insert("on_failure".to_owned(), serde_json::json!({ "enum": ["continue", "abort"] }));
        choices.push(serde_json::json!({
            "type": "object", "properties": properties, "required": [engine.name], "additionalProperties": false,
        }));
    }
    let sources = serde_json::json!({
        "type": "object",
        "description": "What to back up: a name, and under it one engine with its settings.",
        "minProperties": 1,
        "additionalProperties": { "oneOf": choices },
    });
    let object = schema.ensure_object();
    if let Some(properties) = object.get_mut("properties").and_then(serde_json::Value::as_object_mut) {
        properties.insert("sources".to_owned(), sources);
    }
    let nested = object.entry("$defs").or_insert_with(|| serde_json::json!({}));
    if let Some(nested) = nested.as_object_mut() {
        nested.extend(definitions);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINES: &[EngineDescriptor] = &[engine("files"), engine("postgres")];

    const fn engine(name: &'static str) -> EngineDescriptor {
        EngineDescriptor {
            name,
            summary: "a test engine",
            build: |_| Err(Error::new(ErrorKind::Internal, "not built in this test")),
            schema: || schemars::schema_for!(BTreeMap<String, String>),
            discover: Vec::new,
        }
    }

    const GOOD: &str = "version: 1\nname: mosaic\nrepository:\n  url: /srv/backups\n  recipients: [age1abc]\n\
        promise: { rpo: 15m, rto: 30m }\nsources:\n  uploads:\n    files: { paths: [/srv/uploads] }\n  main-db:\n    \
        on_failure: abort\n    postgres: { socket: /run/postgresql }\n";

    #[test]
    fn a_plan_keeps_the_order_and_the_settings() {
        let plan = parse(GOOD, ENGINES).unwrap();
        assert_eq!(plan.name.as_str(), "mosaic");
        let names: Vec<_> = plan.sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["uploads", "main-db"]);
        assert_eq!(plan.sources[1].on_failure, Some(OnFailure::Abort));
        assert_eq!(plan.promise.rto.unwrap().to_string(), "30m");
        assert_eq!(plan.sources[0].config.at.line, 9);
    }

    /// Each faulty plan and the whole error that its author sees.
    #[test]
    fn errors_name_line_field_and_nearest_name() {
        let change = |from: &str, to: &str| GOOD.replace(from, to);
        let cases = [
            ("unknown field", change("promise:", "promises:")),
            ("unknown nested field", change("recipients:", "recipient:")),
            ("unrelated field", change("promise:", "zebra:")),
            ("wrong type", change("name: mosaic", "name: [1]")),
            ("wrong nested type", change("rpo: 15m", "rpo: soon")),
            ("not a mapping", change("{ rpo: 15m, rto: 30m }", "yes please")),
            ("missing name", change("name: mosaic\n", "")),
            ("bad name", change("name: mosaic", "name: ../mosaic")),
            ("unknown engine", change("postgres:", "postgresql:")),
            ("two engines", change("on_failure: abort", "files: {}")),
            ("no engine", change("files: { paths: [/srv/uploads] }", "on_failure: abort")),
            ("bad choice", change("on_failure: abort", "on_failure: abrot")),
            ("duplicate source", change("main-db:", "uploads:")),
            ("newer version", change("version: 1", "version: 9")),
            ("no sink", change("repository:\n  url: /srv/backups\n  recipients: [age1abc]\n", "")),
            ("broken yaml", change("[/srv/uploads]", "[/srv/uploads")),
            ("nested too deep", "[".repeat(100)),
            ("empty", String::new()),
        ];
        let mut shown = String::new();
        for (what, text) in cases {
            let error = parse(&text, ENGINES).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Plan, "{what}");
            let hint = error.remedy().map(|hint| format!("\n    hint: {hint}")).unwrap_or_default();
            shown.push_str(&format!("{what}\n    {}{hint}\n", error.chain()));
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn spans_of_time() {
        use super::super::Span;
        for (text, seconds) in [("30s", 30), ("15m", 900), ("4h", 14_400), ("7d", 604_800), ("90m", 5_400)] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0.as_secs(), seconds);
            assert_eq!(span.to_string(), text);
        }
        for bad in ["", "m", "15", "15 m", "-1m", "1w", "99999999999999999999d", "+5m"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nearest_names_are_near() {
        assert_eq!(nearest("recipient", ["url", "recipients"]), Some("recipients"));
        assert_eq!(nearest("postgresql", ["files", "postgres"]), Some("postgres"));
        assert_eq!(nearest("zebra", ["files", "postgres"]), None);
    }
}
