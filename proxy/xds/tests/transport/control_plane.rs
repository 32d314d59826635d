//! A control plane that does what the test says: any xDS method, over TCP, TLS or Unix sockets.

use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use outrigger_xds::Connector;
use outrigger_xds::connector::Io;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic_prost::ProstCodec;

pub enum Endpoint {
    Tcp,
    Tls,
    Unix(PathBuf),
    Abstract(String),
}

/// What arrived.
#[derive(Debug)]
pub enum Seen {
    Stream(Stream),
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

type Replies<A> = mpsc::UnboundedSender<Result<A, Status>>;

/// A stream that was opened.
#[derive(Debug)]
pub struct Stream {
    pub path: String,
    pub authority: String,
    pub headers: http::HeaderMap,
    replies: Answering,
}

#[derive(Debug)]
pub enum Answering {
    Sotw(Replies<DiscoveryResponse>),
    Delta(Replies<DeltaDiscoveryResponse>),
}

impl Stream {
    pub fn say(&self, response: DiscoveryResponse) {
        let Answering::Sotw(replies) = &self.replies else { panic!("{} is delta", self.path) };
        replies.send(Ok(response)).unwrap();
    }

    pub fn say_delta(&self, response: DeltaDiscoveryResponse) {
        let Answering::Delta(replies) = &self.replies else { panic!("{} is state of the world", self.path) };
        replies.send(Ok(response)).unwrap();
    }

    pub fn end(&self, status: Status) {
        match &self.replies {
            Answering::Sotw(replies) => replies.send(Err(status)).unwrap(),
            Answering::Delta(replies) => replies.send(Err(status)).unwrap(),
        }
    }

    /// Returns when the client has closed the stream.
    pub async fn closed(&self) {
        let closed = async {
            match &self.replies {
                Answering::Sotw(replies) => replies.closed().await,
                Answering::Delta(replies) => replies.closed().await,
            }
        };
        tokio::time::timeout(Duration::from_secs(60), closed).await.expect("still open");
    }
}

pub struct ControlPlane {
    seen: mpsc::UnboundedReceiver<Seen>,
    connections: Arc<AtomicUsize>,
    /// Ends the server and its connections when dropped.
    _tasks: JoinSet<()>,
}

impl ControlPlane {
    pub async fn start(endpoint: Endpoint) -> (Self, Connector) {
        let (sender, seen) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&connections);
        let connector = match endpoint {
            Endpoint::Tcp | Endpoint::Tls => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let plain = Connector::tcp(vec![listener.local_addr().unwrap()], None);
                let tls = matches!(endpoint, Endpoint::Tls).then(certificate);
                let (acceptor, connector) = match tls {
                    Some((acceptor, config)) => {
                        let name = ServerName::try_from("xds.test").unwrap();
                        (Some(acceptor), plain.tls(config, name))
                    }
                    None => (None, plain),
                };
                tasks.spawn(async move {
                    let mut open = JoinSet::new();
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        count.fetch_add(1, Ordering::Relaxed);
                        let (acceptor, sender) = (acceptor.clone(), sender.clone());
                        open.spawn(async move {
                            match acceptor {
                                Some(acceptor) => serve(acceptor.accept(stream).await.unwrap(), sender).await,
                                None => serve(stream, sender).await,
                            }
                        });
                    }
                });
                connector
            }
            Endpoint::Unix(path) => {
                let listener = UnixListener::bind(&path).unwrap();
                tasks.spawn(serve_unix(listener, sender, count));
                Connector::unix(path)
            }
            Endpoint::Abstract(name) => {
                use std::os::linux::net::SocketAddrExt;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
                let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
                listener.set_nonblocking(true).unwrap();
                tasks.spawn(serve_unix(UnixListener::from_std(listener).unwrap(), sender, count));
                Connector::unix(format!("@{name}").into())
            }
        };
        (Self { seen, connections, _tasks: tasks }, connector)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub async fn next(&mut self) -> Seen {
        tokio::time::timeout(Duration::from_secs(60), self.seen.recv()).await.expect("nothing seen").unwrap()
    }

    pub async fn stream(&mut self) -> Stream {
        loop {
            if let Seen::Stream(stream) = self.next().await {
                return stream;
            }
        }
    }

    pub async fn sotw(&mut self) -> DiscoveryRequest {
        match self.next().await {
            Seen::Sotw(request) => request,
            other => panic!("expected a request, saw {other:?}"),
        }
    }

    pub async fn delta(&mut self) -> DeltaDiscoveryRequest {
        match self.next().await {
            Seen::Delta(request) => request,
            other => panic!("expected a request, saw {other:?}"),
        }
    }
}

async fn serve_unix(listener: UnixListener, sender: mpsc::UnboundedSender<Seen>, count: Arc<AtomicUsize>) {
    let mut open = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        open.spawn(serve(stream, sender.clone()));
    }
}

async fn serve(stream: impl Io + 'static, sender: mpsc::UnboundedSender<Seen>) {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let sender = sender.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(request, sender).await) }
    });
    // A client that goes away is part of many tests.
    drop(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    seen: mpsc::UnboundedSender<Seen>,
) -> http::Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let headers = request.headers().clone();
    let stream = move |replies| Seen::Stream(Stream { path, authority, headers, replies });
    if request.uri().path().contains("/Delta") {
        let (replies, receiver) = mpsc::unbounded_channel();
        seen.send(stream(Answering::Delta(replies))).unwrap();
        let script = Script { seen, receiver: Some(receiver), wrap: Seen::Delta, _request: PhantomData };
        tonic::server::Grpc::new(ProstCodec::default()).streaming(script, request).await
    } else {
        let (replies, receiver) = mpsc::unbounded_channel();
        seen.send(stream(Answering::Sotw(replies))).unwrap();
        let script = Script { seen, receiver: Some(receiver), wrap: Seen::Sotw, _request: PhantomData };
        tonic::server::Grpc::new(ProstCodec::default()).streaming(script, request).await
    }
}

/// One stream: passes requests on to the test and the test's responses back.
struct Script<Q, A> {
    seen: mpsc::UnboundedSender<Seen>,
    receiver: Option<mpsc::UnboundedReceiver<Result<A, Status>>>,
    wrap: fn(Q) -> Seen,
    _request: PhantomData<Q>,
}

impl<Q, A> tonic::server::StreamingService<Q> for Script<Q, A>
where
    Q: Send + 'static,
    A: Send + 'static,
{
    type Response = A;
    type ResponseStream = UnboundedReceiverStream<Result<A, Status>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<Q>>) -> Self::Future {
        let (seen, wrap) = (self.seen.clone(), self.wrap);
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                drop(seen.send(wrap(request)));
            }
        });
        let receiver = self.receiver.take().unwrap();
        ready(Ok(tonic::Response::new(UnboundedReceiverStream::new(receiver))))
    }
}

/// A server's acceptor and the client configuration that trusts it.
fn certificate() -> (TlsAcceptor, Arc<rustls::ClientConfig>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["xds.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    (TlsAcceptor::from(Arc::new(server)), Arc::new(client))
}
