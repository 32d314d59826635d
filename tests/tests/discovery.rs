//! What comes from elsewhere than listeners, routes, clusters and endpoints over plain TCP: names from DNS, secrets, and
//! control planes behind TLS and Unix sockets.

use control_plane_mock::{MockControlPlane, TlsPem};
use outrigger_tests::certificates::{self, Authority, Identity, indented};
use outrigger_tests::config::{
    self, HTTP2, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster, eds_cluster, endpoints, http, rds, resource,
    resources, route_configuration, routes,
};
use outrigger_tests::{Proxy, SOON, Settings, Upstream, eventually, h1};

#[tokio::test]
async fn dns_names_are_resolved() {
    let upstream = Upstream::start("echo").await;
    let by_name = |name: &str, kind: &str, host: &str| {
        format!(
            "{{ name: {name}, {kind}, connect_timeout: 5s, dns_lookup_family: V4_ONLY, load_assignment: {{ cluster_name: {name}, \
             endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {host}, \
             port_value: {} }} }} }} }}] }}] }} }}",
            upstream.port()
        )
    };
    let strict = by_name("strict", "type: STRICT_DNS", "localhost");
    let logical = by_name("logical", "type: LOGICAL_DNS", "localhost");
    let address = by_name("address", "type: STRICT_DNS", "127.0.0.1");
    let to = ["strict", "logical", "address"]
        .map(|name| format!("{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}"))
        .join(", ");
    let listener = config::listener("web", &[chain(&http("web", &routes(&to)), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[strict, logical, address])).await;
    let web = proxy.listener("web").await;
    for name in ["strict", "logical", "address"] {
        assert_eq!(h1::get(web, &format!("/{name}")).await.served_by(), "echo", "{name}");
        // More often once they were asked for again.
        proxy.wait_stat(&format!("cluster.{name}.update_success"), |count| count >= 1).await;
    }
}

/// A secret with a certificate, as a resource.
fn secret(name: &str, identity: &Identity) -> String {
    format!(
        "- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: {name}
  tls_certificate:
    certificate_chain:
      inline_string: |{}
    private_key:
      inline_string: |{}
",
        indented(&identity.certificate, 8),
        indented(&identity.key, 8)
    )
}

/// The certificate that a TLS listener shows.
async fn certificate_of(address: std::net::SocketAddr, authority: &Authority, name: &str) -> Result<Vec<u8>, String> {
    let stream =
        certificates::connect(address, name, authority.client(&[], None)).await.map_err(|error| error.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
    Ok(shown[0].to_vec())
}

#[tokio::test]
async fn a_listener_waits_for_its_secret_and_takes_a_new_one_without_a_restart() {
    let authority = Authority::new();
    let (first, second) = (authority.issue(&["secure.example"]), authority.issue(&["secure.example"]));
    let mock = MockControlPlane::start().await;
    let answer = "{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: secret } } }";
    let tls = format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificate_sds_secret_configs: [{{ name: server, sds_config: {} }}] }} }} }}",
        config::ADS
    );
    let listener = config::listener("tls", &[chain(&http("tls", &routes(answer)), &tls)], "");
    mock.hold("sds");
    mock.set_yaml(&resources(&[resource("lds", &listener)])).unwrap();
    mock.set_yaml(&format!("resources:\n{}", secret("server", &first))).unwrap();
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
    mock.wait_ack("lds", SOON).await.unwrap();
    assert_eq!(proxy.admin("/ready").await.status, 503);
    mock.release("sds");
    proxy.wait_ready().await;
    let address = proxy.listener("tls").await;
    let shown = certificate_of(address, &authority, "secure.example").await.unwrap();

    let stream = certificates::connect(address, "secure.example", authority.client(&[], None)).await.unwrap();
    let mut old = h1::Client::over(Box::new(stream));
    assert_eq!(old.get("/").await.text(), "secret");

    mock.set_yaml(&format!("resources:\n{}", secret("server", &second))).unwrap();
    mock.wait_ack("sds", SOON).await.unwrap();
    eventually("new connections see the new certificate", async || {
        let now = certificate_of(address, &authority, "secure.example").await?;
        if now == shown { Err("the old one".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!(old.get("/").await.text(), "secret", "a connection goes on with what it began with");

    // A secret that is none is refused, and the last good one stays.
    let broken = "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: server\n  \
        tls_certificate: { certificate_chain: { inline_string: nonsense }, private_key: { inline_string: nonsense } }\n";
    mock.set_yaml(broken).unwrap();
    let nack = mock.wait_nack("sds", SOON).await.unwrap();
    assert!(!nack.error_detail.message.contains("PRIVATE"), "{}", nack.error_detail.message);
    certificate_of(address, &authority, "secure.example").await.unwrap();
    let dump = proxy.admin("/config_dump").await.text();
    assert!(!dump.contains("PRIVATE KEY"), "private keys are never shown");
}

/// Everything over the control plane, and a request through it.
async fn serves(mock: &MockControlPlane, bootstrap: &str, directory: tempfile::TempDir) {
    let upstream = Upstream::start("echo").await;
    let listener = config::listener("web", &[chain(&http("web", &rds("web-routes")), "")], "");
    mock.set_yaml(&resources(&[
        resource("cds", &eds_cluster("first")),
        resource("eds", &endpoints("first", &[upstream.port()])),
        resource("lds", &listener),
        resource("rds", &route_configuration("web-routes", &all_to("first"))),
    ]))
    .unwrap();
    let proxy = Proxy::start_in(directory, bootstrap, Settings::default()).await;
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.served_by(), "echo");
}

#[tokio::test]
async fn a_control_plane_behind_tls_is_reached_and_verified() {
    let authority = Authority::new();
    let identity = authority.issue(&["control.example"]);
    let pem = TlsPem { certificate: identity.certificate.clone(), key: identity.key.clone(), client_ca: None };
    let mock = MockControlPlane::builder().tls(pem).start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
    let tls = format!(
        "{HTTP2}, transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: control.example, \
         common_tls_context: {{ alpn_protocols: [h2], validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }} }} }} }}"
    );
    let text = ads_bootstrap(Xds::AdsDelta, mock.address().port()).replace(HTTP2, &tls);
    serves(&mock, &text, directory).await;
}

#[tokio::test]
async fn a_control_plane_on_a_unix_socket_is_reached() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("xds.sock");
    let mock = MockControlPlane::builder().unix(&socket).start().await.unwrap();
    let tcp = format!("socket_address: {{ address: 127.0.0.1, port_value: {} }}", mock.address().port());
    let pipe = format!("pipe: {{ path: '{}' }}", socket.display());
    let text = ads_bootstrap(Xds::AdsSotw, mock.address().port()).replace(&tcp, &pipe);
    assert!(text.contains("pipe"), "{text}");
    serves(&mock, &text, directory).await;
}

#[tokio::test]
async fn balancing_policies_reach_every_endpoint_by_enum_and_by_extension() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let ports: Vec<u16> = upstreams.iter().map(Upstream::port).collect();
    let extension = |name: &str, kind: &str| {
        format!(
            ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: envoy.load_balancing_policies.{name}, \
             typed_config: {{ '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind} }} }} }}] }}"
        )
    };
    let kinds = [
        ("round-robin", ", lb_policy: ROUND_ROBIN".to_owned()),
        ("least", ", lb_policy: LEAST_REQUEST".to_owned()),
        ("random", ", lb_policy: RANDOM".to_owned()),
        ("round-robin-extension", extension("round_robin", "RoundRobin")),
        ("least-extension", extension("least_request", "LeastRequest")),
        ("random-extension", extension("random", "Random")),
    ];
    let clusters: Vec<String> = kinds.iter().map(|(name, policy)| config::cluster_with(name, &ports, policy)).collect();
    let to: Vec<String> = kinds
        .iter()
        .map(|(name, _)| format!("{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}"))
        .collect();
    let listener = config::listener("web", &[chain(&http("web", &routes(&to.join(", "))), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    for (name, _) in &kinds {
        let mut shares = std::collections::BTreeMap::new();
        for _ in 0..90 {
            *shares.entry(client.get(&format!("/{name}")).await.served_by()).or_insert(0) += 1;
        }
        assert_eq!(shares.len(), 3, "{name}: {shares:?}");
        if name.starts_with("round-robin") {
            assert!(shares.values().all(|share| *share == 30), "{name}: {shares:?}");
        }
    }
}

#[tokio::test]
async fn endpoint_weights_and_health_decide_the_shares() {
    let upstreams = [Upstream::start("heavy").await, Upstream::start("light").await, Upstream::start("ill").await];
    let one = |upstream: &Upstream, more: &str| {
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}{more} }}",
            upstream.port()
        )
    };
    let list = [
        one(&upstreams[0], ", load_balancing_weight: 3"),
        one(&upstreams[1], ", load_balancing_weight: 1"),
        one(&upstreams[2], ", load_balancing_weight: 4, health_status: UNHEALTHY"),
    ];
    let weighted = format!(
        "{{ name: weighted, connect_timeout: 1s, common_lb_config: {{ healthy_panic_threshold: {{ value: 0 }} }}, \
         load_assignment: {{ cluster_name: weighted, endpoints: [{{ lb_endpoints: [{}] }}] }} }}",
        list.join(", ")
    );
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("weighted"))), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[weighted])).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    for _ in 0..80 {
        assert_eq!(client.get("/").await.status, 200);
    }
    let shares = upstreams.each_ref().map(|upstream| upstream.counts().requests);
    assert!(shares[0].abs_diff(60) <= 2 && shares[1].abs_diff(20) <= 2 && shares[2] == 0, "{shares:?}");
    proxy.stat_is("cluster.weighted.membership_healthy", 2).await;
    let page = proxy.admin("/clusters").await.text();
    assert!(
        page.contains(&format!("weighted::127.0.0.1:{}::health_flags::/failed_eds_health", upstreams[2].port())),
        "{page}"
    );
}

