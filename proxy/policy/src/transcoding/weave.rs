//! What the path and the query of a request say of its message, woven into what the body says.
//!
//! Owns who is right where both say something: the body, and lists have both. Never reads a path (see `paths`).

use std::collections::HashSet;

use outrigger_config::http::filters::transcoder::{Field, Shape};

use super::encode::Entries;
use super::json::Json;
use super::scalar;

/// Values of fields, by the ways that lead to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bindings {
    values: Vec<Binding>,
    messages: Vec<(Box<str>, Bindings)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Binding {
    field: Box<str>,
    is_list: bool,
    value: String,
}

impl Bindings {
    /// Nothing is bound.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.messages.is_empty()
    }

    /// Binds a value to the end of a path of fields.
    pub(super) fn bind(&mut self, path: &[&Field], value: String) {
        let Some((last, outer)) = path.split_last() else { return };
        let mut current = self;
        for field in outer {
            let found = current.messages.iter().position(|(name, _)| *name == field.name);
            let place = found.unwrap_or_else(|| {
                current.messages.push((field.name.clone(), Self::default()));
                current.messages.len() - 1
            });
            current = &mut current.messages[place].1;
        }
        current.values.push(Binding { field: last.name.clone(), is_list: last.shape != Shape::Single, value });
    }

    /// The body with what is bound. Where both say something else of a field, `collision` is told.
    pub(super) fn weave(self, body: Json, collision: &mut dyn FnMut(String)) -> Json {
        match body {
            Json::Object(entries) if !self.is_empty() => Json::Object(self.into_entries(entries, collision)),
            body => body,
        }
    }

    fn into_entries(mut self, body: Entries, collision: &mut dyn FnMut(String)) -> Entries {
        let mut woven = Vec::with_capacity(body.len() + self.values.len() + self.messages.len());
        let mut bound: HashSet<Box<str>> = self.values.iter().map(|binding| binding.field.clone()).collect();
        for (key, value) in body {
            let value = match value {
                Json::Object(entries) => match self.messages.iter().position(|(name, _)| **name == *key) {
                    Some(place) => Json::Object(self.messages.remove(place).1.into_entries(entries, collision)),
                    None => Json::Object(entries),
                },
                value @ (Json::List(_) | Json::Null) => value,
                scalar => {
                    if bound.remove(key.as_str()) {
                        self.yield_to(&key, &scalar, &mut woven, collision);
                    }
                    scalar
                }
            };
            woven.push((key, value));
        }
        for Binding { field, value, .. } in self.values {
            woven.push((field.into(), Json::String(value)));
        }
        for (name, inner) in self.messages {
            woven.push((name.into(), Json::Object(inner.into_entries(Vec::new(), collision))));
        }
        woven
    }

    /// The body says something of the field `key`: what is bound to it is over, or, in a list, stands before.
    fn yield_to(&mut self, key: &str, body: &Json, woven: &mut Entries, collision: &mut dyn FnMut(String)) {
        let mut kept = Vec::with_capacity(self.values.len());
        for binding in self.values.drain(..) {
            if *binding.field != *key {
                kept.push(binding);
            } else if binding.is_list {
                woven.push((key.to_owned(), Json::String(binding.value)));
            } else if let Some(reason) = scalar::compare(key, body, &binding.value) {
                collision(reason);
            }
        }
        self.values = kept;
    }
}
