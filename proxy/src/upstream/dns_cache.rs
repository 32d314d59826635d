//! The DNS caches of dynamic forward proxies, as workers see them.
//!
//! Owns what all threads share of a cache, and a worker's own index of it, so that a name that is known costs a look-up
//! without locks. A name that is not known is asked for on the control thread (see `graph::dns_caches`), and who wants it
//! waits without holding up the worker. Never resolves a name itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use outrigger_config::cluster::DnsCache;
use tokio::sync::{Notify, oneshot};

use super::pool::bare_host;
use crate::graph::facts;
use crate::scope;
use crate::stats::names;
use crate::worker::Worker;

scope! {
    /// Stats of a cache (`dns_cache.<name>.*`).
    pub struct DnsCacheStats {
        cache_load: Counter,
        dns_query_attempt: Counter,
        dns_query_failure: Counter,
        dns_query_success: Counter,
        dns_query_timeout: Counter,
        dns_rq_pending_overflow: Counter,
        host_added: Counter,
        host_address_changed: Counter,
        host_overflow: Counter,
        host_removed: Counter,
        num_hosts: Gauge,
    }
}

/// A name with its port, in a cache.
#[derive(Debug)]
pub struct CachedName {
    /// The host, lower case, without brackets.
    pub host: Arc<str>,
    /// Where it is to be connected to.
    pub port: u16,
    resolution: ArcSwap<Resolution>,
    last_used_ms: AtomicU64,
    gone: AtomicBool,
}

/// What is known of a name.
#[derive(Debug)]
pub enum Resolution {
    /// Nothing yet.
    Unknown,
    /// It could not be resolved, for this reason.
    Failed(String),
    /// At least one address.
    Resolved(Vec<IpAddr>),
}

impl CachedName {
    /// A name that is not resolved yet, used now.
    pub fn new(host: Arc<str>, port: u16) -> Self {
        Self {
            host,
            port,
            resolution: ArcSwap::from_pointee(Resolution::Unknown),
            last_used_ms: AtomicU64::new(facts::now()),
            gone: AtomicBool::new(false),
        }
    }

    /// What is known of it now.
    pub fn resolution(&self) -> Arc<Resolution> {
        self.resolution.load_full()
    }

    /// Says what is known of it now. For the control thread.
    pub fn set(&self, resolution: Resolution) {
        self.resolution.store(Arc::new(resolution));
    }

    /// Milliseconds since somebody wanted it.
    pub fn unused_ms(&self) -> u64 {
        facts::now().saturating_sub(self.last_used_ms.load(Ordering::Relaxed))
    }

    /// It is no longer in the cache. For the control thread.
    pub fn forget(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether it is no longer in the cache.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        self.last_used_ms.store(facts::now(), Ordering::Relaxed);
    }
}

/// Why there is no address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoAddress {
    /// `max_hosts` are there already.
    #[error("the DNS cache is full")]
    CacheFull,
    /// `max_pending_requests` wait already.
    #[error("too many requests wait for names")]
    TooManyWait,
    /// The name could not be resolved.
    #[error("{0}")]
    Failed(String),
}

/// A question to the control thread.
#[derive(Debug)]
pub struct Question {
    /// Of which cache.
    pub cache: Arc<DnsCache>,
    /// Lower case, without brackets.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Who waits; nobody for names that are resolved in advance, and those stay.
    pub reply: Option<oneshot::Sender<Result<Arc<CachedName>, NoAddress>>>,
}

/// Questions on their way, and what is shared of each cache.
#[derive(Debug, Default)]
pub struct DnsQuestions {
    waiting: Mutex<Vec<Question>>,
    wake: Notify,
    pending: Mutex<HashMap<Arc<str>, Arc<AtomicU32>>>,
}

impl DnsQuestions {
    /// Asks.
    pub fn ask(&self, question: Question) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        self.wake.notify_one();
    }

    /// All questions, as soon as there are any. For the control thread.
    pub async fn receive(&self) -> Vec<Question> {
        loop {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !waiting.is_empty() {
                return waiting;
            }
            self.wake.notified().await;
        }
    }

    fn pending(&self, name: &Arc<str>) -> Arc<AtomicU32> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pending.entry(Arc::clone(name)).or_default())
    }
}

/// The caches that a worker has used.
#[derive(Default)]
pub struct WorkerCaches(RefCell<HashMap<Arc<str>, Rc<WorkerCache>>>);

struct WorkerCache {
    stats: Arc<DnsCacheStats>,
    pending: Arc<AtomicU32>,
    names: RefCell<HashMap<Arc<str>, Vec<Arc<CachedName>>>>,
}

