//! The overload manager on the control thread: measures from time to time, and tells workers what follows.
//!
//! Owns the monitors, the states of actions and load-shed points, and their stats. Never on the way of a request.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_config::overload::{LoadShedPoint, OverloadAction, OverloadActionKind, OverloadManager, ShedPoint};
use outrigger_policy::overload::{Triggered, reset_from};

use super::monitor::Monitor;
use super::stats::{
    ActionStats, ConnectionStats, MonitorStats, OverloadStats, PointStats, RESETS_PREFIX, ResetStats, ShrinkStats,
    prefix,
};
use super::{Hook, protection};
use crate::process::Process;
use crate::worker::{Command, Workers};

/// A configured monitor that cannot work on this machine.
#[derive(Debug, thiserror::Error)]
#[error("overload_manager.resource_monitors[{index}] ({name:?}): {reason}")]
pub struct StartError {
    index: usize,
    name: Arc<str>,
    reason: &'static str,
}

/// What is watched and what follows.
pub(super) struct Plan {
    pub monitors: Vec<(Arc<str>, Monitor)>,
    pub actions: Vec<OverloadAction>,
    pub points: Vec<LoadShedPoint>,
    pub interval: Duration,
}

impl Plan {
    /// What is configured.
    pub fn new(config: Option<&OverloadManager>, root: &Path) -> Result<Self, StartError> {
        let mut plan = Self { monitors: Vec::new(), actions: Vec::new(), points: Vec::new(), interval: Duration::MAX };
        let Some(config) = config else { return Ok(plan) };
        for (index, configured) in config.monitors.iter().enumerate() {
            let name = &configured.name;
            let failed = |reason| StartError { index, name: Arc::clone(name), reason };
            plan.monitors.push((Arc::clone(name), Monitor::new(&configured.kind, root).map_err(failed)?));
        }
        plan.actions.clone_from(&config.actions);
        plan.points.clone_from(&config.load_shed_points);
        plan.interval = config.refresh_interval;
        Ok(plan)
    }

    /// Whether anything changes with time. Connections alone are counted as they come.
    fn needs_watching(&self) -> bool {
        let measured = |(_, monitor): &(Arc<str>, Monitor)| !matches!(monitor, Monitor::Connections { .. });
        self.monitors.iter().any(measured) || !self.actions.is_empty() || !self.points.is_empty()
    }
}

/// The overload manager, as the control thread sees it.
pub struct Control(RefCell<State>);

struct State {
    process: Arc<Process>,
    workers: Workers,
    root: PathBuf,
    monitors: Vec<Watched>,
    actions: Vec<Acting>,
    points: Vec<Shedding>,
    stats: Option<Arc<OverloadStats>>,
    last: Instant,
}

struct Watched {
    name: Arc<str>,
    monitor: Monitor,
    stats: WatchedStats,
    /// The last measurement failed; the log says so once.
    failing: bool,
}

enum WatchedStats {
    Measured(Arc<MonitorStats>),
    Counted(Arc<ConnectionStats>),
}

struct Acting {
    name: Arc<str>,
    kind: OverloadActionKind,
    triggered: Triggered,
    stats: Arc<ActionStats>,
    shrinking: Option<Shrinking>,
    /// Held, so that what it counts is there before there is anything to count.
    _resets: Option<Arc<ResetStats>>,
}

struct Shrinking {
    stats: Arc<ShrinkStats>,
    interval: Duration,
    /// While the action is saturated.
    next: Option<Instant>,
}

struct Shedding {
    point: ShedPoint,
    triggered: Triggered,
    stats: Arc<PointStats>,
}

/// Starts what is configured, or the protection that nobody asked for. Must be called on the control thread, inside its
/// local runtime. Where nothing is to be watched, nothing runs.
///
/// # Errors
/// When a configured resource cannot be watched on this machine.
pub fn start(
    process: &Arc<Process>,
    workers: &Workers,
    config: Option<&OverloadManager>,
    root: &Path,
) -> Result<Rc<Control>, StartError> {
    let mut plan = Plan::new(config, root)?;
    protection::add(&mut plan, config, root);
    let watched = plan.needs_watching();
    let interval = plan.interval;
    let control = Rc::new(Control(RefCell::new(State::new(process, workers, plan, root))));
    if watched {
        tokio::task::spawn_local(watch(Rc::clone(&control), interval));
    }
    Ok(control)
}

async fn watch(control: Rc<Control>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        control.0.borrow_mut().refresh(Instant::now());
    }
}

impl Control {
    /// Brings stats up to date that nothing else keeps so.
    pub fn refresh_stats(&self) {
        let mut state = self.0.borrow_mut();
        let State { process, root, monitors, .. } = &mut *state;
        for watched in monitors {
            if let (WatchedStats::Counted(stats), Ok(pressure)) =
                (&watched.stats, watched.monitor.pressure(process, root))
            {
                stats.pressure.set(percent(pressure));
            }
        }
    }
}

