//! What becomes of connections whose certificate has been replaced (`outrigger.tls.v1.RotationOptions`).
//!
//! Owns where the option stands. Never notices a rotation.

use std::time::Duration;

use outrigger_api::outrigger::tls_v1 as pb;
use outrigger_api::pb::envoy::config::core::v3::Metadata;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::xds::type_v3::TypedStruct;
use prost::Message as _;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The namespace of a listener's or cluster's metadata that holds the message as an object.
const NAMESPACE: &str = "outrigger.tls";

/// How long connections may go on after a rotation; `None` leaves them alone.
pub(crate) fn retire_within(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    metadata: Option<&Metadata>,
) -> Parsed<Option<Duration>> {
    let Some(object) = metadata.and_then(|metadata| metadata.filter_metadata.get(NAMESPACE)) else { return Ok(None) };
    let filters_at = at.field("filter_metadata");
    let at = filters_at.key(NAMESPACE);
    let url = "type.googleapis.com/outrigger.tls.v1.RotationOptions".to_owned();
    let wrapped = TypedStruct { type_url: url, value: Some(object.clone()) };
    let any =
        Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: wrapped.encode_to_vec() };
    let any = wire::extension(context, &at, any)?;
    let wire: pb::RotationOptions = wire::decode(&at, &any)?;
    decide!(wire, at, pb::RotationOptions as "outrigger.tls.v1.RotationOptions" {
        implemented: retire_within;
        no_effect: ;
        unsupported: ;
    });
    let at = at.field("retire_within");
    retire_within.map(|wire| wire::positive_duration(&at, wire)).transpose()
}
