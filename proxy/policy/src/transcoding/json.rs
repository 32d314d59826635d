//! JSON as clients send it, piece by piece.
//!
//! Owns the reading of JSON, as leniently as Envoy reads it (quotes of both kinds, bare keys, a comma at the end), and the
//! words that say what is wrong. What is complete comes out; what is not is kept as little as possible. Never knows messages.

use super::json_text::{LONGEST_WORD, Stop, Text, Token};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number below zero.
    Int(i64),
    /// A whole number.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// Text.
    String(String),
    /// Values.
    List(Vec<Json>),
    /// Keys with values, in the order in which they came; keys need not be unique.
    Object(Vec<(String, Json)>),
}

/// What a parser is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// One value.
    One,
    /// The values of one array, as soon as each is there.
    Elements,
}

/// Reads JSON that comes in pieces.
#[derive(Debug)]
pub struct JsonParser {
    wanted: Wanted,
    stack: Vec<Expect>,
    /// What was not understood yet.
    left: Vec<u8>,
    key: String,
    /// The quote that ends the text, and what was read of it.
    open: Option<(u8, String)>,
    containers: Vec<Container>,
    complete: Vec<Json>,
    /// The array was begun.
    in_elements: bool,
    wrong_shape: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expect {
    Value,
    Entry,
    Colon,
    AfterEntry,
    Element,
    AfterElement,
}

#[derive(Debug)]
struct Container {
    /// Of this container in the one around it.
    key: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Object(Vec<(String, Json)>),
    List(Vec<Json>),
    /// The array whose elements are wanted.
    Elements,
}

impl JsonParser {
    /// A parser that has read nothing.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            stack: vec![Expect::Value],
            left: Vec::new(),
            key: String::new(),
            open: None,
            containers: Vec::new(),
            complete: Vec::new(),
            in_elements: false,
            wrong_shape: None,
        }
    }

    /// Reads a piece; gives what it has completed.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<Json>, String> {
        let mut bytes = std::mem::take(&mut self.left);
        bytes.extend_from_slice(piece);
        // A character may be cut in two.
        let valid = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) => error.valid_up_to(),
        };
        if valid == 0 {
            self.left = bytes;
            return Ok(Vec::new());
        }
        let mut text = Text { bytes: &bytes[..valid], at: 0, last: false };
        self.run(&mut text)?;
        text.skip_whitespace();
        if text.at < valid && self.stack.is_empty() {
            return Err(text.failure(TOO_MUCH));
        }
        self.left = bytes[text.at..].to_vec();
        self.take()
    }

    /// Nothing follows.
    pub fn finish(&mut self) -> Result<Vec<Json>, String> {
        if self.stack.is_empty() && self.left.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = std::mem::take(&mut self.left);
        let mut text = Text { bytes: &bytes, at: 0, last: true };
        if std::str::from_utf8(&bytes).is_err() {
            return Err(text.failure("Encountered non UTF-8 code points."));
        }
        self.run(&mut text)?;
        text.skip_whitespace();
        if text.at < bytes.len() {
            return Err(text.failure(TOO_MUCH));
        }
        self.take()
    }

    fn take(&mut self) -> Result<Vec<Json>, String> {
        match self.wrong_shape {
            Some(reason) => Err(reason.to_owned()),
            None => Ok(std::mem::take(&mut self.complete)),
        }
    }

    fn run(&mut self, text: &mut Text<'_>) -> Result<(), String> {
        while let Some(expected) = self.stack.pop() {
            let token = if self.open.is_some() { Token::String } else { text.token() };
            let read = match expected {
                Expect::Value => self.value(token, text),
                Expect::Entry => self.entry(token, text),
                Expect::Colon => self.colon(token, text),
                Expect::AfterEntry => self.after_entry(token, text),
                Expect::Element => self.element(token, text),
                Expect::AfterElement => self.after_element(token, text),
            };
            match read {
                Ok(()) => {}
                Err(Stop::More) => {
                    self.stack.push(expected);
                    return Ok(());
                }
                Err(Stop::Bad(reason)) => return Err(reason),
            }
        }
        Ok(())
    }

    fn value(&mut self, token: Token, text: &mut Text<'_>) -> Result<(), Stop> {
        match token {
            Token::BeginObject => self.begin(Content::Object(Vec::new()), Expect::Entry, text),
            Token::BeginList => self.begin(Content::List(Vec::new()), Expect::Element, text),
            Token::String => {
                let value = self.string(text)?;
                self.put(Json::String(value));
                Ok(())
            }
            Token::Number => {
                let value = text.number()?;
                self.put(value);
                Ok(())
            }
            Token::True => self.word(4, Json::Bool(true), text),
            Token::False => self.word(5, Json::Bool(false), text),
            Token::Null => self.word(4, Json::Null, text),
            Token::Unknown => Err(text.unknown("Expected a value.")),
            _ if !text.last && text.rest().len() < LONGEST_WORD => Err(Stop::More),
            _ => Err(text.bad("Unexpected token.")),
        }
    }

    fn word(&mut self, length: usize, value: Json, text: &mut Text<'_>) -> Result<(), Stop> {
        text.at += length;
        self.put(value);
        Ok(())
    }

    fn entry(&mut self, token: Token, text: &mut Text<'_>) -> Result<(), Stop> {
        const MESSAGE: &str = "Expected an object key or }.";
        self.key = match token {
            Token::Unknown => return Err(text.unknown(MESSAGE)),
            Token::EndObject => {
                text.at += 1;
                self.end();
                return Ok(());
            }
            Token::String => self.string(text)?,
            Token::Key | Token::True | Token::False | Token::Null => {
                let key = text.bare_key()?;
                if matches!(key.as_str(), "null" | "true" | "false") {
                    return Err(text.bad(MESSAGE));
                }
                key
            }
            _ => return Err(text.bad(MESSAGE)),
        };
        self.stack.push(Expect::AfterEntry);
        self.stack.push(Expect::Colon);
        Ok(())
    }

    fn colon(&mut self, token: Token, text: &mut Text<'_>) -> Result<(), Stop> {
        const MESSAGE: &str = "Expected : between key:value pair.";
        match token {
            Token::Unknown => Err(text.unknown(MESSAGE)),
            Token::Colon => {
                text.at += 1;
                self.stack.push(Expect::Value);
                Ok(())
            }
            _ => Err(text.bad(MESSAGE)),
        }
    }

    fn after_entry(&mut self, token: Token, text: &mut Text<'_>) -> Result<(), Stop> {
        const MESSAGE: &str = "Expected , or } after key:value pair.";
        match token {
            Token::Unknown => return Err(text.unknown(MESSAGE)),
            Token::EndObject => self.end(),
            Token::Comma => self.stack.push(Expect::Entry),
            _ => return Err(text.bad(MESSAGE)),
        }
        text.at += 1;
        Ok(())
    }

    fn element(&mut self, token: Token, text: &mut Text<'_>) -> Result<(), Stop> {
        match token {
            Token::Unknown => return Err(text.unknown("Expected a value or ] within an array.")),
            Token::EndList => {
                text.at += 1;
                self.end();
                return Ok(());
            }
            _ => {}
        }
        self.stack.push(Expect::AfterElement);
        let read = self.value(token, text);
        if let Err(Stop::More) = read {
            self.stack.pop();
        }
        read
    }

    fn after_element(&mut self, token: Token, text: &mut Text<'_>) -> Result<(), Stop> {
        const MESSAGE: &str = "Expected , or ] after array value.";
        match token {
            Token::Unknown => return Err(text.unknown(MESSAGE)),
            Token::EndList => self.end(),
            Token::Comma => self.stack.push(Expect::Element),
            _ => return Err(text.bad(MESSAGE)),
        }
        text.at += 1;
        Ok(())
    }

    /// Reads text up to its closing quote.
    fn string(&mut self, text: &mut Text<'_>) -> Result<String, Stop> {
        let (quote, mut read) = match self.open.take() {
            Some(open) => open,
            None => {
                text.at += 1;
                (text.bytes[text.at - 1], String::new())
            }
        };
        match text.string(quote, &mut read) {
            Ok(()) => Ok(read),
            Err(stop) => {
                self.open = Some((quote, read));
                Err(stop)
            }
        }
    }

    fn begin(&mut self, content: Content, then: Expect, text: &mut Text<'_>) -> Result<(), Stop> {
        text.at += 1;
        let key = std::mem::take(&mut self.key);
        if self.containers.len() >= MOST_CONTAINERS {
            return Err(Stop::Bad(format!("Message too deep. Max recursion depth reached for key '{key}'")));
        }
        let content = match content {
            Content::List(_) if self.wanted == Wanted::Elements && self.containers.is_empty() => {
                self.in_elements = true;
                Content::Elements
            }
            content => {
                if self.wanted == Wanted::Elements && !self.in_elements {
                    self.wrong_shape = Some("Expected an array instead of an object");
                }
                content
            }
        };
        self.containers.push(Container { key, content });
        self.stack.push(then);
        Ok(())
    }

    fn end(&mut self) {
        let Some(Container { key, content }) = self.containers.pop() else { return };
        self.key = key;
        match content {
            Content::Object(entries) => self.put(Json::Object(entries)),
            Content::List(values) => self.put(Json::List(values)),
            Content::Elements => {}
        }
    }

    fn put(&mut self, value: Json) {
        let key = std::mem::take(&mut self.key);
        match self.containers.last_mut().map(|container| &mut container.content) {
            Some(Content::Object(entries)) => entries.push((key, value)),
            Some(Content::List(values)) => values.push(value),
            Some(Content::Elements) => self.complete.push(value),
            None => {
                if self.wanted == Wanted::Elements && self.wrong_shape.is_none() {
                    self.wrong_shape = Some("Expected an array instead of a scalar value.");
                }
                self.complete.push(value);
            }
        }
    }
}

