//! Load reports out of band: weights that endpoints tell on a stream of their own, with Envoy beside.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use control_plane_mock::MockControlPlane;
use h2::server::SendResponse;
use http::Response;
use outrigger_tests::config::{self, resource};
use outrigger_tests::eventually;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::*;

/// What an endpoint does on its stream of reports.
#[derive(Clone, Debug)]
enum Tells {
    /// Reports this, again and again.
    Reports(Vec<u8>),
    /// Ends the call with this status.
    Ends(&'static str),
    /// Answers with this HTTP status.
    Http(u16),
}

/// What an endpoint has been asked: authority, path, headers, and the message with its prefix.
type Asked = (String, String, Vec<(String, String)>, Vec<u8>);

/// An endpoint that serves requests, and `OpenRcaService` on the same port.
struct Endpoint {
    port: u16,
    tell: watch::Sender<Tells>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Streams of reports that are open.
    open: watch::Receiver<usize>,
    task: AbortHandle,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    async fn start(name: &'static str, tells: Tells) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, told) = watch::channel(tells);
        let (opened, open) = watch::channel(0);
        let (opened, asked) = (Arc::new(opened), Arc::new(Mutex::default()));
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (told, opened, log) = (told.clone(), Arc::clone(&opened), Arc::clone(&log));
                connections.spawn(async move {
                    let mut connection = h2::server::handshake(stream).await?;
                    let mut calls = JoinSet::new();
                    while let Some(request) = connection.accept().await {
                        let (request, respond) = request?;
                        let (told, opened, log) = (told.clone(), Arc::clone(&opened), Arc::clone(&log));
                        calls.spawn(answer(name, request, respond, told, opened, log));
                    }
                    Ok::<(), h2::Error>(())
                });
            }
        });
        Self { port, tell, asked, open, task: task.abort_handle() }
    }

    async fn wait_open(&self, wanted: impl Fn(usize) -> bool) {
        let mut open = self.open.clone();
        let seen = outrigger_tests::within("streams begin and end", open.wait_for(|open| wanted(*open))).await;
        seen.expect("the endpoint is there");
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(
    name: &'static str,
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut told: watch::Receiver<Tells>,
    open: Arc<watch::Sender<usize>>,
    log: Arc<Mutex<Vec<Asked>>>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    if head.uri.path() != "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics" {
        let mut body = respond.send_response(Response::new(()), false)?;
        return body.send_data(format!("{{\"upstream\": \"{name}\"}}").into(), true);
    }
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let shown = ["content-type", "te", ":scheme"];
    let headers = head.headers.iter().filter(|(name, _)| shown.contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let authority = head.uri.authority().unwrap().to_string();
    log.lock().unwrap().push((authority, head.uri.path().to_owned(), headers, message));
    let grpc = Response::builder().header("content-type", "application/grpc");
    let mut stream = match told.borrow().clone() {
        Tells::Reports(_) => respond.send_response(grpc.body(()).unwrap(), false)?,
        Tells::Ends(status) => {
            let response = grpc.header("grpc-status", status).body(()).unwrap();
            return respond.send_response(response, true).map(drop);
        }
        Tells::Http(status) => {
            let response = Response::builder().status(status).body(()).unwrap();
            return respond.send_response(response, true).map(drop);
        }
    };
    let _open = Open::begin(open);
    let mut every = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        let now = told.borrow_and_update().clone();
        let Tells::Reports(report) = now else { return stream.send_trailers(trailers(&now)) };
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(report.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&report);
        stream.send_data(frame.into(), false)?;
        tokio::select! {
            _ = every.tick() => {}
            changed = told.changed() => if changed.is_err() { return Ok(()) },
            reset = std::future::poll_fn(|context| stream.poll_reset(context)) => return reset.map(drop),
        }
    }
}

/// Counts a stream until it ends, however it does.
struct Open(Arc<watch::Sender<usize>>);

impl Open {
    fn begin(open: Arc<watch::Sender<usize>>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

fn trailers(tells: &Tells) -> http::HeaderMap {
    let status = if let Tells::Ends(status) = tells { *status } else { "0" };
    [("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect()
}

/// An encoded report: `rps_fractional` 100, `application_utilization` as given.
fn report(utilization: f64) -> Vec<u8> {
    let mut report = vec![6 << 3 | 1];
    report.extend_from_slice(&100_f64.to_le_bytes());
    report.push(9 << 3 | 1);
    report.extend_from_slice(&utilization.to_le_bytes());
    report
}

const POLICY: &str = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.\
                      ClientSideWeightedRoundRobin, enable_oob_load_report: true, oob_reporting_period: 0.5s, \
                      blackout_period: 0s, weight_update_period: 0.1s";

fn cluster(endpoints: &[&Endpoint], hostname: &str, more: &str) -> String {
    let endpoint = |endpoint: &&Endpoint| {
        format!(
            "{{ endpoint: {{ {hostname}address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }} }}",
            endpoint.port
        )
    };
    let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
    let more = format!(
        ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: p, typed_config: {{ '@type': \
         type.googleapis.com/{POLICY}{more} }} }} }}] }}{}",
        config::HTTP2
    );
    cluster_of("c", &format!("{{ lb_endpoints: [{}] }}", endpoints.join(", ")), &more)
}

