//! What is read of settings, and what is refused.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::oauth2::v3 as pb;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;
use outrigger_api::pb::envoy::r#type::matcher::v3::path_matcher::Rule;
use outrigger_api::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use outrigger_api::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher as WireMatcher};
use outrigger_api::pb::google::protobuf::Duration as WireDuration;
use pb::o_auth2_config::AuthType;

use super::{Afterwards, ClientAuth, OAuth2, SameSite, SigningAlgorithm};
use crate::context::{Context, NoEnvironment};
use crate::rejection::FieldPath;

fn named(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.into(), sds_config: None }
}

fn path(exact: &str) -> Option<PathMatcher> {
    let match_pattern = Some(MatchPattern::Exact(exact.into()));
    Some(PathMatcher { rule: Some(Rule::Path(WireMatcher { match_pattern, ..Default::default() })) })
}

fn wire() -> pb::OAuth2Config {
    pb::OAuth2Config {
        token_endpoint: Some(core::HttpUri {
            uri: "https://idp/token".into(),
            timeout: Some(WireDuration { seconds: 1, nanos: 0 }),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("idp".into())),
        }),
        authorization_endpoint: "https://idp/authorize?b=1&scope=x".into(),
        credentials: Some(pb::OAuth2Credentials {
            client_id: "me".into(),
            token_secret: Some(named("token")),
            token_formation: Some(pb::o_auth2_credentials::TokenFormation::HmacSecret(named("hmac"))),
            ..Default::default()
        }),
        redirect_uri: "%REQ(:scheme)%://%REQ(:authority)%/callback".into(),
        redirect_path_matcher: path("/callback"),
        signout_path: path("/signout"),
        ..Default::default()
    }
}

fn read(change: impl FnOnce(&mut pb::OAuth2Config)) -> Result<OAuth2, String> {
    let mut wire = wire();
    change(&mut wire);
    let read = OAuth2::parse(
        &Context::new(&NoEnvironment),
        &FieldPath::resource("listener", "l"),
        pb::OAuth2 { config: Some(wire) },
    );
    read.map(|read| (*read.unwrap()).clone()).map_err(|error| error.to_string())
}

#[test]
fn what_is_not_said_has_the_documented_defaults() {
    let read = read(|_| {}).unwrap();
    assert!(read.use_refresh_token && read.seals_tokens && read.keeps_access_token && !read.forward_bearer_token);
    assert_eq!((read.default_expires_in, read.default_refresh_token_expires_in), (0, 604_800));
    assert_eq!((read.csrf_expires_in, read.code_verifier_expires_in), (600, 600));
    assert!(matches!(&read.client_auth, ClientAuth::Body(secret) if *secret.name == *"token"));
    let names: Vec<_> = read.secrets().map(|secret| &*secret.name).collect();
    assert_eq!(names, ["token", "hmac"]);
    let cookie = &read.cookies.code_verifier;
    assert_eq!((&*cookie.name, cookie.same_site, &*cookie.path), ("CodeVerifier", SameSite::Unsaid, "/"));
    let without =
        OAuth2::parse(&Context::new(&NoEnvironment), &FieldPath::resource("listener", "l"), pb::OAuth2::default());
    assert!(without.unwrap().is_none());
}

#[test]
fn the_authorization_endpoint_says_what_every_request_says() {
    let read = read(|wire| {
        wire.auth_scopes = vec!["openid".into(), "a b".into()];
        wire.resources = vec!["https://a/b".into(), "c".into()];
    })
    .unwrap();
    let authorization = read.authorization;
    assert_eq!(&*authorization.address, "https://idp/authorize");
    let parameters: Vec<_> = authorization.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(parameters, ["b=1", "client_id=me", "response_type=code", "scope=openid%20a%20b"]);
    assert_eq!(&*authorization.resources, "&resource=https%3A%2F%2Fa%2Fb&resource=c");
}

