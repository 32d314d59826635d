//! Calling gRPC by HTTP/1.1 (`envoy.extensions.filters.http.grpc_http1_bridge.v3`).
//!
//! Owns what is done besides moving the status of a call. Never translates a call.

use outrigger_api::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3 as pb;

use crate::decide::decide;

/// Source: `envoy.extensions.filters.http.grpc_http1_bridge.v3.Config`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GrpcBridge {
    /// Requests with a bare message (`application/x-protobuf`) become calls, and their answers bare messages.
    pub upgrade_protobuf: bool,
    /// What stands after `?` in the path of such a request is removed.
    pub ignore_query: bool,
}

impl GrpcBridge {
    pub(super) fn parse(wire: pb::Config) -> Self {
        decide!(wire, at, pb::Config as "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config" {
            implemented: upgrade_protobuf_to_grpc, ignore_query_parameters;
            no_effect: ;
            unsupported: ;
        });
        Self { upgrade_protobuf: upgrade_protobuf_to_grpc, ignore_query: ignore_query_parameters }
    }
}
