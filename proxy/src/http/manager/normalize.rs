//! What is done to every request head before it is routed.
//!
//! Owns the rules for paths, hosts, and the headers by which proxies tell each other about a request: which are trusted,
//! which are made, which are removed. Never routes.

use outrigger_config::address::Address;
use outrigger_config::http::{EscapedSlashes, HttpConnectionManager, StripPort, UnderscoreAction};
use outrigger_config::matching::StringMatcher;

use super::HttpConnection;
use super::client_address::{self, Client};
use super::path;
use super::reply::{LocalReply, append_via, remove_hop_by_hop};
use crate::http::h1::parse::Framing;
use crate::http::headers::HeaderId;
use crate::http::message::{RequestHead, Version};
use crate::stream::{ConnectionInfo, ResponseFlag, StreamInfo};

/// Makes a request head fit to be routed. `Err` is the answer to one that is not.
pub fn prepare(connection: &HttpConnection, head: &mut RequestHead, info: &StreamInfo) -> Result<(), LocalReply> {
    let config = &connection.node.config;
    check(config, head)?;
    let upgrade = take_upgrade(head, &config.http1.ignored_upgrades);
    if !config.proxy_100_continue {
        // Answered here.
        head.headers.remove(HeaderId::Expect);
    }
    remove_hop_by_hop(&mut head.headers, false);
    if let Some(protocol) = upgrade {
        head.set_protocol(&protocol);
    }
    for_routing(config, &connection.info, head)?;
    let client = client_address::identify(connection, head, info)?;
    set_scheme(config, &connection.info, head);
    trust(connection, head, &client);
    request_id(connection, head);
    if config.add_user_agent {
        user_agent(connection, head);
    }
    let trailers = |te: &[u8]| crate::http::h1::parse::tokens(te).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    if head.headers.contains(HeaderId::Te) {
        if head.headers.get_all(HeaderId::Te).any(trailers) {
            head.headers.set(HeaderId::Te, b"trailers");
        } else {
            head.headers.remove(HeaderId::Te);
        }
    }
    if let Some(via) = &config.via {
        append_via(&mut head.headers, via);
    }
    Ok(())
}

/// The part of it that says what routes see: path and host.
fn for_routing(
    config: &HttpConnectionManager,
    info: &ConnectionInfo,
    head: &mut RequestHead,
) -> Result<(), LocalReply> {
    normalize_path(config, head)?;
    strip_host(config, info, head);
    Ok(())
}

/// Makes a request that nobody has sent fit to be matched with routes, as [`prepare`] would.
pub fn described(
    config: &HttpConnectionManager,
    info: &ConnectionInfo,
    head: &mut RequestHead,
) -> Result<(), LocalReply> {
    check(config, head)?;
    for_routing(config, info, head)?;
    if !head.headers.contains(HeaderId::XForwardedProto) {
        head.headers.append_id(HeaderId::XForwardedProto, if info.tls.is_some() { b"https" } else { b"http" });
    }
    set_scheme(config, info, head);
    Ok(())
}

/// What should not have been sent: behind it nothing on an HTTP/1 connection can be relied upon.
fn bad_request(details: &'static str) -> LocalReply {
    LocalReply::new(400, details).close()
}

/// What is not a message that may be forwarded: the connection ends with the answer.
fn protocol_error(details: &'static str) -> LocalReply {
    LocalReply::new(400, details).flag(ResponseFlag::DownstreamProtocolError).body(&b"Bad Request"[..]).close()
}

