//! What the admin port tells beyond Envoy's endpoints: what a request would get, what failed, what is going on, what
//! changed, and what can be changed for a while. None of this is Envoy's.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    self, HTTP2, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster, cluster_with, eds_cluster, endpoints, http,
    resource, resources, routes, tcp,
};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Response, Settings, Upstream, eventually, h1, h2c};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WORKERS: usize = 3;

async fn start(text: &str) -> Proxy {
    Proxy::start_with(text, Settings { concurrency: WORKERS, ..Settings::default() }).await
}

async fn json(proxy: &Proxy, path: &str) -> Value {
    let answer = proxy.admin(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

/// The routes of the first scenarios.
const ROUTES: &str = "\
    { name: alice, match: { prefix: /, headers: [{ name: x-user, string_match: { exact: alice } }] }, route: { cluster: b } }, \
    { name: grpc, match: { prefix: /, grpc: {} }, route: { cluster: b } }, \
    { name: query, match: { prefix: /q, query_parameters: [{ name: v, string_match: { prefix: 'x' } }] }, route: { cluster: b } }, \
    { name: missing, match: { path: /missing }, route: { cluster: nowhere } }, \
    { name: moved, match: { prefix: /old }, redirect: { prefix_rewrite: /new } }, \
    { name: here, match: { path: /here }, direct_response: { status: 418 } }, \
    { name: rewritten, match: { prefix: /re/ }, route: { cluster: a, prefix_rewrite: /written/, timeout: 3s, \
      retry_policy: { retry_on: 5xx, num_retries: 2 } } }, \
    { name: rest, match: { prefix: /a }, route: { cluster: a } }";

#[tokio::test]
async fn requests_get_what_is_explained_of_them() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let manager = format!(
        "{}, normalize_path: true",
        routes(ROUTES).replace("{ name: local,", "{ name: local, validate_clusters: false,")
    );
    let web = config::listener("web", &[chain(&http("web", &manager), "")], "");
    let raw = config::listener("raw", &[chain(&tcp("a"), "")], "");
    let proxy = start(&bootstrap(&[web, raw], &[cluster("a", &[a.port()]), cluster("b", &[b.port()])])).await;
    let web = proxy.listener("web").await;
    let asked: &[(&str, &[(&str, &str)])] = &[
        ("/a/1", &[]),
        ("/a/1", &[("x-user", "alice")]),
        ("/a/1", &[("x-user", "bob")]),
        ("/a/1", &[("content-type", "application/grpc")]),
        ("/q?v=xy", &[]),
        ("/q?v=y", &[]),
        ("/x/../a/normal", &[]),
        ("/missing", &[]),
        ("/old/thing", &[]),
        ("/here", &[]),
        ("/re/1?q", &[]),
        ("/nothing", &[]),
    ];
    for (path, headers) in asked {
        let response = h1::Client::connect(web).await.request("GET", path, headers, b"").await;
        let mut query = format!("/explain?format=json&listener=web&host=h&path={}", path.replace('?', "%3F"));
        for (name, value) in *headers {
            query.push_str(&format!("&header={name}:{value}"));
        }
        let told = json(&proxy, &query).await;
        let result = told["result"].as_str().unwrap().to_owned();
        let expected = match response.status {
            200 if response.served_by() == "a" || response.served_by() == "b" => {
                format!("goes to cluster {:?}", response.served_by())
            }
            status => status.to_string(),
        };
        assert!(result.starts_with(&expected), "{path} {headers:?}: {status} but {result}", status = response.status);
    }
    let told = json(&proxy, "/explain?format=json&listener=web&host=h&path=/re/1%3Fq&header=X-User:bob").await;
    assert_eq!(told["route"]["name"], "rewritten");
    assert_eq!(told["policies"]["path_becomes"], "/written/1?q");
    assert_eq!(told["policies"]["timeouts"]["route"], "3s");
    assert_eq!(
        (&told["policies"]["retries"]["at_most"], &told["policies"]["retries"]["on"][0]),
        (&2.into(), &"5xx".into())
    );
    assert_eq!(told["clusters"][0]["endpoints"][0]["address"], format!("127.0.0.1:{}", a.port()));
    let misses: Vec<&str> =
        told["nearer_misses"]["told"].as_array().unwrap().iter().map(|miss| miss["name"].as_str().unwrap()).collect();
    assert_eq!(misses, ["alice", "grpc", "query", "missing", "moved", "here"]);
    assert_eq!(told["nearer_misses"]["told"][0]["why_not"], "wants header \"x-user\" exactly \"alice\"; it is \"bob\"");
    let session = proxy.admin(&format!("/explain?destination={}", proxy.listener("raw").await)).await.text();
    // The port was chosen by the system, so no listener of the configuration has it.
    assert!(session.starts_with("no listener has the address"), "{session}");
    let session = proxy.admin("/explain?listener=raw").await.text();
    assert!(session.starts_with("result: goes to cluster \"a\" (1 of 1 endpoints fit)\n"), "{session}");
    for (query, reason) in [
        ("", "give a listener or a destination; listeners are: raw, web"),
        ("listener=x", "there is no listener \"x\""),
        ("listener=web&pth=/", "there is no parameter \"pth\""),
    ] {
        let refused = proxy.admin(&format!("/explain?{query}")).await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains(reason), "{query}: {}", refused.text());
    }
}

