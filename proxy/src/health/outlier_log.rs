//! One line of the outlier event log (`envoy.data.cluster.v3.OutlierDetectionEvent` as JSON).
//!
//! Owns the form, which is Envoy's: fields in the order of the message, those that are zero too. Never writes to a file.

use std::time::SystemTime;

use outrigger_policy::outlier::{Event, EventKind, Outlier, Rates};

use super::event_line::EventLine;

/// The line for `event` of a host of a cluster, with its line end; `None` for what is not logged.
pub fn line<K>(event: &Event<K>, cluster: &str, address: &str, now: SystemTime) -> Option<String> {
    let (kind, action, enforced) = match event.kind {
        EventKind::Ejected { outlier, enforced, .. } => (outlier, "EJECT", enforced),
        EventKind::Degraded => (Outlier::Degraded, "EJECT", true),
        // The message has a type whatever the action, and the first one when nobody sets it.
        EventKind::Unejected | EventKind::Recovered => (Outlier::Consecutive5xx, "UNEJECT", false),
        EventKind::Spared { .. } => return None,
    };
    let mut line = EventLine::new();
    line.field("type", type_name(kind)).time("timestamp", now);
    if let Some(since) = event.since_last {
        // 64-bit numbers are strings in the JSON form of messages.
        line.field("secs_since_last_action", since.as_secs().to_string());
    }
    line.field("cluster_name", cluster).field("upstream_url", address).field("action", action);
    line.field("num_ejections", event.ejections).field("enforced", enforced);
    match event.kind {
        EventKind::Ejected { outlier, rates, .. } => details(&mut line, outlier, rates),
        EventKind::Degraded => details(&mut line, Outlier::Degraded, Rates::default()),
        EventKind::Unejected | EventKind::Recovered | EventKind::Spared { .. } => {}
    }
    Some(line.finish())
}

fn details(line: &mut EventLine, outlier: Outlier, rates: Rates) {
    let whole = |rate: Option<f64>| rate.unwrap_or(0.0).clamp(0.0, 100.0) as u32;
    let host = whole(rates.success_rate);
    match outlier {
        Outlier::Consecutive5xx
        | Outlier::ConsecutiveGatewayFailure
        | Outlier::ConsecutiveLocalOriginFailure
        | Outlier::Degraded => line.object("eject_consecutive_event", |_| {}),
        Outlier::SuccessRate | Outlier::SuccessRateLocalOrigin => line.object("eject_success_rate_event", |event| {
            let averages = rates.averages;
            event.field("host_success_rate", host);
            event.field("cluster_average_success_rate", whole(averages.map(|averages| averages.mean)));
            let threshold = whole(averages.map(|averages| averages.threshold));
            event.field("cluster_success_rate_ejection_threshold", threshold);
        }),
        Outlier::FailurePercentage | Outlier::FailurePercentageLocalOrigin => {
            line.object("eject_failure_percentage_event", |event| {
                event.field("host_success_rate", host);
            })
        }
    };
}

fn type_name(outlier: Outlier) -> &'static str {
    match outlier {
        Outlier::Consecutive5xx => "CONSECUTIVE_5XX",
        Outlier::ConsecutiveGatewayFailure => "CONSECUTIVE_GATEWAY_FAILURE",
        Outlier::SuccessRate => "SUCCESS_RATE",
        Outlier::ConsecutiveLocalOriginFailure => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
        Outlier::SuccessRateLocalOrigin => "SUCCESS_RATE_LOCAL_ORIGIN",
        Outlier::FailurePercentage => "FAILURE_PERCENTAGE",
        Outlier::FailurePercentageLocalOrigin => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
        Outlier::Degraded => "DEGRADED",
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use outrigger_policy::outlier::Averages;

    use super::*;

    fn written(kind: EventKind, since_last: Option<Duration>) -> Option<String> {
        let event = Event { host: 0, kind, ejections: 2, since_last };
        line(&event, "c", "10.0.0.1:80", UNIX_EPOCH)
    }

    #[test]
    fn lines_are_those_that_envoy_writes() {
        let consecutive =
            EventKind::Ejected { outlier: Outlier::Consecutive5xx, enforced: true, rates: Rates::default() };
        assert_eq!(
            written(consecutive, None).unwrap(),
            "{\"type\":\"CONSECUTIVE_5XX\",\"timestamp\":\"1970-01-01T00:00:00Z\",\"cluster_name\":\"c\",\
             \"upstream_url\":\"10.0.0.1:80\",\"action\":\"EJECT\",\"num_ejections\":2,\"enforced\":true,\
             \"eject_consecutive_event\":{}}\n"
        );
        assert_eq!(
            written(EventKind::Unejected, Some(Duration::from_millis(1_900))).unwrap(),
            "{\"type\":\"CONSECUTIVE_5XX\",\"timestamp\":\"1970-01-01T00:00:00Z\",\"secs_since_last_action\":\"1\",\
             \"cluster_name\":\"c\",\"upstream_url\":\"10.0.0.1:80\",\"action\":\"UNEJECT\",\"num_ejections\":2,\
             \"enforced\":false}\n"
        );
        let averages = Some(Averages { mean: 90.9, threshold: -4.0 });
        let rates = Rates { success_rate: Some(12.3), averages };
        let by_rate = written(EventKind::Ejected { outlier: Outlier::SuccessRate, enforced: false, rates }, None);
        let expected = "\"enforced\":false,\"eject_success_rate_event\":{\"host_success_rate\":12,\
                        \"cluster_average_success_rate\":90,\"cluster_success_rate_ejection_threshold\":0}}\n";
        assert!(by_rate.unwrap().ends_with(expected));
        assert!(written(EventKind::Spared { outlier: Outlier::SuccessRate }, None).is_none());
    }
}
