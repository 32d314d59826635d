//! Reading the settings (`OAuth2Config`).
//!
//! Owns what may stand together. Never looks at a request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::oauth2::v3 as pb;
use outrigger_api::pb::envoy::r#type::matcher::v3::PathMatcher;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use super::{Afterwards, Assertion, AuthorizationEndpoint, ClientAuth, Cookies, EndSession, OAuth2, SigningAlgorithm};
use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::http::filters::basic_auth::plain_header;
use crate::http_uri::{CallRetries, HttpTarget, percent_encoded};
use crate::matching::StringMatcher;
use crate::rbac::url_path;
use crate::rejection::{FieldPath, Parsed};
use crate::route::header_matcher;
use crate::tls::SecretRef;
use crate::wire;

impl OAuth2 {
    /// Reads the settings of the chain; `None` if only routes have any.
    pub(in crate::http::filters) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::OAuth2,
    ) -> Parsed<Option<Arc<Self>>> {
        let pb::OAuth2 { config } = wire;
        config.map(|wire| Self::read(context, &at.field("config"), wire).map(Arc::new)).transpose()
    }

    /// Reads the settings of a route.
    pub(in crate::http::filters) fn parse_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::OAuth2PerRoute,
    ) -> Parsed<Arc<Self>> {
        let pb::OAuth2PerRoute { config } = wire;
        let at = at.field("config");
        match config {
            Some(wire) => Self::read(context, &at, wire).map(Arc::new),
            None => Err(at.reject("is required")),
        }
    }

    fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::OAuth2Config) -> Parsed<Self> {
        decide!(wire, at, pb::OAuth2Config as "envoy.extensions.filters.http.oauth2.v3.OAuth2Config" {
            implemented: token_endpoint, retry_policy, authorization_endpoint, end_session_endpoint,
                post_logout_redirect_uri, credentials, redirect_uri, redirect_path_matcher, signout_path,
                forward_bearer_token, forward_id_token, preserve_authorization_header, pass_through_matcher,
                auth_scopes, resources, auth_type, use_refresh_token, default_expires_in, deny_redirect_matcher,
                default_refresh_token_expires_in, disable_id_token_set_cookie, disable_access_token_set_cookie,
                disable_refresh_token_set_cookie, cookie_configs, stat_prefix, csrf_token_expires_in,
                code_verifier_token_expires_in, disable_token_encryption, allow_failed_matcher,
                original_request_uri, allowed_redirect_domains, use_access_token_expiry_for_id_token_cookie,
                private_key_jwt_config;
            no_effect: ;
            unsupported: ;
        });
        let token_endpoint = HttpTarget::parse(&at.field("token_endpoint"), token_endpoint)?;
        let credentials_at = at.field("credentials");
        let Some(wire) = credentials else { return Err(credentials_at.reject("is required")) };
        decide!(wire, credentials_at, pb::OAuth2Credentials
            as "envoy.extensions.filters.http.oauth2.v3.OAuth2Credentials" {
            implemented: client_id, token_secret, cookie_names, cookie_domain, token_formation;
            no_effect: ;
            unsupported: ;
        });
        let id_at = credentials_at.field("client_id");
        if client_id.is_empty() {
            return Err(id_at.reject("must not be empty"));
        }
        wire::header_value(&id_at, &client_id)?;
        let audience = &token_endpoint.uri;
        let how = HowToAuthenticate { auth_type, private_key_jwt_config, audience };
        let secret_at = credentials_at.field("token_secret");
        let client_auth = how.parse(context, at, &secret_at, token_secret)?;
        let hmac = token_formation.map(|pb::o_auth2_credentials::TokenFormation::HmacSecret(wire)| wire);
        let forward_id_token = forward_id_token
            .map(|wire| {
                let pb::OAuth2TokenForwarding { header } = wire;
                plain_header(&at.field("forward_id_token").field("header"), &header)
            })
            .transpose()?;
        check_authorization(
            at,
            forward_bearer_token,
            preserve_authorization_header,
            forward_id_token.as_deref() == Some("authorization"),
        )?;
        let matchers = |field: &'static str, wire: Vec<_>| {
            wire::each(&at.field(field), wire, header_matcher).map(Vec::into_boxed_slice)
        };
        let seconds = |field: &'static str, wire: Option<WireDuration>, default: u64| {
            wire.map_or(Ok(default), |wire| wire::duration(&at.field(field), wire).map(|time| time.as_secs()))
        };
        let is_openid = auth_scopes.iter().any(|scope| scope == "openid");
        let end_at = at.field("end_session_endpoint");
        if !end_session_endpoint.is_empty() && !is_openid {
            return Err(end_at.reject("needs openid among auth_scopes"));
        }
        wire::header_value(&end_at, &end_session_endpoint)?;
        Ok(Self {
            retries: match retry_policy {
                None => None,
                Some(wire) => CallRetries::parse(&at.field("retry_policy"), wire)?,
            },
            authorization: authorization(
                &at.field("authorization_endpoint"),
                &authorization_endpoint,
                &client_id,
                &auth_scopes,
                &resources,
            )?,
            end_session: match end_session_endpoint.as_str() {
                "" => None,
                endpoint => Some(EndSession {
                    endpoint: endpoint.into(),
                    afterwards: afterwards(&at.field("post_logout_redirect_uri"), post_logout_redirect_uri)?,
                }),
            },
            client_id: client_id.into(),
            client_auth,
            hmac_secret: SecretRef::parse(context, &credentials_at.field("hmac_secret"), hmac)?,
            cookies: Cookies::parse(
                &credentials_at,
                cookie_names,
                cookie_domain,
                &at.field("cookie_configs"),
                cookie_configs,
            )?,
            redirect_uri: required_format(&at.field("redirect_uri"), &redirect_uri)?,
            original_request_uri: match original_request_uri.as_str() {
                "" => None,
                text => Some(Format::parse(&at.field("original_request_uri"), text)?),
            },
            redirect_path: path(&at.field("redirect_path_matcher"), redirect_path_matcher)?,
            signout_path: path(&at.field("signout_path"), signout_path)?,
            allowed_domains: allowed_redirect_domains.into(),
            forward_bearer_token,
            forward_id_token,
            preserve_authorization: preserve_authorization_header,
            pass_through: matchers("pass_through_matcher", pass_through_matcher)?,
            deny_redirect: matchers("deny_redirect_matcher", deny_redirect_matcher)?,
            allow_failed: matchers("allow_failed_matcher", allow_failed_matcher)?,
            use_refresh_token: use_refresh_token.is_none_or(|flag| flag.value),
            default_expires_in: seconds("default_expires_in", default_expires_in, 0)?,
            default_refresh_token_expires_in: seconds(
                "default_refresh_token_expires_in",
                default_refresh_token_expires_in,
                DEFAULT_REFRESH_TOKEN_SECONDS,
            )?,
            csrf_expires_in: seconds("csrf_token_expires_in", csrf_token_expires_in, DEFAULT_SIGN_IN_SECONDS)?,
            code_verifier_expires_in: seconds(
                "code_verifier_token_expires_in",
                code_verifier_token_expires_in,
                DEFAULT_SIGN_IN_SECONDS,
            )?,
            id_token_expires_with_access_token: use_access_token_expiry_for_id_token_cookie,
            keeps_access_token: !disable_access_token_set_cookie,
            keeps_id_token: !disable_id_token_set_cookie,
            keeps_refresh_token: !disable_refresh_token_set_cookie,
            seals_tokens: !disable_token_encryption,
            stat_prefix: stat_prefix.into(),
            token_endpoint,
        })
    }
}