impl State {
    fn new(process: &Arc<Process>, workers: &Workers, plan: Plan, root: &Path) -> Self {
        let scopes = &process.stats;
        let stats = plan.needs_watching().then(|| scopes.scope("overload."));
        let monitors = plan.monitors.into_iter().map(|(name, monitor)| {
            let prefix = prefix(&name);
            let stats = match monitor {
                Monitor::Connections { .. } => WatchedStats::Counted(scopes.scope(&prefix)),
                _ => WatchedStats::Measured(scopes.scope(&prefix)),
            };
            stats.set_pressure(0.0);
            Watched { name, monitor, stats, failing: false }
        });
        let actions = plan.actions.into_iter().map(|action| {
            let OverloadAction { name, kind, triggers } = action;
            let stats: Arc<ActionStats> = scopes.scope(&prefix(&name));
            stats.active.set(0);
            stats.scale_percent.set(0);
            let shrinking = match kind {
                OverloadActionKind::ShrinkHeap { interval } => {
                    Some(Shrinking { stats: scopes.scope(&prefix(&name)), interval, next: None })
                }
                _ => None,
            };
            let resets = matches!(kind, OverloadActionKind::ResetStreams { .. });
            let _resets = resets.then(|| scopes.scope(RESETS_PREFIX));
            Acting { name, kind, triggered: Triggered::new(triggers), stats, shrinking, _resets }
        });
        let points = plan.points.into_iter().map(|LoadShedPoint { point, triggers }| {
            let stats: Arc<PointStats> = scopes.scope(&prefix(point.name()));
            stats.scale_percent.set(0);
            Shedding { point, triggered: Triggered::new(triggers), stats }
        });
        Self {
            monitors: monitors.collect(),
            actions: actions.collect(),
            points: points.collect(),
            process: Arc::clone(process),
            workers: workers.clone(),
            root: root.to_owned(),
            stats,
            last: Instant::now(),
        }
    }

    /// Measures everything, and tells what has changed.
    fn refresh(&mut self, now: Instant) {
        if let Some(stats) = &self.stats {
            let delay = now.saturating_duration_since(self.last);
            stats.refresh_interval_delay.record(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        }
        self.last = now;
        let mut changed_actions = vec![false; self.actions.len()];
        for (index, watched) in self.monitors.iter_mut().enumerate() {
            // A resource that cannot be measured counts as it did the last time.
            let Some(pressure) = watched.measure(&self.process, &self.root) else { continue };
            for (action, changed) in self.actions.iter_mut().zip(&mut changed_actions) {
                *changed |= action.triggered.update(index, pressure).is_some();
            }
            for point in &mut self.points {
                if point.triggered.update(index, pressure).is_some() {
                    let state = point.triggered.state();
                    point.stats.scale_percent.set(percent(state));
                    self.process.overload.set(Hook::of(point.point), state);
                }
            }
        }
        for (action, changed) in self.actions.iter_mut().zip(changed_actions) {
            if changed {
                action.publish(&self.process, &self.workers);
            }
            action.shrink(&self.workers, now);
        }
    }
}

impl WatchedStats {
    fn set_pressure(&self, pressure: f64) {
        match self {
            WatchedStats::Measured(stats) => stats.pressure.set(percent(pressure)),
            WatchedStats::Counted(stats) => stats.pressure.set(percent(pressure)),
        }
    }
}

impl Watched {
    fn measure(&mut self, process: &Process, root: &Path) -> Option<f64> {
        let name = &self.name;
        match self.monitor.pressure(process, root) {
            Ok(pressure) => {
                self.failing = false;
                self.stats.set_pressure(pressure);
                Some(pressure)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(target: "main", "resource {name:?} cannot be measured: {error}");
                }
                if let WatchedStats::Measured(stats) = &self.stats {
                    stats.failed_updates.increment();
                }
                None
            }
        }
    }
}

impl Acting {
    /// Tells workers what is to be done from now on.
    fn publish(&mut self, process: &Process, workers: &Workers) {
        let state = self.triggered.state();
        let saturated = state >= 1.0;
        self.stats.active.set(i64::from(saturated));
        self.stats.scale_percent.set(percent(state));
        let word = if saturated { "active" } else { "inactive" };
        tracing::info!(target: "main", "overload action {} is {word} ({}%)", self.name, percent(state));
        let overload = &process.overload;
        match &self.kind {
            OverloadActionKind::StopAcceptingRequests => overload.set(Hook::StopRequests, state),
            OverloadActionKind::DisableHttpKeepalive => overload.set(Hook::DisableKeepalive, state),
            OverloadActionKind::RejectIncomingConnections => overload.set(Hook::RejectConnections, state),
            OverloadActionKind::StopAcceptingConnections => {
                overload.set(Hook::StopConnections, f64::from(u8::from(saturated)));
                if !saturated {
                    workers.send_all(|| Command::ResumeAccepting);
                }
            }
            OverloadActionKind::ReduceTimeouts(scaled) => {
                if let Some(timers) = overload.timers() {
                    scaled.iter().for_each(|scaled| timers.set(scaled.timer, state));
                    workers.send_all(|| Command::RescaleTimers);
                }
            }
            OverloadActionKind::ResetStreams { smallest_power } => {
                let from = reset_from(*smallest_power, state).unwrap_or(0);
                overload.reset_from.store(from, Ordering::Relaxed);
                if from != 0 {
                    workers.send_all(|| Command::ResetHeavyRequests);
                }
            }
            OverloadActionKind::ShrinkHeap { .. } | OverloadActionKind::Nothing => {}
        }
    }

