//! The schema: which messages, fields and enums text can name, and the operations on text that need it.
//!
//! build.rs writes it as a table of fixed-size records that are read in place. So there is nothing to load, and nothing
//! to free: the pages that are touched belong to the file of the program.

mod layout;
mod table;
mod unknown;

use std::path::Path;

use prost::Name;
use serde_json::Value;

use crate::any::type_name;
use crate::json::{self, JsonError, JsonStyle, JsonView, ParseOptions, Parsed, Problem, UnknownFields};
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use crate::pb::google::protobuf::Any;
use crate::yaml;

pub(crate) use layout::{kind, shape};
pub(crate) use table::{Field, Message, lower_camel};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML; JSON is nearly all YAML too.
    Yaml,
    /// Encoded protobuf.
    Protobuf,
    /// Protobuf text format: recognised, and refused by every reader.
    TextProto,
}

impl Format {
    /// The format that a file's ending stands for: `.json`, `.yaml`, `.yml`, `.pb`, `.pb_text`. Any other file is JSON
    /// if it begins as a JSON object does, else YAML; give its `content` for that.
    pub fn of(path: &Path, content: &[u8]) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => Self::Json,
            Some("yaml" | "yml") => Self::Yaml,
            Some("pb") => Self::Protobuf,
            Some("pb_text" | "textproto" | "prototxt" | "pbtxt" | "txtpb") => Self::TextProto,
            _ if content.trim_ascii_start().first() == Some(&b'{') => Self::Json,
            _ => Self::Yaml,
        }
    }
}

/// The schema in use. Costs nothing to make, hold or drop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Schema {
    _table: (),
}

impl Schema {
    /// The schema that this build carries.
    pub fn load() -> Self {
        Self::default()
    }

    /// Whether text can name this message, given as full name or type URL.
    pub fn knows(&self, name_or_url: &str) -> bool {
        Message::named(type_name(name_or_url)).is_some()
    }

    /// Reads an `M` from a file's content.
    pub fn parse<M: prost::Message + Name + Default>(
        &self,
        content: &[u8],
        format: Format,
        options: impl Into<ParseOptions>,
    ) -> Result<Parsed<M>, JsonError> {
        match format {
            Format::Json => self.parse_json(text(content, "JSON")?, options),
            Format::Yaml => self.parse_yaml(text(content, "YAML")?, options),
            Format::Protobuf => {
                let unknown_fields = unknown::find(named(&M::full_name())?, content);
                if options.into().unknown_fields == UnknownFields::Reject && !unknown_fields.is_empty() {
                    let problem = |path: &String| Problem::new(path, "unknown field number");
                    return Err(JsonError::Invalid(unknown_fields.iter().map(problem).collect()));
                }
                Ok(Parsed { message: decode(content)?, unknown_fields })
            }
            Format::TextProto => Err(JsonError::TextFormat),
        }
    }

    /// As [`Self::parse`]; `see` is shown the encoded message, which has newer fields that `M` drops.
    pub fn parse_seeing<M: prost::Message + Name + Default>(
        &self,
        content: &[u8],
        format: Format,
        options: impl Into<ParseOptions>,
        see: &mut dyn FnMut(&[u8]),
    ) -> Result<Parsed<M>, JsonError> {
        let value = match format {
            Format::Json => json_value(text(content, "JSON")?)?,
            Format::Yaml => yaml::to_json_value(text(content, "YAML")?)?,
            Format::Protobuf | Format::TextProto => {
                see(content);
                return self.parse(content, format, options);
            }
        };
        let Parsed { message: bytes, unknown_fields } = json::read(named(&M::full_name())?, &value, options.into())?;
        see(&bytes);
        Ok(Parsed { message: decode(&bytes)?, unknown_fields })
    }

    /// Reads an `M` from JSON text.
    pub fn parse_json<M: prost::Message + Name + Default>(
        &self,
        text: &str,
        options: impl Into<ParseOptions>,
    ) -> Result<Parsed<M>, JsonError> {
        self.parse_value(&json_value(text)?, options)
    }

