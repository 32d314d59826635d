//! What is done about overload (`envoy.config.overload.v3.OverloadAction` and `LoadShedPoint`).
//!
//! Owns which actions and points exist, and their settings. Never acts.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::overload::v3 as overload;
use outrigger_api::pb::google::protobuf::Any;

use super::trigger::{Trigger, triggers};
use super::{ResourceMonitor, name};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Percent;
use crate::wire;

/// One action; its state is the strongest of its triggers.
#[derive(Clone, Debug, PartialEq)]
pub struct OverloadAction {
    /// What stats call it.
    pub name: Arc<str>,
    /// What is done.
    pub kind: OverloadActionKind,
    /// At least one.
    pub triggers: Vec<Trigger>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub enum OverloadActionKind {
    /// Requests are answered with 503 at once.
    StopAcceptingRequests,
    /// Responses ask their connection to end.
    DisableHttpKeepalive,
    /// Nothing is accepted; connections wait in the system's queue.
    StopAcceptingConnections,
    /// Connections are closed as soon as they are accepted.
    RejectIncomingConnections,
    /// Free memory goes back to the system.
    ShrinkHeap {
        /// Again after this time.
        interval: Duration,
    },
    /// Time limits become shorter. No timer twice.
    ReduceTimeouts(Vec<ScaledTimer>),
    /// Streams that hold much memory are reset.
    ResetStreams {
        /// Streams below two to the power of this many bytes are never reset.
        smallest_power: u32,
    },
    /// Connections of a protocol that is not served would be closed: nothing is done.
    Nothing,
}

/// A time limit that becomes shorter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledTimer {
    /// Which one.
    pub timer: TimerKind,
    /// How short it becomes.
    pub minimum: TimerMinimum,
}

/// Source: `ScaleTimersOverloadActionConfig.TimerType`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimerKind {
    /// A downstream HTTP connection without streams.
    ConnectionIdle,
    /// A downstream HTTP stream on which nothing moves.
    StreamIdle,
    /// The TLS handshake of a downstream connection.
    TransportSocketConnect,
    /// The life of a downstream HTTP connection.
    ConnectionMax,
}

impl TimerKind {
    /// All of them.
    pub const ALL: [TimerKind; 4] =
        [TimerKind::ConnectionIdle, TimerKind::StreamIdle, TimerKind::TransportSocketConnect, TimerKind::ConnectionMax];
}

/// How short a time limit becomes at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TimerMinimum {
    /// So short.
    Absolute(Duration),
    /// This share of what it usually is.
    Scaled(Percent),
}

/// A point at which load is shed; the chance is the strongest of its triggers.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadShedPoint {
    /// Where.
    pub point: ShedPoint,
    /// At least one.
    pub triggers: Vec<Trigger>,
}

/// Where load is shed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ShedPoint {
    /// A connection was accepted: it is closed.
    TcpListenerAccept,
    /// The first bytes of an HTTP connection have come: it is closed.
    CreatingCodec,
    /// Bytes of an HTTP/1 request have come: it is answered with 500, and the connection ends.
    Http1AbortDispatch,
    /// An HTTP request has come: its connection is asked to end.
    GoAwayOnDispatch,
    /// An HTTP request has come: its connection is closed.
    GoAwayAndCloseOnDispatch,
    /// A request head is complete: it is answered with 503.
    DecodeHeaders,
    /// A request is about to be sent upstream: it is answered with 503.
    DownstreamFilterCheck,
    /// A new upstream connection is needed: it is not made.
    NewConnection,
}

impl ShedPoint {
    /// All of them.
    pub const ALL: [ShedPoint; 8] = [
        ShedPoint::TcpListenerAccept,
        ShedPoint::CreatingCodec,
        ShedPoint::Http1AbortDispatch,
        ShedPoint::GoAwayOnDispatch,
        ShedPoint::GoAwayAndCloseOnDispatch,
        ShedPoint::DecodeHeaders,
        ShedPoint::DownstreamFilterCheck,
        ShedPoint::NewConnection,
    ];

    /// What configuration and stats call it.
    pub const fn name(self) -> &'static str {
        match self {
            ShedPoint::TcpListenerAccept => "envoy.load_shed_points.tcp_listener_accept",
            ShedPoint::CreatingCodec => "envoy.load_shed_points.hcm_ondata_creating_codec",
            ShedPoint::Http1AbortDispatch => "envoy.load_shed_points.http1_server_abort_dispatch",
            ShedPoint::GoAwayOnDispatch => "envoy.load_shed_points.http2_server_go_away_on_dispatch",
            ShedPoint::GoAwayAndCloseOnDispatch => "envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch",
            ShedPoint::DecodeHeaders => "envoy.load_shed_points.http_connection_manager_decode_headers",
            ShedPoint::DownstreamFilterCheck => "envoy.load_shed_points.http_downstream_filter_check",
            ShedPoint::NewConnection => "envoy.load_shed_points.connection_pool_new_connection",
        }
    }
}

