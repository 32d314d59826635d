//! From which pressure on something is done (`envoy.config.overload.v3.Trigger`).
//!
//! Owns the thresholds. Never compares them with a pressure (see `outrigger_policy::overload`).

use outrigger_api::pb::envoy::config::overload::v3 as overload;

use super::ResourceMonitor;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What the pressure of one resource sets off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trigger {
    /// Position of the resource among the monitors.
    pub monitor: usize,
    /// From which pressure on.
    pub kind: TriggerKind,
}

/// Pressures within 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TriggerKind {
    /// Fully from this pressure on.
    Threshold(f64),
    /// Not at all up to `from`, fully from `to` on, and in proportion between them. `from` is below `to`.
    Scaled {
        /// Source: `scaling_threshold`.
        from: f64,
        /// Source: `saturation_threshold`.
        to: f64,
    },
}

/// At least one, each for another resource.
pub(super) fn triggers(
    list: &FieldPath<'_>,
    wire: Vec<overload::Trigger>,
    monitors: &[ResourceMonitor],
) -> Parsed<Vec<Trigger>> {
    if wire.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let triggers = wire::each(list, wire, |at, wire| trigger(at, wire, monitors))?;
    for (index, trigger) in triggers.iter().enumerate() {
        if triggers[..index].iter().any(|other| other.monitor == trigger.monitor) {
            let name = monitors.get(trigger.monitor).map_or("", |monitor| &*monitor.name);
            return Err(list.item(index).field("name").reject(format!("{name:?} is given twice")));
        }
    }
    Ok(triggers)
}

fn trigger(at: &FieldPath<'_>, wire: overload::Trigger, monitors: &[ResourceMonitor]) -> Parsed<Trigger> {
    decide!(wire, at, overload::Trigger as "envoy.config.overload.v3.Trigger" {
        implemented: name, trigger_oneof;
        no_effect: ;
        unsupported: ;
    });
    let Some(monitor) = monitors.iter().position(|monitor| *monitor.name == *name) else {
        return Err(at.field("name").reject(format!("{name:?} is not one of the resource_monitors")));
    };
    use overload::trigger::TriggerOneof;
    let kind = match trigger_oneof {
        Some(TriggerOneof::Threshold(overload::ThresholdTrigger { value })) => {
            TriggerKind::Threshold(pressure(&at.field("threshold").field("value"), value)?)
        }
        Some(TriggerOneof::Scaled(overload::ScaledTrigger { scaling_threshold, saturation_threshold })) => {
            let at = at.field("scaled");
            let from = pressure(&at.field("scaling_threshold"), scaling_threshold)?;
            let to = pressure(&at.field("saturation_threshold"), saturation_threshold)?;
            if from >= to {
                let reason = format!("{from} must be less than saturation_threshold, which is {to}");
                return Err(at.field("scaling_threshold").reject(reason));
            }
            TriggerKind::Scaled { from, to }
        }
        None => return Err(at.reject("needs one of threshold, scaled")),
    };
    Ok(Trigger { monitor, kind })
}

fn pressure(at: &FieldPath<'_>, value: f64) -> Parsed<f64> {
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(at.reject(format!("{value} is not within 0 to 1"))) }
}
