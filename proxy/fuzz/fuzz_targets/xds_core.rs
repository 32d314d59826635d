//! The protocol core of the xDS client under random operations and responses.
//!
//! Whatever happens, its requests must be ones that a control plane can follow: they name a known type, the first on a
//! stream says who asks, and a nonce is one that this stream has brought for this type.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use outrigger_api::pack;
use outrigger_api::pb::envoy::config::cluster::v3::Cluster;
use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrigger_api::pb::envoy::config::listener::v3::Listener;
use outrigger_api::pb::envoy::config::route::v3::RouteConfiguration;
use outrigger_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use outrigger_api::pb::google::protobuf::Any;
use outrigger_xds::core::{Interest, Protocol, Rejection, Request, ResourceKind, Response, StreamCore, StreamOptions};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
}

impl Kind {
    fn resource_kind(self) -> ResourceKind {
        match self {
            Kind::Cluster => ResourceKind::Cluster,
            Kind::Endpoints => ResourceKind::ClusterLoadAssignment,
            Kind::Listener => ResourceKind::Listener,
            Kind::Routes => ResourceKind::RouteConfiguration,
        }
    }

    fn resource(self, name: String) -> Any {
        match self {
            Kind::Cluster => pack(&Cluster { name, ..Default::default() }),
            Kind::Endpoints => pack(&ClusterLoadAssignment { cluster_name: name, ..Default::default() }),
            Kind::Listener => pack(&Listener { name, ..Default::default() }),
            Kind::Routes => pack(&RouteConfiguration { name, ..Default::default() }),
        }
    }
}

/// Few names, so that operations meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name {
    A,
    B,
    Wildcard,
}

impl Name {
    fn text(self) -> String {
        format!("{self:?}")
    }

    fn interest(self) -> Interest {
        match self {
            Name::Wildcard => Interest::Wildcard,
            name => Interest::Name(name.text()),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Content {
    Good(Kind, Name),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Subscribe(Kind, Name, Option<u8>),
    Unsubscribe(Kind, Name),
    Connect,
    Open,
    Close,
    /// The second list holds removed names of delta responses; the number says which resources are refused.
    Respond(Kind, Vec<Content>, Vec<Name>, u8),
    Wait(u8),
    Send,
}

#[derive(Arbitrary, Debug)]
struct Script {
    delta: bool,
    explicit_wildcard: bool,
    node_once: bool,
    only: Option<Kind>,
    operations: Vec<Operation>,
}

struct Run {
    core: StreamCore,
    now: Instant,
    delta: bool,
    /// Subscriptions that were made and not ended: more must not be ended.
    wanted: Vec<(ResourceKind, Interest)>,
    /// Nonces that this stream has brought, by type.
    nonces: BTreeMap<String, Vec<String>>,
    first: bool,
    responses: usize,
}

fuzz_target!(|script: Script| {
    let options = StreamOptions {
        protocol: if script.delta { Protocol::Delta } else { Protocol::Sotw },
        node: Node { id: "fuzz".into(), ..Node::default() },
        node_on_first_message_only: script.node_once,
        explicit_wildcard: script.explicit_wildcard,
        rate_limit: None,
        only: script.only.map(Kind::resource_kind),
    };
    let mut run = Run {
        core: StreamCore::new(options),
        now: Instant::now(),
        delta: script.delta,
        wanted: Vec::new(),
        nonces: BTreeMap::new(),
        first: true,
        responses: 0,
    };
    for operation in script.operations {
        run.perform(operation, script.only);
        while run.core.poll_event().is_some() {}
    }
});

impl Run {
    fn perform(&mut self, operation: Operation, only: Option<Kind>) {
        match operation {
            Operation::Subscribe(kind, name, timeout) => {
                // A stream of one type is never asked for another.
                let kind = only.unwrap_or(kind).resource_kind();
                let timeout = timeout.map(|seconds| Duration::from_secs(seconds.into()));
                self.core.subscribe(kind, &name.interest(), timeout, self.now);
                self.wanted.push((kind, name.interest()));
            }
            Operation::Unsubscribe(kind, name) => {
                let ended = (only.unwrap_or(kind).resource_kind(), name.interest());
                if let Some(position) = self.wanted.iter().position(|wanted| *wanted == ended) {
                    self.wanted.swap_remove(position);
                    self.core.unsubscribe(ended.0, &ended.1);
                }
            }
            Operation::Connect => {
                if self.core.poll_connect(self.now) {
                    assert!(!self.wanted.is_empty(), "connects for nothing");
                }
            }
            Operation::Open => {
                self.core.stream_opened();
                self.nonces.clear();
                self.first = true;
            }
            Operation::Close => {
                self.core.stream_closed(self.now, 0.5);
            }
            Operation::Respond(kind, contents, removed, refused) => self.respond(kind, contents, removed, refused),
            Operation::Wait(seconds) => {
                self.now += Duration::from_secs(seconds.into());
                self.core.handle_timeout(self.now);
            }
            Operation::Send => self.send(),
        }
    }

    fn respond(&mut self, kind: Kind, contents: Vec<Content>, removed: Vec<Name>, refused: u8) {
        self.responses += 1;
        let nonce = format!("nonce-{}", self.responses);
        let type_url = kind.resource_kind().type_url().to_owned();
        if self.core.is_connected() {
            self.nonces.entry(type_url.clone()).or_default().push(nonce.clone());
        }
        let bodies = contents.into_iter().map(|content| match content {
            Content::Good(kind, name) => (name.text(), kind.resource(name.text())),
            Content::Bytes(value) => (String::new(), Any { type_url: type_url.clone(), value }),
        });
        let response = if self.delta {
            let resource = |(name, body)| Resource { name, resource: Some(body), ..Resource::default() };
            Response::Delta(DeltaDiscoveryResponse {
                resources: bodies.map(resource).collect(),
                removed_resources: removed.into_iter().map(Name::text).collect(),
                type_url: type_url.clone(),
                nonce,
                ..DeltaDiscoveryResponse::default()
            })
        } else {
            let resources = bodies.map(|(_, body)| body).collect();
            Response::Sotw(DiscoveryResponse { resources, type_url: type_url.clone(), nonce, ..Default::default() })
        };
        self.core.on_response(response, self.now, &mut |update| {
            assert_eq!(update.kind.type_url(), type_url);
            let places = update.added.iter().enumerate();
            let bad = places.filter(|(place, _)| refused >> (place % 8) & 1 != 0);
            bad.map(|(_, resource)| Rejection { name: resource.name.clone(), message: "refused".into() }).collect()
        });
    }

    fn send(&mut self) {
        for _ in 0..1000 {
            let Some(request) = self.core.poll_request(self.now) else { return };
            let (type_url, nonce, node) = match &request {
                Request::Sotw(request) => (&request.type_url, &request.response_nonce, &request.node),
                Request::Delta(request) => {
                    let both = |name| request.resource_names_unsubscribe.contains(name);
                    assert!(!request.resource_names_subscribe.iter().any(both), "wanted and unwanted: {request:?}");
                    (&request.type_url, &request.response_nonce, &request.node)
                }
            };
            assert!(ResourceKind::from_type_url(type_url).is_some(), "{request:?}");
            assert!(!self.first || node.is_some(), "the first request says who asks: {request:?}");
            self.first = false;
            let known = nonce.is_empty() || self.nonces.get(type_url).is_some_and(|nonces| nonces.contains(nonce));
            assert!(known, "a nonce from elsewhere: {request:?}");
        }
        panic!("requests without end");
    }
}
