//! Routes that depend on the scope of a request, and virtual hosts that are discovered: both at once and on demand.

use std::path::PathBuf;

use control_plane_mock::{Conduct, MockControlPlane, types};
use outrigger_tests::config::{
    self, ADS, Xds, access_log, ads_bootstrap, all_to, bootstrap, chain, cluster, http, rds, resource, resources,
    route_configuration, stream_source,
};
use outrigger_tests::{Proxy, Response, SOON, Settings, Upstream, eventually, h1, proxy};

/// A route of all paths that is answered with this status.
fn answer(status: u16) -> String {
    format!("{{ match: {{ prefix: / }}, direct_response: {{ status: {status} }} }}")
}

/// A connection manager that looks for scopes by the header `x-scope`, and further fields.
fn scoped(scopes: &str, more: &str) -> String {
    http(
        "web",
        &format!(
            ", scoped_routes: {{ name: scopes, scope_key_builder: {{ fragments: [{{ header_value_extractor: {{ \
             name: X-Scope, element_separator: ';', element: {{ separator: '=', key: id }} }} }}] }}, {scopes} }}{more}"
        ),
    )
}

/// Scopes and their routes from this source.
fn discovered(source: &str) -> String {
    format!("rds_config_source: {source}, scoped_rds: {{ scoped_rds_config_source: {source} }}")
}

fn scope(name: &str, key: &str, more: &str) -> String {
    format!("{{ name: {name}, key: {{ fragments: [{{ string_key: {key} }}] }}, {more} }}")
}

fn named_scope(name: &str, key: &str, routes: &str) -> String {
    let body = scope(name, key, &format!("route_configuration_name: {routes}"));
    resource("envoy.config.route.v3.ScopedRouteConfiguration", &body)
}

fn virtual_host(name: &str, domain: &str, status: u16) -> String {
    let body = format!("{{ name: {name}, domains: ['{domain}'], routes: [{}] }}", answer(status));
    resource("envoy.config.route.v3.VirtualHost", &body)
}

fn open_routes(name: &str, more: &str) -> String {
    resource("rds", &format!("{{ name: {name}, vhds: {{ config_source: {ADS} }}{more} }}"))
}

async fn get(address: std::net::SocketAddr, headers: &[(&str, &str)]) -> Response {
    h1::Client::connect(address).await.request("GET", "/", headers, b"").await
}

/// What requests of several scopes get from a proxy with scopes in its listener, and how that is logged.
async fn of_inline_scopes(program: PathBuf) -> Vec<String> {
    let of = |name: &str, key: &str, status: u16| {
        let routes = route_configuration(name, &answer(status));
        scope(name, key, &format!("route_configuration: {routes}"))
    };
    let list = format!(
        "scoped_route_configurations_list: {{ scoped_route_configurations: [{}, {}] }}",
        of("one", "'1'", 201),
        of("two", "''", 202)
    );
    let listener = config::listener("web", &[chain(&scoped(&list, &access_log("web.log")), "")], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &[]), settings).await;
    let web = proxy.listener("web").await;
    let mut seen = Vec::new();
    for headers in [
        &[("x-scope", "id=1")][..],
        &[("x-scope", "x=2;id=1;id=2")],
        &[("x-scope", "id=")],
        &[("x-scope", "id")],
        &[("x-scope", "id=1 ")],
        &[("x-scope", "id=3")],
        &[("x-scope", "ID=1")],
        &[("x-scope", "id=1"), ("x-scope", "id=")],
        &[],
    ] {
        seen.push(format!("{headers:?}: {}", get(web, headers).await.status));
    }
    let dump = proxy.admin("/config_dump").await.json();
    let all = dump["configs"].as_array().into_iter().flatten();
    let scopes = all.filter(|section| section["@type"].as_str().is_some_and(|kind| kind.contains("ScopedRoutes")));
    for section in scopes {
        let entry = &section["inline_scoped_route_configs"][0];
        seen.push(format!("{} {}", entry["name"], entry["scoped_route_configs"][1]["name"]));
    }
    seen.extend(proxy.lines("web.log", 9).await);
    seen
}

#[tokio::test]
async fn a_scope_in_the_listener_is_found_as_envoy_finds_it() {
    let (ours, envoys) = tokio::join!(of_inline_scopes(proxy::program()), of_inline_scopes(proxy::envoy()));
    assert_eq!(ours, envoys);
    assert!(ours.contains(&"404 NR route_not_found HTTP/1.1 /".to_owned()), "{ours:?}");
    assert!(ours.iter().any(|line| line.ends_with("201")) && ours.iter().any(|line| line.ends_with("202")), "{ours:?}");
}

