//! Protection from overload: each action and load-shed point comes and goes with an injected pressure and looks as with
//! Envoy, and limits on connections hold exactly over all workers.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, routes};
use outrigger_tests::{Proxy, Response, Settings, Upstream, eventually, h1, h2c, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const REQUESTS: &str = "envoy.overload_actions.stop_accepting_requests";
const KEEPALIVE: &str = "envoy.overload_actions.disable_http_keepalive";
const STOP: &str = "envoy.overload_actions.stop_accepting_connections";
const REJECT: &str = "envoy.overload_actions.reject_incoming_connections";
const SHRINK: &str = "envoy.overload_actions.shrink_heap";
const TIMEOUTS: &str = "envoy.overload_actions.reduce_timeouts";
const ACCEPT: &str = "envoy.load_shed_points.tcp_listener_accept";
const CODEC: &str = "envoy.load_shed_points.hcm_ondata_creating_codec";
const ABORT: &str = "envoy.load_shed_points.http1_server_abort_dispatch";
const GOAWAY: &str = "envoy.load_shed_points.http2_server_go_away_on_dispatch";
const CLOSE: &str = "envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch";
const HEADERS: &str = "envoy.load_shed_points.http_connection_manager_decode_headers";
const FILTER: &str = "envoy.load_shed_points.http_downstream_filter_check";
const POOL: &str = "envoy.load_shed_points.connection_pool_new_connection";

/// An overload manager with an injected resource for each of these, which saturates at 0.9.
fn manager(names: &[&str]) -> String {
    let injected = |name: &&str| monitor(&resource(name), "injected_resource.v3.InjectedResourceConfig", &file(name));
    let monitors: Vec<_> = names.iter().map(injected).collect();
    let triggered = |kind: &'static str| {
        let chosen = names.iter().filter(move |name| name.contains(kind)).filter(|name| **name != TIMEOUTS);
        let one = |name: &&str| {
            format!("{{ name: {name}, triggers: [{{ name: {}, threshold: {{ value: 0.9 }} }}] }}", resource(name))
        };
        chosen.map(one).collect::<Vec<_>>().join(", ")
    };
    format!(
        "overload_manager: {{ refresh_interval: 0.02s, resource_monitors: [{}], actions: [{}], loadshed_points: [{}] }}\n",
        monitors.join(", "),
        triggered("overload_actions"),
        triggered("load_shed_points")
    )
}

fn monitor(name: &str, kind: &str, fields: &str) -> String {
    format!(
        "{{ name: {name}, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.resource_monitors.{kind}, \
         {fields} }} }}"
    )
}

fn resource(name: &str) -> String {
    format!("test.{}", name.rsplit('.').next().unwrap())
}

fn file(name: &str) -> String {
    format!("filename: '$dir/{}'", resource(name))
}

/// A proxy before `upstream`, under pressures that are all 0.
struct Pressed {
    proxy: Proxy,
    web: SocketAddr,
}

impl Pressed {
    async fn start(upstream: &Upstream, names: &[&str], overload: &str, settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| write(directory.path(), name, 0.0));
        let log =
            config::access_log_of("access.log", "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
        let routes =
            routes(&format!("{{ match: {{ prefix: /unused }}, route: {{ cluster: unused }} }}, {}", all_to("up")));
        let manager = http("web", &format!("{routes}{log}, append_local_overload: true"));
        let listener = config::listener("web", &[chain(&manager, "")], ", stat_prefix: web");
        let free =
            config::listener("free", &[chain(&manager, "")], ", stat_prefix: free, bypass_overload_manager: true");
        let direct = http("heard", &config::routes("{ match: { prefix: / }, direct_response: { status: 200 } }"));
        let heard = config::listener("heard", &[chain(&direct, "")], ", bypass_overload_manager: true");
        let clusters = [cluster("up", &[upstream.port()]), cluster("unused", &[upstream.port()])];
        let text = bootstrap(&[listener, free, heard], &clusters) + overload;
        let proxy = Proxy::start_in(directory, &text, settings).await;
        let web = proxy.listener("web").await;
        Self { proxy, web }
    }

