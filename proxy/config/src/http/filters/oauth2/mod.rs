//! Signing users in at an authorization server (`envoy.extensions.filters.http.oauth2.v3`).
//!
//! Owns the checked settings: servers, cookies, and which requests are let through, refused or sent to sign in. Never knows
//! a secret, and never looks at a request.

mod cookies;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use cookies::{Cookie, Cookies, SameSite};

use crate::format::Format;
use crate::http_uri::{CallRetries, HttpTarget};
use crate::matching::StringMatcher;
use crate::route::HeaderMatcher;
use crate::tls::SecretRef;

/// Source: `OAuth2Config`.
#[derive(Clone, Debug)]
pub struct OAuth2 {
    /// Gives tokens for codes and for older tokens.
    pub token_endpoint: HttpTarget,
    /// What follows a failure of it.
    pub retries: Option<CallRetries>,
    /// Where users sign in.
    pub authorization: AuthorizationEndpoint,
    /// Where users sign out; only here if `None`.
    pub end_session: Option<EndSession>,
    /// Who we are at the server.
    pub client_id: Box<str>,
    /// How we prove it.
    pub client_auth: ClientAuth,
    /// What cookies are signed and sealed with.
    pub hmac_secret: SecretRef,
    /// How cookies are called and what is said of them.
    pub cookies: Cookies,
    /// Where the server sends users back to.
    pub redirect_uri: Format,
    /// What stands before the path of a request, where users go in the end; scheme and authority of the request if `None`.
    pub original_request_uri: Option<Format>,
    /// Paths (without query) that the server sends users back to.
    pub redirect_path: StringMatcher,
    /// Paths (without query) where users sign out.
    pub signout_path: StringMatcher,
    /// Hosts that users may be sent to; any if empty.
    pub allowed_domains: Box<[String]>,
    /// Upstreams get the access token in `authorization`.
    pub forward_bearer_token: bool,
    /// Upstreams get the ID token in this header; lower case.
    pub forward_id_token: Option<Arc<str>>,
    /// What a client says in `authorization` goes on.
    pub preserve_authorization: bool,
    /// Requests that match one of these are not looked at.
    pub pass_through: Box<[HeaderMatcher]>,
    /// Requests that match one of these are refused instead of being sent to sign in.
    pub deny_redirect: Box<[HeaderMatcher]>,
    /// Requests that match one of these go on without a user instead of being sent to sign in.
    pub allow_failed: Box<[HeaderMatcher]>,
    /// Tokens are renewed.
    pub use_refresh_token: bool,
    /// Seconds that tokens hold if the server does not say.
    pub default_expires_in: u64,
    /// Seconds that refresh tokens hold unless they say so themselves.
    pub default_refresh_token_expires_in: u64,
    /// Seconds that a user has to sign in, as far as the nonce is concerned.
    pub csrf_expires_in: u64,
    /// Seconds that a user has to sign in, as far as the code verifier is concerned.
    pub code_verifier_expires_in: u64,
    /// The cookie with the ID token holds as long as the access token.
    pub id_token_expires_with_access_token: bool,
    /// Users get a cookie with the access token.
    pub keeps_access_token: bool,
    /// Users get a cookie with the ID token.
    pub keeps_id_token: bool,
    /// Users get a cookie with the refresh token.
    pub keeps_refresh_token: bool,
    /// Tokens are sealed in cookies.
    pub seals_tokens: bool,
    /// Stands before the names of stats; may be empty.
    pub stat_prefix: Box<str>,
}

/// Source: `OAuth2Config.authorization_endpoint` and what every request to it says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorizationEndpoint {
    /// Without query.
    pub address: Box<str>,
    /// Names and values as they stand in a query, those of the endpoint among them.
    pub parameters: BTreeMap<String, String>,
    /// Stands after all parameters; empty, or begins with `&`.
    pub resources: Box<str>,
}

/// Source: `OAuth2Config.end_session_endpoint`.
#[derive(Clone, Debug)]
pub struct EndSession {
    /// The address.
    pub endpoint: Box<str>,
    /// Where the server is to send users afterwards.
    pub afterwards: Afterwards,
}

/// Source: `PostLogoutRedirectUri`.
#[derive(Clone, Debug)]
pub enum Afterwards {
    /// To the root of the host that they came to.
    Root,
    /// It is not told.
    Untold,
    /// To this address.
    Uri(Format),
}

/// Source: `OAuth2Config.auth_type`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    /// By a secret in the body of requests.
    Body(SecretRef),
    /// By a secret in `authorization`.
    Basic(SecretRef),
    /// By the certificate of the TLS connection.
    Certificate,
    /// By a signed statement (RFC 7523).
    Assertion(Box<Assertion>),
}

/// Source: `PrivateKeyJwtConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assertion {
    /// Holds the private key: alone, or as `private_key` beside its `key_id`.
    pub secret: SecretRef,
    /// How it is signed.
    pub algorithm: SigningAlgorithm,
    /// Whole seconds that it holds; above 0.
    pub lifetime: u64,
    /// Whom it is for.
    pub audience: Box<str>,
}

/// Source: `PrivateKeyJwtConfig.SigningAlgorithm`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SigningAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// ECDSA with P-384 and SHA-384.
    Es384,
    /// ECDSA with P-521 and SHA-512.
    Es512,
}

impl OAuth2 {
    /// The secrets that it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        self.client_auth.secret().into_iter().chain([&self.hmac_secret])
    }
}

impl ClientAuth {
    /// The secret that it needs; a certificate is the business of the cluster.
    pub fn secret(&self) -> Option<&SecretRef> {
        match self {
            Self::Body(secret) | Self::Basic(secret) => Some(secret),
            Self::Certificate => None,
            Self::Assertion(assertion) => Some(&assertion.secret),
        }
    }
}