#[tokio::test]
async fn filter_chains_are_explained_by_what_a_connection_does_not_meet() {
    let upstream = Upstream::start("a").await;
    let to =
        |name: &str, matches: &str| chain(&tcp("a"), &format!(", name: {name}, filter_chain_match: {{ {matches} }}"));
    let chains = [
        to("named", "server_names: [a.example]"),
        to("port", "destination_port: 81"),
        to("plain", "transport_protocol: raw_buffer"),
    ];
    let inspector = ", listener_filters: [{ name: tls, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
    let proxy =
        start(&bootstrap(&[config::listener("l", &chains, inspector)], &[cluster("a", &[upstream.port()])])).await;
    let told = json(&proxy, "/explain?format=json&listener=l&sni=A.example").await;
    assert_eq!(told["filter_chain"]["name"], "named");
    let why = |told: &Value, name: &str, list: &str| {
        let list = if list.is_empty() { &told["listener"]["filter_chains"] } else { &told["filter_chain"][list] };
        let miss = list.as_array().unwrap().iter().find(|miss| miss["name"] == name);
        miss.unwrap_or_else(|| panic!("{told}"))["why_not"].as_str().unwrap().to_owned()
    };
    assert!(why(&told, "port", "other_chains").starts_with("destination_port wants 81"), "{told}");
    assert_eq!(why(&told, "plain", "other_chains"), "transport_protocol wants raw_buffer; the connection has tls");
    let closed = json(&proxy, "/explain?format=json&listener=l&sni=b.example").await;
    assert_eq!(closed["result"], "the connection is closed: no filter chain takes it");
    assert_eq!(why(&closed, "named", ""), "server_names wants a.example; the connection has b.example");
}

struct Failing {
    proxy: Proxy,
    web: SocketAddr,
    raw: SocketAddr,
    _closed: ClosedPort,
}

/// One cluster that answers, one that cannot be reached.
async fn failing(upstream: &Upstream) -> Failing {
    let closed = ClosedPort::take();
    let to = "{ name: dead, match: { prefix: /dead }, route: { cluster: dead } }, \
              { name: late, match: { prefix: /late }, route: { cluster: a, timeout: 0.5s } }, \
              { name: all, match: { prefix: / }, route: { cluster: a, timeout: 0s } }";
    let web = config::listener("web", &[chain(&http("web", &routes(to)), "")], "");
    let raw = config::listener("raw", &[chain(&tcp("dead"), "")], "");
    let live = config::listener("live", &[chain(&tcp("a"), "")], "");
    let clusters = [cluster("a", &[upstream.port()]), cluster("dead", &[closed.port()])];
    let proxy = start(&bootstrap(&[web, raw, live], &clusters)).await;
    let (web, raw) = (proxy.listener("web").await, proxy.listener("raw").await);
    Failing { proxy, web, raw, _closed: closed }
}

