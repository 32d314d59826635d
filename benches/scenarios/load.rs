//! Requests at a steady rate, whatever becomes of those before them, and what became of each.
//!
//! Owns the pace and the record. Latency counts from the moment a request was due.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

/// What became of the requests.
pub struct Record {
    /// Of those that were answered with 200, in microseconds.
    pub latency: Histogram<u64>,
    /// The others: when they ended, counted from the start.
    pub failures: Vec<Duration>,
}

impl Record {
    /// A quantile of the latency, in milliseconds.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Sends `rate` requests a second for `duration`; one of ten costs five times as much as the others. Waits for all.
pub async fn run(address: SocketAddr, rate: u32, duration: Duration) -> Record {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds in order");
    let record = Arc::new(Mutex::new(Record { latency, failures: Vec::new() }));
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for number in 0..(duration.as_secs_f64() * f64::from(rate)) as u32 {
        let due = start + Duration::from_secs_f64(f64::from(number) / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        let cost = if number % 10 == 0 { "5" } else { "1" };
        let request = hyper::Request::get(format!("http://{address}/")).header("x-cost", cost).body(Empty::new());
        let (client, record) = (client.clone(), Arc::clone(&record));
        requests.spawn(async move {
            let good = match client.request(request.expect("a valid request")).await {
                Ok(response) => {
                    let ok = response.status() == 200;
                    response.into_body().collect().await.is_ok() && ok
                }
                Err(_) => false,
            };
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            if good {
                record.latency.saturating_record(due.elapsed().as_micros() as u64);
            } else {
                record.failures.push(start.elapsed());
            }
        });
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    let record = Arc::into_inner(record).expect("all requests are over");
    record.into_inner().unwrap_or_else(PoisonError::into_inner)
}
