//! Streams of external processing that are opened again: as often as Envoy opens them, with what was told before.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::body::Incoming;
use outrigger_api::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use outrigger_api::pb::envoy::service::ext_proc::v3::processing_request::Request as Told;
use outrigger_api::pb::envoy::service::ext_proc::v3::processing_response::Response as Said;
use outrigger_api::pb::envoy::service::ext_proc::v3::{HeadersResponse, ProcessingRequest, ProcessingResponse};
use outrigger_tests::config::{self, bootstrap, chain, cluster, http, http2_cluster, routes};
use outrigger_tests::grpc_server::GrpcServer;
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

/// Lets all heads pass.
#[derive(Clone)]
struct Willing;

#[tonic::async_trait]
impl ExternalProcessor for Willing {
    type ProcessStream = UnboundedReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (answers, answered) = mpsc::unbounded_channel();
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                let response = match message.request {
                    Some(Told::RequestHeaders(_)) => Said::RequestHeaders(HeadersResponse::default()),
                    _ => Said::ResponseHeaders(HeadersResponse::default()),
                };
                let answer = ProcessingResponse { response: Some(response), ..ProcessingResponse::default() };
                if answers.send(Ok(answer)).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(answered)))
    }
}

/// A service that is unavailable so many times before it is willing, and how often it was asked.
async fn service(refusals: u32) -> (GrpcServer, Arc<AtomicU32>) {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let willing = ExternalProcessorServer::new(Willing);
    let server = GrpcServer::start(move |request: http::Request<Incoming>| {
        let (mut willing, refuses) = (willing.clone(), count.fetch_add(1, Ordering::SeqCst) < refusals);
        async move {
            match refuses {
                // The status comes in the head, and nothing else does.
                true => Ok(Status::unavailable("not now").into_http()),
                false => willing.call(request).await,
            }
        }
    })
    .await;
    (server, asked)
}

fn listener(retry_on: &str, service: &str) -> String {
    let filter = format!(
        "http_filters: [{{ name: p, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor, message_timeout: 60s, \
         grpc_service: {{ envoy_grpc: {{ cluster_name: {service} }}, retry_policy: {{ retry_on: {retry_on}, num_retries: 2, \
         retry_back_off: {{ base_interval: 0.001s, max_interval: 60s }} }} }} }} }}, "
    );
    let manager = http(service, &routes("{ match: { prefix: / }, route: { cluster: one } }"));
    config::listener(service, &[chain(&manager.replace("http_filters: [", &filter), "")], "")
}

async fn observed(program: PathBuf) -> Vec<String> {
    let one = Upstream::start("one").await;
    let cases = [("once", 1, "unavailable"), ("always", 9, "unavailable"), ("other", 1, "internal")];
    let mut services = Vec::new();
    for (name, refusals, retry_on) in cases {
        services.push((name, retry_on, service(refusals).await));
    }
    let mut clusters = vec![cluster("one", &[one.port()])];
    clusters.extend(services.iter().map(|(name, _, (server, _))| http2_cluster(name, &[server.port()])));
    let listeners: Vec<_> = services.iter().map(|(name, retry_on, _)| listener(retry_on, name)).collect();
    let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), Settings { program, ..Settings::default() }).await;
    let mut seen = Vec::new();
    for (name, _, (_, asked)) in &services {
        let status = h1::get(proxy.listener(name).await, "/").await.status;
        seen.push(format!("{name}: {status} after {}", asked.load(Ordering::SeqCst)));
    }
    seen
}

#[tokio::test]
async fn streams_are_opened_again_as_by_envoy() {
    let expected = observed(proxy::envoy()).await;
    assert_eq!(expected, ["once: 200 after 2", "always: 500 after 3", "other: 500 after 1"]);
    assert_eq!(observed(proxy::program()).await, expected);
}
