//! Listeners with the filter, and what stands around them.

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{AuthorizationServer, Upstream};

/// Each listener, with its prefix of stats.
pub const LISTENERS: [&str; 12] = [
    "plain",
    "dressed",
    "matched",
    "open",
    "bounded",
    "patient",
    "basic",
    "certificate",
    "asserted",
    "routed",
    "dead",
    "unknown",
];

/// What all of them say, unless they say otherwise.
fn settings(token_cluster: &str, more: &str, credentials: &str) -> String {
    format!(
        "token_endpoint: {{ uri: 'http://idp/token?x=1', cluster: {token_cluster}, timeout: 60s }}, \
         authorization_endpoint: 'https://idp.example.com/authorize?foo=bar', \
         redirect_uri: 'https://%REQ(:authority)%/callback', \
         redirect_path_matcher: {{ path: {{ exact: /callback }} }}, signout_path: {{ path: {{ exact: /signout }} }}, \
         credentials: {{ client_id: me, token_secret: {{ name: token }}, hmac_secret: {{ name: hmac }}{credentials} }}{more}"
    )
}

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3";

fn listener(name: &str, config: &str, host: &str) -> String {
    let log = config::access_log_of(&format!("{name}.log"), "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let config = if config.is_empty() { String::new() } else { format!(", config: {{ {config} }}") };
    let manager = format!(
        "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {name}, http_filters: [{{ name: sign-in, typed_config: {{ '@type': {TYPES}.OAuth2{config} }} }}, \
         {{ name: router, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}], \
         route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{}]{host} }}] }}{log} }} }}",
        all_to("app")
    );
    config::listener(name, &[chain(&manager, "")], "")
}

const PLAIN: &str = "";
const DRESSED: &str = ", forward_bearer_token: true, forward_id_token: { header: x-id }, auth_scopes: [openid, 'a b'], \
    resources: ['https://a/b', c], end_session_endpoint: 'https://idp.example.com/end', stat_prefix: dressed_, \
    csrf_token_expires_in: 100s, code_verifier_token_expires_in: 200s, default_refresh_token_expires_in: 1000s, \
    cookie_configs: { bearer_token_cookie_config: { same_site: STRICT, path: /p }, \
    oauth_hmac_cookie_config: { same_site: LAX }, oauth_expires_cookie_config: { same_site: NONE, partitioned: true }, \
    oauth_nonce_cookie_config: { path: /n }, code_verifier_cookie_config: { partitioned: true } }";
const DRESSED_CREDENTIALS: &str = ", cookie_domain: example.com, cookie_names: { bearer_token: Token, oauth_hmac: Proof, \
    oauth_expires: End, id_token: __Secure-Id, refresh_token: Again, code_verifier: Verifier }";
const MATCHED: &str = ", pass_through_matcher: [{ name: x-pass, present_match: true }], \
    deny_redirect_matcher: [{ name: x-ajax, string_match: { exact: 'yes' } }], \
    allow_failed_matcher: [{ name: x-anybody, present_match: true }], use_refresh_token: true";
const OPEN: &str = ", disable_token_encryption: true, disable_id_token_set_cookie: true, \
    disable_refresh_token_set_cookie: true, use_refresh_token: false, preserve_authorization_header: true, \
    default_expires_in: 60s";
const BOUNDED: &str = ", allowed_redirect_domains: ['*.example.com', other.org], \
    original_request_uri: 'https://%REQ(x-forwarded-host?:authority)%', \
    auth_scopes: [openid], end_session_endpoint: 'https://idp.example.com/end', \
    post_logout_redirect_uri: { uri: 'https://%REQ(:authority)%/bye' }";
const PATIENT: &str = ", retry_policy: { retry_on: 5xx, num_retries: 2, retry_back_off: { base_interval: 0.001s, \
     max_interval: 60s } }";

/// Everything on one proxy.
pub fn configuration(
    app: &Upstream,
    server: &AuthorizationServer,
    closed: &ClosedPort,
    key: &str,
    runtime: &str,
) -> String {
    let of = |name: &str, config: &str, credentials: &str| listener(name, &settings("idp", config, credentials), "");
    let assertion =
        "auth_type: PRIVATE_KEY_JWT, private_key_jwt_config: { signing_algorithm: ES256, assertion_lifetime: 90s }";
    let asserted = settings("idp", &format!(", {assertion}"), "").replace("{ name: token }", "{ name: key }");
    let certificate =
        settings("idp", ", auth_type: TLS_CLIENT_AUTH", "").replace("token_secret: { name: token }, ", "");
    let route = format!(
        ", typed_per_filter_config: {{ sign-in: {{ '@type': {TYPES}.OAuth2PerRoute, config: {{ {} }} }} }}",
        settings("idp", ", forward_bearer_token: true", "")
    );
    let listeners = [
        of("plain", PLAIN, ""),
        of("dressed", DRESSED, DRESSED_CREDENTIALS),
        of("matched", MATCHED, ""),
        of("open", OPEN, ""),
        of("bounded", BOUNDED, ""),
        of("patient", PATIENT, ""),
        of("basic", ", auth_type: BASIC_AUTH", ""),
        listener("certificate", &certificate, ""),
        listener("asserted", &asserted, ""),
        listener("routed", "", &route),
        listener("dead", &settings("dead", MATCHED, ""), ""),
        listener("unknown", &settings("nowhere", "", ""), ""),
    ];
    let clusters = [cluster("app", &[app.port()]), cluster("idp", &[server.port()]), cluster("dead", &[closed.port()])];
    let indented: String = key.trim_end().lines().map(|line| format!("\n          {line}")).collect();
    format!(
        "{}  secrets:\n  - {{ name: token, generic_secret: {{ secret: {{ inline_string: 't&k n' }} }} }}\n  \
         - {{ name: hmac, generic_secret: {{ secret: {{ inline_string: hmackey }} }} }}\n  \
         - name: key\n    generic_secret:\n      secrets:\n        key_id: {{ inline_string: one }}\n        \
         private_key:\n          inline_string: |{}{runtime}\n",
        bootstrap(&listeners, &clusters),
        indented.replace("\n          ", "\n            "),
    )
}
