//! Endpoints that are asked whether they are still there, when a request follows a pause. The same with Envoy.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_tests::config::{all_to, bootstrap, chain, cluster_with, http, listener, routes};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A way to an upstream on which, once it is cut, nothing comes back although nothing ends.
async fn way_to(upstream: u16, cut: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(("127.0.0.1", upstream)).await.expect("an upstream");
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut near_read, &mut far_write).await });
            let cut = Arc::clone(&cut);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = far_read.read(&mut buffer).await {
                    if !cut.load(Ordering::Relaxed) && near_write.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// What requests get: before the way is cut, and after it.
async fn statuses(program: PathBuf) -> Vec<String> {
    let upstream = Upstream::start("one").await;
    let cut = Arc::<AtomicBool>::default();
    let port = way_to(upstream.port(), Arc::clone(&cut)).await;
    let options = ", typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { \
        http2_protocol_options: { connection_keepalive: { timeout: 3s, connection_idle_interval: 0.001s } } } } }";
    let route = all_to("one").replace("cluster: one", "cluster: one, timeout: 0s");
    let web = listener("web", &[chain(&http("web", &routes(&route)), "")], "");
    let clusters = [cluster_with("one", &[port], options)];
    let proxy = Proxy::start_with(&bootstrap(&[web], &clusters), Settings { program, ..Settings::default() }).await;
    let address = proxy.listener("web").await;
    let mut seen = Vec::new();
    for asked in [false, false, true] {
        cut.store(asked, Ordering::Relaxed);
        // Longer than what makes the connection an idle one.
        let pause = Instant::now();
        while pause.elapsed() < Duration::from_millis(5) {
            tokio::task::yield_now().await;
        }
        seen.push(h1::get(address, "/").await.status.to_string());
    }
    let timeouts = proxy.wait_stat("cluster.one.http2.keepalive_timeout", |timeouts| timeouts > 0).await;
    seen.push(format!("{timeouts} timeouts"));
    seen
}

#[tokio::test]
async fn who_does_not_answer_after_a_pause_is_given_up() {
    let seen = statuses(proxy::program()).await;
    assert_eq!(seen, ["200", "200", "503", "1 timeouts"]);
    assert_eq!(seen, statuses(proxy::envoy()).await);
}
