//! What a request says about waiting for an endpoint, and what is told of its wait.
//!
//! Owns its class, its caller and its patience, read off route, headers and metadata. Never waits itself (see
//! `upstream::admission`).

use std::rc::Rc;
use std::time::Instant;

use outrigger_config::cluster::{Caller, Concurrency, Discovery, DnsFamily, MAX_CLASS, MAX_OFFSET_MS};
use outrigger_config::route::{Forward, Priority};
use outrigger_policy::balance::{Attempted, xx_hash};

use super::attempt;
use super::failure::Failure;
use super::{Forwarding, prepare};
use crate::explain::Cause;
use crate::graph::ClusterNode;
use crate::http::manager::client_address::client_address;
use crate::http::manager::request::Request;
use crate::trace;
use crate::upstream::admission::{Admission, Admitted, OwnEndpoint, Refused, Seeker, Waited, Wish};
use crate::upstream::avoid::Avoid;
use crate::upstream::choice::Known;
use crate::upstream::clusters::Target;
use crate::upstream::gate::Place;
use crate::upstream::worker_host::WorkerHost;

impl Forwarding<'_, '_> {
    /// Where the next try goes, with its place there if the cluster limits places. Waits for one then.
    ///
    /// # Errors
    /// When there is no endpoint, or no place in time.
    pub(super) async fn admit(&mut self) -> Result<(Target, Option<Place>), Failure> {
        let session = self.wanted_host()?;
        let worker = &self.request.connection.worker;
        let mut wanted = self.affinity.wanted();
        if let Some(update_frequency) = self.policy.as_ref().and_then(|policy| policy.retry_priority)
            && self.retries > 0
        {
            wanted.attempted = Some(Attempted { update_frequency, priorities: &self.tried_priorities });
        }
        let (cluster, wanted) = self.cluster.delegate(worker, wanted).ok_or(Failure::NoHost)?;
        let node = cluster.node();
        let policy = self.policy.as_ref();
        let avoid = policy.map_or_else(Avoid::default, |policy| Avoid::of(&policy.avoided_hosts, &self.tried));
        let destination = match &node.config.discovery {
            Discovery::OriginalDst(options) => {
                Some(prepare::original_destination(self.request, options).ok_or(Failure::NoHost)?)
            }
            _ => None,
        };
        let (cluster, node, name) = match &node.config.discovery {
            Discovery::DynamicForward(cache) => {
                let (cluster, name) = Box::pin(self.resolve(&cluster, cache)).await?;
                let all_addresses = cache.dns.family == DnsFamily::All;
                // The cluster may have changed meanwhile.
                (Rc::clone(&cluster), cluster.node(), Some((name, all_addresses)))
            }
            _ => (cluster, node, None),
        };
        let session = session.or_else(|| self.affinity.named(&cluster));
        let lone = match (destination, name) {
            (Some(destination), _) => Some(OwnEndpoint::Destination(destination)),
            (None, Some((name, all_addresses))) => Some(OwnEndpoint::Name { name, all_addresses }),
            (None, None) => None,
        };
        let Some(options) = node.config.concurrency.as_deref() else {
            let host = match (session, lone) {
                (Some(host), _) => Some(host),
                (None, Some(lone)) => lone.of(&cluster),
                (None, None) => cluster.pick(worker, wanted, avoid),
            };
            return Ok((Target { cluster, host: host.ok_or(Failure::NoHost)? }, None));
        };
        let own = session.map(|host| OwnEndpoint::Session(host.host.address.to_string())).or(lone);
        let request = &*self.request;
        let mut seeker = Seeker { worker, cluster, wanted, avoid, priority: self.action.priority, own };
        let interrupted = |cx: &mut std::task::Context<'_>| attempt::interrupted(request, cx);
        let Admission { result, waited } = seeker.admit(options, || self.wish(options), interrupted).await;
        let cluster = seeker.cluster;
        if let Some(waited) = waited {
            request.info.moments.add_queued(waited.since.elapsed());
            note(request, outcome(&result), waited);
            trace::queued(request, waited.since, outcome(&result));
        }
        let is_member = cluster.node().config.name != self.cluster.node().config.name;
        if !is_member {
            self.cluster = Rc::clone(&cluster);
        }
        let overflow = &cluster.stats.upstream_rq_active_overflow;
        if let Err(refused) = &result {
            request.info.cause.set(cause(refused, options, self.action, &cluster.node()));
        }
        let admitted = result.map_err(|refused| match refused {
            Refused::NoHost => Failure::NoHost,
            Refused::Overflow => {
                overflow.increment();
                Failure::Overflow
            }
            Refused::QueueFull => Failure::QueueFull,
            Refused::QueueTimeout => Failure::QueueTimeout,
            Refused::Interrupted(failure) => failure,
        });
        let Admitted { host, place } = admitted?;
        Ok((Target { cluster, host }, place))
    }

