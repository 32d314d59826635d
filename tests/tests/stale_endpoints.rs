//! Endpoints whose assignment says how long it holds (`endpoint_stale_after`), with Envoy beside.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    Xds, ads_bootstrap, all_to, chain, eds_cluster, endpoints, http, listener, resource, resources, routes,
};
use outrigger_tests::{Proxy, Settings, Upstream, eventually, h1, proxy};

const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

fn assignment(port: u16, policy: &str) -> String {
    let whole = endpoints("c", &[port]);
    resource("eds", &format!("{}{policy} }}", whole.strip_suffix('}').expect("a flow mapping")))
}

async fn wait_status(proxy: &Proxy, wanted: u16) {
    let web = proxy.listener("web").await;
    eventually("the status", async || match h1::get(web, "/").await.status {
        status if status == wanted => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
}

#[tokio::test]
async fn endpoints_are_gone_when_nobody_confirms_them_as_with_envoy() {
    let upstream = Upstream::start("a").await;
    let mock = MockControlPlane::start().await;
    let push = |all: &[String]| mock.set_yaml(&resources(all)).unwrap();
    let web = listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    push(&[
        resource("cds", &eds_cluster("c")),
        resource("lds", &web),
        assignment(upstream.port(), ", policy: { endpoint_stale_after: 0.5s }"),
    ]);
    let bootstrap = ads_bootstrap(Xds::AdsSotw, mock.address().port());
    let ours = Proxy::start(&bootstrap).await;
    let settings = Settings { program: proxy::envoy(), ..Settings::default() };
    let envoy = Proxy::start_with(&bootstrap, settings).await;
    let proxies = [&ours, &envoy];
    let stale = async |proxy: &Proxy| proxy.stat("cluster.c.assignment_stale").await;
    for proxy in proxies {
        proxy.wait_stat("cluster.c.assignment_stale", |stale| stale == 1).await;
        proxy.stat_is("cluster.c.membership_total", 0).await;
        proxy.stat_is("cluster.c.assignment_timeout_received", 1).await;
        wait_status(proxy, 503).await;
    }
    // The same once more brings them back, for as long again.
    mock.push(EDS);
    for proxy in proxies {
        proxy.wait_stat("cluster.c.assignment_timeout_received", |received| received == 2).await;
        proxy.wait_stat("cluster.c.assignment_stale", |stale| stale == 2).await;
        proxy.wait_stat("cluster.c.membership_total", |total| total == 0).await;
    }
    // An assignment without a limit holds for good.
    push(&[assignment(upstream.port(), "")]);
    for proxy in proxies {
        wait_status(proxy, 200).await;
        proxy.stat_is("cluster.c.assignment_timeout_received", 2).await;
        assert_eq!(stale(proxy).await, 2);
    }
}
