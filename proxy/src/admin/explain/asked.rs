//! The request that is asked about.
//!
//! Owns the parameters that describe it, and how matching code sees it. Never matches anything.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use outrigger_config::address::Address;
use outrigger_config::cel::Expression;
use outrigger_config::matcher::Matcher;
use outrigger_config::rbac::MetadataSource;
use outrigger_config::route::StreamMatch;
use outrigger_config::tls::SanMatcher;
use outrigger_policy::matcher;
use outrigger_policy::rbac::{Facts, InputsOf, LookAt, Peer};
use outrigger_policy::route::RequestView;

use super::super::request::Request;
use super::super::tree::{Tree, tree};
use crate::accesslog::{self, attributes};
use crate::graph::ListenerNode;
use crate::http::message::{RequestHead, Version};
use crate::http::token::is_token;
use crate::network::ConnectionFacts;
use crate::stream::{ConnectionInfo, StreamInfo, TlsInfo, WallClock};
use crate::worker::random::Random;

/// What may be said of a request.
const PARAMETERS: &str = "method, host, path, header (Name:value, as often as needed), scheme (http or https), listener, \
     destination (address:port), source (address or address:port), sni, alpn (as often as needed), random, format";

/// A described request.
pub(super) struct Asked {
    pub method: String,
    pub host: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub listener: Option<String>,
    pub destination: Option<SocketAddr>,
    pub source: SocketAddr,
    /// It comes by TLS.
    pub secure: bool,
    /// Lower case.
    pub server_name: Option<String>,
    pub protocols: Vec<String>,
    /// Decides about shares of requests.
    pub random: u64,
}

impl Asked {
    /// Reads the parameters of a request to the admin port.
    pub(super) fn read(request: &Request) -> Result<Self, String> {
        let known = |name: &str| PARAMETERS.split([',', ' ']).any(|known| known == name);
        if let Some((name, _)) = request.parameters.iter().find(|(name, _)| !known(name)) {
            return Err(format!("there is no parameter {name:?}; these may be given: {PARAMETERS}"));
        }
        let text = |name: &str| request.parameter(name).map(str::to_owned);
        let method = text("method").unwrap_or_else(|| "GET".to_owned());
        if !method.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("method {method:?} is not a word"));
        }
        let path = text("path").unwrap_or_else(|| if method == "CONNECT" { String::new() } else { "/".to_owned() });
        if !path.is_empty() && !path.starts_with('/') && path != "*" {
            return Err(format!("path {path:?} does not begin with a slash"));
        }
        let server_name = text("sni").map(|name| name.to_ascii_lowercase());
        let protocols: Vec<String> = all(request, "alpn").flat_map(|list| list.split(',')).map(str::to_owned).collect();
        let secure = match request.parameter("scheme") {
            None => server_name.is_some() || !protocols.is_empty(),
            Some("https") => true,
            Some("http") if server_name.is_some() || !protocols.is_empty() => {
                return Err("sni and alpn are sent by TLS, so the scheme is https".to_owned());
            }
            Some("http") => false,
            Some(other) => return Err(format!("scheme {other:?} is neither http nor https")),
        };
        Ok(Self {
            method,
            // A client that speaks TLS asks for the host that it wants to reach.
            host: text("host").or_else(|| server_name.clone()).unwrap_or_default(),
            path,
            headers: all(request, "header").map(header).collect::<Result<_, _>>()?,
            listener: text("listener"),
            destination: request.parameter("destination").map(|text| address("destination", text)).transpose()?,
            source: request.parameter("source").map_or(Ok((Ipv4Addr::LOCALHOST, 0).into()), source)?,
            secure,
            server_name,
            protocols,
            random: match request.parameter("random") {
                None => Random::new().next(),
                Some(text) => text.parse().map_err(|_| format!("random {text:?} is no whole number"))?,
            },
        })
    }

    pub(super) fn shown(&self) -> Tree {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        tree! {
            "method": &*self.method,
            "host": &*self.host,
            "path": &*self.path,
            "headers": if self.headers.is_empty() { Tree::Nothing } else { Tree::list(headers) },
            "scheme": if self.secure { "https" } else { "http" },
            "sni": self.server_name.as_deref(),
            "alpn": if self.protocols.is_empty() { Tree::Nothing } else { Tree::list(self.protocols.iter().map(|p| &**p)) },
            "source": self.source.to_string(),
            "random": self.random.to_string(),
        }
    }

    /// The connection that it would come on; `secure` if the filter chain ends TLS.
    pub(super) fn connection(&self, listener: &ListenerNode, chain: &str, secure: bool) -> ConnectionInfo {
        let local = self.destination.map(Address::Ip);
        let first = || listener.config.addresses.first().map(|address| address.address.clone());
        let tls = secure.then(|| TlsInfo {
            alpn: self.protocols.first().map(|protocol| protocol.clone().into_bytes()),
            sni: self.server_name.as_deref().map(Into::into),
            ..TlsInfo::default()
        });
        ConnectionInfo {
            id: 0,
            start: Instant::now(),
            listener: listener.config.name.clone(),
            local: local.or_else(first).unwrap_or(Address::Ip((Ipv4Addr::UNSPECIFIED, 0).into())),
            remote: Address::Ip(self.source),
            direct_remote: Address::Ip(self.source),
            server_name: self.server_name.clone(),
            application_protocols: self.protocols.clone(),
            filter_chain: chain.into(),
            tls,
            local_restored: self.destination.is_some(),
            proxy_tlvs: None,
            outgoing_tlvs: Default::default(),
            socket_local: None,
            tls_fingerprints: Default::default(),
            dynamic_metadata: RefCell::default(),
            filter_state: RefCell::default(),
            peer_words: Default::default(),
        }
    }

    /// Its head as it would arrive.
    pub(super) fn head(&self) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_method(self.method.as_bytes());
        head.set_authority(self.host.as_bytes());
        head.set_path(self.path.as_bytes());
        for (name, value) in &self.headers {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }
}

