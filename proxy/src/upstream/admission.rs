//! Letting a request or a session through to an endpoint, where a cluster limits how many are in flight.
//!
//! Owns the look for a place and the wait for one. Never counts places (see `gate`), never says who is next (see
//! `outrigger_policy::queue`), and never knows what is waited for.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_config::cluster::{Concurrency, OverLimit};
use outrigger_config::route::Priority;
use outrigger_policy::balance::{HostIndex, Wanted};
use outrigger_policy::breaker::Resource;
use outrigger_policy::queue::{Discipline, Entry, Full, Lane, Load, Order, endpoint_limit};

use super::avoid::Avoid;
use super::choice::Known;
use super::clusters::WorkerCluster;
use super::dns_cache::CachedName;
use super::gate::{Gate, Place, Waiting, lane_of};
use super::host::Host;
use super::stats::Queued;
use super::worker_host::WorkerHost;
use crate::graph::{ClusterNode, facts};
use crate::worker::Worker;

/// An endpoint for one try, with the place that the try takes there, if places are limited.
pub struct Admitted {
    /// The endpoint.
    pub host: Rc<WorkerHost>,
    /// Free again when it is dropped.
    pub place: Option<Place>,
}

/// Why nothing was admitted. `I` is what ended the wait from outside.
#[derive(Debug)]
pub enum Refused<I> {
    /// There is no endpoint.
    NoHost,
    /// A limit is reached, and nobody waits here.
    Overflow,
    /// A limit is reached, and as many wait as may.
    QueueFull,
    /// There was no place in time.
    QueueTimeout,
    /// Something else.
    Interrupted(I),
}

/// How one waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Lower ones are served first.
    pub class: i32,
    /// Milliseconds added to the time of arrival.
    pub offset_ms: i64,
    /// Who sent it, where callers are served in turn.
    pub caller: Option<u64>,
    /// The longest wait.
    pub timeout: Option<Duration>,
}

/// A wait that is over.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    /// When it began.
    pub since: Instant,
    /// The class that it was in.
    pub class: i32,
}

/// What became of it, and whether it had to wait.
pub struct Admission<I> {
    /// The endpoint, or the reason.
    pub result: Result<Admitted, Refused<I>>,
    /// `None` if it did not have to wait.
    pub waited: Option<Waited>,
}

/// Who seeks an endpoint, and which ones will do.
pub struct Seeker<'a> {
    /// Where.
    pub worker: &'a Rc<Worker>,
    /// The cluster; a newer view of it after a wait.
    pub cluster: Rc<WorkerCluster>,
    /// What a balancer is told.
    pub wanted: Wanted<'a>,
    /// Endpoints that are avoided.
    pub avoid: Avoid<'a>,
    /// Which thresholds count.
    pub priority: Priority,
    /// The one endpoint that will do, where that is not for the policy to say.
    pub own: Option<OwnEndpoint>,
}

/// An endpoint that was chosen before.
#[derive(Clone, Debug)]
pub enum OwnEndpoint {
    /// Where the client wanted to go.
    Destination(SocketAddr),
    /// The name that the request is for.
    Name { name: Arc<CachedName>, all_addresses: bool },
    /// Where the session of the request is. Any other will do once this one is gone.
    Session(String),
}

impl OwnEndpoint {
    /// The endpoint in a view of its cluster; `None` if it is gone.
    pub fn of(&self, cluster: &WorkerCluster) -> Option<Rc<WorkerHost>> {
        match self {
            Self::Destination(destination) => Some(cluster.destination(*destination, Instant::now())),
            Self::Name { name, all_addresses } => cluster.forwarded(name, *all_addresses),
            Self::Session(address) => match cluster.known(address) {
                Known::Usable(host) => Some(host),
                Known::Unusable | Known::Absent => None,
            },
        }
    }
}

/// Why a look found no place.
enum NoPlace {
    /// All that fit are taken; those of this lane are alike.
    Full(Lane),
    /// There is no endpoint.
    NoHost,
}

