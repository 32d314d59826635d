//! `/failures`: what failed last, and why.
//!
//! Owns the form. The recorders are the workers' own. Never decides what a failure is.

use http::StatusCode;

use super::ask::{self, Answers};
use super::context::AdminContext;
use super::pretty::timestamp;
use super::request::Request;
use super::requests::{millis, number};
use super::response::Response;
use super::tree::{Tree, tree};
use crate::failures::{Failed, KEPT};
use crate::worker::Command;

/// What failed last, the newest first.
pub(super) async fn failures(context: &AdminContext, request: &Request) -> Response {
    let limit = match number(request, "limit", KEPT) {
        Ok(limit) => limit,
        Err(reason) => return Response::text(StatusCode::BAD_REQUEST, reason),
    };
    let told = ask::all(&context.workers, Command::TellFailures).await;
    let warning = told.warning();
    let Answers { answers, .. } = told;
    let total: u64 = answers.iter().map(|(_, (_, total))| total).sum();
    let mut failed: Vec<Failed> = answers.into_iter().flat_map(|(_, (failed, _))| failed).collect();
    let wanted = |name: &str, value: Option<&str>| {
        request.parameter(name).is_none_or(|wanted| value.is_some_and(|value| value == wanted))
    };
    failed.retain(|failed| {
        wanted("listener", Some(&failed.listener))
            && wanted("cluster", failed.cluster.as_deref())
            && request.parameter("flag").is_none_or(|flag| failed.flags.iter().any(|has| has.short() == flag))
    });
    failed.sort_by_key(|failed| std::cmp::Reverse(failed.at));
    let shown: Vec<Tree> = failed.iter().take(limit).map(shown).collect();
    let tree = tree! { "warning": warning, "failed_in_all": total, "failures": shown };
    tree.answer(request)
}

fn shown(failed: &Failed) -> Tree {
    let flags: Vec<&str> = failed.flags.iter().map(|flag| flag.short()).collect();
    let request = failed.request.as_ref();
    let text = |text: Option<&String>| text.filter(|text| !text.is_empty()).map(|text| Tree::from(&**text));
    tree! {
        "time": timestamp(failed.at).as_str(),
        "why": &*failed.why,
        "kind": if request.is_some() { "request" } else { "connection" },
        "method": text(request.map(|request| &request.method)),
        "host": text(request.map(|request| &request.host)),
        "path": text(request.map(|request| &request.path)),
        "request_id": text(request.map(|request| &request.id)),
        "code": failed.code,
        "flags": if flags.is_empty() { "-".to_owned() } else { flags.join(",") },
        "details": if failed.details.is_empty() { Tree::Nothing } else { Tree::from(&*failed.details) },
        "upstream_failure": failed.upstream_failure.as_deref(),
        "termination": failed.termination.as_deref(),
        "listener": &failed.listener,
        "filter_chain": (!failed.filter_chain.is_empty()).then_some(&failed.filter_chain),
        "client": &*failed.remote,
        "route": failed.route.as_ref(),
        "cluster": failed.cluster.as_ref(),
        "endpoint": failed.endpoint.as_deref(),
        "tries": failed.tries,
        "bytes_received": failed.bytes.0,
        "bytes_sent": failed.bytes.1,
        "duration_ms": millis(failed.duration),
        "request_received_ms": failed.request_received.map(millis),
        "response_began_ms": failed.response_began.map(millis),
    }
}
