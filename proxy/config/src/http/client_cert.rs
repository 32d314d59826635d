//! What becomes of `x-forwarded-client-cert` (`forward_client_cert_details`, `set_current_client_cert_details` and
//! `forward_client_cert_matcher`).
//!
//! Owns the checked model. Never sees a certificate.

use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as pb;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use crate::context::Context;
use crate::decide::decide;
use crate::matcher::{Kinds, Matcher, Place};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What becomes of the header. Source: `HttpConnectionManager.ForwardClientCertConfig`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClientCertForwarding {
    /// Of the one that a client sent.
    pub mode: ForwardClientCert,
    /// What is told of the certificate that the client shows.
    pub details: ClientCertDetails,
}

/// Source: `HttpConnectionManager.ForwardClientCertDetails`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ForwardClientCert {
    /// Removed.
    #[default]
    Sanitize,
    /// Kept when the peer is mutually authenticated.
    ForwardOnly,
    /// Ours is appended when the peer is mutually authenticated.
    AppendForward,
    /// Replaced by ours when the peer is mutually authenticated.
    SanitizeSet,
    /// Kept.
    AlwaysForwardOnly,
}

/// Source: `HttpConnectionManager.SetCurrentClientCertDetails`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ClientCertDetails {
    /// `Subject`.
    pub subject: bool,
    /// `Cert`.
    pub cert: bool,
    /// `Chain`.
    pub chain: bool,
    /// `DNS`.
    pub dns: bool,
    /// `URI`.
    pub uri: bool,
    /// `Issuer`.
    pub issuer: bool,
    /// As an object in a JSON array, unless it is added to a header in the other form.
    pub json: bool,
}

impl ClientCertForwarding {
    /// Reads `forward_client_cert_details` and `set_current_client_cert_details`, which are fields of `at`.
    pub(super) fn parse(at: &FieldPath<'_>, mode: i32, wire: Option<pb::SetCurrentClientCertDetails>) -> Parsed<Self> {
        let mode = match pb::ForwardClientCertDetails::try_from(mode) {
            Ok(pb::ForwardClientCertDetails::Sanitize) => ForwardClientCert::Sanitize,
            Ok(pb::ForwardClientCertDetails::ForwardOnly) => ForwardClientCert::ForwardOnly,
            Ok(pb::ForwardClientCertDetails::AppendForward) => ForwardClientCert::AppendForward,
            Ok(pb::ForwardClientCertDetails::SanitizeSet) => ForwardClientCert::SanitizeSet,
            Ok(pb::ForwardClientCertDetails::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
            Err(_) => return Err(wire::unknown_enum(&at.field("forward_client_cert_details"), mode)),
        };
        Ok(Self { mode, details: details(&at.field("set_current_client_cert_details"), wire.unwrap_or_default())? })
    }
}

fn details(at: &FieldPath<'_>, wire: pb::SetCurrentClientCertDetails) -> Parsed<ClientCertDetails> {
    use pb::SetCurrentClientCertDetails;
    decide!(wire, at, SetCurrentClientCertDetails as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails" {
        implemented: subject, cert, chain, dns, uri, issuer, format;
        no_effect: ;
        unsupported: ;
    });
    let json = match pb::ForwardClientCertFormat::try_from(format) {
        Ok(pb::ForwardClientCertFormat::Text) => false,
        Ok(pb::ForwardClientCertFormat::Json) => true,
        Err(_) => return Err(wire::unknown_enum(&at.field("format"), format)),
    };
    Ok(ClientCertDetails { subject: subject.is_some_and(|flag| flag.value), cert, chain, dns, uri, issuer, json })
}

/// Reads the match tree at `at`.
pub(super) fn client_cert_matcher(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<xds::Matcher>,
) -> Parsed<Option<Box<Matcher<ClientCertForwarding>>>> {
    let Some(wire) = wire else { return Ok(None) };
    let kinds = Kinds { place: Place::Request, action: &action };
    Ok(Some(Box::new(Matcher::parse(context, at, &kinds, wire)?)))
}

fn action(at: &FieldPath<'_>, any: &Any) -> Parsed<ClientCertForwarding> {
    use pb::ForwardClientCertConfig;
    match wire::type_name(any) {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ForwardClientCertConfig" => {
            let wire: ForwardClientCertConfig = wire::decode(at, any)?;
            decide!(wire, at, ForwardClientCertConfig as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ForwardClientCertConfig" {
                implemented: forward_client_cert_details, set_current_client_cert_details;
                no_effect: ;
                unsupported: ;
            });
            ClientCertForwarding::parse(at, forward_client_cert_details, set_current_client_cert_details)
        }
        _ => Err(at.reject(format!("the action {:?} is not supported", any.type_url))),
    }
}