/// What a look-up finds.
pub enum Lookup {
    /// The name has been asked for before: this is what is known of it.
    Known(Result<Arc<CachedName>, NoAddress>),
    /// The answer comes later.
    Later(Pending),
}

/// A wait for a name, which counts as long as it lasts.
pub struct Pending {
    answer: oneshot::Receiver<Result<Arc<CachedName>, NoAddress>>,
    cache: Rc<WorkerCache>,
}

impl Pending {
    /// The answer.
    pub async fn answer(mut self) -> Result<Arc<CachedName>, NoAddress> {
        let gone = || Err(NoAddress::Failed("the resolver is gone".to_owned()));
        let name = (&mut self.answer).await.unwrap_or_else(|_| gone())?;
        let mut names = self.cache.names.borrow_mut();
        let known = names.entry(Arc::clone(&name.host)).or_default();
        known.retain(|other| !other.is_gone() && other.port != name.port);
        known.push(Arc::clone(&name));
        drop(names);
        usable(name)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cache.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerCaches {
    /// Looks a name up.
    pub fn look_up(&self, worker: &Worker, cache: &Arc<DnsCache>, host: &str, port: u16) -> Lookup {
        let of_worker = self.cache(worker, cache);
        let host: Arc<str> = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => host.to_ascii_lowercase().into(),
            false => host.into(),
        };
        {
            let names = of_worker.names.borrow();
            let known = names.get(&host).and_then(|known| known.iter().find(|name| name.port == port));
            if let Some(name) = known.filter(|name| !name.is_gone()) {
                name.touch();
                return Lookup::Known(usable(Arc::clone(name)));
            }
        }
        let taken = of_worker.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pending| {
            (pending < cache.max_pending_requests).then_some(pending + 1)
        });
        if taken.is_err() {
            of_worker.stats.dns_rq_pending_overflow.increment();
            return Lookup::Known(Err(NoAddress::TooManyWait));
        }
        let (reply, answer) = oneshot::channel();
        worker.process.dns.ask(Question { cache: Arc::clone(cache), host, port, reply: Some(reply) });
        Lookup::Later(Pending { answer, cache: of_worker })
    }

    fn cache(&self, worker: &Worker, cache: &Arc<DnsCache>) -> Rc<WorkerCache> {
        if let Some(known) = self.0.borrow().get(&cache.name) {
            return Rc::clone(known);
        }
        let made = Rc::new(WorkerCache {
            stats: worker.process.stats.scope(&names::prefix("dns_cache", &cache.name)),
            pending: worker.process.dns.pending(&cache.name),
            names: RefCell::default(),
        });
        self.0.borrow_mut().insert(Arc::clone(&cache.name), Rc::clone(&made));
        made
    }

    /// Lets go of names that are no longer in their caches.
    pub fn sweep(&self) {
        for cache in self.0.borrow().values() {
            cache.names.borrow_mut().retain(|_, names| {
                names.retain(|name| !name.is_gone());
                !names.is_empty()
            });
        }
    }
}

fn usable(name: Arc<CachedName>) -> Result<Arc<CachedName>, NoAddress> {
    match &**name.resolution.load() {
        Resolution::Failed(reason) => return Err(NoAddress::Failed(reason.clone())),
        Resolution::Unknown => return Err(NoAddress::Failed("not resolved yet".to_owned())),
        Resolution::Resolved(_) => {}
    }
    Ok(name)
}

/// The host and the port of an authority.
pub fn host_and_port(authority: &str, default_port: u16) -> (&str, u16) {
    let host = bare_host(authority);
    let after = authority.rsplit_once(':').map(|(_, port)| port).filter(|_| authority.len() > host.len());
    (host, after.and_then(|port| port.parse().ok()).unwrap_or(default_port))
}

/// The object of the filter state that names the host of a dynamic forward proxy.
pub const DYNAMIC_HOST: &str = "envoy.upstream.dynamic_host";
/// The object of the filter state that names its port.
pub const DYNAMIC_PORT: &str = "envoy.upstream.dynamic_port";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_taken_apart() {
        for (authority, host, port) in [
            ("a.example", "a.example", 80),
            ("a.example:8080", "a.example", 8080),
            ("a.example:x", "a.example", 80),
            ("[::1]:8080", "::1", 8080),
            ("[::1]", "::1", 80),
            ("::1", "::1", 80),
            ("10.0.0.1:81", "10.0.0.1", 81),
        ] {
            assert_eq!(host_and_port(authority, 80), (host, port), "{authority}");
        }
    }
}
