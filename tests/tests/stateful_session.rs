//! Sessions that stay at one endpoint, by header and by cookie: what clients are given, where their requests go, and what
//! becomes of them when the endpoint is gone. The cases without an endpoint of their own are compared with Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, routes};
use outrigger_tests::side_by_side::{Chain, Intended, chain_of, get, same};
use outrigger_tests::{Proxy, Upstream, h1};

const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("cookie", "header set-cookie: ", "the cookie holds the time of its end"),
];

const FILTER: &str = "stateful_session.v3.StatefulSession";

macro_rules! by_header {
    ($fields:literal) => {
        concat!(
            $fields,
            "session_state: { name: envoy.http.stateful_session.header, typed_config: { '@type': \
             type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState, name: X-Session } }"
        )
    };
}

macro_rules! by_cookie {
    ($fields:literal) => {
        concat!(
            $fields,
            "session_state: { name: envoy.http.stateful_session.cookie, typed_config: { '@type': \
             type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState, \
             cookie: { name: sid, ttl: 60s, path: /a, attributes: [{ name: SameSite, value: Lax }] } } }"
        )
    };
}

/// `127.0.0.1:1`, where nobody is.
const NOBODY: &str = "MTI3LjAuMC4xOjE=";

const CHAINS: &[Chain] = &[
    Chain {
        stats: "http.header.stateful_session.",
        ..chain_of(
            "header",
            &[("s", FILTER, by_header!("stat_prefix: p, "))],
            "{ match: { path: /direct }, direct_response: { status: 200 } }, \
             { match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { s: { \
             '@type': $T/stateful_session.v3.StatefulSessionPerRoute, disabled: true } } }, ",
        )
    },
    Chain {
        stats: "http.strict.stateful_session.",
        ..chain_of("strict", &[("s", FILTER, by_header!("stat_prefix: p, strict: true, "))], "")
    },
    Chain {
        stats: "http.strict-404.stateful_session.",
        ..chain_of(
            "strict-404",
            &[("s", FILTER, by_header!("stat_prefix: p, strict: true, status_on_strict_destination_not_found: 404, "))],
            "",
        )
    },
    Chain {
        stats: "http.cookie.stateful_session.",
        ..chain_of("cookie", &[("s", FILTER, by_cookie!("stat_prefix: p, "))], "")
    },
];

#[tokio::test]
async fn sessions_begin_and_fail_as_in_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()])]);
    let cases = [
        get("header: new", "header", "/", &[]),
        get("header: nobody", "header", "/", &[("x-session", NOBODY)]),
        get("header: no base64", "header", "/", &[("x-session", "zz")]),
        get("header: direct response", "header", "/direct", &[]),
        get("header: off by route", "header", "/off", &[]),
        get("strict: new", "strict", "/", &[]),
        get("strict: nobody", "strict", "/", &[("x-session", NOBODY)]),
        get("strict: no base64", "strict", "/", &[("x-session", "zz")]),
        get("strict: own status", "strict-404", "/", &[("x-session", NOBODY)]),
        get("cookie: new", "cookie", "/a", &[]),
        get("cookie: below its path", "cookie", "/a/b?c", &[("cookie", "x=1; sid=\"MTI3LjAuMC4xOjE=\"")]),
        get("cookie: elsewhere", "cookie", "/ab", &[]),
    ];
    same(&bootstrap, CHAINS, &cases, INTENDED).await;
}

async fn start(fields: &str, ports: &[u16]) -> Proxy {
    let filter = format!(
        "{{ name: s, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{FILTER}, {fields} }} }}, "
    );
    let manager =
        config::http("web", &routes(&all_to("two"))).replace("http_filters: [", &format!("http_filters: [{filter}"));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    Proxy::start(&bootstrap(&[listener], &[cluster("two", ports)])).await
}

#[tokio::test]
async fn requests_of_a_session_stay_at_its_endpoint() {
    let (left, right) = (Upstream::start("left").await, Upstream::start("right").await);
    for (fields, of_cookie) in [(by_header!("stat_prefix: p, "), false), (by_cookie!("stat_prefix: p, "), true)] {
        let proxy = start(fields, &[left.port(), right.port()]).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        let first = client.request("GET", "/a", &[], b"").await;
        let header = match of_cookie {
            true => ("cookie", first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()),
            false => ("x-session", first.header("x-session").unwrap().to_owned()),
        };
        for _ in 0..6 {
            let next = client.request("GET", "/a", &[(header.0, &header.1)], b"").await;
            assert_eq!(next.served_by(), first.served_by());
            assert_eq!((next.header("set-cookie"), next.header("x-session")), (None, None));
        }
        proxy.stat_is("http.web.stateful_session.p.routed", 6).await;
    }
}

#[tokio::test]
async fn cookies_of_envoy_are_understood() {
    let (left, right) = (Upstream::start("left").await, Upstream::start("right").await);
    let proxy = start(by_cookie!("stat_prefix: p, strict: true, "), &[left.port(), right.port()]).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    // The message that Envoy writes, with an end that is far away, and the plain address that it wrote earlier.
    let address = format!("127.0.0.1:{}", right.port());
    let mut message = vec![0x0a, u8::try_from(address.len()).unwrap()];
    message.extend_from_slice(address.as_bytes());
    message.extend_from_slice(&[0x10, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    for content in [message.as_slice(), address.as_bytes()] {
        let cookie = format!("sid=\"{}\"", base64(content));
        for _ in 0..4 {
            let response = client.request("GET", "/a", &[("cookie", &cookie)], b"").await;
            assert_eq!(response.served_by(), "right");
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
