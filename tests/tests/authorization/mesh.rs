//! Rules as Istio and Consul write them.

use outrigger_tests::config::{bootstrap, cluster, listener};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{h1, proxy};

use super::{Client, Workloads, chain, mutual_tls, rbac};

/// Istio's form of an AuthorizationPolicy for TCP: deny rules first, then allow rules, each a filter of its own.
fn istio_filters(port: u16) -> Vec<String> {
    let deny = format!(
        "rules: {{ action: DENY, policies: {{ 'ns[shop]-policy[no-jobs]-rule[0]': {{ permissions: [{{ and_rules: \
         {{ rules: [{{ or_rules: {{ rules: [{{ destination_port: {port} }}] }} }}] }} }}], principals: [{{ and_ids: \
         {{ ids: [{{ or_ids: {{ ids: [{{ authenticated: {{ principal_name: {{ safe_regex: {{ regex: \
         '.*/ns/jobs/.*' }} }} }} }}] }} }}] }} }}] }} }} }}"
    );
    let allow = "rules: { action: ALLOW, policies: { 'ns[shop]-policy[web]-rule[0]': { permissions: [{ and_rules: \
        { rules: [{ any: true }] } }], principals: [{ and_ids: { ids: [{ or_ids: { ids: [{ authenticated: \
        { principal_name: { exact: 'spiffe://cluster.local/ns/shop/sa/web' } } }] } }] } }] } } }, \
        shadow_rules_stat_prefix: istio_dry_run_allow_, shadow_rules: { action: ALLOW, policies: \
        { 'ns[shop]-policy[later]-rule[0]': { permissions: [{ any: true }], principals: [{ not_id: \
        { authenticated: { principal_name: { prefix: 'spiffe://cluster.local/ns/shop/' } } } }] } } }";
    vec![rbac("tcp.", &deny), rbac("tcp.", allow)]
}

#[tokio::test]
async fn an_authorization_policy_for_tcp_is_enforced() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let port = outrigger_tests::tcp::ClosedPort::take();
    let text = |port| {
        let chain = chain("inbound", &istio_filters(port), &mutual_tls(true));
        bootstrap(&[listener("virtualInbound", &[chain], "")], &[cluster("peer", &[peer.port()])])
    };
    // The deny rule names another port here, and any port in the second run.
    let proxy = workloads.start(proxy::program(), &text(port.port())).await;
    let address = proxy.listener("virtualInbound").await;
    assert!(workloads.is_echoed(address, Client::Web).await);
    assert!(!workloads.is_echoed(address, Client::Batch).await);
    let mut lines = proxy.lines("log.txt", 2).await;
    // The one that passed ends when its client closes, which may be later.
    lines.sort_unstable();
    assert_eq!(lines, ["inbound - -", "inbound - rbac_access_denied_matched_policy[none]"]);
    proxy.stat_is("tcp.rbac.allowed", 3).await;
    proxy.stat_is("tcp.rbac.denied", 1).await;
    proxy.stat_is("tcp.rbac.istio_dry_run_allow_.shadow_allowed", 1).await;
    proxy.stat_is("tcp.rbac.istio_dry_run_allow_.shadow_denied", 1).await;

    let any_port = text(0).replace("{ destination_port: 0 }", "{ destination_port_range: { start: 0, end: 65536 } }");
    let proxy = workloads.start(proxy::program(), &any_port).await;
    let address = proxy.listener("virtualInbound").await;
    assert!(workloads.is_echoed(address, Client::Web).await);
    assert!(!workloads.is_echoed(address, Client::Batch).await);
    let denied = "inbound - rbac_access_denied_matched_policy[ns[shop]-policy[no-jobs]-rule[0]]";
    let mut lines = proxy.lines("log.txt", 2).await;
    lines.sort_unstable();
    assert_eq!(lines, ["inbound - -", denied]);
}

/// Consul's form of intentions: one policy of principals, with those left out that a more specific intention is for.
fn intentions(action: &str, principals: &str) -> String {
    let policies = match principals {
        "" => String::new(),
        principals => format!(
            "policies: {{ consul-intentions-layer4: {{ permissions: [{{ any: true }}], principals: [{principals}] }} }}"
        ),
    };
    rbac("connect_authz", &format!("rules: {{ action: {action}, {policies} }}"))
}