fn check(config: &HttpConnectionManager, head: &mut RequestHead) -> Result<(), LocalReply> {
    if !head.is_connect() {
        absolute_path(config, head)?;
    }
    if head.version == Version::Http10 && head.authority().is_empty() {
        match &config.http1.default_host_for_http_10 {
            Some(host) => head.set_authority(host.as_bytes()),
            None => return Err(bad_request("missing_host_header")),
        }
    }
    // HTTP/1.1 requests were refused earlier if they have no host header; an empty one is valid (RFC 9112 section 3.2).
    if head.authority().is_empty() && head.version == Version::Http2 {
        return Err(bad_request("missing_host_header"));
    }
    let host_byte = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'\\' | b'<' | b'>');
    if !head.authority().iter().all(host_byte) {
        return Err(bad_request("http.invalid_authority"));
    }
    let without_path = head.is_connect() && head.path().is_empty();
    // RFC 9112 section 3.2.4: an asterisk is a target of OPTIONS alone.
    let asterisk = head.path() == b"*" && (head.version == Version::Http2 || head.method() == b"OPTIONS");
    if !without_path && !head.path().starts_with(b"/") && !asterisk {
        return Err(protocol_error("http1.codec_error"));
    }
    if !head.path().iter().all(|byte| (0x21..0x7f).contains(byte)) {
        return Err(bad_request("http.invalid_path"));
    }
    match config.underscores {
        UnderscoreAction::Allow => {}
        UnderscoreAction::RejectRequest => {
            if head.headers.iter().any(|(_, name, _)| name.contains(&b'_')) {
                return Err(protocol_error("http1.unexpected_underscore"));
            }
        }
        UnderscoreAction::DropHeader => head.headers.remove_where(|_, name, _| name.contains(&b'_')),
    }
    // Fragments never belong on the wire; what follows one could be read as another path by the next hop.
    if head.path().contains(&b'#') {
        return Err(bad_request("path_with_fragment"));
    }
    Ok(())
}

/// `GET http://host/path`: the target's host counts, not the header's (RFC 9112 section 3.2.2).
fn absolute_path(config: &HttpConnectionManager, head: &mut RequestHead) -> Result<(), LocalReply> {
    let rest = match head.path() {
        path if path.starts_with(b"/") || head.version == Version::Http2 => return Ok(()),
        path if path.len() > 7 && path[..7].eq_ignore_ascii_case(b"http://") => &path[7..],
        path if path.len() > 8 && path[..8].eq_ignore_ascii_case(b"https://") => &path[8..],
        _ => return Ok(()),
    };
    if !config.http1.allow_absolute_url {
        return Err(LocalReply::new(404, "absolute_path_rejected").flag(ResponseFlag::NoRouteFound));
    }
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, target) = (&rest[..end], rest[end..].to_vec());
    // Whom it names before an at sign is nobody's host (RFC 9110 section 4.2.4).
    let host = host.rsplit(|byte| *byte == b'@').next().unwrap_or_default().to_vec();
    if host.is_empty() {
        return Err(bad_request("http1.invalid_url"));
    }
    head.set_authority(&host);
    match target.first() {
        None => head.set_path(b"/"),
        Some(b'/') => head.set_path(&target),
        Some(_) => head.set_path(&[b"/", target.as_slice()].concat()),
    }
    Ok(())
}

/// An upgrade that comes with content: whether bytes behind its head are content or belong to what it asks for is for the
/// endpoint to say, and each hop would guess for itself.
pub fn refuse_upgrade_with_content(head: &RequestHead, framing: Framing) -> Result<(), LocalReply> {
    let asks = head.version != Version::Http2 && !head.protocol().is_empty();
    if asks && framing != Framing::None { Err(bad_request("http1.upgrade_with_content")) } else { Ok(()) }
}

/// The protocol of an HTTP/1 upgrade, lower case. Those that are `ignored` were never asked for.
fn take_upgrade(head: &mut RequestHead, ignored: &[StringMatcher]) -> Option<Vec<u8>> {
    if head.version == Version::Http2 {
        let protocol = head.protocol().to_ascii_lowercase();
        match protocol.as_slice() {
            b"" => return None,
            // What Envoy calls a plain tunnel (draft-kinnear-httpbis-http2-transport).
            b"bytestream" => {
                head.set_protocol(b"");
                return None;
            }
            _ => {}
        }
        // Routes and filters see the request as HTTP/1.1 would send it (RFC 8441 section 5.1).
        head.set_method(b"GET");
        return Some(protocol);
    }
    let asked = match ignored {
        [] => head.headers.get(HeaderId::Upgrade)?.to_ascii_lowercase(),
        ignored => not_ignored(head, ignored)?,
    };
    let named = head
        .headers
        .get_all(HeaderId::Connection)
        .flat_map(crate::http::h1::parse::tokens)
        .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    // RFC 9113 section 3.1: h2c upgrades are gone; a server may go on in HTTP/1.
    (named && asked != b"h2c").then_some(asked)
}

