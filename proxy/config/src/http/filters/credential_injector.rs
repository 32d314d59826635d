//! Credentials of this workload (`envoy.extensions.filters.http.credential_injector.v3`), which are added to requests.
//!
//! Owns which credential there is and where it goes. Never knows its value.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::envoy::extensions::filters::http::credential_injector::v3 as pb;
use outrigger_api::pb::envoy::extensions::http::injected_credentials::generic::v3 as generic;
use outrigger_api::pb::envoy::extensions::http::injected_credentials::oauth2::v3 as oauth2;

use super::basic_auth::plain_header;
use crate::context::Context;
use crate::decide::decide;
use crate::http_uri::HttpTarget;
use crate::rejection::{FieldPath, Parsed};
use crate::tls::SecretRef;
use crate::wire;

/// Source: `CredentialInjector`.
#[derive(Clone, Debug)]
pub struct CredentialInjector {
    /// What a request has already is replaced.
    pub overwrite: bool,
    /// Requests go on without a credential if there is none.
    pub allow_without: bool,
    /// The credential.
    pub credential: Credential,
}

/// Source: `CredentialInjector.credential`.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A secret as it stands.
    Secret {
        /// The secret.
        secret: SecretRef,
        /// Gets it; lower case.
        header: Arc<str>,
        /// Stands before it in the header.
        prefix: Box<str>,
    },
    /// A token that an authorization server gives, as `Bearer` in `authorization`.
    Token(Arc<ClientToken>),
}

/// Source: `envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2`, for the grant of client credentials (RFC 6749
/// section 4.4).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ClientToken {
    /// Who gives tokens.
    pub endpoint: HttpTarget,
    /// Who we are there.
    pub client_id: Box<str>,
    /// What proves it.
    pub secret: SecretRef,
    /// What the token is to be good for; may be empty.
    pub scopes: Box<[String]>,
    /// Names and values of further parameters.
    pub parameters: Box<[(String, String)]>,
    /// Between a failure and the next attempt.
    pub retry_interval: Duration,
}

impl CredentialInjector {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::CredentialInjector) -> Parsed<Self> {
        decide!(wire, at, pb::CredentialInjector
            as "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector" {
            implemented: overwrite, allow_request_without_credential, credential;
            no_effect: ;
            unsupported: ;
        });
        let at = at.field("credential");
        let Some(TypedExtensionConfig { name: _, typed_config }) = credential else {
            return Err(at.reject("is required"));
        };
        let at = at.field("typed_config");
        let Some(any) = typed_config else { return Err(at.reject("is required")) };
        let any = wire::extension(context, &at, any)?;
        let credential = match wire::type_name(&any) {
            "envoy.extensions.http.injected_credentials.generic.v3.Generic" => {
                secret(context, &at, wire::decode(&at, &any)?)?
            }
            "envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2" => {
                Credential::Token(Arc::new(ClientToken::parse(context, &at, wire::decode(&at, &any)?)?))
            }
            other => return Err(at.reject(format!("the credential {other:?} is not supported"))),
        };
        Ok(Self { overwrite, allow_without: allow_request_without_credential, credential })
    }

    /// The secret that it needs.
    pub fn secret(&self) -> &SecretRef {
        match &self.credential {
            Credential::Secret { secret, .. } => secret,
            Credential::Token(token) => &token.secret,
        }
    }
}

fn secret(context: &Context<'_>, at: &FieldPath<'_>, wire: generic::Generic) -> Parsed<Credential> {
    decide!(wire, at, generic::Generic as "envoy.extensions.http.injected_credentials.generic.v3.Generic" {
        implemented: credential, header, header_value_prefix;
        no_effect: ;
        unsupported: ;
    });
    let prefix_at = at.field("header_value_prefix");
    wire::header_value(&prefix_at, &header_value_prefix)?;
    Ok(Credential::Secret {
        secret: SecretRef::parse(context, &at.field("credential"), credential)?,
        header: match header.as_str() {
            "" => "authorization".into(),
            name => plain_header(&at.field("header"), name)?,
        },
        prefix: header_value_prefix.into(),
    })
}

