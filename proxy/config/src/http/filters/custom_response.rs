//! The custom response filter (`envoy.extensions.filters.http.custom_response.v3`).
//!
//! Owns which responses are replaced, and by what. Never writes a response.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::custom_response::v3 as pb;
use outrigger_api::pb::envoy::extensions::http::custom_response::local_response_policy::v3 as local;
use outrigger_api::pb::envoy::extensions::http::custom_response::redirect_policy::v3 as redirect;
use outrigger_api::pb::google::protobuf::Any;

use crate::context::Context;
use crate::decide::decide;
use crate::http::HeaderMutations;
use crate::http::header_mutations::header_mutations;
use crate::http::local_replies::{BodyFormat, body_format};
use crate::matcher::{Kinds, Matcher, Place};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.custom_response.v3.CustomResponse`.
#[derive(Clone, Debug)]
pub struct CustomResponse {
    /// Finds what replaces a response; without, nothing does.
    pub matcher: Option<Matcher<Replacement>>,
}

/// What replaces a response.
#[derive(Clone, Debug)]
pub enum Replacement {
    /// An answer of our own.
    Local(Arc<LocalResponse>),
    /// The answer to another request.
    Redirect(Arc<RedirectedResponse>),
}

/// The answer to another request instead of a response.
/// Source: `envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct RedirectedResponse {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Of the other request.
    pub authority: Box<str>,
    /// Of the other request, with its query.
    pub path: Box<str>,
    /// The status of its answer for the client; that of the response unless given.
    pub status: Option<u16>,
    /// Added to the answer.
    pub response_headers: HeaderMutations,
    /// Added to the other request.
    pub request_headers: HeaderMutations,
}

/// An answer of our own instead of a response.
/// Source: `envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalResponse {
    /// Its body; that of a replaced answer of our own unless given, and nothing for other responses.
    pub body: Option<Vec<u8>>,
    /// How the body is written; as it is unless given.
    pub format: Option<BodyFormat>,
    /// Its status; that of the response unless given.
    pub status: Option<u16>,
    /// Added to it.
    pub headers: HeaderMutations,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Details,
}

/// What the log says of the cause of an answer. Source: `LocalResponsePolicy.response_code_details_action`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Details {
    /// Nothing.
    Cleared,
    /// What it said of the response.
    Kept,
    /// This.
    Set(String),
}

impl CustomResponse {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::CustomResponse) -> Parsed<Self> {
        decide!(wire, at, pb::CustomResponse as "envoy.extensions.filters.http.custom_response.v3.CustomResponse" {
            implemented: custom_response_matcher;
            no_effect: ;
            unsupported: ;
        });
        let action =
            |at: &FieldPath<'_>, any: &Any| match wire::type_name(any) {
                LOCAL => LocalResponse::parse(context, at, wire::decode(at, any)?)
                    .map(|read| Replacement::Local(Arc::new(read))),
                REDIRECT => RedirectedResponse::parse(at, wire::decode(at, any)?)
                    .map(|read| Replacement::Redirect(Arc::new(read))),
                _ => Err(at.reject(format!("the action {:?} is not supported", any.type_url))),
            };
        let kinds = Kinds { place: Place::Response, action: &action };
        let at = at.field("custom_response_matcher");
        let matcher = custom_response_matcher.map(|wire| Matcher::parse(context, &at, &kinds, wire)).transpose()?;
        Ok(Self { matcher })
    }
}

impl LocalResponse {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: local::LocalResponsePolicy) -> Parsed<Self> {
        use local::local_response_policy::ResponseCodeDetailsAction;
        decide!(wire, at, local::LocalResponsePolicy
            as "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy" {
            implemented: body, body_format, status_code, response_headers_to_add, response_code_details_action;
            no_effect: ;
            unsupported: ;
        });
        let status = match status_code.map(|status| status.value) {
            None => None,
            Some(status @ 200..=599) => Some(status as u16),
            Some(status) => {
                return Err(at.field("status_code").reject(format!("{status} is not within 200 to 599")));
            }
        };
        let body = body.map(|source| wire::data_source(context, &at.field("body"), source)).transpose()?;
        let format_at = at.field("body_format");
        let headers_at = at.field("response_headers_to_add");
        Ok(Self {
            body: body.map(|data| data.bytes),
            format: body_format.map(|wire| self::body_format(context, &format_at, wire)).transpose()?,
            status,
            headers: header_mutations(&headers_at, response_headers_to_add, at, Vec::new())?,
            details: match response_code_details_action {
                None => Details::Cleared,
                Some(ResponseCodeDetailsAction::PreserveResponseCodeDetails(true)) => Details::Kept,
                Some(ResponseCodeDetailsAction::PreserveResponseCodeDetails(false)) => {
                    return Err(at.field("preserve_response_code_details").reject("must be true if it is set"));
                }
                Some(ResponseCodeDetailsAction::ResponseCodeDetails(details)) if details.is_empty() => {
                    return Err(at.field("response_code_details").reject("must not be empty"));
                }
                Some(ResponseCodeDetailsAction::ResponseCodeDetails(details)) => Details::Set(details),
            },
        })
    }
}