    /// The endpoint of the request's session, for its first try.
    fn wanted_host(&self) -> Result<Option<Rc<WorkerHost>>, Failure> {
        let Some(wanted) = self.request.wanted_host.as_ref().filter(|_| self.request.info.attempts.get() == 0) else {
            return Ok(None);
        };
        match self.cluster.known(&wanted.address) {
            Known::Usable(host) => Ok(Some(host)),
            Known::Unusable if wanted.strict => Err(Failure::NoHost),
            Known::Absent if wanted.strict => Err(Failure::NoWantedHost(wanted.not_found_status)),
            Known::Unusable | Known::Absent => Ok(None),
        }
    }

    fn wish(&self, options: &Concurrency) -> Wish {
        let request = &*self.request;
        let hints = self.action.queue.as_deref().copied().unwrap_or_default();
        let rules = &options.class;
        let number = |header: &Option<String>| -> Option<i64> {
            let value = request.head.headers.get_by_name(header.as_deref()?)?;
            std::str::from_utf8(value).ok()?.trim().parse().ok()
        };
        let of_metadata = || -> Option<i64> {
            let (namespace, key) = rules.metadata.as_ref()?;
            let metadata = request.info.dynamic_metadata.borrow();
            let value = metadata.get(namespace)?.get(key)?;
            value.as_i64().or_else(|| value.as_str()?.parse().ok())
        };
        let in_range = |class: i64| i32::try_from(class).ok().filter(|class| (-MAX_CLASS..=MAX_CLASS).contains(class));
        let class = number(&rules.header).and_then(in_range).or_else(|| of_metadata().and_then(in_range));
        let class = class.or(hints.class).unwrap_or(match self.action.priority {
            Priority::High => rules.of_high_priority(),
            Priority::Default => rules.default,
        });
        let offset = number(&rules.offset_header).filter(|offset| (-MAX_OFFSET_MS..=MAX_OFFSET_MS).contains(offset));
        Wish {
            class,
            offset_ms: offset.or(hints.offset_ms).unwrap_or(0),
            caller: options.fair.as_ref().and_then(|caller| caller_of(request, caller)),
            timeout: hints.timeout.or(options.queue_timeout),
        }
    }
}

fn caller_of(request: &Request<'_>, caller: &Caller) -> Option<u64> {
    let connection = &request.connection;
    match caller {
        Caller::Header(name) => request.head.headers.get_by_name(name).map(xx_hash),
        Caller::SourceAddress => {
            let address = client_address(connection, &request.info)?;
            Some(xx_hash(address.to_string().as_bytes()))
        }
        Caller::PeerIdentity => connection.info.peer_name().map(|name| xx_hash(name.as_bytes())),
    }
}

fn outcome(result: &Result<Admitted, Refused<Failure>>) -> &'static str {
    match result {
        Ok(_) => "served",
        Err(Refused::NoHost) => "no_endpoint",
        Err(Refused::Overflow | Refused::QueueFull) => "full",
        Err(Refused::QueueTimeout) => "timeout",
        Err(Refused::Interrupted(_)) => "cancelled",
    }
}

/// The limit that a refusal is about.
fn cause(refused: &Refused<Failure>, options: &Concurrency, action: &Forward, cluster: &ClusterNode) -> Option<Cause> {
    match refused {
        Refused::Overflow => {
            let field = "ConcurrencyOptions.max_requests";
            options.max_requests.map(|limit| Cause::Count { limit, field })
        }
        Refused::QueueFull => Some(match options.max_queue {
            Some(limit) => Cause::Count { limit, field: "ConcurrencyOptions.max_queue" },
            None => {
                let breakers = &cluster.config.circuit_breakers;
                let thresholds = match action.priority {
                    Priority::High => &breakers.high,
                    Priority::Default => &breakers.default,
                };
                let field = "CircuitBreakers.thresholds.max_pending_requests";
                Cause::Count { limit: thresholds.max_pending_requests, field }
            }
        }),
        Refused::QueueTimeout => Some(match action.queue.as_deref().and_then(|hints| hints.timeout) {
            Some(limit) => Cause::Time { limit: Some(limit), field: "the queue timeout of the route" },
            None => Cause::Time { limit: options.queue_timeout, field: "ConcurrencyOptions.queue_timeout" },
        }),
        Refused::NoHost | Refused::Interrupted(_) => None,
    }
}

/// Leaves what became of the wait where access logs and filters find it: dynamic metadata under `outrigger.queue`.
fn note(request: &Request<'_>, outcome: &str, waited: Waited) {
    let Waited { since, class } = waited;
    let mut metadata = request.info.dynamic_metadata.borrow_mut();
    let queue = metadata.entry("outrigger.queue".to_owned()).or_default();
    let earlier = queue.get("wait_ms").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let wait_ms = Instant::now().saturating_duration_since(since).as_millis() as u64;
    queue.insert("wait_ms".to_owned(), earlier.saturating_add(wait_ms).into());
    queue.insert("outcome".to_owned(), outcome.into());
    queue.insert("class".to_owned(), class.into());
}
