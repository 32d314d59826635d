//! Requests that the control thread makes to HTTP servers of our clusters, for what workers use later: keys, tokens.
//!
//! Owns the request, its limits and its retries. Never keeps what was fetched.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::http_uri::FetchRetries;
use tokio::time::timeout;

use crate::on_this_thread::OnThisThread;
use crate::process::Process;
use crate::upstream::dial::{self, HttpVersion};
use crate::upstream::stats::ClusterStats;
use crate::worker::random::Random;

/// What is asked.
pub struct Fetch<'a> {
    /// The cluster that is asked.
    pub cluster: &'a Arc<str>,
    /// `GET` or `POST`.
    pub method: Method,
    /// The `host` of the request.
    pub authority: &'a str,
    /// Path with query.
    pub path: &'a str,
    /// What the body is, if there is one.
    pub content_type: Option<&'static str>,
    /// May be empty.
    pub body: Vec<u8>,
    /// Limit on all attempts together; [`LONGEST`] if `None`.
    pub timeout: Option<Duration>,
    /// What follows a failure.
    pub retries: Option<FetchRetries>,
    /// A longer answer is an error.
    pub max_bytes: usize,
}

/// The status and the body of an answer, or why there is none.
pub type Fetched = Result<(StatusCode, Vec<u8>), String>;

/// Makes requests to one cluster.
pub struct Fetcher {
    process: Arc<Process>,
    /// Chooses among the endpoints.
    turn: usize,
    random: Random,
    /// The control thread's own share of the cluster's stats.
    stats: OnceLock<Arc<ClusterStats>>,
}

impl Fetcher {
    /// One that has fetched nothing yet.
    pub fn new(process: Arc<Process>) -> Self {
        Self { process, turn: 0, random: Random::new(), stats: OnceLock::new() }
    }

    /// Asks, and asks again after errors 5xx and failures as far as that is allowed.
    ///
    /// # Errors
    /// When there is no answer, whatever its status, within the limit.
    pub async fn fetch(&mut self, fetch: &Fetch<'_>) -> Fetched {
        let limit = fetch.timeout.unwrap_or(LONGEST);
        match timeout(limit, self.attempts(fetch)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }

    async fn attempts(&mut self, fetch: &Fetch<'_>) -> Fetched {
        let mut tried = 0;
        loop {
            self.turn = self.turn.wrapping_add(1);
            let result = self.attempt(fetch).await;
            let is_final = result.as_ref().is_ok_and(|(status, _)| !status.is_server_error());
            match fetch.retries.filter(|retries| !is_final && tried < retries.count) {
                Some(retries) => tokio::time::sleep(retries.pause(tried, self.random.next())).await,
                None => return result,
            }
            tried += 1;
        }
    }

    async fn attempt(&self, fetch: &Fetch<'_>) -> Fetched {
        let opened = dial::connect_http(&self.process, fetch.cluster, self.turn, &self.stats).await;
        let opened = opened.map_err(words)?;
        self.stats.get().inspect(|stats| stats.upstream_rq_total.increment());
        let request = |uri: String| {
            let mut request = Request::builder().method(fetch.method.clone()).uri(uri);
            request = request.header("accept", "application/json").header("user-agent", USER_AGENT);
            if let Some(content_type) = fetch.content_type {
                request = request.header("content-type", content_type);
            }
            request.header("host", fetch.authority).body(Full::new(Bytes::from(fetch.body.clone()))).map_err(words)
        };
        let io = TokioIo::new(opened.connection);
        let response = match opened.version {
            HttpVersion::Http1 => {
                let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.map_err(words)?;
                let driver = Driver(tokio::task::spawn_local(async move { drop(connection.await) }));
                (client.send_request(request(fetch.path.to_owned())?).await, driver)
            }
            HttpVersion::Http2 => {
                let mut builder = hyper::client::conn::http2::Builder::new(OnThisThread);
                let (mut client, connection) = builder.timer(TokioTimer::new()).handshake(io).await.map_err(words)?;
                let driver = Driver(tokio::task::spawn_local(async move { drop(connection.await) }));
                let scheme = if opened.secure { "https" } else { "http" };
                let uri = format!("{scheme}://{}{}", fetch.authority, fetch.path);
                (client.send_request(request(uri)?).await, driver)
            }
        };
        let (response, _driver) = response;
        let response = response.map_err(words)?;
        self.stats.get().inspect(|stats| stats.response(response.status().as_u16()));
        read(response, fetch.max_bytes).await
    }
}

async fn read(response: Response<Incoming>, max_bytes: usize) -> Fetched {
    let status = response.status();
    let body = Limited::new(response.into_body(), max_bytes).collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes().to_vec()))
}

fn words(error: impl std::error::Error) -> String {
    error.to_string()
}

/// Ends the task of a connection with its request.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const USER_AGENT: &str = "outrigger";
/// Where the settings have no limit.
pub const LONGEST: Duration = Duration::from_secs(15);