async fn failures(proxy: &Proxy, count: usize) -> Vec<Value> {
    eventually("failures", async || {
        let told = json(proxy, "/failures?format=json").await;
        let failures = told["failures"].as_array().unwrap();
        if failures.len() == count { Ok(failures.clone()) } else { Err(told.to_string()) }
    })
    .await
}

#[tokio::test]
async fn failures_are_kept_with_their_reasons_and_successes_are_not() {
    let upstream = Upstream::start("a").await;
    let Failing { proxy, web, raw, _closed } = failing(&upstream).await;
    let ask = async |path: &str, reply: &str| {
        h1::Client::connect(web).await.request("GET", path, &[("x-reply", reply)], b"").await.status
    };
    assert_eq!(ask("/fine", "").await, 200);
    assert_eq!(ask("/absent", "status=404").await, 404);
    assert_eq!(ask("/dead?a=<b>", "").await, 503);
    assert_eq!(ask("/late", "hang").await, 504);
    assert_eq!(ask("/broken", "status=500").await, 500);
    let mut session = TcpStream::connect(raw).await.unwrap();
    assert_eq!(session.read(&mut [0; 8]).await.unwrap_or(0), 0);
    let told = failures(&proxy, 4).await;
    let find = |path: &str| told.iter().find(|failure| failure["path"] == path).unwrap_or_else(|| panic!("{told:?}"));
    let dead = find("/dead?a=<b>");
    assert_eq!(
        (&dead["code"], &dead["flags"], &dead["route"], &dead["cluster"]),
        (&503.into(), &"UF".into(), &"dead".into(), &"dead".into())
    );
    assert!(dead["why"].as_str().unwrap().contains("could not be reached: "), "{dead}");
    let late = find("/late");
    assert_eq!((&late["flags"], &late["details"]), (&"UT".into(), &"response_timeout".into()));
    assert!(late["why"].as_str().unwrap().ends_with("(RouteAction.timeout)."), "{late}");
    assert!(find("/broken")["why"].as_str().unwrap().contains("500"), "{told:?}");
    let session = told.iter().find(|failure| failure["kind"] == "connection").unwrap();
    assert_eq!((&session["listener"], &session["cluster"]), (&"raw".into(), &"dead".into()));
    assert!(session["flags"].as_str().unwrap().contains("UF"), "{session}");
    // Filters, and the text form.
    let only = json(&proxy, "/failures?format=json&flag=UT").await;
    assert_eq!((only["failures"].as_array().unwrap().len(), &only["failed_in_all"]), (1, &4.into()));
    assert!(proxy.admin("/failures").await.text().starts_with("failed_in_all: 4\nfailures:\n  - time: 20"));
}

/// The live requests on listeners with these names.
async fn live(proxy: &Proxy, listener: &str, good: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually("live requests", async || {
        let told = json(proxy, &format!("/requests?format=json&listener={listener}")).await;
        let list = told["requests"].as_array().unwrap().clone();
        if good(&list) { Ok(list) } else { Err(told.to_string()) }
    })
    .await
}

async fn kill(proxy: &Proxy, request: &Value) -> Response {
    proxy.admin_post(&format!("/requests/kill?id={}", request["id"].as_str().unwrap())).await
}

