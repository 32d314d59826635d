//! Keys that are fetched: on demand and in the background, rotation, outage, and what a mesh does with claims.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use outrigger_tests::config::{bootstrap, cluster, http2_cluster};
use outrigger_tests::tokens::Issuer;
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::setup::Setup;

/// What a server of keys does with a request.
#[derive(Clone, Debug)]
enum Answer {
    Keys(String),
    Status(u16),
    Silence,
}

#[derive(Debug)]
struct State {
    answer: Answer,
    /// For the next requests, before that.
    first: Vec<Answer>,
    /// Request heads so far.
    seen: Vec<String>,
}

impl State {
    fn next(&mut self, head: String) -> Answer {
        self.seen.push(head);
        if self.first.is_empty() { self.answer.clone() } else { self.first.remove(0) }
    }
}

/// A server of keys.
struct KeyServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl KeyServer {
    async fn start(answer: Answer) -> Self {
        Self::listen(answer, false).await
    }

    async fn listen(answer: Answer, http2: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State { answer, first: Vec::new(), seen: Vec::new() }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if http2 { serve_http2(stream, &shared).await } else { serve(stream, &shared).await }
                });
            }
        });
        Self { address, state }
    }

    fn answer(&self, answer: Answer) {
        self.state.lock().expect("not poisoned").answer = answer;
    }

    fn first(&self, answers: Vec<Answer>) {
        self.state.lock().expect("not poisoned").first = answers;
    }

    fn seen(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").seen.clone()
    }
}

async fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let answer = state.lock().expect("not poisoned").next(String::from_utf8_lossy(&head).into_owned());
    let (status, body) = match answer {
        Answer::Keys(body) => (200, body),
        Answer::Status(status) => (status, String::new()),
        Answer::Silence => return std::future::pending().await,
    };
    let response = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    // Whoever is gone needs no answer.
    let _ = stream.write_all(response.as_bytes()).await;
}

async fn serve_http2(stream: TcpStream, state: &Mutex<State>) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let head = format!("{} {}", request.method(), request.uri());
        let Answer::Keys(body) = state.lock().expect("not poisoned").next(head) else { continue };
        let mut body_stream = respond.send_response(http::Response::new(()), false).expect("an answer");
        body_stream.send_data(Bytes::from(body), true).expect("a body");
    }
}

fn setup(remote: &str, more: &str) -> Setup {
    Setup::new(
        "web",
        format!(
            "providers: {{ p: {{ issuer: 'https://one', payload_in_metadata: payload, \
             normalize_payload_in_metadata: {{ space_delimited_claims: [scope] }}, remote_jwks: {{ http_uri: {{ \
             uri: 'http://issuer.example:99/keys?a=b', cluster: keys, timeout: 5s }}, {remote} }} }} }}, \
             rules: [{{ match: {{ prefix: / }}, requires: {{ provider_name: p }} }}]{more}"
        ),
    )
}

fn keys_of(issuer: &Issuer) -> Answer {
    Answer::Keys(issuer.key_set(&["RS256"]))
}

fn token_of(issuer: &Issuer) -> String {
    issuer.token("RS256", &json!({ "iss": "https://one", "sub": "user" }))
}

async fn get(address: SocketAddr, token: &str) -> (u16, String) {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", &*authorization)];
    let response = h1::Client::connect(address).await.request("GET", "/", &headers, b"").await;
    (response.status, response.text())
}

async fn start(setup: &Setup, server: &KeyServer, upstream: &Upstream, await_ready: bool) -> Proxy {
    let clusters = [cluster("one", &[upstream.port()]), cluster("keys", &[server.address.port()])];
    let settings = Settings { concurrency: 2, await_ready, ..Settings::default() };
    Proxy::start_with(&bootstrap(&[setup.listener()], &clusters), settings).await
}

async fn wait_for(address: SocketAddr, token: &str, status: u16) {
    eventually("the answer", async || match get(address, token).await {
        (seen, _) if seen == status => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

const SUCCESS: &str = "http.web.jwt_authn.jwks_fetch_success";
const FAILED: &str = "http.web.jwt_authn.jwks_fetch_failed";

#[tokio::test]
async fn requests_wait_for_one_fetch() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(keys_of(&issuer)).await, Upstream::start("one").await);
    let proxy = start(&setup("", ""), &server, &upstream, true).await;
    let (address, token) = (proxy.listener("web").await, token_of(&issuer));
    assert!(server.seen().is_empty(), "nobody has asked yet");
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let token = token.clone();
        requests.spawn(async move { get(address, &token).await.0 });
    }
    assert_eq!(requests.join_all().await, [200; 8]);
    let seen = server.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].starts_with("GET /keys?a=b HTTP/1.1\r\n"), "{seen:?}");
    assert!(seen[0].to_lowercase().contains("\r\nhost: issuer.example:99\r\n"), "{seen:?}");
    proxy.stat_is(SUCCESS, 1).await;
    proxy.stat_is(FAILED, 0).await;
    for stat in ["upstream_cx_total", "upstream_cx_http1_total", "upstream_rq_total", "upstream_rq_200"] {
        proxy.stat_is(&format!("cluster.keys.{stat}"), 1).await;
    }
}

