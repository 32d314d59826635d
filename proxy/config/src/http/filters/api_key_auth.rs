//! Authentication by API keys (`envoy.extensions.filters.http.api_key_auth.v3`).
//!
//! Owns the keys with their clients, and where keys stand in requests. Never looks at a request.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::api_key_auth::v3 as pb;

use super::basic_auth::plain_header;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `ApiKeyAuth`, and what both have in common of `ApiKeyAuthPerRoute`.
#[derive(Clone, Debug, Default)]
pub struct ApiKeyAuth {
    /// Clients by key; `None` if none are given.
    pub credentials: Option<ApiKeys>,
    /// In the order in which they are looked at.
    pub sources: Vec<KeySource>,
    /// What goes on upstream.
    pub forwarding: Option<Forwarding>,
}

/// Source: `ApiKeyAuthPerRoute`.
#[derive(Clone, Debug)]
pub struct ApiKeyRoute {
    /// What is given replaces what the chain says.
    pub settings: ApiKeyAuth,
    /// Empty for all.
    pub allowed_clients: HashSet<String>,
}

/// Clients by key.
#[derive(Clone)]
pub struct ApiKeys(HashMap<Vec<u8>, Arc<str>>);

impl ApiKeys {
    /// Whose key it is.
    pub fn client(&self, key: &[u8]) -> Option<&Arc<str>> {
        self.0.get(key)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Source: `KeySource`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// A header, with or without `Bearer `; lower case.
    Header(Arc<str>),
    /// A query parameter.
    Query(String),
    /// A cookie.
    Cookie(String),
}

/// Source: `Forwarding`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Forwarding {
    /// Gets the name of the client.
    pub header: Option<Arc<str>>,
    /// Keys do not go on.
    pub hide_credentials: bool,
}

impl ApiKeyAuth {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::ApiKeyAuth) -> Parsed<Self> {
        decide!(wire, at, pb::ApiKeyAuth as "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth" {
            implemented: credentials, key_sources, forwarding;
            no_effect: ;
            unsupported: ;
        });
        Self::of(at, credentials, key_sources, forwarding)
    }

    pub(super) fn parse_route(at: &FieldPath<'_>, wire: pb::ApiKeyAuthPerRoute) -> Parsed<ApiKeyRoute> {
        decide!(wire, at, pb::ApiKeyAuthPerRoute as "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute" {
            implemented: credentials, key_sources, allowed_clients, forwarding;
            no_effect: ;
            unsupported: ;
        });
        let settings = Self::of(at, credentials, key_sources, forwarding)?;
        Ok(ApiKeyRoute { settings, allowed_clients: allowed_clients.into_iter().collect() })
    }

    fn of(
        at: &FieldPath<'_>,
        credentials: Vec<pb::Credential>,
        sources: Vec<pb::KeySource>,
        forwarding: Option<pb::Forwarding>,
    ) -> Parsed<Self> {
        let credentials_at = at.field("credentials");
        let mut keys = HashMap::with_capacity(credentials.len());
        for (index, wire) in credentials.into_iter().enumerate() {
            let at = credentials_at.item(index);
            let pb::Credential { key, client } = wire;
            if key.is_empty() {
                return Err(at.field("key").reject("must not be empty"));
            }
            let client_at = at.field("client");
            if client.is_empty() {
                return Err(client_at.reject("must not be empty"));
            }
            wire::header_value(&client_at, &client)?;
            if keys.insert(key.into_bytes(), client.into()).is_some() {
                // A key is a secret.
                return Err(at.field("key").reject("stands there twice"));
            }
        }
        Ok(Self {
            credentials: (!keys.is_empty()).then_some(ApiKeys(keys)),
            sources: wire::each(&at.field("key_sources"), sources, key_source)?,
            forwarding: forwarding.map(|wire| forwarding_of(&at.field("forwarding"), wire)).transpose()?,
        })
    }
}

fn key_source(at: &FieldPath<'_>, wire: pb::KeySource) -> Parsed<KeySource> {
    decide!(wire, at, pb::KeySource as "envoy.extensions.filters.http.api_key_auth.v3.KeySource" {
        implemented: header, query, cookie;
        no_effect: ;
        unsupported: ;
    });
    if !header.is_empty() {
        return plain_header(&at.field("header"), &header).map(KeySource::Header);
    }
    match (query, cookie) {
        (query, _) if !query.is_empty() => Ok(KeySource::Query(query)),
        (_, cookie) if !cookie.is_empty() => Ok(KeySource::Cookie(cookie)),
        _ => Err(at.reject("needs one of header, query, cookie")),
    }
}

fn forwarding_of(at: &FieldPath<'_>, wire: pb::Forwarding) -> Parsed<Forwarding> {
    decide!(wire, at, pb::Forwarding as "envoy.extensions.filters.http.api_key_auth.v3.Forwarding" {
        implemented: header, hide_credentials;
        no_effect: ;
        unsupported: ;
    });
    let header = match header.as_str() {
        "" => None,
        name => Some(plain_header(&at.field("header"), name)?),
    };
    Ok(Forwarding { header, hide_credentials })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(keys: &[&str], source: pb::KeySource) -> Result<ApiKeyAuth, String> {
        let credential = |key: &&str| pb::Credential { key: (*key).into(), client: "c".into() };
        let wire = pb::ApiKeyAuth {
            credentials: keys.iter().map(credential).collect(),
            key_sources: vec![source],
            forwarding: None,
        };
        ApiKeyAuth::parse(&FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn keys_have_one_client_and_sources_one_place() {
        let source = |header: &str, query: &str, cookie: &str| pb::KeySource {
            header: header.into(),
            query: query.into(),
            cookie: cookie.into(),
        };
        let settings = read(&["k"], source("X-Key", "q", "c")).unwrap();
        assert_eq!(settings.sources, [KeySource::Header("x-key".into())]);
        assert_eq!(settings.credentials.as_ref().unwrap().client(b"k").map(|client| &**client), Some("c"));
        assert_eq!(read(&[], source("", "q", "c")).unwrap().sources, [KeySource::Query("q".into())]);
        assert_eq!(read(&[], source("", "", "c")).unwrap().sources, [KeySource::Cookie("c".into())]);
        for (keys, source, expected) in [
            (&["k", "k"][..], source("h", "", ""), "credentials[1].key: stands there twice"),
            (&[""], source("h", "", ""), "credentials[0].key: must not be empty"),
            (&[], source("", "", ""), "key_sources[0]: needs one of header, query, cookie"),
        ] {
            assert_eq!(read(keys, source).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
