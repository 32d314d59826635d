//! Services that are targets of `google_grpc`: asked, counted and refused beside Envoy; and clusters that come and go with the
//! listeners that name their targets, which Envoy has none of.

use std::path::PathBuf;

use control_plane_mock::MockControlPlane;
use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, bootstrap, chain, cluster, http, http2_cluster, resource, resources, tcp,
};
use outrigger_tests::dns::{DnsServer, Say};
use outrigger_tests::{AskedService, ProcessingService, Proxy, SOON, Settings, Upstream, eventually, h1, proxy};

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";

fn google(target: &str, prefix: &str, more: &str) -> String {
    format!("grpc_service: {{ google_grpc: {{ target_uri: '{target}', stat_prefix: {prefix}{more} }}, timeout: 60s }}")
}

fn asks(service: &str) -> String {
    format!("ext_authz.v3.ExtAuthz, transport_api_version: V3, {service}")
}

/// A listener with one HTTP filter.
fn listener(name: &str, filter: &str) -> String {
    let table = ", route_config: { name: local, virtual_hosts: [{ name: all, domains: ['*'], routes: [ \
        { match: { prefix: / }, route: { cluster: one, rate_limits: [{ actions: [ \
          { request_headers: { header_name: x-limit, descriptor_key: script } }] }] } }] }] }";
    let filters = format!("http_filters: [{{ name: f, typed_config: {{ '@type': {TYPES}.http.{filter} }} }}, ");
    config::listener(name, &[chain(&http(name, table).replace("http_filters: [", &filters), "")], "")
}

async fn observed(program: PathBuf) -> Vec<String> {
    let (one, asked, processor) =
        (Upstream::start("one").await, AskedService::start().await, ProcessingService::start().await);
    let address = format!("127.0.0.1:{}", asked.port());
    let network = format!(
        "{{ name: asks, typed_config: {{ '@type': {TYPES}.network.ext_authz.v3.ExtAuthz, stat_prefix: asks, \
         transport_api_version: V3, {} }} }}, {}",
        google(&address, "connections", ""),
        tcp("one")
    );
    let listeners = [
        listener("authz", &asks(&google(&address, "authz", ""))),
        listener("named", &asks(&google(&format!("dns:///localhost:{}", asked.port()), "named", ""))),
        listener("again", &asks(&google(&format!("ipv4:{address}"), "again", ""))),
        listener("lost", &asks(&google("ipv4:127.0.0.1:1", "lost", ""))),
        listener(
            "limits",
            &format!(
                "ratelimit.v3.RateLimit, domain: d, timeout: 60s, failure_mode_deny: true, rate_limit_service: {{ \
                 transport_api_version: V3, {} }}",
                google(&address, "limits", "")
            ),
        ),
        listener(
            "processor",
            &format!(
                "ext_proc.v3.ExternalProcessor, message_timeout: 60s, {}",
                google(&format!("127.0.0.1:{}", processor.port()), "processor", "")
            ),
        ),
        config::listener("tcp", &[chain(&network, "")], ""),
    ];
    let text = bootstrap(&listeners, &[cluster("one", &[one.port()])]);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let mut seen = Vec::new();
    for (name, script) in [
        ("authz", ("x-authz", "")),
        ("authz", ("x-authz", "deny=401")),
        ("authz", ("x-authz", "fail")),
        ("named", ("x-authz", "")),
        ("again", ("x-authz", "")),
        ("lost", ("x-authz", "")),
        ("limits", ("x-limit", "request=x-a:b")),
        ("limits", ("x-limit", "over")),
        ("limits", ("x-limit", "fail")),
        ("processor", ("x-proc", "qh.set=x-b:c")),
        ("processor", ("x-proc", "qh.fail=14")),
    ] {
        let mut client = h1::Client::connect(proxy.listener(name).await).await;
        let status = client.request("GET", "/", &[script], b"").await.status;
        seen.push(format!("{name} {script:?}: {status}"));
    }
    let mut client = h1::Client::connect(proxy.listener("tcp").await).await;
    seen.push(format!("tcp: {}", client.get("/").await.status));
    let told = asked.take_heads().into_iter().flatten().filter(|(name, _)| name == ":authority");
    seen.extend(told.map(|(_, value)| value.replace(&asked.port().to_string(), "PORT")));
    let page = proxy.admin("/stats?filter=^grpc\\.").await.text();
    // What a lost connection is called differs: 14 here, and not always that in Envoy.
    let counted =
        |line: &&str| line.contains(".streams_") && !line.ends_with(": 0") && !line.contains("lost.streams_closed");
    seen.extend(page.lines().filter(counted).map(str::to_owned));
    seen
}

