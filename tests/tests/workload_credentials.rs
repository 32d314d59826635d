//! Credentials of a workload that are added to its requests: from secrets, wherever these come from and whenever they
//! change, and from an authorization server; beside Envoy where it has the same.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::{Path, PathBuf};

use control_plane_mock::MockControlPlane;
use outrigger_tests::authorization_server::Asked;
use outrigger_tests::config::{
    self, ADS, Xds, ads_bootstrap, all_to, bootstrap, chain, cluster, cluster_with, resource, resources,
};
use outrigger_tests::side_by_side::{Intended, assert_same};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{AuthorizationServer, Proxy, SOON, Settings, Upstream, eventually, h1, proxy};

const INTENDED: Intended = &[];

const INJECTOR: &str = "type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector";
const CREDENTIALS: &str = "type.googleapis.com/envoy.extensions.http.injected_credentials";

/// A filter that injects a secret.
fn secret(secret: &str, more_secret: &str, more: &str) -> String {
    format!(
        "{{ name: inject, typed_config: {{ '@type': {INJECTOR}{more}, credential: {{ name: c, typed_config: {{ \
         '@type': {CREDENTIALS}.generic.v3.Generic, credential: {secret}{more_secret} }} }} }} }}"
    )
}

/// A filter that injects a token which `cluster` gives for this scope.
fn token(cluster: &str, scope: &str, more: &str) -> String {
    format!(
        "{{ name: inject, typed_config: {{ '@type': {INJECTOR}{more}, credential: {{ name: c, typed_config: {{ \
         '@type': {CREDENTIALS}.oauth2.v3.OAuth2, scopes: ['{scope}'], \
         token_endpoint: {{ uri: 'http://idp/token?x=1', cluster: {cluster}, timeout: 60s }}, \
         endpoint_params: [{{ name: audience, value: 'a b&c' }}], \
         client_credentials: {{ client_id: 'm&e', client_secret: {{ name: token }} }} }} }} }} }}"
    )
}

