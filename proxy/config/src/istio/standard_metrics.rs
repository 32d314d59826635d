//! The standard metrics of a mesh (`stats.PluginConfig`).
//!
//! Owns the names of metrics and labels, and which of them a filter reports. Never counts.

use std::time::Duration;

use outrigger_api::istio::stats as pb;

use crate::cel::Expression;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $name { $($variant),* }

        impl $name {
            /// All of them, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            fn named(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

names! {
    /// A standard metric, by its name in configurations; `istio_` stands in front of it where it is shown.
    MeshMetric {
        Requests = "requests_total",
        Duration = "request_duration_milliseconds",
        RequestBytes = "request_bytes",
        ResponseBytes = "response_bytes",
        RequestMessages = "request_messages_total",
        ResponseMessages = "response_messages_total",
        TcpOpened = "tcp_connections_opened_total",
        TcpClosed = "tcp_connections_closed_total",
        TcpSent = "tcp_sent_bytes_total",
        TcpReceived = "tcp_received_bytes_total",
    }
}

names! {
    /// A label of standard metrics.
    MeshLabel {
        Reporter = "reporter",
        SourceWorkload = "source_workload",
        SourceCanonicalService = "source_canonical_service",
        SourceCanonicalRevision = "source_canonical_revision",
        SourceWorkloadNamespace = "source_workload_namespace",
        SourcePrincipal = "source_principal",
        SourceApp = "source_app",
        SourceVersion = "source_version",
        SourceCluster = "source_cluster",
        DestinationWorkload = "destination_workload",
        DestinationWorkloadNamespace = "destination_workload_namespace",
        DestinationPrincipal = "destination_principal",
        DestinationApp = "destination_app",
        DestinationVersion = "destination_version",
        DestinationService = "destination_service",
        DestinationCanonicalService = "destination_canonical_service",
        DestinationCanonicalRevision = "destination_canonical_revision",
        DestinationServiceName = "destination_service_name",
        DestinationServiceNamespace = "destination_service_namespace",
        DestinationCluster = "destination_cluster",
        RequestProtocol = "request_protocol",
        ResponseCode = "response_code",
        GrpcResponseStatus = "grpc_response_status",
        ResponseFlags = "response_flags",
        ConnectionSecurityPolicy = "connection_security_policy",
    }
}

/// How many metrics there are.
pub const MESH_METRICS: usize = MeshMetric::ALL.len();

/// A set of labels.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LabelSet(u32);

impl LabelSet {
    /// Whether `label` is in it.
    pub fn contains(self, label: MeshLabel) -> bool {
        self.0 & (1 << label as u32) != 0
    }

    fn insert(&mut self, label: MeshLabel) {
        self.0 |= 1 << label as u32;
    }

    fn remove(&mut self, label: MeshLabel) {
        self.0 &= !(1 << label as u32);
    }
}

/// The filter of the mesh's standard metrics. Source: `stats.PluginConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct StandardMetrics {
    /// Without a known service, its name is taken from the host header.
    pub host_fallback: bool,
    /// How often TCP connections that last are reported; at their ends alone when `None`. 5 s unless given.
    pub tcp_interval: Option<Duration>,
    /// It stands in front of the workloads of others.
    pub gateway: bool,
    /// Series that nobody adds to are dropped, if at all.
    pub rotation: Option<Rotation>,
    /// Labels whose values are those of expressions. Source: `metrics[].dimensions`.
    pub dimensions: Vec<Dimension>,
    /// What is asked for and not done, for people.
    pub left_out: Vec<String>,
    dropped: u16,
    removed: [LabelSet; MESH_METRICS],
}

/// A label whose value is that of an expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Dimension {
    /// Which label; one of the usual has this value instead of its own.
    pub label: DimensionLabel,
    /// Gives its value.
    pub expression: Expression,
    metrics: u16,
}

/// Which label a [`Dimension`] is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DimensionLabel {
    /// One of the usual.
    Usual(MeshLabel),
    /// Another one, which comes after the usual.
    Further(Box<str>),
}

impl Dimension {
    /// Whether it is a label of `metric`.
    pub fn is_of(&self, metric: MeshMetric) -> bool {
        self.metrics & (1 << metric as u16) != 0
    }
}