/// Scopes that arrive, change, are refused and go.
async fn scopes_come_and_go(bootstrap: impl Fn(u16) -> String, source: &str) {
    let upstream = Upstream::start("echo").await;
    let mock = MockControlPlane::start().await;
    let manager = scoped(&discovered(source), "");
    let listener = config::listener("web", &[chain(&manager, "")], "");
    mock.hold("rds");
    mock.set_yaml(&resources(&[
        resource("cds", &cluster("first", &[upstream.port()])),
        resource("lds", &listener),
        named_scope("one", "'1'", "routes-one"),
        resource("rds", &route_configuration("routes-one", &all_to("first"))),
    ]))
    .unwrap();
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(mock.address().port()), settings).await;
    mock.wait_ack("srds", SOON).await.unwrap();
    // The listener waits for the routes of its scopes.
    assert_eq!(proxy.admin("/ready").await.status, 503);
    mock.release("rds");
    proxy.wait_ready().await;
    let web = proxy.listener("web").await;
    assert_eq!(get(web, &[("x-scope", "id=1")]).await.served_by(), "echo");
    assert_eq!(get(web, &[("x-scope", "id=2")]).await.status, 404);
    proxy.stat_is("http.web.scoped_rds.scopes.update_success", 1).await;
    proxy.stat_is("http.web.scoped_rds.scopes.all_scopes", 1).await;
    proxy.stat_is("http.web.rds.routes-one.update_success", 1).await;

    mock.set_yaml(&resources(&[
        named_scope("two", "'2'", "routes-two"),
        resource("rds", &route_configuration("routes-two", &answer(202))),
    ]))
    .unwrap();
    eventually("the second scope has routes", async || match get(web, &[("x-scope", "id=2")]).await.status {
        202 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    assert_eq!(get(web, &[("x-scope", "id=1")]).await.served_by(), "echo");
    let dump = proxy.admin("/config_dump").await.text();
    assert!(dump.contains("dynamic_scoped_route_configs") && dump.contains("routes-two"), "{dump}");

    // Two scopes must not have the same key.
    mock.set_yaml(&resources(&[named_scope("three", "'2'", "routes-one")])).unwrap();
    let nack = mock.wait_nack("srds", SOON).await.unwrap();
    let message = nack.error_detail.message;
    assert!(message.contains("scope key conflict found, first scope is 'two', second scope is 'three'"), "{message}");
    assert_eq!(get(web, &[("x-scope", "id=2")]).await.status, 202);

    mock.remove(types::SCOPED_ROUTE, "three");
    mock.remove(types::SCOPED_ROUTE, "one");
    eventually("the first scope is gone", async || match get(web, &[("x-scope", "id=1")]).await.status {
        404 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    assert_eq!(get(web, &[("x-scope", "id=2")]).await.status, 202);
    proxy.wait_stat("http.web.scoped_rds.scopes.all_scopes", |scopes| scopes == 1).await;
}

#[tokio::test]
async fn scopes_are_discovered_over_delta_ads() {
    scopes_come_and_go(|port| ads_bootstrap(Xds::AdsDelta, port), ADS).await;
}

#[tokio::test]
async fn scopes_are_discovered_over_ads() {
    scopes_come_and_go(|port| ads_bootstrap(Xds::AdsSotw, port), ADS).await;
}

#[tokio::test]
async fn scopes_are_discovered_over_streams_of_their_own() {
    let source = stream_source("DELTA_GRPC");
    scopes_come_and_go(|port| config::dynamic_bootstrap(&source, port), &source).await;
}

/// The filter that waits for what is discovered on demand, in front of the router.
fn on_demand(manager: &str) -> String {
    manager.replacen(
        "http_filters: [",
        "http_filters: [{ name: envoy.filters.http.on_demand, typed_config: { \
         '@type': type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand } }, ",
        1,
    )
}

#[tokio::test]
async fn routes_of_a_scope_are_discovered_when_a_request_wants_them() {
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&on_demand(&scoped(&discovered(ADS), "")), "")], "");
    let rare = scope("rare", "'1'", "on_demand: true, route_configuration_name: routes-rare");
    mock.set_yaml(&resources(&[
        resource("lds", &listener),
        resource("envoy.config.route.v3.ScopedRouteConfiguration", &rare),
        resource("rds", &route_configuration("routes-rare", &answer(201))),
    ]))
    .unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let web = proxy.listener("web").await;
    assert_eq!(get(web, &[("x-scope", "id=2")]).await.status, 404);
    assert!(mock.requests(0).iter().all(|asked| asked.type_url != types::ROUTE), "nobody has wanted them");
    proxy.stat_is("http.web.scoped_rds.scopes.on_demand_scopes", 1).await;
    proxy.stat_is("http.web.scoped_rds.scopes.active_scopes", 0).await;
    let body = h1::Client::connect(web).await.request("POST", "/", &[("x-scope", "id=1")], b"0123456789").await;
    assert_eq!(body.status, 201);
    assert_eq!(get(web, &[("x-scope", "id=1")]).await.status, 201);
    proxy.wait_stat("http.web.scoped_rds.scopes.active_scopes", |scopes| scopes == 1).await;
}

