//! The endpoints of the admin port.
//!
//! Owns their table: paths, what they take, and who answers. Never answers itself but for what needs no file of its own.

use std::future::Future;
use std::pin::Pin;

use http::{Method, StatusCode};

use super::context::{AdminContext, DrainRequest};
use super::request::Request;
use super::response::{HTML, Response};
use super::{
    Admin, certs, clusters, config_dump, config_history, coverage, explain, failures, home, listeners, logging,
    overrides, overview, page, requests, runtime, server_info, stats,
};

type Now = fn(&Admin, &Request) -> Response;
type Later = for<'a> fn(&'a AdminContext, &'a Request) -> Pin<Box<dyn Future<Output = Response> + 'a>>;

/// Answers a request.
#[derive(Clone, Copy)]
enum Handler {
    /// From what this thread knows.
    Now(Now),
    /// After others were asked.
    Later(Later),
}

/// One endpoint.
pub(super) struct Endpoint {
    /// The whole path.
    pub path: &'static str,
    /// For people.
    pub help: &'static str,
    /// It changes something, so it wants POST.
    pub changes: bool,
    /// What it takes.
    pub parameters: &'static [Parameter],
    handler: Handler,
}

/// A parameter of an endpoint.
pub(super) struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub help: &'static str,
    /// What may be given.
    pub kind: ParameterKind,
}

/// What a parameter takes.
pub(super) enum ParameterKind {
    /// Nothing: it is there or not.
    Flag,
    /// Any text.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
}

const fn get(path: &'static str, help: &'static str, parameters: &'static [Parameter], handler: Now) -> Endpoint {
    Endpoint { path, help, changes: false, parameters, handler: Handler::Now(handler) }
}

const fn post(path: &'static str, help: &'static str, parameters: &'static [Parameter], handler: Now) -> Endpoint {
    Endpoint { path, help, changes: true, parameters, handler: Handler::Now(handler) }
}

/// As [`get`], after others were asked.
const fn ask(path: &'static str, help: &'static str, parameters: &'static [Parameter], handler: Later) -> Endpoint {
    Endpoint { path, help, changes: false, parameters, handler: Handler::Later(handler) }
}

/// As [`post`], after others were asked.
const fn order(path: &'static str, help: &'static str, parameters: &'static [Parameter], handler: Later) -> Endpoint {
    Endpoint { path, help, changes: true, parameters, handler: Handler::Later(handler) }
}

const fn flag(name: &'static str, help: &'static str) -> Parameter {
    Parameter { name, help, kind: ParameterKind::Flag }
}

const fn text(name: &'static str, help: &'static str) -> Parameter {
    Parameter { name, help, kind: ParameterKind::Text }
}

const fn choice(name: &'static str, help: &'static str, of: &'static [&'static str]) -> Parameter {
    Parameter { name, help, kind: ParameterKind::Choice(of) }
}

const ENABLE: &[Parameter] = &[choice("enable", "begin or end", &["y", "n"])];
const USED_ONLY: Parameter = flag("usedonly", "only stats that were written");
const FILTER: Parameter = text("filter", "only names in which this regular expression is found");
const INVERT: Parameter = flag("invert_filter", "only names in which the filter is not found");

