//! One token that is fetched.
//!
//! Owns the token as it is now, and when it is fetched again. Workers read an atomic pointer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Method;
use outrigger_config::http::filters::ClientToken;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::request::{self, Refused};
use super::{TokenStats, request::token};
use crate::fetch::{Fetch, Fetcher};
use crate::graph::secrets::SecretReader;
use crate::process::Process;

/// A token that is fetched before the one at hand ends.
pub struct RemoteToken {
    stat_prefix: Arc<str>,
    settings: Arc<ClientToken>,
    current: ArcSwapOption<Held>,
    /// It was tried once, well or not.
    tried: watch::Sender<bool>,
    gone: Arc<Notify>,
}

struct Held {
    /// Value of `authorization`.
    header: Box<[u8]>,
    expires: Instant,
}

impl Drop for RemoteToken {
    fn drop(&mut self) {
        // The task that looks after it sees that it is gone.
        self.gone.notify_one();
    }
}

impl RemoteToken {
    pub(super) fn new(stat_prefix: Arc<str>, settings: Arc<ClientToken>) -> Self {
        let (current, tried) = (ArcSwapOption::empty(), watch::Sender::new(false));
        Self { stat_prefix, settings, current, tried, gone: Arc::default() }
    }

    pub(super) fn stat_prefix(&self) -> &str {
        &self.stat_prefix
    }

    pub(super) fn gone(&self) -> Arc<Notify> {
        Arc::clone(&self.gone)
    }

    /// Shows the value of `authorization` to `look`, unless there is none that holds.
    pub fn with_header<R>(&self, look: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let current = self.current.load();
        let held = current.as_ref().filter(|held| Instant::now() < held.expires);
        look(held.map(|held| &*held.header))
    }

    /// Whether it was tried once.
    pub fn was_tried(&self) -> bool {
        *self.tried.borrow()
    }

    /// Waits until it was tried once.
    pub fn first_attempt(self: &Arc<Self>) -> impl Future<Output = ()> + 'static {
        let mut tried = self.tried.subscribe();
        async move {
            // If the sender is gone, nobody will try.
            let _ = tried.wait_for(|tried| *tried).await;
        }
    }

    /// Takes an attempt in; gives the time until the next one.
    fn take(&self, result: Result<(String, u64), Failure>, stats: &TokenStats) -> Duration {
        let ClientToken { endpoint, retry_interval, .. } = &*self.settings;
        let pause = match result {
            Ok((token, seconds)) => {
                stats.token_fetched.increment();
                let expires = Instant::now() + Duration::from_secs(seconds.min(LONGEST_SECONDS));
                self.current
                    .store(Some(Arc::new(Held { header: [b"Bearer ", token.as_bytes()].concat().into(), expires })));
                // In good time, as Envoy does; a server that says 0 is not asked without a pause.
                Duration::from_secs((seconds.min(LONGEST_SECONDS) / 2).max(1))
            }
            Err(failure) => {
                match &failure {
                    Failure::NoSecret => stats.token_fetch_failed_on_client_secret.increment(),
                    Failure::NoCluster => stats.token_fetch_failed_on_cluster_not_found.increment(),
                    Failure::NoAnswer(_) | Failure::Refused(Refused::Status(_)) => {
                        stats.token_fetch_failed_on_bad_response_code.increment();
                    }
                    Failure::Refused(Refused::Malformed) => stats.token_fetch_failed_on_bad_token.increment(),
                }
                let (uri, cluster) = (&endpoint.uri, &endpoint.cluster);
                tracing::warn!("token from {uri} (cluster {cluster:?}): {failure}");
                *retry_interval
            }
        };
        self.tried.send_replace(true);
        pause
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("there is no client secret yet")]
    NoSecret,
    #[error("there is no such cluster yet")]
    NoCluster,
    #[error("{0}")]
    NoAnswer(String),
    #[error("{0}")]
    Refused(Refused),
}

