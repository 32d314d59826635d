//! Rules for requests: verdicts, per-route settings, stats and what the log says, as in Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::collections::BTreeMap;

use outrigger_tests::config::{access_log_of, bootstrap, listener};
use outrigger_tests::{Proxy, h1, proxy};

use super::{Workloads, envoy};

const ROUTER: &str =
    "{ name: router, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }";

fn rbac(fields: &str) -> String {
    format!(
        "{{ name: rbac, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, {fields} }} }}"
    )
}

/// A listener with these HTTP filters and routes that are answered here.
fn web(name: &str, filters: &str, routes: &str, more: &str) -> String {
    let log = access_log_of(
        "log.txt",
        &format!("{name} %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%"),
    );
    let manager = format!(
        "{{ name: hcm, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {name}, http_filters: [{filters}, {ROUTER}], route_config: {{ name: local, virtual_hosts: \
         [{{ name: all, domains: ['*'], routes: [{routes}] }}] }}{log}{more} }} }}"
    );
    listener(name, &[format!("{{ filters: [{manager}] }}")], "")
}

fn direct(path: &str, more: &str) -> String {
    format!(
        "{{ match: {{ prefix: {path} }}, direct_response: {{ status: 200, body: {{ inline_string: hello }} }}{more} }}"
    )
}

fn per_route(path: &str, fields: &str) -> String {
    let config = format!(
        ", typed_per_filter_config: {{ rbac: {{ '@type': \
         type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute{fields} }} }}"
    );
    direct(path, &config)
}

fn allow(permission: &str, principal: &str) -> String {
    format!("rules: {{ policies: {{ 'a policy': {{ permissions: [{permission}], principals: [{principal}] }} }} }}")
}

/// Name and filter.
fn cases() -> Vec<(&'static str, String)> {
    let permission = |wire: &str| rbac(&allow(wire, "{ any: true }"));
    let principal = |wire: &str| rbac(&allow("{ any: true }", wire));
    let header = |fields: &str| permission(&format!("{{ header: {{ {fields} }} }}"));
    let template = |text: &str| {
        permission(&format!(
            "{{ uri_template: {{ name: t, typed_config: {{ '@type': \
             type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, \
             path_template: '{text}' }} }} }}"
        ))
    };
    let tree = |name: &str| {
        rbac(&format!(
            "matcher: {{ matcher_tree: {{ input: {{ name: i, typed_config: {{ '@type': \
             type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: {name} }} }}, \
             exact_match_map: {{ map: {{ gold: {{ action: {{ name: a, typed_config: {{ '@type': \
             type.googleapis.com/envoy.config.rbac.v3.Action, name: of gold, action: ALLOW }} }} }}, lead: \
             {{ action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/envoy.config.rbac.v3.Action, \
             name: of lead, action: DENY }} }} }} }} }} }} }}"
        ))
    };
    let address = |kind: &str| principal(&format!("{{ {kind}: {{ address_prefix: 192.0.2.1, prefix_len: 32 }} }}"));
    vec![
        ("path-prefix", permission("{ url_path: { path: { prefix: /shop } } }")),
        ("path-regex", permission("{ url_path: { path: { safe_regex: { regex: '/shop/[a-z]+' } } } }")),
        ("method", header("name: ':method', string_match: { exact: POST }")),
        ("path-header", header("name: ':path', string_match: { suffix: q=1 }")),
        ("authority", header("name: ':authority', string_match: { exact: a }")),
        ("host", header("name: host, string_match: { exact: a }")),
        ("old-exact", header("name: x-kind, exact_match: gold")),
        ("old-prefix", header("name: x-kind, prefix_match: go")),
        ("present", header("name: x-kind, present_match: true")),
        ("absent", header("name: x-kind, present_match: false")),
        ("inverted", header("name: x-kind, string_match: { exact: gold }, invert_match: true")),
        ("missing-as-empty", header("name: x-kind, string_match: { exact: '' }, treat_missing_header_as_empty: true")),
        ("principal-header", principal("{ header: { name: x-kind, string_match: { contains: ol } } }")),
        ("template-one", template("/shop/*")),
        ("template-rest", template("/shop/**")),
        ("template-variable", template("/{area}/item")),
        ("tree", tree("x-kind")),
        ("tree-absent", tree("x-none")),
        ("remote-ip", address("remote_ip")),
        ("source-ip", address("source_ip")),
        ("direct-ip", address("direct_remote_ip")),
        (
            "deny",
            rbac(
                "rules: { action: DENY, policies: { no: { permissions: [{ url_path: { path: { suffix: /item } } }], principals: [{ any: true }] } } }",
            ),
        ),
        (
            "with-shadow",
            rbac(
                "rules_stat_prefix: mine, shadow_rules_stat_prefix: dry, track_per_rule_stats: true, rules: { policies: \
                 { one: { permissions: [{ any: true }], principals: [{ any: true }] } } }, shadow_rules: { action: DENY, \
                 policies: { two: { permissions: [{ any: true }], principals: [{ any: true }] } } }",
            ),
        ),
    ]
}

