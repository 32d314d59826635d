//! What the process keeps to itself: keys, its memory, and the admin port's power if that is wanted.

use outrigger_tests::config::{bootstrap, chain, listener};
use outrigger_tests::{Proxy, Settings, h1};

use super::{answers, certificate, directory, downstream};

async fn start(arguments: &[&str]) -> Proxy {
    let listeners = [listener("l", &[chain(&answers(""), &downstream("", &certificate("server")))], "")];
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Proxy::start_in(directory(), &bootstrap(&listeners, &[]), Settings { arguments, ..Settings::default() }).await
}

/// The soft limit on core files.
fn core_limit(proxy: &Proxy) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    line.split_whitespace().nth(4).unwrap().to_owned()
}

#[tokio::test]
async fn a_read_only_admin_port_shows_and_changes_nothing() {
    let proxy = start(&["--admin-read-only"]).await;
    for path in ["/quitquitquit", "/drain_listeners", "/healthcheck/fail", "/logging", "/reset_counters"] {
        let response = proxy.admin_post(path).await;
        assert_eq!(response.status, 403, "{path}");
        assert!(response.text().contains("--admin-read-only"), "{}", response.text());
    }
    assert_eq!(proxy.admin("/ready").await.status, 200);
    assert_eq!(h1::get(proxy.admin_address(), "/stats?filter=server.live").await.status, 200);
}

#[tokio::test]
async fn core_dumps_have_to_be_asked_for_and_dumps_hide_keys() {
    let proxy = start(&[]).await;
    assert_eq!(core_limit(&proxy), "0");
    let key = std::fs::read_to_string(proxy.file("server.key")).unwrap();
    let line = key.lines().nth(1).unwrap().to_owned();
    for path in ["/config_dump", "/certs", "/stats", "/server_info"] {
        assert!(!proxy.admin(path).await.text().contains(&line), "{path}");
    }
    let asked = start(&["--enable-core-dump", "--protect-memory"]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", asked.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let most = line.split_whitespace().nth(5).unwrap();
    assert_eq!(core_limit(&asked), most);
}
