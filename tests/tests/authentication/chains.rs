//! The configurations that are compared.

use outrigger_tests::tokens::Issuer;

use crate::setup::Setup;

pub const ALGORITHMS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "EdDSA",
];

/// A provider with the keys of `issuer`.
fn provider(name: &str, issuer: &Issuer, fields: &str) -> String {
    let keys = issuer.key_set(&ALGORITHMS);
    format!("{name}: {{ local_jwks: {{ inline_string: '{keys}' }}{fields} }}, ")
}

pub fn all(one: &Issuer, two: &Issuer) -> Vec<Setup> {
    let mut all = vec![
        single(one),
        Setup::new(
            "open",
            format!(
                "providers: {{ {} }}, rules: [{{ match: {{ prefix: / }}, requires: {{ provider_name: p }} }}]",
                provider("p", one, ", forward: true")
            ),
        ),
        // One key with and one without `alg`, none with `kid`.
        Setup::new(
            "keys",
            format!(
                "providers: {{ p: {{ local_jwks: {{ inline_string: '{}' }} }} }}, \
                 rules: [{{ match: {{ prefix: / }}, requires: {{ provider_name: p }} }}]",
                odd_keys(one)
            ),
        ),
        Setup::new(
            "empty",
            "providers: { p: { local_jwks: { inline_string: '' } } }, rules: [{ match: { prefix: / }, requires: { provider_name: p } }]",
        ),
        places(one),
        claims(one),
        limits(one),
        rules(one),
    ];
    all.extend(groups(one, two));
    all
}

fn single(one: &Issuer) -> Setup {
    let provider = provider(
        "p",
        one,
        ", issuer: 'https://one', audiences: ['https://svc/', other], payload_in_metadata: payload, \
         header_in_metadata: header, failed_status_in_metadata: failed, jwt_cache_config: {}",
    );
    Setup::new(
        "single",
        format!(
            "providers: {{ {provider} }}, rules: [{{ match: {{ prefix: / }}, requires: {{ provider_name: p }} }}], stat_prefix: extra"
        ),
    )
}

fn odd_keys(one: &Issuer) -> String {
    let mut with_algorithm = one.key("RS256", "");
    with_algorithm["alg"] = "RS256".into();
    let keys = [with_algorithm, one.key("ES256", ""), serde_json::json!({ "kty": "unknown" }), 7.into()];
    serde_json::json!({ "keys": keys }).to_string()
}

fn places(one: &Issuer) -> Setup {
    let providers = [
        provider(
            "p",
            one,
            ", issuer: 'https://one', from_headers: [{ name: X-Jwt }, { name: x-pre, value_prefix: jwt_value }, \
             { name: authorization, value_prefix: 'Token ' }], from_params: [tok, other], from_cookies: [ck]",
        ),
        provider("q", one, ", issuer: 'https://two', from_headers: [{ name: x-two }]"),
    ];
    Setup::new(
        "places",
        format!(
            "providers: {{ {} }}, rules: [{{ match: {{ prefix: /all }}, requires: {{ allow_missing: {{}} }} }}, \
             {{ match: {{ prefix: / }}, requires: {{ provider_name: p }} }}]",
            providers.concat()
        ),
    )
}

fn claims(one: &Issuer) -> Setup {
    let provider = provider(
        "p",
        one,
        ", forward: true, forward_payload_header: x-payload, pad_forward_payload_header: true, payload_in_metadata: payload, \
         normalize_payload_in_metadata: { space_delimited_claims: [scope, sub, absent] }, clear_route_cache: true, \
         claim_to_headers: [{ header_name: X-Sub, claim_name: sub }, { header_name: x-nested, claim_name: nested.deep.key }, \
         { header_name: x-dotted, claim_path: [{ key: 'http://a.b/c' }, { key: d }] }, { header_name: x-number, claim_name: number }, \
         { header_name: x-fraction, claim_name: fraction }, { header_name: x-negative, claim_name: negative }, \
         { header_name: x-flag, claim_name: flag }, { header_name: x-list, claim_name: list }, \
         { header_name: x-object, claim_name: object }, { header_name: x-null, claim_name: 'null' }, \
         { header_name: x-big, claim_name: big }, { header_name: x-twice, claim_name: sub }, { header_name: x-twice, claim_name: number }]",
    );
    Setup {
        routes: "{ match: { prefix: /, headers: [{ name: x-sub, string_match: { exact: admin } }] }, route: { cluster: two } }, \
                 { match: { prefix: /off }, route: { cluster: one }, typed_per_filter_config: { jwt: { \
                 '@type': $T/jwt_authn.v3.PerRouteConfig, disabled: true } } }, "
            .into(),
        ..Setup::new(
            "claims",
            format!(
                "providers: {{ {provider} }}, bypass_cors_preflight: true, rules: [{{ match: {{ prefix: /pass }} }}, \
                 {{ match: {{ prefix: /loose }}, requires: {{ allow_missing_or_failed: {{}} }} }}, \
                 {{ match: {{ prefix: / }}, requires: {{ provider_name: p }} }}]"
            ),
        )
    }
}

