//! A YAML document as a tree whose every node knows its line: plans are parsed in two steps, first by us, then by engines.

use std::fmt;

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde::de::DeserializeOwned;

use super::deserialize::NodeError;
use crate::error::{Error, ErrorKind, Result};

/// A place in the plan's file, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Location {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A value of the document and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: NodeValue,
    /// Where it begins.
    pub at: Location,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeValue {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the document's order.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The key.
    pub text: String,
    /// Where it begins.
    pub at: Location,
}

/// A plan is written by hand; more bytes than this are something else.
const MAX_PLAN_BYTES: usize = 1024 * 1024;
/// Deeper nesting than this is something else.
const MAX_DEPTH: usize = 32;

impl Node {
    /// Parses one YAML document.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] with line and column.
    pub fn from_yaml(text: &str) -> Result<Self> {
        if text.len() > MAX_PLAN_BYTES {
            return Err(Error::new(ErrorKind::Plan, format!("the plan is longer than {MAX_PLAN_BYTES} bytes")));
        }
        // The scanner is recursive in places: bound the nesting of `[[[[` and `- - - -` before it sees it.
        if let Some(line) = text.lines().position(too_deep) {
            return Err(Error::new(ErrorKind::Plan, format!("line {}: nested more than {MAX_DEPTH} deep", line + 1)));
        }
        let mut documents = MarkedYaml::load_from_str(text).map_err(|error| {
            let at = Location { line: error.marker().line(), column: error.marker().col() + 1 };
            Error::new(ErrorKind::Plan, format!("{at}: {}", error.info()))
        })?;
        match documents.len() {
            0 => Err(Error::new(ErrorKind::Plan, "the plan is empty")),
            1 => convert(&documents.remove(0), 0),
            _ => Err(Error::new(ErrorKind::Plan, "a plan is one YAML document; this file holds several")),
        }
    }

    /// Turns the node into a typed value, strictly.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] with the line, the path of the field, and the nearest valid name for a wrong one.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(self).map_err(NodeError::into_error)
    }

    /// An error about this node.
    #[must_use]
    pub fn error(&self, message: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Plan, format!("{}: {message}", self.at))
    }

    /// What it is, for messages.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self.value {
            NodeValue::Null => "nothing",
            NodeValue::Bool(_) => "true or false",
            NodeValue::Integer(_) | NodeValue::Float(_) => "a number",
            NodeValue::Text(_) => "text",
            NodeValue::List(_) => "a list",
            NodeValue::Map(_) => "a mapping",
        }
    }
}

fn too_deep(line: &str) -> bool {
    let opened = line.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    let dashes = line.split_ascii_whitespace().take_while(|word| matches!(*word, "-" | "?")).count();
    opened > MAX_DEPTH || dashes > MAX_DEPTH
}

fn convert(yaml: &MarkedYaml<'_>, depth: usize) -> Result<Node> {
    let at = Location { line: yaml.span.start.line(), column: yaml.span.start.col() + 1 };
    let fail = |why: &str| Error::new(ErrorKind::Plan, format!("{at}: {why}"));
    if depth > MAX_DEPTH {
        return Err(fail("nested too deep"));
    }
    let value = match &yaml.data {
        YamlData::Value(scalar) => scalar_value(scalar),
        YamlData::Sequence(items) => {
            NodeValue::List(items.iter().map(|item| convert(item, depth + 1)).collect::<Result<_>>()?)
        }
        YamlData::Mapping(pairs) => {
            let mut entries = Vec::with_capacity(pairs.len());
            for (key, value) in pairs {
                let key = convert(key, depth + 1)?;
                let text = key_text(&key).ok_or_else(|| key.error("a key must be text"))?;
                entries.push((Key { text, at: key.at }, convert(value, depth + 1)?));
            }
            NodeValue::Map(entries)
        }
        YamlData::Tagged(..) => return Err(fail("tags are not used in plans")),
        _ => return Err(fail("this value cannot be read")),
    };
    Ok(Node { value, at })
}

fn scalar_value(scalar: &Scalar<'_>) -> NodeValue {
    match scalar {
        Scalar::Null => NodeValue::Null,
        Scalar::Boolean(value) => NodeValue::Bool(*value),
        Scalar::Integer(value) => NodeValue::Integer(*value),
        Scalar::FloatingPoint(value) => NodeValue::Float(value.into_inner()),
        Scalar::String(text) => NodeValue::Text(text.to_string()),
    }
}

fn key_text(key: &Node) -> Option<String> {
    match &key.value {
        NodeValue::Text(text) => Some(text.clone()),
        NodeValue::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}
