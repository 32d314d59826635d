//! A request as route tables see it: its head, its connection, and what filters left.
//!
//! Owns how routes learn of all that. Never matches anything (see `outrigger_policy::route`).

use std::net::{IpAddr, SocketAddr};

use outrigger_config::cel::Expression;
use outrigger_config::matcher::Matcher;
use outrigger_config::rbac::MetadataSource;
use outrigger_config::route::StreamMatch;
use outrigger_config::tls::SanMatcher;
use outrigger_policy::matcher;
use outrigger_policy::rbac::{Facts, InputsOf, LookAt, Peer};
use outrigger_policy::route::RequestView;

use crate::accesslog::attributes;
use crate::http::manager::client_address::client_address;
use crate::http::manager::request::Request;
use crate::http::message::RequestHead;
use crate::network::ConnectionFacts;

/// A request before it has a route.
pub(super) struct Routed<'a, 'r>(pub &'a Request<'r>);

/// Where a match tree leads for a request, if anywhere.
pub(crate) fn find_in<'t, A>(request: &Request<'_>, tree: &'t Matcher<A>) -> Option<&'t A> {
    matcher::find(tree, &InputsOf(&Routed(request))).ok().flatten()
}

impl RequestView for Routed<'_, '_> {
    fn host(&self) -> &str {
        RequestView::host(&self.0.head)
    }

    fn path(&self) -> &str {
        RequestView::path(&self.0.head)
    }

    fn method(&self) -> &str {
        RequestView::method(&self.0.head)
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        RequestView::header(&self.0.head, name)
    }

    fn is_grpc(&self) -> bool {
        RequestView::is_grpc(&self.0.head)
    }

    fn stream_matches(&self, wanted: &StreamMatch) -> bool {
        let info = &self.0.info;
        let peer = self.0.connection.info.tls.as_ref().and_then(|tls| tls.peer.as_deref());
        let dynamic = info.dynamic_metadata.borrow();
        wanted.presented.is_none_or(|presented| presented == peer.is_some())
            && wanted.validated.is_none_or(|validated| validated == peer.is_some_and(|peer| peer.verified))
            && wanted.metadata.iter().all(|matcher| matcher.matches(dynamic.get(&*matcher.filter)))
            && wanted
                .filter_state
                .iter()
                .all(|wanted| Facts::filter_state(self, &wanted.key, &mut |object| wanted.matches(object)))
    }

    fn find<'t, A>(&self, tree: &'t Matcher<A>) -> Option<&'t A> {
        find_in(self.0, tree)
    }
}

impl Routed<'_, '_> {
    fn connection(&self) -> ConnectionFacts<'_> {
        ConnectionFacts(&self.0.connection.info)
    }
}

impl Facts for Routed<'_, '_> {
    type Request = RequestHead;

    fn request(&self) -> Option<&RequestHead> {
        Some(&self.0.head)
    }

    fn destination(&self) -> Option<SocketAddr> {
        self.connection().destination()
    }

    fn source(&self) -> Option<SocketAddr> {
        self.connection().source()
    }

    fn direct_remote(&self) -> Option<IpAddr> {
        self.connection().direct_remote()
    }

    fn remote(&self) -> Option<IpAddr> {
        client_address(self.0.connection, &self.0.info)
    }

    fn server_name(&self) -> &str {
        self.0.connection.info.server_name.as_deref().unwrap_or_default()
    }

    fn peer(&self) -> Option<Peer<'_>> {
        let tls = self.0.connection.info.tls.as_ref()?;
        Some(tls.peer.as_deref().map_or_else(Peer::default, |peer| Peer {
            uri_names: &peer.uri_sans,
            dns_names: &peer.dns_sans,
            subject: &peer.subject,
            verified: peer.verified,
        }))
    }

    fn has_name(&self, matcher: &SanMatcher) -> bool {
        self.connection().has_name(matcher)
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut LookAt<'_>) -> bool {
        match source {
            MetadataSource::Dynamic => look(self.0.info.dynamic_metadata.borrow().get(namespace)),
            // There is no route yet.
            MetadataSource::Route => false,
        }
    }

    fn holds(&self, condition: &Expression) -> bool {
        attributes::holds(condition, &self.0.facts())
    }

    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool {
        match self.0.info.filter_state.borrow().get(key) {
            Some(object) => look(Some(object)),
            None => self.connection().filter_state(key, look),
        }
    }
}
