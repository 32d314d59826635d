//! Reader of secret resources (`Secret`).
//!
//! Owns which kinds of secrets exist. Never keeps or prints their content.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::{GenericSecret, Secret, SecretKind, TicketKeys, TlsCertificate, Validation};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

impl Secret {
    /// Reads a secret of the bootstrap or of secret discovery.
    pub fn parse(context: &Context<'_>, wire: tls::Secret) -> Parsed<Self> {
        let resource_name = wire.name.clone();
        let at = &FieldPath::resource("secret", &resource_name);
        decide!(wire, at, tls::Secret as "envoy.extensions.transport_sockets.tls.v3.Secret" {
            implemented: name, r#type;
            no_effect: ;
            unsupported: ;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let kind = match r#type {
            Some(tls::secret::Type::TlsCertificate(wire)) => {
                let certificate = TlsCertificate::read(context, &at.field("tls_certificate"), wire)?;
                SecretKind::Certificate(Arc::new(certificate))
            }
            Some(tls::secret::Type::ValidationContext(wire)) => {
                let validation = Validation::read(context, &at.field("validation_context"), wire)?;
                SecretKind::Validation(Arc::new(validation))
            }
            Some(tls::secret::Type::SessionTicketKeys(wire)) => {
                let keys = TicketKeys::read(context, &at.field("session_ticket_keys"), wire)?;
                SecretKind::TicketKeys(Arc::new(keys))
            }
            Some(tls::secret::Type::GenericSecret(wire)) => {
                let secret = GenericSecret::read(context, &at.field("generic_secret"), wire)?;
                SecretKind::Generic(Arc::new(secret))
            }
            None => {
                let kinds = "tls_certificate, validation_context, session_ticket_keys, generic_secret";
                return Err(at.reject(format!("needs one of {kinds}")));
            }
        };
        Ok(Secret { name: Arc::from(name), kind })
    }
}
