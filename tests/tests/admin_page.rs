//! The page of the admin port in Chromium: see `interop/admin_page.py`.

use std::time::Duration;

use outrigger_tests::config::{self, bootstrap, chain, cluster, cluster_with, http, routes};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Upstream, h1, programs};

#[tokio::test]
async fn the_page_works_in_a_browser_with_the_keyboard_alone() {
    let (upstream, closed) = (Upstream::start("a").await, ClosedPort::take());
    let to = routes(
        "{ name: alice, match: { prefix: /a, headers: [{ name: x-user, string_match: { exact: alice } }] }, route: { cluster: beta } }, \
         { match: { prefix: /x }, route: { cluster: beta } }, \
         { match: { prefix: / }, route: { cluster: alpha, timeout: 0s } }",
    );
    let to = to.replace("name: all,", "name: \"<img src=x onerror=alert(1)>\",");
    let web = config::listener("web", &[chain(&http("web", &to), "")], "");
    let idle = ", upstream_connection_options: { set_local_interface_name_on_upstream_connections: true }";
    let clusters = [cluster_with("alpha", &[upstream.port()], idle), cluster("beta", &[closed.port()])];
    let proxy = Proxy::start(&bootstrap(&[web], &clusters)).await;
    let web = proxy.listener("web").await;
    assert_eq!(h1::get(web, "/").await.status, 200);
    assert_eq!(h1::get(web, "/x?<script>alert(2)</script>").await.status, 503);
    // It waits for as long as the browser looks.
    let mut slow = h1::Client::connect(web).await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\nx-reply: gate\r\n\r\n").await;
    upstream.wait("a request waits", |counts| counts.waiting == 1).await;
    let script = programs::interop("admin_page.py");
    let admin = proxy.admin_address().to_string();
    let said = programs::run("python3", &[&script.to_string_lossy(), &admin], &[], Duration::from_secs(600)).await;
    assert_eq!(said.lines().last(), Some("ok"), "{said}");
    upstream.open_gate();
    assert_eq!(slow.response("GET").await.status, 200);
}
