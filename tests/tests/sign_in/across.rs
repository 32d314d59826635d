//! Users who go from one proxy to another that has the same secret.

use std::net::SocketAddr;

use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{AuthorizationServer, Proxy, Settings, Upstream, proxy};

use crate::browser::Browser;
use crate::chains;

const GCM: &str = "\nlayered_runtime: { layers: [{ name: flags, static_layer: { \
    envoy.reloadable_features.oauth2_use_gcm_encryption: true } }] }";

struct Two {
    _proxies: [Proxy; 2],
    _app: Upstream,
    server: AuthorizationServer,
    /// Of the same listener.
    addresses: [SocketAddr; 2],
}

async fn two(runtime: &str, listener: &str) -> Two {
    let (app, server, closed) = (Upstream::start("app").await, AuthorizationServer::start().await, ClosedPort::take());
    let bootstrap = chains::configuration(&app, &server, &closed, "none", runtime);
    let start = |program| Proxy::start_with(&bootstrap, Settings { program, ..Settings::default() });
    let proxies = [start(proxy::envoy()).await, start(proxy::program()).await];
    let addresses = [proxies[0].listener(listener).await, proxies[1].listener(listener).await];
    Two { _proxies: proxies, _app: app, server, addresses }
}

#[tokio::test]
async fn who_has_signed_in_at_one_proxy_has_signed_in_at_the_other() {
    for (runtime, listener) in [("", "plain"), ("", "dressed"), ("", "open"), (GCM, "plain")] {
        let two = two(runtime, listener).await;
        for (first, second) in [(0, 1), (1, 0)] {
            let (first, second) = (two.addresses[first], two.addresses[second]);
            let mut browser = Browser::default();
            assert_eq!(browser.get(first, "/page", &[]).await.status, 302);
            let back = browser.callback("ok");
            assert_eq!(browser.get(first, &back, &[]).await.status, 302);
            for address in [first, second, first] {
                let page = browser.get(address, "/page", &[]).await;
                assert_eq!(page.status, 200, "{listener}: {:?}", browser.cookies);
                assert_eq!(page.json()["target"], "/page");
            }
        }
    }
}

#[tokio::test]
async fn a_sign_in_that_begins_at_one_proxy_ends_at_the_other() {
    for runtime in ["", GCM] {
        let two = two(runtime, "plain").await;
        for (first, second) in [(0, 1), (1, 0)] {
            let (first, second) = (two.addresses[first], two.addresses[second]);
            let mut browser = Browser::default();
            assert_eq!(browser.get(first, "/page", &[]).await.status, 302);
            let (back, challenge) = (browser.callback("ok"), browser.parameter("code_challenge"));
            let page = browser.get(second, &back, &[]).await;
            assert_eq!((page.status, page.header("location")), (302, Some("http://app.example.com/page")));
            let asked = two.server.take_asked();
            assert!(asked.len() == 1 && Browser::challenge_fits(&challenge, &asked[0]), "{asked:?}");
            assert_eq!(browser.get(first, "/page", &[]).await.status, 200);
            // A token that one proxy has sealed is renewed by the other.
            browser.cookies.remove("OauthHMAC");
            assert_eq!(browser.get(second, "/page", &[]).await.status, 200);
            assert_eq!(two.server.take_asked()[0].field("refresh_token"), "refresh.ok");
            assert_eq!(browser.get(first, "/page", &[]).await.status, 200);
        }
    }
}