#[tokio::test]
async fn lower_priorities_serve_when_the_first_has_nobody() {
    let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    let of = |health: &str| {
        let locality = |priority: u32, port: u16, health: &str| {
            format!(
                "{{ priority: {priority}, lb_endpoints: [{{ health_status: {health}, endpoint: {{ address: {{ socket_address: {{ \
                 address: 127.0.0.1, port_value: {port} }} }} }} }}] }}"
            )
        };
        let all = [locality(0, first.port(), health), locality(1, second.port(), "HEALTHY")].join(", ");
        resource("eds", &format!("{{ cluster_name: two, endpoints: [{all}] }}"))
    };
    let mock = MockControlPlane::start().await;
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("two"))), "")], "");
    mock.set_yaml(&resources(&[resource("cds", &eds_cluster("two")), of("HEALTHY"), resource("lds", &listener)]))
        .unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    let web = proxy.listener("web").await;
    let becomes = async |who: &str| {
        eventually("the right priority serves", async || match h1::get(web, "/").await.served_by() {
            served if served == who => Ok(()),
            served => Err(served),
        })
        .await;
    };
    becomes("first").await;
    mock.set_yaml(&resources(&[of("UNHEALTHY")])).unwrap();
    becomes("second").await;
    mock.set_yaml(&resources(&[of("HEALTHY")])).unwrap();
    becomes("first").await;
}

