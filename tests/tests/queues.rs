//! Limits on requests in flight over which others wait: that they hold exactly, who is served first, and what becomes of
//! those that wait in vain. Nothing here is Envoy's but one comparison.

use std::net::SocketAddr;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    self, HTTP2, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster_with, eds_cluster, endpoints, http, rds,
    resource, resources, route_configuration, routes,
};
use outrigger_tests::{Proxy, Response, SOON, Settings, Upstream, h1, h2c, proxy, tcp, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const WORKERS: usize = 4;

/// What a cluster says about requests in flight, as its typed options beside those of HTTP/2.
fn limits(options: &str) -> String {
    let http2 = HTTP2.strip_suffix(" }").expect("a flow mapping");
    format!(
        "{http2}, outrigger.upstream: {{ '@type': type.googleapis.com/outrigger.upstream.v1.ConcurrencyOptions, {options} }} }}"
    )
}

struct World {
    proxy: Proxy,
    web: SocketAddr,
}

impl World {
    async fn start(clusters: &[String], to: &str) -> Self {
        let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(outrigger.queue:outcome)% \
            %DYNAMIC_METADATA(outrigger.queue:class)% %REQ(:PATH)%";
        let log = config::access_log_of("access.log", format);
        let listener = config::listener("web", &[chain(&http("web", &format!("{}{log}", routes(to))), "")], "");
        let settings = Settings { concurrency: WORKERS, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[listener], clusters), settings).await;
        let web = proxy.listener("web").await;
        Self { proxy, web }
    }

    /// One cluster, `limited`.
    async fn limited(upstreams: &[&Upstream], more: &str) -> Self {
        let ports: Vec<u16> = upstreams.iter().map(|upstream| upstream.port()).collect();
        Self::start(&[cluster_with("limited", &ports, more)], &all_to("limited")).await
    }

    fn send(&self, target: &str, headers: &[(&str, &str)]) -> JoinHandle<Response> {
        let (web, target) = (self.web, target.to_owned());
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        tokio::spawn(async move {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            h1::Client::connect(web).await.request("GET", &target, &headers, b"").await
        })
    }

    async fn waiting(&self, count: u64) {
        self.proxy.wait_stat("cluster.limited.queue.active", |active| active == count).await;
    }

    /// Sends one after the other, so that they wait in this order.
    async fn line_up(&self, requests: &[(&str, &[(&str, &str)])]) -> Vec<JoinHandle<Response>> {
        let mut sent = Vec::new();
        for (position, (target, headers)) in requests.iter().enumerate() {
            sent.push(self.send(target, headers));
            self.waiting(position as u64 + 1).await;
        }
        sent
    }
}

async fn all_good(sent: Vec<JoinHandle<Response>>) {
    for response in sent {
        let response = response.await.unwrap();
        assert_eq!(response.status, 200, "{response:?}");
    }
}

/// The paths that came, but for the first.
fn order_at(upstream: &Upstream) -> Vec<String> {
    upstream.seen().into_iter().skip(1).map(|seen| seen.target).collect()
}

/// 300 requests at once, by both versions of HTTP, that are answered like this.
fn burst(web: SocketAddr, reply: &'static str) -> JoinSet<Response> {
    let mut requests = JoinSet::new();
    for number in 0..300 {
        requests.spawn(async move {
            let headers = [("x-reply", reply)];
            if number % 2 == 0 {
                h1::Client::connect(web).await.request("GET", "/", &headers, b"").await
            } else {
                h2c::Client::connect(web).await.request("GET", "/", &headers, b"").await
            }
        });
    }
    requests
}