#[tokio::test]
async fn targets_are_asked_and_counted_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    let seen = observed(proxy::program()).await;
    assert_eq!(seen, expected);
    for line in
        ["authz (\"x-authz\", \"deny=401\"): 401", "grpc.authz.streams_total: 3", "grpc.authz.streams_closed_13: 1"]
    {
        assert!(seen.iter().any(|seen| seen == line), "{line}: {seen:#?}");
    }
}

/// Names of clusters that are shown and that no control plane has sent.
async fn shown(proxy: &Proxy, prefix: &str) -> Vec<String> {
    let page = proxy.admin("/clusters").await.text();
    let names = page.lines().filter_map(|line| line.strip_suffix("::added_via_api::false"));
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_secure_target_is_asked_with_a_token() {
    let asked = AskedService::start().await;
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    authority.issue(&["localhost"]).write(directory.path(), "server");
    std::fs::write(directory.path().join("token"), "first\n").unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let transport = format!(
        ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{ \
         alpn_protocols: [h2], tls_certificates: [{{ certificate_chain: {{ filename: '{}' }}, private_key: {{ filename: '{}' }} }}] \
         }} }} }}",
        at("server.crt"),
        at("server.key")
    );
    let front = bootstrap(
        &[config::listener("front", &[chain(&tcp("asked"), &transport)], "")],
        &[http2_cluster("asked", &[asked.port()])],
    );
    let front = Proxy::start(&front).await;
    let port = front.listener("front").await.port();
    let roots = |pem: &str| {
        format!(", channel_credentials: {{ ssl_credentials: {{ root_certs: {{ inline_string: {pem:?} }} }} }}")
    };
    let token = format!(
        ", credentials_factory_name: envoy.grpc_credentials.file_based_metadata, call_credentials: [{{ from_plugin: {{ \
         name: envoy.grpc_credentials.file_based_metadata, typed_config: {{ \
         '@type': type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig, \
         secret_data: {{ filename: '{}' }}, header_prefix: 'Bearer ' }} }} }}]",
        at("token")
    );
    let target = format!("localhost:{port}");
    let listeners = [
        listener("trusted", &asks(&google(&target, "t", &(roots(&authority.pem()) + &token)))),
        listener("also", &asks(&google(&target, "a", &roots(&authority.pem())))),
        listener("strange", &asks(&google(&target, "s", &roots(&Authority::new().pem())))),
    ];
    let one = Upstream::start("one").await;
    let proxy = Proxy::start(&bootstrap(&listeners, &[cluster("one", &[one.port()])])).await;
    assert_eq!(h1::get(proxy.listener("trusted").await, "/").await.status, 200);
    std::fs::write(directory.path().join("token"), "second\n").unwrap();
    assert_eq!(h1::get(proxy.listener("trusted").await, "/").await.status, 200);
    assert_eq!(h1::get(proxy.listener("also").await, "/").await.status, 200);
    assert_eq!(h1::get(proxy.listener("strange").await, "/").await.status, 403);
    let tokens: Vec<_> = asked
        .take_heads()
        .into_iter()
        .map(|head| head.into_iter().find(|(name, _)| name == "authorization").map(|(_, value)| value))
        .collect();
    assert_eq!(tokens, [Some("Bearer first".to_owned()), Some("Bearer second".to_owned()), None]);
    // Like targets share a cluster; another trust makes another one.
    assert_eq!(shown(&proxy, "google_grpc:localhost:").await.len(), 2);
    // Without its token, nobody is asked.
    std::fs::remove_file(directory.path().join("token")).unwrap();
    assert_eq!(h1::get(proxy.listener("trusted").await, "/").await.status, 403);
    assert!(asked.take_heads().is_empty());
    assert_eq!(proxy.stat("grpc.s.streams_closed_14").await, 1);
}