/// All endpoints by path.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    get("/", "a page for browsers, or else a form for each endpoint", &[], |_, request| match request.wants_html {
        true => page::page(),
        false => Response::whole(StatusCode::OK, HTML, home::page()),
    }),
    get("/certs", "certificates in use", &[], |admin, _| certs::certs(&admin.context)),
    get(
        "/clusters",
        "clusters and their endpoints",
        &[text("filter", "only clusters in whose names this regular expression is found"), FORMAT],
        |admin, request| clusters::clusters(&admin.context, request),
    ),
    get(
        "/config_dump",
        "configuration as received",
        &[
            text("resource", "only this list, such as dynamic_listeners"),
            text("mask", "only these fields, with commas between them"),
            text("name_regex", "only resources in whose names this regular expression is found"),
            flag("include_eds", "endpoints too"),
        ],
        |admin, request| config_dump::config_dump(&admin.context, request),
    ),
    get("/config_history", "what changed the configuration, the newest first", CONFIG_HISTORY, |admin, request| {
        config_history::config_history(&admin.context, request)
    }),
    get("/config_history/diff", "what differs between two generations", CONFIG_DIFF, |admin, request| {
        config_history::diff(&admin.context, request)
    }),
    get("/contention", "waiting for locks (not recorded)", &[], |_, _| {
        let reason = "Mutex contention tracing is not enabled: nothing on the request path waits for a lock.\n";
        Response::text(StatusCode::OK, reason)
    }),
    get("/coverage", "fields of the configuration that have no effect here", COVERAGE, |admin, request| {
        coverage::coverage(&admin.context, request)
    }),
    post("/cpuprofiler", "profile of CPU time (use perf instead)", ENABLE, |_, _| unsupported("a CPU profiler")),
    post(
        "/drain_listeners",
        "drain listeners",
        &[
            flag("graceful", "tell clients to go for the drain time before listeners stop"),
            flag("skip_exit", "drain connections, but never stop listeners"),
            flag("inboundonly", "only listeners for inbound traffic"),
        ],
        drain_listeners,
    ),
    get("/explain", "what a request would get now, and why", EXPLAIN, |admin, request| {
        explain::explain(&admin.context, request)
    }),
    ask("/failures", "requests and connections that failed last", FAILURES, |context, request| {
        Box::pin(failures::failures(context, request))
    }),
    post("/healthcheck/fail", "fail health checks", &[], |admin, _| {
        admin.context.server.set_health_checks_failed(true);
        Response::done()
    }),
    post("/healthcheck/ok", "pass health checks", &[], |admin, _| {
        admin.context.server.set_health_checks_failed(false);
        Response::done()
    }),
    post("/heapprofiler", "profile of memory (not built in)", ENABLE, |_, _| unsupported("a heap profiler")),
    get("/help", "list of endpoints", &[], |_, _| Response::text(StatusCode::OK, home::help())),
    get("/hot_restart_version", "compatibility of hot restart", &[], |admin, _| {
        Response::text(StatusCode::OK, admin.context.facts.hot_restart_version.clone())
    }),
    get(
        "/init_dump",
        "what is waited for",
        &[text("mask", "only what these wait for, such as listener")],
        |admin, request| server_info::init_dump(&admin.context, request),
    ),
    get("/listeners", "listeners and their addresses", &[FORMAT], |admin, request| {
        listeners::listeners(&admin.context, request)
    }),
    post(
        "/logging",
        "show and change log levels",
        &[
            choice("level", "of all loggers", &["", "trace", "debug", "info", "warning", "error", "critical", "off"]),
            text("paths", "of some loggers: <logger>:<level>, with commas between them"),
        ],
        |admin, request| logging::logging(&admin.context, request),
    ),
    get("/memory", "memory in use", &[], |_, _| server_info::memory()),
    post("/override", "change something for a while", OVERRIDE, |admin, request| {
        overrides::make(&admin.context, request)
    }),
    get("/overrides", "what is changed for a while", &[FORMAT], |admin, request| {
        overrides::overrides(&admin.context, request)
    }),
    post("/overrides/remove", "end a change before its time", REMOVE, |admin, request| {
        overrides::remove(&admin.context, request)
    }),
    get("/overview", "state, totals and latencies", &[FORMAT], overview::overview),
    get("/overview/clusters", "clusters and endpoints with what they do now", CLUSTERS, |admin, request| {
        overview::clusters(&admin.context, request)
    }),
    get("/overview/routes", "listeners with filter chains, routes and clusters", ROUTES, |admin, request| {
        overview::routes(&admin.context, request)
    }),
    post("/quitquitquit", "exit", &[], |admin, _| {
        admin.context.server.quit();
        Response::done()
    }),
    get("/ready", "200 if live, 503 if not, and the state", &[], |admin, _| server_info::ready(&admin.context)),
    post("/reopen_logs", "open log files again", &[], |admin, _| {
        admin.context.server.reopen_logs();
        Response::done()
    }),
    ask("/requests", "live requests and connections, the oldest first", REQUESTS, |context, request| {
        Box::pin(requests::requests(context, request))
    }),
    order("/requests/kill", "end a live request or connection", KILL, |context, request| {
        Box::pin(requests::kill(context, request))
    }),
    post("/reset_counters", "set all counters to zero", &[], |admin, _| {
        admin.context.process.stats.reset_counters();
        Response::done()
    }),
    get("/runtime", "runtime values of all layers", &[], |admin, _| runtime::runtime(&admin.context)),
    post("/runtime_modify", "override runtime values: ?<key>=<value>&<key>=<value>", &[], |admin, request| {
        runtime::runtime_modify(&admin.context, request)
    }),
    get("/server_info", "version, state and command line", &[], |admin, _| server_info::server_info(&admin.context)),
    get(
        "/stats",
        "stats",
        &[
            USED_ONLY,
            FILTER,
            INVERT,
            choice("format", "form of output", &["text", "html", "json", "prometheus"]),
            choice("type", "kinds of stats", &["All", "Counters", "Gauges", "Histograms", "TextReadouts"]),
            choice("histogram_buckets", "how histograms are shown", &["summary", "cumulative", "disjoint", "detailed"]),
        ],
        stats::stats,
    ),
    get(
        "/stats/prometheus",
        "stats as Prometheus reads them",
        &[
            USED_ONLY,
            flag("text_readouts", "texts too, as labels of gauges"),
            FILTER,
            INVERT,
            choice("histogram_buckets", "how histograms are shown", &["cumulative", "summary"]),
        ],
        stats::prometheus,
    ),
    get("/stats/recentlookups", "stats looked up by name (there are none)", &[], |_, _| stats::recent_lookups()),
    post("/stats/recentlookups/clear", "forget lookups", &[], |_, _| Response::done()),
    post("/stats/recentlookups/disable", "do not record lookups", &[], |_, _| Response::done()),
    post("/stats/recentlookups/enable", "record lookups", &[], |_, _| Response::done()),
];

