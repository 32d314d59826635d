//! The same rules in Envoy and in the proxy under test: who is let through, what the log says, what is counted.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::collections::BTreeMap;

use outrigger_tests::config::{bootstrap, cluster, listener};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, proxy};

use super::{Client, Workloads, chain, envoy, mutual_tls, rbac};

const MATCHER: &str = "'@type': type.googleapis.com/envoy.extensions.matching";

/// Name, and fields of the filter.
fn cases() -> Vec<(&'static str, String)> {
    let allow = |permissions: &str, principals: &str| {
        format!(
            "rules: {{ action: ALLOW, policies: {{ p: {{ permissions: [{permissions}], principals: [{principals}] }} }} }}"
        )
    };
    let permission = |wire: &str| allow(wire, "{ any: true }");
    let principal = |wire: &str| allow("{ any: true }", wire);
    let name = |matcher: &str| principal(&format!("{{ authenticated: {{ principal_name: {{ {matcher} }} }} }}"));
    let network =
        |kind: &str, network: &str| principal(&format!("{{ {kind}: {{ address_prefix: {network}, prefix_len: 8 }} }}"));
    let mtls = |fields: &str| {
        principal(&format!(
            "{{ custom: {{ name: m, typed_config: {{ '@type': \
             type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config, {fields} }} }} }}"
        ))
    };
    let action = |name: &str, action: &str| {
        format!(
            "action: {{ name: action, typed_config: {{ '@type': type.googleapis.com/envoy.config.rbac.v3.Action, \
             name: {name}, action: {action} }} }}"
        )
    };
    let single = |input: &str, value: &str| {
        format!("{{ single_predicate: {{ input: {{ name: i, typed_config: {{ {MATCHER}.{input} }} }}, {value} }} }}")
    };
    let tree = |predicate: &str, action: &str| {
        format!("matcher: {{ matcher_list: {{ matchers: [{{ predicate: {predicate}, on_match: {{ {action} }} }}] }} }}")
    };
    let ours = "value_match: { prefix: 'spiffe://cluster.local/ns/shop/' }";
    let uri = "common_inputs.ssl.v3.UriSanInput";
    let port = "common_inputs.network.v3.DestinationPortInput";
    let prefixes = format!(
        "matcher: {{ matcher_tree: {{ input: {{ name: i, typed_config: {{ {MATCHER}.{uri} }} }}, prefix_match_map: \
         {{ map: {{ 'spiffe://cluster.local/': {{ {} }}, 'spiffe://cluster.local/ns/jobs': {{ {} }} }} }} }}, \
         on_no_match: {{ {} }} }}",
        action("mine", "ALLOW"),
        action("of jobs", "DENY"),
        action("strangers", "DENY"),
    );
    let ip = "custom_match: { name: m, typed_config: { '@type': \
        type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip, stat_prefix: ip, \
        cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] } }";
    vec![
        ("nothing", "shadow_rules: {}".to_owned()),
        ("empty-allow", "rules: {}".to_owned()),
        ("empty-deny", "rules: { action: DENY }".to_owned()),
        ("empty-log", "rules: { action: LOG }".to_owned()),
        ("any", principal("{ any: true }")),
        ("exact-uri", name("exact: 'spiffe://cluster.local/ns/shop/sa/web'")),
        ("exact-uri-other-case", name("exact: 'SPIFFE://cluster.local/ns/shop/sa/web'")),
        ("exact-uri-ignoring-case", name("ignore_case: true, exact: 'SPIFFE://cluster.local/ns/shop/sa/web'")),
        ("prefix-uri", name("prefix: 'spiffe://cluster.local/ns/shop/'")),
        ("suffix-uri", name("suffix: /sa/batch")),
        ("contains", name("contains: /ns/")),
        ("regex-whole", name("safe_regex: { regex: 'spiffe://cluster.local/ns/shop/sa/[a-z]+' }")),
        ("regex-part", name("safe_regex: { regex: 'ns/shop' }")),
        ("regex-anything", name("safe_regex: { regex: '.*' }")),
        ("regex-something", name("safe_regex: { regex: '.+' }")),
        ("dns-name", name("exact: web.example.com")),
        ("subject", name("exact: CN=batch")),
        ("authenticated", principal("{ authenticated: {} }")),
        ("mtls-any", mtls("any_validated_client_certificate: true")),
        ("mtls-uri", mtls("san_matcher: { san_type: URI, matcher: { suffix: /sa/web } }")),
        ("mtls-dns", mtls("san_matcher: { san_type: DNS, matcher: { exact: web.example.com } }")),
        ("mtls-wrong-kind", mtls("san_matcher: { san_type: DNS, matcher: { suffix: /sa/web } }")),
        ("not", principal("{ not_id: { authenticated: { principal_name: { suffix: /sa/web } } } }")),
        ("and", principal("{ and_ids: { ids: [{ any: true }, { authenticated: { principal_name: { suffix: web } } }] } }")),
        ("or", principal("{ or_ids: { ids: [{ not_id: { any: true } }, { authenticated: {} }] } }")),
        ("direct-ip", network("direct_remote_ip", "127.0.0.0")),
        ("direct-ip-other", network("direct_remote_ip", "10.0.0.0")),
        ("remote-ip", network("remote_ip", "127.0.0.0")),
        ("source-ip", network("source_ip", "127.0.0.0")),
        ("ip-of-six", principal("{ direct_remote_ip: { address_prefix: '::', prefix_len: 0 } }")),
        ("destination-ip", permission("{ destination_ip: { address_prefix: 127.0.0.1, prefix_len: 32 } }")),
        ("destination-ip-other", permission("{ destination_ip: { address_prefix: 127.0.0.2, prefix_len: 32 } }")),
        ("destination-ports", permission("{ destination_port_range: { start: 1024, end: 65536 } }")),
        ("destination-ports-other", permission("{ destination_port_range: { start: 1, end: 1024 } }")),
        ("destination-port", permission("{ not_rule: { destination_port: 80 } }")),
        ("no-server-name", permission("{ requested_server_name: { exact: '' } }")),
        ("path", permission("{ url_path: { path: { prefix: / } } }")),
        ("no-path", permission("{ not_rule: { url_path: { path: { prefix: / } } } }")),
        ("metadata", permission("{ metadata: { filter: f, path: [{ key: k }], value: { present_match: true } } }")),
        (
            "metadata-inverted",
            permission("{ metadata: { filter: f, path: [{ key: k }], value: { present_match: true }, invert: true } }"),
        ),
        (
            "route-metadata-inverted",
            permission(
                "{ sourced_metadata: { metadata_matcher: { filter: f, path: [{ key: k }], value: { present_match: true }, \
                 invert: true }, metadata_source: ROUTE } }",
            ),
        ),
        ("filter-state", principal("{ not_id: { filter_state: { key: k, string_match: { exact: v } } } }")),
        (
            "second-policy",
            "rules: { action: DENY, policies: { a: { permissions: [{ destination_port: 80 }], principals: \
             [{ any: true }] }, 'b c': { permissions: [{ any: true }], principals: [{ authenticated: \
             { principal_name: { suffix: web } } }] }, c: { permissions: [{ any: true }], principals: [{ any: true }] } } }"
                .to_owned(),
        ),
        ("log", "rules: { action: LOG, policies: { l: { permissions: [{ any: true }], principals: [{ any: true }] } } }".to_owned()),
        ("tree-empty", "matcher: {}".to_owned()),
        ("tree-uri", tree(&single(uri, ours), &action("mine", "ALLOW"))),
        ("tree-uri-deny", tree(&single(uri, ours), &action("mine", "DENY"))),
        ("tree-uri-log", tree(&single(uri, ours), &action("mine", "LOG"))),
        ("tree-not", tree(&format!("{{ not_matcher: {} }}", single(uri, ours)), &action("strangers", "ALLOW"))),
        ("tree-dns", tree(&single("common_inputs.ssl.v3.DnsSanInput", "value_match: { exact: web.example.com }"), &action("d", "ALLOW"))),
        ("tree-subject", tree(&single("common_inputs.ssl.v3.SubjectInput", "value_match: { exact: CN=batch }"), &action("s", "ALLOW"))),
        ("tree-ip", tree(&single("common_inputs.network.v3.SourceIPInput", ip), &action("local", "ALLOW"))),
        ("tree-port", tree(&single(port, "value_match: { safe_regex: { google_re2: {}, regex: '[0-9]{4,5}' } }"), &action("port", "ALLOW"))),
        ("tree-over-rules", format!("rules: {{ action: DENY }}, matcher: {{ on_no_match: {{ {} }} }}", action("never", "DENY"))),
        ("tree-prefixes", prefixes),
    ]
}