async fn shows(proxy: &Proxy, count: usize) {
    eventually("so many clusters of targets are there", async || match shown(proxy, "google_grpc:").await {
        names if names.len() == count => Ok(()),
        names => Err(format!("{names:?}")),
    })
    .await;
}

#[tokio::test]
async fn clusters_of_targets_come_and_go_with_who_names_them() {
    for how in [Xds::AdsDelta, Xds::AdsSotw] {
        let (one, asked) = (Upstream::start("one").await, AskedService::start().await);
        let target = format!("127.0.0.1:{}", asked.port());
        let mock = MockControlPlane::start().await;
        mock.set_yaml(&resources(&[resource("cds", &cluster("one", &[one.port()]))])).unwrap();
        let named = |name: &str| resource("lds", &listener(name, &asks(&google(&target, "p", ""))));
        mock.set_yaml(&resources(&[named("a"), named("b")])).unwrap();
        let proxy = Proxy::start(&ads_bootstrap(how, mock.address().port())).await;
        for name in ["a", "b"] {
            assert_eq!(h1::get(proxy.listener(name).await, "/").await.status, 200, "{how:?}");
        }
        shows(&proxy, 1).await;
        // Discovery knows nothing of it, and cannot take it away or its name.
        mock.set_yaml(&resources(&[resource("cds", &cluster("two", &[one.port()]))])).unwrap();
        mock.wait_ack("cds", SOON).await.unwrap();
        mock.set_yaml(&resources(&[resource("cds", &cluster("google_grpc:mine", &[one.port()]))])).unwrap();
        let nack = mock.wait_nack("cds", SOON).await.unwrap();
        assert!(format!("{nack:?}").contains("stand for targets of google_grpc"), "{nack:?}");
        mock.remove("cds", "google_grpc:mine");
        // One of two who name it goes.
        mock.remove("lds", "a");
        proxy.listener_gone("a").await;
        assert_eq!(h1::get(proxy.listener("b").await, "/").await.status, 200, "{how:?}");
        // The other one asks somebody else now.
        let other = format!("ipv4:{target}");
        mock.set_yaml(&resources(&[resource("lds", &listener("b", &asks(&google(&other, "p", ""))))])).unwrap();
        eventually("the new target alone is there", async || match shown(&proxy, "google_grpc:").await {
            names if names == [format!("google_grpc:{other}")] => Ok(()),
            names => Err(format!("{names:?}")),
        })
        .await;
        assert_eq!(h1::get(proxy.listener("b").await, "/").await.status, 200, "{how:?}");
        mock.remove("lds", "b");
        shows(&proxy, 0).await;
    }
}

#[tokio::test]
async fn a_listener_waits_for_the_addresses_of_its_target() {
    let (one, asked, dns) = (Upstream::start("one").await, AskedService::start().await, DnsServer::start().await);
    dns.set("authz.test", Say::Silence);
    let target = format!("dns:///authz.test:{}", asked.port());
    let listeners = [listener("web", &asks(&google(&target, "p", "")))];
    let resolver = format!(
        "typed_dns_resolver_config: {{ name: resolver, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
         resolvers: [{{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}] }} }}\n",
        dns.port()
    );
    let text = bootstrap(&listeners, &[cluster("one", &[one.port()])]) + &resolver;
    let proxy = Proxy::start_with(&text, Settings { await_ready: false, ..Settings::default() }).await;
    eventually("the name is asked for", async || match dns.questions("authz.test") {
        0 => Err("not yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    assert_eq!(proxy.admin("/ready").await.status, 503);
    dns.addresses("authz.test", &["127.0.0.1"]);
    proxy.wait_ready().await;
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.status, 200);
    assert_eq!(asked.take_heads().len(), 1);
}
