//! Kinds of health checks: several for one cluster, the gRPC call that stays open, and agents.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster_with, http, routes};
use outrigger_tests::tcp::HeldPort;
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy, within};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

const TIMES: &str = "timeout: 10s, interval: 0.1s, no_traffic_interval: 0.1s, unhealthy_threshold: 1, \
                     healthy_threshold: 2";
const NO_PANIC: &str = ", common_lb_config: { healthy_panic_threshold: { value: 0 } }";

/// A task that ends with its scenario.
struct Server {
    address: SocketAddr,
    task: AbortHandle,
    held: HeldPort,
}

impl Server {
    /// Nobody listens there from now on.
    async fn end(&self) {
        self.task.abort();
        eventually("nobody listens any longer", async || match TcpStream::connect(self.held.address()).await {
            Ok(_) => Err("it accepts".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<F: Future + Send + 'static>(each: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> Server
where
    F::Output: Send,
{
    let held = HeldPort::take();
    let address = held.address();
    let listener = TcpListener::bind(address).await.unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(each(stream));
        }
    });
    Server { address, task: task.abort_handle(), held }
}

async fn flags(proxy: &Proxy, port: u16) -> String {
    let page = proxy.admin("/clusters").await.text();
    let prefix = format!("c::127.0.0.1:{port}::health_flags::");
    page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
}

async fn wait_flags(proxy: &Proxy, port: u16, wanted: &str) {
    eventually(wanted, async || {
        let seen = flags(proxy, port).await;
        if seen == wanted { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// An answer to each HTTP request, which is a number.
async fn status_server(status: watch::Receiver<u16>) -> Server {
    serve(move |stream| {
        let status = status.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await? > 0 {
                if line == "\r\n" {
                    let head = format!("HTTP/1.1 {} Told\r\ncontent-length: 0\r\n\r\n", *status.borrow());
                    stream.write_all(head.as_bytes()).await?;
                }
                line.clear();
            }
            io::Result::Ok(())
        }
    })
    .await
}

#[tokio::test]
async fn an_endpoint_is_healthy_that_passes_all_checks() {
    for program in [proxy::program(), proxy::envoy()] {
        let (status, read) = watch::channel(200);
        let endpoint = status_server(read).await;
        let port = endpoint.address.port();
        let checks = format!(
            ", health_checks: [{{ name: web, {TIMES}, http_health_check: {{ path: / }} }}, \
             {{ name: port, {TIMES}, tcp_health_check: {{}} }}]{NO_PANIC}"
        );
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(&bootstrap(&[], &[cluster_with("c", &[port], &checks)]), settings).await;
        wait_flags(&proxy, port, "healthy").await;
        let stat = async |name: &str| proxy.stat(&format!("cluster.c.health_check.{name}")).await;
        eventually("the gauges follow", async || {
            let seen = (stat("healthy").await, stat("name.web.healthy").await, stat("name.port.healthy").await);
            if seen == (1, 1, 1) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        status.send(500).unwrap();
        wait_flags(&proxy, port, "/failed_active_hc").await;
        eventually("the gauges follow", async || {
            let seen = (stat("healthy").await, stat("name.web.healthy").await, stat("name.port.healthy").await);
            if seen == (0, 0, 1) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        proxy.stat_is("cluster.c.membership_healthy", 0).await;
        status.send(200).unwrap();
        wait_flags(&proxy, port, "healthy").await;
        assert!(stat("name.web.failure").await > 0 && stat("name.web.success").await > 1);
        assert_eq!((stat("name.port.failure").await, stat("attempt").await, stat("success").await), (0, 0, 0));
        // The endpoint is gone for both.
        endpoint.end().await;
        eventually("both fail", async || {
            let seen = (stat("name.web.network_failure").await, stat("name.port.network_failure").await);
            if seen.0 > 0 && seen.1 > 0 { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        wait_flags(&proxy, port, "/failed_active_hc").await;
    }
}

/// What a server of `grpc.health.v1.Health` does.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    /// This status on each open call.
    Status(u8),
    /// Calls end.
    End,
}

#[derive(Default)]
struct Calls {
    watches: AtomicUsize,
    checks: AtomicUsize,
}

/// A gRPC server whose health is told; without `Watch` it knows `Check` only.
async fn health_server(told: watch::Receiver<Told>, can_watch: bool, calls: Arc<Calls>) -> Server {
    serve(move |stream| {
        let (told, calls) = (told.clone(), Arc::clone(&calls));
        async move {
            let mut connection = h2::server::handshake(stream).await?;
            while let Some(request) = connection.accept().await {
                let (request, respond) = request?;
                assert_eq!(request.headers()["x-token"], "secret");
                assert_eq!(request.uri().authority().unwrap().as_str(), "health.example");
                let is_watch = request.uri().path() == "/grpc.health.v1.Health/Watch";
                let count = if is_watch { &calls.watches } else { &calls.checks };
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(respond, told.clone(), is_watch, can_watch));
            }
            Ok::<(), h2::Error>(())
        }
    })
    .await
}

async fn answer(
    mut respond: h2::server::SendResponse<Bytes>,
    mut told: watch::Receiver<Told>,
    is_watch: bool,
    can_watch: bool,
) -> Result<(), h2::Error> {
    let head = || ::http::Response::builder().header("content-type", "application/grpc");
    if is_watch && !can_watch {
        respond.send_response(head().header("grpc-status", "12").body(()).unwrap(), true)?;
        return Ok(());
    }
    let mut body = respond.send_response(head().body(()).unwrap(), false)?;
    loop {
        let now = told.borrow_and_update().clone();
        match now {
            Told::Status(status) => body.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false)?,
            Told::End => break,
        }
        if !is_watch || told.changed().await.is_err() {
            break;
        }
    }
    body.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect())
}

fn watched() -> String {
    format!(
        ", health_checks: [{{ {TIMES}, custom_health_check: {{ name: outrigger.health_checkers.grpc_watch, \
         typed_config: {{ '@type': type.googleapis.com/outrigger.health.v1.GrpcWatch, service_name: billing, \
         authority: health.example, metadata: {{ x-token: secret }} }} }} }}]{NO_PANIC}{}",
        config::HTTP2
    )
}

#[tokio::test]
async fn an_endpoint_that_is_watched_tells_by_itself() {
    let (tell, told) = watch::channel(Told::Status(1));
    let calls = Arc::new(Calls::default());
    let endpoint = health_server(told, true, Arc::clone(&calls)).await;
    let port = endpoint.address.port();
    let proxy = Proxy::start(&bootstrap(&[], &[cluster_with("c", &[port], &watched())])).await;
    assert_eq!(flags(&proxy, port).await, "healthy");
    // NOT_SERVING, SERVICE_UNKNOWN, SERVING: once is enough, whatever the thresholds.
    for (status, wanted) in [(2, "/failed_active_hc"), (1, "healthy"), (3, "/failed_active_hc"), (1, "healthy")] {
        tell.send(Told::Status(status)).unwrap();
        wait_flags(&proxy, port, wanted).await;
    }
    proxy.stat_is("cluster.c.health_check.attempt", 5).await;
    assert_eq!((calls.watches.load(Ordering::SeqCst), calls.checks.load(Ordering::SeqCst)), (1, 0));
    tell.send(Told::End).unwrap();
    wait_flags(&proxy, port, "/failed_active_hc").await;
    eventually("it is called again", async || match calls.watches.load(Ordering::SeqCst) {
        count if count > 1 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
    proxy.wait_stat("cluster.c.health_check.network_failure", |seen| seen > 0).await;
    tell.send(Told::Status(1)).unwrap();
    wait_flags(&proxy, port, "healthy").await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_watched_is_asked() {
    let (tell, told) = watch::channel(Told::Status(1));
    let calls = Arc::new(Calls::default());
    let endpoint = health_server(told, false, Arc::clone(&calls)).await;
    let port = endpoint.address.port();
    let proxy = Proxy::start(&bootstrap(&[], &[cluster_with("c", &[port], &watched())])).await;
    assert_eq!(flags(&proxy, port).await, "healthy");
    tell.send(Told::Status(2)).unwrap();
    wait_flags(&proxy, port, "/failed_active_hc").await;
    tell.send(Told::Status(1)).unwrap();
    wait_flags(&proxy, port, "healthy").await;
    assert_eq!(calls.watches.load(Ordering::SeqCst), 1);
    assert!(calls.checks.load(Ordering::SeqCst) > 3);
}

/// An agent that says this line to whoever says hello.
async fn agent(line: watch::Receiver<String>) -> Server {
    serve(move |stream| {
        let line = line.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let mut hello = String::new();
            stream.read_line(&mut hello).await?;
            assert_eq!(hello, "hello billing\n");
            let text = line.borrow().clone();
            stream.write_all(text.as_bytes()).await?;
            io::Result::Ok(())
        }
    })
    .await
}

#[tokio::test]
async fn an_agent_says_how_much_its_endpoint_can_take() {
    let (one, other) = (Upstream::start("one").await, Upstream::start("other").await);
    let (tell, line) = watch::channel("up 100%\n".to_owned());
    let agent = agent(line).await;
    // Both endpoints are on one address, so one agent would speak for both: the second is not checked.
    let endpoint = |port: u16, config: &str| {
        format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, \
             health_check_config: {{ {config} }} }} }}"
        )
    };
    let cluster = format!(
        "{{ name: c, type: STATIC, connect_timeout: 5s, health_checks: [{{ {TIMES}, custom_health_check: {{ \
         name: agent, typed_config: {{ '@type': type.googleapis.com/xds.type.v3.TypedStruct, \
         type_url: type.googleapis.com/outrigger.health.v1.AgentCheck, \
         value: {{ port: {}, send: \"hello billing\\n\" }} }} }} }}]{NO_PANIC}, \
         load_assignment: {{ cluster_name: c, endpoints: [{{ lb_endpoints: [{}, {}] }}] }} }}",
        agent.address.port(),
        endpoint(one.port(), ""),
        endpoint(other.port(), "disable_active_health_check: true"),
    );
    let listener = config::listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let proxy = Proxy::start(&bootstrap(&[listener], &[cluster])).await;
    let web = proxy.listener("web").await;
    let share = async |count: usize| {
        let before = one.counts().requests;
        for _ in 0..count {
            assert_eq!(h1::get(web, "/").await.status, 200);
        }
        one.counts().requests - before
    };
    assert_eq!((&*flags(&proxy, one.port()).await, share(20).await), ("healthy", 10));
    let say = |words: &str| tell.send(words.to_owned()).unwrap();

    say("25%\n");
    eventually("a quarter of its weight", async || match share(20).await {
        4 => Ok(()),
        seen => Err(seen.to_string()),
    })
    .await;
    for (words, wanted) in [
        ("drain\r\n", "/agent_drain"),
        ("maint # moving house\n", "/agent_maint"),
        ("ready,0%\n", "/agent_no_weight"),
        ("100%\n", "healthy"),
        ("down # no disk\n", "/failed_active_hc"),
    ] {
        say(words);
        wait_flags(&proxy, one.port(), wanted).await;
        let wanted = if wanted == "healthy" { 4..=6 } else { 0..=0 };
        eventually(words, async || match share(10).await {
            count if wanted.contains(&count) => Ok(()),
            count => Err(count.to_string()),
        })
        .await;
    }
    // Nobody to ask is no news.
    let failures = proxy.stat("cluster.c.health_check.network_failure").await;
    say("up\n");
    wait_flags(&proxy, one.port(), "healthy").await;
    agent.end().await;
    proxy.wait_stat("cluster.c.health_check.network_failure", |count| count > failures + 2).await;
    assert_eq!(flags(&proxy, one.port()).await, "healthy");
    within("both serve", share(4)).await;
}
