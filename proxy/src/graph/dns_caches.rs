//! The DNS caches of dynamic forward proxies, on the control thread.
//!
//! Owns which names are known, when each is asked for again, and when one is forgotten. Workers ask through
//! [`crate::upstream::dns_cache`]. Never serves traffic.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::DnsCache;
use outrigger_config::dns::DnsResolver;
use tokio::sync::oneshot;

use crate::process::Process;
use crate::stats::names;
use crate::upstream::dns::{Answer, RefreshSchedule, Resolvers};
use crate::upstream::dns_cache::{CachedName, DnsCacheStats, NoAddress, Question, Resolution};
use crate::worker::random::Random;

type Reply = oneshot::Sender<Result<Arc<CachedName>, NoAddress>>;
type Key = (Arc<str>, u16);

struct Caches {
    process: Arc<Process>,
    resolvers: Resolvers,
    random: Random,
    by_name: HashMap<Arc<str>, Cache>,
}

struct Cache {
    /// As the last who asked has it.
    config: Arc<DnsCache>,
    stats: Arc<DnsCacheStats>,
    names: HashMap<Key, Entry>,
}

struct Entry {
    name: Arc<CachedName>,
    /// Nobody is told that it is gone.
    stays: bool,
    waiting: Vec<Reply>,
}

/// Answers questions for as long as the process lives. `resolver` holds for caches that do not name one.
pub(super) async fn answer(process: Arc<Process>, resolver: DnsResolver) {
    let caches = Rc::new(RefCell::new(Caches {
        process: Arc::clone(&process),
        resolvers: Resolvers::new(resolver),
        random: Random::new(),
        by_name: HashMap::new(),
    }));
    loop {
        for question in process.dns.receive().await {
            take(&caches, question);
        }
    }
}

fn take(caches: &Rc<RefCell<Caches>>, question: Question) {
    let Question { cache: config, host, port, reply } = question;
    let mut this = caches.borrow_mut();
    let this = &mut *this;
    let cache = this.by_name.entry(Arc::clone(&config.name)).or_insert_with(|| Cache {
        config: Arc::clone(&config),
        stats: this.process.stats.scope(&names::prefix("dns_cache", &config.name)),
        names: HashMap::new(),
    });
    cache.config = Arc::clone(&config);
    let key = (host, port);
    if let Some(entry) = cache.names.get_mut(&key) {
        entry.stays |= reply.is_none();
        if let Some(reply) = reply {
            match &*entry.name.resolution() {
                Resolution::Unknown => entry.waiting.push(reply),
                // Whether it failed is seen there.
                _ => drop(reply.send(Ok(Arc::clone(&entry.name)))),
            }
        }
        return;
    }
    if cache.names.len() >= config.max_hosts as usize {
        cache.stats.host_overflow.increment();
        if let Some(reply) = reply {
            let _ = reply.send(Err(NoAddress::CacheFull));
        }
        return;
    }
    let name = Arc::new(CachedName::new(Arc::clone(&key.0), port));
    let entry = Entry { name, stays: reply.is_none(), waiting: reply.into_iter().collect() };
    cache.names.insert(key.clone(), entry);
    cache.stats.host_added.increment();
    cache.stats.num_hosts.set(cache.names.len() as i64);
    let task = keep_resolving(Rc::clone(caches), Arc::clone(&config.name), key);
    tokio::task::spawn_local(task);
}

