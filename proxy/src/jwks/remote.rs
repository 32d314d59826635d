//! One key set that is fetched.
//!
//! Owns the keys as they are now, who waits for them, and when they are fetched again: one fetch at a time, for all who
//! wait. Workers read an atomic pointer, and never wait without giving way to others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use outrigger_config::http::filters::RemoteJwks;
use outrigger_config::jwks::Jwks;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::FetchStats;
use super::fetch::fetch;
use crate::fetch::Fetcher;
use crate::process::Process;

/// How many fetches have ended, and how the last one did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attempt {
    /// Fetches so far.
    pub count: u64,
    /// The last one brought keys.
    pub succeeded: bool,
}

/// A key set that is fetched.
pub struct RemoteKeys {
    stat_prefix: Arc<str>,
    settings: Arc<RemoteJwks>,
    current: ArcSwapOption<Fetched>,
    attempts: watch::Sender<Attempt>,
    /// Somebody waits for the next fetch.
    wanted: AtomicBool,
    wake: Arc<Notify>,
}

struct Fetched {
    keys: Arc<Jwks>,
    text: Vec<u8>,
    /// Not to be used after this; `None` for those that are fetched again in the background, which hold until then.
    expires: Option<Instant>,
}

impl Drop for RemoteKeys {
    fn drop(&mut self) {
        // The task that looks after it sees that it is gone.
        self.wake.notify_one();
    }
}

impl RemoteKeys {
    pub(super) fn new(stat_prefix: Arc<str>, settings: Arc<RemoteJwks>) -> Self {
        Self {
            stat_prefix,
            settings,
            current: ArcSwapOption::empty(),
            attempts: watch::Sender::new(Attempt::default()),
            wanted: AtomicBool::new(false),
            wake: Arc::default(),
        }
    }

    pub(super) fn stat_prefix(&self) -> &str {
        &self.stat_prefix
    }

    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// The keys, if there are any that are not too old.
    pub fn current(&self) -> Option<Arc<Jwks>> {
        let current = self.current.load();
        let fetched = current.as_ref()?;
        let is_fresh = fetched.expires.is_none_or(|expires| Instant::now() < expires);
        is_fresh.then(|| Arc::clone(&fetched.keys))
    }

    /// Waits for the end of the next fetch, which begins now unless one is under way.
    pub fn next(self: &Arc<Self>) -> impl Future<Output = Option<Arc<Jwks>>> + 'static {
        let keys = Arc::clone(self);
        let mut attempts = self.attempts.subscribe();
        let before = attempts.borrow_and_update().count;
        if !self.wanted.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
        async move {
            let ended = attempts.wait_for(|attempt| attempt.count > before).await.map(|attempt| attempt.succeeded);
            match ended {
                Ok(true) => keys.current.load().as_ref().map(|fetched| Arc::clone(&fetched.keys)),
                Ok(false) | Err(_) => None,
            }
        }
    }

    /// Waits until it was fetched once, well or not.
    pub async fn first_attempt(&self) {
        // The sender is part of `self`, so it cannot go away.
        let _ = self.attempts.subscribe().wait_for(|attempt| attempt.count > 0).await;
    }

    fn take(&self, result: Result<(Jwks, Vec<u8>), String>, stats: &FetchStats) -> bool {
        let succeeded = result.is_ok();
        match result {
            Ok((keys, text)) => {
                stats.jwks_fetch_success.increment();
                // Keys that have not changed stay the same, and so do tokens that they have verified.
                let known = self.current.load_full().filter(|known| known.text == text);
                let keys = known.map_or_else(|| Arc::new(keys), |known| Arc::clone(&known.keys));
                let expires = match self.settings.in_background {
                    Some(_) => None,
                    None => Some(Instant::now() + self.settings.cache_duration),
                };
                self.current.store(Some(Arc::new(Fetched { keys, text, expires })));
            }
            Err(error) => {
                stats.jwks_fetch_failed.increment();
                let RemoteJwks { authority, path, cluster, .. } = &*self.settings;
                tracing::warn!("keys of {authority}{path} (cluster {cluster:?}): {error}");
            }
        }
        self.wanted.store(false, Ordering::Release);
        self.attempts.send_modify(|attempt| *attempt = Attempt { count: attempt.count + 1, succeeded });
        succeeded
    }
}

