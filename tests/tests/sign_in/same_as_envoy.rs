//! What browsers, upstreams, the authorization server, logs and stats see must be the same as with Envoy, except for the
//! differences listed in [`INTENDED`].

use std::path::PathBuf;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use outrigger_tests::authorization_server::Asked;
use outrigger_tests::side_by_side::{Intended, assert_same};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{AuthorizationServer, Proxy, Settings, Upstream, proxy};
use serde_json::Value;

use crate::browser::{Browser, shown};
use crate::chains::{self, LISTENERS};

const INTENDED: Intended = &[];

/// Everything that one proxy is compared by.
struct Side {
    proxy: Proxy,
    server: AuthorizationServer,
    _app: Upstream,
    seen: Vec<(String, Vec<String>)>,
}

impl Side {
    async fn start(program: PathBuf, runtime: &str) -> Self {
        let (app, server, closed) =
            (Upstream::start("app").await, AuthorizationServer::start().await, ClosedPort::take());
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1().unwrap();
        let key = STANDARD.encode(key.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
        let bootstrap = chains::configuration(&app, &server, &closed, &pem, runtime);
        let proxy = Proxy::start_with(&bootstrap, Settings { program, ..Settings::default() }).await;
        Self { proxy, server, _app: app, seen: Vec::new() }
    }

    /// One request, and what it led to.
    async fn get(&mut self, browser: &mut Browser, step: &str, listener: &str, target: &str, headers: &[(&str, &str)]) {
        let address = self.proxy.listener(listener).await;
        let challenge = browser.parameter("code_challenge");
        let mut seen = shown(&browser.get(address, target, headers).await);
        for asked in self.server.take_asked() {
            let fits = Browser::challenge_fits(&challenge, &asked);
            seen.push(format!("server is asked by one who was sent: {fits}"));
            seen.extend(told(&asked));
        }
        self.seen.push((format!("{listener}: {step}"), seen));
    }

    /// Sends a browser to sign in, and back with a code.
    async fn sign_in(&mut self, browser: &mut Browser, step: &str, listener: &str, code: &str) {
        self.get(browser, &format!("{step}: sent"), listener, "/page?x=1", &[]).await;
        let back = browser.callback(code);
        self.get(browser, &format!("{step}: back"), listener, &back, &[]).await;
    }
}

/// What the server was told, without what is new each time.
fn told(asked: &Asked) -> Vec<String> {
    let Asked { target, host, authorization, form } = asked;
    let mut told = vec![format!("server is asked at {host}{target} by {authorization:?}")];
    for (name, value) in form {
        let value = match name.as_str() {
            "code_verifier" => format!("<{} of verifier>", value.len()),
            "client_assertion" => statement(value),
            _ => value.clone(),
        };
        told.push(format!("server is told {name}={value}"));
    }
    told
}

/// Header and claims of a statement, the times as distances.
fn statement(text: &str) -> String {
    let part = |index: usize| -> Value {
        let part = text.split('.').nth(index).unwrap_or_default();
        URL_SAFE_NO_PAD.decode(part).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    };
    let (header, claims) = (part(0), part(1));
    let distance = |name: &str| claims[name].as_i64().unwrap_or(0) - claims["iat"].as_i64().unwrap_or(0);
    let names: Vec<_> = claims.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    format!(
        "{} {} {} of {} for {}: {names:?} {} {}",
        header["alg"],
        header["typ"],
        header["kid"],
        claims["iss"],
        claims["aud"],
        distance("exp"),
        distance("nbf")
    )
}

/// A line of the log up to what Envoy tells of codes, states, cookies and answers, which we keep out of it.
fn without_secrets(line: &str) -> &str {
    let marks = [",_response_body", ":_response_body", "code=", "state=", ":_nonsense"];
    let end = marks.iter().filter_map(|mark| line.find(mark)).min();
    &line[..end.unwrap_or(line.len())]
}

async fn whole_ways(side: &mut Side) {
    for listener in ["plain", "dressed", "open", "basic", "certificate", "asserted", "routed", "patient"] {
        let mut browser = Browser::default();
        side.sign_in(&mut browser, "signs in", listener, "ok").await;
        side.get(&mut browser, "is signed in", listener, "/page?x=1", &[("authorization", "Bearer own")]).await;
        side.get(&mut browser, "forges", listener, "/", &[("x-id", "admin"), ("x-envoy-oauth-status", "x")]).await;
        let mut other = browser.clone();
        let end = other.cookies.keys().find(|name| ["OauthExpires", "End"].contains(&name.as_str())).cloned();
        other.cookies.insert(end.unwrap_or_default(), "99999999999".to_owned());
        other.cookies.retain(|name, _| name != "RefreshToken" && name != "Again");
        side.get(&mut other, "would stay longer", listener, "/", &[]).await;
        // Without what vouches for it, only the refresh token is of use.
        browser.cookies.retain(|name, _| name != "OauthHMAC" && name != "Proof");
        side.get(&mut browser, "is renewed", listener, "/again", &[]).await;
        side.get(&mut browser, "was renewed", listener, "/page", &[]).await;
        side.get(&mut browser, "signs out", listener, "/signout?x", &[]).await;
        side.get(&mut browser, "is signed out", listener, "/page", &[]).await;
    }
}

async fn answers_of_the_server(side: &mut Side) {
    for code in ["status-500", "status-403", "malformed", "no-token", "no-expiry", "alone", "once-503", "a%20b%2Bc"] {
        for listener in ["plain", "open", "patient"] {
            let mut browser = Browser::default();
            side.sign_in(&mut browser, code, listener, code).await;
            side.get(&mut browser, &format!("{code}: afterwards"), listener, "/", &[]).await;
        }
    }
    // A server that fails once is asked again.
    let mut browser = Browser::default();
    side.sign_in(&mut browser, "retried", "patient", "once-503.retried").await;
    for listener in ["dead", "unknown"] {
        let mut browser = Browser::default();
        side.sign_in(&mut browser, "nobody answers", listener, "ok").await;
        browser.cookies.insert("RefreshToken".to_owned(), "refresh.ok".to_owned());
        side.get(&mut browser, "nobody renews", listener, "/page", &[]).await;
        side.get(&mut browser, "nobody renews, ajax", listener, "/page", &[("x-ajax", "yes")]).await;
        side.get(&mut browser, "nobody renews, anybody", listener, "/page", &[("x-anybody", "")]).await;
    }
    for code in ["status-400", "malformed", "no-token", "alone"] {
        let mut browser = Browser::default();
        browser.cookies.insert("RefreshToken".to_owned(), format!("refresh.{code}"));
        for (who, headers) in [("", &[][..]), (", ajax", &[("x-ajax", "yes")]), (", anybody", &[("x-anybody", "")])] {
            let mut browser = browser.clone();
            side.get(&mut browser, &format!("renewal {code}{who}"), "matched", "/page", headers).await;
        }
    }
}

async fn forged_ways(side: &mut Side) {
    type Way = (&'static str, fn(&mut Browser) -> String);
    let ways: [Way; 13] = [
        ("an error", |browser| format!("/callback?error=denied&state={}", browser.parameter("state"))),
        ("an error without a state", |_| "/callback?error=denied&a=b".to_owned()),
        ("no code", |browser| format!("/callback?state={}", browser.parameter("state"))),
        ("no state", |_| "/callback?code=ok".to_owned()),
        ("nothing", |_| "/callback".to_owned()),
        ("no JSON", |_| format!("/callback?code=ok&state={}", URL_SAFE_NO_PAD.encode("x"))),
        ("half a state", |_| format!("/callback?code=ok&state={}", URL_SAFE_NO_PAD.encode("{\"url\":\"http://a\"}"))),
        ("no cookies", |browser| {
            browser.cookies.clear();
            browser.callback("ok")
        }),
        ("the nonce of another", |browser| {
            browser.cookies.retain(|name, _| !name.starts_with("OauthNonce"));
            browser.cookies.insert("OauthNonce".to_owned(), "a.b".to_owned());
            browser.callback("ok")
        }),
        ("a nonce without our signature", |_| {
            let state = "{\"url\":\"https://app.example.com/\",\"csrf_token\":\"a.b\",\"flow_id\":\"\"}";
            format!("/callback?code=ok&state={}", URL_SAFE_NO_PAD.encode(state))
        }),
        ("no verifier", |browser| {
            browser.cookies.retain(|name, _| !name.starts_with("CodeVerifier"));
            browser.callback("ok")
        }),
        ("another verifier", |browser| {
            browser.cookies.retain(|name, _| !name.starts_with("CodeVerifier"));
            browser.cookies.insert("CodeVerifier".to_owned(), "nonsense".to_owned());
            browser.callback("ok")
        }),
        ("only cookies of older versions", |browser| {
            browser.cookies.retain(|name, _| !name.contains('.'));
            browser.callback("ok")
        }),
    ];
    for (step, forge) in ways {
        let mut browser = Browser::default();
        side.get(&mut browser, &format!("{step}: sent"), "plain", "/page", &[]).await;
        let target = forge(&mut browser);
        side.get(&mut browser, step, "plain", &target, &[]).await;
    }
}

async fn matchers_and_bounds(side: &mut Side) {
    let mut nobody = Browser::default();
    for (step, target, headers) in [
        ("passes", "/page", &[("x-pass", "1"), ("authorization", "own")][..]),
        ("passes at the callback", "/callback", &[("x-pass", "1")]),
        ("ajax", "/page", &[("x-ajax", "yes")]),
        ("anybody", "/page", &[("x-anybody", ""), ("authorization", "own")]),
        ("anybody at the callback", "/callback", &[("x-anybody", "")]),
        ("anybody by ajax", "/page", &[("x-anybody", ""), ("x-ajax", "yes")]),
    ] {
        side.get(&mut nobody.clone(), step, "matched", target, headers).await;
    }
    let mut stale = Browser::default();
    for (name, value) in
        [("BearerToken", "a"), ("IdToken", "b"), ("OauthHMAC", "c"), ("OauthExpires", "1"), ("mine", "d")]
    {
        stale.cookies.insert(name.to_owned(), value.to_owned());
    }
    side.get(&mut stale, "anybody with stale cookies", "matched", "/page", &[("x-anybody", "")]).await;
    for host in
        ["app.example.com", "other.org", "evil.com", "example.com", "app.example.com:8443", "other.org@evil.com"]
    {
        let headers = [("x-forwarded-host", host)];
        side.get(&mut nobody, &format!("to {host}"), "bounded", "/page", &headers).await;
    }
    let mut browser = Browser::default();
    side.sign_in(&mut browser, "within bounds", "bounded", "ok").await;
    side.get(&mut browser, "signs out", "bounded", "/signout", &[]).await;
    // Two pages at once: the second one comes back when the first has signed in.
    let mut browser = Browser::default();
    side.get(&mut browser, "race: first", "plain", "/one", &[]).await;
    let first = browser.callback("ok");
    side.get(&mut browser, "race: second", "plain", "/two", &[]).await;
    let second = browser.callback("ok");
    side.get(&mut browser, "race: first is back", "plain", &first, &[]).await;
    side.get(&mut browser, "race: second is back", "plain", &second, &[]).await;
    let mut browser = Browser::default();
    side.sign_in(&mut browser, "loop", "plain", "ok").await;
    side.get(&mut browser, "at the callback", "plain", "/callback?x", &[]).await;
}

async fn observed(program: PathBuf, runtime: &str) -> Vec<(String, Vec<String>)> {
    let mut side = Side::start(program, runtime).await;
    whole_ways(&mut side).await;
    answers_of_the_server(&mut side).await;
    forged_ways(&mut side).await;
    matchers_and_bounds(&mut side).await;
    for listener in LISTENERS {
        let count = side.seen.iter().filter(|(step, _)| step.starts_with(&format!("{listener}: "))).count();
        let lines = side.proxy.lines(&format!("{listener}.log"), count).await;
        let steps: Vec<_> = side.seen.iter().map(|(step, _)| step.clone()).collect();
        let steps = steps.iter().filter(|step| step.starts_with(&format!("{listener}: ")));
        let lines = steps.zip(lines).map(|(step, line)| format!("{step} logged {}", without_secrets(&line))).collect();
        side.seen.push((format!("log of {listener}"), lines));
    }
    let page = side.proxy.admin("/stats").await.text();
    let lines = page.lines().filter(|line| line.contains("oauth_") && !line.ends_with(": 0"));
    side.seen.push(("stats".to_owned(), lines.map(str::to_owned).collect()));
    side.seen
}

async fn same(runtime: &str) {
    let expected = observed(proxy::envoy(), runtime).await;
    let seen = observed(proxy::program(), runtime).await;
    assert_same(INTENDED, expected, seen);
}

#[tokio::test]
async fn users_sign_in_as_with_envoy() {
    same("").await;
}

#[tokio::test]
async fn users_sign_in_as_with_envoy_by_gcm() {
    let flags = "envoy.reloadable_features.oauth2_use_gcm_encryption: true, \
                 envoy.reloadable_features.oauth2_legacy_cbc_decrypt_compat: false";
    same(&format!("\nlayered_runtime: {{ layers: [{{ name: flags, static_layer: {{ {flags} }} }}] }}")).await;
}
