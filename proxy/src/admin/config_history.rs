//! `/config_history` and `/config_history/diff`: what changed the configuration, when, and how two generations differ.
//!
//! Owns the form, and how two versions of a resource are told apart. Never decides what is kept.

use http::StatusCode;
use outrigger_api::Schema;
use serde_json::Value;

use super::context::AdminContext;
use super::pretty::{STYLE, timestamp};
use super::request::Request;
use super::requests::number;
use super::response::Response;
use super::tree::{Tree, tree};
use crate::graph::journal::{Difference, Former, Names, Push};

/// Pushes that are told of unless `limit` says otherwise.
const TOLD: usize = 100;
/// Differences of one resource that are told of.
const TOLD_FIELDS: usize = 200;
/// Values longer than this are cut off.
const VALUE_BYTES: usize = 400;

/// The last pushes, the newest first.
pub(super) fn config_history(context: &AdminContext, request: &Request) -> Response {
    let limit = match number(request, "limit", TOLD) {
        Ok(limit) => limit,
        Err(reason) => return Response::text(StatusCode::BAD_REQUEST, reason),
    };
    let mut pushes = context.configuration.pushes();
    pushes.retain(|push| request.parameter("type").is_none_or(|kind| kind == push.kind));
    pushes.reverse();
    let shown: Vec<Tree> = pushes.iter().take(limit).map(shown).collect();
    let generation = context.process.graph.generation();
    tree! { "generation": generation, "pushes": shown }.answer(request)
}

fn shown(push: &Push) -> Tree {
    let rejected = push.rejected.iter().map(|(name, reason)| tree! { "name": name, "reason": &**reason });
    let verdict = match (push.rejected_in_all, push.added.count + push.changed.count + push.removed.count) {
        (0, _) => "accepted",
        (_, 0) if push.unchanged == 0 => "rejected",
        _ => "partly rejected",
    };
    tree! {
        "number": push.number,
        "time": timestamp(push.at).as_str(),
        "type": push.kind,
        "source": &*push.source,
        "version": (!push.version.is_empty()).then_some(&*push.version),
        "verdict": verdict,
        "generation": push.generation,
        "added": names(&push.added),
        "changed": names(&push.changed),
        "removed": names(&push.removed),
        "unchanged": (push.unchanged > 0).then_some(push.unchanged),
        "rejected": if push.rejected.is_empty() { Tree::Nothing } else { Tree::List(rejected.collect()) },
        "rejected_in_all": (push.rejected_in_all > push.rejected.len()).then_some(push.rejected_in_all),
    }
}

fn names(names: &Names) -> Tree {
    if names.count == 0 {
        return Tree::Nothing;
    }
    let mut listed: Vec<Tree> = names.listed.iter().map(Tree::from).collect();
    if names.count > names.listed.len() {
        listed.push(Tree::from(format!("and {} more", names.count - names.listed.len())));
    }
    Tree::List(listed)
}

/// How two generations differ.
pub(super) fn diff(context: &AdminContext, request: &Request) -> Response {
    match differences(context, request) {
        Ok(tree) => tree.answer(request),
        Err(reason) => Response::text(StatusCode::BAD_REQUEST, reason + "\n"),
    }
}

fn differences(context: &AdminContext, request: &Request) -> Result<Tree, String> {
    let given = |name: &str| {
        let text = request
            .parameter(name)
            .ok_or_else(|| "usage: /config_history/diff?from=<generation>&to=<generation>".to_owned())?;
        text.parse::<u64>().map_err(|_| format!("{name} {text:?} is not a whole number"))
    };
    let (from, to) = (given("from")?, given("to")?);
    let found = context.configuration.differences(from, to)?;
    let shown: Vec<Tree> = found.iter().map(difference).collect();
    Ok(tree! { "from": from, "to": to, "resources": shown })
}

fn difference(found: &Difference) -> Tree {
    let (what, fields) = match (&found.before, &found.after) {
        (Former::Absent, _) => ("added", Tree::Nothing),
        (_, Former::Absent) => ("removed", Tree::Nothing),
        (Former::Known(before), Former::Known(after)) => {
            let json = |any: &outrigger_api::pb::google::protobuf::Any| {
                Schema::load().any_to_json(any, STYLE).unwrap_or(Value::Null)
            };
            let mut lines = Vec::new();
            compare(&json(before), &json(after), "", &mut lines);
            let left_out = lines.len().saturating_sub(TOLD_FIELDS);
            lines.truncate(TOLD_FIELDS);
            if left_out > 0 {
                lines.push(tree! { "field": format!("and {left_out} more") });
            }
            ("changed", Tree::List(lines))
        }
        _ => ("changed; what it was is not kept any more", Tree::Nothing),
    };
    tree! { "type": found.kind.noun(), "name": &found.name, "what": what, "fields": fields }
}

/// The places at which two values differ.
fn compare(before: &Value, after: &Value, at: &str, lines: &mut Vec<Tree>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
            for name in names {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or(Value::Null);
                compare(&value(old), &value(new), &path, lines);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let value = |of: &[Value]| of.get(index).cloned().unwrap_or(Value::Null);
                compare(&value(old), &value(new), &format!("{at}[{index}]"), lines);
            }
        }
        (before, after) if before == after => {}
        (before, after) => lines.push(tree! {
            "field": at,
            "before": (!before.is_null()).then(|| cut(before)),
            "after": (!after.is_null()).then(|| cut(after)),
        }),
    }
}

fn cut(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_BYTES) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_field_by_field() {
        let before = json!({"a": 1, "list": [1, 2], "gone": {"x": true}});
        let after = json!({"a": 2, "list": [1, 3, 4], "new": "n"});
        let mut lines = Vec::new();
        compare(&before, &after, "", &mut lines);
        let told = serde_json::to_value(Tree::List(lines)).unwrap();
        assert_eq!(
            told,
            json!([
                {"field": "a", "before": "1", "after": "2"},
                {"field": "gone", "before": "{\"x\":true}"},
                {"field": "list[1]", "before": "2", "after": "3"},
                {"field": "list[2]", "after": "4"},
                {"field": "new", "after": "\"n\""},
            ])
        );
    }
}
