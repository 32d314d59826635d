//! Changes of request headers before anything looks at them (`HttpConnectionManager.early_header_mutation_extensions`).
//!
//! Owns which extensions there are. Never changes anything.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3 as pb;

use super::filters::{Mutation, header_mutations};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads the list at `at`: what all of them do, one after the other.
pub(super) fn early_mutations(at: &FieldPath<'_>, wire: Vec<core::TypedExtensionConfig>) -> Parsed<Vec<Mutation>> {
    let mut all = Vec::new();
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let core::TypedExtensionConfig { name: _, typed_config } = wire;
        let at = at.field("typed_config");
        let Some(any) = typed_config else { return Err(at.reject("is required")) };
        match wire::type_name(&any) {
            "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation" => {
                let pb::HeaderMutation { mutations } = wire::decode(&at, &any)?;
                let at = at.field("mutations");
                if mutations.is_empty() {
                    return Err(at.reject("must not be empty"));
                }
                all.extend(header_mutations(&at, mutations)?);
            }
            _ => return Err(at.reject(format!("{:?} is not supported", any.type_url))),
        }
    }
    Ok(all)
}