    /// Sets the pressure behind an action or a point, and waits until it is known.
    async fn press(&self, name: &str, pressure: f64) {
        write(self.proxy.file("x").parent().unwrap(), name, pressure);
        let percent = (pressure * 100.0) as u64;
        self.proxy.wait_stat(&format!("overload.{}.pressure", resource(name)), |seen| seen == percent).await;
        let state = if pressure >= 0.9 { 100 } else { 0 };
        self.proxy.wait_stat(&format!("overload.{name}.scale_percent"), |seen| seen == state).await;
        // What workers are told they are told in order: one that serves a connection of later has heard of it as well.
        let heard = h1::get(self.proxy.listener("heard").await, "/").await;
        assert_eq!(heard.status, 200);
    }
}

/// Replaces a file as a whole: Envoy looks at moves only.
fn write(directory: &Path, name: &str, pressure: f64) {
    let path = directory.join(resource(name));
    std::fs::write(path.with_extension("new"), pressure.to_string()).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
}

fn told(response: Result<Response, String>) -> String {
    match response {
        Ok(response) => format!(
            "{} {:?} connection {:?} local {:?} shared {:?}",
            response.status,
            if response.status == 200 { String::new() } else { response.text() },
            response.header("connection"),
            response.header("x-envoy-local-overloaded"),
            response.header("x-envoy-overloaded"),
        ),
        Err(_) => "nothing".to_owned(),
    }
}

/// What a request by HTTP/1.1 gets, and one by HTTP/2.
async fn both(web: SocketAddr, target: &str) -> [String; 2] {
    let first = match h1::Client::try_connect(web).await {
        Ok(mut client) => {
            client.send(h1::request_bytes("GET", target, &[], b"")).await;
            client.try_response("GET").await
        }
        Err(error) => Err(error.to_string()),
    };
    [told(first), told(http2(web, target).await)]
}

/// As a task: the client of the harness takes a connection that is closed at once for a mistake.
async fn http2(web: SocketAddr, target: &str) -> Result<Response, String> {
    let target = target.to_owned();
    let asked = tokio::spawn(async move {
        let mut stream = TcpStream::connect(web).await.map_err(|error| error.to_string())?;
        stream.write_all(b"").await.map_err(|error| error.to_string())?;
        let client = h2c::Client::over(Box::new(stream), "http").await;
        client.try_request("GET", &target, &[], b"", &[]).await.map_err(|error| error.to_string())
    });
    asked.await.map_err(|error| error.to_string())?
}

const CASES: &[(&str, &str)] = &[
    (REQUESTS, "/"),
    (KEEPALIVE, "/"),
    (REJECT, "/"),
    (SHRINK, "/"),
    (ACCEPT, "/"),
    (CODEC, "/"),
    (ABORT, "/"),
    (GOAWAY, "/"),
    (CLOSE, "/"),
    (HEADERS, "/"),
    (FILTER, "/"),
    (POOL, "/unused"),
];

/// Counters of which Envoy and we must have the same.
const COUNTED: &[&str] = &[
    "http.web.downstream_rq_overload_close",
    "http.web.rq_overload_local_reply",
    "http.web.downstream_cx_overload_disable_keepalive",
    "listener.web.downstream_cx_overload_reject",
    "overload.envoy.load_shed_points.tcp_listener_accept.shed_load_count",
    "overload.envoy.load_shed_points.hcm_ondata_creating_codec.shed_load_count",
    "overload.envoy.load_shed_points.http_connection_manager_decode_headers.shed_load_count",
    "overload.envoy.load_shed_points.http_downstream_filter_check.shed_load_count",
    "overload.envoy.load_shed_points.connection_pool_new_connection.shed_load_count",
];