#[tokio::test]
async fn intentions_allow_and_deny_by_identity() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let name = |pattern: &str| {
        format!(
            "{{ authenticated: {{ principal_name: {{ safe_regex: {{ google_re2: {{}}, regex: '{pattern}' }} }} }} }}"
        )
    };
    let web = name("^spiffe://[^/]+/ns/shop/sa/web$");
    let shop = name("^spiffe://[^/]+/ns/shop/sa/[^/]+$");
    let all = name("^spiffe://[^/]+/ns/[^/]+/sa/[^/]+$");
    let all_but_web = format!("{{ and_ids: {{ ids: [{all}, {{ not_id: {web} }}] }} }}");
    let cases = [
        ("deny-all", intentions("ALLOW", ""), false, false),
        ("allow-all", intentions("DENY", ""), true, true),
        ("allow-web", intentions("ALLOW", &web), true, false),
        ("allow-shop", intentions("ALLOW", &shop), true, false),
        ("deny-web", intentions("DENY", &web), false, true),
        ("allow-all-but-web", intentions("ALLOW", &all_but_web), false, true),
        ("deny-all-but-web", intentions("DENY", &all_but_web), true, false),
    ];
    let listeners: Vec<String> = cases
        .iter()
        .map(|(name, rules, ..)| listener(name, &[chain(name, std::slice::from_ref(rules), &mutual_tls(true))], ""))
        .collect();
    let text = bootstrap(&listeners, &[cluster("peer", &[peer.port()])]);
    let proxy = workloads.start(proxy::program(), &text).await;
    for (name, _, of_web, of_batch) in cases {
        let address = proxy.listener(name).await;
        assert_eq!(workloads.is_echoed(address, Client::Web).await, of_web, "{name}: web");
        assert_eq!(workloads.is_echoed(address, Client::Batch).await, of_batch, "{name}: batch");
    }
    proxy.stat_is("connect_authz.rbac.allowed", 7).await;
    proxy.stat_is("connect_authz.rbac.denied", 7).await;
    if !proxy::tests_envoy() {
        assert_eq!(peer.accepted(), 7, "nothing was connected for who may not");
    }
}

#[tokio::test]
async fn a_refused_client_sees_an_end_and_no_error() {
    let peer = Peer::start(Conduct::Echo).await;
    let workloads = Workloads::new();
    let listener = listener("tcp", &[chain("tcp", &[rbac("x", "rules: {}")], "")], "");
    let proxy = workloads.start(proxy::program(), &bootstrap(&[listener], &[cluster("peer", &[peer.port()])])).await;
    let address = proxy.listener("tcp").await;
    let mut client = h1::Client::connect(address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn http_behind_refused_connections_is_never_asked() {
    let workloads = Workloads::new();
    let route = "{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: hello } } }";
    let manager = outrigger_tests::config::http("web", &outrigger_tests::config::routes(route));
    let chain = |name: &str, rules: &str| {
        let filters = format!("{}, {manager}", rbac("web", rules));
        listener(name, &[format!("{{ filters: [{filters}] }}")], "")
    };
    let from = |network: &str| {
        format!(
            "rules: {{ policies: {{ here: {{ permissions: [{{ any: true }}], principals: [{{ direct_remote_ip: \
             {{ address_prefix: {network}, prefix_len: 8 }} }}] }} }} }}"
        )
    };
    let listeners = [chain("local", &from("127.0.0.0")), chain("remote", &from("10.0.0.0"))];
    let proxy = workloads.start(proxy::program(), &bootstrap(&listeners, &[])).await;
    assert_eq!(h1::get(proxy.listener("local").await, "/").await.text(), "hello");
    let mut client = h1::Client::connect(proxy.listener("remote").await).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.rest().await, b"");
    proxy.stat_is("http.web.downstream_rq_total", 1).await;
    proxy.stat_is("web.rbac.allowed", 1).await;
    proxy.stat_is("web.rbac.denied", 1).await;
}
