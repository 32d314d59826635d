//! What rules may ask of a connection or a request.
//!
//! Owns the seam through which facts come in. Never decides.

use std::net::{IpAddr, SocketAddr};

use outrigger_config::cel::Expression;
use outrigger_config::matcher::Input;
use outrigger_config::matching::lookup;
use outrigger_config::rbac::MetadataSource;
use outrigger_config::tls::SanMatcher;
use serde_json::{Map, Value};

use crate::matcher::{Given, Inputs};
use crate::rate_limit::parameter;
use crate::route::RequestView;

/// Looks at a namespace of metadata, and answers a question about it.
pub type LookAt<'a> = dyn FnMut(Option<&Map<String, Value>>) -> bool + 'a;

/// The facts of a connection, and of a request if there is one.
pub trait Facts {
    /// How a request is seen; [`NoRequest`] for connections.
    type Request: RequestView;
    /// The request.
    fn request(&self) -> Option<&Self::Request>;
    /// Where the connection was made to; `None` on pipes.
    fn destination(&self) -> Option<SocketAddr>;
    /// The client, after a PROXY protocol header; `None` on pipes.
    fn source(&self) -> Option<SocketAddr>;
    /// The peer of the socket; `None` on pipes.
    fn direct_remote(&self) -> Option<IpAddr>;
    /// The client, after a PROXY protocol header and `x-forwarded-for`; `None` on pipes.
    fn remote(&self) -> Option<IpAddr>;
    /// SNI in lower case; empty if there was none.
    fn server_name(&self) -> &str;
    /// What TLS showed of the peer; `None` on a plain connection.
    fn peer(&self) -> Option<Peer<'_>>;
    /// Whether a certificate of the peer has a name that `matcher` takes.
    fn has_name(&self, matcher: &SanMatcher) -> bool;
    /// Asks `look` about a namespace of metadata, which is `None` if there is no such namespace. False, without asking,
    /// if there is no route that metadata could come from.
    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut LookAt<'_>) -> bool;
    /// Whether an expression is true of it; one without a value is not.
    fn holds(&self, condition: &Expression) -> bool;
    /// `tls` or `raw_buffer`, where a filter chain is still to be chosen.
    fn transport_protocol(&self) -> Option<&str> {
        None
    }
    /// What ALPN offered, or a listener filter found, where a filter chain is still to be chosen.
    fn application_protocols(&self) -> &[String] {
        &[]
    }
    /// Asks `look` about an object of the filter state.
    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool;
}

/// What TLS showed of the peer. All names are empty if it sent no certificate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer<'a> {
    /// URI names of the certificate.
    pub uri_names: &'a [String],
    /// DNS names of the certificate.
    pub dns_names: &'a [String],
    /// RFC 2253 subject of the certificate.
    pub subject: &'a str,
    /// It sent a certificate that was verified.
    pub verified: bool,
}

/// The request of a connection, of which there is none.
#[derive(Clone, Copy, Debug)]
pub enum NoRequest {}

impl RequestView for NoRequest {
    fn host(&self) -> &str {
        match *self {}
    }

    fn path(&self) -> &str {
        match *self {}
    }

    fn method(&self) -> &str {
        match *self {}
    }

    fn header<'a>(&'a self, _name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::empty()
    }

    fn is_grpc(&self) -> bool {
        match *self {}
    }
}

/// Facts as the inputs of a match tree.
pub struct InputsOf<'a, F>(pub &'a F);

