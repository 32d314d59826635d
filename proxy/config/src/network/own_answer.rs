//! Filters that answer a connection here, in place of an upstream: a fixed text, or what the client said.
//!
//! Owns what they say. Never writes a byte.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::network::direct_response::v3 as direct;
use outrigger_api::pb::envoy::extensions::filters::network::echo::v3 as echo;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What a client gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OwnAnswer {
    /// These bytes and the end. Source: `envoy.extensions.filters.network.direct_response.v3.Config`.
    Fixed(Arc<[u8]>),
    /// What it said. Source: `envoy.extensions.filters.network.echo.v3.Echo`.
    Echo,
}

impl OwnAnswer {
    pub(crate) fn fixed(context: &Context<'_>, at: &FieldPath<'_>, wire: direct::Config) -> Parsed<Self> {
        decide!(wire, at, direct::Config as "envoy.extensions.filters.network.direct_response.v3.Config" {
            implemented: response;
            no_effect: ;
            unsupported: ;
        });
        let bytes = match response {
            None => Vec::new(),
            Some(response) => wire::data_source(context, &at.field("response"), response)?.bytes,
        };
        Ok(Self::Fixed(bytes.into()))
    }

    pub(crate) fn echo(wire: echo::Echo) -> Self {
        let echo::Echo {} = wire;
        Self::Echo
    }
}
