//! How the address of a client is found (`HttpConnectionManager.original_ip_detection_extensions`).
//!
//! Owns which extensions there are, and their settings. Never looks at a request.

use std::sync::Arc;

use ipnet::IpNet;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::http::original_ip_detection::{custom_header::v3 as custom, xff::v3 as xff};
use outrigger_api::pb::envoy::r#type::v3 as types;

use super::header_mutations::header_name;
use crate::address_parse;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// One way to find the client's address. The first of a list that finds one decides.
#[derive(Clone, Debug, PartialEq)]
pub enum Detection {
    /// By `x-forwarded-for`.
    Forwarded {
        /// Which of its addresses counts.
        trusted: TrustedProxies,
        /// The peer is added to it. Peers outside of trusted networks are added in any case.
        append: bool,
    },
    /// By another header.
    Header {
        /// Lower case.
        name: Arc<str>,
        /// Such a client may count as internal.
        may_be_internal: bool,
        /// Status for requests whose header is missing, or no address.
        reject: Option<u16>,
    },
}

/// Who may add to `x-forwarded-for`.
#[derive(Clone, Debug, PartialEq)]
pub enum TrustedProxies {
    /// So many of the addresses at its right end.
    Hops(u32),
    /// Peers within these networks, as long as all to their right are.
    Networks(Vec<IpNet>),
}

/// Reads the list at `at`.
pub(super) fn detections(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<core::TypedExtensionConfig>,
) -> Parsed<Box<[Detection]>> {
    let read = |at: &FieldPath<'_>, wire| {
        let core::TypedExtensionConfig { name: _, typed_config } = wire;
        let at = at.field("typed_config");
        let Some(any) = typed_config else { return Err(at.reject("is required")) };
        let any = wire::extension(context, &at, any)?;
        match wire::type_name(&any) {
            "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" => forwarded(&at, wire::decode(&at, &any)?),
            "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" => {
                header(&at, wire::decode(&at, &any)?)
            }
            _ => Err(at.reject(format!("{:?} is not supported", any.type_url))),
        }
    };
    Ok(wire::each(at, wire, read)?.into())
}

fn forwarded(at: &FieldPath<'_>, wire: xff::XffConfig) -> Parsed<Detection> {
    decide!(wire, at, xff::XffConfig as "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" {
        implemented: xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append;
        no_effect: ;
        unsupported: ;
    });
    let networks = match xff_trusted_cidrs {
        None => Vec::new(),
        Some(_) if xff_num_trusted_hops > 0 => {
            return Err(at.field("xff_trusted_cidrs").reject("must not be set together with xff_num_trusted_hops"));
        }
        Some(xff::XffTrustedCidrs { cidrs }) => {
            let at = at.field("xff_trusted_cidrs");
            wire::each(&at.field("cidrs"), cidrs, address_parse::cidr)?
        }
    };
    // An empty list is none.
    let trusted = match networks.is_empty() {
        true => TrustedProxies::Hops(xff_num_trusted_hops),
        false => TrustedProxies::Networks(networks),
    };
    Ok(Detection::Forwarded { trusted, append: skip_xff_append.is_some_and(|skip| !skip.value) })
}

fn header(at: &FieldPath<'_>, wire: custom::CustomHeaderConfig) -> Parsed<Detection> {
    decide!(wire, at, custom::CustomHeaderConfig as "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" {
        implemented: header_name, allow_extension_to_set_address_as_trusted, reject_with_status;
        no_effect: ;
        unsupported: ;
    });
    let reject = reject_with_status.map(|types::HttpStatus { code }| match u16::try_from(code) {
        Ok(code @ 400..=511) => code,
        _ => DEFAULT_REJECT_STATUS,
    });
    Ok(Detection::Header {
        name: self::header_name(&at.field("header_name"), &header_name)?,
        may_be_internal: allow_extension_to_set_address_as_trusted,
        reject,
    })
}

/// Source: `CustomHeaderConfig.reject_with_status`.
const DEFAULT_REJECT_STATUS: u16 = 403;
