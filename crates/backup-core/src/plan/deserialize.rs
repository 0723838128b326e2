//! Serde over [`Node`]s: errors keep the line and the path of the field, and propose the nearest valid name.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use super::node::{Key, Location, Node, NodeValue};
use super::parse::nearest;
use crate::error::{Error, ErrorKind};

/// What serde reports, with the place added on the way up.
#[derive(Debug)]
pub struct NodeError {
    message: String,
    hint: Option<String>,
    at: Option<Location>,
    path: Vec<String>,
}

impl NodeError {
    fn within(mut self, step: &str, at: Location) -> Self {
        self.path.insert(0, step.to_owned());
        self.at.get_or_insert(at);
        self
    }

    fn at(mut self, at: Location) -> Self {
        self.at.get_or_insert(at);
        self
    }

    pub(super) fn into_error(self) -> Error {
        let place = self.at.map(|at| format!("{at}: ")).unwrap_or_default();
        let path = if self.path.is_empty() { String::new() } else { format!("`{}`: ", self.path.join(".")) };
        let error = Error::new(ErrorKind::Plan, format!("{place}{path}{}", self.message));
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), hint: None, at: None, path: Vec::new() }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        unknown("field", field, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        unknown("value", variant, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("the field `{field}` is missing"))
    }
}

fn unknown(what: &str, name: &str, expected: &[&str]) -> NodeError {
    let hint = match nearest(name, expected.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", expected.join(", ")),
    };
    NodeError { message: format!("unknown {what} `{name}`"), hint: Some(hint), at: None, path: Vec::new() }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        let result = match &self.value {
            NodeValue::Null => visitor.visit_unit(),
            NodeValue::Bool(value) => visitor.visit_bool(*value),
            NodeValue::Integer(value) => match u64::try_from(*value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => visitor.visit_i64(*value),
            },
            NodeValue::Float(value) => visitor.visit_f64(*value),
            NodeValue::Text(text) => visitor.visit_borrowed_str(text),
            NodeValue::List(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            NodeValue::Map(pairs) => visitor.visit_map(Pairs { pairs: pairs.iter(), value: None }),
        };
        result.map_err(|error| error.at(self.at))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        if self.value == NodeValue::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_newtype_struct(self).map_err(|error: NodeError| error.at(self.at))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        match &self.value {
            // `files:` with nothing under it reads as an empty mapping, so that the missing field is named.
            NodeValue::Null => {
                visitor.visit_map(Pairs { pairs: [].iter(), value: None }).map_err(|error| error.at(self.at))
            }
            NodeValue::Map(_) => self.deserialize_any(visitor),
            _ => {
                Err(<NodeError as de::Error>::custom(format!("expected a mapping, found {}", self.describe()))
                    .at(self.at))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let result = match &self.value {
            NodeValue::Text(text) => {
                visitor.visit_enum(IntoDeserializer::<NodeError>::into_deserializer(text.as_str()))
            }
            NodeValue::Map(pairs) if pairs.len() == 1 => {
                visitor.visit_enum(Variant { key: &pairs[0].0, value: &pairs[0].1 })
            }
            _ => Err(<NodeError as de::Error>::custom(format!(
                "expected one of {}, found {}",
                variants.join(", "),
                self.describe()
            ))),
        };
        result.map_err(|error| error.at(self.at))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = NodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        self.index += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.within(&self.index.to_string(), item.at))
    }
}

struct Pairs<'de> {
    pairs: std::slice::Iter<'de, (Key, Node)>,
    value: Option<(&'de Key, &'de Node)>,
}

impl<'de> de::MapAccess<'de> for Pairs<'de> {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        let Some((key, value)) = self.pairs.next() else { return Ok(None) };
        self.value = Some((key, value));
        let text: StrDeserializer<'_, NodeError> = key.text.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|error| error.at(key.at))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let Some((key, value)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(value).map_err(|error| error.within(&key.text, value.at))
    }
}

struct Variant<'de> {
    key: &'de Key,
    value: &'de Node,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = NodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), NodeError> {
        let text: StrDeserializer<'_, NodeError> = self.key.text.as_str().into_deserializer();
        let variant = seed.deserialize(text).map_err(|error| error.at(self.key.at))?;
        Ok((variant, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'de> {
    type Error = NodeError;

    fn unit_variant(self) -> Result<(), NodeError> {
        match self.value.value {
            NodeValue::Null => Ok(()),
            _ => Err(<NodeError as de::Error>::custom("takes no value").within(&self.key.text, self.value.at)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, NodeError> {
        seed.deserialize(self.value).map_err(|error| error.within(&self.key.text, self.value.at))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, NodeError> {
        de::Deserializer::deserialize_any(self.value, visitor)
            .map_err(|error| error.within(&self.key.text, self.value.at))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        de::Deserializer::deserialize_struct(self.value, "", fields, visitor)
            .map_err(|error| error.within(&self.key.text, self.value.at))
    }
}
