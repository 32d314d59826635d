//! The gRPC methods of xDS, and the task that drives each stream.
//!
//! Carries requests into the shared world and what it says back out. Never decides anything.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use outrigger_api::pb::envoy::service::discovery::v3 as discovery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::KeyAndValueRef;
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::protocol::{Protocol, Request, Response};
use crate::shared::Shared;
use crate::types;

/// Services with the noun of their methods (`Stream<noun>`, `Delta<noun>`) and the type they serve.
const SERVICES: [(&str, &str, Option<&str>); 10] = [
    ("envoy.service.discovery.v3.AggregatedDiscoveryService", "AggregatedResources", None),
    ("envoy.service.listener.v3.ListenerDiscoveryService", "Listeners", Some(types::LISTENER)),
    ("envoy.service.route.v3.RouteDiscoveryService", "Routes", Some(types::ROUTE)),
    ("envoy.service.route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes", Some(types::SCOPED_ROUTE)),
    ("envoy.service.route.v3.VirtualHostDiscoveryService", "VirtualHosts", Some(types::VIRTUAL_HOST)),
    ("envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters", Some(types::CLUSTER)),
    ("envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints", Some(types::ENDPOINTS)),
    ("envoy.service.secret.v3.SecretDiscoveryService", "Secrets", Some(types::SECRET)),
    ("envoy.service.runtime.v3.RuntimeDiscoveryService", "Runtime", Some(types::RUNTIME)),
    ("envoy.service.extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs", Some(types::EXTENSION_CONFIG)),
];

/// Larger than any set a test makes; the default of 4 MiB is not.
const LARGEST_MESSAGE: usize = 256 * 1024 * 1024;

/// Responses that may wait in a stream's channel for a slow client.
const CHANNEL_DEPTH: usize = 4;

/// All xDS services on one port.
#[derive(Clone, Debug)]
pub(crate) struct Xds(pub Arc<Shared>);

impl Service<http::Request<Body>> for Xds {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let method = request.uri().path().to_owned();
            let Some((protocol, only)) = method_of(&method) else {
                return Ok(Status::unimplemented(format!("{method} is not served here")).into_http());
            };
            let opening = Opening { shared, method, protocol, only };
            Ok(match protocol {
                Protocol::Sotw => {
                    let codec = ProstCodec::<discovery::DiscoveryResponse, discovery::DiscoveryRequest>::default();
                    grpc(codec).streaming(opening, request).await
                }
                Protocol::Delta => {
                    let codec =
                        ProstCodec::<discovery::DeltaDiscoveryResponse, discovery::DeltaDiscoveryRequest>::default();
                    grpc(codec).streaming(opening, request).await
                }
            })
        })
    }
}

fn grpc<T: tonic::codec::Codec>(codec: T) -> Grpc<T> {
    Grpc::new(codec).apply_max_message_size_config(Some(LARGEST_MESSAGE), None)
}

/// The protocol and, on a per-type stream, the type of a method path.
fn method_of(path: &str) -> Option<(Protocol, Option<&'static str>)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, noun, only) = SERVICES.iter().find(|(name, ..)| *name == service)?;
    let protocol = match method.strip_suffix(noun)? {
        "Stream" => Protocol::Sotw,
        "Delta" => Protocol::Delta,
        _ => return None,
    };
    Some((protocol, *only))
}

/// A stream about to be opened.
struct Opening {
    shared: Arc<Shared>,
    method: String,
    protocol: Protocol,
    only: Option<&'static str>,
}

impl Opening {
    /// Opens the stream in the world and starts its task.
    fn start<Req, Res>(
        &self,
        request: tonic::Request<Streaming<Req>>,
        to_world: fn(Req) -> Request,
        to_wire: fn(Response) -> Option<Res>,
    ) -> Result<tonic::Response<ReceiverStream<Result<Res, Status>>>, Status>
    where
        Req: Send + 'static,
        Res: Send + 'static,
    {
        if let Some(code) = self.shared.read(|world| world.faults.refuse) {
            return Err(Status::new(Code::from_i32(code), "streams are refused"));
        }
        let headers = headers_of(request.metadata());
        let id = self.shared.observe(|world| world.open(self.protocol, &self.method, self.only, headers));
        let (outbound, responses) = mpsc::channel(CHANNEL_DEPTH);
        let drive = Drive { shared: self.shared.clone(), id, to_world, to_wire };
        tokio::spawn(drive.run(request.into_inner(), outbound));
        Ok(tonic::Response::new(ReceiverStream::new(responses)))
    }
}