impl<F: Facts> Inputs for InputsOf<'_, F> {
    fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>)) {
        let facts = self.0;
        let ip = |address: Option<IpAddr>| address.map_or(Given::Absent, Given::Ip);
        let port = |address: Option<SocketAddr>| address.map_or(Given::Absent, |address| Given::Port(address.port()));
        match input {
            Input::DestinationIp => look(ip(facts.destination().map(|address| address.ip()))),
            Input::DestinationPort => look(port(facts.destination())),
            Input::SourceIp => look(ip(facts.remote())),
            Input::SourcePort => look(port(facts.source())),
            Input::DirectSourceIp => look(ip(facts.direct_remote())),
            Input::ServerName => look(text(facts.server_name())),
            Input::SourceType => {
                let ends = (facts.source(), facts.destination());
                let local = is_local(ends.0.map(|source| source.ip()), ends.1.map(|own| own.ip()));
                look(if local { Given::Text(b"local") } else { Given::Absent });
            }
            Input::TransportProtocol => look(facts.transport_protocol().map_or(Given::Unknown, text)),
            Input::ApplicationProtocols => match facts.application_protocols() {
                [] => look(Given::Absent),
                protocols => look(Given::Text(format!("'{}'", protocols.join("','")).as_bytes())),
            },
            Input::Attributes => look(Given::Absent),
            Input::UriSan => look_joined(facts.peer().map(|peer| peer.uri_names), look),
            Input::DnsSan => look_joined(facts.peer().map(|peer| peer.dns_names), look),
            Input::Subject => look(facts.peer().map_or(Given::Unknown, |peer| text(peer.subject))),
            Input::FilterState { key } => {
                facts.filter_state(key, &mut |object| {
                    look(object.map_or(Given::Absent, |object| Given::Text(object.as_bytes())));
                    true
                });
            }
            Input::DynamicMetadata { filter, path } => {
                facts.metadata(MetadataSource::Dynamic, filter, &mut |namespace| {
                    look(lookup(namespace, path).map_or(Given::Absent, Given::Value));
                    true
                });
            }
            Input::RequestHeader { name } => match facts.request() {
                Some(request) => look_header(request, name, look),
                None => look(Given::Unknown),
            },
            Input::QueryParameter { name } => match facts.request() {
                Some(request) => match parameter(request.path(), name) {
                    Some(value) => look(Given::Text(value.as_bytes())),
                    None => look(Given::Absent),
                },
                None => look(Given::Unknown),
            },
            // Nothing has been answered yet.
            Input::ResponseStatus | Input::ResponseStatusClass | Input::ResponseHeader { .. } => look(Given::Unknown),
            // There is no endpoint yet.
            Input::EndpointMetadata { .. } | Input::LocalityMetadata { .. } => look(Given::Unknown),
        }
    }

    fn holds(&self, expression: &Expression) -> bool {
        self.0.holds(expression)
    }
}

/// The client is on this machine. Who comes without an address is.
pub(crate) fn is_local(source: Option<IpAddr>, destination: Option<IpAddr>) -> bool {
    let Some(source) = source.map(|source| source.to_canonical()) else { return true };
    source.is_loopback() || destination.is_some_and(|destination| destination.to_canonical() == source)
}

fn text(text: &str) -> Given<'_> {
    if text.is_empty() { Given::Absent } else { Given::Text(text.as_bytes()) }
}

fn look_joined(names: Option<&[String]>, look: &mut dyn FnMut(Given<'_>)) {
    match names {
        None => look(Given::Unknown),
        Some([]) => look(Given::Absent),
        Some([only]) => look(Given::Text(only.as_bytes())),
        Some(names) => look(Given::Text(names.join(",").as_bytes())),
    }
}

fn look_header(request: &impl RequestView, name: &str, look: &mut dyn FnMut(Given<'_>)) {
    match name {
        ":method" => look(text(request.method())),
        ":path" => look(text(request.path())),
        ":authority" | "host" => look(text(request.host())),
        name => {
            let mut values = request.header(name);
            match (values.next(), values.next()) {
                (None, _) => look(Given::Absent),
                (Some(only), None) => look(Given::Text(only)),
                (Some(first), Some(second)) => {
                    let all: Vec<&[u8]> = [first, second].into_iter().chain(values).collect();
                    look(Given::Text(&all.join(&b","[..])));
                }
            }
        }
    }
}
