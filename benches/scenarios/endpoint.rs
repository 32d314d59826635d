//! An upstream with a known capacity, which can be made slow, failing, or dead.
//!
//! Owns its listener and connections. Never decides when it fails.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

/// One upstream of HTTP/1.1; it ends when dropped.
pub struct Endpoint {
    address: SocketAddr,
    conduct: Arc<Conduct>,
    accepting: Mutex<Option<AbortHandle>>,
}

struct Conduct {
    /// Requests worked on at a time; others wait inside.
    places: Semaphore,
    /// What a request costs, times the factor that it names.
    service_us: AtomicU64,
    status: AtomicU16,
    served: AtomicU64,
    refuse: AtomicBool,
}

impl Endpoint {
    /// Works on `places` requests at a time, each for `service`.
    pub async fn start(places: usize, service: Duration) -> Self {
        let conduct = Arc::new(Conduct {
            places: Semaphore::new(places),
            service_us: AtomicU64::new(service.as_micros() as u64),
            status: AtomicU16::new(200),
            served: AtomicU64::new(0),
            refuse: AtomicBool::new(false),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let endpoint = Self { address, conduct, accepting: Mutex::default() };
        endpoint.accept(listener);
        endpoint
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Requests answered so far.
    pub fn served(&self) -> u64 {
        self.conduct.served.load(Ordering::Relaxed)
    }

    pub fn set_service(&self, service: Duration) {
        self.conduct.service_us.store(service.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn set_status(&self, status: u16) {
        self.conduct.status.store(status, Ordering::Relaxed);
    }

    /// Dies as a process does: the port refuses, and connections are reset.
    pub fn kill(&self) {
        self.conduct.refuse.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            accepting.abort();
        }
    }

    /// Lives again on the same port.
    pub async fn revive(&self) {
        self.conduct.refuse.store(false, Ordering::Relaxed);
        for _ in 0..100 {
            // The old listener may not be gone yet.
            match TcpListener::bind(self.address).await {
                Ok(listener) => return self.accept(listener),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn accept(&self, listener: TcpListener) {
        let conduct = Arc::clone(&self.conduct);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let conduct = Arc::clone(&conduct);
                connections.spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&conduct), request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        *self.accepting.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn answer(
    conduct: Arc<Conduct>,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let factor = request.headers().get("x-cost").and_then(|cost| cost.to_str().ok()?.parse().ok()).unwrap_or(1);
    {
        let _place = conduct.places.acquire().await;
        let service = Duration::from_micros(conduct.service_us.load(Ordering::Relaxed) * factor);
        tokio::time::sleep(service).await;
    }
    conduct.served.fetch_add(1, Ordering::Relaxed);
    let mut response = hyper::Response::new(Full::new(Bytes::from_static(b"done\n")));
    let status = conduct.status.load(Ordering::Relaxed);
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::OK);
    Ok(response)
}
