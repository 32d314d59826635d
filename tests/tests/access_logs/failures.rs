//! HAProxy's view of requests: why they failed, in which phase, and whether they can be sent again.

use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with, http, routes};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Upstream, h1};

use crate::setup::{file, logs, text};

const FORMAT: &str = "%RESPONSE_CODE% %TERMINATION_STATE% %RETRY_CLASS% %REASON%";

#[tokio::test]
async fn each_failure_names_who_what_and_which_field() {
    let upstream = Upstream::start("a").await;
    let closed = ClosedPort::take();
    let gone = closed.port();
    let view = text(FORMAT).replace(
        "log_format: {",
        "log_format: { formatters: [{ name: haproxy, typed_config: { '@type': type.googleapis.com/outrigger.formatter.v1.HaproxyView } }],",
    );
    let all_routes = "{ match: { prefix: /slow }, route: { cluster: one, timeout: 0.5s } }, \
         { match: { prefix: /gone }, route: { cluster: gone } }, \
         { match: { prefix: /full }, route: { cluster: full } }, \
         { match: { prefix: /empty }, route: { cluster: empty } }, \
         { match: { prefix: /direct }, direct_response: { status: 200 } }, \
         { match: { prefix: /ok }, route: { cluster: one } }";
    let manager = http("web", &format!("{}{}", logs(&[file("view", &view, "")]), routes(all_routes)));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let full = cluster_with("full", &[upstream.port()], ", circuit_breakers: { thresholds: [{ max_requests: 0 }] }");
    let clusters = [cluster("one", &[upstream.port()]), cluster("gone", &[gone]), cluster("empty", &[]), full];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let web = proxy.listener("web").await;
    let one = format!("Endpoint 127.0.0.1:{} of cluster \"one\"", upstream.port());
    for (count, (target, headers, expected)) in [
        ("/ok", &[][..], "200 ---- answered -".to_owned()),
        ("/ok", &[("x-reply", "status=503")][..], format!("503 ---- answered {one} answered 503 itself.")),
        (
            "/slow",
            &[("x-reply", "hang")][..],
            format!("504 sH-- sent {one} did not answer within 500 ms (RouteAction.timeout)."),
        ),
        (
            "/gone",
            &[][..],
            format!(
                "503 SC-- never_sent Endpoint 127.0.0.1:{gone} of cluster \"gone\" could not be reached: \
                 delayed connect error: Connection refused."
            ),
        ),
        (
            "/full",
            &[][..],
            "503 PC-- never_sent Cluster \"full\" refused the request: the limit of 0 is reached \
             (CircuitBreakers.thresholds.max_requests)."
                .to_owned(),
        ),
        (
            "/empty",
            &[][..],
            "503 SC-- never_sent Cluster \"empty\" has no endpoint that may be used (Cluster.load_assignment)."
                .to_owned(),
        ),
        ("/direct", &[][..], "200 LR-- never_sent -".to_owned()),
        (
            "/none",
            &[][..],
            "404 PR-- never_sent No route of the virtual host matches the request (VirtualHost.routes).".to_owned(),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        h1::Client::connect(web).await.request("GET", target, headers, b"").await;
        let line = proxy.lines("view", count + 1).await.pop().unwrap();
        assert_eq!(line, expected, "{target}");
    }
}
