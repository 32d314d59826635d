//! The labels of standard metrics.
//!
//! Owns what each label says, and the form in which names of stats carry labels (`key=.=value;.;`), which the reader of
//! tags takes out again. Never counts. Source: the behaviour of Istio's own filter.

use std::borrow::Cow;

use outrigger_config::istio::{DimensionLabel, MeshLabel, MeshMetric, MeshService, StandardMetrics};

use super::super::peer::Peer;
use crate::stats::tags::{LABEL_END, LABEL_VALUE};
use crate::stream::{ResponseFlag, ResponseFlags};

/// From where a proxy sees a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Beside the client.
    Source,
    /// Beside the server.
    Destination,
    /// In front of the workloads of others.
    Gateway,
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// A gRPC call.
    Grpc,
    /// Bytes.
    Tcp,
}

/// Where streams go that no service of the mesh stands for, by Istio's names of routes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outside {
    /// Nowhere.
    BlackHole,
    /// Wherever they want.
    Passthrough,
}

impl Outside {
    /// By the name of the route.
    pub fn of_route(name: &str) -> Option<Self> {
        match name {
            "block_all" => Some(Self::BlackHole),
            "allow_any" => Some(Self::Passthrough),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::BlackHole => "BlackHoleCluster",
            Self::Passthrough => "PassthroughCluster",
        }
    }
}

/// What labels are made of. What is not known is empty.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// From where it is seen.
    pub side: Side,
    /// Our own workload.
    pub own: &'a Peer,
    /// The workload on the other side.
    pub peer: Option<&'a Peer>,
    /// The workload behind a gateway.
    pub endpoint: Option<&'a Peer>,
    /// Who the other side proved to be.
    pub peer_principal: &'a str,
    /// Who we proved to be.
    pub own_principal: &'a str,
    /// The service, if the cluster is one.
    pub service: Option<&'a MeshService>,
    /// What the route says about it.
    pub outside: Option<Outside>,
    /// The host of the request, if it may stand for the service.
    pub host: &'a str,
    /// What the stream carries.
    pub protocol: Protocol,
    /// HTTP status; 0 for none.
    pub code: u16,
    /// gRPC status of a gRPC call.
    pub grpc_status: Option<i64>,
    /// What went wrong.
    pub flags: ResponseFlags,
    /// The values of expressions, in the order of `StandardMetrics::dimensions`.
    pub dimensions: &'a [String],
}