/// When series are dropped that nobody adds to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rotation {
    /// How often they are looked for. Source: `rotation_interval`.
    pub interval: Duration,
    /// How long they are still shown; 5 min unless given. Source: `graceful_deletion_interval`.
    pub grace: Duration,
}

impl Default for StandardMetrics {
    fn default() -> Self {
        Self {
            host_fallback: true,
            tcp_interval: Some(TCP_INTERVAL),
            gateway: false,
            rotation: None,
            dimensions: Vec::new(),
            left_out: Vec::new(),
            dropped: 0,
            removed: [LabelSet::default(); MESH_METRICS],
        }
    }
}

const TCP_INTERVAL: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(300);

impl StandardMetrics {
    /// Whether `metric` is reported.
    pub fn reports(&self, metric: MeshMetric) -> bool {
        self.dropped & (1 << metric as u16) == 0
    }

    /// The labels that `metric` does not have.
    pub fn removed(&self, metric: MeshMetric) -> LabelSet {
        self.removed[metric as usize]
    }

    pub(crate) fn parse(at: &FieldPath<'_>, wire: pb::PluginConfig) -> Parsed<Self> {
        let left_out = wire.definitions.iter().map(|definition| format!("the metric {:?}", definition.name)).collect();
        decide!(wire, at, pb::PluginConfig as "stats.PluginConfig" {
            implemented: disable_host_header_fallback, tcp_reporting_duration, metrics, reporter, rotation_interval,
                graceful_deletion_interval;
            no_effect: definitions = "metrics of expressions are not counted; a warning is logged";
            unsupported: ;
        });
        let field = at.field("reporter");
        let gateway = match pb::Reporter::try_from(reporter) {
            Ok(pb::Reporter::Unspecified) => false,
            Ok(pb::Reporter::ServerGateway) => true,
            Err(_) => return Err(field.reject(format!("{reporter} is not a known value"))),
        };
        let time =
            |field: &'static str, wire: Option<_>| wire.map(|wire| wire::duration(&at.field(field), wire)).transpose();
        let tcp = time("tcp_reporting_duration", tcp_reporting_duration)?;
        let grace = time("graceful_deletion_interval", graceful_deletion_interval)?;
        let interval = time("rotation_interval", rotation_interval)?;
        let mut settings = Self {
            host_fallback: !disable_host_header_fallback,
            tcp_interval: Some(tcp.unwrap_or(TCP_INTERVAL)).filter(|interval| !interval.is_zero()),
            gateway,
            rotation: interval
                .filter(|interval| !interval.is_zero())
                .map(|interval| Rotation { interval, grace: grace.unwrap_or(GRACE) }),
            left_out,
            ..Self::default()
        };
        for (index, wire) in metrics.into_iter().enumerate() {
            settings.change(&at.field("metrics").item(index), wire);
        }
        Ok(settings)
    }