/// Fetches a token again and again until nobody holds it any more.
pub(super) async fn look_after(
    remote: Weak<RemoteToken>,
    gone: Arc<Notify>,
    process: Arc<Process>,
    stats: Arc<TokenStats>,
) {
    let Some(settings) = remote.upgrade().map(|remote| Arc::clone(&remote.settings)) else { return };
    let secret = SecretReader::new(&settings.secret);
    let mut fetcher = Fetcher::new(Arc::clone(&process));
    loop {
        let attempt = attempt(&mut fetcher, &settings, &secret, &process, &stats);
        let result = tokio::select! {
            result = attempt => result,
            () = gone.notified() => return,
        };
        let Some(pause) = remote.upgrade().map(|remote| remote.take(result, &stats)) else { return };
        let due = Instant::now() + pause;
        tokio::select! {
            () = sleep_until(due) => {}
            () = gone.notified() => return,
        }
    }
}

async fn attempt(
    fetcher: &mut Fetcher,
    settings: &ClientToken,
    secret: &SecretReader,
    process: &Process,
    stats: &TokenStats,
) -> Result<(String, u64), Failure> {
    let graph = process.graph.load();
    let secret = secret.get(&graph).filter(|secret| !secret.value.is_empty()).ok_or(Failure::NoSecret)?;
    let secret = std::str::from_utf8(&secret.value).map_err(|_| Failure::NoSecret)?;
    if !graph.clusters.contains_key(&settings.endpoint.cluster) {
        return Err(Failure::NoCluster);
    }
    stats.token_requested.increment();
    let fetch = Fetch {
        cluster: &settings.endpoint.cluster,
        method: Method::POST,
        authority: &settings.endpoint.authority,
        path: &settings.endpoint.path,
        content_type: Some("application/x-www-form-urlencoded"),
        body: request::body(settings, secret).into_bytes(),
        timeout: settings.endpoint.timeout,
        retries: None,
        max_bytes: MAX_ANSWER_BYTES,
    };
    let (status, body) = fetcher.fetch(&fetch).await.map_err(Failure::NoAnswer)?;
    token(status, &body).map_err(Failure::Refused)
}

const MAX_ANSWER_BYTES: usize = 1 << 20;
/// A year: so that no point of time is out of reach.
const LONGEST_SECONDS: u64 = 31_536_000;

#[cfg(test)]
mod tests {
    use outrigger_config::http_uri::HttpTarget;
    use outrigger_config::tls::SecretRef;

    use super::*;

    fn remote() -> RemoteToken {
        let settings = ClientToken {
            endpoint: HttpTarget {
                uri: "http://idp/".into(),
                authority: "idp".into(),
                path: "/".into(),
                cluster: "idp".into(),
                timeout: None,
            },
            client_id: "me".into(),
            secret: SecretRef { name: "s".into(), source: None },
            scopes: Box::default(),
            parameters: Box::default(),
            retry_interval: Duration::from_secs(7),
        };
        RemoteToken::new("".into(), Arc::new(settings))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_until_it_ends_whatever_comes_in_between() {
        let (remote, stats) = (remote(), TokenStats::default());
        let header = |remote: &RemoteToken| remote.with_header(|header| header.map(<[u8]>::to_vec));
        assert!(header(&remote).is_none() && !remote.was_tried());
        assert_eq!(remote.take(Ok(("a".into(), 60)), &stats), Duration::from_secs(30));
        assert_eq!(header(&remote).unwrap(), b"Bearer a");
        let refused = || Err(Failure::Refused(Refused::Status(503)));
        assert_eq!(remote.take(refused(), &stats), Duration::from_secs(7));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(header(&remote).is_some() && remote.was_tried());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(header(&remote).is_none());
        assert_eq!(remote.take(Ok(("b".into(), 0)), &stats), Duration::from_secs(1));
    }
}
