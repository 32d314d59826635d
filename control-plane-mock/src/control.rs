//! The HTTP control port: what a test in the same process calls, for programs in any language and for people with curl.
//!
//! Owns the paths and the JSON. Does nothing that [`MockControlPlane`] could not do.
//!
//! `type` is a short name (`cds`, `eds`, `lds`, `rds`, `sds`, `rtds`, `ecds`, `srds`, `vhds`), a full message name or a
//! type URL. Parameters stand in the query; bodies are YAML or JSON resources. An error is status 400 and
//! `{"error": ...}`; a wait in vain is 408; an ACK that turned out a NACK is 409.
//!
//! | request | does |
//! |---|---|
//! | `GET /` | this list |
//! | `GET /state` | versions and names of all resources, by type |
//! | `GET /resources?type=` | the resources of a type as JSON |
//! | `GET /streams` | open streams: node, headers, subscriptions, nonces, confirmed versions |
//! | `GET /requests?after=N` | requests as clients sent them, from sequence number N+1 on |
//! | `POST /set` | adds or replaces the resources in the body |
//! | `POST /remove?type=&name=` | removes a resource |
//! | `POST /push?type=` | sends all of a type again under a new version |
//! | `POST /generate?clusters=&endpoints=&listener_port=` | adds generated clusters |
//! | `POST /hold?type=`, `POST /release?type=` | stops and resumes answering a type |
//! | `POST /delay?type=&ms=` | lets time pass before each response of a type; 0 ends it |
//! | `POST /corrupt?type=&how=` | spoils the next response: `garbage`, `wrong_type`, `wrong_response_type`, `bad_nonce`, `no_nonce`, `duplicate` |
//! | `POST /heartbeat?type=&name=` | renews the TTL of a resource |
//! | `POST /drop?type=&stream=&code=` | ends streams (all; those asking for a type; one) with a gRPC code, 14 if not given |
//! | `POST /cut` | breaks all connections |
//! | `POST /refuse?code=` | refuses new streams with a gRPC code; without a code it accepts them again |
//! | `POST /stop`, `POST /kill`, `POST /restart` | stops politely or abruptly; listens again on the same port |
//! | `GET /wait_ack?type=&name=&timeout_ms=` | waits until all who ask have confirmed the current state |
//! | `GET /wait_nack?type=&timeout_ms=` | waits until the current version was rejected; gives the reason |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_api::{JsonStyle, Schema};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::faults::Corruption;
use crate::generate::Generate;
use crate::text::TextError;
use crate::verdict::WaitError;
use crate::{MockControlPlane, types};

/// How long a wait lasts when the request does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// Pause after an accept that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

const HELP: &str = "\
GET  /state  /resources?type=  /streams  /requests?after=
GET  /wait_ack?type=&name=&timeout_ms=  /wait_nack?type=&timeout_ms=
POST /set (body: YAML or JSON)  /remove?type=&name=  /push?type=  /generate?clusters=&endpoints=&listener_port=
POST /hold?type=  /release?type=  /delay?type=&ms=  /corrupt?type=&how=  /heartbeat?type=&name=
POST /drop?type=&stream=&code=  /cut  /refuse?code=  /stop  /kill  /restart
type: cds eds lds rds sds rtds ecds srds vhds, a full message name, or a type URL
how: garbage wrong_type wrong_response_type bad_nonce no_nonce duplicate
";

/// Serves control requests until the task is aborted.
pub(crate) async fn serve(listener: TcpListener, mock: MockControlPlane) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // It concerns one client, or there are no file descriptors: then waiting helps and hurrying does not.
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let mock = mock.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let mock = mock.clone();
                async move { Ok::<_, Infallible>(answer(&mock, request).await) }
            });
            // A client that hangs up in the middle needs no report.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
        });
    }
}

/// Why a control request was not done.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error("parameter {0} is missing")]
    Missing(&'static str),
    #[error("parameter {name}: {value:?} is not {expected}")]
    Malformed { name: &'static str, value: String, expected: &'static str },
    #[error("the body could not be read: {0}")]
    Body(hyper::Error),
    #[error("the body is not UTF-8 text")]
    NotText,
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error("restart: {0}")]
    Restart(std::io::Error),
    #[error("no such path; GET / lists them")]
    NoPath,
}