/// Everything that can be seen of each case, from the outside.
async fn observe(program: std::path::PathBuf) -> Vec<String> {
    let upstream = Upstream::start("echo").await;
    let names: Vec<&str> = CASES.iter().map(|(name, _)| *name).chain([STOP]).collect();
    let settings = Settings { program, ..Settings::default() };
    let pressed = Pressed::start(&upstream, &names, &manager(&names), settings).await;
    let mut seen = Vec::new();
    for (name, target) in CASES {
        pressed.press(name, 1.0).await;
        for (answer, version) in both(pressed.web, target).await.into_iter().zip(["1.1", "2"]) {
            seen.push(format!("{name}, HTTP/{version}: {answer}"));
        }
        let active = pressed.proxy.stat(&format!("overload.{name}.active")).await;
        pressed.press(name, 0.0).await;
        let after = h1::get(pressed.web, "/").await.status;
        seen.push(format!("{name}: active {active}, afterwards {after}"));
    }
    for name in COUNTED {
        seen.push(format!("{name}: {}", pressed.proxy.stat(name).await));
    }
    let names = pressed.proxy.admin("/stats?filter=^overload%5C.").await.text();
    seen.extend(names.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())));
    // Requests that got an answer leave a line: three in eight cases, and where connections are closed only the one afterwards.
    let lines = pressed.proxy.lines("access.log", 28).await;
    seen.extend(lines.into_iter().map(|line| format!("log: {line}")));
    seen
}

#[tokio::test]
async fn actions_and_points_look_as_with_envoy_and_go_when_the_pressure_goes() {
    let (ours, theirs) = tokio::join!(observe(proxy::program()), observe(proxy::envoy()));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "on the left ours, on the right Envoy's");
    }
    assert_eq!(ours.len(), theirs.len(), "{ours:#?}\n{theirs:#?}");
    // Were both silent, they would be the same.
    let refused = "503 \"envoy overloaded\" connection None local Some(\"true\") shared None";
    for version in ["1.1", "2"] {
        assert!(ours.contains(&format!("{REQUESTS}, HTTP/{version}: {refused}")), "{ours:#?}");
        assert!(ours.contains(&format!("{REJECT}, HTTP/{version}: nothing")), "{ours:#?}");
    }
}

#[tokio::test]
async fn connections_wait_while_none_are_accepted() {
    let upstream = Upstream::start("echo").await;
    let settings = Settings { concurrency: if proxy::tests_envoy() { 1 } else { 2 }, ..Settings::default() };
    let pressed = Pressed::start(&upstream, &[STOP], &manager(&[STOP]), settings).await;
    let mut before = h1::Client::connect(pressed.web).await;
    assert_eq!(before.get("/").await.status, 200);
    pressed.press(STOP, 1.0).await;
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let mut client = h1::Client::connect(pressed.web).await;
        waiting.spawn(async move { client.get("/waiting").await.status });
    }
    // Connections that are there go on, and so does a listener that is exempt.
    assert_eq!(before.get("/").await.status, 200);
    let free = pressed.proxy.listener("free").await;
    assert_eq!(h1::get(free, "/").await.status, 200);
    let active = pressed.proxy.stat("listener.web.downstream_cx_active").await;
    assert_eq!(active, 1, "none of those that wait was accepted");
    assert!(upstream.seen().iter().all(|seen| seen.target != "/waiting"));
    pressed.press(STOP, 0.0).await;
    while let Some(status) = waiting.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    // And again, since loops that were woken must be able to pause once more.
    pressed.press(STOP, 1.0).await;
    let mut late = h1::Client::connect(pressed.web).await;
    late.send(h1::request_bytes("GET", "/", &[], b"")).await;
    assert_eq!(before.get("/").await.status, 200);
    pressed.press(STOP, 0.0).await;
    assert_eq!(late.response("GET").await.status, 200);
}

#[tokio::test]
async fn an_exempt_listener_serves_everything() {
    let upstream = Upstream::start("echo").await;
    let names = [REQUESTS, REJECT, KEEPALIVE];
    let pressed = Pressed::start(&upstream, &names, &manager(&names), Settings::default()).await;
    for name in names {
        pressed.press(name, 1.0).await;
    }
    let free = pressed.proxy.listener("free").await;
    for answer in both(free, "/").await {
        assert_eq!(answer, "200 \"\" connection None local None shared None");
    }
}

