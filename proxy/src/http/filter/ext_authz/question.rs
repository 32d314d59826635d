//! What an authorization service is told of a request.
//!
//! Owns the attributes of a check, and the request that an HTTP server gets instead. Never sends anything.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use outrigger_api::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use outrigger_api::pb::google::protobuf::Timestamp;
use outrigger_config::format::Format;
use outrigger_config::http::filters::{AuthzPath, ExtAuthz as Settings, HeaderChoice, HttpAuthz};
use outrigger_config::matching::StringMatcher;

use super::changes::is_of_one_hop;
use crate::accesslog::{entry, format};
use crate::authz;
use crate::http::filter::Exchange;
use crate::http::h1::encode::decimal;
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::mutate::{self, Mutable};
use crate::http::manager::request::Request as ServedRequest;
use crate::http::message::{RequestHead, Version};
use crate::upstream::call::{self, Call};

/// What is told besides the head.
pub(super) struct Told<'a> {
    pub settings: &'a Settings,
    /// Of the route.
    pub extensions: BTreeMap<String, String>,
    /// The body, or its beginning, if it is told.
    pub body: Option<&'a [u8]>,
    /// Bytes of the body that are there; more than are told if it is told in part.
    pub received: usize,
    /// Told as bytes.
    pub as_bytes: bool,
}

impl Told<'_> {
    fn is_partial(&self) -> bool {
        self.body.is_some_and(|body| body.len() < self.received)
    }
}

/// The message for a gRPC service.
pub(super) fn check_request(exchange: &Exchange<'_, '_, '_>, told: Told<'_>) -> CheckRequest {
    let settings = told.settings;
    let info = &exchange.connection().info;
    let service = exchange.head().headers.get(HeaderId::XEnvoyDownstreamServiceCluster).unwrap_or_default();
    let source = Peer { service: utf8(service), ..authz::source(info, settings.tells_certificate) };
    let start = exchange.worker().process.clock.at(exchange.info().start);
    let since_1970 = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since_1970.subsec_nanos()).unwrap_or_default(),
    };
    let route = exchange.chosen().and_then(|chosen| chosen.route.metadata.as_ref());
    let route_metadata = |name: &str| Some(entry::object(route?.get(name)?));
    let attributes = AttributeContext {
        source: Some(source),
        destination: Some(authz::destination(
            info,
            authz::labels(&exchange.worker().process.node_metadata, &settings.labels_key),
        )),
        request: Some(Request { time: Some(time), http: Some(http_request(exchange, &told)) }),
        metadata_context: Some(authz::metadata(&settings.metadata_namespaces, |name| {
            let of_request = exchange.info().dynamic_metadata.borrow();
            let of_connection = info.dynamic_metadata.borrow();
            of_request.get(name).or_else(|| of_connection.get(name)).map(entry::object)
        })),
        route_metadata_context: Some(authz::metadata(&settings.route_metadata_namespaces, route_metadata)),
        tls_session: authz::tls_session(info, settings.tells_tls_session),
        context_extensions: told.extensions.into_iter().collect(),
    };
    CheckRequest { attributes: Some(attributes) }
}

fn http_request(exchange: &Exchange<'_, '_, '_>, told: &Told<'_>) -> HttpRequest {
    let head = exchange.head();
    let Told { settings, extensions: _, body, received, as_bytes } = told;
    let partial = told.is_partial();
    let mut request = HttpRequest {
        id: exchange.worker().random.next().to_string(),
        method: head.method_str().to_owned(),
        path: head.path_str().to_owned(),
        host: head.authority_str().to_owned(),
        scheme: head.scheme_str().to_owned(),
        size: i64::try_from(*received).unwrap_or(i64::MAX),
        protocol: head.version.as_str().to_owned(),
        ..HttpRequest::default()
    };
    let tells = |name: &str| is_told(&settings.headers, None, name);
    if settings.raw_headers {
        let header = |name: &str, value: &[u8]| core::HeaderValue {
            key: name.to_owned(),
            value: String::new(),
            raw_value: value.to_vec(),
        };
        let mut headers = Vec::new();
        each_header(head, |name, value| {
            if tells(name) {
                headers.push(header(name, value));
            }
        });
        headers.extend(body.map(|_| header(PARTIAL_BODY, partial_text(partial).as_bytes())));
        request.header_map = Some(core::HeaderMap { headers });
    } else {
        request.headers = joined(head, tells).into_iter().collect();
        if body.is_some() {
            request.headers.insert(PARTIAL_BODY.to_owned(), partial_text(partial).to_owned());
        }
    }
    match body {
        Some(body) if *as_bytes => request.raw_body = body.to_vec(),
        Some(body) => request.body = utf8(body),
        None => {}
    }
    request
}

