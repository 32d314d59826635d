//! `/config_dump`: everything that was configured, as received.
//!
//! Owns the query and the order of the dump. What is in it comes from `dump_sections`. Written piece by piece, since
//! the configuration of a large mesh is many megabytes.

use http::StatusCode;
use outrigger_api::Schema;
use outrigger_api::pb::envoy::admin::v3::BootstrapConfigDump;
use regex::Regex;
use serde_json::Value;

use super::context::AdminContext;
use super::dump_sections::{Section, SectionMember, sections};
use super::mask::Mask;
use super::pretty::{Member, ObjectWriter};
use super::request::Request;
use super::response::{JSON, Response};

/// The dump that `request` asks for.
pub(super) fn config_dump(context: &AdminContext, request: &Request) -> Response {
    match dump(context, request) {
        Ok(pieces) => Response::stream(JSON, in_blocks(pieces.chain(["\n".to_owned()]))),
        Err((status, reason)) => Response { content_type: "text/plain", ..Response::text(status, reason) },
    }
}

type Refusal = (StatusCode, String);
type Pieces = Box<dyn Iterator<Item = String>>;

fn dump(context: &AdminContext, request: &Request) -> Result<Pieces, Refusal> {
    let name_filter = match request.parameter("name_regex") {
        None => None,
        Some(text) => Some(Regex::new(text).map_err(|error| {
            (StatusCode::BAD_REQUEST, format!("INVALID_ARGUMENT: name_regex {text:?} cannot be read: {error}"))
        })?),
    };
    let mask = request.parameter("mask").map(|text| (Mask::parse(text), text.to_owned()));
    let sections = sections(context, name_filter.as_ref(), request.has("include_eds"));
    match request.parameter("resource") {
        Some(resource) => one_resource(sections, resource, mask.map(|(mask, _)| mask)),
        None => all_sections(sections, mask),
    }
}

/// The elements of one list, each masked.
fn one_resource(sections: Vec<Section>, resource: &str, mask: Option<Mask>) -> Result<Pieces, Refusal> {
    let mut members = sections.into_iter().flat_map(|section| section.members);
    let found = members.find(|(name, _)| *name == resource);
    match found {
        None => Err((StatusCode::NOT_FOUND, format!("{resource} not found in config dump"))),
        Some((_, SectionMember::One(_))) => Err((
            StatusCode::BAD_REQUEST,
            format!("{resource} is not a repeated field. Use ?mask={resource} to get only this field"),
        )),
        Some((_, SectionMember::Many { element, fields, values })) => {
            let mask = mask.unwrap_or_default();
            if let Some((unknown, _)) = mask.heads().find(|(head, _)| !fields.contains(head)) {
                let reason = format!("FieldMask could not be used: {element} has no field {unknown:?}");
                return Err((StatusCode::BAD_REQUEST, reason));
            }
            let typed = move |value: Value| {
                let mut object = serde_json::Map::new();
                object.insert("@type".to_owned(), format!("type.googleapis.com/envoy.admin.v3.{element}").into());
                if let Value::Object(fields) = mask.apply(value) {
                    object.extend(fields);
                }
                Value::Object(object)
            };
            Ok(Box::new(ObjectWriter::new(0, vec![Member::List("configs", Box::new(values.map(typed)))])))
        }
    }
}

/// The usual envelopes. With a mask, those that have all of its fields, with nothing else in them.
fn all_sections(sections: Vec<Section>, mask: Option<(Mask, String)>) -> Result<Pieces, Refusal> {
    let shown = match mask {
        None => sections,
        Some((mask, text)) => {
            let fitting: Vec<Section> = sections.into_iter().filter(|section| fits(section, &mask)).collect();
            if fitting.is_empty() {
                let reason = format!("FieldMask {text} could not be successfully applied to any configs.");
                return Err((StatusCode::BAD_REQUEST, reason));
            }
            fitting.into_iter().map(|section| masked(section, &mask)).collect()
        }
    };
    let one = |(index, section): (usize, Section)| {
        let comma = if index == 0 { "" } else { "," };
        std::iter::once(format!("{comma}\n  ")).chain(written(section))
    };
    let begin = std::iter::once("{\n \"configs\": [".to_owned());
    let end = std::iter::once("\n ]\n}".to_owned());
    Ok(Box::new(begin.chain(shown.into_iter().enumerate().flat_map(one)).chain(end)))
}

fn fits(section: &Section, mask: &Mask) -> bool {
    mask.heads().all(|(head, is_end)| {
        section.members.iter().any(|(name, member)| match member {
            // Below a list there is nothing to name.
            SectionMember::Many { .. } => *name == head && is_end,
            SectionMember::One(_) => *name == head && (is_end || bootstrap_has(mask)),
        })
    })
}

/// Whether all paths of the mask exist: the only message below which a mask may go is the bootstrap.
fn bootstrap_has(mask: &Mask) -> bool {
    let parsed =
        Schema::load().parse_value::<BootstrapConfigDump>(&mask.as_object(), outrigger_api::UnknownFields::Reject);
    parsed.is_ok_and(|parsed| parsed.unknown_fields.is_empty())
}

fn masked(section: Section, mask: &Mask) -> Section {
    let Section { kind, members } = section;
    let keep = |(name, member): (&'static str, SectionMember)| {
        let below = mask.below(name)?;
        let member = match member {
            SectionMember::One(make) => SectionMember::One(Box::new(move || below.apply(make()))),
            many => many,
        };
        Some((name, member))
    };
    Section { kind, members: members.into_iter().filter_map(keep).collect() }
}

/// A section as an element of `configs`.
fn written(section: Section) -> ObjectWriter {
    let Section { kind, members } = section;
    let url = move || Value::from(format!("type.googleapis.com/envoy.admin.v3.{kind}"));
    let mut written = vec![Member::Value("@type", Box::new(url))];
    written.extend(members.into_iter().map(|(name, member)| match member {
        SectionMember::One(make) => Member::Value(name, make),
        SectionMember::Many { values, .. } => Member::List(name, values),
    }));
    ObjectWriter::new(2, written)
}

/// Joins small pieces: a write for each line would be slow.
fn in_blocks(mut pieces: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        let mut block = pieces.next()?;
        while block.len() < 32 * 1024
            && let Some(piece) = pieces.next()
        {
            block.push_str(&piece);
        }
        Some(block)
    })
}