impl Parts<'_> {
    /// What every label says.
    pub fn values(&self) -> Vec<(MeshLabel, Cow<'_, str>)> {
        MeshLabel::ALL.iter().map(|label| (*label, self.value(*label))).collect()
    }

    fn value(&self, label: MeshLabel) -> Cow<'_, str> {
        use MeshLabel as L;
        let (source, destination) = match self.side {
            Side::Source => (Some(self.own), self.peer),
            Side::Destination => (self.peer, Some(self.own)),
            Side::Gateway => (self.peer, self.endpoint),
        };
        let is_source = self.side == Side::Source;
        let by_side = |at_source, otherwise| known(if is_source { at_source } else { otherwise });
        match label {
            L::Reporter => Cow::Borrowed(match self.side {
                Side::Source => "source",
                Side::Destination => "destination",
                Side::Gateway => "waypoint",
            }),
            L::SourceWorkload => fact(source, |peer| &peer.workload, UNKNOWN),
            L::SourceCanonicalService => fact(source, |peer| &peer.canonical_name, UNKNOWN),
            L::SourceCanonicalRevision => fact(source, |peer| &peer.canonical_revision, LATEST),
            L::SourceWorkloadNamespace => by_side(&self.own.namespace, self.peer_namespace()),
            L::SourcePrincipal => by_side(self.own_principal, self.peer_principal),
            L::SourceApp => fact(source, |peer| &peer.app, UNKNOWN),
            L::SourceVersion => fact(source, |peer| &peer.version, UNKNOWN),
            L::SourceCluster => fact(source, |peer| &peer.cluster, UNKNOWN),
            L::DestinationWorkload => fact(destination, |peer| &peer.workload, UNKNOWN),
            L::DestinationWorkloadNamespace if is_source => known(self.peer_namespace()),
            L::DestinationWorkloadNamespace => fact(destination, |peer| &peer.namespace, UNKNOWN),
            L::DestinationPrincipal if self.side == Side::Gateway => {
                fact(self.endpoint, |peer| &peer.identity, UNKNOWN)
            }
            L::DestinationPrincipal => by_side(self.peer_principal, self.own_principal),
            L::DestinationApp => fact(destination, |peer| &peer.app, UNKNOWN),
            L::DestinationVersion => fact(destination, |peer| &peer.version, UNKNOWN),
            L::DestinationService => self.or_destination(self.service_host(), destination),
            L::DestinationCanonicalService => fact(destination, |peer| &peer.canonical_name, UNKNOWN),
            L::DestinationCanonicalRevision => fact(destination, |peer| &peer.canonical_revision, LATEST),
            L::DestinationServiceName => self.or_destination(self.service_name(), destination),
            L::DestinationServiceNamespace => by_side(self.peer_namespace(), &self.own.namespace),
            L::DestinationCluster if self.side == Side::Gateway => known(&self.own.cluster),
            L::DestinationCluster => fact(destination, |peer| &peer.cluster, UNKNOWN),
            L::RequestProtocol => Cow::Borrowed(match self.protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
                Protocol::Tcp => "tcp",
            }),
            L::ResponseCode => Cow::Owned(self.code.to_string()),
            L::GrpcResponseStatus => {
                self.grpc_status.map_or(Cow::Borrowed(""), |status| Cow::Owned(status.to_string()))
            }
            L::ResponseFlags => Cow::Owned(flags(self.flags, self.protocol)),
            L::ConnectionSecurityPolicy => Cow::Borrowed(match self.side {
                Side::Source => UNKNOWN,
                _ if self.peer_principal.is_empty() || self.own_principal.is_empty() => "none",
                _ => "mutual_tls",
            }),
        }
    }

    /// What a certificate says comes before what a peer says.
    fn peer_namespace(&self) -> &str {
        let proved = self.peer_principal.split_once("/ns/").and_then(|(_, rest)| rest.split('/').next());
        let told = self.peer.map_or("", |peer| &peer.namespace);
        proved.filter(|proved| !proved.is_empty()).unwrap_or(told)
    }

    fn service_host(&self) -> &str {
        let known = self.service.filter(|_| self.outside.is_none()).and_then(|service| service.host.as_deref());
        known.unwrap_or(self.host)
    }

    fn service_name(&self) -> &str {
        if let Some(outside) = self.outside {
            return outside.name();
        }
        match self.service {
            None => self.host,
            Some(MeshService { name: Some(name), .. }) => name,
            Some(_) => self.service_host().split('.').next().unwrap_or_default(),
        }
    }

    /// Beside the server, who is asked without a name is the workload itself.
    fn or_destination<'a>(&self, named: &'a str, destination: Option<&'a Peer>) -> Cow<'a, str> {
        let own = destination.filter(|_| self.side != Side::Source).map_or("", |peer| &peer.canonical_name);
        known(if named.is_empty() { own } else { named })
    }
}

fn fact<'p>(peer: Option<&'p Peer>, fact: fn(&Peer) -> &str, missing: &'static str) -> Cow<'p, str> {
    Cow::Borrowed(peer.map(fact).filter(|fact| !fact.is_empty()).unwrap_or(missing))
}

fn known(value: &str) -> Cow<'_, str> {
    Cow::Borrowed(if value.is_empty() { UNKNOWN } else { value })
}

fn flags(flags: ResponseFlags, protocol: Protocol) -> String {
    if flags.is_empty() {
        return "-".to_owned();
    }
    // In the order in which they are logged.
    let first = Some(ResponseFlag::UpstreamRetryLimitExceeded)
        .filter(|flag| protocol != Protocol::Tcp && flags.contains(*flag));
    let others = flags.iter().filter(|flag| Some(*flag) != first);
    let names: Vec<&str> = first.into_iter().chain(others).map(ResponseFlag::short).collect();
    names.join(",")
}

/// The labels that a metric has, unless they are removed.
fn has(metric: MeshMetric, label: MeshLabel) -> bool {
    match metric {
        // Messages are counted while the outcome of the call is not known.
        MeshMetric::RequestMessages | MeshMetric::ResponseMessages => {
            label as usize <= MeshLabel::DestinationCluster as usize
        }
        MeshMetric::TcpOpened | MeshMetric::TcpClosed | MeshMetric::TcpSent | MeshMetric::TcpReceived => {
            !matches!(label, MeshLabel::ResponseCode | MeshLabel::GrpcResponseStatus)
        }
        MeshMetric::Requests | MeshMetric::Duration | MeshMetric::RequestBytes | MeshMetric::ResponseBytes => true,
    }
}