const TO_C: &str = "{ match: { prefix: / }, route: { cluster: c } }";

fn requests() -> Vec<(String, Vec<(&'static str, String)>)> {
    (0..80).map(|_| ("/".to_owned(), Vec::new())).collect()
}

async fn wait_share(who: &str, proxy: &Proxy, of_first: usize) {
    eventually(who, async || {
        let names = served_by(proxy, &requests()).await;
        let first = names.iter().filter(|name| *name == "u0").count();
        if first.abs_diff(of_first) <= 4 { Ok(()) } else { Err(format!("{first} of 80")) }
    })
    .await;
}

#[tokio::test]
async fn weights_follow_from_reports_out_of_band_as_with_envoy() {
    // Weights of 100 and 300.
    let first = Endpoint::start("u0", Tells::Reports(report(1.0))).await;
    let second = Endpoint::start("u1", Tells::Reports(report(1.0 / 3.0))).await;
    let both = Both::start(&bootstrap(&web(TO_C), &[cluster(&[&first, &second], "", "")])).await;
    let proxies = [("ours", &both.ours), ("envoy", &both.envoy)];
    for (who, proxy) in proxies {
        wait_share(who, proxy, 20).await;
        proxy.stat_is("cluster.c.lb_orca_oob.active_sessions", 2).await;
        proxy.wait_stat("cluster.c.lb_orca_oob.reports_received", |seen| seen >= 2).await;
        proxy.stat_is("cluster.c.lb_orca_oob.stream_failures", 0).await;
        // What is asked is no request of the cluster.
        proxy.wait_stat("cluster.c.upstream_rq_total", |seen| seen % 80 == 0).await;
    }
    // Both have asked the same, and in the same words.
    for endpoint in [&first, &second] {
        endpoint.wait_open(|open| open == 2).await;
        let mut asked: Vec<_> = endpoint.asked();
        for (_, _, headers, _) in &mut asked {
            headers.sort();
        }
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0], asked[1]);
        assert_eq!(asked[0].0, format!("127.0.0.1:{}", endpoint.port));
    }
    // The next reports tell otherwise.
    first.tell.send_replace(Tells::Reports(report(1.0 / 9.0)));
    for (who, proxy) in proxies {
        wait_share(who, proxy, 60).await;
    }
    // A report that says nothing of a weight changes none.
    first.tell.send_replace(Tells::Reports(report(0.0)));
    for (who, proxy) in proxies {
        proxy.wait_stat("cluster.c.lb_orca_oob.report_errors", |errors| errors > 0).await;
        wait_share(who, proxy, 60).await;
    }
}

