//! Load reports to control planes: what clusters count reaches a server that asks, as it does from Envoy.

use std::path::PathBuf;

use control_plane_mock::MockControlPlane;
use outrigger_api::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use outrigger_api::pb::envoy::service::load_stats::v3::LoadStatsResponse;
use outrigger_api::pb::google::protobuf::Duration;
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster_with, http, http2_cluster, resource, resources, routes,
};
use outrigger_tests::load_service::{LoadService, LoadStream};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy};

/// Asks for reports every tenth of a second.
fn asked(clusters: &[&str]) -> LoadStatsResponse {
    LoadStatsResponse {
        clusters: clusters.iter().map(|name| (*name).to_owned()).collect(),
        send_all_clusters: clusters.is_empty(),
        load_reporting_interval: Some(Duration { seconds: 0, nanos: 100_000_000 }),
        report_endpoint_granularity: false,
    }
}

/// Endpoints of one place.
fn place(zone: &str, priority: u32, port: u16) -> String {
    format!(
        "{{ locality: {{ region: r, zone: {zone} }}, priority: {priority}, lb_endpoints: [{{ endpoint: {{ address: {{ \
         socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}"
    )
}

fn cluster_of(name: &str, places: &[String], more: &str) -> String {
    format!(
        "{{ name: {name}, type: STATIC, connect_timeout: 5s{more}, load_assignment: {{ cluster_name: {name}, \
         endpoints: [{}] }} }}",
        places.join(", ")
    )
}

const LOADS: &str = "cluster_manager: { load_stats_config: { api_type: GRPC, transport_api_version: V3, \
                     grpc_services: [{ envoy_grpc: { cluster_name: lrs } }] } }\n";

fn totals(places: &[UpstreamLocalityStats]) -> Vec<(String, u32, u64, u64, u64, u64)> {
    let total = |at: &UpstreamLocalityStats| {
        let zone = at.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default();
        let (success, error) = (at.total_successful_requests, at.total_error_requests);
        (zone, at.priority, success, error, at.total_issued_requests, at.total_requests_in_progress)
    };
    places.iter().map(total).collect()
}

/// Adds up reports of a cluster until `count` requests are issued and none is in flight.
async fn gather(stream: &mut LoadStream, cluster: &str, count: u64) -> Vec<(String, u32, u64, u64, u64)> {
    let mut sums: Vec<(String, u32, u64, u64, u64)> = Vec::new();
    loop {
        let report: ClusterStats = stream.report(cluster, |_| true).await;
        let places = totals(&report.upstream_locality_stats);
        for (zone, priority, success, error, issued, _) in &places {
            match sums.iter_mut().find(|sum| sum.0 == *zone && sum.1 == *priority) {
                Some(sum) => (sum.2, sum.3, sum.4) = (sum.2 + success, sum.3 + error, sum.4 + issued),
                None => sums.push((zone.clone(), *priority, *success, *error, *issued)),
            }
        }
        if sums.iter().map(|sum| sum.4).sum::<u64>() >= count && places.iter().all(|place| place.5 == 0) {
            sums.sort();
            return sums;
        }
    }
}

/// What a proxy says about the same requests: its introduction, sums by place, requests in flight, and dropped ones.
#[derive(Debug, PartialEq)]
struct Seen {
    features: bool,
    sums: Vec<(String, u32, u64, u64, u64)>,
    in_flight: Vec<(String, u32, u64, u64, u64, u64)>,
    dropped: u64,
    idle: usize,
    requests: bool,
}

