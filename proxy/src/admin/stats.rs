//! `/stats` and `/stats/prometheus`: what the query asks for.
//!
//! Owns the parameters. The forms are in `crate::stats`.

use std::fmt::Display;
use std::sync::Arc;

use http::StatusCode;
use regex::Regex;

use super::Admin;
use super::declared::declared;
use super::request::Request;
use super::response::{HTML, JSON, Response, TEXT};
use crate::process::Process;
use crate::stats::buckets::BucketMode;
use crate::stats::export::{Export, Format, Inverted, Kinds, Query, Source};
use crate::stats::{Exemplars, Registry, Scope};

/// The stats of the process.
struct Stats(Arc<Process>);

impl Source for Stats {
    fn registry(&self) -> &Registry {
        &self.0.stats
    }

    fn declared(&self, visit: &mut dyn FnMut(&str, &dyn Scope)) {
        declared(&self.0.graph.load(), visit);
    }

    fn exemplars(&self) -> &Exemplars {
        &self.0.exemplars
    }
}

/// Source: OpenMetrics 1.0, "Overall Structure".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// In the form that `format` names.
pub(super) fn stats(admin: &Admin, request: &Request) -> Response {
    match request.parameter("format").unwrap_or("text") {
        "text" => show(admin, request, Format::Text, TEXT),
        "json" => show(admin, request, Format::Json, JSON),
        "prometheus" => show(admin, request, Format::Prometheus, TEXT),
        "openmetrics" => show(admin, request, Format::OpenMetrics, OPEN_METRICS),
        "html" | "active-html" => page(show(admin, request, Format::Text, TEXT)),
        _ => refuse("usage: /stats?format=(html|active-html|json|openmetrics|prometheus|text)\n\n"),
    }
}

/// In the form that Prometheus reads.
pub(super) fn prometheus(admin: &Admin, request: &Request) -> Response {
    match request.parameter("format") {
        Some("openmetrics") => show(admin, request, Format::OpenMetrics, OPEN_METRICS),
        _ => show(admin, request, Format::Prometheus, TEXT),
    }
}

fn show(admin: &Admin, request: &Request, format: Format, content_type: &'static str) -> Response {
    let query = match query(request, format) {
        Ok(query) => query,
        Err(reason) => return refuse(reason),
    };
    admin.refresh_stats();
    if format == Format::OpenMetrics {
        admin.context.process.exemplars.want();
    }
    admin.context.process.stats_asked_for.notify_one();
    let context = &admin.context;
    let mut readouts = context.configuration.text_readouts();
    readouts.sort();
    let stats = Stats(Arc::clone(&context.process));
    Response::stream(content_type, Export::new(stats, std::rc::Rc::clone(&context.stats), query, readouts))
}

fn refuse(reason: impl Display) -> Response {
    Response::text(StatusCode::BAD_REQUEST, reason.to_string())
}

fn query(request: &Request, format: Format) -> Result<Query, String> {
    let buckets = match (request.parameter("histogram_buckets"), format) {
        (None, Format::Prometheus | Format::OpenMetrics) | (Some("cumulative"), _) => BucketMode::Cumulative,
        (None | Some("summary" | "none"), _) => BucketMode::Summary,
        (Some("disjoint" | "detailed"), Format::Prometheus | Format::OpenMetrics) => {
            return Err("unsupported prometheus histogram bucket mode".to_owned());
        }
        (Some("disjoint"), _) => BucketMode::Disjoint,
        (Some("detailed"), _) => BucketMode::Detailed,
        _ => return Err("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n\n".to_owned()),
    };
    let kinds = match request.parameter("type") {
        None | Some("All") => Kinds::All,
        Some("Counters") => Kinds::Counters,
        Some("Gauges") => Kinds::Gauges,
        Some("Histograms") => Kinds::Histograms,
        Some("TextReadouts") => Kinds::TextReadouts,
        Some(_) => return Err("invalid &type= param".to_owned()),
    };
    let inverted = if request.has("invert_filter") { Inverted::Yes } else { Inverted::No };
    let filter = match request.parameter("filter").map(Regex::new) {
        None => None,
        Some(Ok(filter)) => Some((filter, inverted)),
        Some(Err(error)) => return Err(format!("Invalid re2 regex: {error}")),
    };
    Ok(Query {
        format,
        buckets,
        kinds,
        filter,
        used_only: request.has("usedonly"),
        text_readouts: request.has("text_readouts"),
    })
}

/// Text as a page.
fn page(text: Response) -> Response {
    if text.status != StatusCode::OK {
        return text;
    }
    let begin =
        "<!DOCTYPE html>\n<html lang='en'><head><title>outrigger stats</title></head><body>\n<pre>\n".to_owned();
    let escaped = text.pieces.map(|piece| super::home::escaped(&String::from_utf8_lossy(&piece)));
    let end = "</pre>\n</body></html>\n".to_owned();
    Response::stream(HTML, [begin].into_iter().chain(escaped).chain([end]))
}

/// `/stats/recentlookups`: stats are reached by handles, never looked up by name, so the list is always empty.
pub(super) fn recent_lookups() -> Response {
    Response::text(StatusCode::OK, "   Count Lookup\n\ntotal: 0\n")
}
