//! Many stats: names that clients choose are bounded and go when nobody uses them, and a scrape of a hundred thousand
//! series neither holds up requests nor takes much memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_tests::config::{self, HTTP2, all_to, bootstrap, chain, cluster, cluster_with, routes};
use outrigger_tests::{LOOK_AGAIN, Proxy, Settings, Upstream, eventually, h1, h2c};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection manager that counts calls by their method.
fn manager() -> String {
    format!(
        "{{ name: hcm, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: web, http_filters: [{{ name: g, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig, stats_for_all_methods: true }} }}, \
         {{ name: r, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]{} }} }}",
        routes(&all_to("a"))
    )
}

async fn start(more: &str, upstream: &Upstream) -> (Proxy, SocketAddr) {
    let listener = config::listener("web", &[chain(&manager(), "")], "");
    let text = bootstrap(&[listener], &[cluster_with("a", &[upstream.port()], HTTP2)]);
    let proxy = Proxy::start(&(text + more)).await;
    let web = proxy.listener("web").await;
    (proxy, web)
}

async fn call(client: &h2c::Client, path: &str) {
    let headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-reply", "empty header=grpc-status:0 header=content-type:application/grpc"),
    ];
    assert_eq!(client.request("POST", path, &headers, b"").await.status, 200);
}

#[tokio::test]
async fn methods_that_clients_make_up_are_counted_together_beyond_a_limit() {
    let upstream = Upstream::start("a").await;
    let limit = "layered_runtime: { layers: [{ name: few, static_layer: { outrigger.stats.max_on_use: 3 } }] }\n";
    let (proxy, web) = start(limit, &upstream).await;
    // Connections may be those of different workers, which share the limit.
    for number in 0..6 {
        let client = h2c::Client::connect(web).await;
        call(&client, &format!("/shop.Cart/Method{number}")).await;
        call(&client, "/shop.Cart/Method0").await;
    }
    // A call counts once it is over, which its client may know first.
    proxy.stat_is("cluster.a.grpc.shop.Cart.Method0.total", 7).await;
    proxy.stat_is("cluster.a.grpc.total", 3).await;
    proxy.stat_is("stats.dropped.grpc_stats", 3).await;
    let stats = proxy.admin("/stats?filter=cluster.a.grpc").await.text();
    for number in 0..6 {
        let line = format!("cluster.a.grpc.shop.Cart.Method{number}.total: ");
        assert_eq!(stats.contains(&line), number < 3, "{stats}");
    }
}

#[tokio::test]
async fn methods_that_nobody_calls_are_forgotten() {
    let upstream = Upstream::start("a").await;
    let quick = "stats_flush_interval: 0.05s\nstats_eviction_interval: 0.1s\n";
    let (proxy, web) = start(quick, &upstream).await;
    let client = h2c::Client::connect(web).await;
    call(&client, "/shop.Cart/Add").await;
    let shown = async || proxy.admin("/stats?filter=grpc.shop").await.text();
    eventually("the method is forgotten", async || {
        let text = shown().await;
        if text.is_empty() { Ok(()) } else { Err(text) }
    })
    .await;
    // It begins again when it is called again, and stays for as long as a call lasts.
    let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-reply", "hang")];
    let open = tokio::spawn(async move { client.request("POST", "/shop.Cart/Add", &headers, b"").await });
    eventually("the method is counted again", async || {
        let text = shown().await;
        if text.contains("cluster.a.grpc.shop.Cart.Add.total: 0") { Ok(()) } else { Err(text) }
    })
    .await;
    open.abort();
    // What stands in the configuration is never forgotten.
    assert!(proxy.stat("http.web.downstream_rq_total").await >= 2);
}

/// A line of `/proc/<pid>/status` in bytes.
fn memory(id: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() * 1024
}

/// Reads a page to its end without keeping it. Its bytes, and the lines that are no comments.
async fn read(address: SocketAddr, path: &str) -> (usize, usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut bytes, mut lines, mut at_start) = (0, 0, false);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            return (bytes, lines);
        }
        bytes += count;
        for byte in &buffer[..count] {
            lines += usize::from(at_start && *byte != b'#');
            at_start = *byte == b'\n';
        }
    }
}

/// Far beyond what it takes on a machine ten times slower.
const LONG: Duration = Duration::from_secs(900);

#[tokio::test]
async fn a_scrape_of_a_hundred_thousand_series_stalls_nobody() {
    let upstream = Upstream::start("a").await;
    let listener = config::listener("web", &[chain(&config::http("web", &routes(&all_to("a"))), "")], "");
    let mut clusters = vec![cluster("a", &[upstream.port()])];
    clusters.extend((0..950).map(|number| cluster(&format!("cluster-{number:04}"), &[1])));
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[listener], &clusters), settings).await;
    let web = proxy.listener("web").await;
    h1::get(web, "/").await;
    std::fs::write(format!("/proc/{}/clear_refs", proxy.id()), "5").unwrap();
    let before = memory(proxy.id(), "VmRSS:");

    let over = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&over);
    let requests = tokio::spawn(async move {
        let (mut longest, mut count) = (Duration::ZERO, 0);
        let mut client = h1::Client::connect(web).await;
        while !watched.load(Ordering::Relaxed) {
            let began = Instant::now();
            assert_eq!(client.get("/").await.status, 200);
            longest = longest.max(began.elapsed());
            count += 1;
            // It watches, and is no load.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        (longest, count)
    });
    let began = Instant::now();
    let scraped = tokio::time::timeout(LONG, read(proxy.admin_address(), "/stats/prometheus")).await;
    let (bytes, series) = scraped.unwrap_or_else(|_| panic!("not read within {LONG:?}"));
    println!("{series} series, {bytes} bytes in {:?}", began.elapsed());
    assert!(series > 100_000, "{series}");
    over.store(true, Ordering::Relaxed);
    let (longest, count) = requests.await.unwrap();
    let more = memory(proxy.id(), "VmHWM:").saturating_sub(before);
    println!("{count} requests meanwhile, the longest took {longest:?}; {more} bytes more than before");
    assert!(count > 0 && longest < Duration::from_secs(20), "{count} {longest:?}");
    assert!(more < 256 * 1024 * 1024, "{more}");
}
