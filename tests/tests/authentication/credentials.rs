//! Passwords and API keys: the configurations and requests that are compared.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::same_as_envoy::{Case, case};
use crate::setup::Setup;

/// Hashes of `secret` and `other`.
const USERS: &str = "\"user:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\\n# more\\n\\nother:{SHA}0JQeaNqPOBUf+Gph/Fn3xc+fyqI=\"";

pub fn chains() -> Vec<Setup> {
    let of =
        |name, filter: String, routes: &str| Setup { other: filter, routes: routes.into(), ..Setup::new(name, "") };
    let basic = |fields: &str| {
        format!(
            "name: basic, typed_config: {{ '@type': $T/basic_auth.v3.BasicAuth, users: {{ inline_string: {USERS} }}{fields} }}"
        )
    };
    let keys =
        |fields: &str| format!("name: keys, typed_config: {{ '@type': $T/api_key_auth.v3.ApiKeyAuth, {fields} }}");
    let credentials = "credentials: [{ key: one, client: first }, { key: 'two words', client: second }]";
    vec![
        of(
            "basic",
            basic(", forward_username_header: X-User, emit_dynamic_metadata: true"),
            "{ match: { path: /route }, route: { cluster: one }, typed_per_filter_config: { basic: { \
             '@type': $T/basic_auth.v3.BasicAuthPerRoute, users: { inline_string: 'third:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=' } } } }, ",
        ),
        of("basic-header", basic(", authentication_header: X-Auth"), ""),
        of(
            "basic-missing",
            basic(", forward_username_header: x-user, allow_missing: true, emit_dynamic_metadata: true"),
            "",
        ),
        of(
            "keys",
            keys(&format!(
                "{credentials}, key_sources: [{{ header: X-Key }}, {{ query: key, cookie: unused }}, {{ cookie: ck }}], \
                 forwarding: {{ header: x-client, hide_credentials: true }}"
            )),
            "{ match: { path: /only-first }, route: { cluster: one }, typed_per_filter_config: { keys: { \
             '@type': $T/api_key_auth.v3.ApiKeyAuthPerRoute, allowed_clients: [first] } } }, \
             { match: { path: /own }, route: { cluster: one }, typed_per_filter_config: { keys: { \
             '@type': $T/api_key_auth.v3.ApiKeyAuthPerRoute, credentials: [{ key: three, client: third }], key_sources: [{ header: x-other }], \
             forwarding: {} } } }, ",
        ),
        of("keys-shown", keys(&format!("{credentials}, key_sources: [{{ header: authorization }}]")), ""),
        of("keys-none", keys("key_sources: [{ header: x }]"), ""),
        of("keys-nowhere", keys(credentials), ""),
    ]
}

pub fn cases() -> Vec<Case> {
    let of = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let (good, other, bad) = (of("user:secret"), of("other:other"), of("user:other"));
    let mut all = Vec::new();
    let mut add = |listener: &'static str, name: &str, target: &str, headers: &[(&str, &str)]| {
        all.push(case(format!("{listener}: {name}"), listener, target, headers));
    };
    add("basic", "good", "/", &[("authorization", &good), ("x-user", "forged")]);
    add("basic", "other user", "/", &[("authorization", &other)]);
    add(
        "basic",
        "without padding",
        "/",
        &[("authorization", &format!("Basic {}", STANDARD_NO_PAD.encode("user:secret")))],
    );
    add("basic", "wrong password", "/", &[("authorization", &bad)]);
    add("basic", "unknown user", "/", &[("authorization", &of("nobody:secret"))]);
    add("basic", "no user", "/", &[("authorization", &of(":secret"))]);
    add("basic", "no password", "/", &[("authorization", &of("user:"))]);
    add("basic", "no colon", "/", &[("authorization", &of("user"))]);
    add("basic", "no base64", "/", &[("authorization", "Basic !!!")]);
    add("basic", "empty", "/", &[("authorization", "Basic ")]);
    add("basic", "lower case", "/", &[("authorization", &good.replace("Basic", "basic"))]);
    add("basic", "other scheme", "/", &[("authorization", "Bearer x")]);
    add("basic", "missing", "/path?q", &[]);
    add("basic", "missing: gRPC", "/", &[("content-type", "application/grpc")]);
    add("basic", "of the route", "/route", &[("authorization", &of("third:secret"))]);
    add("basic", "not of the route", "/route", &[("authorization", &good)]);
    add("basic-header", "good", "/", &[("x-auth", &good)]);
    add("basic-header", "usual header", "/", &[("authorization", &good)]);
    add("basic-missing", "missing", "/", &[]);
    add("basic-missing", "forged name", "/", &[("x-user", "admin")]);
    add("basic-missing", "other scheme", "/", &[("authorization", "Bearer x")]);
    add("basic-missing", "good", "/", &[("authorization", &good)]);
    add("basic-missing", "wrong password", "/", &[("authorization", &bad)]);
    add("keys", "header", "/", &[("x-key", "one"), ("x-client", "forged")]);
    add("keys", "bearer", "/", &[("x-key", "Bearer two words")]);
    add("keys", "query", "/p?key=one", &[]);
    add("keys", "query with escapes", "/p?key=two%20words", &[]);
    add("keys", "cookie", "/", &[("cookie", "a=b; ck=one")]);
    add("keys", "only cookie", "/", &[("cookie", "ck=one")]);
    add("keys", "header before query", "/p?key=one", &[("x-key", "bad")]);
    add("keys", "empty header", "/p?key=one", &[("x-key", "")]);
    add("keys", "unknown", "/", &[("x-key", "three")]);
    add("keys", "missing", "/", &[]);
    add("keys", "allowed client", "/only-first", &[("x-key", "one")]);
    add("keys", "other client", "/only-first", &[("x-key", "two words")]);
    add("keys", "of the route", "/own", &[("x-other", "three")]);
    add("keys", "not of the route", "/own", &[("x-other", "one")]);
    add("keys", "not where the route says", "/own", &[("x-key", "three")]);
    add("keys-shown", "good", "/", &[("authorization", "Bearer one")]);
    add("keys-shown", "missing: gRPC", "/", &[("content-type", "application/grpc")]);
    add("keys-none", "any", "/", &[("x", "one")]);
    add("keys-nowhere", "any", "/", &[("x", "one")]);
    all
}