impl OverloadAction {
    pub(super) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: overload::OverloadAction,
        monitors: &[ResourceMonitor],
        smallest_tracked: Option<u32>,
    ) -> Parsed<Self> {
        decide!(wire, at, overload::OverloadAction as "envoy.config.overload.v3.OverloadAction" {
            implemented: name, triggers, typed_config;
            no_effect: ;
            unsupported: ;
        });
        let name = self::name(at, name)?;
        let config_at = at.field("typed_config");
        let config = typed_config.map(|any| wire::extension(context, &config_at, any)).transpose()?;
        let kind = kind(at, &name, config.as_ref(), smallest_tracked)?;
        let takes_config =
            matches!(kind, OverloadActionKind::ShrinkHeap { .. } | OverloadActionKind::ReduceTimeouts(_));
        if config.is_some() && !takes_config {
            return Err(config_at.reject(format!("{name:?} takes none")));
        }
        Ok(Self { name, kind, triggers: self::triggers(&at.field("triggers"), triggers, monitors)? })
    }
}

fn kind(
    at: &FieldPath<'_>,
    name: &str,
    config: Option<&Any>,
    smallest_tracked: Option<u32>,
) -> Parsed<OverloadActionKind> {
    let config_at = at.field("typed_config");
    match name.strip_prefix("envoy.overload_actions.") {
        Some("stop_accepting_requests") => Ok(OverloadActionKind::StopAcceptingRequests),
        Some("disable_http_keepalive") => Ok(OverloadActionKind::DisableHttpKeepalive),
        Some("stop_accepting_connections") => Ok(OverloadActionKind::StopAcceptingConnections),
        Some("reject_incoming_connections") => Ok(OverloadActionKind::RejectIncomingConnections),
        Some("shrink_heap") => shrink_heap(&config_at, config),
        // It closes connections of HTTP/3 only, which is not served.
        Some("close_idle_http_connections") => Ok(OverloadActionKind::Nothing),
        Some("reset_high_memory_stream") => match smallest_tracked {
            Some(smallest_power) => Ok(OverloadActionKind::ResetStreams { smallest_power }),
            None => Err(at.field("name").reject(format!("{name:?} requires overload_manager.buffer_factory_config"))),
        },
        Some("reduce_timeouts") => match config {
            Some(any) => timers(&config_at, any),
            None => Err(config_at.reject("is required")),
        },
        // Other names are for further sets of timers, which their config tells.
        None if config.is_some_and(|any| wire::type_name(any) == TIMERS) => match config {
            Some(any) => timers(&config_at, any),
            None => Err(config_at.reject("is required")),
        },
        _ => Err(at.field("name").reject(format!("{name:?} is not an overload action"))),
    }
}

fn shrink_heap(at: &FieldPath<'_>, config: Option<&Any>) -> Parsed<OverloadActionKind> {
    let Some(any) = config else { return Ok(OverloadActionKind::ShrinkHeap { interval: DEFAULT_SHRINK }) };
    if wire::type_name(any) != "envoy.config.overload.v3.ShrinkHeapConfig" {
        return Err(at.reject(format!("{:?} is not a ShrinkHeapConfig", wire::type_name(any))));
    }
    let wire: overload::ShrinkHeapConfig = wire::decode(at, any)?;
    decide!(wire, at, overload::ShrinkHeapConfig as "envoy.config.overload.v3.ShrinkHeapConfig" {
        implemented: timer_interval;
        no_effect: max_unfreed_memory_bytes = "all that is free goes back";
        unsupported: ;
    });
    let interval = match timer_interval {
        None => DEFAULT_SHRINK,
        Some(wire) => {
            let at = at.field("timer_interval");
            let interval = wire::duration(&at, wire)?;
            if interval < SHORTEST_SHRINK {
                return Err(at.reject(format!("{interval:?} must be at least {SHORTEST_SHRINK:?}")));
            }
            interval
        }
    };
    Ok(OverloadActionKind::ShrinkHeap { interval })
}

