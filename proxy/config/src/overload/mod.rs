//! Protection of the process from overload (`envoy.config.overload.v3.OverloadManager`).
//!
//! Owns what is watched, what may be done about it, and from which pressure on. Never measures anything.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::overload::v3 as overload;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

mod action;
mod monitor;
mod trigger;

pub use action::{LoadShedPoint, OverloadAction, OverloadActionKind, ScaledTimer, ShedPoint, TimerKind, TimerMinimum};
pub use monitor::{CONNECTIONS, CpuScope, HeapLimit, MonitorKind, ResourceMonitor};
pub use trigger::{Trigger, TriggerKind};

/// What is watched, and what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct OverloadManager {
    /// Between two measurements; 1 s unless given.
    pub refresh_interval: Duration,
    /// With names that differ.
    pub monitors: Vec<ResourceMonitor>,
    /// With names that differ.
    pub actions: Vec<OverloadAction>,
    /// No point twice.
    pub load_shed_points: Vec<LoadShedPoint>,
}

impl OverloadManager {
    /// The limit on downstream connections of the process, if the monitor of them is configured.
    pub fn max_downstream_connections(&self) -> Option<u64> {
        self.monitors.iter().find_map(|monitor| match monitor.kind {
            MonitorKind::DownstreamConnections { max } => Some(max),
            _ => None,
        })
    }

    /// Nothing is watched and nothing is done: an `overload_manager` that is there, and empty.
    pub fn is_empty(&self) -> bool {
        self.monitors.is_empty()
    }

    /// Whether anything is ever done.
    pub fn acts(&self) -> bool {
        !self.actions.is_empty() || !self.load_shed_points.is_empty()
    }

    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: overload::OverloadManager) -> Parsed<Self> {
        decide!(wire, at, overload::OverloadManager as "envoy.config.overload.v3.OverloadManager" {
            implemented: refresh_interval, resource_monitors, actions, loadshed_points, buffer_factory_config;
            no_effect: ;
            unsupported: ;
        });
        let list = at.field("resource_monitors");
        // Empty as a whole it says that there is to be no protection; half empty it is a mistake.
        if resource_monitors.is_empty() && !(actions.is_empty() && loadshed_points.is_empty()) {
            return Err(list.reject("must not be empty"));
        }
        let read = |at: &FieldPath<'_>, wire| ResourceMonitor::parse(context, at, wire);
        let monitors = wire::each(&list, resource_monitors, read)?;
        once(&list, monitors.iter().map(|monitor| &*monitor.name))?;
        let smallest = smallest_tracked(&at.field("buffer_factory_config"), buffer_factory_config)?;
        let list = at.field("actions");
        let read = |at: &FieldPath<'_>, wire| OverloadAction::parse(context, at, wire, &monitors, smallest);
        let actions = wire::each(&list, actions, read)?;
        once(&list, actions.iter().map(|action| &*action.name))?;
        action::timers_once(&list, &actions)?;
        let list = at.field("loadshed_points");
        let points = wire::each(&list, loadshed_points, |at, wire| LoadShedPoint::parse(at, wire, &monitors))?;
        once(&list, points.iter().map(|point| point.point.name()))?;
        Ok(Self {
            refresh_interval: refresh(&at.field("refresh_interval"), refresh_interval)?,
            monitors,
            actions,
            load_shed_points: points,
        })
    }
}

/// The power of two of bytes from which on a stream is worth being looked at, if that is given.
fn smallest_tracked(at: &FieldPath<'_>, wire: Option<overload::BufferFactoryConfig>) -> Parsed<Option<u32>> {
    let Some(wire) = wire else { return Ok(None) };
    decide!(wire, at, overload::BufferFactoryConfig as "envoy.config.overload.v3.BufferFactoryConfig" {
        implemented: minimum_account_to_track_power_of_two;
        no_effect: ;
        unsupported: ;
    });
    let power = minimum_account_to_track_power_of_two;
    if !(10..=56).contains(&power) {
        let at = at.field("minimum_account_to_track_power_of_two");
        return Err(at.reject(format!("{power} is not within 10 to 56")));
    }
    Ok(Some(power))
}

fn refresh(at: &FieldPath<'_>, wire: Option<WireDuration>) -> Parsed<Duration> {
    let Some(wire) = wire else { return Ok(DEFAULT_REFRESH) };
    let interval = wire::duration(at, wire)?;
    if interval < SHORTEST_REFRESH {
        return Err(at.reject(format!("{interval:?} must be at least {SHORTEST_REFRESH:?}")));
    }
    Ok(interval)
}

/// Refuses a name that stands there twice.
fn once<'a>(list: &FieldPath<'_>, names: impl Iterator<Item = &'a str>) -> Parsed<()> {
    let mut seen = HashSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            return Err(list.item(index).field("name").reject(format!("{name:?} is given twice")));
        }
    }
    Ok(())
}

/// A name that must not be empty.
fn name(at: &FieldPath<'_>, wire: String) -> Parsed<Arc<str>> {
    if wire.is_empty() { Err(at.field("name").reject("must not be empty")) } else { Ok(wire.into()) }
}

const DEFAULT_REFRESH: Duration = Duration::from_secs(1);
const SHORTEST_REFRESH: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