#[tokio::test]
async fn all_virtual_hosts_of_a_route_configuration_are_discovered() {
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&http("web", &rds("routes")), "")], "");
    let fixed = format!(", virtual_hosts: [{{ name: fixed, domains: [fixed.example], routes: [{}] }}]", answer(200));
    mock.hold("vhds");
    mock.set_yaml(&resources(&[
        resource("lds", &listener),
        open_routes("routes", &fixed),
        virtual_host("routes/a", "a.example", 201),
        virtual_host("other/b", "b.example", 299),
    ]))
    .unwrap();
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
    mock.wait_ack("rds", SOON).await.unwrap();
    assert_eq!(proxy.admin("/ready").await.status, 503);
    mock.release("vhds");
    proxy.wait_ready().await;
    let web = proxy.listener("web").await;
    let status = async |host: &str| get(web, &[("host", host)]).await.status;
    let becomes = async |host: &str, wanted: u16| {
        eventually("the virtual hosts are as they should be", async || match status(host).await {
            status if status == wanted => Ok(()),
            status => Err(format!("{host}: {status}")),
        })
        .await;
    };
    assert_eq!([status("fixed.example").await, status("a.example").await, status("b.example").await], [200, 201, 404]);
    proxy.stat_is("http.web.vhds.routes.update_success", 1).await;

    mock.set_yaml(&resources(&[virtual_host("routes/b", "b.example", 202)])).unwrap();
    becomes("b.example", 202).await;
    mock.set_yaml(&resources(&[virtual_host("routes/a", "a.example", 203)])).unwrap();
    becomes("a.example", 203).await;
    // A domain has one owner.
    mock.set_yaml(&resources(&[virtual_host("routes/c", "fixed.example", 204)])).unwrap();
    let message = mock.wait_nack("vhds", SOON).await.unwrap().error_detail.message;
    assert!(message.contains("is already a domain of virtual host"), "{message}");
    assert_eq!(status("fixed.example").await, 200);
    mock.remove(types::VIRTUAL_HOST, "routes/c");
    mock.remove(types::VIRTUAL_HOST, "routes/a");
    becomes("a.example", 404).await;
    assert_eq!(status("b.example").await, 202);
    // A new revision of the route configuration keeps them.
    let fixed = fixed.replace("status: 200", "status: 205");
    mock.set_yaml(&resources(&[open_routes("routes", &fixed)])).unwrap();
    becomes("fixed.example", 205).await;
    assert_eq!(status("b.example").await, 202);
}

#[tokio::test]
async fn a_virtual_host_is_discovered_when_a_request_wants_it() {
    let conduct = Conduct { virtual_hosts_by_name: true, ..Conduct::default() };
    let mock = MockControlPlane::builder().conduct(conduct).start().await.unwrap();
    let manager = on_demand(&http("web", &rds("routes")));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let by_alias = "{ '@type': type.googleapis.com/envoy.service.discovery.v3.Resource, name: routes/b, \
        aliases: ['routes/b.example', 'routes/bb.example'], resource: "
        .to_owned()
        + &virtual_host("b", "b.example', 'bb.example", 202)
        + " }";
    mock.set_yaml(&resources(&[
        resource("lds", &listener),
        open_routes("routes", ""),
        virtual_host("routes/a.example", "a.example", 201),
        by_alias,
    ]))
    .unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let web = proxy.listener("web").await;
    let asks = || mock.requests(0).iter().flat_map(|asked| asked.subscribe.clone()).collect::<Vec<String>>();
    assert!(!asks().contains(&"routes/a.example".to_owned()));
    assert_eq!(get(web, &[("host", "A.example")]).await.status, 201);
    assert!(asks().contains(&"routes/a.example".to_owned()));
    assert_eq!(get(web, &[("host", "bb.example")]).await.status, 202);
    assert_eq!(get(web, &[("host", "b.example")]).await.status, 202);
    // What does not exist is asked for again: it may exist by then.
    assert_eq!(get(web, &[("host", "c.example")]).await.status, 404);
    mock.set_yaml(&resources(&[virtual_host("routes/c.example", "c.example", 203)])).unwrap();
    assert_eq!(get(web, &[("host", "c.example")]).await.status, 203);

    // Several wait for the same one; one that goes away is not missed.
    mock.hold("vhds");
    mock.set_yaml(&resources(&[virtual_host("routes/d.example", "d.example", 204)])).unwrap();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = h1::Client::connect(web).await;
        client.send(h1::request_bytes("GET", "/", &[("host", "d.example")], b"")).await;
        clients.push(client);
    }
    proxy.wait_stat("http.web.downstream_rq_active", |active| active == 4).await;
    drop(clients.pop());
    proxy.wait_stat("http.web.downstream_rq_active", |active| active == 3).await;
    mock.release("vhds");
    for client in &mut clients {
        assert_eq!(client.response("GET").await.status, 204);
    }
}

#[tokio::test]
async fn virtual_hosts_need_the_delta_protocol() {
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&http("web", &rds("routes")), "")], "");
    mock.set_yaml(&resources(&[resource("lds", &listener), open_routes("routes", "")])).unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsSotw, mock.address().port())).await;
    let message = mock.wait_nack("rds", SOON).await.unwrap().error_detail.message;
    assert!(message.contains("vhds.config_source: virtual hosts need ads of type DELTA_GRPC"), "{message}");
    assert_eq!(get(proxy.listener("web").await, &[]).await.status, 404);
}