#[tokio::test]
async fn live_requests_are_listed_and_can_be_ended() {
    let upstream = Upstream::start("a").await;
    let Failing { proxy, web, .. } = failing(&upstream).await;
    assert_eq!(json(&proxy, "/requests?format=json").await["total"], 0);
    let waits = [("x-reply", "gate")];
    let first = tokio::spawn(async move { h1::Client::connect(web).await.request("GET", "/first", &waits, b"").await });
    upstream.wait("the first waits", |counts| counts.waiting == 1).await;
    let client = h2c::Client::connect(web).await;
    let second = tokio::spawn(async move { client.request("GET", "/second", &waits, b"").await });
    upstream.wait("the second waits", |counts| counts.waiting == 2).await;
    let seen = live(&proxy, "web", |list| {
        list.len() == 2 && list.iter().all(|request| request["phase"] == "waiting for response")
    })
    .await;
    let lines: BTreeSet<&str> = seen.iter().map(|request| request["line"].as_str().unwrap()).collect();
    assert_eq!(lines, BTreeSet::from(["GET /first", "GET /second"]));
    for request in &seen {
        assert_eq!(
            (&request["route"], &request["cluster"], &request["tries"]),
            (&"all".into(), &"a".into(), &1.into())
        );
        assert_eq!(request["endpoint"], format!("127.0.0.1:{}", upstream.port()));
    }
    // Each of both versions ends by itself, and with an answer.
    for request in &seen {
        assert_eq!(kill(&proxy, request).await.status, 200);
    }
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (503, 503));
    live(&proxy, "web", <[Value]>::is_empty).await;
    let told = failures(&proxy, 2).await;
    for failure in &told {
        assert_eq!(failure["details"], "killed_by_operator");
        assert_eq!(failure["why"], "Ended by hand (POST /requests/kill) while it was waiting for response.");
    }
    assert_eq!(kill(&proxy, &seen[0]).await.status, 404);
    for id in ["", "x", "99-1", "0-"] {
        let refused = proxy.admin_post(&format!("/requests/kill?id={id}")).await;
        assert!(matches!(refused.status, 400 | 404), "{id}: {refused:?}");
    }
    assert_eq!(proxy.admin("/requests/kill?id=0-1").await.status, 405);
    // A proxied connection.
    let mut session = TcpStream::connect(proxy.listener("live").await).await.unwrap();
    let seen = live(&proxy, "live", |list| list.len() == 1 && list[0]["phase"] == "relaying").await;
    assert_eq!((&seen[0]["kind"], &seen[0]["cluster"]), (&"connection".into(), &"a".into()));
    assert_eq!(kill(&proxy, &seen[0]).await.status, 200);
    assert_eq!(session.read(&mut [0; 8]).await.unwrap_or(0), 0);
    failures(&proxy, 3).await;
}

#[tokio::test]
async fn a_request_in_the_queue_says_so() {
    let upstream = Upstream::start("a").await;
    let http2 = HTTP2.strip_suffix(" }").unwrap();
    let limited = format!(
        "{http2}, outrigger.upstream: {{ '@type': type.googleapis.com/outrigger.upstream.v1.ConcurrencyOptions, \
         max_requests: 1 }} }}"
    );
    let web = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
    let proxy = start(&bootstrap(&[web], &[cluster_with("a", &[upstream.port()], &limited)])).await;
    let web = proxy.listener("web").await;
    let send = |path: &'static str| {
        tokio::spawn(
            async move { h1::Client::connect(web).await.request("GET", path, &[("x-reply", "gate")], b"").await },
        )
    };
    let first = send("/served");
    upstream.wait("one is served", |counts| counts.waiting == 1).await;
    let second = send("/queued");
    let seen = live(&proxy, "web", |list| list.iter().any(|request| request["phase"] == "waiting in queue")).await;
    let queued = seen.iter().find(|request| request["phase"] == "waiting in queue").unwrap();
    assert_eq!(queued["line"], "GET /queued");
    // The limit can be raised by hand, and then both are served.
    let endpoint = format!("cluster=a&endpoint=127.0.0.1:{}", upstream.port());
    let made = proxy.admin_post(&format!("/override?{endpoint}&limit=2&for=1h")).await;
    assert_eq!((made.status, made.text()), (200, "override 1\n".to_owned()));
    upstream.wait("both are served", |counts| counts.waiting == 2).await;
    assert!(proxy.admin("/clusters").await.text().contains("::override_rq_limit::2\n"));
    upstream.open_gate();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
}

