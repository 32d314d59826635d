//! Assignments that name an address twice: the first mention counts, wherever the others stand, as with Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::collections::BTreeMap;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    Xds, ads_bootstrap, all_to, chain, eds_cluster, endpoints, http, listener, resource, resources, routes,
};
use outrigger_tests::{Proxy, SOON, Settings, Upstream, h1, proxy};

/// Localities: where the second mention of the first endpoint stands, and its place.
const REPEATED: [(&str, &str, &str); 3] = [
    ("in its locality", "{ lb_endpoints: [$a, $a, $b] }", "endpoints[0].lb_endpoints[1]"),
    (
        "in another locality",
        "{ lb_endpoints: [$a] }, { locality: { zone: z }, lb_endpoints: [$a, $b] }",
        "endpoints[1].lb_endpoints[0]",
    ),
    (
        "in another priority, which stands first",
        "{ priority: 1, lb_endpoints: [$a] }, { lb_endpoints: [$b, $a] }",
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

/// Zone and priority of each endpoint.
async fn places(proxy: &Proxy) -> BTreeMap<String, String> {
    let mut places = BTreeMap::<String, String>::new();
    for line in proxy.admin("/clusters").await.text().lines() {
        let parts: Vec<&str> = line.split("::").collect();
        if let ["c", address, name @ ("zone" | "priority"), value] = parts[..] {
            places.entry(address.to_owned()).or_default().push_str(&format!("{name} {value} "));
        }
    }
    places
}

#[tokio::test]
async fn of_an_address_that_is_named_twice_the_first_mention_counts_as_with_envoy() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    for (what, localities, place) in REPEATED {
        let localities = localities.replace("$a", &endpoint(&a)).replace("$b", &endpoint(&b));
        let repeated = resource("eds", &format!("{{ cluster_name: c, endpoints: [{localities}] }}"));
        let mut seen = Vec::new();
        for program in [proxy::program(), proxy::envoy()] {
            let is_ours = program == proxy::program();
            let (mock, proxy) = start(Settings { program, ..Settings::default() }, &b).await;
            mock.set_yaml(&resources(std::slice::from_ref(&repeated))).unwrap();
            proxy.stat_is("cluster.c.membership_total", 2).await;
            mock.wait_ack_of("eds", "c", SOON).await.unwrap();
            proxy.stat_is("cluster.c.update_rejected", 0).await;
            assert_eq!(h1::get(proxy.listener("web").await, "/").await.status, 200, "{what}");
            seen.push(places(&proxy).await);
            if is_ours && !proxy::tests_envoy() {
                let log = proxy.log();
                let told = format!("endpoints \"c\": 127.0.0.1:{} stands there again (1 such in all)", a.port());
                assert!(log.contains(&told), "{what}: {log}");
                let coverage = proxy.admin("/coverage").await.text();
                assert!(coverage.contains(place), "{what}: {coverage}");
            }
        }
        assert_eq!(seen[0], seen[1], "{what}");
        assert_eq!(seen[0].len(), 2, "{what}");
    }
}