/// What is left of the protocols in `upgrade`, lower case.
fn not_ignored(head: &RequestHead, ignored: &[StringMatcher]) -> Option<Vec<u8>> {
    let tokens = head.headers.get_all(HeaderId::Upgrade).flat_map(crate::http::h1::parse::tokens);
    let wanted: Vec<&[u8]> = tokens.filter(|token| !ignored.iter().any(|matcher| matcher.matches(token))).collect();
    (!wanted.is_empty()).then(|| wanted.join(&b", "[..]).to_ascii_lowercase())
}

/// The configuration's scheme, for those who come after, too; or else, without a scheme of its own, a request has that of the
/// proxy in front, or of its connection.
fn set_scheme(config: &HttpConnectionManager, info: &ConnectionInfo, head: &mut RequestHead) {
    if let Some(scheme) = &config.scheme {
        head.headers.set(HeaderId::XForwardedProto, scheme.as_bytes());
        head.set_scheme(scheme.as_bytes());
    } else if head.scheme().is_empty() {
        let scheme: &[u8] = match head.headers.get(HeaderId::XForwardedProto) {
            Some(b"https") => b"https",
            Some(b"http") => b"http",
            _ if info.tls.is_some() => b"https",
            _ => b"http",
        };
        head.set_scheme(scheme);
    }
}

fn normalize_path(config: &HttpConnectionManager, head: &mut RequestHead) -> Result<(), LocalReply> {
    if head.is_connect() || head.path() == b"*" {
        return Ok(());
    }
    if config.escaped_slashes != EscapedSlashes::Keep {
        match path::unescape_slashes(head.path_str()) {
            None => {}
            Some(_) if config.escaped_slashes == EscapedSlashes::Reject => {
                return Err(bad_request("path_normalization_failed"));
            }
            Some(unescaped) if config.escaped_slashes == EscapedSlashes::UnescapeAndRedirect => {
                let mut reply = LocalReply::new(307, "path_normalization_failed");
                reply.location = Some(unescaped);
                return Err(reply);
            }
            Some(unescaped) => head.set_path(unescaped.as_bytes()),
        }
    }
    if config.normalize_path {
        match path::normalize(head.path_str()) {
            Ok(None) => {}
            Ok(Some(normal)) => head.set_path(normal.as_bytes()),
            Err(path::Nul) => return Err(bad_request("path_normalization_failed")),
        }
    }
    if config.merge_slashes
        && let Some(merged) = path::merge_slashes(head.path_str())
    {
        head.set_path(merged.as_bytes());
    }
    Ok(())
}

fn strip_host(config: &HttpConnectionManager, info: &ConnectionInfo, head: &mut RequestHead) {
    // A tunnel leads to a port.
    if config.strip_port != StripPort::Keep && !head.is_connect() {
        let host = head.authority_str();
        let colon = host.rfind(':').filter(|colon| host.rfind(']').is_none_or(|bracket| bracket < *colon));
        if let Some(colon) = colon
            && let Ok(port) = host[colon + 1..].parse::<u16>()
            && (config.strip_port == StripPort::Any || info.local.port() == Some(port))
        {
            let bare = host.as_bytes()[..colon].to_vec();
            head.set_authority(&bare);
        }
    }
    if config.strip_trailing_host_dot {
        let host = head.authority_str();
        let (name, port) = match host.rfind(':').filter(|_| !host.ends_with(']')) {
            Some(colon) => host.split_at(colon),
            None => (host, ""),
        };
        if let Some(bare) = name.strip_suffix('.') {
            let stripped = [bare, port].concat();
            head.set_authority(stripped.as_bytes());
        }
    }
}

