//! The same bootstrap and the same requests for Envoy and for the proxy under test: what the client gets and what the
//! upstream sees must be the same, except for the differences listed in [`INTENDED`].
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, bootstrap, chain, cluster, http, http2_cluster, resource, resources,
};
use outrigger_tests::{Proxy, Response, SOON, Settings, Upstream, eventually, h1, h2c, proxy};

/// Differences that are meant, by case and the thing that differs; each with its reason.
const INTENDED: &[(&str, &str, &str)] = &[
    ("*", "x-forwarded-for: 192.", LOOPBACK),
    ("*", "x-forwarded-for: 127.0.0.1", LOOPBACK),
    ("edge: forged x-forwarded-for", "x-forwarded-for: 10.1.2.3,", LOOPBACK),
    ("redirect of a POST", "connection: close", "the body is read to its end, so the connection stays in step"),
    ("direct response to a POST", "connection: close", "the body is read to its end, so the connection stays in step"),
    (
        "raw: a bad chunk size",
        "requests upstream",
        "whether the head went on before the error came is a matter of time",
    ),
    ("raw: two hosts", "", "RFC 9112 section 3.2 asks for 400; joined values are a host that nobody named"),
    ("raw: folded header", "", "RFC 9112 section 5.2 lets a server refuse line folding; it serves smuggling only"),
    ("raw: bare line feeds", "", "RFC 9112 section 2.2 lets a server refuse them; they serve smuggling only"),
];

const LOOPBACK: &str = "for a client on loopback Envoy names an address of the machine; we name the client";

