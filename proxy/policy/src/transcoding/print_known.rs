//! Messages whose JSON form is their own, as JSON.
//!
//! Owns how each of them is printed. Source: "ProtoJSON Format". Never knows other messages.

use outrigger_config::http::filters::transcoder::{Message, WellKnown};

use super::number;
use super::print::{Fields, PrintError, Printed, Printer, Raw, read};
use super::time::{duration, timestamp};

impl Printer<'_> {
    /// A message of a well-known type.
    pub(super) fn known(&mut self, message: &Message, bytes: &[u8]) -> Printed {
        let fields = read(message, bytes)?;
        match message.known {
            WellKnown::No => Ok(()),
            WellKnown::Any => self.any(&fields),
            WellKnown::Duration => {
                let text = duration((int(&fields, 1), int(&fields, 2) as i32))?;
                self.quoted(text);
                Ok(())
            }
            WellKnown::Timestamp => {
                let seconds = int(&fields, 1);
                let Some(text) = timestamp((seconds, int(&fields, 2) as i32)) else {
                    return Err(PrintError::from(match seconds < 0 {
                        true => "minimum acceptable time value is 0001-01-01T00:00:00Z",
                        false => "maximum acceptable time value is 9999-12-31T23:59:59Z",
                    }));
                };
                self.quoted(text);
                Ok(())
            }
            WellKnown::FieldMask => self.mask(&fields),
            WellKnown::Struct => match message.numbered(1) {
                Some(field) => self.map(field, values(&fields, 1)),
                None => Ok(()),
            },
            WellKnown::ListValue => match message.numbered(1) {
                Some(field) => self.list(field, values(&fields, 1)),
                None => Ok(()),
            },
            WellKnown::Value => self.struct_value(&fields),
            WellKnown::Wrapper => match (message.numbered(1), values(&fields, 1).first()) {
                (Some(field), Some(value)) => self.value(field, *value),
                (Some(field), None) => {
                    self.default(field);
                    Ok(())
                }
                (None, _) => Ok(()),
            },
        }
    }

    fn mask(&mut self, fields: &Fields<'_, '_>) -> Printed {
        let mut paths = Vec::new();
        for path in values(fields, 1) {
            let Raw::Bytes(path) = path else { continue };
            let path = std::str::from_utf8(path).map_err(|_| PrintError::from("proto3 strings must be UTF-8"))?;
            paths.push(camel_case(path));
        }
        self.string(&paths.join(","));
        Ok(())
    }

    /// Of several values the first in this order counts.
    fn struct_value(&mut self, fields: &Fields<'_, '_>) -> Printed {
        let Some((field, [value, ..])) = fields.first().map(|(field, values)| (*field, values.as_slice())) else {
            return Ok(());
        };
        match (field.number, value) {
            (1, _) => self.out.push_str("null"),
            (2, Raw::Fixed64(bits)) => {
                let value = f64::from_bits(*bits);
                if !value.is_finite() {
                    let what = if value.is_nan() { "nan" } else { "infinity" };
                    return Err(PrintError::Bad(format!(
                        "google.protobuf.Value cannot encode double values for {what}, because it would be parsed as a \
                         string"
                    )));
                }
                self.out.push_str(&number::double(value));
            }
            _ => return self.value(field, *value),
        }
        Ok(())
    }

    fn any(&mut self, fields: &Fields<'_, '_>) -> Printed {
        let bytes = |number| match values(fields, number).first() {
            Some(Raw::Bytes(bytes)) => Some(*bytes),
            _ => None,
        };
        let (url, content) = match (bytes(1), bytes(2)) {
            (None, None) => {
                self.out.push_str("{}");
                return Ok(());
            }
            (None, Some(_)) => return Err("broken Any: missing type URL".into()),
            (Some(url), content) => (url, content.unwrap_or_default()),
        };
        let url = std::str::from_utf8(url).map_err(|_| PrintError::from("proto3 strings must be UTF-8"))?;
        self.open('{')?;
        let mut first = true;
        self.separate(&mut first);
        self.string("@type");
        self.colon();
        self.string(url);
        let name = url.strip_prefix("type.googleapis.com/").ok_or_else(|| {
            PrintError::Bad(format!(
                "Invalid type URL, type URLs must be of the form 'type.googleapis.com/<typename>', got: {url}"
            ))
        })?;
        let id = self.schema.find(name);
        let id = id.ok_or_else(|| PrintError::Bad(format!("Invalid type URL, unknown type: {name}")))?;
        let message = self.schema.message(id);
        if message.known == WellKnown::No {
            self.fields(message, content, &mut first)?;
        } else {
            self.separate(&mut first);
            self.string("value");
            self.colon();
            self.message(id, content)?;
        }
        self.close('}', first);
        Ok(())
    }
}

fn values<'f, 'm>(fields: &'f Fields<'_, 'm>, number: u32) -> &'f [Raw<'m>] {
    fields.iter().find(|(field, _)| field.number == number).map(|(_, values)| values.as_slice()).unwrap_or_default()
}

fn int(fields: &Fields<'_, '_>, number: u32) -> i64 {
    match values(fields, number).first() {
        Some(Raw::Varint(value)) => *value as i64,
        _ => 0,
    }
}

/// `a_b.c_d` becomes `aB.cD`.
fn camel_case(path: &str) -> String {
    let mut camel = String::with_capacity(path.len());
    let mut after_line = false;
    for character in path.chars() {
        match character {
            '_' => {
                after_line = true;
                continue;
            }
            character if after_line && character.is_ascii_lowercase() => camel.push(character.to_ascii_uppercase()),
            character => {
                if after_line && !character.is_ascii_digit() && character != '.' {
                    camel.push('_');
                }
                camel.push(character);
            }
        }
        after_line = false;
    }
    camel
}
