//! Configuration from a control plane: what is added, changed and removed shows in traffic, what is wrong is named in
//! the NACK, and losing the control plane loses nothing.

use control_plane_mock::{Corruption, MockControlPlane};
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, all_to, chain, dynamic_bootstrap, eds_cluster, endpoints, http, rds, resource, resources,
    route_configuration, stream_source,
};
use outrigger_tests::tcp::HeldPort;
use outrigger_tests::{Proxy, SOON, Settings, Upstream, eventually, h1};
use tokio::net::TcpStream;

/// A listener `web` whose routes `web-routes` come from the same place.
fn listener(name: &str) -> String {
    listener_with(name, &rds("web-routes"))
}

fn listener_with(name: &str, routes: &str) -> String {
    resource("lds", &config::listener(name, &[chain(&http("web", routes), "")], ""))
}

fn routes_to(cluster: &str) -> String {
    resource("rds", &route_configuration("web-routes", &all_to(cluster)))
}

fn cluster(name: &str) -> String {
    resource("cds", &eds_cluster(name))
}

fn load(name: &str, upstream: &Upstream) -> String {
    resource("eds", &endpoints(name, &[upstream.port()]))
}

/// Who answers `/` at `listener`, asked on a new connection.
async fn who_answers(proxy: &Proxy, listener: &str) -> String {
    let response = h1::get(proxy.listener(listener).await, "/").await;
    if response.status == 200 { response.served_by() } else { format!("{} {}", response.status, response.text()) }
}

/// Waits until `who` answers.
async fn answered_by(proxy: &Proxy, listener: &str, who: &str) {
    eventually("the right upstream answers", async || {
        let answer = who_answers(proxy, listener).await;
        if answer == who { Ok(()) } else { Err(answer) }
    })
    .await;
}

async fn all_acked(mock: &MockControlPlane, proxy: &Proxy) {
    for kind in ["cds", "eds", "lds", "rds"] {
        if let Err(error) = mock.wait_ack(kind, SOON).await {
            panic!("{kind}: {error}\n{}", proxy.log());
        }
    }
}