impl ControlError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Wait(WaitError::Timeout { .. }) => StatusCode::REQUEST_TIMEOUT,
            Self::Wait(WaitError::Nacked(_)) => StatusCode::CONFLICT,
            Self::NoPath => StatusCode::NOT_FOUND,
            Self::Restart(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

async fn answer(mock: &MockControlPlane, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match route(mock, request).await {
        Ok(Reply::Help) => (StatusCode::OK, "text/plain", HELP.to_owned()),
        Ok(Reply::Json(value)) => (StatusCode::OK, "application/json", value.to_string()),
        Err(error) => {
            let mut value = json!({ "error": error.to_string() });
            if let ControlError::Wait(WaitError::Nacked(nack)) = &error {
                value["nack"] = json(nack);
            }
            (error.status(), "application/json", value.to_string())
        }
    };
    let mut response = Response::new(Full::from(body + "\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

enum Reply {
    Help,
    Json(Value),
}

async fn route(mock: &MockControlPlane, request: Request<Incoming>) -> Result<Reply, ControlError> {
    let query = Query::of(request.uri().query().unwrap_or_default());
    let path = request.uri().path().to_owned();
    let value = match (request.method(), path.as_str()) {
        (&Method::GET, "/") => return Ok(Reply::Help),
        (&Method::GET, _) => look(mock, &path, &query).await?,
        (&Method::POST, "/set") => {
            let body = request.into_body().collect().await.map_err(ControlError::Body)?.to_bytes();
            let text = std::str::from_utf8(&body).map_err(|_| ControlError::NotText)?;
            let set = mock.set_yaml(text)?;
            json!({ "set": set.iter().map(|(kind, name)| json!({"type": kind, "name": name})).collect::<Vec<_>>() })
        }
        (&Method::POST, _) => act(mock, &path, &query).await?,
        _ => return Err(ControlError::NoPath),
    };
    Ok(Reply::Json(value))
}

async fn look(mock: &MockControlPlane, path: &str, query: &Query) -> Result<Value, ControlError> {
    Ok(match path {
        "/state" => state(mock),
        "/resources" => resources(mock, &query.kind()?),
        "/streams" => json(&mock.streams()),
        "/requests" => json(&mock.requests(query.number("after")?.unwrap_or(0))),
        "/wait_ack" => {
            let (kind, within) = (query.kind()?, query.timeout()?);
            json(&match query.get("name") {
                None => mock.wait_ack(&kind, within).await?,
                Some(name) => mock.wait_ack_of(&kind, name, within).await?,
            })
        }
        "/wait_nack" => json(&mock.wait_nack(&query.kind()?, query.timeout()?).await?),
        _ => return Err(ControlError::NoPath),
    })
}

async fn act(mock: &MockControlPlane, path: &str, query: &Query) -> Result<Value, ControlError> {
    match path {
        "/remove" => return Ok(json!({ "removed": mock.remove(&query.kind()?, query.required("name")?) })),
        "/push" => mock.push(&query.kind()?),
        "/hold" => mock.hold(&query.kind()?),
        "/release" => mock.release(&query.kind()?),
        "/delay" => {
            let ms = query.number("ms")?.ok_or(ControlError::Missing("ms"))?;
            mock.delay(&query.kind()?, Duration::from_millis(ms));
        }
        "/corrupt" => mock.corrupt(&query.kind()?, query.corruption()?),
        "/heartbeat" => mock.heartbeat(&query.kind()?, &[query.required("name")?]),
        "/drop" => {
            let kind = query.get("type").map(types::resolve);
            let stream = query.number("stream")?;
            let code = query.code()?.unwrap_or(tonic::Code::Unavailable);
            let dropped = mock.drop_streams_where(code, |choice| {
                kind.as_deref().is_none_or(|kind| choice.asks_for(kind)) && stream.is_none_or(|id| id == choice.id)
            });
            return Ok(json!({ "dropped": dropped }));
        }
        "/cut" => mock.cut_connections().await,
        "/refuse" => mock.refuse(query.code()?),
        "/stop" => mock.stop().await,
        "/kill" => mock.kill().await,
        "/restart" => mock.restart().await.map_err(ControlError::Restart)?,
        "/generate" => {
            let number = |name| -> Result<Option<usize>, ControlError> {
                Ok(query.number(name)?.and_then(|number| usize::try_from(number).ok()))
            };
            let plan = Generate {
                clusters: number("clusters")?.unwrap_or(1),
                endpoints: number("endpoints")?.unwrap_or(1),
                backends: Vec::new(),
                listener_port: number("listener_port")?.and_then(|port| u16::try_from(port).ok()),
            };
            mock.set_all(plan.resources());
        }
        _ => return Err(ControlError::NoPath),
    }
    Ok(json!({}))
}

fn state(mock: &MockControlPlane) -> Value {
    let types = mock.look(|world| {
        world
            .store
            .types()
            .map(|(url, state)| {
                let versions: BTreeMap<&String, &String> =
                    state.resources.iter().map(|(name, resource)| (name, &resource.version)).collect();
                let (held, delay, corruptions) = world.faults.of(url);
                let value = json!({
                    "version": state.version.to_string(),
                    "resources": versions,
                    "held": held,
                    "delay_ms": delay.map(|delay| delay.as_millis()),
                    "corruptions_pending": corruptions,
                });
                (url.to_owned(), value)
            })
            .collect::<BTreeMap<_, _>>()
    });
    json!({ "address": mock.address().to_string(), "types": types })
}

fn resources(mock: &MockControlPlane, kind: &str) -> Value {
    let bodies: BTreeMap<String, _> = mock.look(|world| {
        let resources = &world.store.of(kind).resources;
        resources.iter().map(|(name, resource)| (name.clone(), resource.body.clone())).collect()
    });
    let schema = Schema::load();
    let shown = |any: &_| {
        schema.any_to_json(any, JsonStyle::default()).unwrap_or_else(|error| json!({ "error": error.to_string() }))
    };
    json(&bodies.iter().map(|(name, any)| (name, shown(any))).collect::<BTreeMap<_, _>>())
}

/// Our own plain types cannot fail to serialize; if one did, the client would see why.
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// The parameters of a request.
struct Query(BTreeMap<String, String>);

impl Query {
    fn of(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decoded(name), decoded(value))
                })
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<&str, ControlError> {
        self.get(name).ok_or(ControlError::Missing(name))
    }

    fn kind(&self) -> Result<String, ControlError> {
        self.required("type").map(types::resolve)
    }

    fn number(&self, name: &'static str) -> Result<Option<u64>, ControlError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let malformed = |_| ControlError::Malformed { name, value: value.to_owned(), expected: "a whole number" };
        value.parse().map(Some).map_err(malformed)
    }

    fn timeout(&self) -> Result<Duration, ControlError> {
        Ok(self.number("timeout_ms")?.map_or(DEFAULT_WAIT, Duration::from_millis))
    }

    fn code(&self) -> Result<Option<tonic::Code>, ControlError> {
        let code = self.number("code")?;
        Ok(code.map(|code| tonic::Code::from_i32(i32::try_from(code).unwrap_or_default())))
    }

    fn corruption(&self) -> Result<Corruption, ControlError> {
        let how = self.required("how")?;
        serde_json::from_value(Value::from(how)).map_err(|_| ControlError::Malformed {
            name: "how",
            value: how.to_owned(),
            expected: "a corruption that GET / lists",
        })
    }
}

/// Percent-decoding, with `+` as a blank. What is not a valid escape stands for itself.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, escape.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::of("type=cds&name=a%2Fb+c%&how=bad_nonce&ms=x");
        assert_eq!(query.kind().unwrap(), types::CLUSTER);
        assert_eq!(query.required("name").unwrap(), "a/b c%");
        assert_eq!(query.corruption().unwrap(), Corruption::BadNonce);
        assert!(query.number("ms").unwrap_err().to_string().contains("ms"));
        assert!(matches!(query.required("stream"), Err(ControlError::Missing("stream"))));
    }
}