#[tokio::test]
async fn pushes_are_remembered_and_generations_compared() {
    let upstream = Upstream::start("a").await;
    let mock = MockControlPlane::start().await;
    let clusters = |timeout: &str, more: &str| {
        let first = cluster_with("a", &[upstream.port()], "").replace("connect_timeout: 5s", timeout);
        vec![
            resource("cds", &first),
            resource("lds", &config::listener("web", &[chain(&http("web", &routes(more)), "")], "")),
        ]
    };
    mock.set_yaml(&resources(&clusters("connect_timeout: 5s", &all_to("a")))).unwrap();
    let proxy = start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let pushes = async |kind: &str, good: &dyn Fn(&[Value]) -> bool| {
        eventually("pushes", async || {
            let told = json(&proxy, &format!("/config_history?format=json&type={kind}")).await;
            let list = told["pushes"].as_array().unwrap().clone();
            if good(&list) { Ok(list) } else { Err(told.to_string()) }
        })
        .await
    };
    let first = pushes("cluster", &|list| list.len() == 1).await.remove(0);
    assert_eq!((&first["added"][0], &first["verdict"]), (&"a".into(), &"accepted".into()));
    proxy.listener("web").await;
    let before = json(&proxy, "/config_history?format=json").await["generation"].as_u64().unwrap();
    mock.set_yaml(&resources(&clusters("connect_timeout: 7s", &all_to("a")))).unwrap();
    let changed = pushes("cluster", &|list| list.len() == 2).await.remove(0);
    assert_eq!(changed["changed"][0], "a");
    let after = changed["generation"].as_u64().unwrap();
    assert!(after > before);
    let differs = json(&proxy, &format!("/config_history/diff?format=json&from={before}&to={after}")).await;
    assert_eq!(differs["resources"].as_array().unwrap().len(), 1, "{differs}");
    assert_eq!((&differs["resources"][0]["name"], &differs["resources"][0]["what"]), (&"a".into(), &"changed".into()));
    assert_eq!(
        differs["resources"][0]["fields"],
        serde_json::json!([{"field": "connect_timeout", "before": "\"5s\"", "after": "\"7s\""}])
    );
    // A cluster that is refused is named with its reason, and one that goes is named too.
    let bad = cluster_with("bad", &[1], ", transport_socket: { name: nope }");
    mock.set_yaml(&resources(&[resource("cds", &bad)])).unwrap();
    let refused = pushes("cluster", &|list| list[0]["verdict"] == "rejected").await.remove(0);
    assert_eq!(refused["rejected"][0]["name"], "bad");
    assert!(refused["rejected"][0]["reason"].as_str().unwrap().contains("transport_socket"), "{refused}");
    for (query, reason) in [
        ("from=1", "usage: "),
        ("from=x&to=2", "from \"x\" is not a whole number"),
        ("from=3&to=2", "is later than"),
        ("from=0&to=2", "is not known any more"),
        ("from=1&to=100000", "is still to come"),
    ] {
        let answer = proxy.admin(&format!("/config_history/diff?{query}")).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(reason), "{query}: {}", answer.text());
    }
}

#[tokio::test]
async fn fields_without_effect_are_told_with_path_and_reason() {
    let upstream = Upstream::start("a").await;
    let mock = MockControlPlane::start().await;
    let idle = ", upstream_connection_options: { set_local_interface_name_on_upstream_connections: true }";
    mock.set_yaml(&resources(&[resource("cds", &cluster_with("a", &[upstream.port()], idle))])).unwrap();
    let proxy = start(&ads_bootstrap(Xds::AdsSotw, mock.address().port())).await;
    let wait = async |count: usize| {
        eventually("coverage", async || {
            let told = json(&proxy, "/coverage?format=json&name=a").await;
            let fields = told["fields"].as_array().unwrap().clone();
            if fields.len() == count { Ok(fields) } else { Err(told.to_string()) }
        })
        .await
    };
    let fields = wait(1).await;
    assert_eq!(fields[0]["type"], "cluster");
    assert_eq!(fields[0]["field"], "upstream_connection_options.set_local_interface_name_on_upstream_connections");
    assert!(!fields[0]["why_no_effect"].as_str().unwrap().is_empty());
    mock.set_yaml(&resources(&[resource("cds", &cluster_with("a", &[upstream.port()], ""))])).unwrap();
    wait(0).await;
}