fn all<'a>(request: &'a Request, name: &'a str) -> impl Iterator<Item = &'a str> {
    let named = request.parameters.iter().filter(move |(parameter, _)| parameter == name);
    named.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("header {text:?} is not Name:value"))?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
    if !is_token(name.as_bytes()) {
        return Err(format!("header {text:?} has no valid name; host, path and method have parameters of their own"));
    }
    if name == "host" {
        return Err("the host header is the parameter host".to_owned());
    }
    if value.contains(char::is_control) {
        return Err(format!("header {name:?} has a control character in its value"));
    }
    Ok((name, value))
}

fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{name} {text:?} is not an address with a port, such as 10.0.0.1:80 or [::1]:80"))
}

fn source(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok((ip, 0).into()),
        Err(_) => address("source", text),
    }
}

/// A request that nobody has sent, as route tables and match trees see it.
pub(super) struct Described<'a> {
    pub head: &'a RequestHead,
    pub connection: &'a ConnectionInfo,
}

impl RequestView for Described<'_> {
    fn host(&self) -> &str {
        RequestView::host(self.head)
    }

    fn path(&self) -> &str {
        RequestView::path(self.head)
    }

    fn method(&self) -> &str {
        RequestView::method(self.head)
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        RequestView::header(self.head, name)
    }

    fn is_grpc(&self) -> bool {
        RequestView::is_grpc(self.head)
    }

    fn stream_matches(&self, wanted: &StreamMatch) -> bool {
        // It shows no certificate, and no filter has left anything.
        wanted.presented != Some(true)
            && wanted.validated != Some(true)
            && wanted.metadata.iter().all(|matcher| matcher.matches(None))
            && wanted
                .filter_state
                .iter()
                .all(|wanted| Facts::filter_state(self, &wanted.key, &mut |object| wanted.matches(object)))
    }

    fn find<'t, A>(&self, tree: &'t Matcher<A>) -> Option<&'t A> {
        matcher::find(tree, &InputsOf(self)).ok().flatten()
    }
}

impl Facts for Described<'_> {
    type Request = RequestHead;

    fn request(&self) -> Option<&RequestHead> {
        Some(self.head)
    }

    fn destination(&self) -> Option<SocketAddr> {
        ConnectionFacts(self.connection).destination()
    }

    fn source(&self) -> Option<SocketAddr> {
        ConnectionFacts(self.connection).source()
    }

    fn direct_remote(&self) -> Option<IpAddr> {
        self.connection.direct_remote.ip()
    }

    fn remote(&self) -> Option<IpAddr> {
        self.connection.remote.ip()
    }

    fn server_name(&self) -> &str {
        self.connection.server_name.as_deref().unwrap_or_default()
    }

    fn peer(&self) -> Option<Peer<'_>> {
        // It comes without a certificate.
        self.connection.tls.is_some().then(Peer::default)
    }

    fn has_name(&self, matcher: &SanMatcher) -> bool {
        ConnectionFacts(self.connection).has_name(matcher)
    }

    fn metadata(&self, source: MetadataSource, _namespace: &str, look: &mut LookAt<'_>) -> bool {
        match source {
            MetadataSource::Dynamic => look(None),
            MetadataSource::Route => false,
        }
    }

    fn holds(&self, condition: &Expression) -> bool {
        let now = Instant::now();
        let (info, clock) = (StreamInfo::new(now, Some(Version::Http11)), WallClock::new());
        let mut facts = accesslog::Facts::new(&info, self.connection, &clock, now);
        facts.request = Some(self.head);
        attributes::holds(condition, &facts)
    }

    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool {
        ConnectionFacts(self.connection).filter_state(key, look)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn read(query: &str) -> Result<Asked, String> {
        Asked::read(&Request::new(Method::GET, &format!("/explain?{query}"), b""))
    }

    #[test]
    fn what_is_not_said_is_what_is_usual() {
        let asked = read("host=a&header=X-A:%201&header=x-b:2:3&random=7").unwrap();
        assert_eq!((asked.method.as_str(), asked.path.as_str(), asked.secure), ("GET", "/", false));
        assert_eq!(asked.headers, [("x-a".into(), "1".into()), ("x-b".to_string(), "2:3".to_string())]);
        assert_eq!(asked.random, 7);
        let asked = read("sni=A.Example&alpn=h2,http/1.1").unwrap();
        assert_eq!((asked.host.as_str(), asked.secure, asked.protocols.len()), ("a.example", true, 2));
        assert_eq!(read("method=CONNECT&host=a:1").unwrap().path, "");
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (query, reason) in [
            ("methd=GET", "there is no parameter \"methd\""),
            ("path=x", "path \"x\" does not begin with a slash"),
            ("header=x", "header \"x\" is not Name:value"),
            ("header=:path:/", "has no valid name"),
            ("header=Host:a", "the host header is the parameter host"),
            ("destination=10.0.0.1", "destination \"10.0.0.1\" is not an address with a port"),
            ("source=here", "source \"here\""),
            ("scheme=ftp", "neither http nor https"),
            ("scheme=http&sni=a", "so the scheme is https"),
            ("random=x", "no whole number"),
        ] {
            let error = read(query).err().unwrap_or_else(|| panic!("{query} is taken"));
            assert!(error.contains(reason), "{query}: {error}");
        }
    }
}
