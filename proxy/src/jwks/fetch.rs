//! Fetching a key set from its server.
//!
//! Owns the request, its limits and its retries. Never keeps keys.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::http::filters::{FetchRetries, RemoteJwks};
use outrigger_config::jwks::{Jwks, MAX_BYTES};
use tokio::time::timeout;

use crate::process::Process;
use crate::upstream::dial::{self, HttpVersion};
use crate::upstream::stats::ClusterStats;
use crate::worker::random::Random;

/// A key set and its text, or why there is none.
pub(super) type FetchResult = Result<(Jwks, Vec<u8>), String>;

/// Fetches key sets of one cluster.
pub(super) struct Fetcher {
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

    /// Fetches a key set, with retries, within the limit of its settings.
    pub async fn fetch(&mut self, settings: &RemoteJwks) -> FetchResult {
        let limit = if settings.timeout.is_zero() { LONGEST } else { settings.timeout };
        match timeout(limit, self.attempts(settings)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }

    async fn attempts(&mut self, settings: &RemoteJwks) -> FetchResult {
        let mut tried = 0;
        loop {
            self.turn = self.turn.wrapping_add(1);
            let (error, is_worth_it) = match self.attempt(settings).await {
                Ok((StatusCode::OK, body)) => {
                    return match Jwks::parse(&body) {
                        Ok(keys) => Ok((keys, body)),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Ok((status, _)) => (format!("answered with {status}"), status.is_server_error()),
                Err(error) => (error, true),
            };
            match settings.retries.filter(|retries| is_worth_it && tried < retries.count) {
                Some(retries) => tokio::time::sleep(pause(retries, tried, self.random.next())).await,
                None => return Err(error),
            }
            tried += 1;
        }
    }

    async fn attempt(&self, settings: &RemoteJwks) -> Result<(StatusCode, Vec<u8>), String> {
        let opened = dial::connect_http(&self.process, &settings.cluster, self.turn, &self.stats).await;
        let opened = opened.map_err(words)?;
        self.stats.get().inspect(|stats| stats.upstream_rq_total.increment());
        let request = |uri: String| {
            let request = Request::get(uri).header("accept", "application/json").header("user-agent", USER_AGENT);
            request.header("host", &settings.authority).body(Empty::<Bytes>::new()).map_err(words)
        };
        let io = TokioIo::new(opened.connection);
        let response = match opened.version {
            HttpVersion::Http1 => {
                let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.map_err(words)?;
                let driver = Driver(tokio::task::spawn_local(async move { drop(connection.await) }));
                (client.send_request(request(settings.path.clone())?).await, driver)
            }
            HttpVersion::Http2 => {
                let mut builder = hyper::client::conn::http2::Builder::new(OnThisThread);
                let (mut client, connection) = builder.timer(TokioTimer::new()).handshake(io).await.map_err(words)?;
                let driver = Driver(tokio::task::spawn_local(async move { drop(connection.await) }));
                let scheme = if opened.secure { "https" } else { "http" };
                let uri = format!("{scheme}://{}{}", settings.authority, settings.path);
                (client.send_request(request(uri)?).await, driver)
            }
        };
        let (response, _driver) = response;
        let response = response.map_err(words)?;
        self.stats.get().inspect(|stats| stats.response(response.status().as_u16()));
        read(response).await
    }
}

/// At random within an interval that doubles.
fn pause(retries: FetchRetries, tried: u32, random: u64) -> Duration {
    let doubled = retries.base_interval.saturating_mul(2_u32.saturating_pow(tried.min(30)));
    let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
    doubled.min(retries.max_interval).mul_f64(share)
}

async fn read(response: Response<Incoming>) -> Result<(StatusCode, Vec<u8>), String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
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

/// Runs what belongs to a connection on the control thread.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

const USER_AGENT: &str = "outrigger";
/// Where the settings have no limit.
const LONGEST: Duration = Duration::from_secs(15);
