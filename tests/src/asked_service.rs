//! Services that proxies ask about requests: `envoy.service.auth.v3.Authorization` and
//! `envoy.service.ratelimit.v3.RateLimitService` on one port. They obey the request, and keep what they were told.
//!
//! Words, separated by blanks, of the header `x-authz`: `deny` or `deny=401`, `set=name:value`, `unset=name` (with a
//! value of nothing), `append=name:value`, `absent=name:value`, `replace=name:value` (by action), `remove=name`,
//! `response=name:value`, `response-set=name:value`, `response-absent=name:value`, `header=name:value` (of a refusal),
//! `body=text`, `query=name:value`, `unquery=name`, `meta=key:value`, `error=503` (an error response), `fail` (a gRPC
//! error), `hang`.
//! Of the header `x-limit`, which rate limit actions must give as the value of `script`: `over`, `fail`, `hang`,
//! `header=name:value` (of responses), `request=name:value`, `body=text`, `meta=key:value`, `limit=10:2:name:9:30` (requests,
//! number of the unit, name, remaining, seconds until reset).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use outrigger_api::pb::envoy::config::core::v3::address::Address as AddressKind;
use outrigger_api::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrigger_api::pb::envoy::config::core::v3::{Address, HeaderValue, HeaderValueOption, QueryParameter};
use outrigger_api::pb::envoy::service::auth::v3::attribute_context::Peer;
use outrigger_api::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use outrigger_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_api::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use outrigger_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use outrigger_api::pb::envoy::r#type::v3::HttpStatus;
use outrigger_api::pb::google::protobuf::{BoolValue, Duration, Struct, Value, value::Kind};
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use crate::grpc_server::{GrpcServer, Heads};
use crate::reply;

/// A running service; it ends when dropped.
#[derive(Debug)]
pub struct AskedService {
    server: GrpcServer,
    told: Told,
    script: Script,
    heads: Heads,
}

/// What was told, as lines.
type Told = Arc<Mutex<Vec<String>>>;

/// What is obeyed where there are no headers, as of a connection.
type Script = Arc<Mutex<String>>;