/// x-envoy-external-address, x-envoy-internal, and who may set internal headers.
fn trust(connection: &HttpConnection, head: &mut RequestHead, client: &Client) {
    let config = &connection.node.config;
    let pipe = matches!(connection.info.remote, Address::Pipe { .. });
    let networks = &config.internal_networks.networks;
    let internal = match client.address {
        Some(address) => client.may_be_internal && networks.iter().any(|network| network.contains(&address)),
        None => pipe && config.internal_networks.unix_sockets,
    };
    if internal {
        head.headers.set(HeaderId::XEnvoyInternal, b"true");
        return;
    }
    head.headers.remove(HeaderId::XEnvoyInternal);
    remove_internal_headers(connection, head);
    if let Some(address) = client.address.filter(|_| config.use_remote_address) {
        head.headers.set(HeaderId::XEnvoyExternalAddress, address.to_string().as_bytes());
    }
}

/// Headers by which internal clients steer the router; external ones must not.
fn remove_internal_headers(connection: &HttpConnection, head: &mut RequestHead) {
    let edge = connection.node.config.use_remote_address;
    head.headers.remove_where(|id, _, _| match id {
        // Other hops of a mesh may set these.
        HeaderId::XEnvoyDecoratorOperation
        | HeaderId::XEnvoyDownstreamServiceCluster
        | HeaderId::XEnvoyDownstreamServiceNode
        | HeaderId::XEnvoyOriginalPath => edge,
        id => matches!(
            id,
            HeaderId::XEnvoyExpectedRqTimeoutMs
                | HeaderId::XEnvoyForceTrace
                | HeaderId::XEnvoyHedgeOnPerTryTimeout
                | HeaderId::XEnvoyIpTags
                | HeaderId::XEnvoyMaxRetries
                | HeaderId::XEnvoyOriginalUrl
                | HeaderId::XEnvoyRetriableHeaderNames
                | HeaderId::XEnvoyRetriableStatusCodes
                | HeaderId::XEnvoyRetryGrpcOn
                | HeaderId::XEnvoyRetryOn
                | HeaderId::XEnvoyUpstreamAltStatName
                | HeaderId::XEnvoyUpstreamRqPerTryTimeoutMs
                | HeaderId::XEnvoyUpstreamRqTimeoutAltResponse
                | HeaderId::XEnvoyUpstreamRqTimeoutMs
        ),
    });
    remove_named_headers(connection, head);
}

/// The headers that the routes do not want from external clients.
fn remove_named_headers(connection: &HttpConnection, head: &mut RequestHead) {
    let graph = connection.worker.graph();
    if let Some(table) = connection.routes(&graph, head) {
        for name in &table.configuration().internal_only_headers {
            head.headers.remove_by_name(name);
        }
    }
}

/// Does what routes say of all requests, for one that got its routes after [`prepare`].
pub fn prepare_for_routes(connection: &HttpConnection, head: &mut RequestHead) {
    if !head.headers.contains(HeaderId::XEnvoyInternal) {
        remove_named_headers(connection, head);
    }
}

/// Source: `HttpConnectionManager.add_user_agent`.
fn user_agent(connection: &HttpConnection, head: &mut RequestHead) {
    let process = &connection.worker.process;
    let cluster = process.node_cluster.as_bytes();
    head.headers.set(HeaderId::XEnvoyDownstreamServiceCluster, cluster);
    if head.headers.get(HeaderId::UserAgent).is_none_or(<[u8]>::is_empty) {
        head.headers.set(HeaderId::UserAgent, cluster);
    }
    if !process.node_id.is_empty() {
        head.headers.set(HeaderId::XEnvoyDownstreamServiceNode, process.node_id.as_bytes());
    }
}

fn request_id(connection: &HttpConnection, head: &mut RequestHead) {
    let config = &connection.node.config;
    let external = config.use_remote_address && !head.headers.contains(HeaderId::XEnvoyInternal);
    let present = head.headers.contains(HeaderId::XRequestId);
    if config.generate_request_id && (!present || external && !config.preserve_external_request_id) {
        head.headers.set(HeaderId::XRequestId, &connection.worker.random.uuid());
    }
}
