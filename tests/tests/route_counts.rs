//! How requests are counted that routes answer, or that no route takes. The same from Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{bootstrap, chain, http, listener};
use outrigger_tests::h1::Client;
use outrigger_tests::{Proxy, Settings, proxy};

const ROUTES: &str = ", route_config: { virtual_hosts: [ \
    { name: open, domains: [open], routes: [ \
      { match: { path: /moved }, redirect: { path_redirect: /here } }, \
      { match: { path: /here }, direct_response: { status: 200 } } ] }, \
    { name: secure, domains: [secure], require_tls: ALL, routes: [{ match: { prefix: / }, direct_response: { status: 200 } }] } ] }";

#[tokio::test]
async fn every_request_is_counted_and_redirects_as_answers() {
    for program in [proxy::program(), proxy::envoy()] {
        let web = listener("web", &[chain(&http("web", ROUTES), "")], "");
        let settings = Settings { program: program.clone(), ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[web], &[]), settings).await;
        let mut client = Client::connect(proxy.listener("web").await).await;
        for (host, path, status) in [
            ("open", "/moved", 301),
            ("open", "/here", 200),
            ("open", "/none", 404),
            ("secure", "/", 301),
            ("unknown", "/", 404),
        ] {
            let answer = client.request("GET", path, &[("host", host)], b"").await;
            assert_eq!(answer.status, status, "{program:?} {host}{path}");
        }
        proxy.wait_stat("http.web.rq_total", |count| count == 5).await;
        proxy.stat_is("http.web.rq_direct_response", 3).await;
        proxy.stat_is("http.web.no_route", 2).await;
    }
}
