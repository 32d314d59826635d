//! The operator `COALESCE`, whose parameter is JSON.
//!
//! Owns its syntax. Never evaluates it.

use serde_json::Value;

use super::parse::Command;
use super::{FormatPart, Operator};
use crate::context::Environment;
use crate::rejection::{FieldPath, Parsed};

/// Reads `{"operators": [...]}`.
pub(super) fn parse(at: &FieldPath<'_>, text: &str, environment: Option<&dyn Environment>) -> Parsed<Operator> {
    let reject = |reason: &str| at.reject(format!("COALESCE({text}): {reason}"));
    let json: Value = serde_json::from_str(text).map_err(|error| reject(&format!("is not JSON: {error}")))?;
    let Some(Value::Array(operators)) = json.get("operators") else {
        return Err(reject("needs a list \"operators\""));
    };
    if operators.is_empty() {
        return Err(reject("\"operators\" must not be empty"));
    }
    let mut parts = Vec::with_capacity(operators.len());
    for operator in operators {
        let command = match operator {
            Value::String(name) => Command { name, parameters: None, max_bytes: None },
            Value::Object(fields) => {
                let Some(name) = fields.get("command").and_then(Value::as_str) else {
                    return Err(reject("an operator needs a string \"command\""));
                };
                let parameters = match fields.get("param") {
                    None => None,
                    Some(Value::String(parameters)) => Some(&**parameters),
                    Some(_) => return Err(reject("\"param\" must be a string")),
                };
                let max_bytes = match fields.get("max_length") {
                    None => None,
                    Some(length) => match length.as_u64().and_then(|length| usize::try_from(length).ok()) {
                        Some(length) if length > 0 => Some(length),
                        _ => return Err(reject("\"max_length\" must be a number above 0")),
                    },
                };
                Command { name, parameters, max_bytes }
            }
            _ => return Err(reject("an operator is a string or an object")),
        };
        if command.name == "COALESCE" {
            return Err(reject("cannot stand in itself"));
        }
        let max_bytes = command.max_bytes;
        parts.push(FormatPart::Operator { operator: command.operator(at, environment)?, max_bytes });
    }
    Ok(Operator::Coalesce(parts.into()))
}