impl RedirectedResponse {
    fn parse(at: &FieldPath<'_>, wire: redirect::RedirectPolicy) -> Parsed<Self> {
        use redirect::redirect_policy::RedirectActionSpecifier;
        decide!(wire, at, redirect::RedirectPolicy
            as "envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy" {
            implemented: redirect_action_specifier, status_code, response_headers_to_add, request_headers_to_add;
            no_effect: ;
            unsupported: modify_request_headers_action;
        });
        let uri_at = at.field("uri");
        let uri = match redirect_action_specifier {
            Some(RedirectActionSpecifier::Uri(uri)) => uri,
            Some(RedirectActionSpecifier::RedirectAction(_)) => return Err(at.field("redirect_action").unsupported()),
            None => return Err(uri_at.reject("is required")),
        };
        let Some((scheme, authority, path)) = parts(&uri) else {
            return Err(uri_at.reject(format!("{uri:?} is not an absolute http or https URL")));
        };
        let status = match status_code.map(|status| status.value) {
            None => None,
            Some(status @ 200..=999) => Some(status as u16),
            Some(status) => {
                return Err(at.field("status_code").reject(format!("{status} is not within 200 to 999")));
            }
        };
        let response_at = at.field("response_headers_to_add");
        let request_at = at.field("request_headers_to_add");
        Ok(Self {
            scheme,
            authority: authority.into(),
            path: path.into(),
            status,
            response_headers: header_mutations(&response_at, response_headers_to_add, at, Vec::new())?,
            request_headers: header_mutations(&request_at, request_headers_to_add, at, Vec::new())?,
        })
    }
}

/// Scheme, authority, and path with query of an absolute URL.
fn parts(uri: &str) -> Option<(&'static str, &str, String)> {
    if !uri.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let (scheme, rest) = uri.split_once("://")?;
    let scheme = ["http", "https"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known))?;
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let slash = if path.starts_with('/') { "" } else { "/" };
    (!authority.is_empty() && !authority.contains('@')).then(|| (scheme, authority, format!("{slash}{path}")))
}

const REDIRECT: &str = "envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy";
const LOCAL: &str = "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy";

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::UInt32Value;

    use super::*;
    use crate::context::NoEnvironment;

    #[test]
    fn other_requests_are_absolute() {
        for (uri, expected) in [
            ("http://a.b:80/c?d#e", Some(("http", "a.b:80", "/c?d"))),
            ("HTTPS://a", Some(("https", "a", "/"))),
            ("http://a?b", Some(("http", "a", "/?b"))),
            ("ftp://a/", None),
            ("http:///a", None),
            ("/a", None),
            ("http://a@b/", None),
            ("http://a/ b", None),
        ] {
            let seen = parts(uri);
            assert_eq!(seen.as_ref().map(|(scheme, authority, path)| (*scheme, *authority, path.as_str())), expected);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        use local::local_response_policy::ResponseCodeDetailsAction as Action;
        let root = FieldPath::resource("listener", "l");
        let read = |wire| LocalResponse::parse(&Context::new(&NoEnvironment), &root, wire).map_err(|e| e.to_string());
        let with = |action| local::LocalResponsePolicy {
            response_code_details_action: Some(action),
            ..local::LocalResponsePolicy::default()
        };
        let status = |value| local::LocalResponsePolicy {
            status_code: Some(UInt32Value { value }),
            ..local::LocalResponsePolicy::default()
        };
        assert_eq!(read(status(599)).unwrap().status, Some(599));
        assert_eq!(read(with(Action::PreserveResponseCodeDetails(true))).unwrap().details, Details::Kept);
        for (wire, expected) in [
            (status(600), "status_code: 600 is not within 200 to 599"),
            (
                with(Action::PreserveResponseCodeDetails(false)),
                "preserve_response_code_details: must be true if it is set",
            ),
            (with(Action::ResponseCodeDetails(String::new())), "response_code_details: must not be empty"),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