/// One header cannot hold two things.
fn check_authorization(at: &FieldPath<'_>, bearer: bool, preserve: bool, id_token: bool) -> Parsed<()> {
    let preserve_at = at.field("preserve_authorization_header");
    let id_at = at.field("forward_id_token");
    match (bearer, preserve, id_token) {
        (true, true, _) => Err(preserve_at.reject("must not be set together with forward_bearer_token")),
        (true, _, true) => Err(id_at.reject("must not name authorization together with forward_bearer_token")),
        (_, true, true) => Err(id_at.reject("must not name authorization together with preserve_authorization_header")),
        _ => Ok(()),
    }
}

struct HowToAuthenticate<'a> {
    auth_type: i32,
    private_key_jwt_config: Option<pb::PrivateKeyJwtConfig>,
    audience: &'a str,
}

impl HowToAuthenticate<'_> {
    fn parse(
        self,
        context: &Context<'_>,
        at: &FieldPath<'_>,
        secret_at: &FieldPath<'_>,
        secret: Option<outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig>,
    ) -> Parsed<ClientAuth> {
        use pb::o_auth2_config::AuthType;
        let auth_type = AuthType::try_from(self.auth_type)
            .map_err(|_| wire::unknown_enum(&at.field("auth_type"), self.auth_type))?;
        if auth_type == AuthType::TlsClientAuth {
            return Ok(ClientAuth::Certificate);
        }
        let secret = SecretRef::parse(context, secret_at, secret)?;
        match auth_type {
            AuthType::BasicAuth => Ok(ClientAuth::Basic(secret)),
            AuthType::PrivateKeyJwt => {
                let config = self.private_key_jwt_config.unwrap_or_default();
                let assertion = Assertion::parse(&at.field("private_key_jwt_config"), secret, config, self.audience)?;
                Ok(ClientAuth::Assertion(Box::new(assertion)))
            }
            AuthType::UrlEncodedBody | AuthType::TlsClientAuth => Ok(ClientAuth::Body(secret)),
        }
    }
}

