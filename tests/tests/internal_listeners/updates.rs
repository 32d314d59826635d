//! Listeners inside the process that come, change and go while the proxy runs.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    Xds, ads_bootstrap, all_to, chain, cluster, http, listener, resource, resources, routes, tcp,
};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, SOON, Upstream, eventually, h1, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{EXTENSION, internal, leading_to};

async fn greeting(proxy: &Proxy) -> String {
    let mut stream = TcpStream::connect(proxy.listener("out").await).await.expect("a listener");
    let mut text = String::new();
    let _ = stream.shutdown().await;
    let _ = within("a greeting", stream.read_to_string(&mut text)).await;
    text
}

async fn greets(proxy: &Proxy, text: &str) {
    eventually("the right peer greets", async || match greeting(proxy).await {
        found if found == text => Ok(()),
        found => Err(found),
    })
    .await;
}

#[tokio::test]
async fn connections_stay_with_the_chain_they_came_to_and_new_ones_find_the_newest() {
    let peers = [Peer::start(Conduct::Greet(b"a".to_vec())).await, Peer::start(Conduct::Greet(b"b".to_vec())).await];
    let echo = Peer::start(Conduct::Echo).await;
    let mock = MockControlPlane::start().await;
    let all = [
        resource("cds", &cluster("a", &[peers[0].port()])),
        resource("cds", &cluster("b", &[peers[1].port()])),
        resource("cds", &cluster("echo", &[echo.port()])),
        resource("cds", &leading_to("inside", "inner", "", "", "")),
        resource("lds", &listener("out", &[chain(&tcp("inside"), "")], "")),
    ];
    mock.set_yaml(&resources(&all)).unwrap();
    let proxy = Proxy::start(&format!("{EXTENSION}{}", ads_bootstrap(Xds::AdsDelta, mock.address().port()))).await;
    // Nobody is there yet.
    assert_eq!(greeting(&proxy).await, "");
    let inner = |to: &str| resources(&[resource("lds", &internal("inner", &[chain(&tcp(to), "")], ""))]);
    mock.set_yaml(&inner("a")).unwrap();
    greets(&proxy, "a").await;
    mock.set_yaml(&inner("b")).unwrap();
    greets(&proxy, "b").await;
    mock.set_yaml(&inner("echo")).unwrap();
    greets(&proxy, "").await;
    let mut stream = TcpStream::connect(proxy.listener("out").await).await.expect("a listener");
    let mut heard = [0; 4];
    for removed in [false, true] {
        stream.write_all(b"ping").await.expect("a connection");
        within("an echo", stream.read_exact(&mut heard)).await.expect("an echo");
        if !removed {
            mock.remove("lds", "inner");
            eventually("the listener is gone", async || {
                let page = proxy.admin("/listeners").await.text();
                if page.contains("envoy://") { Err(page) } else { Ok(()) }
            })
            .await;
        }
    }
    assert_eq!(greeting(&proxy).await, "");
    assert!(proxy.stat("cluster.inside.upstream_cx_connect_fail").await > 1);
}

#[tokio::test]
async fn a_request_waits_for_no_listener_that_is_refused() {
    let upstream = Upstream::start("up").await;
    let mock = MockControlPlane::start().await;
    let manager = |to: &str| http("m", &routes(&all_to(to)));
    let all = [
        resource("cds", &cluster("up", &[upstream.port()])),
        resource("cds", &leading_to("inside", "inner", "", "", "")),
        resource("lds", &listener("out", &[chain(&manager("inside"), "")], "")),
        resource("lds", &internal("inner", &[chain(&manager("up"), "")], "")),
    ];
    mock.set_yaml(&resources(&all)).unwrap();
    let proxy = Proxy::start(&format!("{EXTENSION}{}", ads_bootstrap(Xds::AdsSotw, mock.address().port()))).await;
    let address = proxy.listener("out").await;
    let status = async || h1::Client::connect(address).await.get("/").await.status;
    eventually("the listener inside answers", async || match status().await {
        200 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    // What is refused is told, and what runs goes on.
    let wrong = internal("inner", &[chain(&manager("up"), "")], ", tcp_backlog_size: 1");
    mock.set_yaml(&resources(&[resource("lds", &wrong)])).unwrap();
    let nack = mock.wait_nack("lds", SOON).await.unwrap();
    assert!(nack.error_detail.message.contains("internal_listener: has no socket"), "{}", nack.error_detail.message);
    assert_eq!(status().await, 200);
}