#[tokio::test]
async fn a_burst_waits_its_turn_and_no_endpoint_ever_has_more_than_its_limit() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let world = World::limited(&upstreams.each_ref(), &limits("max_requests: 10")).await;
    let responses = burst(world.web, "delay=50").join_all().await;
    assert!(
        responses.iter().all(|response| response.status == 200),
        "{:?}",
        responses.iter().find(|r| r.status != 200)
    );
    for upstream in &upstreams {
        let counts = upstream.counts();
        assert!(counts.peak <= 10 && counts.requests >= 50, "{counts:?}");
    }
    assert_eq!(upstreams.iter().map(|upstream| upstream.counts().requests).sum::<usize>(), 300);
    world.waiting(0).await;
    world.proxy.wait_stat("cluster.limited.queue.total", |seen| seen > 0).await;
    world.proxy.stat_is("cluster.limited.queue.overflow", 0).await;
}

#[tokio::test]
async fn envoy_refuses_most_of_the_same_burst() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let breakers = format!(", circuit_breakers: {{ thresholds: [{{ max_requests: 30 }}] }}{HTTP2}");
    let cluster = cluster_with("limited", &upstreams.each_ref().map(Upstream::port), &breakers);
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("limited"))), "")], "");
    let settings = Settings { program: proxy::envoy(), ..Settings::default() };
    let envoy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
    // While those that got through keep their places, all others are refused.
    let mut responses = burst(envoy.listener("web").await, "gate");
    let mut refused = 0;
    while refused < 150 {
        let response = within("most are refused", responses.join_next()).await.unwrap().unwrap();
        assert_eq!(response.status, 503);
        refused += 1;
    }
    upstreams.iter().for_each(Upstream::open_gate);
    responses.join_all().await;
}

