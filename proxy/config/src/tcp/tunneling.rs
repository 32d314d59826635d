//! TCP connections inside requests (`TcpProxy.TunnelingConfig`).
//!
//! Owns the checked model. Never sends a request.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy as pb;

use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::http::HeaderAddition;
use crate::http::header_mutations::{check_header_value, header_addition, header_name};
use crate::rejection::{FieldPath, Parsed};
use crate::tracing::request_id;
use crate::wire;

/// The request that carries a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunneling {
    /// Who is to be connected to, in `:authority`.
    pub hostname: Format,
    /// The path of a POST request; CONNECT without one.
    pub post_path: Option<String>,
    /// Further headers.
    pub headers: Vec<HeaderAddition>,
    /// The headers of the answer become filter state.
    pub keep_response_headers: bool,
    /// The trailers of the answer become filter state.
    pub keep_response_trailers: bool,
    /// The request gets an id.
    pub request_id: Option<TunnelRequestId>,
}

/// Where the id of such a request is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TunnelRequestId {
    /// The header; lower case.
    pub header: Arc<str>,
    /// The key in the dynamic metadata of the filter.
    pub metadata_key: String,
}

impl Tunneling {
    /// Reads the message at `at`.
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::TunnelingConfig) -> Parsed<Self> {
        use pb::TunnelingConfig;
        decide!(wire, at, TunnelingConfig as "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig" {
            implemented: hostname, use_post, headers_to_add, propagate_response_headers, post_path,
                propagate_response_trailers, request_id_extension, request_id_header, request_id_metadata_key;
            no_effect: ;
            unsupported: formatters;
        });
        let hostname_at = at.field("hostname");
        if hostname.is_empty() {
            return Err(hostname_at.reject("must not be empty"));
        }
        check_header_value(&hostname_at, &hostname)?;
        let path_at = at.field("post_path");
        check_header_value(&path_at, &post_path)?;
        let post_path = match (use_post, post_path) {
            (false, path) if path.is_empty() => None,
            (false, _) => return Err(path_at.reject("needs use_post")),
            (true, path) if path.is_empty() => Some("/".to_owned()),
            (true, path) if path.starts_with('/') => Some(path),
            (true, path) => return Err(path_at.reject(format!("{path:?} does not begin with a slash"))),
        };
        let request_id = match request_id_extension {
            None => None,
            Some(wire) => {
                // What it says of traces concerns requests of clients.
                request_id(context, &at.field("request_id_extension"), Some(wire))?;
                Some(TunnelRequestId {
                    header: match request_id_header.as_str() {
                        "" => "x-request-id".into(),
                        name => header_name(&at.field("request_id_header"), name)?,
                    },
                    metadata_key: match request_id_metadata_key.as_str() {
                        "" => "tunnel_request_id".to_owned(),
                        _ => request_id_metadata_key,
                    },
                })
            }
        };
        Ok(Self {
            hostname: Format::parse(&hostname_at, &hostname)?,
            post_path,
            headers: wire::each(&at.field("headers_to_add"), headers_to_add, header_addition)?,
            keep_response_headers: propagate_response_headers,
            keep_response_trailers: propagate_response_trailers,
            request_id,
        })
    }
}