/// Asks for a name again and again, until nobody uses it.
async fn keep_resolving(caches: Rc<RefCell<Caches>>, cache: Arc<str>, key: Key) {
    let mut schedule: Option<RefreshSchedule> = None;
    loop {
        let (resolver, limit) = {
            let mut caches = caches.borrow_mut();
            let caches = &mut *caches;
            let Some(cache) = caches.by_name.get(&cache) else { return };
            cache.stats.dns_query_attempt.increment();
            (caches.resolvers.get(&cache.config.dns), cache.config.query_timeout)
        };
        let asked = resolver.resolve(&key.0);
        let result = match limit {
            None => asked.await.map_err(|error| (error.to_string(), false)),
            Some(limit) => match tokio::time::timeout(limit, asked).await {
                Ok(result) => result.map_err(|error| (error.to_string(), false)),
                Err(_) => Err((format!("cannot resolve {:?}: no answer within {limit:?}", key.0), true)),
            },
        };
        let Some(wait) = caches.borrow_mut().take_answer(&cache, &key, result, &mut schedule) else { return };
        tokio::time::sleep(wait).await;
        if caches.borrow_mut().forget_unused(&cache, &key) {
            return;
        }
    }
}

/// The answer without addresses that names must not lead to; without any left it is a failure, so that what was known is
/// kept.
fn believable(config: &DnsCache, host: &str, mut answer: Answer) -> Result<Answer, (String, bool)> {
    let Some(refused) = &config.refused else { return Ok(answer) };
    answer.addresses.retain(|address| !refused.holds(*address));
    if answer.addresses.is_empty() {
        return Err((format!("cannot resolve {host:?}: resolved_address_filter takes all of its addresses"), false));
    }
    Ok(answer)
}

impl Caches {
    /// When to ask again; `None` if the name is forgotten.
    fn take_answer(
        &mut self,
        cache: &Arc<str>,
        key: &Key,
        result: Result<Answer, (String, bool)>,
        schedule: &mut Option<RefreshSchedule>,
    ) -> Option<Duration> {
        let random = (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let cache = self.by_name.get_mut(cache)?;
        let entry = cache.names.get_mut(key)?;
        let schedule = schedule.get_or_insert_with(|| RefreshSchedule::new(cache.config.dns.clone()));
        let had = entry.name.resolution();
        let result = result.and_then(|answer| believable(&cache.config, &key.0, answer));
        let wait = match result {
            Ok(Answer { addresses, ttl }) => {
                cache.stats.dns_query_success.increment();
                if !matches!(&*had, Resolution::Resolved(old) if same(old, &addresses)) {
                    cache.stats.host_address_changed.increment();
                    entry.name.set(Resolution::Resolved(addresses));
                }
                Some(schedule.after_answer(ttl, random))
            }
            Err((reason, late)) => {
                cache.stats.dns_query_failure.increment();
                if late {
                    cache.stats.dns_query_timeout.increment();
                }
                tracing::debug!("DNS cache {:?}: {reason}", cache.config.name);
                // What was known is kept: a resolver that fails says nothing about the host.
                let unresolved = !matches!(&*had, Resolution::Resolved(_));
                if unresolved {
                    entry.name.set(Resolution::Failed(reason));
                }
                let forget = unresolved && cache.config.forget_failures && !entry.stays;
                (!forget).then(|| schedule.after_failure(random))
            }
        };
        for reply in entry.waiting.drain(..) {
            let _ = reply.send(Ok(Arc::clone(&entry.name)));
        }
        if wait.is_none() {
            cache.remove(key);
        }
        wait
    }

    fn forget_unused(&mut self, cache: &Arc<str>, key: &Key) -> bool {
        let Some(cache) = self.by_name.get_mut(cache) else { return true };
        let Some(entry) = cache.names.get(key) else { return true };
        let unused = Duration::from_millis(entry.name.unused_ms()) > cache.config.host_ttl;
        if unused && !entry.stays {
            cache.remove(key);
        }
        unused && !cache.names.contains_key(key)
    }
}

impl Cache {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.names.remove(key) {
            entry.name.forget();
            self.stats.host_removed.increment();
            self.stats.num_hosts.set(self.names.len() as i64);
        }
    }
}

/// The order of an answer changes with every question; only its members matter.
fn same(old: &[IpAddr], new: &[IpAddr]) -> bool {
    old.len() == new.len() && old.iter().all(|address| new.contains(address))
}