async fn seen(program: PathBuf) -> Seen {
    let mut service = LoadService::start().await;
    let (near, far) = (Upstream::start("near").await, Upstream::start("far").await);
    let places = [place("a", 0, near.port()), place("b", 0, far.port())];
    let limits = ", circuit_breakers: { thresholds: [{ max_requests: 1 }] }";
    let clusters = [
        cluster_of("c", &places, ""),
        cluster_of("limited", &[place("a", 0, near.port())], limits),
        http2_cluster("lrs", &[service.address().port()]),
    ];
    let all = "{ match: { prefix: /limited }, route: { cluster: limited } }, ";
    let listener = config::listener("web", &[chain(&http("web", &routes(&format!("{all}{}", all_to("c")))), "")], "");
    let settings = Settings { program, concurrency: 2, ..Settings::default() };
    let proxy = Proxy::start_with(&format!("{LOADS}{}", bootstrap(&[listener], &clusters)), settings).await;
    let web = proxy.listener("web").await;
    let mut stream = service.stream().await;
    let first = stream.next().await;
    let node = first.node.unwrap();
    assert_eq!((&*node.id, first.cluster_stats.len()), ("proxy-under-test", 0));
    let features = node.client_features.iter().any(|feature| feature == "envoy.lrs.supports_send_all_clusters");
    // Nobody has asked yet, so this does not count.
    assert_eq!(h1::get(web, "/").await.status, 200);
    stream.ask(asked(&["c", "limited", "nobody"]));
    let report = stream.next().await.cluster_stats;
    let names: Vec<&str> = report.iter().map(|stats| &*stats.cluster_name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(report.iter().all(|stats| stats.load_report_interval.is_some()));
    let idle = report.iter().map(|stats| stats.upstream_locality_stats.len()).sum();

    let mut client = h1::Client::connect(web).await;
    for number in 0..8 {
        let status = if number < 6 { "status=200" } else { "status=503" };
        client.request("GET", "/", &[("x-reply", status)], b"").await;
    }
    let sums = gather(&mut stream, "c", 8).await;

    let before = near.counts().requests;
    let mut waiting = h1::Client::connect(web).await;
    waiting.send("GET /limited HTTP/1.1\r\nhost: a\r\nx-reply: hang\r\n\r\n").await;
    near.wait("it waits", |counts| counts.requests > before).await;
    let busy = stream.report("limited", |stats| !stats.upstream_locality_stats.is_empty()).await;
    let in_flight = totals(&busy.upstream_locality_stats);
    assert_eq!(h1::get(web, "/limited").await.status, 503);
    let dropped = stream.report("limited", |stats| stats.total_dropped_requests > 0).await.total_dropped_requests;
    let requests = proxy.stat("load_reporter.requests").await == 1 && proxy.stat("load_reporter.responses").await >= 3;
    Seen { features, sums, in_flight, dropped, idle, requests }
}

#[tokio::test]
async fn reports_say_what_those_of_envoy_say() {
    let (ours, theirs) = (seen(proxy::program()).await, seen(proxy::envoy()).await);
    assert_eq!(ours, theirs);
    let issued = |zone: &str| ours.sums.iter().filter(|sum| sum.0 == zone).map(|sum| sum.4).sum::<u64>();
    assert_eq!((issued("a"), issued("b")), (4, 4));
    assert_eq!(ours.sums.iter().map(|sum| sum.3).sum::<u64>(), 2);
    assert_eq!((ours.dropped, ours.in_flight.len(), ours.idle), (1, 1, 0));
}

#[tokio::test]
async fn endpoints_and_all_clusters_are_reported_when_asked_for() {
    let mut service = LoadService::start().await;
    let upstream = Upstream::start("a").await;
    let clusters = [cluster_with("c", &[upstream.port()], ""), http2_cluster("lrs", &[service.address().port()])];
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let proxy = Proxy::start(&format!("{LOADS}{}", bootstrap(&[listener], &clusters))).await;
    let web = proxy.listener("web").await;
    let mut stream = service.stream().await;
    stream.next().await;
    stream.ask(LoadStatsResponse { report_endpoint_granularity: true, ..asked(&[]) });
    let names: Vec<String> = stream.next().await.cluster_stats.into_iter().map(|stats| stats.cluster_name).collect();
    assert_eq!(names, ["c", "lrs"]);
    h1::get(web, "/").await;
    let report = stream.report("c", |stats| !stats.upstream_locality_stats.is_empty()).await;
    let endpoints = &report.upstream_locality_stats[0].upstream_endpoint_stats;
    assert_eq!(endpoints.len(), 1);
    assert!(format!("{:?}", endpoints[0].address).contains(&upstream.port().to_string()), "{endpoints:?}");
    assert_eq!(endpoints[0].total_issued_requests, 1);
}

#[tokio::test]
async fn a_server_that_was_away_is_found_again() {
    let mut service = LoadService::start().await;
    let upstream = Upstream::start("a").await;
    let clusters = [cluster_with("c", &[upstream.port()], ""), http2_cluster("lrs", &[service.address().port()])];
    let proxy = Proxy::start(&format!("{LOADS}{}", bootstrap(&[], &clusters))).await;
    let mut stream = service.stream().await;
    stream.next().await;
    stream.ask(asked(&["c"]));
    stream.next().await;
    drop(stream);
    let mut stream = service.stream().await;
    assert!(stream.next().await.node.is_some(), "it says who it is on each stream");
    stream.ask(asked(&["c"]));
    assert_eq!(stream.next().await.cluster_stats.len(), 1);
    proxy.stat_is("load_reporter.errors", 1).await;
    proxy.stat_is("load_reporter.retries", 1).await;
}

#[tokio::test]
async fn clusters_that_name_a_server_are_reported_to_it_and_others_are_not() {
    let mut service = LoadService::start().await;
    let upstream = Upstream::start("a").await;
    let api = "lrs_server: { resource_api_version: V3, api_config_source: { api_type: GRPC, \
               transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: lrs } }] } }";
    let mock = MockControlPlane::start().await;
    let with = |more: &str| resource("cds", &cluster_with("c", &[upstream.port()], more));
    let other = || resource("cds", &cluster_with("other", &[upstream.port()], ""));
    mock.set_yaml(&resources(&[with(""), other()])).unwrap();
    let lrs = http2_cluster("lrs", &[service.address().port()]);
    let bootstrap = ads_bootstrap(Xds::AdsDelta, mock.address().port());
    let bootstrap = bootstrap.replace("  clusters:\n", &format!("  clusters:\n  - {lrs}\n"));
    assert!(bootstrap.contains("name: lrs"), "{bootstrap}");
    let proxy = Proxy::start(&bootstrap).await;
    // From now on somebody is told.
    mock.set_yaml(&resources(&[with(&format!(", {api}")), other()])).unwrap();
    let mut stream = service.stream().await;
    stream.next().await;
    stream.ask(asked(&[]));
    let names: Vec<String> = stream.next().await.cluster_stats.into_iter().map(|stats| stats.cluster_name).collect();
    assert_eq!(names, ["c"]);
    // And then nobody any more.
    mock.set_yaml(&resources(&[with(""), other()])).unwrap();
    eventually("the connection ends", async || match proxy.stat("cluster.lrs.upstream_cx_active").await {
        0 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
    // A server that takes the streams of load reports on the port of ADS is another scenario: this one does not.
    mock.set_yaml(&resources(&[with(", lrs_server: { self: {} }"), other()])).unwrap();
    proxy.wait_stat("load_reporter.errors", |count| count > 0).await;
}

/// What a proxy reports of the metrics of four answers: by locality, and by endpoint.
async fn metrics_seen(program: PathBuf) -> [Vec<(String, u64, f64)>; 2] {
    let mut service = LoadService::start().await;
    let upstream = Upstream::start("a").await;
    let text = "TEXT cpu_utilization:0.25,rps_fractional:8,named_metrics.queue:2,named_metrics.other:1";
    upstream.always_say("endpoint-load-metrics", text);
    let more = ", lrs_report_endpoint_metrics: [cpu_utilization, eps, named_metrics.queue, 'utilization.*', nothing]";
    let clusters = [cluster_with("c", &[upstream.port()], more), http2_cluster("lrs", &[service.address().port()])];
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&format!("{LOADS}{}", bootstrap(&[listener], &clusters)), settings).await;
    let mut stream = service.stream().await;
    stream.next().await;
    stream.ask(LoadStatsResponse { report_endpoint_granularity: true, ..asked(&["c"]) });
    stream.next().await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    for _ in 0..4 {
        assert_eq!(client.request("GET", "/", &[], b"").await.status, 200);
    }
    let mut sums = [Vec::new(), Vec::new()];
    // The sum that all answers are in is that of the one metric which each of them has.
    while !sums[0].iter().any(|(_, count, _): &(String, u64, f64)| *count == 4) {
        let report = stream.report("c", |stats| !stats.upstream_locality_stats.is_empty()).await;
        for place in report.upstream_locality_stats {
            let endpoints = place.upstream_endpoint_stats.into_iter().flat_map(|endpoint| endpoint.load_metric_stats);
            for (sums, metrics) in sums.iter_mut().zip([place.load_metric_stats, endpoints.collect()]) {
                for metric in metrics {
                    let (count, total) = (metric.num_requests_finished_with_metric, metric.total_metric_value);
                    match sums.iter_mut().find(|(name, ..)| *name == metric.metric_name) {
                        Some(sum) => (sum.1, sum.2) = (sum.1 + count, sum.2 + total),
                        None => sums.push((metric.metric_name, count, total)),
                    }
                }
            }
        }
    }
    sums.iter_mut().for_each(|sums| sums.sort_by(|a, b| a.0.cmp(&b.0)));
    sums
}

#[tokio::test]
async fn metrics_of_endpoints_are_reported_as_those_of_envoy_are() {
    let (ours, theirs) = (metrics_seen(proxy::program()).await, metrics_seen(proxy::envoy()).await);
    let four = |name: &str, total: f64| (name.to_owned(), 4, total);
    let expected = vec![four("cpu_utilization", 1.0), four("eps", 0.0), four("named_metrics.queue", 8.0)];
    assert_eq!((&ours[0], &ours[1]), (&expected, &expected));
    assert_eq!(ours, theirs);
}
