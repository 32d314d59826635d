//! gRPC channels to services that the configuration names.
//!
//! Owns the channel. Never dials by itself: `upstream::dial` knows the way to a cluster.

use std::sync::Arc;

use outrigger_config::source::{GrpcService, GrpcTarget};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::accesslog::ChannelError;
use crate::process::Process;
use crate::upstream::dial::connector_for;

/// A channel that connects when it is first used, and again after a connection was lost.
pub(super) fn channel(service: &GrpcService, process: &Arc<Process>) -> Result<Channel, ChannelError> {
    let authority = service.authority();
    // A name that cannot be an authority, such as a path, is not worth failing for: few servers look at it.
    let secure = matches!(&service.target, GrpcTarget::Uri { tls: Some(_), .. });
    let scheme = if secure { "https" } else { "http" };
    let origin: Uri =
        format!("{scheme}://{authority}").parse().unwrap_or_else(|_| Uri::from_static("http://localhost"));
    let connector = connector_for(service, process)?;
    // The endpoint's own address is never dialled.
    Ok(Endpoint::from_static("http://service.invalid").origin(origin).connect_with_connector_lazy(connector))
}
