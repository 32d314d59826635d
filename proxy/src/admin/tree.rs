//! What endpoints show as JSON or, for people, as indented lines: one value for both forms, so that they never differ.
//!
//! Owns the two forms. Members stay in the order in which they were given. Never knows what is shown.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use http::StatusCode;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::pretty::indented;
use super::request::Request;
use super::response::{JSON, Response, TEXT};

/// A value to be shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    /// Left out.
    Nothing,
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// A fraction.
    Decimal(f64),
    /// Text.
    Text(Cow<'static, str>),
    /// In order.
    List(Vec<Tree>),
    /// In order, by name.
    Members(Vec<(&'static str, Tree)>),
}

impl Tree {
    /// A list of what can be shown.
    pub(super) fn list<T: Into<Tree>>(items: impl IntoIterator<Item = T>) -> Self {
        Tree::List(items.into_iter().map(Into::into).collect())
    }

    /// The answer in the form that the request asks for, indented.
    pub(super) fn answer(&self, request: &Request) -> Response {
        if request.parameter("format") == Some("json") {
            return Response::whole(StatusCode::OK, JSON, indented(self, 0) + "\n");
        }
        let mut text = String::new();
        self.write_lines(&mut text, 0);
        Response::whole(StatusCode::OK, TEXT, text)
    }

    fn is_left_out(&self) -> bool {
        matches!(self, Tree::Nothing)
    }

    fn scalar(&self) -> Option<Cow<'_, str>> {
        match self {
            Tree::Nothing => Some("-".into()),
            Tree::Flag(flag) => Some(if *flag { "yes" } else { "no" }.into()),
            Tree::Number(number) => Some(number.to_string().into()),
            Tree::Decimal(number) => Some(number.to_string().into()),
            // What is foreign must not look like further lines.
            Tree::Text(text) if text.contains(char::is_control) => Some(text.escape_debug().to_string().into()),
            Tree::Text(text) => Some(Cow::Borrowed(text)),
            Tree::List(items) if items.iter().all(|item| !matches!(item, Tree::List(_) | Tree::Members(_))) => {
                let texts: Vec<_> = items.iter().filter_map(Tree::scalar).collect();
                Some(if texts.is_empty() { "-".into() } else { texts.join(", ").into() })
            }
            Tree::List(_) | Tree::Members(_) => None,
        }
    }

    fn write_lines(&self, out: &mut String, depth: usize) {
        let blanks = "  ".repeat(depth);
        match self {
            Tree::Members(members) => {
                for (name, value) in members.iter().filter(|(_, value)| !value.is_left_out()) {
                    match value.scalar() {
                        Some(text) => drop(writeln!(out, "{blanks}{name}: {text}")),
                        None => {
                            let _ = writeln!(out, "{blanks}{name}:");
                            value.write_lines(out, depth + 1);
                        }
                    }
                }
            }
            Tree::List(items) => {
                for item in items {
                    let mut lines = String::new();
                    item.write_lines(&mut lines, depth + 1);
                    // The first member of an item stands behind its dash.
                    let _ = write!(out, "{blanks}- {}", lines.trim_start());
                }
            }
            scalar => drop(writeln!(out, "{blanks}{}", scalar.scalar().unwrap_or_default())),
        }
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tree::Nothing => serializer.serialize_unit(),
            Tree::Flag(flag) => serializer.serialize_bool(*flag),
            Tree::Number(number) => serializer.serialize_i64(*number),
            Tree::Decimal(number) => serializer.serialize_f64(*number),
            Tree::Text(text) => serializer.serialize_str(text),
            Tree::List(items) => serializer.collect_seq(items),
            Tree::Members(members) => {
                let mut map = serializer.serialize_map(None)?;
                for (name, value) in members.iter().filter(|(_, value)| !value.is_left_out()) {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl From<&str> for Tree {
    fn from(text: &str) -> Self {
        Tree::Text(Cow::Owned(text.to_owned()))
    }
}

impl From<String> for Tree {
    fn from(text: String) -> Self {
        Tree::Text(Cow::Owned(text))
    }
}

impl From<&Arc<str>> for Tree {
    fn from(text: &Arc<str>) -> Self {
        Tree::from(&**text)
    }
}

impl From<bool> for Tree {
    fn from(flag: bool) -> Self {
        Tree::Flag(flag)
    }
}

impl From<f64> for Tree {
    fn from(number: f64) -> Self {
        Tree::Decimal(number)
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {
        $(impl From<$number> for Tree {
            fn from(number: $number) -> Self {
                Tree::Number(i64::try_from(number).unwrap_or(i64::MAX))
            }
        })*
    };
}
whole_numbers!(u16, u32, u64, usize, i64);

impl<T: Into<Tree>> From<Option<T>> for Tree {
    fn from(value: Option<T>) -> Self {
        value.map_or(Tree::Nothing, Into::into)
    }
}

impl<T: Into<Tree>> From<Vec<T>> for Tree {
    fn from(items: Vec<T>) -> Self {
        Tree::list(items)
    }
}

/// Members in order: `tree! { "name": value, ... }`.
macro_rules! tree {
    ($($name:literal : $value:expr),* $(,)?) => {
        $crate::admin::tree::Tree::Members(vec![$(($name, $crate::admin::tree::Tree::from($value))),*])
    };
}
pub(super) use tree;

#[cfg(test)]
mod tests {
    #[test]
    fn both_forms_show_the_same_in_the_same_order() {
        let shown = tree! {
            "z": "first",
            "none": None::<u32>,
            "a": vec![1_u32, 2],
            "list": vec![tree! { "name": "x\ny", "on": true }, tree! { "name": "z" }],
        };
        let json = serde_json::to_string(&shown).unwrap();
        assert_eq!(json, r#"{"z":"first","a":[1,2],"list":[{"name":"x\ny","on":true},{"name":"z"}]}"#);
        let mut text = String::new();
        shown.write_lines(&mut text, 0);
        assert_eq!(text, "z: first\na: 1, 2\nlist:\n  - name: x\\ny\n    on: yes\n  - name: z\n");
    }
}
