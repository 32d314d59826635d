//! Streams of HTTP/2 that hold much memory are reset under pressure, the largest first, and nobody else is: the same as by Envoy.

use std::path::{Path, PathBuf};

use outrigger_tests::config::{self, bootstrap, chain, cluster, http, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, h2c, proxy, within};

const ACTION: &str = "envoy.overload_actions.reset_high_memory_stream";
const MONITOR: &str = "envoy.resource_monitors.injected_resource";

/// Replaces the file as a whole: Envoy looks at moves only.
fn write(directory: &Path, pressure: f64) {
    let path = directory.join("pressure");
    std::fs::write(path.with_extension("new"), pressure.to_string()).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
}

async fn start(upstream: &Upstream, program: PathBuf) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 0.0);
    let log = config::access_log_of(
        "access.log",
        "%PROTOCOL% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%",
    );
    // The body is kept for retries, as a whole.
    let route = "{ match: { prefix: / }, per_request_buffer_limit_bytes: 16777216, \
                 route: { cluster: up, timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 1 } } }";
    let manager = http("web", &format!("{}{log}", routes(route)));
    let listener = config::listener("web", &[chain(&manager, "")], ", per_connection_buffer_limit_bytes: 16777216");
    let overload = format!(
        "overload_manager: {{ refresh_interval: 0.02s, buffer_factory_config: {{ minimum_account_to_track_power_of_two: \
         20 }}, resource_monitors: [{{ name: {MONITOR}, typed_config: {{ '@type': type.googleapis.com/\
         envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: '$dir/pressure' }} }}], \
         actions: [{{ name: {ACTION}, triggers: [{{ name: {MONITOR}, scaled: {{ scaling_threshold: 0.5, \
         saturation_threshold: 1 }} }}] }}] }}\n"
    );
    let text = bootstrap(&[listener], &[cluster("up", &[upstream.port()])]) + &overload;
    Proxy::start_in(directory, &text, Settings { program, ..Settings::default() }).await
}

/// What becomes of large and small requests, over both versions, first under some pressure and then under all.
async fn observe(program: PathBuf) -> Vec<String> {
    let upstream = Upstream::start("echo").await;
    let proxy = start(&upstream, program).await;
    let web = proxy.listener("web").await;
    let body = vec![b'x'; 3 << 20];
    let gate = [("x-reply", "gate")];
    let mut large = h1::Client::connect(web).await;
    large.send(h1::request_bytes("POST", "/large", &gate, &body)).await;
    let mut small = h1::Client::connect(web).await;
    small.send(h1::request_bytes("POST", "/small", &gate, b"x")).await;
    let multiplexed = h2c::Client::connect(web).await;
    let (also_large, also_small) = (multiplexed.clone(), multiplexed);
    let sent = body.clone();
    let also_large = tokio::spawn(async move { also_large.try_request("POST", "/large", &gate, &sent, &[]).await });
    let also_small = tokio::spawn(async move { also_small.try_request("POST", "/small", &gate, b"x", &[]).await });
    upstream.wait("all requests at the gate", |counts| counts.waiting == 4).await;
    let count = format!("{ACTION}.count");
    let mut seen = Vec::new();
    let directory = proxy.file("x").parent().unwrap().to_owned();
    // A tenth of the way: only the largest bucket, in which there is nobody.
    write(&directory, 0.55);
    proxy.wait_stat(&format!("overload.{ACTION}.scale_percent"), |percent| (9..=10).contains(&percent)).await;
    seen.push(format!("some pressure: {} reset", proxy.stat(&count).await));
    write(&directory, 1.0);
    proxy.wait_stat(&count, |count| count == 1).await;
    let ended = within("the end of a large request", also_large).await.unwrap();
    seen.push(format!("HTTP/2 answered: {}", ended.is_ok()));
    upstream.open_gate();
    seen.push(format!("large, by HTTP/1.1: {}", large.response("POST").await.status));
    seen.push(format!("small: {}", small.response("POST").await.status));
    seen.push(format!("small, on the same connection: {}", also_small.await.unwrap().unwrap().status));
    let mut lines = proxy.lines("access.log", 4).await;
    lines.sort();
    seen.extend(lines);
    seen.push(format!("in all: {}", proxy.stat(&count).await));
    seen
}

#[tokio::test]
async fn the_largest_streams_are_reset_and_no_others_as_with_envoy() {
    let expected = [
        "some pressure: 0 reset",
        "HTTP/2 answered: false",
        "large, by HTTP/1.1: 200",
        "small: 200",
        "small, on the same connection: 200",
        "HTTP/1.1 /large 200 - via_upstream",
        "HTTP/1.1 /small 200 - via_upstream",
        "HTTP/2 /large 0 OM overload",
        "HTTP/2 /small 200 - via_upstream",
        "in all: 1",
    ];
    assert_eq!(observe(proxy::program()).await, expected);
    assert_eq!(observe(proxy::envoy()).await, expected);
}