#[tokio::test]
async fn upstreams_may_be_unix_sockets_and_clients_may_use_ipv6() {
    let upstream = Upstream::start("six").await;
    let chains = [chain(&http("web", &routes(&all_to("six"))), "")];
    let listener = config::listener_at("web", "::1", 0, &chains, "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster("six", &[upstream.port()])])).await;
    let web = proxy.listener("web").await;
    assert!(web.is_ipv6());
    assert_eq!(h1::get(web, "/").await.served_by(), "six");

    // A Unix socket as upstream: the admin socket of a proxy answers there.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let pipe = format!(
        "{{ name: pipe, connect_timeout: 1s, load_assignment: {{ cluster_name: pipe, endpoints: [{{ lb_endpoints: [{{ \
         endpoint: {{ address: {{ pipe: {{ path: '{}' }} }} }} }}] }}] }} }}",
        path.display()
    );
    let served = tokio::net::UnixListener::bind(&path).unwrap();
    let answer = tokio::spawn(async move {
        let (stream, _) = served.accept().await.unwrap();
        let mut reader = h1::Reader::new(Box::new(stream), Vec::new());
        reader.head().await.unwrap().unwrap();
        use tokio::io::AsyncWriteExt;
        reader.stream().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npipe").await.unwrap();
        reader
    });
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("pipe"))), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[pipe])).await;
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.text(), "pipe");
    drop(answer.await);
}
