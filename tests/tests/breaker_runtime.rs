//! Thresholds of circuit breakers that the runtime sets, and clusters that it puts under maintenance, beside Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{access_log_of, all_to, bootstrap, chain, cluster, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy};

const RUNTIME: &str = "layered_runtime: { layers: [{ name: static, static_layer: { \
    circuit_breakers.one.default.max_requests: 0 } }, { name: admin, admin_layer: {} }] }\n";

#[tokio::test]
async fn the_runtime_sets_thresholds() {
    for program in [proxy::program(), proxy::envoy()] {
        let upstream = Upstream::start("one").await;
        let web = listener("web", &[chain(&http("web", &routes(&all_to("one"))), "")], "");
        let text = bootstrap(&[web], &[cluster("one", &[upstream.port()])]) + RUNTIME;
        let proxy = Proxy::start_with(&text, Settings { program: program.clone(), ..Settings::default() }).await;
        let web = proxy.listener("web").await;
        let shown = async |value: u32| {
            let clusters = proxy.admin("/clusters").await.text();
            let line = format!("one::default_priority::max_requests::{value}\n");
            assert!(clusters.contains(&line), "{program:?}: {clusters}");
        };
        let refused = h1::get(web, "/").await;
        assert_eq!((refused.status, refused.header("x-envoy-overloaded")), (503, Some("true")), "{program:?}");
        proxy.stat_is("cluster.one.upstream_rq_active_overflow", 1).await;
        shown(0).await;
        proxy.admin_post("/runtime_modify?circuit_breakers.one.default.max_requests=5").await;
        eventually("requests pass", async || match h1::get(web, "/").await.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
        shown(5).await;
        proxy.admin_post("/runtime_modify?circuit_breakers.one.default.max_pending_requests=0").await;
        eventually("nobody may wait", async || match proxy.admin("/clusters").await.text() {
            text if text.contains("one::default_priority::max_pending_requests::0\n") => Ok(()),
            text => Err(text),
        })
        .await;
    }
}

#[tokio::test]
async fn the_runtime_puts_a_cluster_under_maintenance() {
    const OFF: &str = "layered_runtime: { layers: [{ name: static, static_layer: { upstream.maintenance_mode.one: 100 } }, \
                       { name: admin, admin_layer: {} }] }\n";
    for program in [proxy::program(), proxy::envoy()] {
        let upstream = Upstream::start("one").await;
        let log = access_log_of("log.txt", "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
        let more = routes(&all_to("one")) + &log;
        let web = listener("web", &[chain(&http("web", &more), "")], "");
        let text = bootstrap(&[web], &[cluster("one", &[upstream.port()])]) + OFF;
        let proxy = Proxy::start_with(&text, Settings { program: program.clone(), ..Settings::default() }).await;
        let web = proxy.listener("web").await;
        let refused = h1::get(web, "/").await;
        assert_eq!((refused.status, refused.text().as_str()), (503, "maintenance mode"), "{program:?}");
        assert_eq!(refused.header("x-envoy-overloaded"), Some("true"), "{program:?}");
        proxy.stat_is("cluster.one.upstream_rq_maintenance_mode", 1).await;
        proxy.stat_is("cluster.one.upstream_rq_503", 1).await;
        eventually("the log", async || match std::fs::read_to_string(proxy.file("log.txt")).unwrap_or_default() {
            text if text == "UO maintenance_mode\n" => Ok(()),
            text => Err(text),
        })
        .await;
        proxy.admin_post("/runtime_modify?upstream.maintenance_mode.one=0").await;
        eventually("requests pass", async || match h1::get(web, "/").await.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
    }
}
