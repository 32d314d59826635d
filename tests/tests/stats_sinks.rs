//! Stats that are sent: what each receiver is told. The same scenarios run on Envoy with `OUTRIGGER_BIN=envoy`.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use outrigger_api::pb::io::prometheus::client::MetricType;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Upstream, h1, metrics};

/// A proxy with a listener `web` whose requests go to the cluster `a`, and this sink.
async fn start(upstream: &Upstream, sink: &str, more: &str, receiver: &[String]) -> (Proxy, SocketAddr) {
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
    let clusters: Vec<String> = [cluster("a", &[upstream.port()])].iter().chain(receiver).cloned().collect();
    let proxy = Proxy::start(&format!(
        "{}stats_sinks: [{{ name: sink, typed_config: {{ {sink} }} }}]\n{more}",
        bootstrap(&[listener], &clusters)
    ))
    .await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

const QUICK: &str = "stats_flush_interval: 0.1s\n";

/// Only these: a datagram for each of all stats, again and again, is more than the receiver's system keeps for it when it is
/// slow, and what is lost is told by nobody.
const FEW: &str = "stats_config: { stats_matcher: { inclusion_list: { patterns: [{ prefix: cluster.a.upstream_rq }, \
    { exact: cluster.a.membership_healthy }, { exact: server.uptime }] } } }\n";

async fn requests(web: SocketAddr, count: usize) {
    let mut client = h1::Client::connect(web).await;
    for _ in 0..count {
        assert_eq!(client.request("GET", "/", &[], b"").await.status, 200);
    }
}

/// The value of a line of statsd that begins with this name, without its type.
fn value_of(line: &str, name: &str) -> Option<i64> {
    let rest = line.strip_prefix(name)?.strip_prefix(':')?;
    rest.split_once('|')?.0.parse().ok()
}

/// Adds up what a counter has counted, until it is `wanted`.
async fn sum(receiver: &mut metrics::Receiver<String>, name: &str, wanted: i64) {
    let mut sum = 0;
    while sum < wanted {
        let datagram = receiver.next().await;
        sum += datagram.lines().filter_map(|line| value_of(line, name)).sum::<i64>();
    }
    assert_eq!(sum, wanted);
}

#[tokio::test]
async fn statsd_gets_what_was_counted_since_by_datagrams() {
    let (upstream, mut statsd) = (Upstream::start("a").await, metrics::statsd_udp().await);
    let sink = format!(
        "'@type': type.googleapis.com/envoy.config.metrics.v3.StatsdSink, \
         address: {{ socket_address: {{ address: 127.0.0.1, port_value: {}, protocol: UDP }} }}",
        statsd.port()
    );
    let (_proxy, web) = start(&upstream, &sink, &format!("{QUICK}{FEW}"), &[]).await;
    requests(web, 3).await;
    sum(&mut statsd, "envoy.cluster.a.upstream_rq_total", 3).await;
    requests(web, 2).await;
    sum(&mut statsd, "envoy.cluster.a.upstream_rq_total", 2).await;
    // Quiet counters and gauges are sent as well.
    statsd.find(|line| (line == "envoy.cluster.a.upstream_rq_total:0|c").then_some(())).await;
    statsd.find(|line| (line == "envoy.cluster.a.membership_healthy:1|g").then_some(())).await;
    statsd.find(|line| line.starts_with("envoy.server.uptime:").then_some(())).await;
}

#[tokio::test]
async fn statsd_gets_times_and_a_prefix_over_a_cluster() {
    let (upstream, mut statsd) = (Upstream::start("a").await, metrics::statsd_tcp().await);
    let sink =
        "'@type': type.googleapis.com/envoy.config.metrics.v3.StatsdSink, tcp_cluster_name: statsd, prefix: mesh";
    let (_proxy, web) = start(&upstream, sink, QUICK, &[cluster("statsd", &[statsd.port()])]).await;
    requests(web, 1).await;
    let time = statsd.find(|line| line.starts_with("mesh.cluster.a.upstream_rq_time:").then(|| line.clone())).await;
    assert!(time.ends_with("|ms"), "{time}");
}

#[tokio::test]
async fn dog_statsd_gets_tags_and_full_datagrams() {
    let (upstream, mut statsd) = (Upstream::start("a").await, metrics::statsd_udp().await);
    let sink = format!(
        "'@type': type.googleapis.com/envoy.config.metrics.v3.DogStatsdSink, prefix: dog, max_bytes_per_datagram: 400, \
         address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}",
        statsd.port()
    );
    let (_proxy, web) = start(&upstream, &sink, &format!("{QUICK}{FEW}"), &[]).await;
    requests(web, 1).await;
    let wanted = "dog.cluster.upstream_rq:1|c|#";
    let datagram = statsd.find(|datagram| datagram.contains(wanted).then(|| datagram.clone())).await;
    let line = datagram.lines().find(|line| line.starts_with(wanted)).unwrap();
    assert!(line.contains("envoy.cluster_name:a") && line.contains("envoy.response_code:200"), "{line}");
    assert!(datagram.len() <= 400 && datagram.lines().count() > 1, "{datagram}");
}

#[tokio::test]
async fn graphite_gets_tags_in_the_name() {
    let (upstream, mut statsd) = (Upstream::start("a").await, metrics::statsd_udp().await);
    let sink = format!(
        "'@type': type.googleapis.com/envoy.extensions.stat_sinks.graphite_statsd.v3.GraphiteStatsdSink, \
         address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}",
        statsd.port()
    );
    let (_proxy, web) = start(&upstream, &sink, &format!("{QUICK}{FEW}"), &[]).await;
    requests(web, 1).await;
    let wanted = "envoy.cluster.upstream_rq_total;envoy.cluster_name=a:1|c";
    statsd.find(|line| (line == wanted).then_some(())).await;
}

#[tokio::test]
async fn a_metrics_service_is_told_who_we_are_once_and_then_all_that_is_used() {
    let (upstream, mut service) = (Upstream::start("a").await, metrics::metrics_service().await);
    let sink = "'@type': type.googleapis.com/envoy.config.metrics.v3.MetricsServiceConfig, transport_api_version: V3, \
                emit_tags_as_labels: true, grpc_service: { envoy_grpc: { cluster_name: metrics } }";
    let (_proxy, web) = start(&upstream, sink, QUICK, &[http2_cluster("metrics", &[service.port()])]).await;
    requests(web, 4).await;
    let first = service.next().await;
    assert_eq!(first.identifier.unwrap().node.unwrap().id, "proxy-under-test");
    let (kind, value) = service
        .find(|message| {
            assert!(message.identifier.is_none());
            message.envoy_metrics.iter().find_map(|family| {
                let metric = &family.metric[0];
                let of_a =
                    metric.label.iter().any(|label| label.name() == "envoy.cluster_name" && label.value() == "a");
                let value = metric.counter.as_ref()?.value?;
                (family.name() == "cluster.upstream_rq_total" && of_a && value >= 4.0).then(|| (family.r#type(), value))
            })
        })
        .await;
    assert_eq!((kind, value), (MetricType::Counter, 4.0));
    let histogram = |family: &outrigger_api::pb::io::prometheus::client::MetricFamily| {
        family.name() == "cluster.upstream_rq_time" && family.r#type() == MetricType::Histogram
    };
    service.find(|message| message.envoy_metrics.iter().any(histogram).then_some(())).await;
}

#[tokio::test]
async fn a_collector_gets_sums_gauges_and_histograms_with_attributes() {
    let (upstream, mut collector) = (Upstream::start("a").await, metrics::otlp_metrics().await);
    let sink = "'@type': type.googleapis.com/envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig, prefix: mesh, \
                grpc_service: { envoy_grpc: { cluster_name: metrics } }";
    let (_proxy, web) = start(&upstream, sink, QUICK, &[http2_cluster("metrics", &[collector.port()])]).await;
    requests(web, 4).await;
    let sum = collector
        .find(|request| {
            let scopes = request.resource_metrics.iter().flat_map(|metrics| &metrics.scope_metrics);
            scopes.flat_map(|scope| &scope.metrics).find_map(|metric| match &metric.data {
                Some(Data::Sum(sum)) if metric.name == "mesh.cluster.upstream_rq_total" => {
                    let of_a = sum.data_points.iter().find(|point| {
                        point.attributes.iter().any(|attribute| {
                            let value = attribute.value.as_ref().and_then(|value| value.value.clone());
                            attribute.key == "envoy.cluster_name"
                                && value == Some(any_value::Value::StringValue("a".into()))
                        })
                    })?;
                    (of_a.value == Some(Value::AsInt(4))).then(|| sum.clone())
                }
                _ => None,
            })
        })
        .await;
    // Cumulative, and only growing.
    assert_eq!((sum.aggregation_temporality, sum.is_monotonic), (2, true));
}

#[tokio::test]
async fn stats_are_sent_when_the_admin_port_is_asked_if_that_is_wanted() {
    let (upstream, mut statsd) = (Upstream::start("a").await, metrics::statsd_udp().await);
    let sink = format!(
        "'@type': type.googleapis.com/envoy.config.metrics.v3.StatsdSink, \
         address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}",
        statsd.port()
    );
    let (proxy, web) = start(&upstream, &sink, &format!("stats_flush_on_admin: true\n{FEW}"), &[]).await;
    requests(web, 2).await;
    proxy.admin("/stats").await;
    sum(&mut statsd, "envoy.cluster.a.upstream_rq_total", 2).await;
}