const EXPLAIN: &[Parameter] = &[
    text("method", "GET unless given"),
    text("host", "the sni unless given"),
    text("path", "with its query; / unless given"),
    text("header", "Name:value; may be given several times"),
    choice("scheme", "https if there is sni or alpn", &["", "http", "https"]),
    text("listener", "the name of a listener"),
    text("destination", "where the connection was made to, address:port"),
    text("source", "where it comes from, 127.0.0.1 unless given"),
    text("sni", "the server name that TLS asks for"),
    text("alpn", "protocols that TLS offers, with commas between them"),
    text("random", "a number that decides about shares of requests"),
    FORMAT,
];
const OF_LISTENER: Parameter = text("listener", "only of this listener");
const OF_CLUSTER: Parameter = text("cluster", "only to this cluster");
const LIMIT: Parameter = text("limit", "not more than so many");
const FAILURES: &[Parameter] = &[OF_LISTENER, OF_CLUSTER, text("flag", "only with this response flag"), LIMIT, FORMAT];
const REQUESTS: &[Parameter] = &[OF_LISTENER, OF_CLUSTER, LIMIT, FORMAT];
const CONFIG_HISTORY: &[Parameter] =
    &[text("type", "only this type, such as cluster, runtime or override"), LIMIT, FORMAT];
const CONFIG_DIFF: &[Parameter] = &[text("from", "a generation"), text("to", "a later generation"), FORMAT];
const COVERAGE: &[Parameter] =
    &[text("type", "only resources of this type"), text("name", "only resources of this name"), FORMAT];
const OVERRIDE: &[Parameter] = &[
    text("cluster", "with endpoint: which cluster"),
    text("endpoint", "its address, as /clusters shows it"),
    flag("drain", "the endpoint gets nothing new"),
    text("weight", "the endpoint has this weight"),
    text("limit", "the endpoint takes so many requests at a time"),
    text("log", "a log level, or <logger>:<level> with commas between them"),
    text("sampling", "percent of requests that are traced"),
    text("for", "how long, such as 30s, 10m or 2h"),
];
const REMOVE: &[Parameter] = &[text("id", "as /overrides shows it")];
const CLUSTERS: &[Parameter] = &[text("filter", "only clusters whose names have this in them"), FORMAT];
const ROUTES: &[Parameter] = &[OF_LISTENER, FORMAT];
const KILL: &[Parameter] = &[text("id", "as /requests shows it")];
const FORMAT: Parameter = choice("format", "form of output", &["text", "json"]);

/// The answer to `request`.
pub(super) async fn answer(admin: &Admin, request: &Request) -> Response {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == request.path) else {
        return Response::text(StatusCode::NOT_FOUND, format!("invalid path. {}", home::help()));
    };
    if endpoint.changes && request.method != Method::POST {
        let reason = format!("Method {} not allowed, POST required.", request.method);
        return Response::text(StatusCode::METHOD_NOT_ALLOWED, reason);
    }
    if endpoint.changes && admin.context.facts.read_only {
        let reason = format!("{} is switched off: the admin port is read-only (--admin-read-only)\n", endpoint.path);
        return Response::text(StatusCode::FORBIDDEN, reason);
    }
    match endpoint.handler {
        Handler::Now(handler) => handler(admin, request),
        Handler::Later(handler) => handler(&admin.context, request).await,
    }
}

fn unsupported(what: &str) -> Response {
    Response::text(StatusCode::NOT_IMPLEMENTED, format!("The current build does not have {what}\n"))
}

fn drain_listeners(admin: &Admin, request: &Request) -> Response {
    let drain = DrainRequest {
        inbound_only: request.has("inboundonly"),
        graceful: request.has("graceful"),
        skip_exit: request.has("skip_exit"),
    };
    admin.context.server.drain_listeners(drain);
    Response::done()
}
