//! JSON log entries (`SubstitutionFormatString.json_format`).
//!
//! Owns the form of the line: types, escapes and what is left out. Never evaluates operators itself.

use outrigger_config::accesslog::JsonFormat;
use outrigger_config::format::{Format, FormatPart};

use super::facts::Facts;
use super::format::{Given, write_as_text, write_operator};
use super::number::push_float;

/// Writes one entry with its line end. `omit_empty` leaves out what is absent, and objects that have nothing in them.
pub(super) fn write(fields: &[(String, JsonFormat)], omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) {
    object(fields, omit_empty, facts, out);
    out.push(b'\n');
}

/// Writes an object; false if it has nothing in it.
fn object(fields: &[(String, JsonFormat)], omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    let empty = out.len() + 1;
    out.push(b'{');
    for (name, format) in fields {
        let before = out.len();
        if before > empty {
            out.push(b',');
        }
        string(name.as_bytes(), out);
        out.push(b':');
        if !value(format, omit_empty, facts, out) {
            out.truncate(before);
        }
    }
    let filled = out.len() > empty;
    out.push(b'}');
    filled
}

/// Writes a value; false if it is to be left out, whatever was written.
fn value(format: &JsonFormat, omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    match format {
        JsonFormat::Text(format) => return text(format, omit_empty, facts, out),
        JsonFormat::Number(number) => push_float(*number, out),
        JsonFormat::Bool(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        JsonFormat::Null => {
            out.extend_from_slice(b"null");
            return !omit_empty;
        }
        JsonFormat::Object(fields) => return object(fields, omit_empty, facts, out) || !omit_empty,
        // A list stays where it is even with nothing in it.
        JsonFormat::List(items) => {
            out.push(b'[');
            let empty = out.len();
            for item in items {
                let before = out.len();
                if before > empty {
                    out.push(b',');
                }
                if !value(item, omit_empty, facts, out) {
                    out.truncate(before);
                }
            }
            out.push(b']');
        }
    }
    true
}

/// A lone operator keeps its type; anything else is a string, where `-` stands for what is absent unless it is left out.
fn text(format: &Format, omit_empty: bool, facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    if let [FormatPart::Operator { operator, max_bytes }] = format.parts.as_slice() {
        out.push(b'"');
        match write_operator(operator, *max_bytes, facts, out) {
            Given::Text => escape_from(start + 1, out),
            Given::Number | Given::Json => {
                out.remove(start);
                return true;
            }
            Given::Absent => {
                out.truncate(start);
                out.extend_from_slice(b"null");
                return !omit_empty;
            }
        }
    } else {
        out.push(b'"');
        for part in &format.parts {
            let begin = out.len();
            match part {
                FormatPart::Literal(text) => out.extend_from_slice(text.as_bytes()),
                FormatPart::Operator { operator, max_bytes } => {
                    let given = write_as_text(operator, *max_bytes, facts, out);
                    if given == Given::Absent && !omit_empty {
                        out.push(b'-');
                    }
                }
            }
            escape_from(begin, out);
        }
    }
    out.push(b'"');
    true
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.extend_from_slice(text);
    escape_from(start, out);
    out.push(b'"');
}

/// Escapes what was written from `start` on. Text that is not UTF-8 is taken as Latin-1.
fn escape_from(start: usize, out: &mut Vec<u8>) {
    let written = &out[start..];
    if !written.iter().any(|byte| !(0x20..0x80).contains(byte) || matches!(byte, b'"' | b'\\')) {
        return;
    }
    let utf8 = std::str::from_utf8(written).is_ok();
    let raw = out.split_off(start);
    for byte in raw {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x20..0x80 => out.push(byte),
            0x80.. if utf8 => out.push(byte),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";