impl ClientToken {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: oauth2::OAuth2) -> Parsed<Self> {
        decide!(wire, at, oauth2::OAuth2 as "envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2" {
            implemented: token_endpoint, scopes, token_fetch_retry_interval, endpoint_params, flow_type;
            no_effect: ;
            unsupported: ;
        });
        let endpoint = HttpTarget::parse(&at.field("token_endpoint"), token_endpoint)?;
        let credentials_at = at.field("client_credentials");
        let Some(oauth2::o_auth2::FlowType::ClientCredentials(wire)) = flow_type else {
            return Err(credentials_at.reject("is required"));
        };
        decide!(wire, credentials_at, oauth2::o_auth2::ClientCredentials
            as "envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2.ClientCredentials" {
            implemented: client_id, client_secret;
            no_effect: auth_type = "whichever it is, id and secret go in the body, as with Envoy";
            unsupported: ;
        });
        if client_id.is_empty() {
            return Err(credentials_at.field("client_id").reject("must not be empty"));
        }
        let interval_at = at.field("token_fetch_retry_interval");
        let retry_interval = match token_fetch_retry_interval {
            None => DEFAULT_RETRY_INTERVAL,
            Some(wire) => wire::duration(&interval_at, wire)?,
        };
        if retry_interval < SHORTEST_RETRY_INTERVAL {
            return Err(interval_at.reject(format!("{retry_interval:?} is below {SHORTEST_RETRY_INTERVAL:?}")));
        }
        let parameters = wire::each(&at.field("endpoint_params"), endpoint_params, |at, wire| {
            let oauth2::o_auth2::EndpointParameter { name, value } = wire;
            if name.is_empty() { Err(at.field("name").reject("must not be empty")) } else { Ok((name, value)) }
        })?;
        Ok(Self {
            endpoint,
            client_id: client_id.into(),
            secret: SecretRef::parse(context, &credentials_at.field("client_secret"), client_secret)?,
            scopes: scopes.into(),
            parameters: parameters.into(),
            retry_interval,
        })
    }
}

const DEFAULT_RETRY_INTERVAL: Duration = Duration::from_secs(2);
const SHORTEST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3 as core;
    use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;
    use outrigger_api::pb::google::protobuf::{Any, Duration as WireDuration};
    use prost::{Message, Name};

    use super::*;
    use crate::context::NoEnvironment;

    fn read<M: Message + Name>(message: &M) -> Result<CredentialInjector, String> {
        let any = Any { type_url: M::type_url(), value: message.encode_to_vec() };
        let credential = Some(TypedExtensionConfig { name: "c".into(), typed_config: Some(any) });
        let wire = pb::CredentialInjector { credential, ..Default::default() };
        let root = FieldPath::resource("listener", "l");
        CredentialInjector::parse(&Context::new(&NoEnvironment), &root, wire).map_err(|error| error.to_string())
    }

    fn named(name: &str) -> Option<SdsSecretConfig> {
        Some(SdsSecretConfig { name: name.into(), sds_config: None })
    }

    fn token() -> oauth2::OAuth2 {
        let cluster = Some(core::http_uri::HttpUpstreamType::Cluster("idp".into()));
        let timeout = Some(WireDuration { seconds: 1, nanos: 0 });
        let credentials = oauth2::o_auth2::ClientCredentials {
            client_id: "me".into(),
            client_secret: named("s"),
            ..Default::default()
        };
        oauth2::OAuth2 {
            token_endpoint: Some(core::HttpUri {
                uri: "https://idp/token".into(),
                timeout,
                http_upstream_type: cluster,
            }),
            flow_type: Some(oauth2::o_auth2::FlowType::ClientCredentials(credentials)),
            ..Default::default()
        }
    }

    #[test]
    fn a_secret_goes_into_authorization_unless_another_header_is_named() {
        let read = read(&generic::Generic { credential: named("s"), ..Default::default() }).unwrap();
        assert!(matches!(&read.credential, Credential::Secret { header, .. } if **header == *"authorization"));
        assert_eq!((&*read.secret().name, &read.secret().source), ("s", &None));
    }

    #[test]
    fn what_cannot_be_injected_is_refused_by_path() {
        let at = |path: &str| format!("listener \"l\": credential.typed_config.{path}");
        let refused = |message: &generic::Generic| read(message).unwrap_err();
        assert_eq!(refused(&generic::Generic::default()), at("credential: is required"));
        let host = generic::Generic { credential: named("s"), header: "host".into(), ..Default::default() };
        assert_eq!(refused(&host), at("header: \"host\" must not be a pseudo header"));
        let name = generic::Generic { credential: named(""), ..Default::default() };
        assert_eq!(refused(&name), at("credential.name: must not be empty"));
        let soon = oauth2::OAuth2 { token_fetch_retry_interval: Some(WireDuration::default()), ..token() };
        assert_eq!(read(&soon).unwrap_err(), at("token_fetch_retry_interval: 0ns is below 1s"));
        let nobody = oauth2::OAuth2 { flow_type: None, ..token() };
        assert_eq!(read(&nobody).unwrap_err(), at("client_credentials: is required"));
        assert!(read(&token()).is_ok());
    }
}
