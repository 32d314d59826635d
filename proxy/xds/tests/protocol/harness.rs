//! A stream core with a clock, a judge and short words for what a control plane says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use outrigger_api::pb::google::protobuf::{Any, Duration as WireDuration};
use outrigger_xds::core::{Event, Request, Response, StreamCore, StreamOptions};
use outrigger_xds::{Interest, Protocol, Rejection, ResourceKind, TypeStats, Update};
use prost::Message;

pub const CDS: ResourceKind = ResourceKind::Cluster;
pub const EDS: ResourceKind = ResourceKind::ClusterLoadAssignment;
pub const LDS: ResourceKind = ResourceKind::Listener;
pub const RDS: ResourceKind = ResourceKind::RouteConfiguration;
pub const SDS: ResourceKind = ResourceKind::Secret;
pub const VHDS: ResourceKind = ResourceKind::VirtualHost;

pub struct World {
    pub core: StreamCore,
    pub now: Instant,
    /// What the judge has seen and not been asked for yet.
    pub updates: Vec<Update>,
    /// What the judge refuses, by name.
    pub refuse: BTreeMap<String, String>,
}

pub fn options(protocol: Protocol) -> StreamOptions {
    StreamOptions {
        protocol,
        node: Node { id: "sidecar~1".into(), cluster: "web".into(), ..Node::default() },
        node_on_first_message_only: true,
        explicit_wildcard: false,
        rate_limit: None,
        only: None,
    }
}

impl World {
    pub fn sotw() -> Self {
        Self::with(options(Protocol::Sotw))
    }

    pub fn delta() -> Self {
        Self::with(options(Protocol::Delta))
    }

    pub fn with(options: StreamOptions) -> Self {
        let core = StreamCore::new(options);
        Self { core, now: Instant::now(), updates: Vec::new(), refuse: BTreeMap::new() }
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.core.handle_timeout(self.now);
    }

    /// Connects and opens the stream.
    pub fn open(&mut self) {
        assert!(self.core.poll_connect(self.now), "not willing to connect");
        self.core.stream_opened();
        assert!(self.events().contains(&Event::Connected(true)));
    }

    /// Loses the stream and opens a new one after the backoff.
    pub fn reopen(&mut self) {
        self.core.stream_closed(self.now, 1.0);
        self.advance(Duration::from_secs(30));
        self.open();
    }

    pub fn ask(&mut self, kind: ResourceKind, name: &str) {
        self.core.subscribe(kind, &Interest::Name(name.into()), None, self.now);
    }

    pub fn ask_all(&mut self, kind: ResourceKind) {
        self.core.subscribe(kind, &Interest::Wildcard, None, self.now);
    }

    pub fn drop_name(&mut self, kind: ResourceKind, name: &str) {
        self.core.unsubscribe(kind, &Interest::Name(name.into()));
    }

    pub fn drop_all(&mut self, kind: ResourceKind) {
        self.core.unsubscribe(kind, &Interest::Wildcard);
    }

    pub fn respond(&mut self, response: Response) {
        let Self { core, now, updates, refuse } = self;
        core.on_response(response, *now, &mut |update: Update| {
            let rejections = update
                .added
                .iter()
                .filter_map(|r| Some(Rejection { name: r.name.clone(), message: refuse.get(&r.name)?.clone() }))
                .collect();
            updates.push(update);
            rejections
        });
    }

    /// A state-of-the-world response with plain resources.
    pub fn say(&mut self, kind: ResourceKind, version: &str, nonce: &str, resources: Vec<Any>) {
        self.respond(Response::Sotw(DiscoveryResponse {
            version_info: version.into(),
            resources,
            type_url: kind.type_url().into(),
            nonce: nonce.into(),
            ..DiscoveryResponse::default()
        }));
    }

    /// A delta response.
    pub fn say_delta(&mut self, kind: ResourceKind, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        self.respond(Response::Delta(DeltaDiscoveryResponse {
            resources,
            type_url: kind.type_url().into(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            nonce: nonce.into(),
            ..DeltaDiscoveryResponse::default()
        }));
    }

    /// All requests that may go out now.
    pub fn sent(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.core.poll_request(self.now)).collect()
    }

    pub fn sent_sotw(&mut self) -> Vec<DiscoveryRequest> {
        let sotw = |request| match request {
            Request::Sotw(request) => request,
            Request::Delta(request) => panic!("delta on a state-of-the-world stream: {request:?}"),
        };
        self.sent().into_iter().map(sotw).collect()
    }

    pub fn sent_delta(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let delta = |request| match request {
            Request::Delta(request) => request,
            Request::Sotw(request) => panic!("state of the world on a delta stream: {request:?}"),
        };
        self.sent().into_iter().map(delta).collect()
    }

    /// The only request.
    pub fn one_sotw(&mut self) -> DiscoveryRequest {
        let mut sent = self.sent_sotw();
        assert_eq!(sent.len(), 1, "{sent:#?}");
        sent.remove(0)
    }

    pub fn one_delta(&mut self) -> DeltaDiscoveryRequest {
        let mut sent = self.sent_delta();
        assert_eq!(sent.len(), 1, "{sent:#?}");
        sent.remove(0)
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.poll_event()).collect()
    }

    /// The only update the judge has seen since last asked.
    pub fn update(&mut self) -> Update {
        assert_eq!(self.updates.len(), 1, "{:#?}", self.updates);
        self.updates.remove(0)
    }

    pub fn held(&self, kind: ResourceKind) -> Vec<String> {
        let state = self.core.types().find(|state| state.kind() == kind);
        state.map(|state| state.held().map(|(name, _)| name.to_owned()).collect()).unwrap_or_default()
    }

    pub fn stats(&self, kind: ResourceKind) -> TypeStats {
        self.core.types().find(|state| state.kind() == kind).map(|state| state.stats().clone()).unwrap()
    }
}

/// Names of new or changed resources.
pub fn added(update: &Update) -> Vec<&str> {
    update.added.iter().map(|resource| resource.name.as_str()).collect()
}

/// A resource as far as the protocol reads it, and a field it does not know.
#[derive(Clone, PartialEq, Message)]
struct AnyNamed {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "5000")]
    content: String,
}

pub fn resource(kind: ResourceKind, name: &str) -> Any {
    resource_with(kind, name, "")
}

pub fn resource_with(kind: ResourceKind, name: &str, content: &str) -> Any {
    let value = AnyNamed { name: name.into(), content: content.into() }.encode_to_vec();
    Any { type_url: kind.type_url().into(), value }
}

pub fn wrapped(kind: ResourceKind, name: &str, version: &str) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(resource_with(kind, name, version)),
        ..Resource::default()
    }
}

pub fn with_ttl(resource: Resource, seconds: i64) -> Resource {
    Resource { ttl: Some(WireDuration { seconds, nanos: 0 }), ..resource }
}

/// A wrapper as it travels in state of the world.
pub fn in_any(resource: &Resource) -> Any {
    let type_url = "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned();
    Any { type_url, value: resource.encode_to_vec() }
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