/// A listener with a filter before its router, or in front of its upstreams.
fn listener(name: &str, filter: &str, upstream: &str, cluster: &str) -> String {
    let log = config::access_log_of(&format!("{name}.log"), "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let filter = if filter.is_empty() { String::new() } else { format!("{filter}, ") };
    let upstream = match upstream {
        "" => String::new(),
        filter => format!(", upstream_http_filters: [{filter}, {CODEC}]"),
    };
    let manager = format!(
        "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {name}, http_filters: [{filter}{{ name: router, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router{upstream} }} }}], \
         route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{}] }}] }}{log} }} }}",
        all_to(cluster)
    );
    config::listener(name, &[chain(&manager, "")], "")
}

const CODEC: &str = "{ name: codec, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec } }";

/// A cluster with a filter in front of its endpoints.
fn filtered_cluster(name: &str, port: u16, filter: &str) -> String {
    let options = format!(
        ", typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \
         '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {{ http_protocol_options: {{}} }}, http_filters: [{filter}, {CODEC}] }} }}"
    );
    cluster_with(name, &[port], &options)
}

const SECRETS: &str = "  secrets:
  - { name: plain, generic_secret: { secret: { inline_string: Basic abc } } }
  - { name: line, generic_secret: { secret: { inline_string: \"line\\r\\n\\n\" } } }
  - { name: empty, generic_secret: {} }
  - { name: several, generic_secret: { secrets: { a: { inline_string: x } } } }
  - { name: token, generic_secret: { secret: { inline_string: 's%e c~r+e&t=é:/' } } }
";

const HEADERS: [&str; 4] = ["authorization", "x-key", "x-up", "x-none"];

async fn observed(program: PathBuf) -> Vec<(String, Vec<String>)> {
    let (app, server, closed) = (Upstream::start("app").await, AuthorizationServer::start().await, ClosedPort::take());
    let named = |name: &str| format!("{{ name: {name} }}");
    let always = ", allow_request_without_credential: true";
    let overwrite = ", overwrite: true";
    let listeners = [
        listener("plain", &secret(&named("plain"), "", ""), "", "app"),
        listener("overwrite", &secret(&named("plain"), "", overwrite), "", "app"),
        listener("key", &secret(&named("line"), ", header: X-Key, header_value_prefix: 'Key '", ""), "", "app"),
        listener("empty", &secret(&named("empty"), "", ""), "", "app"),
        listener("several", &secret(&named("several"), "", overwrite), "", "app"),
        listener("allowed", &secret(&named("empty"), "", always), "", "app"),
        listener("token", &token("idp", "ok", ""), "", "app"),
        listener("refused", &token("idp", "status-500", ""), "", "app"),
        listener("dead", &token("dead", "ok", always), "", "app"),
        listener("nowhere", &token("nowhere", "ok", ""), "", "app"),
        listener("up", "", &secret(&named("plain"), ", header: x-up", ""), "app"),
        listener("up-empty", "", &secret(&named("empty"), ", header: x-up", ""), "app"),
        listener("up-cluster", "", "", "filtered"),
    ];
    let clusters = [
        cluster("app", &[app.port()]),
        cluster("idp", &[server.port()]),
        cluster("dead", &[closed.port()]),
        filtered_cluster("filtered", app.port(), &secret(&named("plain"), ", header: x-up", "")),
    ];
    let text = format!("{}{SECRETS}", bootstrap(&listeners, &clusters));
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    // Each has asked once, whatever came of it.
    for name in ["token", "refused", "dead", "nowhere"] {
        eventually("a token was asked for", async || {
            let page = proxy.admin("/stats").await.text();
            let prefix = format!("http.{name}.credential_injector.oauth2.token_fetch");
            match page.lines().any(|line| line.starts_with(&prefix) && !line.ends_with(": 0")) {
                true => Ok(()),
                false => Err(page),
            }
        })
        .await;
    }
    let mut all = Vec::new();
    for (name, count) in LISTENERS {
        let address = proxy.listener(name).await;
        let mut seen = Vec::new();
        for headers in [&[][..], &[("authorization", "own"), ("x-key", "own"), ("x-up", "own")]] {
            let response = h1::Client::connect(address).await.request("GET", "/", headers, b"").await;
            seen.push(format!("with {} headers: status {}", headers.len(), response.status));
            match response.status {
                200 => {
                    let report = response.json();
                    for pair in report["headers"].as_array().into_iter().flatten() {
                        let name = pair[0].as_str().unwrap_or_default().to_ascii_lowercase();
                        if HEADERS.contains(&name.as_str()) {
                            seen.push(format!("with {} headers: upstream sees {name}: {}", headers.len(), pair[1]));
                        }
                    }
                }
                _ => seen.push(format!("with {} headers: body {:?}", headers.len(), response.text())),
            }
        }
        seen.extend(proxy.lines(&format!("{name}.log"), count).await);
        all.push((name.to_owned(), seen));
    }
    let asked = server.take_asked();
    let first = asked.iter().find(|asked| asked.field("scope") == "ok");
    all.push(("question".to_owned(), first.map(told).unwrap_or_default()));
    let page = proxy.admin("/stats").await.text();
    // How often a server that fails is asked depends on how long this took.
    let lines = page.lines().filter(|line| line.contains("credential_injector") && !line.ends_with(": 0"));
    let lines = lines.map(|line| match line.contains(".oauth2.") {
        true => line.split(": ").next().unwrap_or_default().to_owned(),
        false => line.to_owned(),
    });
    all.push(("stats".to_owned(), lines.collect()));
    all
}

const LISTENERS: [(&str, usize); 13] = [
    ("plain", 2),
    ("overwrite", 2),
    ("key", 2),
    ("empty", 2),
    ("several", 2),
    ("allowed", 2),
    ("token", 2),
    ("refused", 2),
    ("dead", 2),
    ("nowhere", 2),
    ("up", 2),
    ("up-empty", 2),
    ("up-cluster", 2),
];

fn told(asked: &Asked) -> Vec<String> {
    let Asked { target, host, authorization, form } = asked;
    let mut told = vec![format!("{host}{target} {authorization:?}")];
    told.extend(form.iter().map(|(name, value)| format!("{name}={value}")));
    told
}

#[tokio::test]
async fn credentials_are_injected_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    let seen = observed(proxy::program()).await;
    assert_same(INTENDED, expected, seen);
}

/// What an upstream sees in `authorization`.
async fn injected(proxy: &Proxy, name: &str) -> String {
    let response = h1::Client::connect(proxy.listener(name).await).await.get("/").await;
    match response.status {
        200 => {
            let report = response.json();
            let mut headers = report["headers"].as_array().into_iter().flatten();
            let found =
                headers.find(|pair| pair[0].as_str().is_some_and(|name| name.eq_ignore_ascii_case("authorization")));
            found.map_or_else(String::new, |pair| pair[1].as_str().unwrap_or_default().to_owned())
        }
        status => format!("status {status}"),
    }
}

async fn becomes(proxy: &Proxy, name: &str, expected: &str) {
    eventually(expected, async || match injected(proxy, name).await {
        seen if seen == expected => Ok(()),
        seen => Err(seen),
    })
    .await;
}

/// The secret `token` as a document.
fn document(value: &str) -> String {
    resources(&[resource("sds", &format!("{{ name: token, generic_secret: {{ secret: {value} }} }}"))])
}

fn inline(value: &str) -> String {
    document(&format!("{{ inline_string: '{value}' }}"))
}

/// Puts a file in place in one step.
fn move_into_place(directory: &Path, name: &str, content: &str) {
    std::fs::write(directory.join("new"), content).unwrap();
    std::fs::rename(directory.join("new"), directory.join(name)).unwrap();
}

#[tokio::test]
async fn a_secret_in_a_file_is_replaced() {
    for watched in ["", ", watched_directory: { path: $dir }"] {
        let app = Upstream::start("app").await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        move_into_place(&path, "secret.yaml", &inline("Bearer 0"));
        let source =
            format!("{{ resource_api_version: V3, path_config_source: {{ path: $dir/secret.yaml{watched} }} }}");
        let filter = secret(&format!("{{ name: token, sds_config: {source} }}"), "", "");
        let text = bootstrap(&[listener("file", &filter, "", "app")], &[cluster("app", &[app.port()])]);
        let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
        becomes(&proxy, "file", "Bearer 0").await;
        for number in 1..4 {
            move_into_place(&path, "secret.yaml", &inline(&format!("Bearer {number}")));
            becomes(&proxy, "file", &format!("Bearer {number}")).await;
        }
        let dump = proxy.admin("/config_dump?include_eds").await.text();
        assert!(!dump.contains("Bearer 3") && dump.contains("token"), "{dump}");
    }
}

/// As volumes of Kubernetes are: the file that the secret names stays, and a link on the way to it is swapped.
#[tokio::test]
async fn a_file_that_a_secret_names_is_replaced() {
    let app = Upstream::start("app").await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let place = |value: &str, version: &str| {
        std::fs::create_dir(path.join(version)).unwrap();
        std::fs::write(path.join(version).join("token"), value).unwrap();
        std::os::unix::fs::symlink(version, path.join("new-link")).unwrap();
        std::fs::rename(path.join("new-link"), path.join("..data")).unwrap();
    };
    place("Bearer first\n", "v0");
    std::os::unix::fs::symlink("..data/token", path.join("token")).unwrap();
    let named = document(&format!("{{ filename: '{0}/token', watched_directory: {{ path: '{0}' }} }}", path.display()));
    move_into_place(&path, "secret.yaml", &named);
    let source = "{ resource_api_version: V3, path_config_source: { path: $dir/secret.yaml } }";
    let filter = secret(&format!("{{ name: token, sds_config: {source} }}"), "", "");
    let text = bootstrap(&[listener("file", &filter, "", "app")], &[cluster("app", &[app.port()])]);
    let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
    becomes(&proxy, "file", "Bearer first").await;
    place("Bearer second", "v1");
    becomes(&proxy, "file", "Bearer second").await;
}

#[tokio::test]
async fn a_secret_over_ads_is_waited_for_and_replaced() {
    for how in [Xds::AdsSotw, Xds::AdsDelta] {
        let app = Upstream::start("app").await;
        let mock = MockControlPlane::start().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let listener = |name: &str, filter: &str, upstream: &str| {
            resource("lds", &listener(name, filter, upstream, "app").replace("$dir", &path))
        };
        let filter = secret(&format!("{{ name: token, sds_config: {ADS} }}"), "", "");
        mock.set_yaml(&inline("Bearer 0")).unwrap();
        mock.set_yaml(&resources(&[resource("cds", &cluster("app", &[app.port()]))])).unwrap();
        mock.set_yaml(&resources(&[listener("ads", &filter, ""), listener("up", "", &filter)])).unwrap();
        let text = ads_bootstrap(how, mock.address().port());
        let proxy = Proxy::start_in(directory, &text, Settings::default()).await;
        // The listener has waited for it.
        assert_eq!(injected(&proxy, "ads").await, "Bearer 0");
        assert_eq!(injected(&proxy, "up").await, "Bearer 0");
        mock.set_yaml(&inline("Bearer 1")).unwrap();
        becomes(&proxy, "ads", "Bearer 1").await;
        becomes(&proxy, "up", "Bearer 1").await;
        if proxy::tests_envoy() {
            continue;
        }
        // What is of no use to its users is refused, and changes nothing.
        let other = "{ name: token, session_ticket_keys: { keys: [{ inline_bytes: 'AAAA' }] } }";
        let keys = "A".repeat(107) + "=";
        let other = other.replace("AAAA", &keys);
        mock.set_yaml(&resources(&[resource("sds", &other)])).unwrap();
        let refused = mock.wait_nack("sds", SOON).await.unwrap();
        assert!(format!("{refused:?}").contains("is not a generic secret"), "{refused:?}");
        assert_eq!(injected(&proxy, "ads").await, "Bearer 1");
    }
}

#[tokio::test]
async fn a_static_secret_must_exist_and_fit() {
    if proxy::tests_envoy() {
        return;
    }
    let app = Upstream::start("app").await;
    let of = |name: &str| {
        let filter = secret(&format!("{{ name: {name} }}"), "", "");
        bootstrap(&[listener("l", &filter, "", "app")], &[cluster("app", &[app.port()])])
    };
    let keys = "A".repeat(107) + "=";
    let tickets = format!(
        "  secrets:\n  - {{ name: tickets, session_ticket_keys: {{ keys: [{{ inline_bytes: '{keys}' }}] }} }}\n"
    );
    for (text, expected) in [
        (of("missing"), "static secret \"missing\" does not exist in the bootstrap"),
        (of("tickets") + &tickets, "secret \"tickets\" is not a generic secret"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bootstrap.yaml");
        std::fs::write(&file, text.replace("$dir", &directory.path().display().to_string())).unwrap();
        let (status, out, log) = proxy::run(&["--mode", "validate", "-c", &file.display().to_string()]).await;
        let said = format!("{out}{log}");
        assert!(!status.success(), "{said}");
        assert!(said.contains("HTTP filter \"inject\"") && said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_token_is_fetched_again_before_it_ends() {
    let (app, server) = (Upstream::start("app").await, AuthorizationServer::start().await);
    let listeners = [listener("token", &token("idp", "short", ""), "", "app")];
    let clusters = [cluster("app", &[app.port()]), cluster("idp", &[server.port()])];
    let text = format!("{}{SECRETS}", bootstrap(&listeners, &clusters));
    let proxy = Proxy::start(&text).await;
    eventually("tokens are fetched", async || match server.count() {
        count if count >= 3 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
    becomes(&proxy, "token", "Bearer access.short").await;
}
