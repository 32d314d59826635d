//! What the route of a request says is done with it.
//!
//! Owns the route with what stands around it, and the answers that routes give themselves. Never looks for routes (see
//! `RouteChoice`), and never forwards (see the router).

use std::sync::Arc;

use outrigger_config::route::{DirectResponse, Redirect, RequireTls, Route, RouteAction, VirtualHost, WeightedCluster};
use outrigger_policy::route::{RouteTable, redirect_location};

use super::answer::send_local;
use super::reply::LocalReply;
use super::request::{Request, RequestSide, ResponseSide};
use super::{HttpConnection, mutate};
use crate::accesslog::format;
use crate::http::headers::HeaderId;
use crate::http::message::RequestHead;
use crate::http::router;
use crate::stream::ResponseFlag;
use crate::trace;

/// What the route says, or that there is none.
pub(super) async fn serve_route(request: &mut Request<'_>, connection: &HttpConnection, chosen: Option<Chosen<'_>>) {
    let Some(chosen) = chosen else {
        connection.stats.rq_total.increment();
        connection.stats.no_route.increment();
        let mut reply = LocalReply::new(404, "route_not_found").flag(ResponseFlag::NoRouteFound);
        // Who asks for a tunnel may send through it already.
        reply.close = request.head.is_connect();
        return send_local(request, reply, None).await;
    };
    name_route(request, Some(&chosen));
    if request.head.is_tunnel()
        && let Some(protocol) = refused_upgrade(request, &chosen.route.action)
    {
        connection.stats.downstream_rq_ws_on_non_ws_route.increment();
        tracing::debug!("upgrade to {protocol} is not enabled");
        name_cluster(request, Some(&chosen));
        return send_local(request, LocalReply::new(403, "upgrade_failed").close(), Some(&chosen)).await;
    }
    connection.stats.rq_total.increment();
    if requires_tls(request, &chosen) {
        let mut reply = LocalReply::new(301, "direct_response");
        let (host, path) = (request.head.authority_str(), request.head.path_str());
        reply.location = Some(format!("https://{host}{path}"));
        count_redirect(connection);
        return send_local(request, reply, Some(&chosen)).await;
    }
    match &chosen.route.action {
        RouteAction::Forward(forward) => {
            router::forward(request, &chosen, forward).await;
        }
        RouteAction::Redirect(redirect) => {
            count_redirect(connection);
            let reply = redirect_reply(request, &chosen, redirect);
            send_local(request, reply, Some(&chosen)).await;
        }
        RouteAction::Direct(direct) => {
            connection.stats.rq_direct_response.increment();
            let reply = direct_reply(request, direct);
            send_local(request, reply, Some(&chosen)).await;
        }
        RouteAction::NonForwarding => {
            // As Envoy does: it is a route to no cluster.
            connection.stats.no_cluster.increment();
            let reply = LocalReply::new(503, "cluster_not_found").flag(ResponseFlag::NoClusterFound);
            send_local(request, reply, Some(&chosen)).await;
        }
    }
}

/// Envoy counts redirects as direct responses alone, though its documentation has a counter for them: here both tell them.
fn count_redirect(connection: &HttpConnection) {
    connection.stats.rq_redirect.increment();
    connection.stats.rq_direct_response.increment();
}

pub(super) fn name_route(request: &Request<'_>, chosen: Option<&Chosen<'_>>) {
    let Some(chosen) = chosen else { return };
    *request.info.route.borrow_mut() = Some(Arc::clone(chosen.route));
    if !chosen.route.name.is_empty() {
        *request.info.route_name.borrow_mut() = Some(Arc::clone(&chosen.route.name));
    }
}

/// Says where a request was going that is answered on its way, in logs and, as Envoy does, in its span.
pub(super) fn name_cluster(request: &mut Request<'_>, chosen: Option<&Chosen<'_>>) {
    let name = chosen.and_then(|chosen| chosen.cluster_name(&request.head));
    let Some(node) = name.and_then(|name| request.graph.clusters.get(&*name).map(Arc::clone)) else { return };
    request.info.set_cluster(&node.config);
    if request.trace.is_some() {
        trace::set_cluster(request, &node);
    }
}