fn timers(at: &FieldPath<'_>, any: &Any) -> Parsed<OverloadActionKind> {
    if wire::type_name(any) != TIMERS {
        return Err(at.reject(format!("{:?} is not a ScaleTimersOverloadActionConfig", wire::type_name(any))));
    }
    let wire: overload::ScaleTimersOverloadActionConfig = wire::decode(at, any)?;
    decide!(wire, at, overload::ScaleTimersOverloadActionConfig as "envoy.config.overload.v3.ScaleTimersOverloadActionConfig" {
        implemented: timer_scale_factors;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("timer_scale_factors");
    if timer_scale_factors.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let mut timers: Vec<ScaledTimer> = Vec::with_capacity(timer_scale_factors.len());
    for (index, wire) in timer_scale_factors.into_iter().enumerate() {
        let at = list.item(index);
        let scaled = timer(&at, wire)?;
        if timers.iter().any(|other| other.timer == scaled.timer) {
            return Err(at.field("timer").reject(format!("{:?} is given twice", scaled.timer)));
        }
        timers.push(scaled);
    }
    Ok(OverloadActionKind::ReduceTimeouts(timers))
}

fn timer(at: &FieldPath<'_>, wire: overload::scale_timers_overload_action_config::ScaleTimer) -> Parsed<ScaledTimer> {
    use overload::scale_timers_overload_action_config::{ScaleTimer, TimerType, scale_timer::OverloadAdjust};
    let ScaleTimer { timer, overload_adjust } = wire;
    let kind = match TimerType::try_from(timer) {
        Ok(TimerType::HttpDownstreamConnectionIdle) => TimerKind::ConnectionIdle,
        Ok(TimerType::HttpDownstreamStreamIdle) => TimerKind::StreamIdle,
        Ok(TimerType::TransportSocketConnect) => TimerKind::TransportSocketConnect,
        Ok(TimerType::HttpDownstreamConnectionMax) => TimerKind::ConnectionMax,
        Ok(TimerType::HttpDownstreamStreamFlush) => {
            return Err(at.field("timer").reject("HTTP_DOWNSTREAM_STREAM_FLUSH is not supported"));
        }
        Ok(TimerType::Unspecified) => return Err(at.field("timer").reject("is required")),
        Err(_) => return Err(wire::unknown_enum(&at.field("timer"), timer)),
    };
    let minimum = match overload_adjust {
        Some(OverloadAdjust::MinTimeout(wire)) => {
            TimerMinimum::Absolute(wire::duration(&at.field("min_timeout"), wire)?)
        }
        Some(OverloadAdjust::MinScale(wire)) => TimerMinimum::Scaled(wire::percent(&at.field("min_scale"), wire)?),
        None => return Err(at.reject("needs one of min_timeout, min_scale")),
    };
    Ok(ScaledTimer { timer: kind, minimum })
}

/// Refuses two actions that change the same timer.
pub(super) fn timers_once(list: &FieldPath<'_>, actions: &[OverloadAction]) -> Parsed<()> {
    let mut taken: Vec<(TimerKind, &str)> = Vec::new();
    for (index, action) in actions.iter().enumerate() {
        let OverloadActionKind::ReduceTimeouts(timers) = &action.kind else { continue };
        for ScaledTimer { timer, .. } in timers {
            if let Some((_, other)) = taken.iter().find(|(taken, _)| taken == timer) {
                let reason = format!("{timer:?} is changed by {other:?} already");
                return Err(list.item(index).field("typed_config").reject(reason));
            }
            taken.push((*timer, &action.name));
        }
    }
    Ok(())
}

impl LoadShedPoint {
    pub(super) fn parse(
        at: &FieldPath<'_>,
        wire: overload::LoadShedPoint,
        monitors: &[ResourceMonitor],
    ) -> Parsed<Self> {
        decide!(wire, at, overload::LoadShedPoint as "envoy.config.overload.v3.LoadShedPoint" {
            implemented: name, triggers;
            no_effect: ;
            unsupported: ;
        });
        // A point that nobody asks would look like protection.
        let Some(point) = ShedPoint::ALL.into_iter().find(|point| point.name() == name) else {
            return Err(at.field("name").reject(format!("{name:?} is not a load-shed point")));
        };
        Ok(Self { point, triggers: self::triggers(&at.field("triggers"), triggers, monitors)? })
    }
}

const TIMERS: &str = "envoy.config.overload.v3.ScaleTimersOverloadActionConfig";
const DEFAULT_SHRINK: Duration = Duration::from_secs(10);
const SHORTEST_SHRINK: Duration = Duration::from_secs(1);