    /// Reads an `M` from YAML text: one document, with anchors and merge keys.
    pub fn parse_yaml<M: prost::Message + Name + Default>(
        &self,
        text: &str,
        options: impl Into<ParseOptions>,
    ) -> Result<Parsed<M>, JsonError> {
        self.parse_value(&yaml::to_json_value(text)?, options)
    }

    /// Reads an `M` from a JSON value.
    pub fn parse_value<M: prost::Message + Name + Default>(
        &self,
        value: &Value,
        options: impl Into<ParseOptions>,
    ) -> Result<Parsed<M>, JsonError> {
        let Parsed { message: bytes, unknown_fields } = json::read(named(&M::full_name())?, value, options.into())?;
        Ok(Parsed { message: decode(&bytes)?, unknown_fields })
    }

    /// Reads the discovery response that a file-based subscription is fed with.
    pub fn parse_discovery_response(
        &self,
        content: &[u8],
        format: Format,
        options: impl Into<ParseOptions>,
    ) -> Result<Parsed<DiscoveryResponse>, JsonError> {
        self.parse(content, format, options)
    }

    /// The paths of fields in a packed message that the schema does not have: decoding drops them without a word. They
    /// end in the field's number, such as `load_assignment.endpoints.99`. Says nothing of types that are unknown.
    pub fn unknown_fields(&self, any: &Any) -> Vec<String> {
        Message::named(type_name(&any.type_url)).map_or_else(Vec::new, |message| unknown::find(message, &any.value))
    }

    /// Puts `over` on top of `base`: scalars replace, messages merge, lists grow. How `--config-yaml` meets the file.
    pub fn merge<M: prost::Message + Name>(&self, base: &mut M, over: &M) -> Result<(), JsonError> {
        base.merge(over.encode_to_vec().as_slice()).map_err(|error| JsonError::malformed(&M::full_name(), error))
    }

    /// The JSON of an encoded message, to be serialized without a tree in between. `name_or_url` is its type.
    pub fn view<'a>(
        &self,
        name_or_url: &str,
        bytes: &'a [u8],
        style: impl Into<JsonStyle>,
    ) -> Result<JsonView<'a>, JsonError> {
        JsonView::new(named(type_name(name_or_url))?, bytes, style.into())
    }

    /// The JSON of an encoded message as a tree. `name_or_url` is its type.
    pub fn to_json(&self, name_or_url: &str, bytes: &[u8], style: impl Into<JsonStyle>) -> Result<Value, JsonError> {
        let view = self.view(name_or_url, bytes, style)?;
        serde_json::to_value(view).map_err(|error| JsonError::malformed(type_name(name_or_url), error))
    }

    /// The JSON of `any`, with its `@type`. An unknown type shows its bytes as base64 in `value`.
    pub fn any_to_json(&self, any: &Any, style: impl Into<JsonStyle>) -> Result<Value, JsonError> {
        self.message_to_json(any, style)
    }

    /// The JSON of a message.
    pub fn message_to_json<M: prost::Message + Name>(
        &self,
        message: &M,
        style: impl Into<JsonStyle>,
    ) -> Result<Value, JsonError> {
        self.to_json(&M::full_name(), &message.encode_to_vec(), style)
    }
}

fn json_value(text: &str) -> Result<Value, JsonError> {
    serde_json::from_str(text).map_err(|error| JsonError::Syntax {
        format: "JSON",
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    })
}

fn named(name: &str) -> Result<Message, JsonError> {
    Message::named(name).ok_or_else(|| JsonError::UnknownType(name.to_owned()))
}

fn decode<M: prost::Message + Name + Default>(bytes: &[u8]) -> Result<M, JsonError> {
    M::decode(bytes).map_err(|error| JsonError::malformed(&M::full_name(), error))
}

fn text<'a>(content: &'a [u8], format: &'static str) -> Result<&'a str, JsonError> {
    let text =
        std::str::from_utf8(content).map_err(|error| JsonError::NotText { format, offset: error.valid_up_to() })?;
    Ok(text.trim_start_matches('\u{feff}'))
}
