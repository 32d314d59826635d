//! Following a redirect of an upstream (`InternalRedirectPolicy`), or of a filter that replaces a response.
//!
//! Owns turning the request that was answered with a redirect into the one it asks for. Never decides whether it may
//! (see `outrigger-policy`), and never routes: the connection manager begins the request anew.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::filters::RedirectedResponse;
use outrigger_config::route::{InternalRedirect, RouteAction};
use outrigger_policy::route::{RedirectHistory, RedirectRefusal, RedirectTarget};

use super::body::ReplayBody;
use crate::http::filter::RouteChoice;
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::mutate;
use crate::http::manager::request::{Chosen, Request, RequestSide};

/// What a request keeps over the redirects that are followed for it.
#[derive(Default)]
pub struct Redirects {
    history: RedirectHistory,
    /// The body of the request that comes next.
    pub body: Vec<u8>,
    /// The request is to begin anew.
    pub is_due: bool,
    /// The answer takes the place of one to another request.
    pub replaces: Option<Replaced>,
}

/// A response that was replaced by the answer to another request.
pub struct Replaced {
    /// What says so.
    pub policy: Arc<RedirectedResponse>,
    /// Its status.
    pub status: u16,
}

/// Makes the request in the place of the one whose response `policy` replaces; false leaves it as it was, since no route is
/// for it or the client has not sent all of the first one.
pub fn replace(request: &mut Request<'_>, policy: &Arc<RedirectedResponse>) -> bool {
    // What the client still sends would be taken for its next request.
    if !request.downstream.request_is_done() || request.head.is_tunnel() {
        return false;
    }
    let before = request.head.clone();
    request.head.set_scheme(policy.scheme.as_bytes());
    request.head.set_authority(policy.authority.as_bytes());
    request.head.set_path(policy.path.as_bytes());
    let (connection, graph) = (Rc::clone(request.connection), Rc::clone(&request.graph));
    if RouteChoice::new(&connection, &graph, request).chosen.is_none() {
        request.head = before;
        return false;
    }
    mutate::apply(&policy.request_headers, &mut RequestSide(request));
    if !request.head.is_head() {
        request.head.set_method(b"GET");
    }
    request.head.headers.remove(HeaderId::ContentLength);
    request.head.headers.remove(HeaderId::TransferEncoding);
    request.framing = Framing::None;
    let status = request.response.status;
    request.info.response_code.set(status);
    request.info.set_details("internal_redirect");
    let redirects = request.redirects.get_or_insert_default();
    redirects.is_due = true;
    redirects.body.clear();
    redirects.replaces = Some(Replaced { policy: Arc::clone(policy), status });
    true
}

/// Makes the head in the request that of the request that the response asks for; false leaves it as it was.
///
/// The request must have been read to its end.
pub fn follow(
    request: &mut Request<'_>,
    chosen: &Chosen<'_>,
    policy: &InternalRedirect,
    body: &ReplayBody<'_>,
) -> bool {
    let body = if request.framing == Framing::None { Some(Vec::new()) } else { body.kept() };
    let Some(body) = body else { return false };
    let before = request.head.clone();
    let mut redirects = request.redirects.take().unwrap_or_default();
    let refusal = rewrite(request, chosen, policy, &mut redirects.history).err();
    redirects.is_due = refusal.is_none();
    if let Some(refusal) = refusal {
        request.head = before;
        let stats = &request.connection.stats;
        match refusal {
            RedirectRefusal::BadLocation => stats.passthrough_internal_redirect_bad_location.increment(),
            RedirectRefusal::UnsafeScheme => stats.passthrough_internal_redirect_unsafe_scheme.increment(),
            RedirectRefusal::TooMany => stats.passthrough_internal_redirect_too_many_redirects.increment(),
            RedirectRefusal::NoRoute => stats.passthrough_internal_redirect_no_route.increment(),
            RedirectRefusal::Predicate => stats.passthrough_internal_redirect_predicate.increment(),
        }
    } else {
        redirects.body = body;
        let scheme = if is_http(request, before.scheme()) { "http" } else { "https" };
        let original = format!("{scheme}://{}{}", before.authority_str(), before.path_str());
        request.head.headers.set_by_name("x-envoy-original-url", original.as_bytes());
        see_other(request, &mut redirects);
    }
    let followed = redirects.is_due;
    request.redirects = Some(redirects);
    followed
}

/// RFC 9110 section 15.4.4: what is to be seen elsewhere is asked for without a body.
fn see_other(request: &mut Request<'_>, redirects: &mut Redirects) {
    if request.response.status != 303 || matches!(request.head.method(), b"GET" | b"HEAD") {
        return;
    }
    request.head.set_method(b"GET");
    request.head.headers.remove(HeaderId::ContentLength);
    request.head.headers.remove(HeaderId::TransferEncoding);
    request.framing = Framing::None;
    redirects.body.clear();
}

fn rewrite(
    request: &mut Request<'_>,
    chosen: &Chosen<'_>,
    policy: &InternalRedirect,
    history: &mut RedirectHistory,
) -> Result<(), RedirectRefusal> {
    let location = request.response.headers.get_str(HeaderId::Location).unwrap_or_default().to_owned();
    let target = RedirectTarget::parse(&location).ok_or(RedirectRefusal::BadLocation)?;
    let was_http = is_http(request, request.head.scheme());
    history.check(policy, was_http, &target)?;
    for name in &policy.copied_headers {
        copy_header(&mut request.head.headers, &request.response.headers, name);
    }
    request.head.set_scheme(target.scheme.to_ascii_lowercase().as_bytes());
    request.head.set_authority(target.authority.as_bytes());
    request.head.set_path(target.path.as_bytes());
    let (connection, graph) = (Rc::clone(request.connection), Rc::clone(&request.graph));
    let found = RouteChoice::new(&connection, &graph, request).chosen.ok_or(RedirectRefusal::NoRoute)?;
    history.follow(policy, (&chosen.route.name, &found.route.name), was_http, target.is_http())
}

fn copy_header(to: &mut Headers, from: &Headers, name: &str) {
    to.remove_by_name(name);
    for value in from.get_all_by_name(name) {
        to.append(name.as_bytes(), value);
    }
}

/// A connection without TLS is plain text, whatever the request says.
fn is_http(request: &Request<'_>, scheme: &[u8]) -> bool {
    scheme == b"http" || request.connection.info.tls.is_none()
}

/// What the route says of redirects with this status.
pub fn policy<'c>(chosen: &Chosen<'c>, status: u16) -> Option<&'c InternalRedirect> {
    let RouteAction::Forward(forward) = &chosen.route.action else { return None };
    forward.internal_redirect.as_deref().filter(|policy| policy.codes.contains(&status))
}