impl Assertion {
    fn parse(at: &FieldPath<'_>, secret: SecretRef, wire: pb::PrivateKeyJwtConfig, audience: &str) -> Parsed<Self> {
        decide!(wire, at, pb::PrivateKeyJwtConfig as "envoy.extensions.filters.http.oauth2.v3.PrivateKeyJwtConfig" {
            implemented: signing_algorithm, assertion_lifetime, assertion_audience;
            no_effect: ;
            unsupported: ;
        });
        use pb::private_key_jwt_config::SigningAlgorithm as Wire;
        let lifetime_at = at.field("assertion_lifetime");
        let lifetime = match assertion_lifetime {
            None => DEFAULT_ASSERTION_SECONDS,
            Some(wire) => wire::duration(&lifetime_at, wire)?.as_secs(),
        };
        if lifetime == 0 {
            return Err(lifetime_at.reject("must be at least 1s"));
        }
        Ok(Self {
            secret,
            algorithm: match Wire::try_from(signing_algorithm) {
                Ok(Wire::Rs256) => SigningAlgorithm::Rs256,
                Ok(Wire::Rs384) => SigningAlgorithm::Rs384,
                Ok(Wire::Rs512) => SigningAlgorithm::Rs512,
                Ok(Wire::Es256) => SigningAlgorithm::Es256,
                Ok(Wire::Es384) => SigningAlgorithm::Es384,
                Ok(Wire::Es512) => SigningAlgorithm::Es512,
                Err(_) => return Err(wire::unknown_enum(&at.field("signing_algorithm"), signing_algorithm)),
            },
            lifetime,
            audience: if assertion_audience.is_empty() { audience.into() } else { assertion_audience.into() },
        })
    }
}

/// The address with its parameters, and what each request to it says.
fn authorization(
    at: &FieldPath<'_>,
    endpoint: &str,
    client_id: &str,
    scopes: &[String],
    resources: &[String],
) -> Parsed<AuthorizationEndpoint> {
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let is_plain = endpoint.bytes().all(|byte| byte.is_ascii_graphic()) && !endpoint.contains('#');
    let authority_end = |rest: &str| rest.find(['/', '?']).unwrap_or(rest.len());
    if !is_plain || rest.is_none_or(|rest| authority_end(rest) == 0) {
        // RFC 6749 section 3.1: there is no fragment.
        return Err(at.reject(format!("{endpoint:?} is not a URL, expected http(s)://host/path")));
    }
    let (address, query) = endpoint.split_once('?').unwrap_or((endpoint, ""));
    let mut parameters: BTreeMap<String, String> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // The name of each parameter once: what is said twice, servers need not understand (RFC 6749 section 3.1).
        parameters.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    let scope = if scopes.is_empty() { "user".to_owned() } else { scopes.join(" ") };
    parameters.insert("client_id".to_owned(), client_id.to_owned());
    parameters.insert("response_type".to_owned(), "code".to_owned());
    parameters.insert("scope".to_owned(), percent_encoded(&scope));
    let mut all = String::new();
    for resource in resources {
        // Writing to a string cannot fail.
        let _ = write!(all, "&resource={}", percent_encoded(resource));
    }
    let has_path = address.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    let address = if has_path { address.into() } else { format!("{address}/").into_boxed_str() };
    Ok(AuthorizationEndpoint { address, parameters, resources: all.into() })
}

fn afterwards(at: &FieldPath<'_>, wire: Option<pb::PostLogoutRedirectUri>) -> Parsed<Afterwards> {
    use pb::post_logout_redirect_uri::Config;
    let Some(pb::PostLogoutRedirectUri { config }) = wire else { return Ok(Afterwards::Root) };
    match config {
        Some(Config::Disabled(true)) => Ok(Afterwards::Untold),
        Some(Config::Disabled(false)) => Err(at.field("disabled").reject("must be true")),
        Some(Config::Uri(text)) => required_format(&at.field("uri"), &text).map(Afterwards::Uri),
        None => Err(at.reject("needs one of disabled, uri")),
    }
}

fn required_format(at: &FieldPath<'_>, text: &str) -> Parsed<Format> {
    if text.is_empty() { Err(at.reject("must not be empty")) } else { Format::parse(at, text) }
}

fn path(at: &FieldPath<'_>, wire: Option<PathMatcher>) -> Parsed<StringMatcher> {
    match wire {
        Some(wire) => url_path(at, wire),
        None => Err(at.reject("is required")),
    }
}

const DEFAULT_REFRESH_TOKEN_SECONDS: u64 = 604_800;
const DEFAULT_SIGN_IN_SECONDS: u64 = 600;
const DEFAULT_ASSERTION_SECONDS: u64 = 60;