#[tokio::test]
async fn endpoints_can_be_drained_and_weighed_by_hand_whatever_discovery_says() {
    let upstreams = [Upstream::start("x").await, Upstream::start("y").await];
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
    let push = |ports: &[u16]| {
        mock.set_yaml(&resources(&[
            resource("cds", &eds_cluster("a")),
            resource("eds", &endpoints("a", ports)),
            resource("lds", &listener),
        ]))
        .unwrap();
    };
    push(&ports);
    let proxy = start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let web = proxy.listener("web").await;
    let served = async || {
        let mut names = BTreeSet::new();
        for _ in 0..8 {
            names.insert(h1::get(web, "/").await.served_by());
        }
        names
    };
    let becomes = async |wanted: &[&str]| {
        eventually("endpoints that serve", async || {
            let seen = served().await;
            if seen.iter().map(String::as_str).eq(wanted.iter().copied()) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    };
    becomes(&["x", "y"]).await;
    let endpoint = |port: u16| format!("cluster=a&endpoint=127.0.0.1:{port}");
    let made = proxy.admin_post(&format!("/override?{}&drain&for=1h", endpoint(ports[0]))).await;
    assert_eq!((made.status, made.text()), (200, "override 1\n".to_owned()));
    becomes(&["y"]).await;
    assert!(proxy.admin("/clusters").await.text().contains("::health_flags::/override_drain\n"));
    let told = json(&proxy, "/overrides?format=json").await;
    assert_eq!(told["overrides"][0]["what"], format!("endpoint 127.0.0.1:{} of cluster \"a\" drains", ports[0]));
    // Discovery takes the endpoint away and brings it back: it still drains.
    push(&ports[1..]);
    proxy.wait_stat("cluster.a.membership_total", |total| total == 1).await;
    push(&ports);
    proxy.wait_stat("cluster.a.membership_total", |total| total == 2).await;
    proxy.wait_stat("cluster.a.membership_healthy", |healthy| healthy == 1).await;
    becomes(&["y"]).await;
    assert_eq!(proxy.admin_post("/overrides/remove?id=1").await.status, 200);
    assert_eq!(proxy.admin_post("/overrides/remove?id=1").await.status, 404);
    becomes(&["x", "y"]).await;
    // One that ends by itself.
    let made = proxy.admin_post(&format!("/override?{}&drain&for=1s", endpoint(ports[1]))).await;
    assert_eq!(made.text(), "override 2\n");
    eventually("the override ends", async || {
        let told = json(&proxy, "/overrides?format=json").await;
        if told["overrides"].as_array().unwrap().is_empty() { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    becomes(&["x", "y"]).await;
    // Weights are shown, and count: of 100 requests about one goes to the other.
    let made = proxy.admin_post(&format!("/override?{}&weight=99&for=1h", endpoint(ports[0]))).await;
    assert_eq!(made.status, 200);
    assert!(proxy.admin("/clusters").await.text().contains("::override_weight::99\n"));
    let before = upstreams[0].counts().requests;
    for _ in 0..50 {
        h1::get(web, "/").await;
    }
    assert!(upstreams[0].counts().requests - before >= 40, "{:?}", upstreams[0].counts());
    for (query, reason) in [
        (format!("{}&weight=5&for=1h", endpoint(ports[0])), "remove it first"),
        (format!("{}&limit=5&for=1h", endpoint(ports[0])), "does not limit requests by endpoint"),
        ("cluster=b&endpoint=127.0.0.1:1&drain&for=1h".to_owned(), "there is no cluster \"b\""),
        (
            "cluster=a&endpoint=127.0.0.1:1&drain&for=1h".to_owned(),
            "has no endpoint \"127.0.0.1:1\"; it has 127.0.0.1:",
        ),
        (endpoint(1), "exactly one of"),
    ] {
        let answer = proxy.admin_post(&format!("/override?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains(reason), "{query}: {}", answer.text());
    }
    let history = json(&proxy, "/config_history?format=json&type=override").await;
    assert!(history["pushes"].as_array().unwrap().len() >= 5, "{history}");
}

#[tokio::test]
async fn log_levels_and_sampling_go_back_to_what_they_were() {
    let proxy = start(&bootstrap(&[], &[])).await;
    let level = async |wanted: &str| {
        let line = format!("  upstream: {wanted}\n");
        eventually("level", async || {
            let text = proxy.admin_post("/logging").await.text();
            if text.contains(&line) { Ok(()) } else { Err(text) }
        })
        .await;
    };
    level("warning").await;
    assert_eq!(proxy.admin_post("/override?log=upstream:debug&for=1h").await.status, 200);
    level("debug").await;
    assert_eq!(proxy.admin_post("/override?sampling=50&for=1h").await.status, 200);
    let runtime = json(&proxy, "/runtime").await;
    assert_eq!(runtime["entries"]["tracing.random_sampling"]["final_value"], "50", "{runtime}");
    let refused = proxy.admin_post("/override?log=nothing:debug&for=1h").await;
    assert_eq!((refused.status, refused.text().contains("unknown logger name")), (400, true));
    for id in [1, 2] {
        assert_eq!(proxy.admin_post(&format!("/overrides/remove?id={id}")).await.status, 200);
    }
    level("warning").await;
    assert!(json(&proxy, "/runtime").await["entries"]["tracing.random_sampling"].is_null());
}

#[tokio::test]
async fn pages_of_other_sites_may_change_nothing() {
    let proxy = start(&bootstrap(&[], &[])).await;
    let post = async |headers: &[(&str, &str)]| {
        let mut client = h1::Client::connect(proxy.admin_address()).await;
        client.request("POST", "/reset_counters", headers, b"").await.status
    };
    assert_eq!(post(&[]).await, 200);
    assert_eq!(post(&[("sec-fetch-site", "same-origin")]).await, 200);
    assert_eq!(post(&[("sec-fetch-site", "cross-site")]).await, 403);
    assert_eq!(post(&[("origin", "http://elsewhere.example")]).await, 403);
    let page = async |accept: &str| {
        h1::Client::connect(proxy.admin_address()).await.request("GET", "/", &[("accept", accept)], b"").await
    };
    let (browser, other) = (page("text/html,*/*;q=0.8").await, page("*/*").await);
    let policy = browser.header("content-security-policy").unwrap_or_default().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert!(browser.body.len() < 200 * 1024 && browser.text().contains("uPlot"));
    // Whoever does not say that they read HTML gets the forms that were always there.
    assert!(other.text().contains("action='stats/prometheus' method='get'"));
}

#[tokio::test]
async fn figures_of_the_page_add_up() {
    let upstream = Upstream::start("a").await;
    let Failing { proxy, web, .. } = failing(&upstream).await;
    for _ in 0..5 {
        assert_eq!(h1::get(web, "/").await.status, 200);
    }
    let told = eventually("five requests", async || {
        let told = json(&proxy, "/overview?format=json").await;
        let counts = told["latency_counts"].as_array().unwrap();
        if told["responses_2xx"] == 5 && counts.last().unwrap() == 5 { Ok(told) } else { Err(told.to_string()) }
    })
    .await;
    assert_eq!((&told["requests_total"], &told["state"]), (&5.into(), &"LIVE".into()));
    let clusters = json(&proxy, "/overview/clusters?format=json&filter=a").await;
    let a = clusters["clusters"].as_array().unwrap().iter().find(|cluster| cluster["name"] == "a").unwrap();
    assert_eq!((&a["endpoints"][0]["rq_total"], &a["endpoints"][0]["health"]), (&5.into(), &"healthy".into()));
    let routes = json(&proxy, "/overview/routes?format=json&listener=web").await;
    let host = &routes["listeners"][0]["filter_chains"][0]["http"]["virtual_hosts"][0];
    assert_eq!((&host["routes"][2]["name"], &host["routes"][2]["clusters"][0]), (&"all".into(), &"a".into()));
    let mut raw = TcpStream::connect(proxy.admin_address()).await.unwrap();
    raw.write_all(b"GET /overview HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    raw.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("state: LIVE"), "{text}");
}