/// Everything arrives, changes and goes, and traffic follows.
async fn story(mock: &MockControlPlane, bootstrap: &str, rewrite: impl Fn(&str) -> String) {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let set = |all: &[String]| {
        mock.set_yaml(&rewrite(&resources(all))).unwrap();
    };
    set(&[cluster("first"), load("first", &a), listener("web"), routes_to("first")]);
    let proxy = Proxy::start(bootstrap).await;
    all_acked(mock, &proxy).await;
    answered_by(&proxy, "web", "a").await;

    // Endpoints change under a cluster that stays.
    set(&[load("first", &b)]);
    answered_by(&proxy, "web", "b").await;

    // A route moves to a cluster that is new.
    set(&[cluster("second"), load("second", &a)]);
    mock.wait_ack("cds", SOON).await.unwrap();
    mock.wait_ack("eds", SOON).await.unwrap();
    set(&[routes_to("second")]);
    answered_by(&proxy, "web", "a").await;

    // What nothing refers to any longer goes, and traffic does not notice.
    mock.remove("cds", "first");
    mock.remove("eds", "first");
    mock.wait_ack("cds", SOON).await.unwrap();
    proxy.wait_stat("cluster_manager.active_clusters", |count| count == 2).await;
    assert_eq!(who_answers(&proxy, "web").await, "a");

    // A second listener comes and goes.
    let held = HeldPort::take();
    set(&[listener("extra").replace("port_value: 0", &format!("port_value: {}", held.port()))]);
    answered_by(&proxy, "extra", "a").await;
    let extra = proxy.listener("extra").await;
    mock.remove("lds", "extra");
    proxy.listener_gone("extra").await;
    eventually("nobody accepts any longer", async || match TcpStream::connect(extra).await {
        Ok(_) => Err("connected".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    assert_eq!(who_answers(&proxy, "web").await, "a");

    // An update of the listener keeps its address and what it serves.
    let before = proxy.listener("web").await;
    set(&[listener("web").replace("stat_prefix: web", "stat_prefix: changed")]);
    mock.wait_ack("lds", SOON).await.unwrap();
    eventually("the new filter chain serves", async || {
        assert_eq!(who_answers(&proxy, "web").await, "a");
        let count = proxy.stat("http.changed.downstream_rq_2xx").await;
        if count > 0 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    assert_eq!(proxy.listener("web").await, before);

    // The cluster goes while a route still names it.
    mock.remove("cds", "second");
    answered_by(&proxy, "web", "503 ").await;
    set(&[cluster("second")]);
    answered_by(&proxy, "web", "a").await;
}

#[tokio::test]
async fn delta_ads_configures_everything() {
    let mock = MockControlPlane::start().await;
    story(&mock, &ads_bootstrap(Xds::AdsDelta, mock.address().port()), str::to_owned).await;
}

#[tokio::test]
async fn state_of_the_world_ads_configures_everything() {
    let mock = MockControlPlane::start().await;
    story(&mock, &ads_bootstrap(Xds::AdsSotw, mock.address().port()), str::to_owned).await;
}

#[tokio::test]
async fn one_delta_stream_per_type_configures_everything() {
    let mock = MockControlPlane::start().await;
    let source = stream_source("DELTA_GRPC");
    let bootstrap = dynamic_bootstrap(&source, mock.address().port());
    story(&mock, &bootstrap, |text| text.replace(config::ADS, &source)).await;
    assert!(mock.streams().iter().all(|stream| stream.type_url.is_some()));
}

#[tokio::test]
async fn one_state_of_the_world_stream_per_type_configures_everything() {
    let mock = MockControlPlane::start().await;
    let source = stream_source("GRPC");
    let bootstrap = dynamic_bootstrap(&source, mock.address().port());
    story(&mock, &bootstrap, |text| text.replace(config::ADS, &source)).await;
}

#[tokio::test]
async fn files_configure_everything_when_moved_into_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let source = |name: &str| {
        format!("{{ resource_api_version: V3, path_config_source: {{ path: '{}/{name}.yaml' }} }}", path.display())
    };
    let write = |name: &str, all: &[String]| {
        let text = resources(all).replace(config::ADS, &source(if name == "lds" { "rds" } else { "eds" }));
        std::fs::write(path.join("new"), text).unwrap();
        std::fs::rename(path.join("new"), path.join(format!("{name}.yaml"))).unwrap();
    };
    write("eds", &[load("first", &a)]);
    write("cds", &[cluster("first")]);
    write("rds", &[routes_to("first")]);
    write("lds", &[listener("web")]);
    let bootstrap = format!(
        "node: {{ id: files, cluster: tests }}\ndynamic_resources:\n  cds_config: {}\n  lds_config: {}\n",
        source("cds"),
        source("lds")
    );
    let proxy = Proxy::start(&bootstrap).await;
    answered_by(&proxy, "web", "a").await;
    write("eds", &[load("first", &b)]);
    answered_by(&proxy, "web", "b").await;
    write(
        "rds",
        &[resource(
            "rds",
            &route_configuration(
                "web-routes",
                "{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: '{\"upstream\": \"none\"}' } } }",
            ),
        )],
    );
    answered_by(&proxy, "web", "none").await;
    // A file that is no YAML changes nothing.
    std::fs::write(path.join("new"), "resources: [ {").unwrap();
    std::fs::rename(path.join("new"), path.join("rds.yaml")).unwrap();
    proxy.wait_stat("http.web.rds.web-routes.update_failure", |count| count > 0).await;
    assert_eq!(who_answers(&proxy, "web").await, "none");
    write("rds", &[routes_to("first")]);
    answered_by(&proxy, "web", "b").await;
    write("lds", &[listener("web"), listener("extra")]);
    answered_by(&proxy, "extra", "b").await;
    write("lds", &[listener("web")]);
    proxy.listener_gone("extra").await;
}

/// A control plane and a proxy that serves `a` on `web`.
async fn serving(how: Xds) -> (MockControlPlane, Upstream, Proxy) {
    let mock = MockControlPlane::start().await;
    let a = Upstream::start("a").await;
    mock.set_yaml(&resources(&[cluster("first"), load("first", &a), listener("web"), routes_to("first")])).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(how, mock.address().port())).await;
    answered_by(&proxy, "web", "a").await;
    (mock, a, proxy)
}

#[tokio::test]
async fn a_nack_names_the_resource_and_good_ones_still_apply() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let (mock, a, proxy) = serving(how).await;
        let bad = "{ name: broken, type: STATIC, connect_timeout: 1s, load_assignment: { cluster_name: broken, endpoints: \
                   [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: not-an-address, port_value: 1 } } } }] }] } }";
        mock.set_yaml(&resources(&[resource("cds", bad), cluster("good"), load("good", &a)])).unwrap();
        let nack = mock.wait_nack("cds", SOON).await.unwrap();
        let message = &nack.error_detail.message;
        assert!(message.contains("broken") && message.contains("not-an-address"), "{how:?}: {message}");
        proxy.wait_stat("cluster_manager.active_clusters", |count| count == 3).await;
        mock.set_yaml(&resources(&[routes_to("good")])).unwrap();
        mock.wait_ack("rds", SOON).await.unwrap();
        assert_eq!(who_answers(&proxy, "web").await, "a", "{how:?}");
        proxy.wait_stat("cluster_manager.cds.update_rejected", |count| count == 1).await;
        // Nothing is wrong any longer.
        mock.remove("cds", "broken");
        mock.wait_ack("cds", SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_bad_update_leaves_the_last_good_one_in_force() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let (mock, _a, proxy) = serving(how).await;
        let bad =
            route_configuration("web-routes", "{ match: { safe_regex: { regex: '(' } }, route: { cluster: first } }");
        mock.set_yaml(&resources(&[resource("rds", &bad)])).unwrap();
        let nack = mock.wait_nack("rds", SOON).await.unwrap();
        assert!(nack.error_detail.message.contains('('), "{how:?}: {}", nack.error_detail.message);
        assert_eq!(who_answers(&proxy, "web").await, "a", "{how:?}");
        let bad = listener_with("web", ", rds: { route_config_name: web-routes }");
        mock.set_yaml(&resources(&[bad])).unwrap();
        let nack = mock.wait_nack("lds", SOON).await.unwrap();
        assert!(nack.error_detail.message.contains("web"), "{how:?}: {}", nack.error_detail.message);
        assert_eq!(who_answers(&proxy, "web").await, "a", "{how:?}");
        let page = proxy.admin("/config_dump").await.json().to_string();
        assert!(page.contains("error_state"), "the dump shows what was rejected: {page}");
    }
}

#[tokio::test]
async fn garbage_is_rejected_and_changes_nothing() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let (mock, _a, proxy) = serving(how).await;
        for (kind, corruption) in [
            ("lds", Corruption::Garbage),
            ("cds", Corruption::Garbage),
            ("rds", Corruption::Garbage),
            ("eds", Corruption::Garbage),
            ("cds", Corruption::WrongType),
        ] {
            mock.corrupt(kind, corruption);
            mock.push(kind);
            if let Err(error) = mock.wait_nack(kind, SOON).await {
                panic!("{how:?} {kind} {corruption:?}: {error}");
            }
            assert_eq!(who_answers(&proxy, "web").await, "a", "{how:?} {kind} {corruption:?}");
            mock.push(kind);
            if let Err(error) = mock.wait_ack(kind, SOON).await {
                panic!("{how:?} {kind} after {corruption:?}: {error}");
            }
        }
        assert_eq!(who_answers(&proxy, "web").await, "a", "{how:?}");
    }
}