/// How a case is sent.
#[derive(Clone, Copy)]
enum Sent {
    /// These bytes, on a connection of their own.
    Raw(&'static str),
    /// A request by both HTTP versions.
    Request(&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str),
}

use Sent::{Raw, Request};

/// Name, listener, and what is sent.
const CASES: &[(&str, &str, Sent)] = &[
    ("prefix route", "web", Request("GET", "/prefix/more", &[], "")),
    ("prefix route without more", "web", Request("GET", "/prefix", &[], "")),
    ("prefix is not a path segment", "web", Request("GET", "/prefixed", &[], "")),
    ("exact path", "web", Request("GET", "/exact", &[], "")),
    ("exact path with a query", "web", Request("GET", "/exact?x=1", &[], "")),
    ("exact path does not match longer", "web", Request("GET", "/exact/", &[], "")),
    ("exact path in another case", "web", Request("GET", "/EXACT", &[], "")),
    ("case-insensitive path", "web", Request("GET", "/LooSe", &[], "")),
    ("regex path", "web", Request("GET", "/regex/abc123", &[], "")),
    ("regex path must match all", "web", Request("GET", "/regex/abc123/x", &[], "")),
    ("separated prefix itself", "web", Request("GET", "/sep", &[], "")),
    ("separated prefix below", "web", Request("GET", "/sep/below?q", &[], "")),
    ("separated prefix not inside a segment", "web", Request("GET", "/september", &[], "")),
    ("header match exact", "web", Request("GET", "/headers", &[("x-kind", "gold")], "")),
    ("header match prefix", "web", Request("GET", "/headers", &[("x-kind", "silver-7")], "")),
    ("header match range", "web", Request("GET", "/headers", &[("x-number", "15")], "")),
    ("header match out of range", "web", Request("GET", "/headers", &[("x-number", "20")], "")),
    ("header present", "web", Request("GET", "/headers", &[("x-present", "")], "")),
    ("header inverted", "web", Request("GET", "/inverted", &[("x-not", "here")], "")),
    ("header inverted and absent", "web", Request("GET", "/inverted", &[], "")),
    ("two values of a header", "web", Request("GET", "/headers", &[("x-kind", "gold"), ("x-kind", "lead")], "")),
    ("path template", "web", Request("GET", "/template/fr/a/b%20c?q=1", &[], "")),
    ("path template without the rest", "web", Request("GET", "/template/fr", &[], "")),
    ("path template with an empty rest", "web", Request("GET", "/template/fr/", &[], "")),
    ("path template with odd bytes", "web", Request("GET", "/template/f[r/a", &[], "")),
    ("cookie", "web", Request("GET", "/cookies", &[("cookie", "a=b; session=gold-7; banned=yes")], "")),
    ("quoted cookie", "web", Request("GET", "/cookies", &[("cookie", "session=\"gold\"; banned=yes")], "")),
    (
        "first cookie of a name",
        "web",
        Request("GET", "/cookies", &[("cookie", "session=x; session=gold; banned=yes")], ""),
    ),
    ("cookie by another case", "web", Request("GET", "/cookies", &[("cookie", "Session=gold; banned=yes")], "")),
    ("inverted cookie", "web", Request("GET", "/cookies", &[("cookie", "banned=no")], "")),
    ("absent inverted cookie", "web", Request("GET", "/cookies", &[], "")),
    ("query parameter", "web", Request("GET", "/query?colour=red", &[], "")),
    ("query parameter of another value", "web", Request("GET", "/query?colour=blue", &[], "")),
    ("query parameter present", "web", Request("GET", "/query?flag", &[], "")),
    ("query parameter later in the query", "web", Request("GET", "/query?a=b&colour=red&c", &[], "")),
    ("prefix rewrite", "web", Request("GET", "/rewrite/rest?q=1", &[], "")),
    ("prefix rewrite of all", "web", Request("GET", "/rewrite", &[], "")),
    ("regex rewrite", "web", Request("GET", "/service/billing/v1", &[], "")),
    ("host rewrite", "web", Request("GET", "/host", &[], "")),
    ("path redirect", "web", Request("GET", "/redirect/path?keep=1", &[], "")),
    ("host redirect", "web", Request("GET", "/redirect/host/x?keep=1", &[], "")),
    ("https redirect", "web", Request("GET", "/redirect/https/x?a", &[], "")),
    ("prefix redirect, strip query, 308", "web", Request("GET", "/redirect/prefix/x?a", &[], "")),
    ("redirect of a POST", "web", Request("POST", "/redirect/path", &[], "body")),
    ("direct response", "web", Request("GET", "/direct", &[], "")),
    ("direct response to HEAD", "web", Request("HEAD", "/direct", &[], "")),
    ("direct response without a body", "web", Request("GET", "/empty-direct", &[], "")),
    ("direct response to a POST", "web", Request("POST", "/direct", &[], "some body")),
    ("headers added and removed", "web", Request("GET", "/change", &[("x-drop", "1"), ("x-there", "mine")], "")),
    (
        "response headers changed",
        "web",
        Request("GET", "/change", &[("x-reply", "header=x-secret:1 header=x-there:up")], ""),
    ),
    ("header formatter values", "web", Request("GET", "/formatted", &[("x-in", "value")], "")),
    ("weighted 0 and 100", "web", Request("GET", "/weighted", &[], "")),
    ("cluster by header", "web", Request("GET", "/by-header", &[("x-to", "two")], "")),
    ("cluster header missing", "web", Request("GET", "/by-header", &[], "")),
    ("timeout", "web", Request("GET", "/timeout", &[("x-reply", "hang")], "")),
    (
        "timeout from the client's header",
        "web",
        Request("GET", "/prefix", &[("x-envoy-upstream-rq-timeout-ms", "10000")], ""),
    ),
    ("no cluster", "web", Request("GET", "/no-cluster", &[], "")),
    ("no endpoint", "web", Request("GET", "/no-endpoint", &[], "")),
    ("no route", "web", Request("GET", "/nothing", &[], "")),
    ("other domain", "web", Request("GET", "/", &[("host", "api.example.org")], "")),
    ("other domain with a port", "web", Request("GET", "/", &[("host", "api.example.org:8080")], "")),
    ("other domain in another case", "web", Request("GET", "/", &[("host", "API.example.ORG")], "")),
    ("wildcard suffix domain", "web", Request("GET", "/", &[("host", "deep.wild.example.net")], "")),
    ("wildcard prefix domain", "web", Request("GET", "/", &[("host", "front.anything")], "")),
    ("upstream by h2", "web", Request("POST", "/by-h2", &[("x-custom", "kept")], "a body")),
    ("upstream by h2, error status", "web", Request("GET", "/by-h2", &[("x-reply", "status=500 empty")], "")),
    ("upstream 503 kept", "web", Request("GET", "/prefix", &[("x-reply", "status=503")], "")),
    (
        "upstream server and date kept or not",
        "web",
        Request("GET", "/prefix", &[("x-reply", "header=server:mine header=via:up")], ""),
    ),
    (
        "hop-by-hop request headers",
        "web",
        Request("GET", "/prefix", &[("te", "trailers"), ("x-envoy-internal", "true")], ""),
    ),
    (
        "client says x-forwarded-for",
        "web",
        Request("GET", "/prefix", &[("x-forwarded-for", "10.1.2.3, 192.0.2.7")], ""),
    ),
    ("client says x-forwarded-proto", "web", Request("GET", "/prefix", &[("x-forwarded-proto", "https")], "")),
    ("client says x-request-id", "web", Request("GET", "/prefix", &[("x-request-id", "mine-1")], "")),
    (
        "client says x-envoy headers",
        "web",
        Request(
            "GET",
            "/prefix",
            &[
                ("x-envoy-expected-rq-timeout-ms", "7"),
                ("x-envoy-original-path", "/a"),
                ("x-envoy-external-address", "1.2.3.4"),
                ("x-envoy-downstream-service-cluster", "me"),
            ],
            "",
        ),
    ),
    ("cookies", "web", Request("GET", "/prefix", &[("cookie", "a=1"), ("cookie", "b=2")], "")),
    ("empty header value", "web", Request("GET", "/prefix", &[("x-empty", "")], "")),
    ("underscore in a header name", "web", Request("GET", "/prefix", &[("x_under", "1")], "")),
    ("options", "web", Request("OPTIONS", "/prefix", &[], "")),
    ("custom method", "web", Request("PROPFIND", "/prefix", &[], "")),
    ("delete with a body", "web", Request("DELETE", "/prefix", &[], "reason")),
    ("dot segments stay", "web", Request("GET", "/prefix/../exact", &[], "")),
    ("double slashes stay", "web", Request("GET", "//prefix//x", &[], "")),
    ("escapes stay", "web", Request("GET", "/prefix/%41%2f", &[], "")),
    ("normalised path", "edge", Request("GET", "/a/../prefix/./x", &[], "")),
    ("merged slashes", "edge", Request("GET", "//prefix///x", &[], "")),
    ("edge: plain", "edge", Request("GET", "/prefix", &[], "")),
    ("edge: forged x-forwarded-for", "edge", Request("GET", "/prefix", &[("x-forwarded-for", "10.1.2.3")], "")),
    (
        "edge: forged internal headers",
        "edge",
        Request(
            "GET",
            "/prefix",
            &[
                ("x-envoy-internal", "true"),
                ("x-envoy-retry-on", "5xx"),
                ("x-envoy-upstream-rq-timeout-ms", "1"),
                ("x-envoy-decorator-operation", "a"),
            ],
            "",
        ),
    ),
    ("edge: client says x-request-id", "edge", Request("GET", "/prefix", &[("x-request-id", "mine-1")], "")),
    ("edge: client says x-forwarded-proto", "edge", Request("GET", "/prefix", &[("x-forwarded-proto", "https")], "")),
    ("edge: via and server name", "edge", Request("GET", "/prefix", &[("via", "1.1 other")], "")),
    ("edge: underscore rejected", "edge", Request("GET", "/prefix", &[("x_under", "1")], "")),
    ("edge: https redirect", "edge", Request("GET", "/redirect/https", &[], "")),
    (
        "redirect followed",
        "web",
        Request(
            "GET",
            "/follow/once",
            &[("x-reply", "status=302 header=location:http://other.example/prefix/x?y#z")],
            "",
        ),
    ),
    (
        "redirect of a POST followed",
        "web",
        Request(
            "POST",
            "/follow/once",
            &[("x-reply", "status=302 header=location:http://other.example:8080/prefix/x")],
            "a body",
        ),
    ),
    (
        "redirect by 303 of a POST followed",
        "web",
        Request(
            "POST",
            "/follow/codes",
            &[("x-reply", "status=303 header=location:http://other.example/prefix")],
            "a body",
        ),
    ),
    (
        "redirect by 307 of a PUT followed",
        "web",
        Request(
            "PUT",
            "/follow/codes",
            &[("x-reply", "status=307 header=location:http://other.example/rewrite/x")],
            "a body",
        ),
    ),
    (
        "redirect by another code",
        "web",
        Request("GET", "/follow/once", &[("x-reply", "status=301 header=location:http://other.example/prefix")], ""),
    ),
    (
        "redirect followed once only",
        "web",
        Request(
            "GET",
            "/follow/again",
            &[("x-reply", "status=302 header=location:http://other.example/follow/again/x")],
            "",
        ),
    ),
    (
        "redirect to a direct response",
        "web",
        Request("GET", "/follow/once", &[("x-reply", "status=302 header=location:http://api.example.org/x")], ""),
    ),
    (
        "redirect to a redirect",
        "web",
        Request(
            "GET",
            "/follow/once",
            &[("x-reply", "status=302 header=location:http://other.example/redirect/path")],
            "",
        ),
    ),
    (
        "redirect to no route",
        "web",
        Request("GET", "/follow/once", &[("x-reply", "status=302 header=location:http://other.example/nothing")], ""),
    ),
    (
        "redirect without a path",
        "web",
        Request("GET", "/follow/once", &[("x-reply", "status=302 header=location:http://other.example")], ""),
    ),
    (
        "redirect by a relative location",
        "web",
        Request("GET", "/follow/once", &[("x-reply", "status=302 header=location:/prefix")], ""),
    ),
    ("redirect without a location", "web", Request("GET", "/follow/once", &[("x-reply", "status=302")], "")),
    (
        "redirect to another scheme",
        "web",
        Request("GET", "/follow/once", &[("x-reply", "status=302 header=location:https://other.example/prefix")], ""),
    ),
    (
        "redirect to another scheme allowed",
        "web",
        Request("GET", "/follow/cross", &[("x-reply", "status=302 header=location:https://other.example/prefix")], ""),
    ),
    (
        "redirect to an unsafe scheme",
        "web",
        Request("GET", "/follow/safe", &[("x-reply", "status=302 header=location:https://other.example/prefix")], ""),
    ),
    (
        "redirect to a listed route",
        "web",
        Request("GET", "/follow/listed", &[("x-reply", "status=302 header=location:http://other.example/prefix")], ""),
    ),
    (
        "redirect to a route that is not listed",
        "web",
        Request("GET", "/follow/listed", &[("x-reply", "status=302 header=location:http://other.example/exact")], ""),
    ),
    (
        "redirect to a previous route",
        "web",
        Request(
            "GET",
            "/follow/previous",
            &[("x-reply", "status=302 header=location:http://other.example/follow/previous/x")],
            "",
        ),
    ),
    (
        "redirect by the deprecated fields",
        "web",
        Request(
            "GET",
            "/follow/deprecated",
            &[("x-reply", "status=302 header=location:http://other.example/follow/deprecated/x")],
            "",
        ),
    ),
    (
        "redirect of a rewritten request",
        "web",
        Request(
            "GET",
            "/follow/rewritten/a",
            &[("x-reply", "status=302 header=location:http://other.example/prefix/b")],
            "",
        ),
    ),
    ("query parameter absent", "web", Request("GET", "/absent?other=1", &[], "")),
    ("query parameter absent, no query", "web", Request("GET", "/absent", &[], "")),
    ("query parameter there that should be absent", "web", Request("GET", "/absent?flag=1", &[], "")),
    ("client certificate not shown", "web", Request("GET", "/plain", &[], "")),
    ("dynamic metadata that is not there", "web", Request("GET", "/metadata", &[], "")),
    ("filter state that is not there", "web", Request("GET", "/state", &[], "")),
    ("weights by the number `0`", "web", Request("GET", "/by-number", &[("x-number", "0")], "")),
    ("weights by the number `3`", "web", Request("GET", "/by-number", &[("x-number", "3")], "")),
    ("weights by the number `99`", "web", Request("GET", "/by-number", &[("x-number", "99")], "")),
    ("weights by the number `7x`", "web", Request("GET", "/by-number", &[("x-number", "7x")], "")),
    ("weights by the number `-1`", "web", Request("GET", "/by-number", &[("x-number", "-1")], "")),
    ("weights by the number ``", "web", Request("GET", "/by-number", &[("x-number", "")], "")),
    ("weights by hash", "web", Request("GET", "/by-hash", &[("x-key", "a")], "")),
    ("weights by another hash", "web", Request("GET", "/by-hash", &[("x-key", "b")], "")),
    ("weights by a third hash", "web", Request("GET", "/by-hash", &[("x-key", "c")], "")),
    ("weighted cluster named by a header", "web", Request("GET", "/weighted-header", &[("x-to", "two")], "")),
    ("weighted cluster without its header", "web", Request("GET", "/weighted-header", &[], "")),
    ("kept body limited", "web", Request("POST", "/small", &[("x-reply", "status=503")], "0123456789")),
    ("matcher: exact header", "web", Request("GET", "/x", &[("host", "tree.example.org"), ("x-env", "gold")], "")),
    ("matcher: list of routes", "web", Request("GET", "/b", &[("host", "tree.example.org"), ("x-env", "silver")], "")),
    (
        "matcher: no route of the list",
        "web",
        Request("GET", "/c", &[("host", "tree.example.org"), ("x-env", "silver")], ""),
    ),
    ("matcher: nothing on the tree", "web", Request("GET", "/x", &[("host", "tree.example.org")], "")),
    ("matcher: absent input", "web", Request("GET", "/x", &[("host", "list.example.org")], "")),
    ("matcher: all of two", "web", Request("GET", "/x", &[("host", "list.example.org"), ("x-env", "any")], "")),
    ("matcher: on no match", "web", Request("GET", "/x", &[("host", "list.example.org"), ("x-env", "no")], "")),
    ("raw: lower-case method", "web", Raw("get /prefix HTTP/1.1\r\nhost: a\r\n\r\n")),
    ("raw: absolute form", "web", Raw("GET http://abs.example.com/prefix?x HTTP/1.1\r\nhost: other\r\n\r\n")),
    (
        "raw: header case and blanks",
        "web",
        Raw("GET /prefix HTTP/1.1\r\nHOST:   spaced.example \r\nX-MiXeD:\tvalue  \r\n\r\n"),
    ),
    ("raw: no host", "web", Raw("GET /prefix HTTP/1.1\r\n\r\n")),
    ("raw: two hosts", "web", Raw("GET /prefix HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")),
    ("raw: empty host", "web", Raw("GET /prefix HTTP/1.1\r\nhost:\r\n\r\n")),
    ("raw: http/1.0", "web", Raw("GET /prefix HTTP/1.0\r\nhost: a\r\n\r\n")),
    ("raw: unknown version", "web", Raw("GET /prefix HTTP/3.7\r\nhost: a\r\n\r\n")),
    ("raw: connection close", "web", Raw("GET /prefix HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")),
    (
        "raw: connection names a header",
        "web",
        Raw("GET /prefix HTTP/1.1\r\nhost: a\r\nconnection: x-hop, close\r\nx-hop: 1\r\n\r\n"),
    ),
    (
        "raw: keep-alive header",
        "web",
        Raw(
            "GET /prefix HTTP/1.1\r\nhost: a\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nconnection: close\r\n\r\n",
        ),
    ),
    (
        "raw: upgrade that is not configured",
        "web",
        Raw("GET /prefix HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    ),
    (
        "raw: h2c upgrade",
        "web",
        Raw(
            "GET /prefix HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        ),
    ),
    (
        "raw: expect",
        "web",
        Raw(
            "POST /prefix HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
        ),
    ),
    (
        "raw: te and trailer",
        "web",
        Raw(
            "POST /prefix HTTP/1.1\r\nhost: a\r\nte: gzip, trailers\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n",
        ),
    ),
    (
        "raw: length and chunked",
        "web",
        Raw("POST /prefix HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ),
    (
        "raw: two different lengths",
        "web",
        Raw("POST /prefix HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nhi"),
    ),
    (
        "raw: two equal lengths",
        "web",
        Raw(
            "POST /prefix HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
        ),
    ),
    ("raw: a bad length", "web", Raw("POST /prefix HTTP/1.1\r\nhost: a\r\ncontent-length: +2\r\n\r\nhi")),
    (
        "raw: a bad chunk size",
        "web",
        Raw("POST /prefix HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
    ),
    ("raw: unknown transfer coding", "web", Raw("POST /prefix HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n")),
    ("raw: blank before the colon", "web", Raw("GET /prefix HTTP/1.1\r\nhost : a\r\n\r\n")),
    (
        "raw: folded header",
        "web",
        Raw("GET /prefix HTTP/1.1\r\nhost: a\r\nx-long: one\r\n two\r\nconnection: close\r\n\r\n"),
    ),
    ("raw: nul in a value", "web", Raw("GET /prefix HTTP/1.1\r\nhost: a\r\nx-nul: a\0b\r\n\r\n")),
    ("raw: bare line feeds", "web", Raw("GET /prefix HTTP/1.1\nhost: a\nconnection: close\n\n")),
    (
        "raw: empty lines before the request",
        "web",
        Raw("\r\n\r\nGET /prefix HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
    ),
    ("raw: blank in the target", "web", Raw("GET /prefix /x HTTP/1.1\r\nhost: a\r\n\r\n")),
    ("raw: fragment in the target", "web", Raw("GET /prefix#frag HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")),
    ("raw: target without a slash", "web", Raw("GET prefix HTTP/1.1\r\nhost: a\r\n\r\n")),
    ("raw: options asterisk", "web", Raw("OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")),
    ("raw: connect", "web", Raw("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n")),
    ("raw: garbage", "web", Raw("\x16\x03\x01garbage\r\n\r\n")),
];

fn listeners() -> [String; 2] {
    let http = |name: &str, more: &str| {
        // On one line: the table is written for people.
        let routes = format!(", route_config: {}", ROUTES.replace('\n', " "));
        config::listener(name, &[chain(&http(name, &format!("{routes}{more}")), "")], "")
    };
    [
        http("web", ""),
        http(
            "edge",
            ", use_remote_address: true, normalize_path: true, merge_slashes: true, via: edge-proxy, \
             server_name: edge, common_http_protocol_options: { headers_with_underscores_action: REJECT_REQUEST }",
        ),
    ]
}

const ROUTES: &str = "{ name: table, validate_clusters: false, \
  request_headers_to_add: [{ header: { key: x-table, value: added } }], \
  response_headers_to_remove: [x-secret], virtual_hosts: [
  { name: api, domains: [api.example.org], routes: [
    { match: { prefix: / }, direct_response: { status: 200, body: { inline_string: api } } }] },
  { name: tree, domains: [tree.example.org], matcher: { matcher_tree: {
      input: { name: i, typed_config: { '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput,
        header_name: x-env } },
      exact_match_map: { map: {
        gold: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.Route,
          match: { prefix: / }, direct_response: { status: 201 } } } },
        silver: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.RouteList,
          routes: [{ match: { prefix: /a }, direct_response: { status: 202 } },
            { match: { prefix: /b }, route: { cluster: two } }] } } } } } } } },
  { name: list, domains: [list.example.org], matcher: {
      matcher_list: { matchers: [
        { predicate: { and_matcher: { predicate: [
            { not_matcher: { single_predicate: { input: { name: i, typed_config: {
              '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-not } },
              value_match: { exact: 'yes' } } } },
            { single_predicate: { input: { name: i, typed_config: {
              '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-env } },
              value_match: { prefix: a } } }] } },
          on_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.Route,
            match: { prefix: / }, route: { cluster: one } } } } }] },
      on_no_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.route.v3.Route,
        match: { prefix: / }, direct_response: { status: 206 } } } } } },
  { name: suffix, domains: ['*.example.net'], routes: [
    { match: { prefix: / }, direct_response: { status: 200, body: { inline_string: suffix } } }] },
  { name: prefix, domains: ['front.*'], routes: [
    { match: { prefix: / }, direct_response: { status: 200, body: { inline_string: prefix } } }] },
  { name: rest, domains: ['*'],
    response_headers_to_add: [{ header: { key: x-host, value: rest } }], routes: [
    { match: { path: /exact }, route: { cluster: one } },
    { match: { path: /loose, case_sensitive: false }, route: { cluster: one } },
    { match: { safe_regex: { regex: '/regex/[a-z]+[0-9]+' } }, route: { cluster: one } },
    { match: { path_separated_prefix: /sep }, route: { cluster: one, prefix_rewrite: /separated } },
    { match: { prefix: /headers, headers: [{ name: x-kind, string_match: { exact: gold } }] },
      direct_response: { status: 201 } },
    { match: { prefix: /headers, headers: [{ name: x-kind, string_match: { prefix: silver } }] },
      direct_response: { status: 202 } },
    { match: { prefix: /headers, headers: [{ name: x-number, range_match: { start: 10, end: 20 } }] },
      direct_response: { status: 203 } },
    { match: { prefix: /headers, headers: [{ name: x-present, present_match: true }] },
      direct_response: { status: 205 } },
    { match: { prefix: /inverted, headers: [{ name: x-not, string_match: { exact: here }, invert_match: true }] },
      direct_response: { status: 206 } },
    { match: { prefix: /query, query_parameters: [{ name: colour, string_match: { exact: red } }] },
      direct_response: { status: 201 } },
    { match: { prefix: /query, query_parameters: [{ name: flag, present_match: true }] },
      direct_response: { status: 202 } },
    { match: { path_match_policy: { name: envoy.path.match.uri_template.uri_template_matcher, typed_config: {
        '@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig,
        path_template: '/template/{country}/{rest=**}' } } },
      route: { cluster: one, path_rewrite_policy: { name: envoy.path.rewrite.uri_template.uri_template_rewriter,
        typed_config: {
          '@type': type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig,
          path_template_rewrite: '/of/{rest}/in/{country}' } } } },
    { match: { prefix: /cookies, cookies: [{ name: session, string_match: { prefix: gold } }] },
      direct_response: { status: 201 } },
    { match: { prefix: /cookies, cookies: [{ name: banned, string_match: { exact: 'yes' }, invert_match: true }] },
      direct_response: { status: 202 } },
    { match: { prefix: /cookies }, direct_response: { status: 203 } },
    { match: { prefix: /rewrite }, route: { cluster: one, prefix_rewrite: /written } },
    { match: { prefix: /service }, route: { cluster: one, regex_rewrite: {
      pattern: { regex: '^/service/([^/]+)(/.*)$' }, substitution: '\\2/instance/\\1' } } },
    { match: { prefix: /host }, route: { cluster: one, host_rewrite_literal: rewritten.example } },
    { match: { prefix: /redirect/path }, redirect: { path_redirect: /new } },
    { match: { prefix: /redirect/host }, redirect: { host_redirect: new.example, response_code: FOUND } },
    { match: { prefix: /redirect/https }, redirect: { https_redirect: true } },
    { match: { prefix: /redirect/prefix }, redirect: { prefix_rewrite: /moved, strip_query: true,
      response_code: PERMANENT_REDIRECT } },
    { match: { path: /direct }, direct_response: { status: 418, body: { inline_string: 'short and stout' } } },
    { match: { path: /empty-direct }, direct_response: { status: 200 } },
    { match: { prefix: /change }, route: { cluster: one },
      request_headers_to_remove: [x-drop], request_headers_to_add: [
        { header: { key: x-there, value: appended }, append_action: APPEND_IF_EXISTS_OR_ADD },
        { header: { key: x-new, value: made }, append_action: ADD_IF_ABSENT },
        { header: { key: x-table, value: over }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }],
      response_headers_to_add: [
        { header: { key: x-there, value: route }, append_action: OVERWRITE_IF_EXISTS_OR_ADD },
        { header: { key: x-more, value: yes-please } }] },
    { match: { prefix: /formatted }, route: { cluster: one }, request_headers_to_add: [
        { header: { key: x-protocol, value: '%PROTOCOL%' } },
        { header: { key: x-copied, value: 'was %REQ(x-in)%' } },
        { header: { key: x-percent, value: '100%%' } },
        { header: { key: x-peer, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' } }],
      response_headers_to_add: [{ header: { key: x-code, value: '%RESPONSE_CODE%' } }] },
    { match: { prefix: /weighted }, route: { weighted_clusters: { clusters: [
        { name: one, weight: 0 }, { name: two, weight: 100,
          request_headers_to_add: [{ header: { key: x-weighted, value: two } }] }] } } },
    { match: { prefix: /by-header }, route: { cluster_header: x-to } },
    { match: { prefix: /timeout }, route: { cluster: one, timeout: 1s } },
    { match: { prefix: /no-cluster }, route: { cluster: nowhere } },
    { match: { prefix: /no-endpoint }, route: { cluster: empty } },
    { match: { prefix: /by-h2 }, route: { cluster: by-h2 } },
    { match: { prefix: /absent, query_parameters: [{ name: flag, present_match: false }] },
      direct_response: { status: 201 } },
    { match: { prefix: /plain, tls_context: { presented: true } }, direct_response: { status: 201 } },
    { match: { prefix: /plain, tls_context: { presented: false, validated: false } },
      direct_response: { status: 202 } },
    { match: { prefix: /metadata, dynamic_metadata: [{ filter: some, path: [{ key: k }],
      value: { string_match: { exact: v } } }] }, direct_response: { status: 201 } },
    { match: { prefix: /metadata, dynamic_metadata: [{ filter: some, path: [{ key: k }],
      value: { string_match: { exact: v } }, invert: true }] }, direct_response: { status: 202 } },
    { match: { prefix: /state, filter_state: [{ key: some, string_match: { exact: v } }] },
      direct_response: { status: 201 } },
    { match: { prefix: /by-number }, route: { weighted_clusters: { header_name: x-number, clusters: [
      { name: one, weight: 3, response_headers_to_add: [{ header: { key: x-drawn, value: anyhow } }] },
      { name: two, weight: 0 }] } } },
    { match: { prefix: /by-hash }, route: { hash_policy: [{ header: { header_name: x-key } }],
      weighted_clusters: { use_hash_policy: true, clusters: [{ name: one, weight: 50 }, { name: two, weight: 50 }] } } },
    { match: { prefix: /weighted-header }, route: { weighted_clusters: { clusters: [
      { cluster_header: x-to, weight: 1 }] } } },
    { match: { prefix: /small }, per_request_buffer_limit_bytes: 4, route: { cluster: one,
      retry_policy: { retry_on: 5xx, num_retries: 1 } } },
    { match: { prefix: /follow/once }, route: { cluster: one, internal_redirect_policy: {
      response_headers_to_copy: [x-reply] } } },
    { match: { prefix: /follow/codes }, route: { cluster: one, internal_redirect_policy: {
      redirect_response_codes: [303, 307, 404], response_headers_to_copy: [x-reply] } } },
    { match: { prefix: /follow/again }, route: { cluster: one, internal_redirect_policy: {} } },
    { match: { prefix: /follow/cross }, route: { cluster: one, internal_redirect_policy: {
      allow_cross_scheme_redirect: true, response_headers_to_copy: [x-reply] } } },
    { match: { prefix: /follow/safe }, route: { cluster: one, internal_redirect_policy: {
      allow_cross_scheme_redirect: true, predicates: [{ name: p, typed_config: { '@type': type.googleapis.com/envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig } }] } } },
    { match: { prefix: /follow/listed }, route: { cluster: one, internal_redirect_policy: {
      response_headers_to_copy: [x-reply], predicates: [{ name: p, typed_config: { '@type': type.googleapis.com/envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig, allowed_route_names: [prefix] } }] } } },
    { match: { prefix: /follow/previous }, name: previous, route: { cluster: one, internal_redirect_policy: {
      max_internal_redirects: 5, predicates: [{ name: p, typed_config: { '@type': type.googleapis.com/envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig } }] } } },
    { match: { prefix: /follow/rewritten }, request_headers_to_add: [{ header: { key: x-hop, value: one } }],
      route: { cluster: one, prefix_rewrite: /written, host_rewrite_literal: written.example, internal_redirect_policy: {
      response_headers_to_copy: [x-reply] } } },
    { match: { prefix: /follow/deprecated }, route: { cluster: one,
      internal_redirect_action: HANDLE_INTERNAL_REDIRECT, max_internal_redirects: 2 } },
    { match: { prefix: /prefix }, name: prefix, route: { cluster: one } }] }] }";

/// The upstreams `one` and `two`.
struct Upstreams {
    one: Upstream,
    two: Upstream,
}

impl Upstreams {
    async fn start() -> Self {
        Self { one: Upstream::start("one").await, two: Upstream::start("two").await }
    }

    fn clusters(&self) -> [String; 4] {
        [
            cluster("one", &[self.one.port()]),
            cluster("two", &[self.two.port()]),
            cluster("empty", &[]),
            http2_cluster("by-h2", &[self.two.port()]),
        ]
    }

    fn requests(&self) -> usize {
        self.one.counts().requests + self.two.counts().requests
    }
}

/// One proxy of the two that are compared.
struct Side<'a> {
    _proxy: Proxy,
    upstreams: &'a Upstreams,
    listeners: BTreeMap<String, SocketAddr>,
}

