//! What each endpoint answers.

use std::time::SystemTime;

use outrigger_api::pb::envoy::config::core::v3::data_source::Specifier;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use outrigger_config::bootstrap::{StatsConfig, StatsMatcher};
use outrigger_config::matching::StringMatcher;
use outrigger_xds::ResourceKind;

use super::super::ServerState;
use super::fixture::{Fixture, active, ask, exchange, message, record, run};
use crate::graph::history::{Refusal, ResourceHistory};
use crate::upstream::stats::ClusterStats;

const CLUSTER: &str = "
name: a.b:80
alt_stat_name: alt
load_assignment:
  cluster_name: a.b:80
  endpoints:
  - locality: {region: r, zone: z, sub_zone: s}
    priority: 0
    lb_endpoints:
    - endpoint: {hostname: h, address: {socket_address: {address: 127.0.0.1, port_value: 9}}}
      load_balancing_weight: 3
    - endpoint: {address: {pipe: {path: /tmp/x.sock}}}
      health_status: DRAINING
";

#[test]
fn readiness_is_told_by_status_and_state() {
    run(async {
        let fixture = Fixture::new();
        let bound = fixture.serve();
        for (state, status, body) in [
            (ServerState::Live, 200, "LIVE\n"),
            (ServerState::Draining, 503, "DRAINING\n"),
            (ServerState::PreInitializing, 503, "PRE_INITIALIZING\n"),
            (ServerState::Initializing, 503, "INITIALIZING\n"),
        ] {
            *fixture.server.state.borrow_mut() = state;
            let answer = ask(&bound, "GET", "/ready").await;
            assert_eq!((answer.status, answer.body.as_str()), (status, body));
            assert!(answer.head.contains("content-type: text/plain; charset=UTF-8"), "{}", answer.head);
            assert!(answer.head.contains("x-content-type-options: nosniff"));
        }
        let info = ask(&bound, "GET", "//server_info").await.json();
        assert_eq!(info["version"], "abc/1.40.0/Clean/RELEASE/aws-lc");
        assert_eq!(info["uptime_current_epoch"], "61s");
        assert_eq!((&info["node"]["id"], &info["command_line_options"]["base_id"]), (&"n1".into(), &"0".into()));
        assert_eq!(info["command_line_options"]["disable_hot_restart"], false);
    });
}

#[test]
fn what_changes_something_wants_post() {
    run(async {
        let fixture = Fixture::new();
        let bound = fixture.serve();
        for path in [
            "/quitquitquit",
            "/healthcheck/fail",
            "/healthcheck/ok",
            "/drain_listeners?inboundonly",
            "/reset_counters",
            "/logging",
            "/runtime_modify?a=1",
            "/reopen_logs",
            "/cpuprofiler",
        ] {
            let refused = ask(&bound, "GET", path).await;
            assert_eq!(
                (refused.status, refused.body.as_str()),
                (405, "Method GET not allowed, POST required."),
                "{path}"
            );
        }
        assert_eq!(fixture.server.calls.borrow().len(), 1, "{:?}", fixture.server.calls);
        for path in [
            "/healthcheck/fail",
            "/healthcheck/ok",
            "/drain_listeners?inboundonly&graceful",
            "/drain_listeners?graceful&skip_exit",
            "/reopen_logs",
            "/reset_counters",
            "/quitquitquit",
        ] {
            let done = ask(&bound, "POST", path).await;
            assert_eq!((done.status, done.body.as_str()), (200, "OK\n"), "{path}");
        }
        assert_eq!(
            fixture.server.calls.borrow()[1..],
            [
                "health checks failed: true",
                "health checks failed: false",
                "DrainRequest { inbound_only: true, graceful: true, skip_exit: false }",
                "DrainRequest { inbound_only: false, graceful: true, skip_exit: true }",
                "reopen",
                "quit",
            ]
        );
        assert_eq!(ask(&bound, "POST", "/cpuprofiler?enable=y").await.status, 501);
        assert_eq!(ask(&bound, "POST", "/heapprofiler?enable=y").await.status, 501);
    });
}