#[test]
fn ways_to_authenticate() {
    let by = |auth_type: AuthType| read(|wire| wire.auth_type = auth_type as i32).unwrap().client_auth;
    assert!(matches!(by(AuthType::BasicAuth), ClientAuth::Basic(_)));
    let ClientAuth::Assertion(assertion) = by(AuthType::PrivateKeyJwt) else { panic!("not an assertion") };
    assert_eq!((assertion.algorithm, assertion.lifetime), (SigningAlgorithm::Rs256, 60));
    assert_eq!(&*assertion.audience, "https://idp/token");
    let certificate = read(|wire| {
        wire.auth_type = AuthType::TlsClientAuth as i32;
        wire.credentials.as_mut().unwrap().token_secret = None;
    });
    assert_eq!(certificate.unwrap().client_auth, ClientAuth::Certificate);
}

#[test]
fn signing_out_elsewhere_needs_openid() {
    let end = |wire: &mut pb::OAuth2Config| wire.end_session_endpoint = "https://idp/end".into();
    assert_eq!(read(end).unwrap_err(), "listener \"l\": config.end_session_endpoint: needs openid among auth_scopes");
    let read = read(|wire| {
        end(wire);
        wire.auth_scopes = vec!["openid".into()];
        wire.post_logout_redirect_uri =
            Some(pb::PostLogoutRedirectUri { config: Some(pb::post_logout_redirect_uri::Config::Disabled(true)) });
    });
    assert!(matches!(read.unwrap().end_session.unwrap().afterwards, Afterwards::Untold));
}

#[test]
fn what_cannot_be_done_is_refused_by_path() {
    let refused = |change: fn(&mut pb::OAuth2Config)| read(change).unwrap_err();
    let at = |rest: &str| format!("listener \"l\": config.{rest}");
    assert_eq!(refused(|wire| wire.token_endpoint = None), at("token_endpoint: is required"));
    assert_eq!(
        refused(|wire| wire.authorization_endpoint = "idp/authorize".into()),
        at("authorization_endpoint: \"idp/authorize\" is not a URL, expected http(s)://host/path")
    );
    assert_eq!(refused(|wire| wire.redirect_uri.clear()), at("redirect_uri: must not be empty"));
    assert_eq!(refused(|wire| wire.signout_path = None), at("signout_path: is required"));
    assert_eq!(
        refused(|wire| wire.credentials.as_mut().unwrap().token_secret = None),
        at("credentials.token_secret: is required")
    );
    assert_eq!(
        refused(|wire| wire.credentials.as_mut().unwrap().token_formation = None),
        at("credentials.hmac_secret: is required")
    );
    assert_eq!(
        refused(|wire| (wire.forward_bearer_token, wire.preserve_authorization_header) = (true, true)),
        at("preserve_authorization_header: must not be set together with forward_bearer_token")
    );
    assert_eq!(
        refused(|wire| {
            wire.forward_bearer_token = true;
            wire.forward_id_token = Some(pb::OAuth2TokenForwarding { header: "Authorization".into() });
        }),
        at("forward_id_token: must not name authorization together with forward_bearer_token")
    );
    assert_eq!(
        refused(|wire| {
            let cookie = pb::CookieConfig { path: "x".into(), ..Default::default() };
            let bearer_token_cookie_config = Some(cookie);
            wire.cookie_configs = Some(pb::CookieConfigs { bearer_token_cookie_config, ..Default::default() });
        }),
        at("cookie_configs.bearer_token_cookie_config.path: \"x\" does not begin with \"/\"")
    );
    assert_eq!(
        refused(|wire| {
            let names = pb::o_auth2_credentials::CookieNames { id_token: "OauthHMAC".into(), ..Default::default() };
            wire.credentials.as_mut().unwrap().cookie_names = Some(names);
        }),
        at("credentials.cookie_names: \"OauthHMAC\" is the name of two cookies")
    );
    assert_eq!(
        refused(|wire| wire.credentials.as_mut().unwrap().cookie_domain = "a;b".into()),
        at("credentials.cookie_domain: \"a;b\" has a character that cannot stand in a cookie")
    );
}