fn limits(one: &Issuer) -> Setup {
    let providers = [
        provider("ending", one, ", require_expiration: true, clock_skew_seconds: 600"),
        provider("short", one, ", max_lifetime: 10000s, require_expiration: true"),
        provider("subject", one, ", subjects: { prefix: 'spiffe://x/' }"),
    ];
    let rule = |name| format!("{{ match: {{ prefix: /{name} }}, requires: {{ provider_name: {name} }} }}, ");
    let rules: String = ["ending", "short", "subject"].map(rule).concat();
    Setup::new(
        "limits",
        format!("strip_failure_response: true, providers: {{ {} }}, rules: [{rules}]", providers.concat()),
    )
}

fn rules(one: &Issuer) -> Setup {
    let requires = "requires: { provider_name: p }";
    let state = "{ name: state, typed_config: { '@type': $T/set_filter_state.v3.Config, on_request_headers: [\
        { object_key: selector, factory_key: envoy.string, skip_if_empty: true, format_string: { omit_empty_values: true, \
        text_format_source: { inline_string: '%REQ(x-select)%' } } }] } }, ";
    Setup {
        before: state.into(),
        routes: "{ match: { path: /route-off }, route: { cluster: one }, typed_per_filter_config: { jwt: { \
                 '@type': $T/jwt_authn.v3.PerRouteConfig, disabled: true } } }, \
                 { match: { path: /route-named }, route: { cluster: one }, typed_per_filter_config: { jwt: { \
                 '@type': $T/jwt_authn.v3.PerRouteConfig, requirement_name: b } } }, \
                 { match: { path: /route-wrong }, route: { cluster: one }, typed_per_filter_config: { jwt: { \
                 '@type': $T/jwt_authn.v3.PerRouteConfig, requirement_name: nowhere } } }, "
            .into(),
        ..Setup::new(
            "rules",
            format!(
                "providers: {{ {} }}, requirement_map: {{ a: {{ provider_name: p }}, b: {{ provider_and_audiences: {{ provider_name: p, audiences: [special] }} }} }}, \
                 rules: [{{ match: {{ path: /exact }}, {requires} }}, {{ match: {{ prefix: /PreFix, case_sensitive: false }}, {requires} }}, \
                 {{ match: {{ safe_regex: {{ regex: '/re/[0-9]+' }} }}, {requires} }}, \
                 {{ match: {{ path_separated_prefix: /sep }}, {requires} }}, \
                 {{ match: {{ prefix: /headers, headers: [{{ name: x-need, string_match: {{ exact: 'yes' }} }}], \
                 query_parameters: [{{ name: q, string_match: {{ exact: v }} }}] }}, {requires} }}, \
                 {{ match: {{ prefix: /named }}, requirement_name: a }}, {{ match: {{ prefix: /audiences }}, requires: {{ provider_and_audiences: {{ \
                 provider_name: p, audiences: [special] }} }} }}, {{ match: {{ prefix: /nothing }}, requires: {{}} }}], \
                 filter_state_rules: {{ name: selector, requires: {{ strict: {{ provider_name: p }}, loose: {{ allow_missing_or_failed: {{}} }} }} }}",
                provider("p", one, ", issuer: 'https://one', audiences: [plain]")
            ),
        )
    }
}

/// Requirements of two issuers.
fn groups(one: &Issuer, two: &Issuer) -> Vec<Setup> {
    let providers = format!(
        "providers: {{ {}{} }}",
        provider(
            "a",
            one,
            ", issuer: 'https://one', payload_in_metadata: a, failed_status_in_metadata: fa, claim_to_headers: [{ header_name: x-a, claim_name: sub }]"
        ),
        provider(
            "b",
            two,
            ", issuer: 'https://two', from_headers: [{ name: x-b }], payload_in_metadata: b, failed_status_in_metadata: fb, claim_to_headers: [{ header_name: x-a, claim_name: sub }]"
        ),
    );
    let of = |name, requires: &str| {
        Setup::new(name, format!("{providers}, rules: [{{ match: {{ prefix: / }}, requires: {{ {requires} }} }}]"))
    };
    let list = |kind: &str, items: &str| format!("{kind}: {{ requirements: [{items}] }}");
    let both = "{ provider_name: a }, { provider_name: b }";
    let optional = |name: &str| {
        format!("{{ {} }}", list("requires_any", &format!("{{ provider_name: {name} }}, {{ allow_missing: {{}} }}")))
    };
    vec![
        of("any", &list("requires_any", both)),
        of("all", &list("requires_all", both)),
        of("missing", "allow_missing: {}"),
        of("failed", "allow_missing_or_failed: {}"),
        of("any-missing", &list("requires_any", &format!("{both}, {{ allow_missing: {{}} }}"))),
        of("any-failed", &list("requires_any", &format!("{both}, {{ allow_missing_or_failed: {{}} }}"))),
        of("any-bypass", &list("requires_any", "{ allow_missing: {} }, { allow_missing_or_failed: {} }")),
        of("a-and-maybe-b", &list("requires_all", &format!("{{ provider_name: a }}, {}", optional("b")))),
        // As a mesh generates it for two issuers.
        of(
            "mesh",
            &list(
                "requires_any",
                &format!("{both}, {{ {} }}", list("requires_all", &format!("{}, {}", optional("a"), optional("b")))),
            ),
        ),
    ]
}