#[tokio::test]
async fn idle_connections_and_streams_end_earlier_under_pressure() {
    let upstream = Upstream::start("echo").await;
    let timers = "timer_scale_factors: [{ timer: HTTP_DOWNSTREAM_CONNECTION_IDLE, min_timeout: 0.05s }, \
                  { timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_scale: { value: 0.01 } }]";
    let overload = format!(
        "overload_manager: {{ refresh_interval: 0.02s, resource_monitors: [{}], actions: [{{ name: {TIMEOUTS}, \
         triggers: [{{ name: {}, scaled: {{ scaling_threshold: 0.5, saturation_threshold: 0.9 }} }}], typed_config: \
         {{ '@type': type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig, {timers} }} }}] }}\n",
        monitor(&resource(TIMEOUTS), "injected_resource.v3.InjectedResourceConfig", &file(TIMEOUTS)),
        resource(TIMEOUTS)
    );
    let pressed = Pressed::start(&upstream, &[TIMEOUTS], &overload, Settings::default()).await;
    // Connections and streams that are idle already, for whom nothing is due for minutes.
    let mut idle = h1::Client::connect(pressed.web).await;
    assert_eq!(idle.get("/").await.status, 200);
    let second = h2c::Client::connect(pressed.web).await;
    assert_eq!(second.get("/").await.status, 200);
    let mut stalled = JoinSet::new();
    for version in [1, 2] {
        let web = pressed.web;
        stalled.spawn(async move {
            let headers = [("x-reply", "hang")];
            match version {
                1 => h1::Client::connect(web).await.request("GET", "/stalled", &headers, b"").await.status,
                _ => h2c::Client::connect(web).await.request("GET", "/stalled", &headers, b"").await.status,
            }
        });
    }
    upstream.wait("both are with the upstream", |counts| counts.active == 2).await;
    pressed.press(TIMEOUTS, 1.0).await;
    idle.ended().await;
    pressed.proxy.wait_stat("http.web.downstream_cx_idle_timeout", |count| count >= 2).await;
    let mut statuses = Vec::new();
    while let Some(status) = within("stalled streams end", stalled.join_next()).await {
        statuses.push(status.unwrap());
    }
    assert!(statuses.iter().all(|status| [408, 504].contains(status)), "{statuses:?}");
    pressed.proxy.stat_is("http.web.downstream_rq_idle_timeout", 2).await;
    // When the pressure has gone, connections live as long as ever.
    pressed.press(TIMEOUTS, 0.0).await;
    let mut living = h1::Client::connect(pressed.web).await;
    assert_eq!(living.get("/").await.status, 200);
    let start = Instant::now();
    eventually("a while has passed", async || match start.elapsed() {
        passed if passed > Duration::from_millis(300) => Ok(()),
        passed => Err(format!("{passed:?}")),
    })
    .await;
    assert_eq!(living.get("/").await.status, 200);
}