const TOO_MUCH: &str = "Parsing terminated before end of input.";
/// Objects and arrays inside of each other.
const MOST_CONTAINERS: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(wanted: Wanted, pieces: &[&[u8]]) -> Result<Vec<Json>, String> {
        let mut parser = JsonParser::new(wanted);
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(parser.push(piece)?);
        }
        all.extend(parser.finish()?);
        Ok(all)
    }

    fn one(text: &str) -> Result<Json, String> {
        read(Wanted::One, &[text.as_bytes()]).map(|mut values| values.remove(0))
    }

    fn string(text: &str) -> Json {
        Json::String(text.to_owned())
    }

    #[test]
    fn values_are_read_leniently() {
        let entries = |entries: &[(&str, Json)]| {
            Json::Object(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
        };
        assert_eq!(one(r#"{"a":1,'b' : -2, c:1.5,}"#).unwrap(), {
            entries(&[("a", Json::Uint(1)), ("b", Json::Int(-2)), ("c", Json::Double(1.5))])
        });
        assert_eq!(one("[true, false,null,]").unwrap(), {
            Json::List(vec![Json::Bool(true), Json::Bool(false), Json::Null])
        });
        assert_eq!(one(r#""\u00e9\ud83d\ude00\n\/""#).unwrap(), string("é😀\n/"));
        assert_eq!(one("{}").unwrap(), entries(&[]));
        assert_eq!(one("18446744073709551616 ").unwrap(), Json::Double(18446744073709551616.0));
        assert_eq!(one(r#"{"true":1}"#).unwrap(), entries(&[("true", Json::Uint(1))]));
    }

    #[test]
    fn failures_show_where() {
        for (text, message) in [
            ("", "Unexpected end of string. Expected a value.\n\n^"),
            ("{", "Unexpected end of string. Expected an object key or }.\n\n^"),
            (r#"{ "theme" : "Children""#, "Unexpected end of string. Expected , or } after key:value pair.\n\n^"),
            (
                r#"{ "theme"  "Children" }"#,
                "Expected : between key:value pair.\n{ \"theme\"  \"Children\" }\n           ^",
            ),
            ("INVALID_JSON", "Unexpected token.\nINVALID_JSON\n^"),
            ("{} x", "Parsing terminated before end of input.\n{} x\n   ^"),
            (r#"{"a":01}"#, "Octal/hex numbers are not valid JSON values.\n{\"a\":01}\n     ^"),
            (r#"{"a":1e999}"#, "Number exceeds the range of double.\n{\"a\":1e999}\n     ^"),
            (r#"["\ud800x12345"]"#, "Missing low surrogate.\n[\"\\ud800x12345\"]\n  ^"),
            (r#"["\ux000"]"#, "Invalid escape sequence.\n[\"\\ux000\"]\n  ^"),
            ("{null:1}", "Expected an object key or }.\n{null:1}\n     ^"),
            ("[1 2]", "Expected , or ] after array value.\n[1 2]\n   ^"),
        ] {
            assert_eq!(one(text).unwrap_err(), message, "{text}");
        }
        assert!(read(Wanted::One, &[b"\"\xff\""]).unwrap_err().starts_with("Encountered non UTF-8 code points."));
        assert!(one(&"[".repeat(101)).unwrap_err().starts_with("Message too deep."));
    }

    #[test]
    fn elements_come_as_soon_as_they_are_there() {
        let mut parser = JsonParser::new(Wanted::Elements);
        assert_eq!(parser.push(b"[{\"a\"").unwrap(), []);
        assert_eq!(parser.push(b":1},").unwrap().len(), 1);
        assert_eq!(parser.push(b"2,3").unwrap(), [Json::Uint(2)]);
        assert_eq!(parser.push(b"]").unwrap(), [Json::Uint(3)]);
        assert_eq!(parser.finish().unwrap(), []);
        let wrong = |text: &str| read(Wanted::Elements, &[text.as_bytes()]).unwrap_err();
        assert_eq!(wrong("{}"), "Expected an array instead of an object");
        assert_eq!(wrong("1 "), "Expected an array instead of a scalar value.");
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            any::<u64>().prop_map(serde_json::Value::from),
            "\\PC{0,12}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[a-z\"\\\\é]{0,4}", inner, 0..4)
                    .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    fn same(read: &Json, meant: &serde_json::Value) -> bool {
        match (read, meant) {
            (Json::Null, serde_json::Value::Null) => true,
            (Json::Bool(read), serde_json::Value::Bool(meant)) => read == meant,
            (Json::Int(read), meant) => meant.as_i64() == Some(*read),
            (Json::Uint(read), meant) => meant.as_u64() == Some(*read),
            (Json::String(read), serde_json::Value::String(meant)) => read == meant,
            (Json::List(read), serde_json::Value::Array(meant)) => {
                read.len() == meant.len() && read.iter().zip(meant).all(|(read, meant)| same(read, meant))
            }
            (Json::Object(read), serde_json::Value::Object(meant)) => {
                read.len() == meant.len() && read.iter().all(|(key, value)| same(value, &meant[key]))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn json_is_read_as_it_was_meant(meant in value()) {
            let text = serde_json::to_string(&meant).unwrap();
            prop_assert!(same(&one(&text).unwrap(), &meant), "{text}");
        }

        #[test]
        fn pieces_do_not_matter(meant in value(), cut in prop::collection::vec(1usize..9, 0..40)) {
            let text = serde_json::to_vec(&meant).unwrap();
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = text.as_slice();
            for length in cut {
                let (piece, later) = rest.split_at(length.min(rest.len()));
                pieces.push(piece);
                rest = later;
            }
            pieces.push(rest);
            prop_assert_eq!(read(Wanted::One, &pieces), read(Wanted::One, &[&text]));
        }

        #[test]
        fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(Wanted::One, &[&bytes]);
            let _ = read(Wanted::Elements, &[&bytes]);
        }
    }
}
