//! Reader of own certificates (`TlsCertificate`).
//!
//! Owns that a certificate comes with its key. Never looks into the PEM: who builds the TLS configuration does.

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::TlsCertificate;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

impl TlsCertificate {
    pub(super) fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: tls::TlsCertificate) -> Parsed<Self> {
        decide!(wire, at, tls::TlsCertificate as "envoy.extensions.transport_sockets.tls.v3.TlsCertificate" {
            implemented: certificate_chain, private_key, password, pkcs12, ocsp_staple;
            no_effect: watched_directory = "each file is watched, and every link on the way to it",
                signed_certificate_timestamp = "not implemented by Envoy either";
            unsupported: private_key_provider, tls_params;
        });
        if password.is_some() {
            return Err(at
                .field("password")
                .reject("a passphrase is not supported, expected a private key that is not encrypted"));
        }
        if pkcs12.is_some() {
            return Err(at.field("pkcs12").reject("is not supported, expected certificate_chain and private_key"));
        }
        let mut files = Vec::new();
        let mut required = |field: &'static str, wire: Option<core::DataSource>| {
            let at = at.field(field);
            let data = wire::data_source(context, &at, wire.ok_or_else(|| at.reject("is required"))?)?;
            files.extend(data.file);
            if data.bytes.is_empty() { Err(at.reject("must not be empty")) } else { Ok(data.bytes) }
        };
        let chain_pem = required("certificate_chain", certificate_chain)?;
        let key_pem = required("private_key", private_key)?;
        let ocsp_staple = match ocsp_staple {
            None => None,
            Some(wire) => Some(required("ocsp_staple", Some(wire))?),
        };
        Ok(TlsCertificate { chain_pem, key_pem, files, ocsp_staple })
    }
}
