//! How answers of our own look (`...http_connection_manager.v3.LocalReplyConfig`).
//!
//! Owns the mappers and formats. Never writes an answer.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use super::HeaderMutations;
use super::header_mutations::header_mutations;
use crate::accesslog::{AccessLogFilter, LogFormat, filter, log_format};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What becomes of answers of our own.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalReplies {
    /// The first whose filter lets the answer through changes it.
    pub mappers: Vec<ReplyMapper>,
    /// How the body is written; as it is unless given.
    pub format: Option<BodyFormat>,
}

/// A change of some answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplyMapper {
    /// Which answers.
    pub filter: AccessLogFilter,
    /// Replaces the status code.
    pub status: Option<u16>,
    /// Replaces the body.
    pub body: Option<Vec<u8>>,
    /// Replaces the format of the body.
    pub format: Option<BodyFormat>,
    /// Added to the answer.
    pub headers: HeaderMutations,
}

/// A form of bodies.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyFormat {
    /// What is written.
    pub format: LogFormat,
    /// `text/plain` for text and `application/json` for JSON unless given.
    pub content_type: String,
}

impl LocalReplies {
    /// Reads the message at `at`; nothing if it changes nothing.
    pub(super) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: Option<pb::LocalReplyConfig>,
    ) -> Parsed<Option<Self>> {
        let Some(wire) = wire else { return Ok(None) };
        decide!(wire, at, pb::LocalReplyConfig as "envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig" {
            implemented: mappers, body_format;
            no_effect: ;
            unsupported: ;
        });
        let mappers = wire::each(&at.field("mappers"), mappers, |at, wire| mapper(context, at, wire))?;
        let format = match body_format {
            None => None,
            Some(wire) => Some(self::body_format(context, &at.field("body_format"), wire)?),
        };
        Ok((!mappers.is_empty() || format.is_some()).then_some(Self { mappers, format }))
    }
}

fn mapper(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ResponseMapper) -> Parsed<ReplyMapper> {
    decide!(wire, at, pb::ResponseMapper as "envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper" {
        implemented: filter, status_code, body, body_format_override, headers_to_add;
        no_effect: ;
        unsupported: ;
    });
    let filter_at = at.field("filter");
    let Some(filter) = filter else { return Err(filter_at.reject("is required")) };
    let status = match status_code.map(|status| status.value) {
        None => None,
        Some(status @ 200..=599) => Some(status as u16),
        Some(status) => {
            return Err(at.field("status_code").reject(format!("{status} is not within 200 to 599")));
        }
    };
    Ok(ReplyMapper {
        filter: self::filter(&filter_at, filter)?,
        status,
        body: match body {
            None => None,
            Some(source) => Some(wire::data_source(context, &at.field("body"), source)?.bytes),
        },
        format: match body_format_override {
            None => None,
            Some(wire) => Some(body_format(context, &at.field("body_format_override"), wire)?),
        },
        headers: header_mutations(&at.field("headers_to_add"), headers_to_add, at, Vec::new())?,
    })
}

/// Reads a form of bodies.
pub(super) fn body_format(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    mut wire: core::SubstitutionFormatString,
) -> Parsed<BodyFormat> {
    let given = std::mem::take(&mut wire.content_type);
    wire::header_value(&at.field("content_type"), &given)?;
    let format = log_format(context, at, wire)?;
    let content_type = match (&format, given) {
        (_, given) if !given.is_empty() => given,
        (LogFormat::Text { .. }, _) => "text/plain".to_owned(),
        (LogFormat::Json { .. }, _) => "application/json".to_owned(),
    };
    Ok(BodyFormat { format, content_type })
}