#[tokio::test]
async fn lower_classes_go_first_by_header_route_and_priority() {
    let upstream = Upstream::start("a").await;
    let options = "max_requests: 1, priority_class: { header: x-class, offset_header: x-offset, default_class: 5 }";
    let cluster = cluster_with("limited", &[upstream.port()], &limits(options));
    let to = format!(
        "{{ match: {{ prefix: /hinted }}, metadata: {{ filter_metadata: {{ outrigger.queue: {{ class: 2 }} }} }}, \
           route: {{ cluster: limited }} }}, \
         {{ match: {{ prefix: /high }}, route: {{ cluster: limited, priority: HIGH }} }}, {}",
        all_to("limited")
    );
    let world = World::start(&[cluster], &to).await;
    let first = world.send("/first", &[("x-reply", "gate")]);
    upstream.wait("the first is there", |counts| counts.waiting == 1).await;
    let sent = world
        .line_up(&[
            ("/default", &[]),
            ("/last", &[("x-class", "9")]),
            ("/early", &[("x-offset", "-60000")]),
            ("/hinted", &[]),
            ("/hinted/one", &[("x-class", "1")]),
            ("/high", &[]),
            ("/nonsense", &[("x-class", "99999"), ("x-offset", "soon")]),
        ])
        .await;
    upstream.open_gate();
    all_good(sent).await;
    assert_eq!(first.await.unwrap().status, 200);
    let order = order_at(&upstream);
    assert_eq!(order, ["/high", "/hinted/one", "/hinted", "/early", "/default", "/nonsense", "/last"]);
    let lines = world.proxy.lines("access.log", 8).await;
    assert!(lines.contains(&"200 - via_upstream served -1024 /high".to_owned()), "{lines:?}");
    assert!(lines.contains(&"200 - via_upstream - - /first".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn callers_are_served_in_turn() {
    let upstream = Upstream::start("a").await;
    let options = "max_requests: 1, fair_queue: { header: x-tenant }";
    let world = World::limited(&[&upstream], &limits(options)).await;
    let first = world.send("/first", &[("x-reply", "gate"), ("x-tenant", "loud")]);
    upstream.wait("the first is there", |counts| counts.waiting == 1).await;
    let loud: &[(&str, &str)] = &[("x-tenant", "loud")];
    let quiet: &[(&str, &str)] = &[("x-tenant", "quiet")];
    let sent =
        world.line_up(&[("/1", loud), ("/2", loud), ("/3", loud), ("/4", loud), ("/q1", quiet), ("/q2", quiet)]).await;
    upstream.open_gate();
    all_good(sent).await;
    assert_eq!(first.await.unwrap().status, 200);
    let order = order_at(&upstream);
    let position = |target: &str| order.iter().position(|seen| seen == target).unwrap();
    assert!(position("/q1") <= 1 && position("/q2") <= 3, "{order:?}");
}

#[tokio::test]
async fn who_waits_too_long_or_in_too_long_a_queue_is_told_so() {
    let upstream = Upstream::start("a").await;
    let options = "max_requests: 1, max_queue: 2, queue_timeout: 3s";
    let world = World::limited(&[&upstream], &limits(options)).await;
    let first = world.send("/first", &[("x-reply", "gate")]);
    upstream.wait("the first is there", |counts| counts.waiting == 1).await;
    let waiting = [world.send("/waits", &[]), world.send("/waits", &[])];
    world.proxy.wait_stat("cluster.limited.queue.total", |total| total == 2).await;
    let full = world.send("/full", &[]).await.unwrap();
    assert_eq!((full.status, full.header("x-envoy-overloaded")), (503, Some("true")));
    assert_eq!(full.text(), "too many requests wait for the upstream");
    for response in waiting {
        let response = response.await.unwrap();
        assert_eq!((response.status, response.header("x-envoy-overloaded")), (503, Some("true")));
        assert_eq!(response.text(), "no upstream had room for the request in time");
    }
    upstream.open_gate();
    assert_eq!(first.await.unwrap().status, 200);
    let lines = world.proxy.lines("access.log", 4).await;
    assert!(lines.contains(&"503 UO upstream_queue_full full 0 /full".to_owned()), "{lines:?}");
    let late = "503 UO upstream_queue_timeout timeout 0 /waits";
    assert_eq!(lines.iter().filter(|line| *line == late).count(), 2, "{lines:?}");
    for (stat, value) in [("queue.overflow", 1), ("queue.timeout", 2), ("upstream_rq_pending_overflow", 1)] {
        world.proxy.stat_is(&format!("cluster.limited.{stat}"), value).await;
    }
    // Nothing of it is left: the place is free again.
    assert_eq!(h1::get(world.web, "/after").await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back() {
    let upstream = Upstream::start("a").await;
    let world = World::limited(&[&upstream], &limits("max_requests: 1")).await;
    let first = world.send("/first", &[("x-reply", "gate")]);
    upstream.wait("the first is there", |counts| counts.waiting == 1).await;
    let sent = world.line_up(&[("/leaves", &[]), ("/stays", &[])]).await;
    sent[0].abort();
    world.waiting(1).await;
    // The one in flight leaves, too: its place goes to the one that waits.
    first.abort();
    let stays = sent.into_iter().nth(1).unwrap().await.unwrap();
    assert_eq!(stays.status, 200);
    assert_eq!(order_at(&upstream), ["/stays"]);
    world.proxy.stat_is("cluster.limited.queue.cancelled", 1).await;
}

#[tokio::test]
async fn limits_come_from_thresholds_metadata_and_endpoints_too() {
    let upstream = Upstream::start("a").await;
    let port = upstream.port();
    let endpoint = |metadata: &str| {
        format!(
            "load_assignment: {{ cluster_name: limited, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ \
             socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}{metadata} }}] }}] }}"
        )
    };
    let own = ", metadata: { filter_metadata: { outrigger.lb: { max_requests: 2 } } }";
    let of_cluster = "metadata: { filter_metadata: { outrigger.upstream: { max_requests: 2, queue_timeout: 5s } } }";
    let typed_struct = ", typed_extension_protocol_options: { outrigger.upstream: { \
        '@type': type.googleapis.com/xds.type.v3.TypedStruct, \
        type_url: type.googleapis.com/outrigger.upstream.v1.ConcurrencyOptions, value: { max_requests: 2 } } }";
    let thresholds =
        |more: &str| format!(", circuit_breakers: {{ per_host_thresholds: [{{ max_requests: 2{more} }}] }}");
    let whole_cluster =
        format!(", circuit_breakers: {{ thresholds: [{{ max_requests: 2 }}] }}{}", limits("over_limit: WAIT"));
    for (what, endpoint, more, waits) in [
        ("metadata of the cluster", endpoint(""), format!(", {of_cluster}"), true),
        ("metadata of the endpoint", endpoint(own), limits("max_requests: 100"), true),
        ("a TypedStruct", endpoint(""), typed_struct.to_owned(), true),
        ("thresholds that let wait", endpoint(""), thresholds(", max_pending_requests: 9"), true),
        ("thresholds alone", endpoint(""), thresholds(""), false),
        ("the limit of the cluster", endpoint(""), whole_cluster, true),
        ("a limit that fails", endpoint(""), limits("max_requests: 2, over_limit: FAIL"), false),
    ] {
        let cluster = format!("{{ name: limited, type: STATIC, connect_timeout: 5s, {endpoint}{more} }}");
        let world = World::start(&[cluster], &all_to("limited")).await;
        let held = [world.send("/", &[("x-reply", "gate")]), world.send("/", &[("x-reply", "gate")])];
        upstream.wait(what, |counts| counts.waiting == 2).await;
        let third = world.send("/third", &[]);
        if waits {
            world.waiting(1).await;
            upstream.open_gate();
            assert_eq!(third.await.unwrap().status, 200, "{what}");
        } else {
            let refused = third.await.unwrap();
            assert_eq!((refused.status, refused.header("x-envoy-overloaded")), (503, Some("true")), "{what}");
            let lines = world.proxy.lines("access.log", 1).await;
            assert_eq!(lines[0], "503 UO upstream_reset_before_response_started{overflow} - - /third", "{what}");
            upstream.open_gate();
        }
        all_good(held.into()).await;
        upstream.wait(what, |counts| counts.active == 0).await;
        upstream.close_gate();
    }
}

/// A route that hashes by a header.
fn hashed(cluster: &str) -> String {
    format!(
        "{{ match: {{ prefix: / }}, route: {{ cluster: {cluster}, hash_policy: [{{ header: {{ header_name: x-key }} }}] }} }}"
    )
}

#[tokio::test]
async fn a_hashed_request_waits_for_its_endpoint_unless_any_will_do() {
    for (options, other) in [("max_requests: 1", false), ("max_requests: 1, over_limit: OTHER_ENDPOINT", true)] {
        let upstreams = [Upstream::start("a").await, Upstream::start("b").await];
        let more = format!("{}, lb_policy: RING_HASH", limits(options));
        let cluster = cluster_with("limited", &upstreams.each_ref().map(Upstream::port), &more);
        let world = World::start(&[cluster], &hashed("limited")).await;
        let key = [("x-key", "k")];
        let name = h1::Client::connect(world.web).await.request("GET", "/", &key, b"").await.served_by();
        let (own, free) = if name == "a" { (&upstreams[0], &upstreams[1]) } else { (&upstreams[1], &upstreams[0]) };
        let first = world.send("/first", &[("x-key", "k"), ("x-reply", "gate")]);
        own.wait("the first is there", |counts| counts.waiting == 1).await;
        let second = world.send("/second", &key);
        if other {
            assert_eq!(second.await.unwrap().status, 200);
            assert_eq!(free.seen().len(), 1);
        } else {
            world.waiting(1).await;
            // Others are not kept waiting by those who wait for one endpoint: of so many some belong to the other one.
            let keys: Vec<String> = (0..40).map(|key| key.to_string()).collect();
            let sent: Vec<_> = keys.iter().map(|key| world.send("/other", &[("x-key", key.as_str())])).collect();
            free.wait("some go to the other", |counts| counts.requests >= 1).await;
            own.open_gate();
            all_good(sent).await;
            assert_eq!(second.await.unwrap().served_by(), name);
        }
        own.open_gate();
        assert_eq!(first.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn those_who_wait_move_on_when_endpoints_and_limits_change() {
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    let mock = MockControlPlane::start().await;
    let cluster = |options: &str| {
        let eds = eds_cluster("limited");
        let more = limits(options);
        resource("cds", &format!("{}{more} }}", eds.strip_suffix(" }").unwrap()))
    };
    let manager = http("web", &rds("routes"));
    let everything = |cluster: String, ports: &[u16]| {
        resources(&[
            cluster,
            resource("eds", &endpoints("limited", ports)),
            resource("lds", &config::listener("web", &[chain(&manager, "")], "")),
            resource("rds", &route_configuration("routes", &all_to("limited"))),
        ])
    };
    let options = "max_requests: 1, wait_for_ready: 60s";
    mock.set_yaml(&everything(cluster(options), &[old.port()])).unwrap();
    let bootstrap = ads_bootstrap(Xds::AdsDelta, mock.address().port());
    let settings = Settings { concurrency: WORKERS, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap, settings).await;
    mock.wait_ack("eds", SOON).await.unwrap();
    let world = World { web: proxy.listener("web").await, proxy };

    // The endpoint is replaced: who waits goes to the new one.
    let first = world.send("/first", &[("x-reply", "gate")]);
    old.wait("the first is there", |counts| counts.waiting == 1).await;
    let second = world.send("/second", &[("x-reply", "gate")]);
    world.waiting(1).await;
    mock.set_yaml(&resources(&[resource("eds", &endpoints("limited", &[new.port()]))])).unwrap();
    new.wait("the second moved on", |counts| counts.waiting == 1).await;

    // The limit is raised.
    let third = world.send("/third", &[("x-reply", "gate")]);
    world.waiting(1).await;
    mock.set_yaml(&resources(&[cluster("max_requests: 2, wait_for_ready: 60s")])).unwrap();
    new.wait("the third has room", |counts| counts.waiting == 2).await;
    for upstream in [&old, &new] {
        upstream.open_gate();
    }
    all_good(vec![first, second, third]).await;

    // There is no endpoint at all for a while.
    mock.set_yaml(&resources(&[resource("eds", &endpoints("limited", &[]))])).unwrap();
    world.proxy.wait_stat("cluster.limited.membership_total", |total| total == 0).await;
    let early = world.send("/early", &[]);
    world.waiting(1).await;
    mock.set_yaml(&resources(&[resource("eds", &endpoints("limited", &[old.port()]))])).unwrap();
    assert_eq!(early.await.unwrap().served_by(), "old");
}

#[tokio::test]
async fn a_retry_gives_its_place_back_and_takes_another() {
    let upstream = Upstream::start("a").await;
    let cluster = cluster_with("limited", &[upstream.port()], &limits("max_requests: 1"));
    let to = "{ match: { prefix: / }, route: { cluster: limited, retry_policy: { retry_on: 5xx, num_retries: 2, \
        retry_back_off: { base_interval: 0.001s } } } }";
    let world = World::start(&[cluster], to).await;
    let sent: Vec<_> = (0..20).map(|_| world.send("/fails", &[("x-reply", "status=500")])).collect();
    for response in sent {
        assert_eq!(response.await.unwrap().status, 500);
    }
    let counts = upstream.counts();
    assert_eq!(counts.peak, 1, "{counts:?}");
    assert!(counts.requests > 20, "{counts:?}");
    assert_eq!(h1::get(world.web, "/after").await.status, 200);
}

#[tokio::test]
async fn a_bad_option_is_named_with_its_path() {
    for (more, problem) in [
        (
            limits("max_requests: 5, min_requests: 9, full_load: 100"),
            "typed_extension_protocol_options[\"outrigger.upstream\"].min_requests: 9 is not within 1 to max_requests, 5",
        ),
        (
            ", metadata: { filter_metadata: { outrigger.upstream: { max_request: 5 } } }".to_owned(),
            "metadata.filter_metadata[\"outrigger.upstream\"]",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap.yaml");
        std::fs::write(&path, bootstrap(&[], &[cluster_with("limited", &[1], &more)])).unwrap();
        let (status, out, err) = proxy::run(&["--mode", "validate", "-c", &path.to_string_lossy()]).await;
        assert!(!status.success());
        assert!(format!("{out}{err}").contains(problem), "{out}{err}");
    }
}

#[tokio::test]
async fn tcp_sessions_wait_too() {
    let echo = tcp::Peer::start(tcp::Conduct::Echo).await;
    let more = limits("max_requests: 1");
    let listener = config::listener("tcp", &[chain(&config::tcp("limited"), "")], "");
    let settings = Settings { concurrency: WORKERS, ..Settings::default() };
    let clusters = [cluster_with("limited", &[echo.port()], &more)];
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let address = proxy.listener("tcp").await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"one").await.unwrap();
    let mut answer = [0; 3];
    within("an answer", first.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"one");
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"two").await.unwrap();
    proxy.wait_stat("cluster.limited.queue.active", |active| active == 1).await;
    drop(first);
    within("an answer to the second", second.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"two");
}

#[tokio::test]
async fn the_admin_port_shows_who_has_places_and_who_waits() {
    let upstream = Upstream::start("a").await;
    let world = World::limited(&[&upstream], &limits("max_requests: 1")).await;
    let first = world.send("/first", &[("x-reply", "gate")]);
    upstream.wait("the first is there", |counts| counts.waiting == 1).await;
    let second = world.send("/second", &[]);
    world.waiting(1).await;
    let text = world.proxy.admin("/clusters").await.text();
    let address = upstream.address();
    for line in [
        "limited::queue::in_flight::1".to_owned(),
        "limited::queue::waiting::1".to_owned(),
        format!("limited::{address}::rq_in_flight::1"),
        format!("limited::{address}::rq_limit::1"),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
    }
    let json = world.proxy.admin("/clusters?format=json").await.json();
    let stats = json["cluster_statuses"][0]["host_statuses"][0]["stats"].as_array().unwrap();
    assert!(stats.iter().any(|stat| stat["name"] == "rq_limit" && stat["value"] == "1"), "{stats:?}");
    upstream.open_gate();
    all_good(vec![first, second]).await;
}

#[tokio::test]
async fn mirrored_copies_keep_to_the_limit_and_make_nobody_wait() {
    let (upstream, shadow) = (Upstream::start("a").await, Upstream::start("shadow").await);
    let clusters = [
        config::cluster("limited", &[upstream.port()]),
        cluster_with("shadow", &[shadow.port()], &limits("max_requests: 1")),
    ];
    let to = "{ match: { prefix: / }, route: { cluster: limited, request_mirror_policies: [{ cluster: shadow }] } }";
    let world = World::start(&clusters, to).await;
    let sent: Vec<_> = (0..5).map(|_| world.send("/", &[("x-reply", "gate")])).collect();
    upstream.wait("all are there", |counts| counts.waiting == 5).await;
    shadow.wait("one copy is there", |counts| counts.waiting == 1).await;
    world.proxy.wait_stat("cluster.shadow.upstream_cx_none_healthy", |dropped| dropped == 4).await;
    upstream.open_gate();
    shadow.open_gate();
    all_good(sent).await;
    assert_eq!(shadow.counts().peak, 1);
}

#[tokio::test]
async fn a_session_waits_for_its_endpoint() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await];
    let cluster = cluster_with("limited", &upstreams.each_ref().map(Upstream::port), &limits("max_requests: 1"));
    let session = "{ name: envoy.filters.http.stateful_session, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession, session_state: { \
        name: envoy.http.stateful_session.header, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState, \
        name: x-session } } } }";
    let router = "http_filters: [{ name: envoy.filters.http.router";
    let manager =
        http("web", &routes(&all_to("limited"))).replace(router, &router.replace('[', &format!("[{session}, ")));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let settings = Settings { concurrency: WORKERS, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[cluster]), settings).await;
    let world = World { web: proxy.listener("web").await, proxy };
    let begin = h1::get(world.web, "/").await;
    let own = if begin.served_by() == "a" { &upstreams[0] } else { &upstreams[1] };
    let key = begin.header("x-session").expect("a session").to_owned();
    let first = world.send("/first", &[("x-session", &key), ("x-reply", "gate")]);
    own.wait("the first is there", |counts| counts.waiting == 1).await;
    let second = world.send("/second", &[("x-session", &key)]);
    world.waiting(1).await;
    own.open_gate();
    assert_eq!(second.await.unwrap().served_by(), begin.served_by());
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(own.counts().peak, 1);
}

/// Tells whoever asks what the agent says at the moment.
async fn agent(says: tokio::sync::watch::Receiver<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let line = *says.borrow();
            let _ = stream.write_all(line.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn an_agent_limits_its_endpoint_and_raises_the_limit_again() {
    let upstream = Upstream::start("a").await;
    let (say, says) = tokio::sync::watch::channel("up maxconn:1\n");
    let checks = format!(
        ", health_checks: [{{ timeout: 10s, interval: 0.05s, no_traffic_interval: 0.05s, unhealthy_threshold: 1, \
         healthy_threshold: 1, custom_health_check: {{ name: agent, typed_config: {{ \
         '@type': type.googleapis.com/outrigger.health.v1.AgentCheck, port: {} }} }} }}]",
        agent(says).await.port()
    );
    let world = World::limited(&[&upstream], &checks).await;
    let first = world.send("/first", &[("x-reply", "gate")]);
    upstream.wait("the first is there", |counts| counts.waiting == 1).await;
    let second = world.send("/second", &[("x-reply", "gate")]);
    world.waiting(1).await;
    say.send("up maxconn:2\n").unwrap();
    upstream.wait("the second has room", |counts| counts.waiting == 2).await;
    upstream.open_gate();
    all_good(vec![first, second]).await;
}

#[tokio::test]
async fn a_tcp_client_that_leaves_gives_its_place_in_the_queue_up_at_once() {
    let echo = tcp::Peer::start(tcp::Conduct::Echo).await;
    let more = limits("max_requests: 1");
    let log = config::access_log_of("tcp.log", "%RESPONSE_FLAGS% %BYTES_RECEIVED%");
    let fields = format!("cluster: limited{log}");
    let listener = config::listener("tcp", &[chain(&config::tcp_with(&fields), "")], "");
    let clusters = [cluster_with("limited", &[echo.port()], &more)];
    let settings = Settings { concurrency: WORKERS, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let address = proxy.listener("tcp").await;
    let waiting = async |count: u64| proxy.wait_stat("cluster.limited.queue.active", |active| active == count).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"one").await.unwrap();
    let mut answer = [0; 3];
    within("an answer", first.read_exact(&mut answer)).await.unwrap();

    // It ends the connection, having sent nothing.
    let silent = TcpStream::connect(address).await.unwrap();
    waiting(1).await;
    drop(silent);
    waiting(0).await;
    proxy.stat_is("cluster.limited.queue.cancelled", 1).await;
    // It resets the connection, whatever it has sent.
    let mut hasty = TcpStream::connect(address).await.unwrap();
    hasty.write_all(b"two").await.unwrap();
    waiting(1).await;
    socket2::SockRef::from(&hasty).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(hasty);
    waiting(0).await;
    proxy.stat_is("cluster.limited.queue.cancelled", 2).await;
    // What is to be delivered is, even if nothing follows.
    let mut done = TcpStream::connect(address).await.unwrap();
    done.write_all(b"end").await.unwrap();
    done.shutdown().await.unwrap();
    waiting(1).await;
    drop(first);
    let mut all = Vec::new();
    within("the answer", done.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"end");
    proxy.stat_is("cluster.limited.queue.cancelled", 2).await;
    let lines = proxy.lines("tcp.log", 4).await;
    assert_eq!(lines.iter().filter(|line| line.starts_with("DC ")).count(), 2, "{lines:?}");
}
