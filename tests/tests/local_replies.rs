//! The form of answers of our own, changes of requests before they are routed, and what is counted of routes: as Envoy does.

use std::path::PathBuf;

use outrigger_tests::config::{access_log_of, bootstrap, chain, cluster, cluster_with, http, listener};
use outrigger_tests::{Proxy, Response, Settings, Upstream, eventually, h1, h2c, proxy};

/// Names what `both` sees of the proxy under test and of Envoy.
async fn same<F: Future<Output = Vec<String>>>(observe: impl Fn(PathBuf) -> F) -> Vec<String> {
    let (ours, envoys) = tokio::join!(observe(proxy::program()), observe(proxy::envoy()));
    assert_eq!(ours, envoys);
    ours
}

fn shown(what: &str, response: &Response) -> String {
    let header = |name: &str| response.header(name).unwrap_or("-").to_owned();
    let names = ["content-type", "content-length", "x-mapped", "grpc-status", "grpc-message", "location"];
    let headers: Vec<String> = names.iter().map(|name| header(name)).collect();
    let id = response.header("x-request-id").is_some();
    format!("{what}: {} {} {id} {:?}", response.status, headers.join("|"), response.text())
}

/// Answers by a connection manager with these settings, and how they are logged.
async fn answers(program: PathBuf, replies: &str) -> Vec<String> {
    let table = "{ match: { path: /direct }, direct_response: { status: 418, body: { inline_string: tea } } }, \
        { match: { path: /empty }, direct_response: { status: 204 } }, \
        { match: { path: /moved }, redirect: { path_redirect: /there } }, \
        { match: { path: /gone }, route: { cluster: gone, retry_policy: { retry_on: connect-failure, num_retries: 1 } } }, \
        { match: { path: /none }, route: { cluster: nobody } }";
    let more = format!(
        ", always_set_request_id_in_response: true, local_reply_config: {{ {replies} }}{}, \
         route_config: {{ name: local, validate_clusters: false, virtual_hosts: [{{ name: all, domains: ['*'], \
         routes: [{table}] }}] }}",
        access_log_of("web.log", "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%")
    );
    let web = listener("web", &[chain(&http("web", &more), "")], "");
    // Nobody listens on port 1.
    let gone = cluster_with("gone", &[1], "");
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[web], &[gone]), settings).await;
    let address = proxy.listener("web").await;
    let mut seen = Vec::new();
    let paths = ["/direct", "/empty", "/moved", "/none", "/unknown", "/gone"];
    for path in paths {
        seen.push(shown(path, &h1::get(address, path).await));
    }
    let client = h2c::Client::connect(address).await;
    for path in ["/unknown", "/none"] {
        let head = [("content-type", "application/grpc"), ("te", "trailers")];
        seen.push(shown(path, &client.request("POST", path, &head, b"").await));
    }
    let logged = proxy.lines("web.log", 8).await;
    // What a connection failed with is told in other words.
    seen.extend(logged.into_iter().filter(|line| !line.contains("before_response_started")));
    // Envoy gives a 204 the length of a body that it does not send.
    seen.retain(|line| !line.starts_with("/empty: 204 text") && !line.starts_with("/empty: 204 application"));
    seen
}

#[tokio::test]
async fn answers_are_mapped_by_the_first_filter_that_takes_them() {
    let replies = "mappers: [\
        { filter: { status_code_filter: { comparison: { op: EQ, value: { default_value: 404, runtime_key: k } } } }, \
          status_code: 410, body: { inline_string: 'not here' }, \
          headers_to_add: [{ header: { key: x-mapped, value: '%RESPONSE_CODE%-%REQ(:PATH)%' } }] }, \
        { filter: { response_flag_filter: { flags: [NC] } }, \
          body_format_override: { json_format: { code: '%RESPONSE_CODE%', body: '%LOCAL_REPLY_BODY%' } } }, \
        { filter: { status_code_filter: { comparison: { op: EQ, value: { default_value: 418, runtime_key: k } } } }, \
          headers_to_add: [{ header: { key: content-type, value: text/tea } }] }]";
    let seen = same(|program| answers(program, replies)).await;
    assert!(seen[4].starts_with("/unknown: 410 text/plain|8|"), "{seen:?}");
}

