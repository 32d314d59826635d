//! Draining: connections of what has gone are asked to end, and closed when their time is up.
//!
//! Owns the timers and which listeners are concerned. Never touches a connection: workers look at [`Draining`].

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::listener::{DrainType, TrafficDirection};
use outrigger_xds::ResourceKind;

use super::manager::GraphManager;
use super::{Draining, ListenerNode, compile};
use crate::cli::DrainStrategy;

/// A gradual drain asks more connections so many times at most.
const MOST_STEPS: u32 = 100;
/// And not more often than this.
const SHORTEST_STEP: Duration = Duration::from_millis(100);

/// Which listeners are concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DrainScope {
    /// All.
    All,
    /// Inbound ones (`?inboundonly`).
    Inbound,
}

impl DrainScope {
    pub(super) fn covers(self, direction: TrafficDirection) -> bool {
        match self {
            Self::All => true,
            Self::Inbound => direction == TrafficDirection::Inbound,
        }
    }
}

/// Source: the admin port's `/drain_listeners`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DrainRequest {
    /// Which listeners.
    pub scope: DrainScope,
    /// Connections are asked to end first; sockets close when the drain time is up, instead of at once.
    pub graceful: bool,
    /// With `graceful`: sockets stay open when the drain time is up.
    pub skip_exit: bool,
}

impl GraphManager {
    /// Filter chains have gone while their listener stays.
    pub(super) fn drain_chains(&mut self, vanished: Vec<Arc<Draining>>) {
        if vanished.is_empty() {
            return;
        }
        self.draining_chains += vanished.len();
        self.begin_drains_over_time(&vanished);
        self.after(self.options.drain_time, move |manager| {
            manager.draining_chains -= vanished.len();
            manager.expire_drains(&vanished);
        });
    }

    /// Where the certificates or trusted authorities of filter chains have been replaced and the listener wants it, the
    /// connections that were accepted with the old ones come to an end. Gives the drains that are looked after here.
    pub(super) fn retire_rotated(&mut self, old: &ListenerNode, new: &ListenerNode) -> Vec<Arc<Draining>> {
        let Some(limit) = new.config.retire_within else { return Vec::new() };
        let rotated = compile::rotated(old, new);
        if rotated.is_empty() {
            return rotated;
        }
        if self.health_check_failed && new.config.drain_type == DrainType::Default {
            new.chains.iter().for_each(|chain| chain.draining.begin());
        }
        tracing::info!("listener {:?}: connections with replaced certificates end within {limit:?}", new.config.name);
        // The other half is for those that are asked last.
        self.begin_drains_over(&rotated, limit / 2);
        let drains = rotated.clone();
        self.after(limit, move |manager| manager.expire_drains(&drains));
        rotated
    }

    /// A listener has gone.
    pub(super) fn drain_removed_listener(&mut self, name: &Arc<str>, node: &ListenerNode) {
        let drains = compile::vanished(node, None);
        self.draining_listeners += 1;
        self.begin_drains_over_time(&drains);
        let name = Arc::clone(name);
        self.after(self.options.drain_time, move |manager| {
            manager.draining_listeners -= 1;
            manager.history.drained(ResourceKind::Listener, &name);
            manager.expire_drains(&drains);
        });
    }

    /// Asks all connections at once.
    fn begin_drains(&mut self, drains: &[Arc<Draining>]) {
        drains.iter().for_each(|draining| draining.begin());
        self.check_drains = true;
    }

    /// Asks more and more connections over the drain time, or all at once, as `--drain-strategy` says.
    fn begin_drains_over_time(&mut self, drains: &[Arc<Draining>]) {
        self.begin_drains_over(drains, self.options.drain_time);
    }

    fn begin_drains_over(&mut self, drains: &[Arc<Draining>], time: Duration) {
        match self.options.drain_strategy {
            DrainStrategy::Immediate => self.begin_drains(drains),
            DrainStrategy::Gradual => {
                let steps = time.as_millis() / SHORTEST_STEP.as_millis();
                // At most `MOST_STEPS`, so it fits.
                let steps = steps.clamp(1, u128::from(MOST_STEPS)) as u32;
                self.ask_more(drains.to_vec(), 0, steps, time / steps);
            }
        }
    }

    fn ask_more(&mut self, drains: Vec<Arc<Draining>>, step: u32, steps: u32, pause: Duration) {
        drains.iter().for_each(|draining| draining.begin_with(step, steps));
        self.check_drains = true;
        if step < steps {
            self.after(pause, move |manager| {
                manager.ask_more(drains, step + 1, steps, pause);
                manager.proceed();
            });
        }
    }

    fn expire_drains(&mut self, drains: &[Arc<Draining>]) {
        drains.iter().for_each(|draining| draining.expire());
        self.check_drains = true;
        self.proceed();
    }

    fn drains_of(&self, wanted: impl Fn(&ListenerNode) -> bool) -> Vec<Arc<Draining>> {
        let nodes = self.listeners.values().map(|running| &running.build.node).filter(|node| wanted(node));
        nodes.flat_map(|node| &node.chains).map(|chain| Arc::clone(&chain.draining)).collect()
    }

    /// Source: `/drain_listeners`.
    pub fn drain_listeners(&mut self, request: DrainRequest) {
        let DrainRequest { scope, graceful, skip_exit } = request;
        if graceful {
            let drains = self.drains_of(|node| scope.covers(node.config.traffic_direction));
            self.begin_drains_over_time(&drains);
            self.after(self.options.drain_time, move |manager| {
                if !skip_exit {
                    manager.stop_listeners(scope);
                    manager.expire_drains(&drains);
                }
            });
        } else {
            self.stop_listeners(scope);
        }
        self.proceed();
    }

    /// Closes listening sockets; connections live on.
    fn stop_listeners(&mut self, scope: DrainScope) {
        self.stopped = match self.stopped {
            Some(DrainScope::All) => Some(DrainScope::All),
            _ => Some(scope),
        };
        let mut stopped = Vec::new();
        for running in self.listeners.values_mut() {
            if scope.covers(running.build.node.config.traffic_direction) {
                stopped.extend(running.sockets.take());
            }
        }
        for id in stopped {
            self.stats.listeners.listener_stopped.increment();
            self.stop_sockets(id);
        }
    }

    /// Source: `/healthcheck/fail` and `/healthcheck/ok`. While it fails, connections are asked to end.
    pub fn fail_health_check(&mut self, failed: bool) {
        if self.health_check_failed == failed {
            return;
        }
        self.health_check_failed = failed;
        if failed {
            let drains = self.drains_of(|node| node.config.drain_type == DrainType::Default);
            self.begin_drains(&drains);
        } else {
            self.renew_drains();
        }
        self.proceed();
    }

    /// New connections start without a drain; those that were asked to end keep to it.
    fn renew_drains(&mut self) {
        for running in self.listeners.values_mut() {
            running.build.renew_drains();
        }
        self.changed();
    }

    /// The process is about to end: no new connections, and the others are asked to end.
    pub fn shut_down(&mut self) {
        self.stop_listeners(DrainScope::All);
        let drains = self.drains_of(|_| true);
        drains.iter().for_each(|draining| draining.leave());
        self.begin_drains(&drains);
        self.proceed();
    }
}
