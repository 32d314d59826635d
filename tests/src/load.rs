//! Requests without a pause while something changes: HTTP/1.1 and HTTP/2 clients, and what became of each request.
//!
//! Owns the clients and the count. Never decides what should have happened.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::{Response, h1, h2c, within};

/// Clients under way; they end with [`Load::end`] or when this is dropped.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    clients: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Tally {
    good: AtomicU64,
    reconnects: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
    /// Something was counted.
    news: Notify,
}

impl Load {
    /// Starts as many HTTP/1.1 and as many HTTP/2 clients, each of which asks for `/0` to `/<paths - 1>` in turn.
    pub fn start(address: SocketAddr, clients: usize, paths: usize) -> Self {
        let tally = Arc::new(Tally::default());
        let mut running = JoinSet::new();
        for number in 0..clients {
            running.spawn(h1_client(address, number, paths, Arc::clone(&tally)));
            running.spawn(h2_client(address, number, paths, Arc::clone(&tally)));
        }
        Self { tally, clients: running }
    }

    /// Requests answered with 200 so far.
    pub fn good(&self) -> u64 {
        self.tally.good.load(Ordering::Relaxed)
    }

    /// Connections made after the first ones, each because the proxy ended one in good order.
    pub fn reconnects(&self) -> u64 {
        self.tally.reconnects.load(Ordering::Relaxed)
    }

    /// What went wrong so far.
    pub fn failures(&self) -> Vec<String> {
        self.tally.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `more` further requests have ended.
    pub async fn goes_on(&self, more: u64) {
        let ended = || self.good() + self.failures().len() as u64;
        let goal = ended() + more;
        within("requests go on", async {
            loop {
                let news = self.tally.news.notified();
                if ended() >= goal {
                    return;
                }
                news.await;
            }
        })
        .await;
    }

    /// Lets the clients end after their current request.
    pub async fn end(&mut self) {
        self.tally.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                self.tally.fail(error.to_string());
            }
        }
    }
}

impl Tally {
    fn fail(&self, what: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        self.news.notify_waiters();
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn judge(&self, who: &str, target: &str, response: &Response) {
        if response.status == 200 {
            self.good.fetch_add(1, Ordering::Relaxed);
            self.news.notify_waiters();
        } else {
            self.fail(format!("{who} {target}: {} {}", response.status, response.text()));
        }
    }
}

/// One HTTP/1.1 client that keeps its connection as long as the proxy does.
async fn h1_client(address: SocketAddr, number: usize, paths: usize, tally: Arc<Tally>) {
    let mut client = h1::Client::connect(address).await;
    let mut count = number;
    while tally.goes_on() {
        count += 1;
        let body = if count.is_multiple_of(3) { "some body" } else { "" };
        let target = format!("/{}", count % paths);
        client.send(h1::request_bytes("POST", &target, &[("x-reply", "bytes=2000")], body.as_bytes())).await;
        match client.try_response("POST").await {
            Ok(response) => {
                tally.judge("h1", &target, &response);
                if response.header("connection") == Some("close") {
                    tally.reconnects.fetch_add(1, Ordering::Relaxed);
                    client = h1::Client::connect(address).await;
                }
            }
            Err(error) => {
                tally.fail(format!("h1 {target}: {error}"));
                client = h1::Client::connect(address).await;
            }
        }
    }
}

/// One HTTP/2 client; a GOAWAY that says the request was not looked at is no failure.
async fn h2_client(address: SocketAddr, number: usize, paths: usize, tally: Arc<Tally>) {
    let mut client = h2c::Client::connect(address).await;
    let mut count = number;
    while tally.goes_on() {
        count += 1;
        let target = format!("/{}", count % paths);
        match client.try_request("GET", &target, &[("x-reply", "bytes=2000")], b"", &[]).await {
            Ok(response) => tally.judge("h2", &target, &response),
            Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                tally.reconnects.fetch_add(1, Ordering::Relaxed);
                client = h2c::Client::connect(address).await;
            }
            Err(error) => {
                tally.fail(format!("h2 {target}: {error:?}"));
                client = h2c::Client::connect(address).await;
            }
        }
    }
}
