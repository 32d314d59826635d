//! The `proxy-status` header of responses (`HttpConnectionManager.proxy_status_config`, RFC 9209).
//!
//! Owns the checked model. Never knows why a request failed.

use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as pb;

use super::header_mutations::check_header_value;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// What is told of failures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProxyStatus {
    /// Who tells it.
    pub name: ProxyName,
    /// `%RESPONSE_CODE_DETAILS%` stands among the details.
    pub details: bool,
    /// `%CONNECTION_TERMINATION_DETAILS%` stands among the details.
    pub termination: bool,
    /// `%RESPONSE_FLAGS%` stand among the details.
    pub flags: bool,
    /// The status becomes the one that RFC 9209 recommends.
    pub recommended_code: bool,
}

/// What a proxy calls itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProxyName {
    /// As in the `server` header.
    Server,
    /// The id of its node.
    Node,
    /// This.
    Literal(String),
}

impl ProxyStatus {
    /// Reads the message at `at`.
    pub(super) fn parse(at: &FieldPath<'_>, wire: Option<pb::ProxyStatusConfig>) -> Parsed<Option<Box<Self>>> {
        use pb::ProxyStatusConfig;
        use pb::proxy_status_config::ProxyName as Wire;
        let Some(wire) = wire else { return Ok(None) };
        decide!(wire, at, ProxyStatusConfig as "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ProxyStatusConfig" {
            implemented: remove_details, remove_connection_termination_details, remove_response_flags,
                set_recommended_response_code, proxy_name;
            no_effect: ;
            unsupported: ;
        });
        let name = match proxy_name {
            None => ProxyName::Server,
            // Whatever it says, as Envoy has it.
            Some(Wire::UseNodeId(_)) => ProxyName::Node,
            Some(Wire::LiteralProxyName(name)) => {
                check_header_value(&at.field("literal_proxy_name"), &name)?;
                ProxyName::Literal(name)
            }
        };
        Ok(Some(Box::new(Self {
            name,
            details: !remove_details,
            termination: !remove_connection_termination_details,
            flags: !remove_response_flags,
            recommended_code: set_recommended_response_code,
        })))
    }
}