#[tokio::test]
async fn a_listener_waits_for_its_routes_and_its_clusters_endpoints() {
    let mock = MockControlPlane::start().await;
    let a = Upstream::start("a").await;
    mock.set_yaml(&resources(&[cluster("first"), load("first", &a), listener("web"), routes_to("first")])).unwrap();
    mock.hold("eds");
    mock.hold("rds");
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
    mock.wait_ack("cds", SOON).await.unwrap();
    let ready = proxy.admin("/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().trim().ends_with("INITIALIZING"), "{}", ready.text());
    assert_eq!(proxy.listeners().await, []);
    mock.release("eds");
    mock.wait_ack("eds", SOON).await.unwrap();
    mock.wait_ack("lds", SOON).await.unwrap();
    mock.wait_for(SOON, |world| {
        world.streams().iter().any(|stream| stream.types.contains_key(control_plane_mock::types::ROUTE)).then_some(())
    })
    .await
    .expect("the listener asks for its routes");
    assert_eq!(proxy.admin("/ready").await.status, 503);
    mock.release("rds");
    proxy.wait_ready().await;
    assert_eq!(proxy.admin("/ready").await.text().trim(), "LIVE");
    assert_eq!(who_answers(&proxy, "web").await, "a");
}

#[tokio::test]
async fn a_listener_that_comes_later_warms_beside_what_serves() {
    let (mock, a, proxy) = serving(Xds::AdsDelta).await;
    mock.hold("rds");
    mock.set_yaml(&resources(&[
        listener_with("late", &rds("late-routes")),
        resource("rds", &route_configuration("late-routes", &all_to("first"))),
    ]))
    .unwrap();
    proxy.wait_stat("listener_manager.total_listeners_warming", |count| count == 1).await;
    assert_eq!(proxy.listeners().await.len(), 1);
    assert_eq!(who_answers(&proxy, "web").await, "a");
    assert_eq!(proxy.admin("/ready").await.status, 200);
    mock.release("rds");
    answered_by(&proxy, "late", "a").await;
    drop(a);
}

#[tokio::test]
async fn a_cluster_that_warms_is_not_used_and_its_old_version_goes_on() {
    let (mock, _a, proxy) = serving(Xds::AdsDelta).await;
    mock.hold("eds");
    // Another EDS name, so that the new version needs endpoints that are not there yet.
    let b = Upstream::start("b").await;
    let changed = format!(
        "{{ name: first, type: EDS, connect_timeout: 4s, eds_cluster_config: {{ service_name: other, eds_config: {} }} }}",
        config::ADS
    );
    mock.set_yaml(&resources(&[resource("cds", &changed), load("other", &b)])).unwrap();
    proxy.wait_stat("cluster_manager.warming_clusters", |count| count == 1).await;
    assert_eq!(who_answers(&proxy, "web").await, "a");
    mock.release("eds");
    answered_by(&proxy, "web", "b").await;
}

#[tokio::test]
async fn a_control_plane_that_dies_and_returns_loses_nothing() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let (mock, _a, proxy) = serving(how).await;
        mock.kill().await;
        proxy.wait_stat("control_plane.connected_state", |state| state == 0).await;
        assert_eq!(who_answers(&proxy, "web").await, "a", "{how:?}");
        assert_eq!(proxy.admin("/ready").await.status, 200);
        // Meanwhile things have changed.
        let b = Upstream::start("b").await;
        mock.set_yaml(&resources(&[cluster("second"), load("second", &b), routes_to("second")])).unwrap();
        mock.remove("cds", "first");
        mock.restart().await.unwrap();
        answered_by(&proxy, "web", "b").await;
        proxy.wait_stat("cluster_manager.active_clusters", |count| count == 2).await;
        proxy.wait_stat("control_plane.connected_state", |state| state == 1).await;
        all_acked(&mock, &proxy).await;
        if how == Xds::AdsDelta {
            let said = mock.requests(0).iter().any(|asked| !asked.initial_versions.is_empty());
            assert!(said, "after the restart it says what it holds");
        }
        // Streams that are dropped and connections that are cut come back by themselves.
        mock.drop_streams();
        let c = Upstream::start("c").await;
        mock.set_yaml(&resources(&[load("second", &c)])).unwrap();
        answered_by(&proxy, "web", "c").await;
        mock.cut_connections().await;
        mock.set_yaml(&resources(&[load("second", &b)])).unwrap();
        answered_by(&proxy, "web", "b").await;
    }
}

