//! Reads services that take HTTP posts (`envoy.config.core.v3.HttpService`).
//!
//! Owns how a URI is taken apart. Never sends anything.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;

use super::HttpService;
use crate::context::Context;
use crate::decide::decide;
use crate::format::{Format, FormatPart, Operator};
use crate::http::header_mutations::{check_header_value, header_name};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a service.
pub(crate) fn http_service(context: &Context<'_>, at: &FieldPath<'_>, wire: core::HttpService) -> Parsed<HttpService> {
    decide!(wire, at, core::HttpService as "envoy.config.core.v3.HttpService" {
        implemented: http_uri, request_headers_to_add;
        no_effect: ;
        unsupported: formatters;
    });
    let uri_at = at.field("http_uri");
    let Some(wire) = http_uri else {
        return Err(uri_at.reject("is required"));
    };
    decide!(wire, uri_at, core::HttpUri as "envoy.config.core.v3.HttpUri" {
        implemented: uri, timeout, http_upstream_type;
        no_effect: ;
        unsupported: ;
    });
    let cluster: Arc<str> = match http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(name)) if !name.is_empty() => name.into(),
        Some(core::http_uri::HttpUpstreamType::Cluster(_)) => {
            return Err(uri_at.field("cluster").reject("must not be empty"));
        }
        None => return Err(uri_at.field("cluster").reject("is required")),
    };
    let Some(timeout) = timeout else {
        return Err(uri_at.field("timeout").reject("is required"));
    };
    let (host, path) = parts(&uri_at.field("uri"), &uri, &cluster)?;
    let list = at.field("request_headers_to_add");
    Ok(HttpService {
        cluster,
        host,
        path,
        timeout: wire::duration(&uri_at.field("timeout"), timeout)?,
        headers: wire::each(&list, request_headers_to_add, |at, wire| header(context, at, wire))?,
    })
}

/// Host and path of a URI; the cluster stands for the host of one that is a path only.
pub(super) fn parts(at: &FieldPath<'_>, uri: &str, cluster: &str) -> Parsed<(String, String)> {
    let invalid = || at.reject(format!("{uri:?} is not a URI, expected http://host/path or a path"));
    if uri.is_empty() || !uri.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        return Err(invalid());
    }
    if uri.starts_with('/') {
        return Ok((cluster.to_owned(), uri.to_owned()));
    }
    let rest = match uri.split_once("://") {
        Some((scheme, rest)) if ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) => rest,
        Some(_) => return Err(invalid()),
        None => uri,
    };
    let (host, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    if host.is_empty() || host.contains(['@', '?', '#']) {
        return Err(invalid());
    }
    Ok((host.to_owned(), path.to_owned()))
}

fn header(context: &Context<'_>, at: &FieldPath<'_>, wire: core::HeaderValueOption) -> Parsed<(Arc<str>, String)> {
    // The request has no headers of its own yet, so each is set however it is to be added.
    let core::HeaderValueOption { header, append: _, append_action: _, keep_empty_value: _ } = wire;
    let at = at.field("header");
    let Some(core::HeaderValue { key, value, raw_value }) = header else {
        return Err(at.reject("is required"));
    };
    let name = header_name(&at.field("key"), &key)?;
    if name.starts_with(':') || &*name == "host" {
        return Err(at.field("key").reject(format!("{key:?} follows from the URI")));
    }
    let field = at.field("value");
    let text = match value.is_empty() {
        true => String::from_utf8(raw_value).map_err(|_| at.field("raw_value").reject("is not UTF-8"))?,
        false => value,
    };
    let mut fixed = String::new();
    for part in Format::parse_with_environment(context.environment(), &field, &text)?.parts {
        match part {
            FormatPart::Literal(text) => fixed.push_str(&text),
            FormatPart::Operator { operator: Operator::Environment { value }, max_bytes } => {
                let value = value.as_deref().unwrap_or("");
                let end = max_bytes.unwrap_or(value.len()).min(value.len());
                fixed.push_str(value.get(..end).unwrap_or(""));
            }
            FormatPart::Operator { .. } => {
                return Err(field.reject(format!("{text:?}: only %ENVIRONMENT(..)% is known here")));
            }
        }
    }
    check_header_value(&field, &fixed)?;
    Ok((name, fixed))
}