/// The prefix of a metric's stat names. `values` are those of the usual labels, `dimensions` those of expressions.
pub fn prefix(
    metric: MeshMetric,
    settings: &StandardMetrics,
    values: &[(MeshLabel, Cow<'_, str>)],
    dimensions: &[String],
) -> String {
    let mut prefix = String::with_capacity(1024);
    prefix.push_str(NAMESPACE);
    let removed = settings.removed(metric);
    let given = || settings.dimensions.iter().zip(dimensions).filter(|(dimension, _)| dimension.is_of(metric));
    for (label, value) in values.iter().filter(|(label, _)| has(metric, *label) && !removed.contains(*label)) {
        let instead = given().rfind(|(dimension, _)| dimension.label == DimensionLabel::Usual(*label));
        push(&mut prefix, label.name(), instead.map_or(value, |(_, value)| value));
    }
    for (dimension, value) in given() {
        if let DimensionLabel::Further(name) = &dimension.label {
            push(&mut prefix, name, value);
        }
    }
    prefix
}

/// Appends a label.
pub fn push(prefix: &mut String, name: &str, value: &str) {
    prefix.push_str(name);
    prefix.push_str(LABEL_VALUE);
    let mut last = ' ';
    for letter in value.chars() {
        // A peer that invents names must neither end its label nor the line.
        let letter = if letter.is_control() || (last == ';' && letter == '.') { '_' } else { letter };
        prefix.push(letter);
        last = letter;
    }
    prefix.push_str(LABEL_END);
}

/// In which stats are shown by their bare names.
pub const NAMESPACE: &str = "istiocustom.";
const UNKNOWN: &str = "unknown";
const LATEST: &str = "latest";

#[cfg(test)]
mod tests {
    use super::super::super::Workload;
    use super::super::super::workload::tests::node;
    use super::*;
    use crate::stats::tags::TagExtractor;

    fn peer(name: &str) -> Peer {
        Peer {
            workload: format!("{name}-v1"),
            namespace: format!("{name}-ns"),
            cluster: "c2".to_owned(),
            app: name.to_owned(),
            version: "v1".to_owned(),
            canonical_name: name.to_owned(),
            ..Peer::default()
        }
    }

    fn parts<'a>(side: Side, own: &'a Peer) -> Parts<'a> {
        Parts {
            side,
            own,
            peer: None,
            endpoint: None,
            peer_principal: "",
            own_principal: "",
            service: None,
            outside: None,
            host: "",
            protocol: Protocol::Http,
            code: 200,
            grpc_status: None,
            flags: ResponseFlags::default(),
            dimensions: &[],
        }
    }

    /// The labels of a metric, as they are shown.
    fn shown(metric: MeshMetric, parts: &Parts<'_>) -> Vec<String> {
        let name = format!("{}istio_x", prefix(metric, &StandardMetrics::default(), &parts.values(), &[]));
        let tags = TagExtractor::default();
        let tagged = tags.extract(&name);
        assert_eq!(tagged.base, "istiocustom.istio_x");
        tagged.tags.iter().map(|(label, value)| format!("{label}={value}")).collect()
    }

    fn of(parts: &Parts<'_>, label: MeshLabel) -> String {
        parts.value(label).into_owned()
    }

    #[test]
    fn a_request_has_all_labels_in_order() {
        let own = peer("own");
        let service = MeshService { host: Some("b.ns.svc".into()), name: Some("b".into()) };
        let parts = Parts {
            peer: Some(&peer("other")),
            peer_principal: "spiffe://cluster.local/ns/proved/sa/other",
            own_principal: "spiffe://cluster.local/ns/own-ns/sa/own",
            service: Some(&service),
            flags: ResponseFlags::default().with(ResponseFlag::NoHealthyUpstream),
            code: 503,
            ..parts(Side::Source, &own)
        };
        assert_eq!(
            shown(MeshMetric::Requests, &parts),
            [
                "reporter=source",
                "source_workload=own-v1",
                "source_canonical_service=own",
                "source_canonical_revision=latest",
                "source_workload_namespace=own-ns",
                "source_principal=spiffe://cluster.local/ns/own-ns/sa/own",
                "source_app=own",
                "source_version=v1",
                "source_cluster=c2",
                "destination_workload=other-v1",
                "destination_workload_namespace=proved",
                "destination_principal=spiffe://cluster.local/ns/proved/sa/other",
                "destination_app=other",
                "destination_version=v1",
                "destination_service=b.ns.svc",
                "destination_canonical_service=other",
                "destination_canonical_revision=latest",
                "destination_service_name=b",
                "destination_service_namespace=proved",
                "destination_cluster=c2",
                "request_protocol=http",
                "response_code=503",
                "grpc_response_status=",
                "response_flags=UH",
                "connection_security_policy=unknown",
            ]
        );
        let tcp = shown(MeshMetric::TcpSent, &Parts { protocol: Protocol::Tcp, ..parts });
        assert_eq!(tcp[20..], ["request_protocol=tcp", "response_flags=UH", "connection_security_policy=unknown"]);
        assert_eq!(shown(MeshMetric::RequestMessages, &parts).last().unwrap(), "destination_cluster=c2");
    }

    #[test]
    fn beside_the_server_the_client_is_the_source() {
        let own = peer("own");
        let client = peer("client");
        let known = Parts { peer: Some(&client), ..parts(Side::Destination, &own) };
        for (label, value) in [
            (MeshLabel::Reporter, "destination"),
            (MeshLabel::SourceWorkload, "client-v1"),
            (MeshLabel::SourceWorkloadNamespace, "client-ns"),
            (MeshLabel::DestinationWorkload, "own-v1"),
            (MeshLabel::DestinationWorkloadNamespace, "own-ns"),
            (MeshLabel::DestinationServiceNamespace, "own-ns"),
            (MeshLabel::DestinationService, "own"),
            (MeshLabel::DestinationServiceName, "own"),
            (MeshLabel::ConnectionSecurityPolicy, "none"),
        ] {
            assert_eq!(of(&known, label), value, "{label:?}");
        }
        let secure = Parts { peer_principal: "spiffe://a", own_principal: "spiffe://b", ..known };
        assert_eq!(of(&secure, MeshLabel::ConnectionSecurityPolicy), "mutual_tls");
        assert_eq!(of(&secure, MeshLabel::DestinationPrincipal), "spiffe://b");
        // Only one side that proved who it is does not make it mutual.
        let half = Parts { peer_principal: "", ..secure };
        assert_eq!(of(&half, MeshLabel::ConnectionSecurityPolicy), "none");
    }

    #[test]
    fn who_says_nothing_is_unknown() {
        let nobody = Peer::default();
        for side in [Side::Source, Side::Destination, Side::Gateway] {
            for (label, value) in parts(side, &nobody).values() {
                let expected = match label {
                    MeshLabel::SourceCanonicalRevision | MeshLabel::DestinationCanonicalRevision => "latest",
                    MeshLabel::Reporter
                    | MeshLabel::RequestProtocol
                    | MeshLabel::ResponseCode
                    | MeshLabel::GrpcResponseStatus
                    | MeshLabel::ResponseFlags
                    | MeshLabel::ConnectionSecurityPolicy => continue,
                    _ => "unknown",
                };
                assert_eq!(value, expected, "{side:?} {label:?}");
            }
        }
    }

    #[test]
    fn a_service_is_named_by_its_cluster_or_route_or_host() {
        let own = peer("own");
        let without_name = MeshService { host: Some("b.ns.svc".into()), name: None };
        let special = MeshService { host: None, name: Some("PassthroughCluster".into()) };
        let base = Parts { host: "h.example", ..parts(Side::Source, &own) };
        for (parts, host, name) in [
            (base, "h.example", "h.example"),
            (Parts { service: Some(&without_name), ..base }, "b.ns.svc", "b"),
            (Parts { service: Some(&special), ..base }, "h.example", "PassthroughCluster"),
            (Parts { service: Some(&special), host: "", ..base }, "unknown", "PassthroughCluster"),
            (Parts { outside: Some(Outside::BlackHole), ..base }, "h.example", "BlackHoleCluster"),
            (Parts { outside: Outside::of_route("allow_any"), ..base }, "h.example", "PassthroughCluster"),
        ] {
            assert_eq!(of(&parts, MeshLabel::DestinationService), host);
            assert_eq!(of(&parts, MeshLabel::DestinationServiceName), name);
        }
    }

    #[test]
    fn a_gateway_tells_of_the_endpoint_behind_it() {
        let (own, client, endpoint) = (peer("own"), peer("client"), peer("endpoint"));
        let parts = Parts { peer: Some(&client), endpoint: Some(&endpoint), ..parts(Side::Gateway, &own) };
        for (label, value) in [
            (MeshLabel::Reporter, "waypoint"),
            (MeshLabel::SourceWorkload, "client-v1"),
            (MeshLabel::DestinationWorkload, "endpoint-v1"),
            (MeshLabel::DestinationService, "endpoint"),
            (MeshLabel::DestinationServiceNamespace, "own-ns"),
        ] {
            assert_eq!(of(&parts, label), value, "{label:?}");
        }
    }

    #[test]
    fn a_peer_cannot_end_its_label() {
        let own = Workload::of(&node());
        let evil = Peer { workload: "a;.;reporter=.=x;.;\nb;".to_owned(), app: ";.".to_owned(), ..Peer::default() };
        let parts = Parts { peer: Some(&evil), ..parts(Side::Destination, own.own()) };
        let shown = shown(MeshMetric::Requests, &parts);
        assert_eq!(shown.len(), MeshLabel::ALL.len());
        assert_eq!((&*shown[1], &*shown[6]), ("source_workload=a;_;reporter=.=x;_;_b;", "source_app=;_"));
    }
}
