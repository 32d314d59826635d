//! `/requests`: what is served at this moment, and how one of it is ended by hand.
//!
//! Owns the form. The lists are the workers' own. Never ends anything itself.

use http::StatusCode;

use super::ask::{self, Answers};
use super::context::AdminContext;
use super::request::Request;
use super::response::Response;
use super::tree::{Tree, tree};
use crate::worker::Command;
use crate::worker::live::LiveStream;

/// Told of unless `limit` says otherwise.
const TOLD: usize = 500;

/// All live requests and proxied connections, the oldest first.
pub(super) async fn requests(context: &AdminContext, request: &Request) -> Response {
    let limit = match number(request, "limit", TOLD) {
        Ok(limit) => limit,
        Err(reason) => return Response::text(StatusCode::BAD_REQUEST, reason),
    };
    let told = ask::all(&context.workers, Command::TellRequests).await;
    let warning = told.warning();
    let Answers { answers, .. } = told;
    let mut streams: Vec<LiveStream> = answers.into_iter().flat_map(|(_, streams)| streams).collect();
    let wanted = |name: &str, value: &str| request.parameter(name).is_none_or(|wanted| wanted == value);
    streams.retain(|stream| {
        wanted("listener", &stream.listener) && wanted("cluster", stream.cluster.as_deref().unwrap_or_default())
    });
    streams.sort_by(|a, b| b.age.cmp(&a.age).then(a.id.cmp(&b.id)));
    let total = streams.len();
    let shown = streams.iter().take(limit).map(shown);
    let tree = tree! {
        "warning": warning,
        "total": total,
        "requests": Tree::List(shown.collect()),
    };
    tree.answer(request)
}

/// A parameter that is a number.
pub(super) fn number(request: &Request, name: &str, default: usize) -> Result<usize, String> {
    let Some(text) = request.parameter(name) else { return Ok(default) };
    text.parse().map_err(|_| format!("{name} {text:?} is not a whole number\n"))
}

fn shown(stream: &LiveStream) -> Tree {
    tree! {
        "id": id(stream.id),
        "age_ms": millis(stream.age),
        "phase": stream.phase.as_str(),
        "kind": if stream.is_request { "request" } else { "connection" },
        "line": (!stream.line.is_empty()).then_some(&*stream.line),
        "listener": &stream.listener,
        "filter_chain": (!stream.filter_chain.is_empty()).then_some(&stream.filter_chain),
        "client": &*stream.remote,
        "connection": stream.connection_id,
        "route": stream.route.as_ref(),
        "cluster": stream.cluster.as_ref(),
        "endpoint": stream.endpoint.as_deref(),
        "bytes_received": stream.bytes.0,
        "bytes_sent": stream.bytes.1,
        "tries": stream.tries,
        "status": (stream.status != 0).then_some(stream.status),
    }
}

/// To the microsecond.
pub(super) fn millis(time: std::time::Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn id((worker, number): (usize, u64)) -> String {
    format!("{worker}-{number}")
}

/// Ends a request.
pub(super) async fn kill(context: &AdminContext, request: &Request) -> Response {
    let parts = request.parameter("id").and_then(|id| id.split_once('-'));
    let parts = parts.and_then(|(worker, number)| Some((worker.parse::<usize>().ok()?, number.parse::<u64>().ok()?)));
    let Some((worker, number)) = parts else {
        let usage = "usage: /requests/kill?id=<id of /requests, such as 0-17>\n";
        return Response::text(StatusCode::BAD_REQUEST, usage);
    };
    match ask::one(&context.workers, worker, |found| Command::KillRequest { number, found }).await {
        Some(true) => {
            tracing::info!(target: "admin", "request {worker}-{number} is ended by hand");
            Response::done()
        }
        Some(false) => Response::text(StatusCode::NOT_FOUND, format!("there is no request {worker}-{number} now\n")),
        None => Response::text(StatusCode::NOT_FOUND, format!("worker {worker} does not answer, or does not exist\n")),
    }
}