/// Method, target and headers.
type Request = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const REQUESTS: &[Request] = &[
    ("GET", "/shop/item", &[]),
    ("GET", "/shop/item?q=1", &[("x-kind", "gold")]),
    ("POST", "/shop/", &[("x-kind", "lead")]),
    ("GET", "/shop/item/more", &[("x-kind", "")]),
    ("GET", "/other/item", &[("x-kind", "gold"), ("x-kind", "lead")]),
    ("GET", "/", &[("x-forwarded-for", "192.0.2.1")]),
];

type Seen = BTreeMap<String, String>;

async fn ask(proxy: &Proxy, name: &str, seen: &mut Seen, method: &str, target: &str, headers: &[(&str, &str)]) {
    let mut client = h1::Client::connect(proxy.listener(name).await).await;
    let response = client.request(method, target, headers, b"").await;
    let key = format!("{name}: {method} {target} {headers:?}");
    seen.insert(key, format!("{} {:?} {}", response.status, response.header("content-type"), response.text()));
}

/// Adds the stats of the filter and the log, of so many lines.
async fn look_back(proxy: &Proxy, seen: &mut Seen, lines: usize) {
    let mut log = proxy.lines("log.txt", lines).await;
    log.sort_unstable();
    seen.insert("log".to_owned(), log.join("\n"));
    for line in proxy.admin("/stats").await.text().lines().filter(|line| line.contains("rbac.")) {
        // Counters that were never used are not always there.
        if let Some((name, value)) = line.split_once(": ").filter(|(_, value)| *value != "0") {
            seen.insert(name.to_owned(), value.to_owned());
        }
    }
}