#[tokio::test]
async fn the_heap_is_measured_and_given_back() {
    let upstream = Upstream::start("echo").await;
    let overload = |bytes: u64| {
        format!(
            "overload_manager: {{ refresh_interval: 0.02s, resource_monitors: [{}, {}], actions: [{{ name: {SHRINK}, \
             triggers: [{{ name: heap, threshold: {{ value: 0.9 }} }}], typed_config: {{ '@type': \
             type.googleapis.com/envoy.config.overload.v3.ShrinkHeapConfig, timer_interval: 1s }} }}] }}\n",
            monitor("heap", "fixed_heap.v3.FixedHeapConfig", &format!("max_heap_size_bytes: {bytes}")),
            monitor("cpu", "cpu_utilization.v3.CpuUtilizationConfig", "mode: HOST"),
        )
    };
    let full = Pressed::start(&upstream, &[], &overload(1 << 20), Settings::default()).await;
    full.proxy.wait_stat(&format!("overload.{SHRINK}.active"), |active| active == 1).await;
    full.proxy.wait_stat(&format!("overload.{SHRINK}.shrink_count"), |count| count >= 2).await;
    full.proxy.wait_stat("overload.heap.pressure", |seen| seen >= 90).await;
    assert_eq!(h1::get(full.web, "/").await.status, 200);
    let allocated = full.proxy.admin("/memory").await.json()["allocated"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(allocated > 1 << 20, "{allocated}");
    let empty = Pressed::start(&upstream, &[], &overload(1 << 40), Settings::default()).await;
    empty.proxy.wait_stat("overload.cpu.pressure", |_| true).await;
    empty.proxy.stat_is("overload.heap.pressure", 0).await;
    empty.proxy.stat_is(&format!("overload.{SHRINK}.active"), 0).await;
    empty.proxy.stat_is("overload.cpu.failed_updates", 0).await;
}

/// Connects until the proxy has taken what it takes, and returns those that it keeps.
async fn fill(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut asked = JoinSet::new();
    for _ in 0..count {
        asked.spawn(async move {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(&h1::request_bytes("GET", "/", &[], b"")).await.ok()?;
            // One that is refused ends, with or without a reset; the others get an answer.
            let read = within("an answer or an end", stream.read(&mut [0; 4096])).await;
            read.is_ok_and(|count| count > 0).then_some(stream)
        });
    }
    let mut kept = Vec::new();
    while let Some(stream) = asked.join_next().await {
        kept.extend(stream.unwrap());
    }
    kept
}

fn limits(more: &str) -> String {
    let kind = "downstream_connections.v3.DownstreamConnectionsConfig";
    let monitor = monitor(
        "envoy.resource_monitors.global_downstream_max_connections",
        kind,
        "max_active_downstream_connections: 10",
    );
    format!("overload_manager: {{ resource_monitors: [{monitor}] }}\n{more}")
}

fn two_listeners(port: u16, free: &str) -> (Vec<String>, Vec<String>) {
    let manager = http("web", &routes(&all_to("up")));
    let listener = |name: &str, more: &str| {
        config::listener(name, &[chain(&manager, "")], &format!(", stat_prefix: {name}{more}"))
    };
    (vec![listener("web", ""), listener("free", free)], vec![cluster("up", &[port])])
}

#[tokio::test]
async fn the_limit_of_the_process_holds_exactly_over_all_workers() {
    let upstream = Upstream::start("echo").await;
    let (listeners, clusters) = two_listeners(upstream.port(), ", ignore_global_conn_limit: true");
    let settings = Settings { concurrency: 4, ..Settings::default() };
    // Envoy's admin port counts, too, unless told not to.
    let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, \
                 ignore_global_conn_limit: true }\n";
    let proxy = Proxy::start_with(&(bootstrap(&listeners, &clusters) + &limits(admin)), settings).await;
    let (web, free) = (proxy.listener("web").await, proxy.listener("free").await);
    for _round in 0..3 {
        let kept = fill(web, 40).await;
        // Envoy counts the connections of its admin port, even if they are never refused.
        let expected = if proxy::tests_envoy() { 9..=10 } else { 10..=10 };
        assert!(expected.contains(&kept.len()), "{}", kept.len());
        assert_eq!(fill(free, 5).await.len(), 5, "those who ignore the limit get through");
        drop(kept);
        proxy.wait_stat("listener.web.downstream_cx_active", |active| active == 0).await;
        proxy.wait_stat("listener.free.downstream_cx_active", |active| active == 0).await;
    }
    let refused = eventually("each of them is counted", async || {
        let refused = proxy.stat("listener.web.downstream_global_cx_overflow").await;
        let taken = proxy.stat("listener.web.downstream_cx_total").await;
        if refused + taken == 120 { Ok(refused) } else { Err(format!("{refused} and {taken}")) }
    })
    .await;
    let failed = "overload.envoy.resource_monitors.global_downstream_max_connections.failed_updates";
    let failed = proxy.stat(failed).await;
    // Envoy counts what would have been refused at listeners that ignore the limit, too.
    assert!(failed == refused || proxy::tests_envoy() && failed > refused, "{failed} {refused}");
    // Those who ignore the limit count, though.
    let many = fill(free, 10).await;
    assert_eq!((many.len(), fill(web, 3).await.len()), (10, 0));
}