    /// Gives memory back when it is time to.
    fn shrink(&mut self, workers: &Workers, now: Instant) {
        let saturated = self.triggered.state() >= 1.0;
        let Some(shrinking) = &mut self.shrinking else { return };
        if !saturated {
            shrinking.next = None;
        } else if shrinking.next.is_none_or(|next| now >= next) {
            shrinking.next = Some(now + shrinking.interval);
            shrinking.stats.shrink_count.increment();
            outrigger_sys::process::trim_heap();
            // Each thread has a heap of its own.
            workers.send_all(|| Command::ShrinkHeap);
        }
    }
}

fn percent(share: f64) -> i64 {
    (share * 100.0) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::topology::fixture::Tree;

    #[test]
    fn without_a_manager_the_limit_of_the_control_group_protects() {
        let mut tree = Tree::new()
            .file("proc/self/cgroup", "0::/\n")
            .file("sys/fs/cgroup/memory.max", "1000\n")
            .file("sys/fs/cgroup/memory.stat", "inactive_file 100\nactive_file 100\n");
        let process = Arc::new(Process::default());
        let mut plan = Plan::new(None, tree.path()).unwrap();
        tree = tree.file("sys/fs/cgroup/memory.current", "500\n");
        protection::add(&mut plan, None, tree.path());
        let mut state = State::new(&process, &Workers::new(Vec::new()), plan, tree.path());
        let name = format!("overload.{}.pressure", protection::MONITOR);
        let mut seen = Vec::new();
        // Cached files do not count, so 1179 of them are 979 and 1180 are 980.
        for used in ["500", "1149", "1150", "1179", "1180", "900"] {
            tree = tree.file("sys/fs/cgroup/memory.current", used);
            state.refresh(Instant::now());
            let families = process.stats.collect(&|family| family == name);
            let percent = families.iter().find_map(|family| match family.kind {
                crate::stats::FamilyKind::Gauge(value) => value,
                _ => None,
            });
            let shrinking = state.actions[0].shrinking.as_ref().is_some_and(|shrinking| shrinking.next.is_some());
            seen.push((percent.unwrap(), shrinking, process.overload.may(Hook::StopRequests)));
        }
        let expected = [
            (30, false, false),
            (94, false, false),
            (95, true, false),
            (97, true, false),
            (98, true, true),
            (70, false, false),
        ];
        assert_eq!(seen, expected);
        assert_eq!(state.actions[0].shrinking.as_ref().unwrap().stats.shrink_count.value(), 1);
        assert!(process.overload.is_calm());
    }

    #[test]
    fn a_resource_that_cannot_be_measured_keeps_its_last_pressure() {
        use outrigger_config::overload::{MonitorKind, ResourceMonitor, Trigger, TriggerKind};
        let tree = Tree::new().file("pressure", "1");
        let path = tree.path().join("pressure");
        let monitor = ResourceMonitor { name: "file".into(), kind: MonitorKind::Injected { path } };
        let triggers = vec![Trigger { monitor: 0, kind: TriggerKind::Scaled { from: 0.5, to: 1.0 } }];
        let config = OverloadManager {
            refresh_interval: Duration::from_secs(1),
            monitors: vec![monitor],
            actions: Vec::new(),
            load_shed_points: vec![LoadShedPoint { point: ShedPoint::DecodeHeaders, triggers }],
        };
        let process = Arc::new(Process::default());
        let plan = Plan::new(Some(&config), tree.path()).unwrap();
        let mut state = State::new(&process, &Workers::new(Vec::new()), plan, tree.path());
        let mut tree = Some(tree);
        for (content, percent, failed) in [("1", 100, 0), ("x", 100, 1), ("7", 100, 2), ("0.75", 50, 2), ("0", 0, 2)] {
            tree = tree.map(|tree| tree.file("pressure", content));
            state.refresh(Instant::now());
            let WatchedStats::Measured(stats) = &state.monitors[0].stats else { panic!() };
            assert_eq!((state.points[0].stats.scale_percent.value(), stats.failed_updates.value()), (percent, failed));
            assert_eq!(process.overload.may(Hook::DecodeHeaders), percent > 0);
        }
    }
}
