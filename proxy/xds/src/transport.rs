//! gRPC streams to control planes.
//!
//! Owns HTTP/2 channels and the task that carries one stream. Never interprets messages or decides when to reconnect.

use std::sync::Arc;

use http::uri::PathAndQuery;
use outrigger_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::core::{Protocol, Request, ResourceKind, Response};
use crate::source::GrpcSource;

/// Window of a stream in bytes. Large enough that a big response is not limited by round trips; the messages are taken
/// out as they arrive, so it is no limit to their size.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// What a stream's task reports.
#[derive(Debug)]
pub(crate) enum Signal {
    /// The connection is there and requests can be sent.
    Opened(Outgoing),
    /// A response arrived.
    Response(Response),
    /// The stream ended or could not be established. The task is done.
    Closed(Status),
    /// A watched file may be new.
    FileChanged,
}

/// Reports are tagged with the number of the task, so that those of a replaced task can be told apart. The channel is
/// small on purpose: the next response is not read before the last one was judged.
pub(crate) type Signals = mpsc::Sender<(u64, Signal)>;

/// The way to send requests on a stream.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Sotw(mpsc::UnboundedSender<DiscoveryRequest>),
    Delta(mpsc::UnboundedSender<DeltaDiscoveryRequest>),
}

impl Outgoing {
    pub(crate) fn send(&self, request: Request) {
        // A closed stream reports itself by `Signal::Closed`; what could not be sent is composed anew after that.
        match (self, request) {
            (Self::Sotw(sender), Request::Sotw(request)) => drop(sender.send(request)),
            (Self::Delta(sender), Request::Delta(request)) => drop(sender.send(request)),
            (Self::Sotw(_), Request::Delta(_)) | (Self::Delta(_), Request::Sotw(_)) => {}
        }
    }
}

/// The HTTP/2 connection to one control plane, shared by its per-type streams.
#[derive(Debug, Default)]
pub(crate) struct SharedChannel(Mutex<Option<Channel>>);

impl SharedChannel {
    async fn get(&self, source: &GrpcSource) -> Result<Channel, Status> {
        let mut slot = self.0.lock().await;
        if let Some(channel) = &*slot {
            return Ok(channel.clone());
        }
        let channel = connect(source).await?;
        *slot = Some(channel.clone());
        Ok(channel)
    }

    /// The next stream makes a new connection, perhaps to another address.
    async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

/// Carries one stream from connecting to its end.
pub(crate) async fn run(
    source: Arc<GrpcSource>,
    channel: Arc<SharedChannel>,
    only: Option<ResourceKind>,
    task: u64,
    signals: Signals,
) {
    let status = match channel.get(&source).await {
        Err(status) => status,
        Ok(connected) => match source.protocol_for(only) {
            Protocol::Sotw => {
                let path = only.map_or(crate::core::ADS_SOTW_PATH, ResourceKind::sotw_path);
                exchange(&source, connected, path, task, &signals, Outgoing::Sotw, Response::Sotw).await
            }
            Protocol::Delta => {
                let path = only.map_or(crate::core::ADS_DELTA_PATH, ResourceKind::delta_path);
                exchange(&source, connected, path, task, &signals, Outgoing::Delta, Response::Delta).await
            }
        },
    };
    if status.code() != Code::Ok {
        channel.forget().await;
    }
    // Without a receiver the client is gone, and nobody needs the report.
    drop(signals.send((task, Signal::Closed(status))).await);
}

async fn exchange<Q, A>(
    source: &GrpcSource,
    channel: Channel,
    path: &'static str,
    task: u64,
    signals: &Signals,
    outgoing: fn(mpsc::UnboundedSender<Q>) -> Outgoing,
    incoming: fn(A) -> Response,
) -> Status
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let metadata = match source.initial_metadata.make() {
        Ok(metadata) => metadata,
        Err(reason) => return Status::unauthenticated(reason),
    };
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(source.max_message_bytes);
    if let Err(error) = grpc.ready().await {
        return Status::unavailable(chain(&error));
    }
    let (sender, receiver) = mpsc::unbounded_channel::<Q>();
    // Opened before the response head is there: many servers send it with the first message only, which they send
    // only after the first request.
    if signals.send((task, Signal::Opened(outgoing(sender)))).await.is_err() {
        return Status::cancelled("the client is gone");
    }
    let mut request = tonic::Request::new(UnboundedReceiverStream::new(receiver));
    *request.metadata_mut() = metadata;
    let codec = ProstCodec::<Q, A>::default();
    let mut responses = match grpc.streaming(request, PathAndQuery::from_static(path), codec).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    loop {
        match responses.message().await {
            Ok(Some(message)) => {
                if signals.send((task, Signal::Response(incoming(message)))).await.is_err() {
                    return Status::cancelled("the client is gone");
                }
            }
            Ok(None) => return Status::ok("closed by the control plane"),
            Err(status) => return status,
        }
    }
}

async fn connect(source: &GrpcSource) -> Result<Channel, Status> {
    let scheme = if source.secure { "https" } else { "http" };
    let origin: Uri = format!("{scheme}://{}", source.authority).parse().map_err(|error| {
        Status::invalid_argument(format!("\"{}\" cannot be an :authority: {error}", source.authority))
    })?;
    // The endpoint's own address is never dialled: the connector knows where to go.
    let mut endpoint = Endpoint::from_static("http://xds.invalid")
        .origin(origin)
        .connect_timeout(source.connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES);
    if let Some(keepalive) = source.http2_keepalive {
        endpoint = endpoint
            .http2_keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(true);
    }
    let connected = endpoint.connect_with_connector(source.connector.clone()).await;
    connected.map_err(|error| Status::unavailable(chain(&error)))
}

/// An error with its causes: tonic's own text is only "transport error". Some repeat their cause, which is said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
