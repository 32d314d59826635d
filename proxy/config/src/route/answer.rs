//! Reading routes that are answered here (`RedirectAction`, `DirectResponseAction`).
//!
//! Owns the checks of such answers. Never builds a response.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::route::v3 as pb;

use super::entry::RouteScope;
use super::rewrite::regex_rewrite;
use super::{DirectResponse, PathRedirect, Redirect, SchemeRedirect};
use crate::decide::decide;
use crate::format::Format;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a redirect.
pub(super) fn redirect(at: &FieldPath<'_>, wire: pb::RedirectAction) -> Parsed<Redirect> {
    decide!(wire, at, pb::RedirectAction as "envoy.config.route.v3.RedirectAction" {
        implemented: host_redirect, port_redirect, response_code, strip_query, scheme_rewrite_specifier,
            path_rewrite_specifier;
        no_effect: ;
        unsupported: ;
    });
    wire::header_value(&at.field("host_redirect"), &host_redirect)?;
    use pb::redirect_action::SchemeRewriteSpecifier as Scheme;
    let scheme = match scheme_rewrite_specifier {
        Some(Scheme::HttpsRedirect(true)) => SchemeRedirect::Https,
        Some(Scheme::SchemeRedirect(scheme)) if !scheme.is_empty() => {
            wire::header_value(&at.field("scheme_redirect"), &scheme)?;
            SchemeRedirect::Scheme(scheme)
        }
        None | Some(Scheme::HttpsRedirect(false) | Scheme::SchemeRedirect(_)) => SchemeRedirect::Keep,
    };
    let port = match u16::try_from(port_redirect) {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => return Err(at.field("port_redirect").reject(format!("{port_redirect} is not within 0 to 65535"))),
    };
    Ok(Redirect {
        scheme,
        host: Some(host_redirect).filter(|host| !host.is_empty()),
        port,
        path: path_redirect(at, path_rewrite_specifier)?,
        status: status(&at.field("response_code"), response_code)?,
        strip_query,
    })
}

fn path_redirect(at: &FieldPath<'_>, wire: Option<pb::redirect_action::PathRewriteSpecifier>) -> Parsed<PathRedirect> {
    use pb::redirect_action::PathRewriteSpecifier as Wire;
    Ok(match wire {
        Some(Wire::PathRedirect(path)) if !path.is_empty() => {
            wire::header_value(&at.field("path_redirect"), &path)?;
            PathRedirect::Path(path)
        }
        Some(Wire::PrefixRewrite(prefix)) if !prefix.is_empty() => {
            wire::header_value(&at.field("prefix_rewrite"), &prefix)?;
            PathRedirect::Prefix(prefix)
        }
        None | Some(Wire::PathRedirect(_) | Wire::PrefixRewrite(_)) => PathRedirect::Keep,
        Some(Wire::RegexRewrite(rewrite)) => PathRedirect::Regex(regex_rewrite(&at.field("regex_rewrite"), rewrite)?),
        Some(Wire::PathRewrite(_)) => return Err(at.field("path_rewrite").unsupported()),
    })
}

fn status(at: &FieldPath<'_>, value: i32) -> Parsed<u16> {
    use pb::redirect_action::RedirectResponseCode as Wire;
    Ok(match Wire::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        Wire::MovedPermanently => 301,
        Wire::Found => 302,
        Wire::SeeOther => 303,
        Wire::TemporaryRedirect => 307,
        Wire::PermanentRedirect => 308,
    })
}

/// Reads a direct response.
pub(super) fn direct_response(
    scope: &RouteScope<'_, '_>,
    at: &FieldPath<'_>,
    wire: pb::DirectResponseAction,
) -> Parsed<DirectResponse> {
    decide!(wire, at, pb::DirectResponseAction as "envoy.config.route.v3.DirectResponseAction" {
        implemented: status, body, body_format;
        no_effect: ;
        unsupported: ;
    });
    let status = match u16::try_from(status) {
        Ok(status @ 200..=599) => status,
        _ => return Err(at.field("status").reject(format!("{status} is not within 200 to 599"))),
    };
    let body: Arc<[u8]> = match body {
        None => Arc::default(),
        Some(source) => wire::data_source(scope.context, &at.field("body"), source)?.bytes.into(),
    };
    if body.len() > scope.max_body_bytes {
        return Err(at.field("body").reject(format!(
            "has {} bytes, expected up to {} (max_direct_response_body_size_bytes)",
            body.len(),
            scope.max_body_bytes
        )));
    }
    let body_format = match body_format {
        None => None,
        Some(format) => Some(self::body_format(scope, &at.field("body_format"), format)?),
    };
    Ok(DirectResponse { status, body, body_format })
}

fn body_format(scope: &RouteScope<'_, '_>, at: &FieldPath<'_>, wire: core::SubstitutionFormatString) -> Parsed<Format> {
    let core::SubstitutionFormatString { omit_empty_values, content_type, formatters, json_format_options, format } =
        wire;
    // Only text formats come this far, and they print `-` for what is absent.
    for (field, set) in [
        ("omit_empty_values", omit_empty_values),
        ("content_type", !content_type.is_empty()),
        ("formatters", !formatters.is_empty()),
        ("json_format_options", json_format_options.is_some()),
    ] {
        if set {
            return Err(at.field(field).unsupported());
        }
    }
    use core::substitution_format_string::Format as Wire;
    match format {
        Some(Wire::TextFormat(text)) => {
            Format::parse_with_environment(scope.context.environment(), &at.field("text_format"), &text)
        }
        Some(Wire::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            let text = String::from_utf8(wire::data_source(scope.context, &at, source)?.bytes)
                .map_err(|_| at.reject("is not valid UTF-8"))?;
            Format::parse_with_environment(scope.context.environment(), &at, &text)
        }
        Some(Wire::JsonFormat(_)) => Err(at.field("json_format").unsupported()),
        None => Err(at.reject("needs one of text_format, text_format_source")),
    }
}
