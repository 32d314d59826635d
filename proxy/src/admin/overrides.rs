//! `/override`, `/overrides` and `/overrides/remove`: what an operator changes for a while.
//!
//! Owns the parameters and the form. Never changes an endpoint itself.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::context::AdminContext;
use super::logging;
use super::pretty::timestamp;
use super::request::Request;
use super::response::Response;
use super::tree::{Tree, tree};
use crate::graph::overrides::{ByHand, Changes, Override, Undo};

const USAGE: &str = "usage: /override?cluster=<name>&endpoint=<address>&drain&for=<time>\n\
     usage: /override?cluster=<name>&endpoint=<address>&weight=<number>&for=<time>\n\
     usage: /override?cluster=<name>&endpoint=<address>&limit=<requests at a time>&for=<time>\n\
     usage: /override?log=<level, or logger:level with commas between them>&for=<time>\n\
     usage: /override?sampling=<percent>&for=<time>\n\
     times: 30s, 10m, 2h\n";
/// Who needs something for longer wants it in the configuration.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// The overrides in force.
pub(super) fn overrides(context: &AdminContext, request: &Request) -> Response {
    let list = context.configuration.overrides();
    let shown: Vec<Tree> = list.iter().map(shown).collect();
    tree! { "overrides": shown }.answer(request)
}

fn shown(entry: &Override) -> Tree {
    let left = entry.until.duration_since(SystemTime::now()).unwrap_or_default();
    let (cluster, endpoint) = match &entry.what {
        Changes::Endpoint { cluster, address, .. } => (Some(cluster), Some(&**address)),
        Changes::Sampling(_) | Changes::Log(_) => (None, None),
    };
    tree! {
        "id": entry.id,
        "what": entry.what.words(),
        "cluster": cluster,
        "endpoint": endpoint,
        "since": timestamp(entry.since).as_str(),
        "until": timestamp(entry.until).as_str(),
        "seconds_left": left.as_secs(),
    }
}

/// Makes one.
pub(super) fn make(context: &AdminContext, request: &Request) -> Response {
    let made = read(request).and_then(|(what, time)| {
        let undo = match &what {
            Changes::Log(levels) => Some(set_levels(context, levels)?),
            Changes::Endpoint { .. } | Changes::Sampling(_) => None,
        };
        context.configuration.override_for(what, time, undo).map_err(|reason| reason + "\n")
    });
    match made {
        Ok(id) => Response::text(StatusCode::OK, format!("override {id}\n")),
        Err(reason) => Response::text(StatusCode::BAD_REQUEST, reason),
    }
}

/// Removes one.
pub(super) fn remove(context: &AdminContext, request: &Request) -> Response {
    let Some(id) = request.parameter("id").and_then(|id| id.parse().ok()) else {
        return Response::text(StatusCode::BAD_REQUEST, "usage: /overrides/remove?id=<id of /overrides>\n");
    };
    match context.configuration.end_override(id) {
        true => Response::done(),
        false => Response::text(StatusCode::NOT_FOUND, format!("there is no override {id}\n")),
    }
}