type Started<Res> =
    Pin<Box<dyn Future<Output = Result<tonic::Response<ReceiverStream<Result<Res, Status>>>, Status>> + Send>>;

impl StreamingService<discovery::DiscoveryRequest> for Opening {
    type Response = discovery::DiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<Self::Response, Status>>;
    type Future = Started<Self::Response>;

    fn call(&mut self, request: tonic::Request<Streaming<discovery::DiscoveryRequest>>) -> Self::Future {
        let started = self.start(request, Request::Sotw, |response| match response {
            Response::Sotw(response) => Some(response),
            Response::Delta(_) => None,
        });
        Box::pin(std::future::ready(started))
    }
}

impl StreamingService<discovery::DeltaDiscoveryRequest> for Opening {
    type Response = discovery::DeltaDiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<Self::Response, Status>>;
    type Future = Started<Self::Response>;

    fn call(&mut self, request: tonic::Request<Streaming<discovery::DeltaDiscoveryRequest>>) -> Self::Future {
        let started = self.start(request, Request::Delta, |response| match response {
            Response::Delta(response) => Some(response),
            Response::Sotw(_) => None,
        });
        Box::pin(std::future::ready(started))
    }
}

/// The task of one stream.
struct Drive<Req, Res> {
    shared: Arc<Shared>,
    id: u64,
    to_world: fn(Req) -> Request,
    to_wire: fn(Response) -> Option<Res>,
}

impl<Req, Res> Drive<Req, Res> {
    async fn run(self, inbound: Streaming<Req>, outbound: mpsc::Sender<Result<Res, Status>>) {
        // The stream ends when `outbound` is dropped, after what is in it has been sent.
        if let Err(status) = self.converse(inbound, &outbound).await {
            // The client may have gone first, and then nobody needs the status.
            drop(outbound.send(Err(status)).await);
        }
        self.shared.observe(|world| world.close(self.id));
    }

    async fn converse(
        &self,
        mut inbound: Streaming<Req>,
        outbound: &mpsc::Sender<Result<Res, Status>>,
    ) -> Result<(), Status> {
        let mut changes = self.shared.changes();
        loop {
            let step = self.shared.observe_if(|world| {
                let step = world.poll(self.id, Instant::now());
                let sent_any = !step.responses.is_empty();
                (step, sent_any)
            });
            for response in step.responses.into_iter().filter_map(self.to_wire) {
                if outbound.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            if let Some(code) = step.end {
                return Err(Status::new(Code::from_i32(code), "ended by the control plane"));
            }
            let wake = async {
                match step.wake_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(request)) => {
                        let request = (self.to_world)(request);
                        self.shared
                            .observe(|world| world.request(self.id, request))
                            .map_err(|violation| Status::invalid_argument(violation.to_string()))?;
                    }
                    Ok(None) | Err(_) => return Ok(()),
                },
                _ = changes.changed() => {}
                () = wake => {}
                () = outbound.closed() => return Ok(()),
            }
        }
    }
}

fn headers_of(metadata: &tonic::metadata::MetadataMap) -> BTreeMap<String, String> {
    metadata
        .iter()
        .filter_map(|entry| match entry {
            KeyAndValueRef::Ascii(key, value) => Some((key.as_str().to_owned(), value.to_str().ok()?.to_owned())),
            KeyAndValueRef::Binary(..) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_name_their_protocol_and_type() {
        let sotw_ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
        assert_eq!(method_of(sotw_ads), Some((Protocol::Sotw, None)));
        let delta_routes = "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes";
        assert_eq!(method_of(delta_routes), Some((Protocol::Delta, Some(types::ROUTE))));
        assert_eq!(method_of("/envoy.service.route.v3.RouteDiscoveryService/FetchRoutes"), None);
        assert_eq!(method_of("/grpc.health.v1.Health/Check"), None);
    }
}