#[tokio::test]
async fn streams_that_end_begin_again_unless_there_is_no_such_service_as_with_envoy() {
    let first = Endpoint::start("u0", Tells::Reports(report(1.0))).await;
    let second = Endpoint::start("u1", Tells::Ends("12")).await;
    let third = Endpoint::start("u2", Tells::Http(404)).await;
    let clusters = [cluster(&[&first, &second, &third], "", "")];
    let both = Both::start(&bootstrap(&web(TO_C), &clusters)).await;
    let proxies = [("ours", &both.ours), ("envoy", &both.envoy)];
    for (_, proxy) in proxies {
        proxy.wait_stat("cluster.c.lb_orca_oob.stream_terminated", |terminated| terminated == 2).await;
        proxy.wait_stat("cluster.c.lb_orca_oob.active_sessions", |active| active == 1).await;
        proxy.stat_is("cluster.c.lb_orca_oob.stream_failures", 0).await;
    }
    // A stream that ends, and a message that is no report.
    for (failures, wrong) in [(1, Tells::Ends("14")), (2, Tells::Reports(vec![0xff]))] {
        first.wait_open(|open| open == 2).await;
        first.tell.send_replace(wrong);
        for (_, proxy) in proxies {
            proxy.wait_stat("cluster.c.lb_orca_oob.stream_failures", |seen| seen >= failures).await;
        }
        first.tell.send_replace(Tells::Reports(report(1.0)));
    }
    first.wait_open(|open| open == 2).await;
    for (_, proxy) in proxies {
        proxy.stat_is("cluster.c.lb_orca_oob.active_sessions", 1).await;
    }
    assert_eq!((second.asked().len(), third.asked().len()), (2, 2));
}

#[tokio::test]
async fn the_call_has_the_authority_and_the_port_that_are_configured_as_with_envoy() {
    let serving = Endpoint::start("u0", Tells::Ends("12")).await;
    let reporting = Endpoint::start("u1", Tells::Reports(report(1.0))).await;
    let elsewhere = format!(", oob_reporting_config: {{ port_value: {}, authority: orca.example }}", reporting.port);
    for (more, endpoint, authority) in [("", &serving, "named.example"), (&elsewhere, &reporting, "orca.example")] {
        let clusters = [cluster(&[&serving], "hostname: named.example, ", more)];
        let both = Both::start(&bootstrap(&web(TO_C), &clusters)).await;
        eventually("both ask", async || {
            let asked = endpoint.asked().len();
            if asked == 2 { Ok(()) } else { Err(asked.to_string()) }
        })
        .await;
        let authorities: BTreeSet<String> = endpoint.asked().into_iter().map(|(authority, ..)| authority).collect();
        assert_eq!(authorities.into_iter().collect::<Vec<_>>(), [authority]);
        drop(both);
    }
}

#[tokio::test]
async fn the_stream_ends_with_its_endpoint() {
    let first = Endpoint::start("u0", Tells::Reports(report(1.0))).await;
    let second = Endpoint::start("u1", Tells::Reports(report(1.0))).await;
    let mock = MockControlPlane::start().await;
    let policy = format!(
        ", load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: p, typed_config: {{ '@type': \
         type.googleapis.com/{POLICY} }} }} }}] }}{}",
        config::HTTP2
    );
    let cluster = format!(
        "{{ name: c, type: EDS, connect_timeout: 5s, eds_cluster_config: {{ eds_config: {} }}{policy} }}",
        config::ADS
    );
    let push = |all: &[String]| mock.set_yaml(&config::resources(all)).unwrap();
    let endpoints = |ports: &[u16]| resource("eds", &config::endpoints("c", ports));
    push(&[resource("cds", &cluster), endpoints(&[first.port, second.port])]);
    let proxy = Proxy::start(&config::ads_bootstrap(config::Xds::AdsDelta, mock.address().port())).await;
    first.wait_open(|open| open == 1).await;
    second.wait_open(|open| open == 1).await;
    push(&[endpoints(&[first.port])]);
    second.wait_open(|open| open == 0).await;
    proxy.wait_stat("cluster.c.lb_orca_oob.active_sessions", |active| active == 1).await;
    // The other one did not notice.
    assert_eq!(first.asked().len(), 1);
    assert!(mock.remove("type.googleapis.com/envoy.config.cluster.v3.Cluster", "c"));
    first.wait_open(|open| open == 0).await;
}
