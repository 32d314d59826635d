//! What clients, upstreams, access logs and stats show must be the same as with Envoy, except for the differences listed
//! in [`INTENDED`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use outrigger_tests::config::{bootstrap, cluster};
use outrigger_tests::side_by_side::{compare, compare_settled};
use outrigger_tests::tokens::Issuer;
use outrigger_tests::{Proxy, Response, Settings, Upstream, h1, h2c, proxy};
use serde_json::{Value, json};

use crate::chains::{self, ALGORITHMS};
use crate::credentials;
use crate::setup::{Setup, seconds_from_now};

/// Differences that are meant, by case and the thing that differs; each with its reason.
const INTENDED: &[(&str, &str, &str)] = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    (
        "two headers",
        "",
        "Envoy joins the values and reads them as one; we read each, and refuse the request all the same",
    ),
    ("malformed: blanks around", "h2: ", "HTTP/2 leaves the last blank, which Envoy passes over; see below"),
    ("malformed: padding", "", "RFC 7515 section 2 has no padding"),
    ("malformed: an empty part before", "", "Envoy passes over empty parts; RFC 7515 has three parts"),
    ("confusion: HS256 as RS256", "", CONFUSED),
    ("confusion: ES256 as RS256", "", CONFUSED),
    ("confusion: EdDSA as ES256", "", CONFUSED),
    ("confusion: HS256 as EdDSA", "", CONFUSED),
    ("place: header with blanks", "", "Envoy passes over blanks inside base64; RFC 7515 section 2 has none"),
    ("place: parameter among others", "target", "Envoy sorts parameters; we leave them where they are"),
    ("place: all: bad last", "", ONE_IS_ENOUGH),
    ("missing: a, b forged", "", ONE_IS_ENOUGH),
    ("basic-missing: forged name", "x-user: admin", "nobody has vouched for the name that a client gives itself"),
    (
        "keys: allowed client",
        "",
        "a route without forwarding leaves that of the chain, as documented; Envoy forgets it, and sends the key on",
    ),
    ("http.single.", "", COUNTED),
    ("http.open.", "", COUNTED),
    ("http.missing.", "", COUNTED),
    ("http.places.", "", COUNTED),
];

const CONFUSED: &str = "Envoy verifies by the type of the key and forgets the algorithm; we want both to fit";
const ONE_IS_ENOUGH: &str = "with allow_missing, Envoy forgets a bad token when a good one follows; requests with a bad token are to be refused";
const COUNTED: &str = "requests that are judged in another way, as above, are counted in another way";

/// One request.
pub struct Case {
    name: String,
    listener: &'static str,
    method: &'static str,
    target: String,
    headers: Vec<(String, String)>,
}

pub fn case(
    name: impl Into<String>,
    listener: &'static str,
    target: impl Into<String>,
    headers: &[(&str, &str)],
) -> Case {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Case { name: name.into(), listener, method: "GET", target: target.into(), headers }
}

fn bearer(name: impl Into<String>, listener: &'static str, target: &str, token: &str) -> Case {
    case(name, listener, target, &[("authorization", &format!("Bearer {token}"))])
}

/// Claims that the listener `single` takes.
fn good() -> Value {
    json!({ "iss": "https://one", "sub": "user", "aud": "svc", "exp": seconds_from_now(9_000), "scope": "read write" })
}

fn with(changes: Value) -> Value {
    let mut claims = good();
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims
}

fn cases(one: &Issuer, two: &Issuer) -> Vec<Case> {
    let mut all = single_cases(one, two);
    all.extend(malformed_cases(one));
    all.extend(algorithm_cases(one, two));
    all.extend(place_cases(one, two));
    all.extend(claim_cases(one));
    all.extend(limit_cases(one));
    all.extend(rule_cases(one));
    all.extend(group_cases(one, two));
    all
}