#[tokio::test]
async fn limits_of_the_runtime_hold_for_a_listener_and_for_the_process() {
    let upstream = Upstream::start("echo").await;
    let (listeners, clusters) = two_listeners(upstream.port(), "");
    let runtime = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, \
                   ignore_global_conn_limit: true }\nlayered_runtime: { layers: [{ name: static, static_layer: { \
                   envoy.resource_limits.listener.web.connection_limit: 4, overload.global_downstream_max_connections: \
                   9 } }, { name: admin, admin_layer: {} }] }\n";
    let settings = Settings { concurrency: if proxy::tests_envoy() { 1 } else { 4 }, ..Settings::default() };
    let proxy = Proxy::start_with(&(bootstrap(&listeners, &clusters) + runtime), settings).await;
    let (web, free) = (proxy.listener("web").await, proxy.listener("free").await);
    let kept = fill(web, 12).await;
    assert_eq!(kept.len(), 4);
    proxy.stat_is("listener.web.downstream_cx_overflow", 8).await;
    if proxy::tests_envoy() {
        return;
    }
    assert_eq!(fill(free, 12).await.len(), 5, "which makes 9 in the process");
    proxy.stat_is("listener.free.downstream_global_cx_overflow", 7).await;
    // More room for the listener, without a new one.
    proxy.admin_post("/runtime_modify?envoy.resource_limits.listener.web.connection_limit=6").await;
    proxy.wait_stat("listener.free.downstream_cx_active", |active| active == 0).await;
    assert_eq!(fill(web, 12).await.len(), 2);
}

#[tokio::test]
async fn a_handshake_has_less_time_under_pressure() {
    let upstream = Upstream::start("echo").await;
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let directory = tempfile::tempdir().unwrap();
    identity.write(directory.path(), "server");
    write(directory.path(), TIMEOUTS, 1.0);
    let tls = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { '@type': \
               type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: \
               { tls_certificates: [{ certificate_chain: { filename: $dir/server.crt }, private_key: { filename: \
               $dir/server.key } }] } } }, transport_socket_connect_timeout: 600s";
    let manager = http("web", &routes(&all_to("up")));
    let listener = config::listener("web", &[chain(&manager, tls)], ", stat_prefix: web");
    let overload = format!(
        "overload_manager: {{ refresh_interval: 0.02s, resource_monitors: [{}], actions: [{{ name: {TIMEOUTS}, \
         triggers: [{{ name: {}, threshold: {{ value: 0.9 }} }}], typed_config: {{ '@type': \
         type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig, timer_scale_factors: [{{ timer: \
         TRANSPORT_SOCKET_CONNECT, min_timeout: 3s }}] }} }}] }}\n",
        monitor(&resource(TIMEOUTS), "injected_resource.v3.InjectedResourceConfig", &file(TIMEOUTS)),
        resource(TIMEOUTS)
    );
    let text = bootstrap(&[listener], &[cluster("up", &[upstream.port()])]) + &overload;
    let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
    proxy.wait_stat(&format!("overload.{TIMEOUTS}.active"), |active| active == 1).await;
    let web = proxy.listener("web").await;
    let mut silent = h1::Client::connect(web).await;
    silent.ended().await;
    proxy.wait_stat("listener.web.downstream_cx_transport_socket_connect_timeout", |count| count == 1).await;
    let client = certificates::connect(web, "localhost", authority.client(&[], None)).await;
    assert!(client.is_ok(), "who is quick gets through");
}

/// Ours alone: Envoy takes an empty overload manager for a mistake.
#[tokio::test]
async fn an_empty_overload_manager_watches_nothing() {
    if proxy::tests_envoy() {
        return;
    }
    let upstream = Upstream::start("echo").await;
    let quiet = Pressed::start(&upstream, &[], "overload_manager: {}\n", Settings::default()).await;
    assert_eq!(quiet.proxy.admin("/stats?filter=^overload%5C.").await.text().trim(), "");
    assert_eq!(h1::get(quiet.web, "/").await.status, 200);
}
