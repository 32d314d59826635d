//! A fake authorization server: a token endpoint over HTTP/1.1 that does what the code says it is given, and keeps what it
//! was asked.
//!
//! Words of a code, separated by `.`: `ok`; `status-500` (of each answer), `once-503` (of the first answer to this code),
//! `malformed`, `no-token`, `no-expiry`, `short` (tokens end after one second), `alone` (an access token and nothing else),
//! `odd` (a token with a semicolon), `hang`. A refresh token `refresh.<words>` is good for what `<words>` say. A client
//! that asks for itself gets what its scope says.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct AuthorizationServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    /// Codes that were answered once.
    seen: BTreeSet<String>,
}

/// A question for tokens.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Path with query.
    pub target: String,
    /// The authority.
    pub host: String,
    /// `authorization`, if it was there.
    pub authorization: Option<String>,
    /// The form, decoded and sorted by name.
    pub form: Vec<(String, String)>,
}

impl Asked {
    /// A field of the form; empty if it is not there.
    pub fn field(&self, name: &str) -> &str {
        self.form.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

impl Drop for AuthorizationServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AuthorizationServer {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is none.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, task: task.abort_handle() }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What it was asked since the last time.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.lock().asked)
    }

    /// How often it was asked since then.
    pub fn count(&self) -> usize {
        self.lock().asked.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    request: http::Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (host, authorization) = (header("host").unwrap_or_default(), header("authorization"));
    let target = request.uri().path_and_query().map(|target| target.to_string()).unwrap_or_default();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let form = form(&String::from_utf8_lossy(&body));
    let asked = Asked { target, host, authorization, form };
    let words = match asked.field("grant_type") {
        "authorization_code" => asked.field("code").to_owned(),
        "refresh_token" => asked.field("refresh_token").trim_start_matches("refresh.").to_owned(),
        _ => asked.field("scope").to_owned(),
    };
    let first = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(asked);
        state.seen.insert(words.clone())
    };
    Ok(reply(&words, first).await)
}

async fn reply(words: &str, first: bool) -> http::Response<Full<Bytes>> {
    let mut body = json!({
        "access_token": format!("access.{words}"),
        "id_token": format!("id.{words}"),
        "refresh_token": format!("refresh.{words}"),
        "token_type": "bearer",
        "expires_in": 3600,
    });
    let mut status = 200;
    let mut text = None;
    for word in words.split('.') {
        match word.split_once('-').unwrap_or((word, "")) {
            ("status", code) => status = code.parse().unwrap_or(500),
            ("once", code) if first => status = code.parse().unwrap_or(503),
            ("malformed", _) => text = Some("{".to_owned()),
            ("no", "token") => drop(body.as_object_mut().map(|body| body.remove("access_token"))),
            ("no", "expiry") => drop(body.as_object_mut().map(|body| body.remove("expires_in"))),
            ("short", _) => body["expires_in"] = json!(1),
            ("alone", _) => body = json!({ "access_token": "alone", "expires_in": "3600" }),
            ("odd", _) => body["access_token"] = json!("a; Domain=evil"),
            ("hang", _) => std::future::pending().await,
            _ => {}
        }
    }
    let text = text.unwrap_or_else(|| body.to_string());
    let response = http::Response::builder().status(status).header("content-type", "application/json");
    response.body(Full::new(Bytes::from(text))).unwrap_or_default()
}

/// The pairs of a form, decoded and sorted.
pub fn form(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    };
    let mut pairs: Vec<_> = text.split('&').filter(|pair| !pair.is_empty()).map(pair).collect();
    pairs.sort();
    pairs
}

/// What percent signs stand for.
pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