/// The route that a request got.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    /// The route configuration.
    pub table: &'a Arc<RouteTable>,
    /// The virtual host.
    pub virtual_host: &'a Arc<VirtualHost>,
    /// The route.
    pub route: &'a Arc<Route>,
    /// The one of the route's weighted clusters, if it has any.
    pub weighted: Option<&'a WeightedCluster>,
}

impl Chosen<'_> {
    /// Applies the request header mutations of all levels, the most specific one first unless configured otherwise.
    pub fn mutate_request(&self, request: &mut Request<'_>) {
        let configuration = self.table.configuration();
        let mut levels =
            [&self.route.request_headers, &self.virtual_host.request_headers, &configuration.request_headers];
        if configuration.most_specific_header_mutations_wins {
            levels.reverse();
        }
        for mutations in levels.into_iter().filter(|mutations| !mutations.is_empty()) {
            mutate::apply(mutations, &mut RequestSide(request));
        }
    }

    /// Applies the response header mutations of all levels in the same order.
    pub fn mutate_response(&self, request: &mut Request<'_>) {
        let configuration = self.table.configuration();
        let mut levels =
            [&self.route.response_headers, &self.virtual_host.response_headers, &configuration.response_headers];
        if configuration.most_specific_header_mutations_wins {
            levels.reverse();
        }
        for mutations in levels.into_iter().filter(|mutations| !mutations.is_empty()) {
            mutate::apply(mutations, &mut ResponseSide(request));
        }
    }
}

fn requires_tls(request: &Request<'_>, chosen: &Chosen<'_>) -> bool {
    let secure = request.head.headers.get(HeaderId::XForwardedProto) == Some(b"https");
    match chosen.virtual_host.require_tls {
        RequireTls::None => false,
        RequireTls::ExternalOnly => !secure && !request.head.headers.contains(HeaderId::XEnvoyInternal),
        RequireTls::All => !secure,
    }
}

/// What a request wants its connection, or stream, to become.
pub(super) fn asked_protocol(head: &RequestHead) -> Option<&[u8]> {
    match head.protocol() {
        b"" => head.is_connect().then_some(b"connect"),
        protocol => Some(protocol),
    }
}

fn refused_upgrade(request: &Request<'_>, action: &RouteAction) -> Option<String> {
    let upgrades = match action {
        RouteAction::Forward(forward) => &forward.upgrades[..],
        _ => &[],
    };
    let protocol = std::str::from_utf8(asked_protocol(&request.head)?).ok()?;
    let on_route = upgrades.iter().find(|(name, _)| name == protocol).map(|(_, enabled)| *enabled);
    let configured = &request.connection.node.config.upgrades;
    let by_default = || configured.iter().any(|upgrade| upgrade.protocol == protocol && upgrade.enabled);
    (!on_route.unwrap_or_else(by_default)).then(|| protocol.to_owned())
}

fn redirect_reply(request: &Request<'_>, chosen: &Chosen<'_>, redirect: &Redirect) -> LocalReply {
    let head = &request.head;
    let scheme = head.headers.get_str(HeaderId::XForwardedProto).unwrap_or("http");
    let location = redirect_location(redirect, &chosen.route.matches, scheme, head.authority_str(), head.path_str());
    let mut reply = LocalReply::new(redirect.status, "direct_response");
    reply.location = Some(location);
    reply
}

fn direct_reply(request: &Request<'_>, direct: &DirectResponse) -> LocalReply {
    let mut body = direct.body.to_vec();
    if let Some(text) = &direct.body_format {
        body.clear();
        format::write(text, &request.facts(), &mut body);
    }
    let mut reply = LocalReply::new(direct.status, "direct_response").body(body);
    if direct.status == 201 {
        let head = &request.head;
        let scheme = head.headers.get_str(HeaderId::XForwardedProto).unwrap_or("http");
        reply.location = Some(format!("{scheme}://{}{}", head.authority_str(), head.path_str()));
    }
    reply
}