#[tokio::test]
async fn keys_are_fetched_by_http2_where_the_cluster_says_so() {
    let issuer = Issuer::new();
    let server = KeyServer::listen(keys_of(&issuer), true).await;
    let upstream = Upstream::start("one").await;
    let clusters = [cluster("one", &[upstream.port()]), http2_cluster("keys", &[server.address.port()])];
    let proxy = Proxy::start(&bootstrap(&[setup("", "").listener()], &clusters)).await;
    assert_eq!(get(proxy.listener("web").await, &token_of(&issuer)).await.0, 200);
    assert_eq!(server.seen(), ["GET http://issuer.example:99/keys?a=b"]);
}

#[tokio::test]
async fn keys_are_rotated() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let (server, upstream) = (KeyServer::start(keys_of(&old)).await, Upstream::start("one").await);
    let proxy = start(&setup("cache_duration: 1s", ""), &server, &upstream, true).await;
    let address = proxy.listener("web").await;
    assert_eq!(get(address, &token_of(&old)).await.0, 200);
    assert_eq!(get(address, &token_of(&new)).await, (401, "Jwt verification fails".into()));
    server.answer(keys_of(&new));
    wait_for(address, &token_of(&new), 200).await;
    assert_eq!(get(address, &token_of(&old)).await, (401, "Jwt verification fails".into()));
}

#[tokio::test]
async fn tokens_of_withdrawn_keys_are_forgotten() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let (server, upstream) = (KeyServer::start(keys_of(&old)).await, Upstream::start("one").await);
    let mut setup = setup("cache_duration: 1s", "");
    setup.settings = setup.settings.replace("issuer: 'https://one',", "issuer: 'https://one', jwt_cache_config: {},");
    let proxy = start(&setup, &server, &upstream, true).await;
    let address = proxy.listener("web").await;
    // What is known is forgotten with the keys after a second, so it is asked for until it is found.
    eventually("a token that is known", async || {
        assert_eq!(get(address, &token_of(&old)).await.0, 200);
        match proxy.stat("http.web.jwt_authn.jwt_cache_hit").await {
            0 => Err("no hit".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    server.answer(keys_of(&new));
    wait_for(address, &token_of(&old), 401).await;
}

#[tokio::test]
async fn nothing_passes_while_keys_cannot_be_fetched() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(Answer::Status(503)).await, Upstream::start("one").await);
    let proxy = start(&setup("", ""), &server, &upstream, true).await;
    let (address, token) = (proxy.listener("web").await, token_of(&issuer));
    let failed = (401, "Jwks remote fetch is failed".to_owned());
    assert_eq!(get(address, &token).await, failed);
    server.answer(Answer::Keys("{}".into()));
    assert_eq!(get(address, &token).await, failed);
    server.answer(Answer::Keys(String::new()));
    assert_eq!(get(address, &token).await, failed);
    server.answer(Answer::Keys(" ".repeat(2 << 20)));
    assert_eq!(get(address, &token).await, failed);
    proxy.stat_is(FAILED, 4).await;
    proxy.stat_is(SUCCESS, 0).await;
    assert!(upstream.seen().is_empty());
    server.answer(keys_of(&issuer));
    assert_eq!(get(address, &token).await.0, 200);
}

#[tokio::test]
async fn a_silent_server_holds_requests_no_longer_than_its_limit() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(Answer::Silence).await, Upstream::start("one").await);
    let mut setup = setup("", "");
    setup.settings = setup.settings.replace("timeout: 5s", "timeout: 0.2s");
    let proxy = start(&setup, &server, &upstream, true).await;
    let answer = get(proxy.listener("web").await, &token_of(&issuer)).await;
    assert_eq!(answer, (401, "Jwks remote fetch is failed".into()));
}

#[tokio::test]
async fn fetches_are_tried_again() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(keys_of(&issuer)).await, Upstream::start("one").await);
    server.first(vec![Answer::Status(500), Answer::Status(503)]);
    let retries = "retry_policy: { num_retries: 2, retry_back_off: { base_interval: 0.01s, max_interval: 60s } }";
    let proxy = start(&setup(retries, ""), &server, &upstream, true).await;
    assert_eq!(get(proxy.listener("web").await, &token_of(&issuer)).await.0, 200);
    assert_eq!(server.seen().len(), 3);
    proxy.stat_is(SUCCESS, 1).await;
    proxy.stat_is(FAILED, 0).await;
}

