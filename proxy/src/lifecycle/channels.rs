//! gRPC channels to services that the configuration names.
//!
//! Owns the channel. Never dials by itself: `upstream::dial` knows the way to a cluster.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use outrigger_config::source::{GrpcService, GrpcTarget};
use outrigger_xds::Connector;
use outrigger_xds::connector::{Connecting, Connection};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::accesslog::ChannelError;
use crate::process::Process;
use crate::upstream::dial::connector_for;

/// A channel that connects when it is first used, and again after a connection was lost.
pub(super) fn channel(service: &GrpcService, process: &Arc<Process>) -> Result<Channel, ChannelError> {
    let authority = match &service.target {
        GrpcTarget::Cluster { authority: Some(authority), .. } => authority.clone(),
        GrpcTarget::Cluster { name, .. } => name.to_string(),
        GrpcTarget::Uri { target, .. } => target.trim_start_matches("dns:///").to_owned(),
    };
    // A name that cannot be an authority, such as a path, is not worth failing for: few servers look at it.
    let origin: Uri = format!("http://{authority}").parse().unwrap_or_else(|_| Uri::from_static("http://localhost"));
    let dial = Dial(connector_for(service, process)?);
    // The endpoint's own address is never dialled.
    Ok(Endpoint::from_static("http://service.invalid").origin(origin).connect_with_connector_lazy(dial))
}

/// A connector in the form that tonic takes.
struct Dial(Connector);

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Dialling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Dialling {
        Dialling(self.0.connect())
    }
}

struct Dialling(Connecting);

impl Future for Dialling {
    type Output = io::Result<TokioIo<Connection>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context).map_ok(TokioIo::new)
    }
}