fn single_cases(one: &Issuer, two: &Issuer) -> Vec<Case> {
    let of = |name: &str, claims: &Value| bearer(name, "single", "/path?x=1", &one.token("RS256", claims));
    let without = |field: &str| {
        let mut claims = good();
        claims.as_object_mut().expect("an object").remove(field);
        claims
    };
    let token = one.token("RS256", &good());
    let long = format!("/{}", "a".repeat(300));
    vec![
        bearer("valid", "single", "/", &token),
        bearer("valid and known", "single", "/", &token),
        case("missing", "single", "/path?x=1", &[]),
        case("missing: long path", "single", long, &[]),
        case("missing: other scheme", "single", "/", &[("authorization", "Basic abc")]),
        case("missing: lower case", "single", "/", &[("authorization", &format!("bearer {token}"))]),
        case("empty bearer", "single", "/", &[("authorization", "Bearer ")]),
        of("expired", &with(json!({ "exp": seconds_from_now(-3600) }))),
        of("expired within the skew", &with(json!({ "exp": seconds_from_now(-1) }))),
        of("not yet valid", &with(json!({ "nbf": seconds_from_now(36_000) }))),
        of("not yet valid within the skew", &with(json!({ "nbf": seconds_from_now(30) }))),
        of("no exp", &without("exp")),
        of("exp 0", &with(json!({ "exp": 0 }))),
        of("exp with a fraction", &with(json!({ "exp": seconds_from_now(9_000) as f64 + 0.5 }))),
        of("exp is text", &with(json!({ "exp": "soon" }))),
        of("exp is negative", &with(json!({ "exp": -1 }))),
        of("exp is too large", &with(json!({ "exp": 1e30 }))),
        of("exp is null", &with(json!({ "exp": null }))),
        of("nbf is text", &with(json!({ "nbf": "soon" }))),
        of("nbf is negative", &with(json!({ "nbf": -1 }))),
        of("iat is text", &with(json!({ "iat": "soon" }))),
        of("iat is negative", &with(json!({ "iat": -1 }))),
        of("iat in the future", &with(json!({ "iat": seconds_from_now(36_000) }))),
        of("jti is a number", &with(json!({ "jti": 1 }))),
        of("sub is a number", &with(json!({ "sub": 1 }))),
        of("iss is a number", &with(json!({ "iss": 1 }))),
        of("other issuer", &with(json!({ "iss": "https://two" }))),
        of("no issuer", &without("iss")),
        of("other audience", &with(json!({ "aud": "nobody" }))),
        of("no audience", &without("aud")),
        of("several audiences", &with(json!({ "aud": ["nobody", "http://other/"] }))),
        of("audience with a scheme", &with(json!({ "aud": "http://svc" }))),
        of("audience is a number", &with(json!({ "aud": 1 }))),
        of("audiences of several types", &with(json!({ "aud": ["svc", 1] }))),
        bearer("wrong key", "single", "/", &two.token("RS256", &good())),
        bearer("wrong key id", "single", "/", &one.token_with(&json!({ "alg": "RS256", "kid": "none" }), &good())),
        bearer("no key id", "single", "/", &one.token_with(&json!({ "alg": "RS256" }), &good())),
        bearer(
            "key id of another key",
            "single",
            "/",
            &one.token_with(&json!({ "alg": "RS256", "kid": "PS256" }), &good()),
        ),
        bearer(
            "payload of another token",
            "single",
            "/",
            &mixed(&token, &one.token("RS256", &with(json!({ "sub": "admin" })))),
        ),
        case(
            "two good tokens",
            "single",
            format!("/?access_token={token}"),
            &[("authorization", &format!("Bearer {token}"))],
        ),
        case(
            "a good and a bad token",
            "single",
            "/?access_token=a.b.c",
            &[("authorization", &format!("Bearer {token}"))],
        ),
        case(
            "a bad and a good token",
            "single",
            format!("/?access_token={token}"),
            &[("authorization", "Bearer a.b.c")],
        ),
        case(
            "two headers",
            "single",
            "/",
            &[("authorization", &format!("Bearer {token}")), ("authorization", "Bearer a.b.c")],
        ),
        case("parameter", "single", format!("/p?a=1&access_token={token}&z=2"), &[]),
        case("only parameter", "single", format!("/p?access_token={token}"), &[]),
        Case { method: "HEAD", ..case("missing: HEAD", "single", "/", &[]) },
        Case { method: "POST", ..case("missing: gRPC", "single", "/", &[("content-type", "application/grpc")]) },
        Case {
            method: "POST",
            ..case(
                "other audience: gRPC",
                "single",
                "/",
                &[
                    ("content-type", "application/grpc"),
                    ("authorization", &format!("Bearer {}", one.token("RS256", &with(json!({ "aud": "x" }))))),
                ],
            )
        },
        bearer("no keys at all", "empty", "/", &token),
        case("no keys and no token", "empty", "/", &[]),
    ]
}