fn assert_same(theirs: &Seen, ours: &Seen) {
    let all = theirs.keys().chain(ours.keys()).filter(|key| theirs.get(*key) != ours.get(*key));
    let differing: Vec<String> =
        all.map(|key| format!("{key}\n  Envoy: {:?}\n  here: {:?}", theirs.get(key), ours.get(key))).collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[tokio::test]
async fn verdicts_on_requests_are_those_of_envoy() {
    let cases = cases();
    let listeners: Vec<String> = cases.iter().map(|(name, filter)| web(name, filter, &direct("/", ""), "")).collect();
    let workloads = Workloads::new();
    let text = bootstrap(&listeners, &[]);
    let mut both = Vec::new();
    for program in [envoy(), proxy::program()] {
        let proxy = workloads.start(program, &text).await;
        let mut seen = Seen::new();
        for (name, _) in &cases {
            for (method, target, headers) in REQUESTS {
                ask(&proxy, name, &mut seen, method, target, headers).await;
            }
        }
        look_back(&proxy, &mut seen, cases.len() * REQUESTS.len()).await;
        both.push(seen);
    }
    assert_same(&both[0], &both[1]);
    assert!(both[1].values().any(|value| value.starts_with("403") && value.ends_with("RBAC: access denied")));
    assert!(both[1]["log"].contains("with-shadow / 200 - direct_response"));
}

#[tokio::test]
async fn routes_have_rules_of_their_own() {
    let only_get = "{ header: { name: ':method', string_match: { exact: GET } } }";
    let owner = |value: &str| {
        format!(
            ", rbac: {{ rules: {{ policies: {{ owner: {{ permissions: [{{ sourced_metadata: {{ metadata_matcher: \
             {{ filter: com.example, path: [{{ key: owner }}], value: {{ string_match: {{ exact: {value} }} }} }}, \
             metadata_source: ROUTE }} }}], principals: [{{ any: true }}] }} }} }} }}"
        )
    };
    let with_owner = |path: &str, fields: &str| {
        per_route(path, fields).replacen(
            "{ match",
            "{ metadata: { filter_metadata: { com.example: { owner: shop } } }, match",
            1,
        )
    };
    let off = ", typed_per_filter_config: { rbac: { '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, \
        disabled: true, config: {} } }";
    let routes = [
        per_route("/open", ""),
        direct("/off", off),
        per_route("/get", &format!(", rbac: {{ {}, track_per_rule_stats: true }}", allow(only_get, "{ any: true }"))),
        per_route("/shadow", ", rbac: { shadow_rules: {} }"),
        per_route("/unknown-owner", &owner("shop")),
        with_owner("/owned", &owner("shop")),
        with_owner("/owned-by-others", &owner("others")),
        direct("/", ""),
    ];
    let listener = web("web", &rbac("rules: {}"), &routes.join(", "), "");
    let text = bootstrap(&[listener], &[]);
    let workloads = Workloads::new();
    let mut both = Vec::new();
    for program in [envoy(), proxy::program()] {
        let proxy = workloads.start(program, &text).await;
        let mut seen = Seen::new();
        let paths = ["/open", "/off", "/get", "/shadow", "/unknown-owner", "/owned", "/owned-by-others", "/none"];
        for path in paths {
            for method in ["GET", "POST"] {
                ask(&proxy, "web", &mut seen, method, path, &[]).await;
            }
        }
        look_back(&proxy, &mut seen, paths.len() * 2).await;
        both.push(seen);
    }
    assert_same(&both[0], &both[1]);
}

/// As in Istio's sidecars, where one filter denies and another of the same name allows.
#[tokio::test]
async fn filters_may_share_a_name() {
    let header = |name: &str| format!("{{ header: {{ name: {name}, present_match: true }} }}");
    let deny = allow(&header("x-denied"), "{ any: true }").replacen("rules: {", "rules: { action: DENY,", 1);
    let filters = [rbac(&deny), rbac(&allow(&header("x-allowed"), "{ any: true }"))].join(", ");
    // What a route says of the name holds for both.
    let open = format!(", rbac: {{ {} }}", allow(&header("x-open"), "{ any: true }"));
    let routes = [per_route("/open", &open), per_route("/free", ""), direct("/", "")].join(", ");
    let text = bootstrap(&[web("web", &filters, &routes, "")], &[]);
    let workloads = Workloads::new();
    let mut both = Vec::new();
    for program in [envoy(), proxy::program()] {
        let proxy = workloads.start(program, &text).await;
        let mut seen = Seen::new();
        let sets: [&[(&str, &str)]; 5] = [
            &[],
            &[("x-allowed", "1")],
            &[("x-denied", "1")],
            &[("x-allowed", "1"), ("x-denied", "1")],
            &[("x-open", "1")],
        ];
        let paths = ["/", "/open", "/free"];
        for path in paths {
            for headers in sets {
                ask(&proxy, "web", &mut seen, "GET", path, headers).await;
            }
        }
        look_back(&proxy, &mut seen, paths.len() * sets.len()).await;
        both.push(seen);
    }
    assert_same(&both[0], &both[1]);
}

#[tokio::test]
async fn a_request_is_judged_by_the_certificate_of_its_connection() {
    let rules = allow(
        "{ url_path: { path: { prefix: /api } } }",
        "{ authenticated: { principal_name: { exact: 'spiffe://cluster.local/ns/shop/sa/web' } } }",
    );
    let listener = web("web", &rbac(&rules), &direct("/", ""), "").replacen(
        "{ filters: [",
        &format!("{{ name: tls{}, filters: [", super::mutual_tls(false)),
        1,
    );
    let workloads = Workloads::new();
    let proxy = workloads.start(proxy::program(), &bootstrap(&[listener], &[])).await;
    let address = proxy.listener("web").await;
    for (identity, path, status) in [
        (Some(&workloads.web), "/api", 200),
        (Some(&workloads.web), "/admin", 403),
        (Some(&workloads.batch), "/api", 403),
        (None, "/api", 403),
    ] {
        let stream = workloads.connect(address, identity).await;
        let response = h1::Client::over(Box::new(stream)).get(path).await;
        assert_eq!(response.status, status, "{path}");
    }
    proxy.stat_is("http.web.rbac.allowed", 1).await;
    proxy.stat_is("http.web.rbac.denied", 3).await;
}

#[tokio::test]
async fn a_refused_grpc_call_gets_a_status() {
    let workloads = Workloads::new();
    let listener = web("web", &rbac("rules: {}"), &direct("/", ""), "");
    let proxy = workloads.start(proxy::program(), &bootstrap(&[listener], &[])).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let response = client.request("POST", "/shop.Cart/Add", &[("content-type", "application/grpc")], b"").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("grpc-status"), Some("7"));
    assert_eq!(response.header("grpc-message"), Some("RBAC: access denied"));
}
