//! What a processing service is told of requests and responses.
//!
//! Owns the messages: heads, attributes and metadata. Never sends them.

use std::collections::HashMap;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::google::protobuf::{Struct, Value, value::Kind};
use outrigger_config::address::Address;
use outrigger_config::cel::Expression;
use outrigger_config::http::filters::{Attribute, HeaderChoice, MetadataChoice, WantedAttribute};
use outrigger_config::matching::StringMatcher;
use outrigger_policy::cel::{Value as CelValue, evaluate};

use crate::accesslog::attributes::write_text;
use crate::accesslog::entry;
use crate::http::filter::Exchange;
use crate::http::filter::ext_authz::question::each_header;
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::{RequestHead, ResponseHead};

/// The head of a request.
pub(super) fn request(head: &RequestHead, choice: &HeaderChoice) -> core::HeaderMap {
    let mut headers = Vec::with_capacity(head.headers.len() + 4);
    each_header(head, |name, value| tell(choice, name, value, &mut headers));
    core::HeaderMap { headers }
}

/// The head of a response.
pub(super) fn response(head: &ResponseHead, choice: &HeaderChoice) -> core::HeaderMap {
    let mut headers = Vec::with_capacity(head.headers.len() + 1);
    tell(choice, ":status", head.status.to_string().as_bytes(), &mut headers);
    add(&head.headers, choice, &mut headers);
    core::HeaderMap { headers }
}

/// Trailers.
pub(super) fn trailers(trailers: &Headers, choice: &HeaderChoice) -> core::HeaderMap {
    let mut headers = Vec::with_capacity(trailers.len());
    add(trailers, choice, &mut headers);
    core::HeaderMap { headers }
}

fn add(from: &Headers, choice: &HeaderChoice, headers: &mut Vec<core::HeaderValue>) {
    for (_, name, value) in from.iter() {
        if let Ok(name) = std::str::from_utf8(name) {
            tell(choice, name, value, headers);
        }
    }
}

fn tell(choice: &HeaderChoice, name: &str, value: &[u8], headers: &mut Vec<core::HeaderValue>) {
    let matches = |list: &[StringMatcher]| list.iter().any(|matcher| matcher.matches(name.as_bytes()));
    if choice.allowed.as_ref().is_none_or(|list| matches(list)) && !matches(&choice.disallowed) {
        headers.push(core::HeaderValue { key: name.to_owned(), value: String::new(), raw_value: value.to_vec() });
    }
}

/// The metadata of the request, and of its connection, that the service is told.
pub(super) fn metadata(exchange: &Exchange<'_, '_, '_>, choice: &MetadataChoice) -> core::Metadata {
    if choice.told.is_empty() {
        return core::Metadata::default();
    }
    let of_request = exchange.info().dynamic_metadata.borrow();
    let of_connection = exchange.connection().info.dynamic_metadata.borrow();
    let find = |name: &String| of_request.get(name).or_else(|| of_connection.get(name)).map(entry::object);
    let found = choice.told.iter().filter_map(|name| Some((name.clone(), find(name)?)));
    core::Metadata { filter_metadata: found.collect(), typed_filter_metadata: HashMap::new() }
}

/// The attributes that are known by now; `None` if none are wanted.
pub(super) fn attributes(exchange: &Exchange<'_, '_, '_>, wanted: &[WantedAttribute]) -> Option<Struct> {
    if wanted.is_empty() {
        return None;
    }
    let known = wanted.iter().filter_map(|wanted| match wanted {
        WantedAttribute::Known(attribute) => Some((attribute.name().to_owned(), value(exchange, *attribute)?)),
        WantedAttribute::Expression(text, expression) => Some((text.to_string(), evaluated(exchange, expression)?)),
    });
    Some(Struct { fields: known.map(|(name, kind)| (name, Value { kind: Some(kind) })).collect() })
}

/// The value of an expression: truth and whole numbers as what they are, all else as text, as Envoy tells them.
fn evaluated(exchange: &Exchange<'_, '_, '_>, expression: &Expression) -> Option<Kind> {
    let facts = exchange.stream().facts();
    let value = evaluate(expression, &facts).ok()?;
    let mut text = Vec::new();
    match &value {
        CelValue::Bool(flag) => return Some(Kind::BoolValue(*flag)),
        CelValue::Int(number) => return Some(Kind::NumberValue(*number as f64)),
        CelValue::Uint(number) => return Some(Kind::NumberValue(*number as f64)),
        // As of any other map.
        CelValue::Object(_) => text.extend_from_slice(b"CelMap value"),
        value => {
            write_text(value, &mut text);
        }
    }
    (!text.is_empty()).then(|| Kind::StringValue(String::from_utf8_lossy(&text).into_owned()))
}

/// As CEL prints it; `None` for what there is not.
fn value(exchange: &Exchange<'_, '_, '_>, attribute: Attribute) -> Option<Kind> {
    let head = exchange.head();
    let connection = &exchange.connection().info;
    let tls = connection.tls.as_ref();
    let peer = tls.and_then(|tls| tls.peer.as_deref());
    let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
    let header = |id| head.headers.get_str(id).and_then(text);
    let number = |number: f64| Some(Kind::NumberValue(number));
    let port = |address: &Address| match address {
        Address::Ip(socket) => number(f64::from(socket.port())),
        _ => None,
    };
    let chosen = exchange.chosen();
    let upstream = exchange.info().upstream_host.borrow();
    let upstream = upstream.as_ref().map(|host| &host.address);
    match attribute {
        Attribute::RequestPath => text(head.path_str()),
        Attribute::RequestUrlPath => text(head.path_str().split(['?', '#']).next().unwrap_or_default()),
        Attribute::RequestQuery => text(head.path_str().split_once('?').map_or("", |(_, query)| query)),
        Attribute::RequestHost => text(head.authority_str()),
        Attribute::RequestScheme => text(head.scheme_str()),
        Attribute::RequestMethod => text(head.method_str()),
        Attribute::RequestReferer => {
            head.headers.get_by_name("referer").and_then(|value| text(std::str::from_utf8(value).ok()?))
        }
        Attribute::RequestUserAgent => header(HeaderId::UserAgent),
        Attribute::RequestId => header(HeaderId::XRequestId),
        Attribute::RequestProtocol => text(head.version.as_str()),
        Attribute::ResponseCode => match exchange.response().status {
            0 => None,
            status => number(f64::from(status)),
        },
        Attribute::SourceAddress => text(&connection.remote.to_string()),
        Attribute::SourcePort => port(&connection.remote),
        Attribute::DestinationAddress => text(&connection.local.to_string()),
        Attribute::DestinationPort => port(&connection.local),
        // Numbers of 64 bits are floating point on their way.
        Attribute::ConnectionId => number(connection.id as f64),
        Attribute::ConnectionMtls => Some(Kind::BoolValue(peer.is_some())),
        Attribute::ConnectionServerName => connection.server_name.as_deref().and_then(text),
        Attribute::ConnectionTlsVersion => text(tls?.version),
        Attribute::ConnectionPeerSubject => text(&peer?.subject),
        Attribute::ConnectionPeerUri => text(peer?.uri_sans.first()?),
        Attribute::ConnectionPeerDns => text(peer?.dns_sans.first()?),
        Attribute::UpstreamAddress => text(&upstream?.to_string()),
        Attribute::UpstreamPort => port(upstream?),
        Attribute::ClusterName => text(&exchange.cluster_name()?),
        Attribute::RouteName => text(&chosen?.route.name),
        Attribute::VirtualHostName => text(&chosen?.virtual_host.name),
        Attribute::FilterChainName => text(&connection.filter_chain),
    }
}
