//! Field masks (`google.protobuf.FieldMask`) over JSON.
//!
//! Owns which parts of a value stay. Never reads resources.

use serde_json::{Map, Value};

/// Paths of field names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mask(Vec<Vec<String>>);

impl Mask {
    /// From paths with commas between them, as in a query.
    pub fn parse(text: &str) -> Self {
        let path = |path: &str| path.split('.').map(str::to_owned).collect();
        Self(text.split(',').filter(|path| !path.is_empty()).map(path).collect())
    }

    /// First names of all paths, and whether each is the end of its path.
    pub fn heads(&self) -> impl Iterator<Item = (&str, bool)> {
        self.0.iter().filter_map(|path| Some((path.first()?.as_str(), path.len() == 1)))
    }

    /// An object that has just the fields of the mask, all null: what a schema must be able to read.
    pub fn as_object(&self) -> Value {
        let mut object = Value::Object(Map::new());
        for path in &self.0 {
            let mut at = &mut object;
            for name in path {
                if at.is_null() {
                    *at = Value::Object(Map::new());
                }
                let Value::Object(members) = at else { break };
                at = members.entry(name.clone()).or_insert(Value::Null);
            }
        }
        object
    }

    /// What applies below the field `name`: `None` if nothing of it stays, an empty mask if all does.
    pub fn below(&self, name: &str) -> Option<Mask> {
        let mut rests = Vec::new();
        for path in &self.0 {
            if let Some((head, rest)) = path.split_first()
                && head == name
            {
                if rest.is_empty() {
                    return Some(Mask::default());
                }
                rests.push(rest.to_vec());
            }
        }
        (!rests.is_empty()).then_some(Mask(rests))
    }

    /// The parts of `value` that the mask names, and its type; all of it if the mask is empty.
    pub fn apply(&self, value: Value) -> Value {
        if self.0.is_empty() {
            return value;
        }
        let Value::Object(members) = value else { return value };
        let mut kept = Map::new();
        for (name, value) in members {
            if name == "@type" {
                kept.insert(name, value);
            } else if let Some(below) = self.below(&name) {
                kept.insert(name, below.apply(value));
            }
        }
        Value::Object(kept)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_named_parts_stay_and_types_do() {
        let value = json!({"cluster": {"@type": "t", "name": "a", "type": "EDS"}, "last_updated": "x"});
        assert_eq!(Mask::parse("cluster.name").apply(value.clone()), json!({"cluster": {"@type": "t", "name": "a"}}));
        assert_eq!(Mask::parse("last_updated,cluster.nope").apply(value.clone())["last_updated"], "x");
        assert_eq!(Mask::parse("cluster,cluster.name").apply(value.clone())["cluster"]["type"], "EDS");
        assert_eq!(Mask::parse("").apply(value.clone()), value);
        assert_eq!(Mask::parse("a.b,a.c,d").as_object(), json!({"a": {"b": null, "c": null}, "d": null}));
    }
}
