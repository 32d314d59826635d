//! Lua filters whose programs need no interpreter, beside Envoy, which has one: those that do nothing, and the check of hosts
//! that Contour puts into each virtual host with TLS.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{all_to, bootstrap, chain, cluster, http, listener, routes};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post, same};
use outrigger_tests::{Upstream, proxy};

const PLACEHOLDER: (&str, &str, &str) =
    ("envoy.filters.http.lua", "lua.v3.Lua", "default_source_code: { inline_string: '-- for routes to replace' }");

/// As Contour writes it, for the host `a.example`.
const CHECK: &str = "\"function envoy_on_request(request_handle)\\n local headers = request_handle:headers()\\n \
    local host = string.lower(headers:get(\\\":authority\\\"))\\n local target = \\\"a.example\\\"\\n\\n \
    s, e = string.find(host, \\\":\\\", 1, true)\\n if s ~= nil then\\n host = string.sub(host, 1, s - 1)\\n end\\n\\n \
    if host ~= target then\\n request_handle:respond(\\n {[\\\":status\\\"] = \\\"421\\\"},\\n \
    string.format(\\\"misdirected request to %q\\\", host)\\n )\\n end\\nend\\n\"";

const PER_ROUTE: &str = "{ match: { prefix: /off }, route: { cluster: one }, typed_per_filter_config: { \
    envoy.filters.http.lua: { '@type': $T/lua.v3.LuaPerRoute, disabled: true } } }, \
    { match: { prefix: /named }, route: { cluster: one }, typed_per_filter_config: { \
    envoy.filters.http.lua: { '@type': $T/lua.v3.LuaPerRoute, name: empty } } }, \
    { match: { prefix: /unknown }, route: { cluster: one }, typed_per_filter_config: { \
    envoy.filters.http.lua: { '@type': $T/lua.v3.LuaPerRoute, name: nobody } } }, ";

const CASES: &[Case] = &[
    get("a placeholder", "placeholder", "/", &[]),
    post("a placeholder with a body", "placeholder", "/", &[]),
    get("the right host", "check", "/", &[("host", "a.example")]),
    get("the right host in another case, with a port", "check", "/", &[("host", "A.Example:8443")]),
    get("another host", "check", "/x", &[("host", "b.example")]),
    get("another host with a port", "check", "/x", &[("host", "B.example:1")]),
    post("another host, with a body", "check", "/x", &[("host", "a.example.org")]),
    get("an address of IPv6", "check", "/x", &[("host", "[::1]:80")]),
    get("switched off by a route", "check", "/off", &[("host", "b.example")]),
    get("replaced by a program with a name", "check", "/named", &[("host", "b.example")]),
    get("replaced by a name that nobody has", "check", "/unknown", &[("host", "b.example")]),
];

const INTENDED: Intended = &[];

#[tokio::test]
async fn programs_that_are_known_do_what_envoy_does() {
    let check = format!(
        "default_source_code: {{ inline_string: {CHECK} }}, source_codes: {{ empty: {{ inline_string: '' }} }}"
    );
    let check: &'static str = Box::leak(check.into_boxed_str());
    let filters: &'static [_] = Box::leak(Box::new([("envoy.filters.http.lua", "lua.v3.Lua", check)]));
    let chains =
        [chain_of("placeholder", &[PLACEHOLDER], ""), Chain { routes: PER_ROUTE, ..chain_of("check", filters, "") }];
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = chains.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()])]);
    same(&bootstrap, &chains, CASES, INTENDED).await;
}

#[tokio::test]
async fn other_programs_are_refused() {
    let filter = "{ name: lua, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, \
        default_source_code: { inline_string: 'function envoy_on_request(handle) end' } } }";
    let manager = format!("{}, {{ name: envoy.filters.http.router", filter);
    let manager = http("web", &routes(&all_to("one"))).replacen("{ name: envoy.filters.http.router", &manager, 1);
    let text = bootstrap(&[listener("web", &[chain(&manager, "")], "")], &[cluster("one", &[1])]);
    let output = std::process::Command::new(proxy::program())
        .args(["--mode", "validate", "--config-yaml", &text])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let expected = "http_filters[0].typed_config.default_source_code: is a Lua program, which is not supported";
    assert!(told.contains(expected), "{told}");
}
