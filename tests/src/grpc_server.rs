//! The part that all scripted gRPC services have in common: a port, and connections of HTTP/2.
//!
//! Owns the listener and its task. Never knows what is called.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// The headers of one call, in order.
pub type Head = Vec<(String, String)>;

/// The headers of calls, as they came.
#[derive(Clone, Debug, Default)]
pub struct Heads(Arc<Mutex<Vec<Head>>>);

impl Heads {
    /// Keeps those of a call.
    pub fn keep<B>(&self, request: &http::Request<B>) {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = request.headers().iter().map(|(name, value)| (name.to_string(), text(value)));
        let authority = request.uri().authority().map(|authority| (":authority".to_owned(), authority.to_string()));
        let all = authority.into_iter().chain(headers).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(all);
    }

    /// Those that came since the last time.
    pub fn take(&self) -> Vec<Head> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running server; it ends when dropped, with its connections.
#[derive(Debug)]
pub struct GrpcServer {
    address: SocketAddr,
    task: AbortHandle,
}

impl GrpcServer {
    /// Starts on a free port of 127.0.0.1. `answer` gets each request.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn start<A, F, E>(answer: A) -> Self
    where
        A: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<http::Response<tonic::body::Body>, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        Self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), answer).await
    }

    /// The same on this address.
    ///
    /// # Panics
    /// If it cannot be listened on.
    pub async fn listen<A, F, E>(address: SocketAddr, answer: A) -> Self
    where
        A: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<http::Response<tonic::body::Body>, E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(answer.clone());
                connections
                    .spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task: task.abort_handle() }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
