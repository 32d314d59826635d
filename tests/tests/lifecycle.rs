//! The process: how it is started, what it says of itself, and how it ends.

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, h2c, proxy, within};

async fn serving(arguments: &[&str]) -> (Upstream, Proxy, std::net::SocketAddr) {
    let upstream = Upstream::start("echo").await;
    let to =
        "{ match: { prefix: /h2 }, route: { cluster: by-h2 } }, { match: { prefix: / }, route: { cluster: by-h1 } }";
    let listener = config::listener("web", &[chain(&http("web", &routes(to)), "")], "");
    let clusters = [cluster("by-h1", &[upstream.port()]), http2_cluster("by-h2", &[upstream.port()])];
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let settings = Settings { concurrency: 2, arguments, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let web = proxy.listener("web").await;
    (upstream, proxy, web)
}

/// Envoy ends at SIGTERM without a drain; here the drain is part of the answer.
#[tokio::test]
async fn sigterm_lets_requests_in_flight_finish_and_then_exits_with_0() {
    if proxy::tests_envoy() {
        return;
    }
    let (upstream, mut proxy, web) = serving(&["--drain-time-s", "45"]).await;
    let mut old = h1::Client::connect(web).await;
    old.send(h1::request_bytes("GET", "/h1", &[("x-reply", "gate")], b"")).await;
    let new = h2c::Client::connect(web).await;
    let (response, _stream) = new.open("GET", "/h2", &[("x-reply", "gate")], true).await.unwrap();
    upstream.wait("both are in flight", |counts| counts.waiting == 2).await;
    proxy.signal("TERM").await;
    eventually("it drains", async || match proxy.try_admin("GET", "/ready").await {
        Ok(response) if response.text().trim() == "DRAINING" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    upstream.open_gate();
    let answer = old.response("GET").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    old.ended().await;
    let answer = within("the other answer", async { h2c::read(response.await?).await }).await.unwrap();
    assert_eq!(answer.status, 200);
    let status = proxy.exit().await;
    assert_eq!(status.code(), Some(0), "{}", proxy.log());
}

#[tokio::test]
async fn sigterm_without_traffic_exits_soon_with_0() {
    for signal in ["TERM", "INT"] {
        let (_upstream, mut proxy, web) = serving(&["--drain-time-s", "600"]).await;
        let idle = h1::Client::connect(web).await;
        proxy.signal(signal).await;
        // An idle connection keeps nobody: this waits for much less than the time of the drain.
        assert_eq!(proxy.exit().await.code(), Some(0), "{signal}");
        drop(idle);
    }
}

#[tokio::test]
async fn a_second_sigterm_exits_at_once() {
    if proxy::tests_envoy() {
        return;
    }
    let (upstream, mut proxy, web) = serving(&["--drain-time-s", "600"]).await;
    let mut client = h1::Client::connect(web).await;
    client.send(h1::request_bytes("GET", "/", &[("x-reply", "hang")], b"")).await;
    upstream.wait("it is in flight", |counts| counts.active == 1).await;
    proxy.signal("TERM").await;
    eventually("it drains", async || match proxy.try_admin("GET", "/ready").await {
        Ok(response) if response.status == 503 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    proxy.signal("TERM").await;
    // This waits for much less than the time of the drain.
    assert_eq!(proxy.exit().await.code(), Some(0));
}

#[tokio::test]
async fn quitquitquit_exits_with_0() {
    let (_upstream, mut proxy, _web) = serving(&[]).await;
    assert_eq!(proxy.admin("/quitquitquit").await.status, 405, "only POST changes anything");
    assert_eq!(proxy.admin_post("/quitquitquit").await.text().trim(), "OK");
    assert_eq!(proxy.exit().await.code(), Some(0));
}

#[tokio::test]
async fn healthcheck_fail_shows_in_ready_and_is_taken_back() {
    let (_upstream, proxy, web) = serving(&[]).await;
    assert_eq!(proxy.admin_post("/healthcheck/fail").await.text().trim(), "OK");
    let ready = proxy.admin("/ready").await;
    assert_eq!((ready.status, ready.text().trim()), (503, "DRAINING"));
    let response = h1::get(web, "/").await;
    assert_eq!(response.status, 200, "it still serves");
    assert_eq!(proxy.admin_post("/healthcheck/ok").await.text().trim(), "OK");
    assert_eq!(proxy.admin("/ready").await.status, 200);
}

#[tokio::test]
async fn drain_listeners_gracefully_keeps_serving_and_asks_clients_to_go() {
    let (_upstream, proxy, web) = serving(&["--drain-time-s", "600", "--drain-strategy", "immediate"]).await;
    let mut client = h1::Client::connect(web).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(proxy.admin_post("/drain_listeners?graceful&skip_exit").await.status, 200);
    let response = client.get("/").await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    client.ended().await;
    assert_eq!(h1::get(web, "/").await.status, 200, "new connections are still taken");
}

#[tokio::test]
async fn the_version_satisfies_the_parsers_of_launchers() {
    let (status, stdout, _) = proxy::run(&["--version"]).await;
    assert!(status.success());
    // Consul: the first three numbers with dots between.
    let mut numbers = stdout.split(|character: char| !character.is_ascii_digit() && character != '.');
    let version = numbers.rfind(|text| text.split('.').filter(|part| !part.is_empty()).count() == 3).unwrap();
    assert_eq!(version, "1.40.0");
    // Kuma: a line with `version:`, five parts between slashes, the second is the version.
    let line = stdout.lines().find(|line| line.contains("version:")).unwrap();
    let parts: Vec<&str> = line.split_once("version:").unwrap().1.trim().split('/').collect();
    assert_eq!(parts.len(), 5, "{line}");
    assert_eq!(parts[0].len(), 40, "{line}");
    assert_eq!(parts[1], "1.40.0");
}

#[tokio::test]
async fn the_configuration_may_come_from_a_fifo_and_be_merged_over() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("bootstrap.json");
    let made = tokio::process::Command::new("mkfifo").arg(&fifo).status().await.unwrap();
    assert!(made.success());
    let admin = directory.path().join("admin");
    let yaml = "node: { id: over, cluster: tests }";
    let mut child = tokio::process::Command::new(proxy::program())
        .args(["--config-path", &fifo.display().to_string(), "--config-yaml", yaml])
        .args(["--admin-address-path", &admin.display().to_string(), "--disable-hot-restart"])
        // One argument with a blank in it, as some manifests pass it.
        .args(["--log-level warning", "--service-zone", "zone-a", "--concurrency", "1"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let text = r#"{"node": {"id": "under", "cluster": "tests"},
        "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "port_value": 0}}},
        "staticResources": {"clusters": [{"name": "a", "connectTimeout": "1s"}]}}"#;
    within("somebody reads the FIFO", tokio::fs::write(&fifo, text)).await.unwrap();
    let address = eventually("the admin port opens", async || {
        let text = std::fs::read_to_string(&admin).map_err(|error| error.to_string())?;
        text.trim().parse::<std::net::SocketAddr>().map_err(|error| error.to_string())
    })
    .await;
    let mut client = h1::Client::connect(address).await;
    let info = client.get("/server_info").await.json();
    assert_eq!(info["node"]["id"], "over");
    assert_eq!(info["node"]["locality"]["zone"], "zone-a");
    assert!(info["version"].as_str().unwrap().contains("/1.40.0/"), "{info}");
    drop(child.start_kill());
}

#[tokio::test]
async fn the_admin_port_may_be_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let text = format!("admin: {{ address: {{ pipe: {{ path: '{}', mode: 384 }} }} }}", socket.display());
    let mut child = tokio::process::Command::new(proxy::program())
        .args(["--config-yaml", &text, "--disable-hot-restart", "-l", "off", "--concurrency", "1"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("it answers on the socket", async || {
        let stream = tokio::net::UnixStream::connect(&socket).await.map_err(|error| error.to_string())?;
        let mut client = h1::Client::over(Box::new(stream));
        client.send("GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").await;
        match client.try_response("GET").await? {
            response if response.status == 200 => Ok(()),
            response => Err(response.text()),
        }
    })
    .await;
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    drop(child.start_kill());
}

#[tokio::test]
async fn wrong_starts_exit_with_1() {
    for arguments in [&["--no-such-flag"][..], &["-c", "/nonexistent.yaml"], &[], &["--config-yaml", "admin: ["]] {
        let (status, _, stderr) = proxy::run(arguments).await;
        assert_eq!(status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
    let (status, stdout, _) = proxy::run(&["--mode", "validate", "--config-yaml", "{}"]).await;
    assert_eq!((status.code(), stdout.contains("OK")), (Some(0), true), "{stdout}");
}

#[tokio::test]
async fn a_taken_port_of_a_static_listener_fails_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let chains = [chain(&http("web", &routes(&all_to("a"))), "")];
    let listener = config::listener_at("web", "127.0.0.1", port, &chains, "");
    let text = bootstrap(&[listener], &[cluster("a", &[1])]);
    let (status, _, stderr) = proxy::run(&["--config-yaml", &text, "--disable-hot-restart", "-l", "warning"]).await;
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&format!("127.0.0.1:{port}")), "{stderr}");
}

#[tokio::test]
async fn admin_pages_answer_in_their_formats() {
    let (_upstream, proxy, web) = serving(&[]).await;
    assert_eq!(h1::get(web, "/").await.status, 200);
    proxy.wait_stat("http.web.downstream_rq_2xx", |count| count == 1).await;
    let stats = proxy.admin("//stats?filter=^http\\.web\\.downstream_rq_2xx$&format=json").await.json();
    assert_eq!(stats["stats"][0]["name"], "http.web.downstream_rq_2xx");
    assert_eq!(stats["stats"][0]["value"], 1);
    let metrics = proxy.admin("/stats/prometheus").await.text();
    let line = "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"web\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    assert!(metrics.contains("envoy_cluster_upstream_rq_total{envoy_cluster_name=\"by-h1\"} 1"), "{metrics}");
    let clusters = proxy.admin("/clusters?format=json").await.json();
    assert_eq!(clusters["cluster_statuses"].as_array().unwrap().len(), 2);
    let text = proxy.admin("/clusters").await.text();
    assert!(text.contains("by-h1::127.0.0.1:") && text.contains("::health_flags::healthy"), "{text}");
    let dump = proxy.admin("/config_dump").await.json();
    let kinds: Vec<_> = dump["configs"].as_array().unwrap().iter().map(|config| config["@type"].clone()).collect();
    assert_eq!(kinds[0], "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump");
    assert_eq!(kinds[1], "type.googleapis.com/envoy.admin.v3.ClustersConfigDump");
    assert_eq!(kinds[2], "type.googleapis.com/envoy.admin.v3.ListenersConfigDump");
    let only = proxy.admin("/config_dump?resource=static_clusters&mask=cluster.name").await.json();
    assert_eq!(only["configs"].as_array().unwrap().len(), 2, "{only}");
    assert_eq!(proxy.admin("/server_info").await.json()["state"], "LIVE");
    assert_eq!(proxy.admin("/listeners").await.text(), format!("web::{web}\n"));
    assert_eq!(proxy.admin_post("/reset_counters").await.text().trim(), "OK");
    proxy.stat_is("http.web.downstream_rq_2xx", 0).await;
    for page in ["/certs", "/memory", "/runtime", "/help", "/"] {
        assert_eq!(proxy.admin(page).await.status, 200, "{page}");
    }
    assert_eq!(proxy.admin_post("/logging?level=info").await.status, 200);
    assert_eq!(proxy.admin("/no-such-page").await.status, 404);
}
