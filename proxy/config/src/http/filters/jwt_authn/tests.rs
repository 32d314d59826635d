use std::collections::HashMap;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::route::v3 as route;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;
use pb::jwt_provider::JwksSourceSpecifier;
use pb::jwt_requirement::RequiresType;

use super::*;
use crate::context::NoEnvironment;
use crate::http_uri::FetchRetries;

fn parse(wire: pb::JwtAuthentication) -> Result<JwtAuthn, String> {
    let context = Context::new(&NoEnvironment);
    JwtAuthn::parse(&context, &FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
}

fn keys(text: &str) -> Option<JwksSourceSpecifier> {
    let specifier = Some(core::data_source::Specifier::InlineString(text.into()));
    Some(JwksSourceSpecifier::LocalJwks(core::DataSource { specifier, ..Default::default() }))
}

fn provider() -> pb::JwtProvider {
    let jwks_source_specifier = keys(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#);
    pb::JwtProvider { jwks_source_specifier, ..Default::default() }
}

fn with_provider(provider: pb::JwtProvider) -> pb::JwtAuthentication {
    pb::JwtAuthentication { providers: HashMap::from([("p".into(), provider)]), ..Default::default() }
}

fn requires(kind: RequiresType) -> pb::JwtRequirement {
    pb::JwtRequirement { requires_type: Some(kind) }
}

fn with_rule(rule: pb::requirement_rule::RequirementType) -> pb::JwtAuthentication {
    let path_specifier = Some(route::route_match::PathSpecifier::Prefix("/".into()));
    let r#match = Some(route::RouteMatch { path_specifier, ..Default::default() });
    let rules = vec![pb::RequirementRule { r#match, requirement_type: Some(rule) }];
    pb::JwtAuthentication { rules, ..with_provider(provider()) }
}

#[test]
fn a_provider_has_defaults() {
    let settings = parse(with_provider(pb::JwtProvider {
        jwt_cache_config: Some(pb::JwtCacheConfig::default()),
        forward_payload_header: "X-Payload".into(),
        claim_to_headers: vec![pb::JwtClaimToHeader {
            header_name: "X-Sub".into(),
            claim_name: "a.b".into(),
            claim_path: Vec::new(),
        }],
        ..provider()
    }))
    .unwrap();
    let provider = &settings.providers[0];
    let bearer = HeaderLocation { name: "authorization".into(), value_prefix: "Bearer ".into() };
    assert_eq!(provider.from_headers, [bearer]);
    assert_eq!(provider.from_params, ["access_token".into()]);
    assert_eq!(provider.clock_skew_s, 60);
    assert_eq!(provider.lifetime, Lifetime::Any);
    assert_eq!(provider.cache, Some(JwtCache { tokens: 100, max_token_bytes: 4096 }));
    assert_eq!(provider.claim_headers[0].path, ["a", "b"]);
    assert_eq!(settings.reserved_headers, ["x-payload".into(), "x-sub".into()]);
}

#[test]
fn own_places_replace_the_usual_ones() {
    let settings = parse(with_provider(pb::JwtProvider { from_cookies: vec!["c".into()], ..provider() })).unwrap();
    let provider = &settings.providers[0];
    assert!(provider.from_headers.is_empty() && provider.from_params.is_empty());
}

#[test]
fn a_limit_on_life_comes_before_having_one() {
    let max_lifetime = Some(WireDuration { seconds: 5, nanos: 0 });
    let settings =
        parse(with_provider(pb::JwtProvider { max_lifetime, require_expiration: true, ..provider() })).unwrap();
    assert_eq!(settings.providers[0].lifetime, Lifetime::Below(std::time::Duration::from_secs(5)));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    use pb::requirement_rule::RequirementType::{RequirementName, Requires};
    let claim = |name: &str, path: &str| {
        let path = (!path.is_empty()).then(|| pb::jwt_claim_to_header::PathSegment { key: path.into() });
        pb::JwtClaimToHeader {
            header_name: "x".into(),
            claim_name: name.into(),
            claim_path: path.into_iter().collect(),
        }
    };
    let claims = |claim| with_provider(pb::JwtProvider { claim_to_headers: vec![claim], ..provider() });
    let list = |requirements| RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements });
    let named = |name: &str| requires(RequiresType::ProviderName(name.into()));
    let header = |name: &str| pb::JwtHeader { name: name.into(), value_prefix: String::new() };
    for (wire, expected) in [
        (
            with_provider(pb::JwtProvider { jwks_source_specifier: None, ..provider() }),
            "providers[\"p\"]: needs one of remote_jwks, local_jwks",
        ),
        (
            with_provider(pb::JwtProvider { jwks_source_specifier: keys("x"), ..provider() }),
            "providers[\"p\"].local_jwks: Provider 'p' in jwt_authn config has invalid local jwks: Jwks is an invalid JSON",
        ),
        (
            with_provider(pb::JwtProvider { from_headers: vec![header(":path")], ..provider() }),
            "providers[\"p\"].from_headers[0].name: \":path\" must not be a pseudo header",
        ),
        (
            claims(claim("", "")),
            "providers[\"p\"].claim_to_headers[0]: must have exactly one of claim_name and claim_path",
        ),
        (
            claims(claim("a", "b")),
            "providers[\"p\"].claim_to_headers[0]: must have exactly one of claim_name and claim_path",
        ),
        (
            with_rule(Requires(named("q"))),
            "rules[0].requires.provider_name: Required provider ['q'] is not configured.",
        ),
        (
            with_rule(Requires(requires(list(vec![named("p")])))),
            "rules[0].requires.requires_any.requirements: has 1 items, expected two or more",
        ),
        (
            with_rule(Requires(requires(list(vec![named("p"), named("q")])))),
            "rules[0].requires.requires_any.requirements[1].provider_name: Required provider ['q'] is not configured.",
        ),
        (
            with_rule(RequirementName("q".into())),
            "rules[0].requirement_name: Wrong requirement_name: q. It should be one of []",
        ),
        (
            with_rule(Requires(requires(RequiresType::ExtractOnlyWithoutValidation(Default::default())))),
            "rules[0].requires.extract_only_without_validation: is not supported",
        ),
    ] {
        assert_eq!(parse(wire).unwrap_err(), format!("listener \"l\": {expected}"));
    }
}

#[test]
fn a_condition_that_would_let_requests_past_is_refused() {
    let mut wire = with_rule(pb::requirement_rule::RequirementType::Requires(pb::JwtRequirement::default()));
    wire.rules[0].r#match.as_mut().unwrap().grpc = Some(Default::default());
    assert_eq!(parse(wire).unwrap_err(), "listener \"l\": rules[0].match.grpc: is not supported");
}

fn remote(change: impl FnOnce(&mut pb::RemoteJwks)) -> Result<RemoteJwks, String> {
    let http_upstream_type = Some(core::http_uri::HttpUpstreamType::Cluster("c".into()));
    let timeout = Some(WireDuration { seconds: 1, nanos: 0 });
    let http_uri = Some(core::HttpUri { uri: "https://h:1/jwks?x".into(), timeout, http_upstream_type });
    let mut wire = pb::RemoteJwks { http_uri, ..Default::default() };
    change(&mut wire);
    RemoteJwks::parse(&FieldPath::resource("listener", "l"), "p", wire).map_err(|rejection| rejection.to_string())
}

#[test]
fn remote_keys_have_defaults() {
    let keys = remote(|_| {}).unwrap();
    assert_eq!((&*keys.authority, &*keys.path, &*keys.cluster), ("h:1", "/jwks?x", "c"));
    assert_eq!(keys.cache_duration.as_secs(), 600);
    assert_eq!((keys.in_background, keys.retries), (None, None));
    let keys = remote(|wire| {
        wire.async_fetch = Some(pb::JwksAsyncFetch::default());
        wire.retry_policy = Some(core::RetryPolicy { retry_on: "5xx".into(), ..Default::default() });
    })
    .unwrap();
    let second = std::time::Duration::from_secs(1);
    assert_eq!(keys.in_background, Some(AsyncFetch { fast_listener: false, failed_refetch: second }));
    let retries = FetchRetries { count: 1, base_interval: second, max_interval: second * 10 };
    assert_eq!(keys.retries, Some(retries));
}

#[test]
fn where_remote_keys_come_from_is_checked() {
    let uri = |text: &str| remote(|wire| wire.http_uri.as_mut().unwrap().uri = text.into());
    assert_eq!(uri("http://h").unwrap().path, "/");
    assert_eq!(uri("http://h?q").unwrap().path, "/?q");
    for bad in ["nonsense", "http://", "http:///x", "http://h/a b", "ftp://h/"] {
        let expected = format!("listener \"l\": http_uri.uri: Provider 'p' has an invalid URI: '{bad}'");
        assert_eq!(uri(bad).unwrap_err(), expected);
    }
    let zero = Some(WireDuration::default());
    assert!(remote(|wire| wire.cache_duration = zero).unwrap_err().contains("cache_duration"));
    let backwards = core::BackoffStrategy {
        base_interval: Some(WireDuration { seconds: 2, nanos: 0 }),
        max_interval: Some(WireDuration { seconds: 1, nanos: 0 }),
    };
    let retry_policy = core::RetryPolicy { retry_back_off: Some(backwards), ..Default::default() };
    let error = remote(|wire| wire.retry_policy = Some(retry_policy)).unwrap_err();
    assert!(error.contains("retry_policy.retry_back_off.max_interval"), "{error}");
}

#[test]
fn a_route_switches_off_or_names_a_requirement() {
    use pb::per_route_config::RequirementSpecifier as Wire;
    let read = |specifier| {
        let wire = pb::PerRouteConfig { requirement_specifier: specifier };
        JwtRoute::parse(&FieldPath::resource("route", "r"), wire).map_err(|rejection| rejection.to_string())
    };
    assert_eq!(read(Some(Wire::Disabled(true))), Ok(JwtRoute::Disabled));
    assert_eq!(read(Some(Wire::RequirementName("a".into()))), Ok(JwtRoute::Requirement("a".into())));
    assert_eq!(read(Some(Wire::Disabled(false))).unwrap_err(), "route \"r\": disabled: must be true");
    assert!(read(Some(Wire::RequirementName(String::new()))).is_err());
    assert!(read(None).is_err());
}