impl Seeker<'_> {
    /// An endpoint with a place. Waits for one if the cluster says so, until `interrupted`.
    pub async fn admit<I>(
        &mut self,
        options: &Concurrency,
        wish: impl FnOnce() -> Wish,
        interrupted: impl FnMut(&mut Context<'_>) -> Poll<I>,
    ) -> Admission<I> {
        let gate = self.cluster.node().shared.gate();
        let fails = options.over_limit == OverLimit::Fail;
        if gate.is_clear() || fails {
            let refused = match self.look(&gate) {
                Ok(admitted) => return Admission { result: Ok(admitted), waited: None },
                Err(NoPlace::NoHost) if options.wait_for_ready.is_none() => Some(Refused::NoHost),
                Err(NoPlace::Full(_)) if fails => Some(Refused::Overflow),
                Err(NoPlace::NoHost | NoPlace::Full(_)) => None,
            };
            if let Some(refused) = refused {
                return Admission { result: Err(refused), waited: None };
            }
        }
        let (since, wish) = (Instant::now(), wish());
        // Boxed: most never wait.
        let result = Box::pin(self.wait(options, &gate, wish, since, interrupted)).await;
        Admission { result, waited: Some(Waited { since, class: wish.class }) }
    }

    /// An endpoint with a place, without waiting or overtaking those who wait.
    pub fn admit_now(&self) -> Option<Admitted> {
        let gate = self.cluster.node().shared.gate();
        if gate.is_clear() { self.look(&gate).ok() } else { None }
    }

    /// Takes a place at an endpoint that has one.
    fn look(&self, gate: &Arc<Gate>) -> Result<Admitted, NoPlace> {
        let node = self.cluster.node();
        let (breaker, thresholds) = self.cluster.limits(self.priority);
        let Some(mut permit) = breaker.try_acquire_within(Resource::Request, &thresholds) else {
            return Err(NoPlace::Full(self.lane(&node)));
        };
        let max_requests = thresholds.max_requests;
        if let Some(host) = self.own_endpoint(&node)? {
            let limit = limit_of(&node, gate, None, &host.host);
            return match gate.enter(&host.host.shared, limit, permit, max_requests) {
                Ok(place) => Ok(Admitted { host, place: Some(place) }),
                Err(_) => Err(NoPlace::Full(lane_of(&host.host.shared))),
            };
        }
        let has_room = |index: HostIndex, host: &Host| {
            let requests = host.shared.requests.load(Ordering::Relaxed);
            limit_of(&node, gate, Some(index), host).is_none_or(|limit| requests < limit)
        };
        let fresh = |index: HostIndex, host: &Host| !self.avoid.has(host) && has_room(index, host);
        // More than one draw: the priority that is drawn may be full while another one is not, and another worker may be
        // quicker.
        for _ in 0..DRAWS {
            let picked = self.cluster.pick_among(self.worker, self.wanted, fresh);
            let picked = picked.or_else(|| self.cluster.pick_among(self.worker, self.wanted, has_room));
            let Some((host, index)) = picked else { continue };
            let limit = limit_of(&node, gate, Some(index), &host.host);
            match gate.enter(&host.host.shared, limit, permit, max_requests) {
                Ok(place) => return Ok(Admitted { host, place: Some(place) }),
                Err(back) => permit = back,
            }
        }
        if self.cluster.has_endpoint(self.worker, self.wanted) {
            Err(NoPlace::Full(self.lane(&node)))
        } else {
            Err(NoPlace::NoHost)
        }
    }

    /// The one endpoint that will do, where there is but one.
    fn own_endpoint(&self, node: &ClusterNode) -> Result<Option<Rc<WorkerHost>>, NoPlace> {
        match &self.own {
            Some(own @ (OwnEndpoint::Destination(_) | OwnEndpoint::Name { .. })) => {
                return own.of(&self.cluster).map(Some).ok_or(NoPlace::NoHost);
            }
            Some(own @ OwnEndpoint::Session(_)) => {
                if let Some(host) = own.of(&self.cluster) {
                    return Ok(Some(host));
                }
            }
            None => {}
        }
        let by_hash = node.hosts.balance.as_ref().is_some_and(|balance| balance.wants_hash());
        let waits = node.config.concurrency.as_deref().is_some_and(|options| options.over_limit == OverLimit::Wait);
        if by_hash && waits && self.wanted.hash.is_some() {
            return self.cluster.pick(self.worker, self.wanted, self.avoid).map(Some).ok_or(NoPlace::NoHost);
        }
        Ok(None)
    }

    /// The lane of those that any endpoint helps which this one may have.
    fn lane(&self, node: &ClusterNode) -> Lane {
        let by_subset = node.hosts.balance.as_ref().is_some_and(|balance| balance.wants_metadata());
        match self.wanted.metadata {
            Some(metadata) if by_subset => {
                use std::hash::{DefaultHasher, Hash, Hasher};
                let mut hasher = DefaultHasher::new();
                metadata.hash(&mut hasher);
                Lane::Part(hasher.finish())
            }
            _ => Lane::Any,
        }
    }

    async fn wait<I>(
        &mut self,
        options: &Concurrency,
        gate: &Arc<Gate>,
        wish: Wish,
        since: Instant,
        interrupted: impl FnMut(&mut Context<'_>) -> Poll<I>,
    ) -> Result<Admitted, Refused<I>> {
        let stats = self.cluster.queue_stats(self.worker);
        let Ok(waiting) = self.join(options, gate, wish, since) else {
            stats.overflow.increment();
            self.cluster.stats.upstream_rq_pending_overflow.increment();
            return Err(Refused::QueueFull);
        };
        let mut queued = Queued::new(&stats, since);
        let deadline = wish.timeout.and_then(|timeout| since.checked_add(timeout));
        let result = self.take_turn(options, gate, waiting, deadline, interrupted).await;
        if !matches!(result, Err(Refused::Interrupted(_))) {
            queued.settle();
        }
        if matches!(result, Err(Refused::QueueTimeout)) {
            stats.timeout.increment();
        }
        result
    }

    /// Waits until it is its turn and there is a place.
    async fn take_turn<I>(
        &mut self,
        options: &Concurrency,
        gate: &Arc<Gate>,
        waiting: Waiting,
        deadline: Option<Instant>,
        mut interrupted: impl FnMut(&mut Context<'_>) -> Poll<I>,
    ) -> Result<Admitted, Refused<I>> {
        // Since when there is no endpoint at all, and how long that is borne.
        let mut ready_by: Option<Instant> = None;
        loop {
            let until = [deadline, ready_by].into_iter().flatten().min();
            if !called(&waiting, until, &mut interrupted).await.map_err(Refused::Interrupted)? {
                let in_queue = deadline.is_some_and(|deadline| ready_by.is_none_or(|ready_by| deadline < ready_by));
                return Err(if in_queue { Refused::QueueTimeout } else { Refused::NoHost });
            }
            self.follow_graph();
            match self.look(gate) {
                Ok(admitted) => {
                    if let Some(place) = &admitted.place {
                        waiting.served(place);
                    }
                    return Ok(admitted);
                }
                Err(NoPlace::Full(lane)) => {
                    ready_by = None;
                    waiting.missed(lane);
                }
                Err(NoPlace::NoHost) => {
                    let Some(patience) = options.wait_for_ready else { return Err(Refused::NoHost) };
                    ready_by = ready_by.or_else(|| Instant::now().checked_add(patience));
                    waiting.missed(Lane::Any);
                }
            }
        }
    }

    fn join(&self, options: &Concurrency, gate: &Arc<Gate>, wish: Wish, now: Instant) -> Result<Waiting, Full> {
        let (_, thresholds) = self.cluster.limits(self.priority);
        let discipline = Discipline {
            order: if options.fair.is_some() { Order::Fair } else { Order::Arrival },
            newest_first_after: options.newest_first_after,
            capacity: options.max_queue.unwrap_or(thresholds.max_pending_requests),
            endpoint_capacity: options.max_queue_per_endpoint,
        };
        let node = self.cluster.node();
        let lane = match self.own_endpoint(&node) {
            Ok(Some(host)) => lane_of(&host.host.shared),
            Ok(None) | Err(_) => self.lane(&node),
        };
        let Wish { class, offset_ms, caller, timeout: _ } = wish;
        let entry = Entry { lane, class, offset_ms, caller };
        match gate.join(entry, discipline, now) {
            Err(Full::Endpoint) => gate.join(Entry { lane: Lane::Any, ..entry }, discipline, now),
            joined => joined,
        }
    }

    /// Endpoints may have come and gone meanwhile.
    fn follow_graph(&mut self) {
        let name = Arc::clone(&self.cluster.node().config.name);
        if let Some(node) = self.worker.graph().clusters.get(&name) {
            self.cluster = self.worker.clusters.get(self.worker, node);
        }
    }
}

/// How many requests an endpoint takes at this moment, and how many wait for it alone; `None` where nothing is counted.
pub fn shown_of(node: &ClusterNode, index: HostIndex, host: &Host) -> Option<Shown> {
    let gate = node.shared.gate_if_used().filter(|_| node.config.concurrency.is_some())?;
    Some(Shown {
        in_flight: host.shared.requests.load(Ordering::Relaxed),
        limit: limit_of(node, gate, Some(index), host),
        waiting: gate.waiting_at(&host.shared),
    })
}

/// What can be told of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shown {
    /// Requests at it, over all workers.
    pub in_flight: u32,
    /// How many it takes; unlimited when `None`.
    pub limit: Option<u32>,
    /// How many wait for it and no other.
    pub waiting: u32,
}

fn limit_of(node: &ClusterNode, gate: &Gate, index: Option<HostIndex>, host: &Host) -> Option<u32> {
    let options = node.config.concurrency.as_deref()?;
    let part = match (index, &node.hosts.balance) {
        (Some(index), Some(balance)) if options.slow_start => balance.slow_start_part(index, facts::now()),
        _ => 1.0,
    };
    // What an operator wants comes before what its agent says now, and that before what discovery said once.
    let own = host.shared.limit_by_hand().or_else(|| host.shared.agent_limit()).or(host.max_requests);
    endpoint_limit(options, own, Load { in_cluster: gate.load(), part })
}

/// Whether it was called, rather than its time over.
async fn called<I>(
    waiting: &Waiting,
    until: Option<Instant>,
    interrupted: &mut impl FnMut(&mut Context<'_>) -> Poll<I>,
) -> Result<bool, I> {
    let mut turn = pin!(waiting.called());
    let mut timer = pin!(async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    });
    poll_fn(|cx| {
        if turn.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(true));
        }
        if let Poll::Ready(interrupt) = interrupted(cx) {
            return Poll::Ready(Err(interrupt));
        }
        timer.as_mut().poll(cx).map(|()| Ok(false))
    })
    .await
}

/// Looks at the balancer before one waits.
const DRAWS: usize = 4;