    /// As Istio does it, names that are not standard mean nothing.
    fn change(&mut self, at: &FieldPath<'_>, wire: pb::MetricConfig) {
        decide!(wire, at, pb::MetricConfig as "stats.MetricConfig" {
            implemented: dimensions, name, tags_to_remove, drop;
            no_effect: r#match = "Istio does not read it either";
            unsupported: ;
        });
        if drop {
            if let Some(metric) = MeshMetric::named(&name) {
                self.dropped |= 1 << metric as u16;
            }
            return;
        }
        let meant = |metric: &MeshMetric| name.is_empty() || metric.name() == name;
        for metric in MeshMetric::ALL.iter().filter(|metric| meant(metric)) {
            for label in tags_to_remove.iter().filter_map(|tag| MeshLabel::named(tag)) {
                self.removed[*metric as usize].insert(label);
            }
        }
        let metrics =
            MeshMetric::ALL.iter().filter(|metric| meant(metric)).fold(0, |set, metric| set | 1 << *metric as u16);
        let mut dimensions: Vec<(String, String)> = dimensions.into_iter().collect();
        dimensions.sort();
        for (label, text) in dimensions {
            let expression = match Expression::parse(&text) {
                Ok(expression) => expression,
                Err(reason) => {
                    self.left_out.push(format!("the label {label:?}, as {text:?} is no expression: {reason}"));
                    continue;
                }
            };
            let label = match MeshLabel::named(&label) {
                Some(usual) => {
                    let of = MeshMetric::ALL.iter().filter(|metric| metrics & (1 << **metric as u16) != 0);
                    of.for_each(|metric| self.removed[*metric as usize].remove(usual));
                    DimensionLabel::Usual(usual)
                }
                None => DimensionLabel::Further(label.into()),
            };
            self.dimensions.push(Dimension { label, expression, metrics });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: pb::PluginConfig) -> Parsed<StandardMetrics> {
        StandardMetrics::parse(&FieldPath::resource("filter", "f"), wire)
    }

    fn change(name: &str, tags: &[&str], drop: bool) -> pb::MetricConfig {
        let tags_to_remove = tags.iter().map(|tag| (*tag).to_owned()).collect();
        pb::MetricConfig { name: name.to_owned(), tags_to_remove, drop, ..Default::default() }
    }

    #[test]
    fn an_empty_message_reports_everything() {
        let settings = read(pb::PluginConfig::default()).unwrap();
        assert_eq!(settings, StandardMetrics::default());
        for metric in MeshMetric::ALL {
            assert!(settings.reports(*metric) && settings.removed(*metric) == LabelSet::default());
        }
    }

    #[test]
    fn labels_are_removed_from_one_metric_or_all_and_metrics_dropped_by_name() {
        let settings = read(pb::PluginConfig {
            metrics: vec![
                change("", &["source_cluster", "nonsense"], false),
                change("requests_total", &["response_flags"], false),
                change("request_bytes", &["reporter"], true),
                change("", &[], true),
                change("unknown", &[], true),
            ],
            ..Default::default()
        })
        .unwrap();
        let removed = |metric| {
            let removed = settings.removed(metric);
            MeshLabel::ALL
                .iter()
                .filter(|label| removed.contains(**label))
                .map(|label| label.name())
                .collect::<Vec<_>>()
        };
        assert_eq!(removed(MeshMetric::Requests), ["source_cluster", "response_flags"]);
        assert_eq!(removed(MeshMetric::RequestBytes), ["source_cluster"]);
        let reported = MeshMetric::ALL.iter().filter(|metric| settings.reports(**metric)).count();
        assert_eq!((reported, settings.reports(MeshMetric::RequestBytes)), (MESH_METRICS - 1, false));
    }

    #[test]
    fn times_and_sides_are_read() {
        let seconds = |seconds| Some(outrigger_api::pb::google::protobuf::Duration { seconds, nanos: 0 });
        let settings = read(pb::PluginConfig {
            disable_host_header_fallback: true,
            tcp_reporting_duration: seconds(0),
            reporter: 1,
            rotation_interval: seconds(600),
            ..Default::default()
        })
        .unwrap();
        let rotation = Rotation { interval: Duration::from_secs(600), grace: GRACE };
        assert_eq!((settings.host_fallback, settings.tcp_interval, settings.gateway), (false, None, true));
        assert_eq!(settings.rotation, Some(rotation));
        let error = read(pb::PluginConfig { reporter: 7, ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains("reporter: 7 is not a known value"), "{error}");
    }

    #[test]
    fn expressions_give_labels_in_order_and_what_is_none_is_noticed() {
        let dimensions = [("x", "request.host"), ("a", "1 +"), ("b", "'b'"), ("source_app", "'app'")];
        let dimensions = dimensions.map(|(label, text)| (label.to_owned(), text.to_owned())).into();
        let tags_to_remove = vec!["source_app".to_owned()];
        let metric =
            pb::MetricConfig { dimensions, tags_to_remove, name: "requests_total".to_owned(), ..Default::default() };
        let definition = pb::MetricDefinition { name: "own".to_owned(), ..Default::default() };
        let settings =
            read(pb::PluginConfig { metrics: vec![metric], definitions: vec![definition], ..Default::default() })
                .unwrap();
        let labels: Vec<_> = settings.dimensions.iter().map(|dimension| dimension.label.clone()).collect();
        let further = |name: &str| DimensionLabel::Further(name.into());
        assert_eq!(labels, [further("b"), DimensionLabel::Usual(MeshLabel::SourceApp), further("x")]);
        assert!(
            settings.dimensions[0].is_of(MeshMetric::Requests) && !settings.dimensions[0].is_of(MeshMetric::Duration)
        );
        assert!(!settings.removed(MeshMetric::Requests).contains(MeshLabel::SourceApp));
        assert_eq!(settings.left_out.len(), 2, "{:?}", settings.left_out);
    }
}