/// How each client fared, what the log says of it, and the filter's counters.
type Seen = BTreeMap<String, String>;

async fn see(proxy: &Proxy, workloads: &Workloads, names: &[&str]) -> Seen {
    let mut seen = Seen::new();
    let mut connections = 0;
    for name in names {
        let address = proxy.listener(name).await;
        let clients: &[Client] =
            if name.ends_with("-plain") { &[Client::Plain] } else { &[Client::Anonymous, Client::Web, Client::Batch] };
        for client in clients {
            let passed = workloads.is_echoed(address, *client).await;
            seen.insert(format!("{name}: {client:?}"), if passed { "passed" } else { "refused" }.to_owned());
            connections += 1;
        }
    }
    for line in proxy.admin("/stats").await.text().lines().filter(|line| line.contains(".rbac.")) {
        // Counters that were never used are not always there.
        if let Some((name, value)) = line.split_once(": ").filter(|(_, value)| *value != "0") {
            seen.insert(name.to_owned(), value.to_owned());
        }
    }
    let mut lines = proxy.lines("log.txt", connections).await;
    lines.sort_unstable();
    for line in lines {
        let (name, rest) = line.split_once(' ').unwrap();
        let entry = seen.entry(format!("{name}: log")).or_default();
        entry.push_str(rest);
        entry.push('\n');
    }
    seen
}

#[tokio::test]
async fn verdicts_are_those_of_envoy() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let cases = cases();
    let plain: Vec<String> = cases.iter().map(|(name, _)| format!("{name}-plain")).collect();
    let mut listeners = Vec::new();
    for ((name, fields), plain) in cases.iter().zip(&plain) {
        listeners.push(listener(name, &[chain(name, &[rbac(name, fields)], &mutual_tls(false))], ""));
        listeners.push(listener(plain, &[chain(plain, &[rbac(plain, fields)], "")], ""));
    }
    let text = bootstrap(&listeners, &[cluster("peer", &[peer.port()])]);
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).chain(plain.iter().map(String::as_str)).collect();
    let theirs = workloads.start(envoy(), &text).await;
    let theirs = see(&theirs, &workloads, &names).await;
    let ours = workloads.start(proxy::program(), &text).await;
    let ours = see(&ours, &workloads, &names).await;
    let differing: Vec<String> = theirs
        .iter()
        .filter(|(key, value)| ours.get(*key) != Some(value))
        .map(|(key, value)| format!("{key}\n  Envoy: {value}\n  here: {:?}", ours.get(key)))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    let more: Vec<&String> = ours.keys().filter(|key| !theirs.contains_key(*key)).collect();
    assert!(more.is_empty(), "{more:?}");
    assert!(theirs.values().filter(|value| *value == "passed").count() > 80);
}
