//! Protection of the process from overload: what workers ask on their way.
//!
//! Owns the states that the control thread writes and workers read: one word that says whether anything may happen at
//! all, and a chance for each point at which something may. Never measures (see [`control`]), and never refuses anything
//! itself.

mod cgroup;
mod control;
mod cpu;
pub mod limits;
mod monitor;
mod protection;
mod stats;
mod timers;
mod weighing;

pub use control::{Control, StartError, start};
pub use limits::ConnectionCounts;
pub use stats::{CONNECTIONS_PREFIX, RefusedStats};
pub use timers::{Rescaled, Rescaling, Timers};
pub use weighing::Weighing;

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use outrigger_config::overload::{OverloadManager, ShedPoint};
use stats::ShedStats;

use crate::worker::Worker;

/// Where something may be done about overload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Hook {
    /// Action: requests are answered with 503.
    StopRequests,
    /// Action: responses ask their connection to end.
    DisableKeepalive,
    /// Action: nothing is accepted.
    StopConnections,
    /// Action: accepted connections are closed.
    RejectConnections,
    /// See [`ShedPoint`] for this and those that follow.
    TcpAccept,
    CreateCodec,
    Http1Abort,
    GoAway,
    GoAwayAndClose,
    DecodeHeaders,
    FilterCheck,
    NewConnection,
}

/// Number of hooks.
const HOOKS: usize = 12;
/// A chance that always holds.
const ALWAYS: u32 = u32::MAX;

impl Hook {
    /// The hook of a load-shed point.
    pub const fn of(point: ShedPoint) -> Self {
        match point {
            ShedPoint::TcpListenerAccept => Hook::TcpAccept,
            ShedPoint::CreatingCodec => Hook::CreateCodec,
            ShedPoint::Http1AbortDispatch => Hook::Http1Abort,
            ShedPoint::GoAwayOnDispatch => Hook::GoAway,
            ShedPoint::GoAwayAndCloseOnDispatch => Hook::GoAwayAndClose,
            ShedPoint::DecodeHeaders => Hook::DecodeHeaders,
            ShedPoint::DownstreamFilterCheck => Hook::FilterCheck,
            ShedPoint::NewConnection => Hook::NewConnection,
        }
    }

    /// The load-shed point, unless it is an action.
    fn point(self) -> Option<ShedPoint> {
        ShedPoint::ALL.into_iter().find(|point| Self::of(*point) == self)
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// What is done about overload now. The control thread writes, workers read. It has a cache line of its own: what stands
/// beside it is written with each connection.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Overload {
    /// The bits of hooks with a chance above zero.
    active: AtomicU32,
    /// By hook: 0 is never, [`ALWAYS`] always.
    chances: [AtomicU32; HOOKS],
    /// Requests that hold as many bytes are reset; 0 while none is.
    reset_from: AtomicU64,
    /// Set at the start, if there are timers that may become shorter.
    timers: Option<Box<Timers>>,
}

impl Overload {
    /// Nothing is done yet.
    pub fn new(config: Option<&OverloadManager>) -> Self {
        Self { timers: config.and_then(Timers::of).map(Box::new), ..Self::default() }
    }

    /// Timers that may become shorter; none in most processes.
    pub fn timers(&self) -> Option<&Timers> {
        self.timers.as_deref()
    }

    /// Whether something may happen at a hook: one relaxed load.
    pub fn may(&self, hook: Hook) -> bool {
        self.active.load(Ordering::Relaxed) & hook.bit() != 0
    }

    /// Whether nothing happens anywhere: one relaxed load.
    pub fn is_calm(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0
    }

    /// Sets the chance of a hook, within 0..=1.
    fn set(&self, hook: Hook, chance: f64) {
        // Rounds to the bounds, so that 0 and 1 keep their meaning.
        let chance = (chance.clamp(0.0, 1.0) * f64::from(ALWAYS)) as u32;
        if let Some(slot) = self.chances.get(hook as usize) {
            slot.store(chance, Ordering::Relaxed);
        }
        if chance == 0 {
            self.active.fetch_and(!hook.bit(), Ordering::Relaxed);
        } else {
            self.active.fetch_or(hook.bit(), Ordering::Relaxed);
        }
    }

    /// Whether it happens this time. `random` is evenly distributed.
    fn holds(&self, hook: Hook, random: u64) -> bool {
        let chance = self.chances.get(hook as usize).map_or(0, |chance| chance.load(Ordering::Relaxed));
        chance == ALWAYS || ((random >> 32) as u32) < chance
    }
}

impl Worker {
    /// Whether something is to be done at a hook this time, and counts it. `bypass` is asked only if it may be, and says
    /// that nothing is done here.
    pub fn is_overloaded(&self, hook: Hook, bypass: impl FnOnce() -> bool) -> bool {
        self.process.overload.may(hook) && !bypass() && self.sheds(hook)
    }

    #[cold]
    fn sheds(&self, hook: Hook) -> bool {
        let sheds = self.process.overload.holds(hook, self.random.next());
        if sheds && let Some(point) = hook.point() {
            self.scope::<ShedStats>(&stats::prefix(point.name())).shed_load_count.increment();
        }
        sheds
    }

    /// Whether a listener is exempt from all that is done about overload.
    #[cold]
    pub fn listener_bypasses(&self, name: &str) -> bool {
        self.graph().listeners.get(name).is_some_and(|node| node.config.bypass_overload_manager)
    }

    /// Gives free memory back to the system.
    pub fn shrink(self: &Rc<Self>) {
        self.buffers.shrink();
        outrigger_sys::process::trim_heap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_and_points_belong_together() {
        for point in ShedPoint::ALL {
            assert_eq!(Hook::of(point).point(), Some(point));
        }
        assert_eq!(Hook::StopRequests.point(), None);
        assert_eq!(Hook::NewConnection as usize, HOOKS - 1);
    }

    #[test]
    fn a_chance_holds_for_its_share() {
        let overload = Overload::default();
        let share = |hook| (0..1000u64).filter(|number| overload.holds(hook, number * (u64::MAX / 1000))).count();
        assert!(overload.is_calm() && !overload.may(Hook::TcpAccept) && share(Hook::TcpAccept) == 0);
        overload.set(Hook::TcpAccept, 0.25);
        assert!(!overload.is_calm() && overload.may(Hook::TcpAccept) && !overload.may(Hook::StopRequests));
        assert!((249..=251).contains(&share(Hook::TcpAccept)), "{}", share(Hook::TcpAccept));
        overload.set(Hook::StopRequests, 1.0);
        assert!(overload.holds(Hook::StopRequests, u64::MAX));
        overload.set(Hook::TcpAccept, 0.0);
        assert!(!overload.may(Hook::TcpAccept) && overload.may(Hook::StopRequests));
        overload.set(Hook::StopRequests, 0.0);
        assert!(overload.is_calm());
    }
}