#[tokio::test]
async fn a_control_plane_that_comes_late_is_waited_for() {
    let mock = MockControlPlane::start().await;
    let a = Upstream::start("a").await;
    mock.set_yaml(&resources(&[cluster("first"), load("first", &a), listener("web"), routes_to("first")])).unwrap();
    mock.kill().await;
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
    assert_eq!(proxy.admin("/ready").await.status, 503);
    mock.restart().await.unwrap();
    answered_by(&proxy, "web", "a").await;
    proxy.wait_ready().await;
}

#[tokio::test]
async fn an_empty_control_plane_lets_the_proxy_get_ready() {
    let mock = MockControlPlane::start().await;
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsSotw, mock.address().port())).await;
    assert_eq!(proxy.listeners().await, []);
    let streams = mock.streams();
    assert_eq!((streams.len(), streams[0].node_id.as_str()), (1, "proxy-under-test"));
    let a = Upstream::start("a").await;
    mock.set_yaml(&resources(&[cluster("first"), load("first", &a), listener("web"), routes_to("first")])).unwrap();
    answered_by(&proxy, "web", "a").await;
}

#[tokio::test]
async fn endpoints_that_never_come_are_given_up_after_the_fetch_timeout() {
    let mock = MockControlPlane::start().await;
    let impatient =
        eds_cluster("first").replace(config::ADS, "{ ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.3s }");
    mock.set_yaml(&resources(&[resource("cds", &impatient), listener("web"), routes_to("first")])).unwrap();
    mock.hold("eds");
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    answered_by(&proxy, "web", "503 no healthy upstream").await;
    proxy.stat_is("cluster.first.init_fetch_timeout", 1).await;
    let a = Upstream::start("a").await;
    mock.set_yaml(&resources(&[load("first", &a)])).unwrap();
    mock.release("eds");
    answered_by(&proxy, "web", "a").await;
}

#[tokio::test]
async fn connections_survive_an_update_that_does_not_concern_them() {
    let (mock, _a, proxy) = serving(Xds::AdsDelta).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    assert_eq!(client.get("/").await.served_by(), "a");
    let b = Upstream::start("b").await;
    for number in 0..20 {
        mock.set_yaml(&resources(&[cluster(&format!("more-{number}")), load(&format!("more-{number}"), &b)])).unwrap();
        mock.wait_ack("cds", SOON).await.unwrap();
        assert_eq!(client.get("/").await.served_by(), "a");
    }
    // The same connection sees a change of routes from one request to the next.
    mock.set_yaml(&resources(&[routes_to("more-7")])).unwrap();
    eventually("the routes change under the connection", async || match client.get("/").await.served_by() {
        who if who == "b" => Ok(()),
        who => Err(who),
    })
    .await;
    proxy.stat_is("http.web.downstream_cx_destroy_local", 0).await;
}
