//! `/coverage`: fields of the configuration that have no effect here, and why.
//!
//! Owns the form. Never reads configuration.

use super::context::AdminContext;
use super::request::Request;
use super::response::Response;
use super::tree::{Tree, tree};

/// All of them, by resource.
pub(super) fn coverage(context: &AdminContext, request: &Request) -> Response {
    let (mut fields, left_out) = context.configuration.without_effect();
    let wanted = |name: &str, value: &str| request.parameter(name).is_none_or(|wanted| wanted == value);
    fields.retain(|field| wanted("type", field.kind) && wanted("name", &field.name));
    let shown: Vec<Tree> = fields
        .iter()
        .map(|field| {
            tree! {
                "type": field.kind,
                "name": &field.name,
                "field": &*field.path,
                "why_no_effect": &*field.reason,
            }
        })
        .collect();
    let tree = tree! {
        "fields_without_effect": shown.len(),
        "left_out": (left_out > 0).then_some(left_out),
        "fields": shown,
    };
    tree.answer(request)
}