/// Fetches keys when somebody waits for them, or when they grow old, until nobody holds them any more.
pub(super) async fn look_after(
    keys: Weak<RemoteKeys>,
    wake: Arc<Notify>,
    process: Arc<Process>,
    stats: Arc<FetchStats>,
) {
    let mut fetcher = Fetcher::new(process);
    let mut due = keys.upgrade().and_then(|keys| keys.settings.in_background.map(|_| Instant::now()));
    // A server that fails is not asked again at once: whoever waits, waits for that, too.
    let mut pause = SHORTEST_PAUSE;
    let mut not_before: Option<Instant> = None;
    loop {
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wake.notified() => {}
            () = timer => {}
        }
        let Some(keys) = keys.upgrade() else { return };
        let is_due = due.is_some_and(|due| due <= Instant::now());
        if !is_due && !keys.wanted.load(Ordering::Acquire) {
            continue;
        }
        if let Some(at) = not_before.filter(|at| !is_due && *at > Instant::now()) {
            sleep_until(at).await;
        }
        let result = fetch(&mut fetcher, &keys.settings).await;
        let succeeded = keys.take(result, &stats);
        let now = Instant::now();
        due = keys.settings.in_background.map(|background| match succeeded {
            true => now + before_end(keys.settings.cache_duration),
            false => now + background.failed_refetch,
        });
        not_before = (!succeeded).then(|| now + pause);
        pause = if succeeded { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
    }
}

/// When keys are fetched again that are to be used for so long.
fn before_end(duration: Duration) -> Duration {
    if duration > EARLY { duration - EARLY } else { duration }
}

/// How long before their end keys are fetched again.
const EARLY: Duration = Duration::from_secs(5);
/// Between a failure and the next fetch that requests ask for; doubled each time, up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(in_background: bool) -> RemoteKeys {
        let failed_refetch = Duration::from_secs(1);
        let background = outrigger_config::http::filters::AsyncFetch { fast_listener: true, failed_refetch };
        let settings = RemoteJwks {
            authority: "issuer".into(),
            path: "/".into(),
            cluster: "c".into(),
            timeout: Duration::from_secs(1),
            cache_duration: Duration::from_secs(10),
            in_background: in_background.then_some(background),
            retries: None,
        };
        RemoteKeys::new("".into(), Arc::new(settings))
    }

    #[tokio::test(start_paused = true)]
    async fn keys_expire_unless_they_are_fetched_in_the_background() {
        let (on_demand, background) = (keys(false), keys(true));
        let stats = FetchStats::default();
        for keys in [&on_demand, &background] {
            assert!(keys.current().is_none());
            assert!(keys.take(Ok((Jwks::default(), b"a".to_vec())), &stats));
            assert!(keys.current().is_some());
        }
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(on_demand.current().is_none() && background.current().is_some());
        assert!(!background.take(Err("down".into()), &stats));
        assert!(background.current().is_some());
    }

    #[tokio::test]
    async fn keys_that_have_not_changed_stay_the_same() {
        let keys = keys(false);
        let stats = FetchStats::default();
        keys.take(Ok((Jwks::default(), b"a".to_vec())), &stats);
        let first = keys.current().unwrap();
        keys.take(Ok((Jwks::default(), b"a".to_vec())), &stats);
        assert!(Arc::ptr_eq(&first, &keys.current().unwrap()));
        keys.take(Ok((Jwks::default(), b"b".to_vec())), &stats);
        assert!(!Arc::ptr_eq(&first, &keys.current().unwrap()));
    }

    #[tokio::test]
    async fn all_who_wait_get_the_outcome_of_one_fetch() {
        let keys = Arc::new(keys(false));
        let stats = FetchStats::default();
        let (one, two) = (keys.next(), keys.next());
        keys.take(Ok((Jwks::default(), b"a".to_vec())), &stats);
        assert!(one.await.is_some() && two.await.is_some());
        let three = keys.next();
        keys.take(Err("down".into()), &stats);
        assert!(three.await.is_none());
    }
}