#[tokio::test]
async fn bodies_are_written_by_format() {
    let text = "body_format: { text_format_source: { inline_string: '%RESPONSE_CODE% %REQ(:PATH)% %LOCAL_REPLY_BODY%' }, \
        content_type: 'text/html; charset=UTF-8' }";
    same(|program| answers(program, text)).await;
    same(|program| answers(program, "body_format: { json_format: { code: '%RESPONSE_CODE%', path: '%REQ(:PATH)%' } }"))
        .await;
}

/// What an upstream sees of a request, and the stats of its route.
async fn changed(program: PathBuf) -> Vec<String> {
    let (upstream, copy) = (Upstream::start("one").await, Upstream::start("two").await);
    let types = "type.googleapis.com/envoy.extensions";
    let early = format!(
        ", add_user_agent: true, early_header_mutation_extensions: [{{ name: e, typed_config: {{ \
         '@type': {types}.http.early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [\
         {{ append: {{ header: {{ key: x-route, value: '%REQ(x-wanted)%' }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }} }}, \
         {{ remove: x-gone }}] }} }}]"
    );
    let table = "{ match: { prefix: /, headers: [{ name: x-route, string_match: { exact: a } }] }, stat_prefix: rt, \
        route: { cluster: one, request_mirror_policies: [{ cluster: two, request_headers_mutations: [\
        { append: { header: { key: x-copy, value: '%REQ(x-route)%' } } }, { remove: x-secret }] }] } }, \
        { match: { path: /fmt }, route: { cluster: one, path_rewrite: '/new%REQ(x-p)%/%REQ(x-q)%' } }, \
        { match: { path: /same }, route: { cluster: one, path_rewrite: '%REQ(x-q)%' } }, \
        { match: { prefix: / }, stat_prefix: other, route: { cluster: one, timeout: 30s, \
        retry_policy: { retry_on: 5xx, num_retries: 2, per_try_timeout: 10s } } }";
    let more = format!(
        "{early}{}, route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{table}], \
         include_is_timeout_retry_header: true, virtual_clusters: [\
         {{ name: posts, headers: [{{ name: ':method', string_match: {{ exact: POST }} }}] }}, \
         {{ name: paths, headers: [{{ name: ':path', string_match: {{ prefix: /p }} }}] }}] }}] }}",
        access_log_of("web.log", "%RESPONSE_CODE% %VIRTUAL_CLUSTER_NAME% %UPSTREAM_REQUEST_ATTEMPT_COUNT%")
    );
    let web = listener("web", &[chain(&http("web", &more), "")], "");
    let clusters = [cluster("one", &[upstream.port()]), cluster("two", &[copy.port()])];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&[web], &clusters), settings).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let first = [("x-wanted", "a"), ("x-gone", "1"), ("x-secret", "s")];
    let mut seen = vec![client.request("POST", "/", &first, b"x").await.status.to_string()];
    let second = [("x-wanted", "b"), ("user-agent", "curl"), ("x-reply", "status=503")];
    seen.push(client.request("GET", "/path", &second, b"").await.status.to_string());
    seen.push(client.get("/").await.status.to_string());
    for target in ["/fmt?a=b", "/same?a=b"] {
        seen.push(client.request("GET", target, &[("x-p", "1")], b"").await.status.to_string());
    }
    let copied = eventually("the copy arrives", async || copy.seen().pop().ok_or_else(String::new)).await;
    let names = [
        "x-route",
        "x-gone",
        "x-copy",
        "x-secret",
        "user-agent",
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-is-timeout-retry",
        "x-envoy-original-path",
    ];
    for (who, request) in upstream.seen().iter().map(|seen| ("one", seen)).chain([("two", &copied)]) {
        let shown: Vec<&str> = names.iter().map(|name| request.header(name).unwrap_or("-")).collect();
        seen.push(format!("{who} {} {}", request.target, shown.join("|")));
    }
    seen.extend(proxy.lines("web.log", 5).await);
    let stats = proxy.admin("/stats?filter=^vhost&usedonly").await.text();
    seen.extend(stats.lines().filter(|line| !line.contains("_time")).map(str::to_owned));
    seen
}

#[tokio::test]
async fn requests_are_changed_early_and_counted_by_route() {
    let seen = same(changed).await;
    assert!(seen.contains(&"vhost.all.vcluster.posts.upstream_rq_total: 1".to_owned()), "{seen:?}");
    assert!(seen.contains(&"vhost.all.vcluster.paths.upstream_rq_retry: 2".to_owned()), "{seen:?}");
    assert!(seen.contains(&"vhost.all.route.rt.upstream_rq_200: 1".to_owned()), "{seen:?}");
}