/// The request for an HTTP server.
pub(super) fn http_call(exchange: &Exchange<'_, '_, '_>, service: &HttpAuthz, told: Told<'_>) -> Call {
    let partial = told.is_partial();
    let Told { settings, extensions: _, body, received: _, as_bytes: _ } = told;
    let original = exchange.head();
    let body = body.unwrap_or_default();
    let mut head = RequestHead::default();
    head.set_method(original.method());
    head.set_authority(original.authority());
    head.set_scheme(b"http");
    match &service.path {
        AuthzPath::Fixed(path) => head.set_path(path.as_bytes()),
        AuthzPath::Prefix(prefix) if prefix.is_empty() => head.set_path(original.path()),
        AuthzPath::Prefix(prefix) => head.set_path(&[prefix.as_bytes(), original.path()].concat()),
    }
    head.headers.append_id(HeaderId::ContentLength, decimal(body.len() as u64, &mut [0; 20]));
    // Of the two lists, one may be given.
    let tells = |name: &str| {
        !name.starts_with(':')
            && !is_of_one_hop(name)
            && is_told(&settings.headers, Some(&service.allowed_headers), name)
    };
    if settings.raw_headers {
        each_header(original, |name, value| {
            if tells(name) {
                head.headers.append(name.as_bytes(), value);
            }
        });
    } else {
        for (name, value) in joined(original, tells) {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
    }
    if told.body.is_some() {
        head.headers.append(PARTIAL_BODY.as_bytes(), partial_text(partial).as_bytes());
    }
    let mut asked = Asked { headers: &mut head.headers, request: exchange.stream() };
    for addition in &service.headers_to_add {
        mutate::add(addition, &mut asked);
    }
    Call {
        head,
        body: body.to_vec(),
        framing: Framing::Length(body.len() as u64),
        timeout: service.timeout,
        repeatable: true,
        max_answer_bytes: call::MAX_ANSWER_BYTES,
        seen: None,
    }
}

/// The headers of a question, with values that may come from the request.
struct Asked<'a, 'r> {
    headers: &'a mut Headers,
    request: &'a ServedRequest<'r>,
}

impl Mutable for Asked<'_, '_> {
    fn headers(&mut self) -> &mut Headers {
        self.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        format::write_header(format, &self.request.facts(), value);
    }
}

/// Whether a header is told. An HTTP server, which has a list of `its` own, is told no more than the lists say.
fn is_told(choice: &HeaderChoice, its: Option<&[StringMatcher]>, name: &str) -> bool {
    let matches = |list: &[StringMatcher]| list.iter().any(|matcher| matcher.matches(name.as_bytes()));
    let allowed = match (its, &choice.allowed) {
        (None, None) => true,
        (None, Some(list)) => matches(list),
        (Some(its), list) => name == "authorization" || matches(its) || list.as_ref().is_some_and(|list| matches(list)),
    };
    // What is said of our own body comes from us alone.
    allowed && name != PARTIAL_BODY && !matches(&choice.disallowed)
}

/// All headers, those with a colon first.
pub(in crate::http::filter) fn each_header(head: &RequestHead, mut tell: impl FnMut(&str, &[u8])) {
    for (name, value) in [
        (":authority", head.authority()),
        (":path", head.path()),
        (":method", head.method()),
        (":scheme", head.scheme()),
    ] {
        if !value.is_empty() {
            tell(name, value);
        }
    }
    if !head.protocol().is_empty() {
        match head.version {
            Version::Http2 => tell(":protocol", head.protocol()),
            Version::Http10 | Version::Http11 => {
                tell("connection", b"Upgrade");
                tell("upgrade", head.protocol());
            }
        }
    }
    for (_, name, value) in head.headers.iter() {
        if let Ok(name) = std::str::from_utf8(name) {
            tell(name, value);
        }
    }
}

/// Headers by name, with values joined as text.
fn joined(head: &RequestHead, tells: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    each_header(head, |name, value| {
        if tells(name) {
            let value = utf8(value);
            all.entry(name.to_owned())
                .and_modify(|known| {
                    known.push(',');
                    known.push_str(&value);
                })
                .or_insert(value);
        }
    });
    all
}

/// Text with `!` in the place of each byte that is not part of any.
fn utf8(bytes: &[u8]) -> String {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(_) => {
            let mut text = String::with_capacity(bytes.len());
            for chunk in bytes.utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|_| '!'));
            }
            text
        }
    }
}

fn partial_text(partial: bool) -> &'static str {
    if partial { "true" } else { "false" }
}

/// Says whether the body that is told is a part.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(value: &str) -> StringMatcher {
        StringMatcher::Exact { value: value.into(), ignore_case: false }
    }

    fn head() -> RequestHead {
        let mut head = RequestHead::default();
        head.set_method(b"GET");
        head.set_path(b"/p?q");
        head.set_authority(b"a.example");
        for (name, value) in [("x-a", &b"1"[..]), ("x-a", b"\xff2"), (PARTIAL_BODY, b"false"), ("authorization", b"t")]
        {
            head.headers.append(name.as_bytes(), value);
        }
        head
    }

    #[test]
    fn headers_are_told_by_name_as_text() {
        let all = joined(&head(), |name| is_told(&HeaderChoice::default(), None, name));
        let expected = [
            (":authority", "a.example"),
            (":method", "GET"),
            (":path", "/p?q"),
            ("authorization", "t"),
            ("x-a", "1,!2"),
        ];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn an_http_server_is_told_what_the_lists_say() {
        let choice = HeaderChoice { allowed: None, disallowed: vec![exact("x-b")] };
        for (name, grpc, http) in [
            ("authorization", true, true),
            ("x-a", true, true),
            ("x-b", false, false),
            ("x-c", true, false),
            (PARTIAL_BODY, false, false),
        ] {
            assert_eq!(is_told(&choice, None, name), grpc, "{name}");
            assert_eq!(is_told(&choice, Some(&[exact("x-a"), exact("x-b")]), name), http, "{name}");
        }
        let only = HeaderChoice { allowed: Some(vec![exact("x-c")]), disallowed: Vec::new() };
        assert!(is_told(&only, None, "x-c") && !is_told(&only, None, "authorization"));
        assert!(is_told(&only, Some(&[]), "x-c") && is_told(&only, Some(&[]), "authorization"));
    }
}