impl<'a> Side<'a> {
    async fn start(program: PathBuf, bootstrap: &str, upstreams: &'a Upstreams) -> Self {
        let settings = Settings { program, ..Settings::default() };
        let proxy = Proxy::start_with(bootstrap, settings).await;
        let mut listeners = BTreeMap::new();
        for name in ["web", "edge"] {
            listeners.insert(name.to_owned(), proxy.listener(name).await);
        }
        Self { _proxy: proxy, upstreams, listeners }
    }

    /// Everything observable of one case, as lines that can be compared.
    async fn observe(&self, listener: &str, send: Sent) -> Vec<String> {
        let address = self.listeners[listener];
        let before = self.upstreams.requests();
        let mut seen = Vec::new();
        match send {
            Raw(bytes) => {
                let mut client = h1::Client::connect(address).await;
                client.send(bytes).await;
                let method = bytes.split(' ').next().unwrap_or_default();
                self.describe("raw", client.try_response(method).await, &mut seen);
            }
            Request(method, target, headers, body) => {
                let response =
                    h1::Client::connect(address).await.request(method, target, headers, body.as_bytes()).await;
                self.describe("h1", Ok(response), &mut seen);
                let host = headers.iter().find(|(name, _)| *name == "host").map_or("example.com", |(_, value)| value);
                let headers: Vec<_> = headers.iter().copied().filter(|(name, _)| *name != "host").collect();
                let client = h2c::Client::connect(address).await.authority(host);
                let response = client.try_request(method, target, &headers, body.as_bytes(), &[]).await;
                self.describe("h2", response.map_err(|error| error.to_string()), &mut seen);
            }
        }
        let count = self.upstreams.requests() - before;
        seen.push(format!("requests upstream: {count}"));
        seen
    }

