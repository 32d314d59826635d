//! What is counted and logged of redirects that are followed inside the proxy, by the proxy under test and by Envoy.
//!
//! What clients and upstreams see of them is compared in `same_as_envoy`.

use outrigger_tests::config::{access_log_of, bootstrap, chain, cluster, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

/// Runs the same scenario on both; what it tells must be the same.
async fn both(upstream: &Upstream, bootstrap: &str, scenario: impl AsyncFn(&Proxy) -> Vec<String>) -> Vec<String> {
    let mut told = Vec::new();
    for program in [proxy::envoy(), proxy::program()] {
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(bootstrap, settings).await;
        told.push(scenario(&proxy).await);
    }
    assert!(upstream.counts().requests > 0);
    assert_eq!(told[1], told[0], "not the same as with Envoy");
    told.remove(0)
}

async fn stats(proxy: &Proxy, names: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for name in names {
        lines.push(format!("{name}: {}", proxy.stat(name).await));
    }
    lines
}

#[tokio::test]
async fn each_request_of_a_chain_is_logged_and_counted() {
    let upstream = Upstream::start("one").await;
    let follow = "{ match: { prefix: /follow }, route: { cluster: one, internal_redirect_policy: { \
                  max_internal_redirects: 2 } } }, { match: { prefix: / }, route: { cluster: one } }";
    let log =
        access_log_of("access", "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %REQ(:PATH)% %REQ(x-envoy-original-url)%");
    let web = listener("web", &[chain(&http("web", &format!("{}{log}", routes(follow))), "")], "");
    let told = both(&upstream, &bootstrap(&[web], &[cluster("one", &[upstream.port()])]), async |proxy| {
        let address = proxy.listener("web").await;
        let mut client = h1::Client::connect(address).await;
        // It is asked for again until the limit is reached, and then handed on.
        let order = [("x-reply", "status=302 header=location:http://a.example/follow/b empty")];
        let response = client.request("GET", "/follow/a", &order, b"").await;
        let mut told = vec![format!("status {}", response.status)];
        let order = [("x-reply", "status=302 header=location:http://a.example/follow/b empty")];
        let response = client.request("POST", "/follow/a", &order, b"some body").await;
        told.push(format!("status {}", response.status));
        let order = [("x-reply", "status=302 header=location:/follow/b empty")];
        let response = client.request("GET", "/follow/c", &order, b"").await;
        told.push(format!("status {}", response.status));
        told.extend(
            proxy.lines("access", 7).await.into_iter().map(|line| line.replace(&address.to_string(), "<host>")),
        );
        let names = [
            "cluster.one.upstream_internal_redirect_succeeded_total",
            "cluster.one.upstream_internal_redirect_failed_total",
            "cluster.one.upstream_rq_3xx",
            "cluster.one.upstream_rq_total",
            "http.web.passthrough_internal_redirect_bad_location",
            "http.web.passthrough_internal_redirect_too_many_redirects",
            "http.web.downstream_rq_total",
            "http.web.downstream_rq_3xx",
            "http.web.downstream_rq_completed",
            "http.web.rq_total",
        ];
        told.extend(stats(proxy, &names).await);
        told
    })
    .await;
    assert!(told.contains(&"http.web.passthrough_internal_redirect_too_many_redirects: 2".to_owned()), "{told:#?}");
}