fn read(request: &Request) -> Result<(Changes, Duration), String> {
    let known = ["cluster", "endpoint", "drain", "weight", "limit", "log", "sampling", "for"];
    if let Some((name, _)) = request.parameters.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(format!("there is no parameter {name:?}\n{USAGE}"));
    }
    // The form of a page sends what was not filled in as well.
    let drains = request.has("drain") && !matches!(request.parameter("drain"), Some("n" | "false" | "0"));
    let number = |name: &str| {
        let text = request.parameter(name);
        let read = |text: &str| text.parse::<u32>().map_err(|_| format!("{name} {text:?} is not a whole number\n"));
        text.map(read).transpose()
    };
    let (weight, limit, sampling) = (number("weight")?, number("limit")?, number("sampling")?);
    let log = request.parameter("log");
    let orders = [drains, weight.is_some(), limit.is_some(), log.is_some(), sampling.is_some()];
    if orders.into_iter().filter(|order| *order).count() != 1 {
        return Err(format!("give exactly one of drain, weight, limit, log and sampling\n{USAGE}"));
    }
    let time = request.parameter("for").ok_or_else(|| format!("say for how long\n{USAGE}"))?;
    let time = duration(time).ok_or_else(|| format!("for {time:?} is no time such as 30s, 10m or 2h\n"))?;
    if time.is_zero() || time > LONGEST {
        return Err(
            "for has to be between 1s and 168h; what is needed for longer belongs into the configuration\n".to_owned()
        );
    }
    if let Some(levels) = log {
        return Ok((Changes::Log(levels.to_owned()), time));
    }
    if let Some(percent) = sampling {
        if percent > 100 {
            return Err(format!("sampling {percent} is above 100 percent\n"));
        }
        return Ok((Changes::Sampling(percent), time));
    }
    let (Some(cluster), Some(address)) = (request.parameter("cluster"), request.parameter("endpoint")) else {
        return Err(format!("say which cluster and which endpoint\n{USAGE}"));
    };
    let to = match (weight, limit) {
        (Some(0), _) => return Err("weight 0 is what drain is for\n".to_owned()),
        (_, Some(0)) => return Err("limit 0 is what drain is for\n".to_owned()),
        (Some(weight), _) => ByHand::Weight(weight),
        (_, Some(limit)) => ByHand::Limit(limit),
        (None, None) => ByHand::Drain,
    };
    Ok((Changes::Endpoint { cluster: cluster.into(), address: address.to_owned(), to }, time))
}

/// A number and `s`, `m` or `h`.
fn duration(text: &str) -> Option<Duration> {
    let (unit, number) = (text.chars().next_back()?, text.get(..text.len() - 1)?);
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

/// Sets levels of the log; the result puts back what was there.
fn set_levels(context: &AdminContext, text: &str) -> Result<Undo, String> {
    let before = context.logging.levels();
    logging::set(context, text).map_err(|reason| format!("log {text:?}: {reason}\n"))?;
    let levels = Rc::clone(&context.logging);
    Ok(Box::new(move || logging::put_back(&*levels, &before)))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn asked(query: &str) -> Result<(Changes, Duration), String> {
        read(&Request::new(Method::POST, &format!("/override?{query}"), b""))
    }

    #[test]
    fn orders_are_read() {
        let endpoint = |to| Changes::Endpoint { cluster: "a".into(), address: "10.0.0.1:80".into(), to };
        let at = "cluster=a&endpoint=10.0.0.1:80";
        assert_eq!(asked(&format!("{at}&drain&for=10m")).unwrap(), (endpoint(ByHand::Drain), Duration::from_secs(600)));
        assert_eq!(asked(&format!("{at}&weight=5&for=1h")).unwrap().0, endpoint(ByHand::Weight(5)));
        assert_eq!(asked(&format!("{at}&limit=5&for=1s")).unwrap().0, endpoint(ByHand::Limit(5)));
        assert_eq!(asked("log=debug&for=1s").unwrap().0, Changes::Log("debug".into()));
        assert_eq!(asked("sampling=50&for=1s").unwrap().0, Changes::Sampling(50));
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (query, reason) in [
            ("drain&for=1s", "say which cluster"),
            ("cluster=a&endpoint=b&for=1s", "exactly one of"),
            ("cluster=a&endpoint=b&drain&weight=1&for=1s", "exactly one of"),
            ("cluster=a&endpoint=b&drain", "say for how long"),
            ("cluster=a&endpoint=b&drain&for=1", "is no time"),
            ("cluster=a&endpoint=b&drain&for=0s", "between 1s and 168h"),
            ("cluster=a&endpoint=b&drain&for=169h", "between 1s and 168h"),
            ("cluster=a&endpoint=b&weight=x&for=1s", "weight \"x\" is not a whole number"),
            ("cluster=a&endpoint=b&weight=0&for=1s", "weight 0"),
            ("sampling=101&for=1s", "above 100"),
            ("nothing=1", "no parameter \"nothing\""),
        ] {
            let error = asked(query).unwrap_err();
            assert!(error.contains(reason), "{query}: {error}");
        }
    }
}