impl AskedService {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is none.
    pub async fn start() -> Self {
        let (told, script) = (Told::default(), Script::default());
        let authorization = AuthorizationServer::new(Asked(Arc::clone(&told), Arc::clone(&script)));
        let limits = RateLimitServiceServer::new(Asked(Arc::clone(&told), Arc::clone(&script)));
        let heads = Heads::default();
        let kept = heads.clone();
        let server = GrpcServer::start(move |request: http::Request<Incoming>| {
            kept.keep(&request);
            let (mut authorization, mut limits) = (authorization.clone(), limits.clone());
            async move {
                match request.uri().path().starts_with("/envoy.service.auth.v3.") {
                    true => authorization.call(request).await,
                    false => limits.call(request).await,
                }
            }
        })
        .await;
        Self { server, told, script, heads }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Makes it obey these words of `x-authz` where there are no headers.
    pub fn set_script(&self, script: &str) {
        script.clone_into(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The headers of the calls that came since the last time.
    pub fn take_heads(&self) -> Vec<Vec<(String, String)>> {
        self.heads.take()
    }

    /// What it was told since the last time, without what differs between any two requests.
    pub fn take_told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Asked(Told, Script);

impl Asked {
    fn keep(&self, mut lines: Vec<String>) {
        lines.sort();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
    }
}

#[tonic::async_trait]
impl Authorization for Asked {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let http = attributes.request.clone().unwrap_or_default().http;
        let of_connection = http.is_none();
        let http = http.unwrap_or_default();
        let raw = http.header_map.unwrap_or_default().headers.into_iter().find(|header| header.key == "x-authz");
        let raw = raw.map(|header| String::from_utf8_lossy(&header.raw_value).into_owned());
        let script = http.headers.get("x-authz").cloned().or(raw);
        let script = script.unwrap_or_else(|| match of_connection {
            false => String::new(),
            true => self.1.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        });
        self.keep(check_lines(&attributes));
        authorization(&script).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl RateLimitService for Asked {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let RateLimitRequest { domain, descriptors, hits_addend } = request.into_inner();
        let mut lines = vec![format!("limits: domain {domain} hits {hits_addend}")];
        let mut script = String::new();
        for descriptor in descriptors {
            let shown: Vec<_> =
                descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
            lines.push(format!(
                "limits: descriptor {} limit {:?} hits {:?} negative {}",
                shown.join(", "),
                descriptor.limit,
                descriptor.hits_addend,
                descriptor.is_negative_hits
            ));
            script.extend(descriptor.entries.into_iter().find(|entry| entry.key == "script").map(|entry| entry.value));
        }
        self.keep(lines);
        limit(&script).await.map(Response::new)
    }
}

fn words(script: &str) -> impl Iterator<Item = (&str, &str)> {
    script.split_whitespace().map(|word| word.split_once('=').unwrap_or((word, "")))
}

fn pair(value: &str) -> (String, String) {
    let (name, value) = value.split_once(':').unwrap_or((value, ""));
    // A header cannot have line ends, and a name may begin with a colon.
    let unescape = |text: &str| text.replace("%0a", "\n").replace("%3a", ":").replace('+', " ");
    (unescape(name), unescape(value))
}

fn header(value: &str) -> HeaderValue {
    let (key, value) = pair(value);
    HeaderValue { key, value, raw_value: Vec::new() }
}

fn option(value: &str, append: Option<bool>, action: HeaderAppendAction) -> HeaderValueOption {
    let mut option = HeaderValueOption { header: Some(header(value)), ..HeaderValueOption::default() };
    option.append_action = action as i32;
    set_append(&mut option, append);
    option
}

#[allow(deprecated)]
fn set_append(option: &mut HeaderValueOption, append: Option<bool>) {
    option.append = append.map(|value| BoolValue { value });
}

fn add_metadata(metadata: &mut Option<Struct>, value: &str) {
    let (key, value) = pair(value);
    let kind = Some(Kind::StringValue(value));
    metadata.get_or_insert_default().fields.insert(key, Value { kind });
}

async fn authorization(script: &str) -> Result<CheckResponse, Status> {
    use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let mut ok = OkHttpResponse::default();
    let mut denied = DeniedHttpResponse::default();
    let (mut code, mut error, mut metadata) = (0, false, None);
    for (word, value) in words(script) {
        let status = || Some(HttpStatus { code: value.parse().unwrap_or_default() });
        match word {
            "deny" => (code, denied.status) = (7, if value.is_empty() { None } else { status() }),
            "error" => (error, denied.status) = (true, if value.is_empty() { None } else { status() }),
            "fail" => return Err(Status::internal("as told")),
            "hang" => std::future::pending().await,
            "set" => ok.headers.push(option(value, None, AppendIfExistsOrAdd)),
            "append" => ok.headers.push(option(value, Some(true), AppendIfExistsOrAdd)),
            "overwrite" => ok.headers.push(option(value, None, OverwriteIfExistsOrAdd)),
            "absent" => ok.headers.push(option(value, None, AddIfAbsent)),
            "replace" => ok.headers.push(option(value, None, OverwriteIfExists)),
            "remove" => ok.headers_to_remove.push(pair(value).0),
            "response" => ok.response_headers_to_add.push(option(value, None, AppendIfExistsOrAdd)),
            "response-set" => ok.response_headers_to_add.push(option(value, None, OverwriteIfExistsOrAdd)),
            "response-absent" => ok.response_headers_to_add.push(option(value, None, AddIfAbsent)),
            "response-replace" => ok.response_headers_to_add.push(option(value, None, OverwriteIfExists)),
            "header" => denied.headers.push(option(value, None, AppendIfExistsOrAdd)),
            "body" => denied.body = value.replace('+', " "),
            "query" => {
                let (key, value) = pair(value);
                ok.query_parameters_to_set.push(QueryParameter { key, value });
            }
            "unquery" => ok.query_parameters_to_remove.push(value.to_owned()),
            "meta" => add_metadata(&mut metadata, value),
            other => return Err(Status::invalid_argument(format!("no such word: {other}"))),
        }
    }
    if error {
        code = 13;
    }
    let http_response = match (code, error) {
        (_, true) => HttpResponse::ErrorResponse(denied),
        (0, false) => HttpResponse::OkResponse(ok),
        _ => HttpResponse::DeniedResponse(denied),
    };
    let status = outrigger_api::pb::google::rpc::Status { code, ..Default::default() };
    Ok(CheckResponse { status: Some(status), dynamic_metadata: metadata, http_response: Some(http_response) })
}

async fn limit(script: &str) -> Result<RateLimitResponse, Status> {
    let mut response = RateLimitResponse { overall_code: Code::Ok as i32, ..RateLimitResponse::default() };
    for (word, value) in words(script) {
        match word {
            "over" => response.overall_code = Code::OverLimit as i32,
            "fail" => return Err(Status::internal("as told")),
            "hang" => std::future::pending().await,
            "header" => response.response_headers_to_add.push(header(value)),
            "request" => response.request_headers_to_add.push(header(value)),
            "body" => response.raw_body = value.replace('+', " ").into_bytes(),
            "meta" => add_metadata(&mut response.dynamic_metadata, value),
            "limit" => {
                let parts: Vec<_> = value.split(':').collect();
                let number = |index: usize| parts.get(index).and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
                response.statuses.push(DescriptorStatus {
                    code: if number(3) == 0 { Code::OverLimit as i32 } else { Code::Ok as i32 },
                    current_limit: Some(RateLimit {
                        name: parts.get(2).map(|name| (*name).to_owned()).unwrap_or_default(),
                        requests_per_unit: number(0),
                        unit: i32::try_from(number(1)).unwrap_or_default(),
                    }),
                    limit_remaining: number(3),
                    duration_until_reset: Some(Duration { seconds: i64::from(number(4)), nanos: 0 }),
                    quota: None,
                });
            }
            _ => {}
        }
    }
    Ok(response)
}

/// The attributes as lines; what differs between any two requests is only said to be there.
fn check_lines(attributes: &AttributeContext) -> Vec<String> {
    let AttributeContext {
        source,
        destination,
        request,
        context_extensions,
        metadata_context,
        route_metadata_context,
        tls_session,
    } = attributes;
    let mut lines = Vec::new();
    peer("source", source, &mut lines);
    peer("destination", destination, &mut lines);
    let request = request.clone().unwrap_or_default();
    lines.push(format!("authz: time {}", request.time.is_some_and(|time| time.seconds > 1_600_000_000)));
    let http = request.http.unwrap_or_default();
    lines.push(format!("authz: id {}", http.id.parse::<u64>().is_ok()));
    lines.push(format!("authz: method {} path {} host {}", http.method, http.path, http.host));
    lines.push(format!("authz: scheme {} protocol {} size {}", http.scheme, http.protocol, http.size));
    lines.push(format!("authz: query {:?} fragment {:?}", http.query, http.fragment));
    lines.push(format!("authz: body {:?} raw {:?}", http.body, String::from_utf8_lossy(&http.raw_body)));
    let steady = |name: &str, value: &str| match name {
        "x-request-id" => "<uuid>".to_owned(),
        _ => value.to_owned(),
    };
    for (name, value) in &http.headers {
        lines.push(format!("authz: header {name}: {}", steady(name, value)));
    }
    for header in http.header_map.unwrap_or_default().headers {
        let raw = String::from_utf8_lossy(&header.raw_value).into_owned();
        lines.push(format!("authz: raw header {}: {} {}", header.key, steady(&header.key, &raw), header.value));
    }
    for (key, value) in context_extensions {
        lines.push(format!("authz: extension {key}: {value}"));
    }
    for (kind, metadata) in [("metadata", metadata_context), ("route metadata", route_metadata_context)] {
        for (name, values) in metadata.iter().flat_map(|metadata| &metadata.filter_metadata) {
            lines.push(format!("authz: {kind} {name}: {:?}", values.fields));
        }
    }
    lines.push(format!("authz: session {:?}", tls_session.as_ref().map(|session| &session.sni)));
    lines
}

fn peer(what: &str, peer: &Option<Peer>, lines: &mut Vec<String>) {
    let Peer { address, service, labels, principal, certificate } = peer.clone().unwrap_or_default();
    let labels: BTreeMap<_, _> = labels.into_iter().collect();
    let address = match address {
        Some(Address { address: Some(AddressKind::SocketAddress(socket)) }) => {
            format!("{:?} {}", socket.protocol(), socket.address)
        }
        other => format!("{other:?}"),
    };
    lines.push(format!("authz: {what} {address} service {service:?} principal {principal:?} labels {labels:?}"));
    lines.push(format!("authz: {what} certificate {} {:x}", certificate.len(), reply::sum(certificate.as_bytes())));
}