/// The header and payload of one token with the signature of another.
fn mixed(signature: &str, rest: &str) -> String {
    let signature = signature.rsplit('.').next().expect("a signature");
    let (rest, _) = rest.rsplit_once('.').expect("a signature");
    format!("{rest}.{signature}")
}

fn malformed_cases(one: &Issuer) -> Vec<Case> {
    let token = one.token("RS256", &good());
    let parts: Vec<&str> = token.split('.').collect();
    let header = |text: &str| one.signed("RS256", text, &good().to_string());
    let payload = |text: &str| one.signed("RS256", r#"{"alg":"RS256","kid":"RS256"}"#, text);
    let raw = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut all = Vec::new();
    for (name, token) in [
        ("one part", "abc".to_owned()),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{token}.abc")),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("header is no base64", format!("!!!.{}.{}", parts[1], parts[2])),
        ("header is of standard base64", format!("{}.{}.{}", "+/+/", parts[1], parts[2])),
        ("header is no JSON", header("{")),
        ("header is a list", header("[]")),
        ("header has more behind", header(r#"{"alg":"RS256"} x"#)),
        ("no algorithm", header("{}")),
        ("algorithm is a number", header(r#"{"alg":1}"#)),
        ("algorithm is unknown", header(r#"{"alg":"RS1024"}"#)),
        ("algorithm in lower case", header(r#"{"alg":"rs256"}"#)),
        ("none", header(r#"{"alg":"none"}"#)),
        ("none without a signature", format!("{}.{}.", raw(br#"{"alg":"none"}"#), parts[1])),
        ("None", header(r#"{"alg":"None"}"#)),
        ("key id is a number", header(r#"{"alg":"RS256","kid":1}"#)),
        ("critical extensions", header(r#"{"alg":"RS256","crit":["x"],"x":1}"#)),
        ("payload is no JSON", payload("{")),
        ("payload is text", payload("\"x\"")),
        ("payload is empty JSON", payload("{}")),
        ("payload is not UTF-8", format!("{}.{}.{}", parts[0], raw(b"{\"iss\":\"\xff\"}"), parts[2])),
        ("payload is no base64", format!("{}.a!b.{}", parts[0], parts[2])),
        ("signature is no base64", format!("{}.{}.a!b", parts[0], parts[1])),
        ("signature is short", format!("{}.{}.AAAA", parts[0], parts[1])),
        ("signature is of standard base64", format!("{}.{}.{}", parts[0], parts[1], STANDARD.encode([255; 12]))),
        ("a name twice", payload(&good().to_string().replacen('{', r#"{"iss":"https://two","#, 1))),
        ("padding", format!("{}.{}.{}", URL_SAFE.encode(r#"{"alg":"RS256" }"#), parts[1], parts[2])),
        ("an empty part before", format!(".{token}")),
        ("blanks around", format!(" {token} ")),
    ] {
        all.push(bearer(format!("malformed: {name}"), "single", "/", &token));
    }
    all
}

fn algorithm_cases(one: &Issuer, two: &Issuer) -> Vec<Case> {
    let mut all = Vec::new();
    for algorithm in ALGORITHMS {
        all.push(bearer(format!("algorithm: {algorithm}"), "open", "/", &one.token(algorithm, &good())));
        all.push(bearer(format!("algorithm: {algorithm} of another key"), "open", "/", &two.token(algorithm, &good())));
        let without_id = one.token_with(&json!({ "alg": algorithm }), &good());
        all.push(bearer(format!("algorithm: {algorithm} without a key id"), "open", "/", &without_id));
        all.push(bearer(format!("odd keys: {algorithm}"), "keys", "/", &without_id));
    }
    // A token that claims to be symmetric, signed with what is published of an RSA key.
    let public = one.key("RS256", "RS256").to_string();
    let confused = |secret: Vec<u8>| {
        let mut forger = Issuer::new();
        forger.secret = secret;
        forger.token_with(&json!({ "alg": "HS256", "kid": "RS256" }), &good())
    };
    all.push(bearer("confusion: public key as a secret", "open", "/", &confused(public.into_bytes())));
    let modulus = one.key("RS256", "")["n"].as_str().map(|text| URL_SAFE_NO_PAD.decode(text).expect("base64"));
    all.push(bearer("confusion: modulus as a secret", "open", "/", &confused(modulus.expect("a modulus"))));
    let swapped = |signed_by: &str, claimed: &str, key_id: &str| {
        one.signed(signed_by, &json!({ "alg": claimed, "kid": key_id }).to_string(), &good().to_string())
    };
    for (signed_by, claimed, key_id) in [
        ("HS256", "RS256", "HS256"),
        ("ES256", "RS256", "ES256"),
        ("ES256", "ES384", "ES256"),
        ("RS256", "PS256", "RS256"),
        ("RS256", "RS512", "RS256"),
        ("EdDSA", "ES256", "EdDSA"),
        ("HS256", "EdDSA", "HS256"),
        ("PS256", "PS256", "RS512"),
    ] {
        let name = format!("confusion: {signed_by} as {claimed}");
        all.push(bearer(name, "open", "/", &swapped(signed_by, claimed, key_id)));
    }
    all
}

fn place_cases(one: &Issuer, two: &Issuer) -> Vec<Case> {
    let token = one.token("ES256", &good());
    let other = one.token("ES256", &with(json!({ "iss": "https://two" })));
    let forged = two.token("ES256", &good());
    let escaped = token.replace('.', "%2E");
    let of =
        |name: &str, target: &str, headers: &[(&str, &str)]| case(format!("place: {name}"), "places", target, headers);
    vec![
        of("header", "/", &[("x-jwt", &token)]),
        of("default header", "/", &[("authorization", &format!("Bearer {token}"))]),
        of("own prefix", "/", &[("authorization", &format!("Token {token}"))]),
        of("prefix", "/", &[("x-pre", &format!("jwt_value={token}"))]),
        of("prefix in JSON", "/", &[("x-pre", &format!("{{\"jwt_value\": \"{token}\"}}"))]),
        of("prefix and more", "/", &[("x-pre", &format!("beta:true,jwt_value:\"{token}\",trace=1234"))]),
        of("prefix alone", "/", &[("x-pre", "jwt_value")]),
        of("other prefix", "/", &[("x-pre", &format!("JWT_value={token}"))]),
        of("header with blanks", "/", &[("x-jwt", &format!("x {token}"))]),
        of("parameter", &format!("/x?tok={token}"), &[]),
        of("parameter among others", &format!("/x?b=1&tok={token}&a=2"), &[]),
        of("parameter with escapes", &format!("/x?tok={escaped}"), &[]),
        of("parameter with an escaped name", &format!("/x?%74ok={token}"), &[]),
        of("empty parameter", "/x?tok=", &[]),
        of("parameter twice", &format!("/x?tok={token}&tok=a.b.c"), &[]),
        of("two parameters", &format!("/x?tok={token}&other={token}"), &[]),
        of("cookie", "/", &[("cookie", &format!("a=b; ck={token}; c=d"))]),
        of("quoted cookie", "/", &[("cookie", &format!("ck=\"{token}\""))]),
        of("forged cookie", "/", &[("cookie", &format!("ck={forged}"))]),
        of("cookie of a similar name", "/", &[("cookie", &format!("xck={token}"))]),
        of("header and forged cookie", "/", &[("x-jwt", &token), ("cookie", &format!("ck={forged}"))]),
        of("place of another provider", "/", &[("x-two", &other)]),
        of("all: none", "/all", &[]),
        of("all: place of another provider", "/all", &[("x-two", &other)]),
        of("all: wrong issuer in a place", "/all", &[("x-two", &token)]),
        of("all: two providers", "/all", &[("x-two", &other), ("x-jwt", &token)]),
        of("all: bad first", "/all", &[("x-two", &other), ("x-jwt", &forged)]),
        of("all: bad last", "/all", &[("x-two", "a.b.c"), ("x-jwt", &token)]),
    ]
}

fn claim_cases(one: &Issuer) -> Vec<Case> {
    let rich = with(json!({
        "nested": { "deep": { "key": "value" } }, "http://a.b/c": { "d": "dotted" }, "number": 42, "fraction": 1.5,
        "negative": -7, "flag": true, "list": ["a"], "object": { "k": 1 }, "null": null, "big": 1e19,
        "scope": "read  write ", "text": "žluť",
    }));
    let of =
        |name: &str, target: &str, headers: &[(&str, &str)]| case(format!("claims: {name}"), "claims", target, headers);
    let authorization = |claims: &Value| format!("Bearer {}", one.token("EdDSA", claims));
    let (rich, plain) = (authorization(&rich), authorization(&good()));
    let admin = authorization(&with(json!({ "sub": "admin" })));
    let forged = [("x-sub", "admin"), ("x-payload", "forged"), ("x-nested", "forged")];
    let mut smuggled = forged.to_vec();
    smuggled.push(("authorization", &plain));
    vec![
        of("rich", "/", &[("authorization", &rich)]),
        of("plain", "/", &[("authorization", &plain)]),
        of("route by a claim", "/", &[("authorization", &admin)]),
        of("smuggled headers", "/", &smuggled),
        of("smuggled without a token", "/", &forged),
        of("smuggled past a rule", "/pass", &forged),
        of("smuggled past the route", "/off", &forged),
        of("smuggled past a loose rule", "/loose", &forged),
        of("smuggled with a bad token", "/loose", &[("x-sub", "admin"), ("authorization", "Bearer a.b.c")]),
        of("empty claim", "/", &[("authorization", &authorization(&with(json!({ "sub": "" }))))]),
        of("claim with blanks", "/", &[("authorization", &authorization(&with(json!({ "sub": "a b" }))))]),
        of("claim beyond ASCII", "/", &[("authorization", &authorization(&with(json!({ "sub": "žluť" }))))]),
        Case {
            method: "OPTIONS",
            ..of(
                "preflight",
                "/",
                &[("origin", "http://o"), ("access-control-request-method", "GET"), ("x-sub", "admin")],
            )
        },
        Case { method: "OPTIONS", ..of("no preflight", "/", &[("origin", "http://o")]) },
    ]
}

fn limit_cases(one: &Issuer) -> Vec<Case> {
    let of = |name: &str, target: &str, changes: Value| {
        bearer(format!("limits: {name}"), "limits", target, &one.token("PS256", &with(changes)))
    };
    vec![
        of("ending", "/ending", json!({})),
        of("not ending", "/ending", json!({ "exp": 0 })),
        of("beyond its own skew", "/ending", json!({ "exp": seconds_from_now(-30_000) })),
        of("within its own skew", "/ending", json!({ "exp": seconds_from_now(-300) })),
        of("short enough", "/short", json!({ "exp": seconds_from_now(5_000) })),
        of("too long", "/short", json!({ "exp": seconds_from_now(20_000) })),
        of("without an end", "/short", json!({ "exp": 0 })),
        of("subject", "/subject", json!({ "sub": "spiffe://x/y" })),
        of("other subject", "/subject", json!({ "sub": "spiffe://y/y" })),
        case("limits: missing", "limits", "/ending", &[]),
        case("limits: no rule", "limits", "/none", &[]),
    ]
}

fn rule_cases(one: &Issuer) -> Vec<Case> {
    let token = one.token("ES384", &with(json!({ "aud": "plain" })));
    let special = one.token("ES384", &with(json!({ "aud": "special" })));
    let of =
        |name: &str, target: &str, headers: &[(&str, &str)]| case(format!("rules: {name}"), "rules", target, headers);
    let mut all = vec![
        of("exact", "/exact", &[]),
        of("exact with a query", "/exact?x", &[]),
        of("not exact", "/exact/x", &[]),
        of("prefix", "/prefix/x", &[]),
        of("regex", "/re/12", &[]),
        of("regex with a query", "/re/12?x", &[]),
        of("regex with more", "/re/12/x", &[]),
        of("separated prefix", "/sep/x", &[]),
        of("separated prefix with more", "/separate", &[]),
        of("headers", "/headers?q=v", &[("x-need", "yes")]),
        of("headers without the query", "/headers", &[("x-need", "yes")]),
        of("headers without the header", "/headers?q=v", &[]),
        of("named", "/named", &[]),
        of("nothing", "/nothing", &[]),
        of("no rule", "/", &[]),
        of("state: strict", "/", &[("x-select", "strict")]),
        of("state: loose", "/", &[("x-select", "loose")]),
        of("state: unknown", "/", &[("x-select", "unknown")]),
        of("rules before the state", "/nothing", &[("x-select", "strict")]),
        of("route: off", "/route-off", &[]),
        of("route: named", "/route-named", &[]),
        of("route: wrong", "/route-wrong", &[]),
    ];
    for (target, token) in [
        ("/named", &token),
        ("/named", &special),
        ("/audiences", &token),
        ("/audiences", &special),
        ("/route-named", &token),
        ("/route-named", &special),
        ("/route-wrong", &special),
    ] {
        let audience = if std::ptr::eq(token, &special) { "special" } else { "plain" };
        all.push(bearer(format!("rules: {target} for {audience}"), "rules", target, token));
    }
    all
}

fn group_cases(one: &Issuer, two: &Issuer) -> Vec<Case> {
    let of_one = |sub: &str| one.token("RS512", &with(json!({ "sub": sub })));
    let of_two = |sub: &str| two.token("RS512", &with(json!({ "iss": "https://two", "sub": sub })));
    let (a, b) = (format!("Bearer {}", of_one("a")), of_two("b"));
    let expired = format!("Bearer {}", one.token("RS512", &with(json!({ "exp": 1 }))));
    let forged = one.token("RS512", &with(json!({ "iss": "https://two" })));
    let stranger = format!("Bearer {}", one.token("RS512", &with(json!({ "iss": "https://three" }))));
    let b_as_a = format!("Bearer {b}");
    let requests: [(&str, Vec<(&str, &str)>); 11] = [
        ("none", vec![("x-a", "smuggled")]),
        ("a", vec![("authorization", &a)]),
        ("b", vec![("x-b", &b)]),
        ("both", vec![("authorization", &a), ("x-b", &b)]),
        ("a expired", vec![("authorization", &expired)]),
        ("a expired, b", vec![("authorization", &expired), ("x-b", &b)]),
        ("a, b forged", vec![("authorization", &a), ("x-b", &forged)]),
        ("stranger", vec![("authorization", &stranger)]),
        ("stranger, b", vec![("authorization", &stranger), ("x-b", &b)]),
        ("b in the place of a", vec![("authorization", &b_as_a)]),
        ("a malformed, b forged", vec![("authorization", "Bearer x"), ("x-b", &forged)]),
    ];
    let listeners =
        ["any", "all", "missing", "failed", "any-missing", "any-failed", "any-bypass", "a-and-maybe-b", "mesh"];
    let mut all = Vec::new();
    for listener in listeners {
        for (name, headers) in &requests {
            all.push(case(format!("{listener}: {name}"), listener, "/", headers));
        }
    }
    all
}

/// One proxy of the two that are compared.
struct Side {
    proxy: Proxy,
    listeners: BTreeMap<&'static str, SocketAddr>,
    logged: BTreeMap<&'static str, usize>,
}

impl Side {
    async fn start(program: PathBuf, bootstrap: &str, setups: &[Setup]) -> Self {
        let proxy = Proxy::start_with(bootstrap, Settings { program, ..Settings::default() }).await;
        let mut listeners = BTreeMap::new();
        for setup in setups {
            listeners.insert(setup.name, proxy.listener(setup.name).await);
        }
        Self { proxy, listeners, logged: BTreeMap::new() }
    }

    /// Everything observable of one case, as lines that can be compared.
    async fn observe(&mut self, case: &Case) -> Vec<String> {
        let address = self.listeners[case.listener];
        let mut seen = Vec::new();
        let headers: Vec<(&str, &str)> = case.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let is_grpc = case.headers.iter().any(|(name, _)| name == "content-type");
        if !is_grpc {
            let request = h1::Client::connect(address).await;
            let response = { request }.request(case.method, &case.target, &headers, b"").await;
            describe("h1", &response, &mut seen);
            seen.push(format!("h1: logged {}", self.last_line(case.listener).await));
        }
        let client = h2c::Client::connect(address).await.authority("example.com");
        match client.try_request(case.method, &case.target, &headers, b"", &[]).await {
            Ok(response) => describe("h2", &response, &mut seen),
            Err(error) => seen.push(format!("h2: no response: {error}")),
        }
        seen.push(format!("h2: logged {}", self.last_line(case.listener).await));
        seen
    }

    async fn last_line(&mut self, listener: &'static str) -> String {
        let count = self.logged.entry(listener).or_default();
        *count += 1;
        self.proxy.lines(&format!("{listener}.log"), *count).await.pop().unwrap_or_default()
    }

    /// Counters that are not 0, by prefix.
    async fn stats(&self, prefix: &str) -> Vec<String> {
        let page = self.proxy.admin("/stats").await.text();
        let lines =
            page.lines().filter(|line| line.starts_with(prefix) && (line.contains("jwt") || line.contains("_auth.")));
        lines.filter(|line| !line.ends_with(": 0")).map(str::to_owned).collect()
    }
}

fn describe(how: &str, response: &Response, seen: &mut Vec<String>) {
    seen.push(format!("{how}: status {}", response.status));
    for (name, value) in &response.headers {
        seen.push(format!("{how}: header {name}: {}", steady(name, value)));
    }
    match serde_json::from_slice::<Value>(&response.body) {
        Ok(report) if report["upstream"].is_string() => {
            for field in ["upstream", "method", "target"] {
                seen.push(format!("{how}: upstream sees {field} {}", report[field]));
            }
            for pair in report["headers"].as_array().into_iter().flatten() {
                let (name, value) = (pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
                seen.push(format!("{how}: upstream sees header {name}: {}", steady(name, value)));
            }
        }
        _ => seen.push(format!("{how}: body {:?}", response.text())),
    }
    seen.sort();
}

/// A header value without what differs between any two runs.
fn steady(name: &str, value: &str) -> String {
    match name {
        "date" => "<date>".to_owned(),
        "x-request-id" if value.len() == 36 => "<uuid>".to_owned(),
        "x-envoy-upstream-service-time" => "<ms>".to_owned(),
        "content-length" if value.len() > 2 => "<length>".to_owned(),
        _ => value.to_owned(),
    }
}

#[tokio::test]
async fn tokens_are_judged_as_envoy_does() {
    let (one, two) = (Issuer::new(), Issuer::new());
    compare_all(&chains::all(&one, &two), || cases(&one, &two)).await;
}

#[tokio::test]
async fn passwords_and_keys_are_judged_as_envoy_does() {
    compare_all(&credentials::chains(), credentials::cases).await;
}

/// Cases are made when both are ready: tokens have times in them.
async fn compare_all(setups: &[Setup], cases: impl Fn() -> Vec<Case>) {
    let (first, second) = (Upstream::start("one").await, Upstream::start("two").await);
    let listeners: Vec<String> = setups.iter().map(Setup::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[first.port()]), cluster("two", &[second.port()])]);
    let mut subject = Side::start(proxy::program(), &bootstrap, setups).await;
    let mut envoy = Side::start(proxy::envoy(), &bootstrap, setups).await;
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let mut report = String::new();
    for case in cases().iter().filter(|case| case.name.contains(&only)) {
        compare(&mut report, INTENDED, &case.name, envoy.observe(case).await, subject.observe(case).await);
    }
    for setup in setups {
        let prefix = format!("http.{}.", setup.name);
        let look = async || (envoy.stats(&prefix).await, subject.stats(&prefix).await);
        compare_settled(&mut report, INTENDED, &prefix, look).await;
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
}