#[tokio::test]
async fn a_listener_waits_for_keys_that_are_fetched_in_the_background() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(Answer::Silence).await, Upstream::start("one").await);
    let setup = setup("async_fetch: { failed_refetch_duration: 0.1s }", "");
    let proxy = start(&setup, &server, &upstream, false).await;
    eventually("the fetch has begun", async || match server.seen().len() {
        0 => Err("no request".into()),
        _ => Ok(()),
    })
    .await;
    assert!(proxy.listeners().await.is_empty());
    // The first attempt ends after its limit of 5 s, which is as good as an answer.
    server.answer(keys_of(&issuer));
    let address = proxy.listener("web").await;
    wait_for(address, &token_of(&issuer), 200).await;
    let fetches = server.seen().len();
    server.answer(Answer::Status(503));
    assert_eq!(get(address, &token_of(&issuer)).await.0, 200);
    assert_eq!(server.seen().len(), fetches, "requests do not fetch");
}

#[tokio::test]
async fn a_fast_listener_does_not_wait() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(Answer::Silence).await, Upstream::start("one").await);
    let setup = setup("async_fetch: { fast_listener: true, failed_refetch_duration: 0.1s }", "");
    let proxy = start(&setup, &server, &upstream, true).await;
    let address = proxy.listener("web").await;
    eventually("the fetch has begun", async || if server.seen().is_empty() { Err("no".into()) } else { Ok(()) }).await;
    server.answer(keys_of(&issuer));
    wait_for(address, &token_of(&issuer), 200).await;
}

#[tokio::test]
async fn keys_of_the_background_outlive_their_server() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(keys_of(&issuer)).await, Upstream::start("one").await);
    let setup = setup("cache_duration: 1s, async_fetch: { failed_refetch_duration: 0.1s }", "");
    let proxy = start(&setup, &server, &upstream, true).await;
    let address = proxy.listener("web").await;
    server.answer(Answer::Status(503));
    proxy.wait_stat(FAILED, |failed| failed >= 2).await;
    assert_eq!(get(address, &token_of(&issuer)).await.0, 200);
}

#[tokio::test]
async fn a_cluster_that_does_not_exist_lets_nobody_in() {
    let issuer = Issuer::new();
    let upstream = Upstream::start("one").await;
    let proxy = Proxy::start(&bootstrap(&[setup("", "").listener()], &[cluster("one", &[upstream.port()])])).await;
    let answer = get(proxy.listener("web").await, &token_of(&issuer)).await;
    assert_eq!(answer, (401, "Jwks remote fetch is failed".into()));
}

/// The policy that a mesh makes of "requests of this issuer with the scope `write`".
const BY_CLAIMS: &str = "{ name: rbac, typed_config: { '@type': $T/rbac.v3.RBAC, rules: { action: ALLOW, policies: { \
    'ns[foo]-policy[write]-rule[0]': { permissions: [{ any: true }], principals: [{ and_ids: { ids: [\
    { or_ids: { ids: [{ metadata: { filter: envoy.filters.http.jwt_authn, path: [{ key: payload }, { key: iss }], \
    value: { string_match: { exact: 'https://one' } } } }] } }, \
    { or_ids: { ids: [{ metadata: { filter: envoy.filters.http.jwt_authn, path: [{ key: payload }, { key: scope }], \
    value: { list_match: { one_of: { string_match: { exact: write } } } } } }] } }] } }] } } } } }, ";

#[tokio::test]
async fn a_mesh_authorises_by_claims() {
    let issuer = Issuer::new();
    let (server, upstream) = (KeyServer::start(keys_of(&issuer)).await, Upstream::start("one").await);
    let mut setup = setup("", "");
    setup.settings = setup.settings.replace(
        "requires: { provider_name: p }",
        "requires: { requires_any: { requirements: [{ provider_name: p }, { allow_missing: {} }] } }",
    );
    setup.after = BY_CLAIMS.into();
    let proxy = start(&setup, &server, &upstream, true).await;
    let address = proxy.listener("web").await;
    let token = |scope: &str| issuer.token("RS256", &json!({ "iss": "https://one", "sub": "user", "scope": scope }));
    assert_eq!(get(address, &token("read write")).await.0, 200);
    assert_eq!(get(address, &token("read")).await, (403, "RBAC: access denied".into()));
    let response = h1::get(address, "/").await;
    assert_eq!((response.status, response.text()), (403, "RBAC: access denied".into()));
    let forged = Issuer::new().token("RS256", &json!({ "iss": "https://one", "scope": "write" }));
    assert_eq!(get(address, &forged).await, (401, "Jwt verification fails".into()));
    let line = proxy.lines("web.log", 4).await;
    assert!(line[0].contains("\"scope\":[\"read\",\"write\"]"), "{line:?}");
    assert!(line[3].starts_with("401 - jwt_authn_access_denied{Jwt_verification_fails}"), "{line:?}");
}