#[test]
fn unknown_paths_are_answered_with_the_list_of_known_ones() {
    run(async {
        let bound = Fixture::new().serve();
        for path in ["/nope", "/ready/", "/stat"] {
            let answer = ask(&bound, "GET", path).await;
            assert_eq!(answer.status, 404);
            assert!(answer.body.starts_with("invalid path. admin commands are:\n  /: "), "{}", answer.body);
        }
        let help = ask(&bound, "GET", "/help").await;
        assert!(help.body.contains("  /drain_listeners (POST): drain listeners\n      graceful: "));
        let home = ask(&bound, "GET", "/").await;
        assert!(home.head.contains("content-type: text/html"));
        assert!(home.body.contains("action='stats/prometheus' method='get'"));
        assert_eq!(ask(&bound, "GET", "/hot_restart_version").await.body, "disabled");
        assert!(ask(&bound, "GET", "/contention").await.body.contains("not enabled"));
        assert_eq!(ask(&bound, "GET", "/stats/recentlookups").await.body, "   Count Lookup\n\ntotal: 0\n");
        assert_eq!(ask(&bound, "POST", "/stats/recentlookups/enable").await.status, 200);
        let memory = ask(&bound, "GET", "/memory").await.json();
        assert!(memory["allocated"].as_str().unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(
            ask(&bound, "GET", "/init_dump?mask=listener").await.json(),
            serde_json::json!({
                "unready_targets_dumps": [{"name": "init manager Server", "target_names": ["listener \"y\""]}]
            })
        );
        assert_eq!(ask(&bound, "GET", "/certs").await.json(), serde_json::json!({"certificates": []}));
    });
}

#[test]
fn clusters_and_listeners_are_listed_in_both_forms() {
    run(async {
        let fixture = Fixture::new();
        fixture.publish(&[CLUSTER, "{name: z}"]);
        let bound = fixture.serve();
        let text = ask(&bound, "GET", "/clusters").await.body;
        for line in [
            "a.b:80::observability_name::alt\n",
            "a.b:80::default_priority::max_connections::1024\n",
            "a.b:80::added_via_api::false\n",
            "a.b:80::127.0.0.1:9::cx_active::0\n",
            "a.b:80::127.0.0.1:9::hostname::h\n",
            "a.b:80::127.0.0.1:9::health_flags::healthy\n",
            "a.b:80::127.0.0.1:9::weight::3\n",
            "a.b:80::/tmp/x.sock::health_flags::/eds_status_draining\n",
            "a.b:80::/tmp/x.sock::sub_zone::s\n",
            "z::observability_name::z\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        let only = ask(&bound, "GET", "/clusters?filter=^z$").await.body;
        assert!(only.starts_with("z::") && !only.contains("a.b"));
        assert_eq!(ask(&bound, "GET", "/clusters?filter=((").await.status, 400);
        let json = ask(&bound, "GET", "/clusters?format=json").await.json();
        let cluster = &json["cluster_statuses"][0];
        assert_eq!((&cluster["name"], &cluster["observability_name"]), (&"a.b:80".into(), &"alt".into()));
        let host = &cluster["host_statuses"][0];
        assert_eq!(host["address"]["socket_address"]["port_value"], 9);
        assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
        assert_eq!((&host["weight"], &host["locality"]["zone"]), (&3.into(), &"z".into()));
        assert_eq!(cluster["host_statuses"][1]["health_status"]["eds_health_status"], "DRAINING");
        assert_eq!(cluster["circuit_breakers"]["thresholds"][1]["priority"], "HIGH");
        let listeners = ask(&bound, "GET", "/listeners").await.body;
        assert_eq!(listeners, "in::127.0.0.1:80,[::1]:80\npipe::/tmp/p.sock\n");
        let listeners = ask(&bound, "GET", "/listeners?format=json").await.json();
        assert_eq!(listeners["listener_statuses"][0]["local_address"]["socket_address"]["address"], "127.0.0.1");
        assert_eq!(listeners["listener_statuses"][1]["local_address"]["pipe"]["path"], "/tmp/p.sock");
    });
}

#[test]
fn log_levels_are_shown_and_set() {
    run(async {
        let bound = Fixture::new().serve();
        let shown = ask(&bound, "POST", "/logging").await;
        assert_eq!(
            (shown.status, shown.body.as_str()),
            (200, "active loggers:\n  admin: warning\n  http: warning\n\n")
        );
        assert!(ask(&bound, "POST", "/logging?level=info").await.body.contains("  http: info\n"));
        assert!(ask(&bound, "POST", "/logging?http=trace").await.body.contains("  admin: info\n  http: trace\n"));
        let set = ask(&bound, "POST", "/logging?paths=http:off,admin:debug").await;
        assert!(set.body.contains("  admin: debug\n  http: off\n"));
        for query in ["level=loud", "nope=info", "paths=http", "level=info&http=info"] {
            let refused = ask(&bound, "POST", &format!("/logging?{query}")).await;
            assert_eq!(refused.status, 400, "{query}");
            assert!(
                refused.body.starts_with("error: ")
                    && refused.body.contains("usage: ")
                    && refused.body.contains("  http: off\n")
            );
        }
    });
}

#[test]
fn runtime_values_are_shown_by_layer_and_overridden() {
    run(async {
        let fixture = Fixture::new();
        fixture.publish(&[]);
        let bound = fixture.serve();
        let shown = ask(&bound, "GET", "/runtime").await.json();
        assert_eq!(
            shown,
            serde_json::json!({
                "layers": ["static", "admin"],
                "entries": {
                    "a.b": {"final_value": "5", "layer_values": ["1", "5"]},
                    "x": {"final_value": "hello", "layer_values": ["hello", ""]},
                }
            })
        );
        assert_eq!(ask(&bound, "POST", "/runtime_modify?k=v%201&l=").await.status, 200);
        let form = "POST /runtime_modify HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                    content-type: application/x-www-form-urlencoded\r\ncontent-length: 7\r\n\r\nm=a+b&n";
        assert_eq!(exchange(&bound, form).await.status, 200);
        let set: Vec<String> =
            fixture.configuration.runtime.borrow().iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(set, ["k=v 1", "l=", "m=a b", "n="]);
        assert_eq!(ask(&bound, "POST", "/runtime_modify").await.status, 400);
        assert_eq!(ask(&bound, "POST", "/runtime_modify?no=1").await.status, 503);
    });
}

#[test]
fn stats_are_chosen_and_formatted_as_asked() {
    run(async {
        let fixture = Fixture::new();
        let stats = fixture.process.stats.scope::<ClusterStats>("cluster.c.");
        stats.response(200);
        stats.upstream_rq_time.record(3);
        let bound = fixture.serve();
        let used = ask(&bound, "GET", r"/stats?usedonly&filter=^cluster\.c\.(upstream_rq|none)").await;
        assert_eq!(
            used.body.split_inclusive('\n').take(3).collect::<String>(),
            "cluster.c.upstream_rq_200: 1\ncluster.c.upstream_rq_2xx: 1\ncluster.c.upstream_rq_completed: 1\n"
        );
        assert!(used.body.contains("cluster.c.upstream_rq_time: P0(nan,3) "));
        assert!(fixture.server.calls.borrow().contains(&"refresh".to_owned()));
        // Agents wait for gauges whose value is 0 when all is well.
        let recent = ask(&bound, "GET", "/stats?usedonly&filter=^server%5C.stats_recent").await;
        assert_eq!(recent.body, "server.stats_recent_lookups: 0\n");
        let json = ask(&bound, "GET", "//stats?filter=upstream_rq_2&format=json").await;
        assert!(json.head.contains("content-type: application/json"));
        assert_eq!(
            json.body,
            "{\"stats\":[{\"name\":\"cluster.c.upstream_rq_200\",\"value\":1},\
                               {\"name\":\"cluster.c.upstream_rq_2xx\",\"value\":1}]}"
        );
        let prometheus = ask(&bound, "GET", "/stats/prometheus?filter=upstream_rq_(200|time)").await.body;
        assert!(
            prometheus.starts_with(
                "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"c\"} 1\n"
            ),
            "{prometheus}"
        );
        assert!(prometheus.contains("envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"c\",le=\"5\"} 1\n"));
        assert_eq!(ask(&bound, "GET", "/stats?format=prometheus&filter=upstream_rq_(200|time)").await.body, prometheus);
        let readouts = ask(&bound, "GET", "/stats?type=TextReadouts").await.body;
        assert_eq!(readouts, "cluster_manager.cds.version_text: \"c7\"\n");
        let html = ask(&bound, "GET", "/stats?format=html&type=TextReadouts").await;
        assert!(html.head.contains("text/html") && html.body.contains("version_text"));
        assert_eq!(ask(&bound, "GET", "/stats?filter=none-at-all").await.body, "");
        for query in [
            "filter=((",
            "type=Foo",
            "format=foo",
            "histogram_buckets=x",
            "format=prometheus&histogram_buckets=disjoint",
        ] {
            assert_eq!(ask(&bound, "GET", &format!("/stats?{query}")).await.status, 400, "{query}");
        }
        ask(&bound, "POST", "/reset_counters").await;
        assert_eq!(ask(&bound, "GET", "/stats?filter=c.upstream_rq_2xx").await.body, "cluster.c.upstream_rq_2xx: 0\n");
    });
}

#[test]
fn stats_of_what_is_configured_are_there_before_they_are_used() {
    run(async {
        let fixture = Fixture::new();
        fixture.publish(&["{name: a, alt_stat_name: s}"]);
        let bound = fixture.serve();
        let shown =
            ask(&bound, "GET", r"/stats?filter=^cluster\.s\.(upstream_rq_(total|200|2xx|time)|ssl.*|.*_ms)$").await;
        let lines = "cluster.s.upstream_rq_total: 0\n\
             cluster.s.upstream_cx_connect_ms: No recorded values\n\
             cluster.s.upstream_cx_length_ms: No recorded values\n";
        assert_eq!(shown.body, lines);
        let prometheus = ask(&bound, "GET", "/stats/prometheus?filter=upstream_rq_total").await.body;
        assert!(prometheus.ends_with("envoy_cluster_upstream_rq_total{envoy_cluster_name=\"s\"} 0\n"), "{prometheus}");
        assert_eq!(ask(&bound, "GET", "/stats?usedonly&type=Counters&filter=^cluster").await.body, "");
        assert!(fixture.process.stats.collect(&|name| name.starts_with("cluster.s")).is_empty());
    });
}

#[test]
fn stats_that_do_not_exist_are_shown_by_no_form() {
    run(async {
        let prefix = StringMatcher::Prefix { value: "server".to_owned(), ignore_case: false };
        let fixture = Fixture::with_stats(StatsConfig {
            tags: Vec::new(),
            use_all_default_tags: false,
            allow_default_tag_overrides: false,
            matcher: StatsMatcher::Include(vec![prefix]),
            histogram_buckets: Vec::new(),
        });
        let _scope = fixture.process.stats.scope::<ClusterStats>("cluster.c.");
        let bound = fixture.serve();
        for form in ["/stats", "/stats?format=json", "/stats/prometheus"] {
            let body = ask(&bound, "GET", form).await.body;
            assert!(body.contains("server") && !body.contains("cluster"), "{form}: {body}");
        }
    });
}

#[test]
fn the_admin_port_counts_its_own_requests() {
    run(async {
        let bound = Fixture::new().serve();
        ask(&bound, "GET", "/nope").await;
        let stats = ask(&bound, "GET", "/stats?filter=admin.downstream_(rq_4xx|rq_total|cx_active)").await.body;
        assert_eq!(
            stats,
            "http.admin.downstream_cx_active: 1\nhttp.admin.downstream_rq_4xx: 1\nhttp.admin.downstream_rq_total: 2\n\
             listener.admin.downstream_cx_active: 1\n"
        );
    });
}

#[test]
fn certificates_of_secrets_are_listed_and_counted_down() {
    run(async {
        let fixture = Fixture::new();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut secret: Secret = message("{name: s, tls_certificate: {certificate_chain: {inline_string: x}}}");
        if let Some(secret::Type::TlsCertificate(wire)) = &mut secret.r#type {
            wire.certificate_chain.as_mut().unwrap().specifier = Some(Specifier::InlineString(certificate.pem()));
        }
        fixture.add(ResourceKind::Secret, "s", active(record("1", &secret)));
        let bound = fixture.serve();
        let certs = ask(&bound, "GET", "/certs").await.json();
        let shown = &certs["certificates"][0]["cert_chain"][0];
        assert_eq!((&shown["path"], &shown["subject_alt_names"][0]["dns"]), (&"<inline>".into(), &"a.test".into()));
        assert!(shown["days_until_expiration"].as_str().unwrap().parse::<u64>().unwrap() > 1);
        let days = ask(&bound, "GET", "/stats?filter=days_until_first").await.body;
        assert_eq!(
            days,
            format!("server.days_until_first_cert_expiring: {}\n", shown["days_until_expiration"].as_str().unwrap())
        );
        assert_eq!(certs.get("problems"), None);
    });
}

#[test]
fn secrets_that_are_refused_and_certificates_that_have_expired_are_problems() {
    run(async {
        let fixture = Fixture::new();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        let mut secret: Secret = message("{name: s, tls_certificate: {certificate_chain: {inline_string: x}}}");
        if let Some(secret::Type::TlsCertificate(wire)) = &mut secret.r#type {
            wire.certificate_chain.as_mut().unwrap().specifier = Some(Specifier::InlineString(certificate.pem()));
        }
        let refusal = Refusal { record: record("2", &secret), details: "no key".to_owned() };
        let since = Some(SystemTime::UNIX_EPOCH);
        let history = active(record("1", &secret));
        fixture.add(
            ResourceKind::Secret,
            "s",
            ResourceHistory { refusal: Some(refusal), failing_since: since, ..history },
        );
        let bound = fixture.serve();
        let certs = ask(&bound, "GET", "/certs").await.json();
        let expired = &certs["certificates"][0]["cert_chain"][0];
        assert_eq!(
            certs["problems"],
            serde_json::json!([
                { "of": "secret \"s\"", "problem": "no key", "refused_version": "2", "since": "1970-01-01T00:00:00Z",
                  "predecessor_in_use": true },
                { "of": "secret \"s\"", "path": "<inline>", "serial_number": expired["serial_number"],
                  "problem": "expired", "since": "2002-01-01T00:00:00Z" },
            ])
        );
    });
}
