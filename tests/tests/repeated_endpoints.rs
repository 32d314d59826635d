//! Assignments that name an endpoint twice: Envoy keeps the first of them, wherever the others stand; here the assignment
//! is refused by name, and the one before it goes on.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    Xds, ads_bootstrap, all_to, chain, eds_cluster, endpoints, http, listener, resource, resources, routes,
};
use outrigger_tests::{Proxy, SOON, Settings, Upstream, h1, proxy};

/// Localities: where the second mention of the first endpoint stands, and how it is told of.
const REPEATED: [(&str, &str, &str); 3] = [
    ("in its locality", "{ lb_endpoints: [$a, $a, $b] }", "endpoints[0].lb_endpoints[1]"),
    (
        "in another locality",
        "{ lb_endpoints: [$a] }, { locality: { zone: z }, lb_endpoints: [$a, $b] }",
        "endpoints[1].lb_endpoints[0]",
    ),
    (
        "in another priority",
        "{ lb_endpoints: [$a] }, { priority: 1, lb_endpoints: [$b, $a] }",
        "endpoints[1].lb_endpoints[1]",
    ),
];

fn endpoint(upstream: &Upstream) -> String {
    let port = upstream.port();
    format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")
}

/// A proxy that knows one endpoint of the cluster `c`, and its control plane.
async fn start(settings: Settings, one: &Upstream) -> (MockControlPlane, Proxy) {
    let mock = MockControlPlane::start().await;
    let web = listener("web", &[chain(&http("web", &routes(&all_to("c"))), "")], "");
    let all =
        [resource("cds", &eds_cluster("c")), resource("lds", &web), resource("eds", &endpoints("c", &[one.port()]))];
    mock.set_yaml(&resources(&all)).unwrap();
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsSotw, mock.address().port()), settings).await;
    proxy.stat_is("cluster.c.membership_total", 1).await;
    (mock, proxy)
}

#[tokio::test]
async fn an_assignment_that_names_an_endpoint_twice_is_refused_and_the_one_before_goes_on() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    for (place, localities, at) in REPEATED {
        let localities = localities.replace("$a", &endpoint(&a)).replace("$b", &endpoint(&b));
        let repeated = resource("eds", &format!("{{ cluster_name: c, endpoints: [{localities}] }}"));
        let repeated = resources(&[repeated]);

        let (mock, ours) = start(Settings::default(), &b).await;
        mock.set_yaml(&repeated).unwrap();
        let nack = mock.wait_nack("eds", SOON).await.unwrap();
        let expected = format!("endpoints \"c\": {at}: 127.0.0.1:{} is there twice", a.port());
        assert!(nack.error_detail.message.contains(&expected), "{place}: {}", nack.error_detail.message);
        ours.stat_is("cluster.c.update_rejected", 1).await;
        ours.stat_is("cluster.c.membership_total", 1).await;
        assert_eq!(h1::get(ours.listener("web").await, "/").await.served_by(), "b", "{place}");

        let (mock, envoy) = start(Settings { program: proxy::envoy(), ..Settings::default() }, &b).await;
        mock.set_yaml(&repeated).unwrap();
        envoy.stat_is("cluster.c.membership_total", 2).await;
        envoy.stat_is("cluster.c.update_rejected", 0).await;
        assert_eq!(h1::get(envoy.listener("web").await, "/").await.status, 200, "{place}");
    }
}