    fn describe(&self, how: &str, response: Result<Response, String>, seen: &mut Vec<String>) {
        let response = match response {
            Ok(response) => response,
            Err(error) => return seen.push(format!("{how}: no response: {error}")),
        };
        seen.push(format!("{how}: status {}", response.status));
        let mut lines: Vec<String> = Vec::new();
        for (name, value) in &response.headers {
            lines.push(format!("{how}: header {name}: {}", self.steady(name, value)));
        }
        lines.sort();
        seen.append(&mut lines);
        match serde_json::from_slice::<serde_json::Value>(&response.body) {
            Ok(report) if report["upstream"].is_string() => self.describe_report(how, &report, seen),
            _ => seen.push(format!("{how}: body {:?}", response.text())),
        }
        if !response.interim.is_empty() {
            seen.push(format!("{how}: interim {:?}", response.interim));
        }
    }

    fn describe_report(&self, how: &str, report: &serde_json::Value, seen: &mut Vec<String>) {
        for field in ["upstream", "version", "method", "target", "authority", "body", "trailers"] {
            seen.push(format!("{how}: upstream sees {field} {}", report[field]));
        }
        let mut lines: Vec<String> = Vec::new();
        for pair in report["headers"].as_array().into_iter().flatten() {
            let (name, value) = (pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
            lines.push(format!("{how}: upstream sees header {name}: {}", self.steady(name, value)));
        }
        lines.sort();
        seen.append(&mut lines);
    }

    /// A header value without what differs between any two runs.
    fn steady(&self, name: &str, value: &str) -> String {
        match name.to_ascii_lowercase().as_str() {
            "date" => "<date>".to_owned(),
            "x-request-id" if value.len() == 36 => "<uuid>".to_owned(),
            "x-envoy-upstream-service-time" => "<ms>".to_owned(),
            // The body is a report with ephemeral ports in it; its length is checked by the framing.
            "content-length" if value.len() > 2 => "<length>".to_owned(),
            _ => self
                .listeners
                .values()
                .fold(value.to_owned(), |value, address| value.replace(&address.port().to_string(), "<port>")),
        }
    }
}

#[tokio::test]
async fn clients_and_upstreams_see_the_same_as_with_envoy() {
    let upstreams = Upstreams::start().await;
    let bootstrap = bootstrap(&listeners(), &upstreams.clusters());
    let subject = Side::start(proxy::program(), &bootstrap, &upstreams).await;
    let envoy = Side::start(proxy::envoy(), &bootstrap, &upstreams).await;
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let report = differences(&subject, &envoy, |name| name.contains(&only)).await;
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

#[tokio::test]
async fn one_control_plane_drives_both_to_the_same() {
    let upstreams = Upstreams::start().await;
    let mock = MockControlPlane::start().await;
    let mut all: Vec<String> = upstreams.clusters().iter().map(|text| resource("cds", text)).collect();
    all.extend(listeners().iter().map(|text| resource("lds", text)));
    mock.set_yaml(&resources(&all)).unwrap();
    let bootstrap = ads_bootstrap(Xds::AdsDelta, mock.address().port());
    let subject = Side::start(proxy::program(), &bootstrap, &upstreams).await;
    let envoy = Side::start(proxy::envoy(), &bootstrap, &upstreams).await;
    // The rest of the table is the matter of the test above.
    let some = |name: &str| !name.starts_with("raw") && !name.contains("timeout");
    let report = differences(&subject, &envoy, some).await;
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");

    // Both follow a change: `one` is now where `two` was.
    let moved = cluster("one", &[upstreams.two.port()]);
    mock.set_yaml(&resources(&[resource("cds", &moved)])).unwrap();
    let ack = mock.wait_ack("cds", SOON).await.unwrap();
    assert_eq!(ack.streams.len(), 2, "both take their configuration from here");
    for side in [&subject, &envoy] {
        eventually("it follows", async || match h1::get(side.listeners["web"], "/prefix").await.served_by() {
            who if who == "two" => Ok(()),
            who => Err(who),
        })
        .await;
    }
    let report = differences(&subject, &envoy, |name| name.starts_with("prefix")).await;
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}

/// Sends the cases to both; tells what is not the same and not meant so.
async fn differences(subject: &Side<'_>, envoy: &Side<'_>, which: impl Fn(&str) -> bool) -> String {
    let mut report = String::new();
    for (name, listener, sent) in CASES.iter().filter(|(name, ..)| which(name)) {
        let expected = envoy.observe(listener, *sent).await;
        let seen = subject.observe(listener, *sent).await;
        let missing = expected.iter().filter(|line| !seen.contains(line)).map(|line| format!("  envoy: {line}"));
        let extra = seen.iter().filter(|line| !expected.contains(line)).map(|line| format!("  ours:  {line}"));
        let different: Vec<String> = missing.chain(extra).filter(|line| !is_intended(name, line)).collect();
        if !different.is_empty() {
            writeln!(report, "{name}:\n{}", different.join("\n")).unwrap();
        }
    }
    report
}

fn is_intended(case: &str, line: &str) -> bool {
    INTENDED.iter().any(|(of, what, _reason)| (*of == case || *of == "*") && line.contains(what))
}
