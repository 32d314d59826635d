use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_config::http::filters::{
    ClaimHeader, HeaderLocation, JwksSource, JwtAuthn, JwtProvider, JwtRequirement, Lifetime,
};
use outrigger_config::jwks::{Algorithm, Jwks};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::samples::{SECRET, keys, token, token_of};
use super::*;
use crate::route::RequestView;

#[derive(Clone, Default)]
struct Request {
    path: String,
    headers: Vec<(String, String)>,
}

impl RequestView for Request {
    fn host(&self) -> &str {
        "host"
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn method(&self) -> &str {
        "GET"
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_bytes())
    }

    fn is_grpc(&self) -> bool {
        false
    }
}

fn request(token: &str) -> Request {
    let headers = vec![("authorization".into(), format!("Bearer {token}")), ("x-sub".into(), "forged".into())];
    Request { path: "/".into(), headers }
}

fn provider(name: &str, issuer: &str) -> JwtProvider {
    JwtProvider {
        name: name.into(),
        issuer: issuer.into(),
        audiences: Vec::new(),
        subjects: None,
        lifetime: Lifetime::Any,
        jwks: JwksSource::Local(Arc::default()),
        forward: false,
        from_headers: vec![HeaderLocation { name: "authorization".into(), value_prefix: "Bearer ".into() }],
        from_params: vec!["access_token".into()],
        from_cookies: Vec::new(),
        forward_payload_header: None,
        pad_forward_payload_header: false,
        payload_in_metadata: Some("payload".into()),
        space_delimited_claims: Vec::new(),
        header_in_metadata: None,
        failed_status_in_metadata: Some("failed".into()),
        clock_skew_s: 60,
        cache: None,
        claim_headers: vec![ClaimHeader { header: "x-sub".into(), path: vec!["sub".into()] }],
        clear_route_cache: true,
    }
}

fn authenticator(providers: Vec<JwtProvider>) -> JwtAuthenticator {
    JwtAuthenticator::new(Arc::new(JwtAuthn {
        providers: providers.into_iter().map(Arc::new).collect(),
        rules: Vec::new(),
        by_filter_state: None,
        by_name: BTreeMap::new(),
        bypass_cors_preflight: false,
        strip_failure_response: false,
        stat_prefix: String::new(),
        reserved_headers: vec!["x-sub".into()],
    }))
}

const NOW_S: u64 = 1_000_000;

struct World {
    keys: Vec<Keys>,
    remembered: Vec<(Vec<u8>, Rc<Token>)>,
}

impl World {
    fn of(keys: Vec<Keys>) -> Self {
        Self { keys, remembered: Vec::new() }
    }

    fn ready() -> Self {
        Self::of(vec![Keys::Ready(Arc::new(keys())); 3])
    }
}

impl Surroundings for World {
    fn now_s(&self) -> u64 {
        NOW_S
    }

    fn keys(&mut self, provider: usize) -> Keys {
        self.keys[provider].clone()
    }

    fn recall(&mut self, _provider: usize, text: &[u8]) -> Option<Rc<Token>> {
        self.remembered.iter().find(|(known, _)| known == text).map(|(_, token)| Rc::clone(token))
    }

    fn remember(&mut self, _provider: usize, text: &[u8], token: Rc<Token>, _keys: &Arc<Jwks>) {
        self.remembered.push((text.to_vec(), token));
    }
}

const FIRST: JwtRequirement = JwtRequirement::Provider { provider: 0, audiences: None };
const SECOND: JwtRequirement = JwtRequirement::Provider { provider: 1, audiences: None };

#[test]
fn a_valid_token_changes_the_request_and_goes() {
    let authenticator = authenticator(vec![provider("p", "")]);
    let claims = json!({ "sub": "user", "exp": NOW_S + 1 });
    let judged = authenticator.judge(&FIRST, &request(&token(&claims)), &mut World::ready());
    assert_eq!(judged.outcome, Outcome::Allowed);
    assert_eq!(
        judged.changes.headers,
        [("x-sub".into(), vec![b"user".to_vec()]), ("authorization".into(), Vec::new())]
    );
    assert_eq!(Value::Object(judged.metadata), json!({ "payload": claims }));
    assert!(judged.reroute);
}

#[test]
fn a_refused_token_says_why() {
    let authenticator = authenticator(vec![provider("p", "")]);
    let judged = authenticator.judge(&FIRST, &request(&token(&json!({ "exp": 1 }))), &mut World::ready());
    assert_eq!(judged.outcome, Outcome::Denied(JwtFailure::Expired));
    assert_eq!(Value::Object(judged.metadata), json!({ "failed": { "code": 3, "message": "Jwt is expired" } }));
    assert_eq!(judged.changes.headers, [("x-sub".into(), Vec::new())]);
}

#[test]
fn nothing_is_done_before_keys_are_there() {
    let authenticator = authenticator(vec![provider("p", ""), provider("q", "")]);
    let request = request(&token(&json!({})));
    let judge =
        |requirement: &JwtRequirement, keys| authenticator.judge(requirement, &request, &mut World::of(keys)).outcome;
    let ready = || Keys::Ready(Arc::new(keys()));
    assert_eq!(judge(&FIRST, vec![Keys::Wanted]), Outcome::Waiting(vec![0]));
    assert_eq!(judge(&FIRST, vec![Keys::Failed]), Outcome::Denied(JwtFailure::Fetch));
    assert_eq!(judge(&FIRST, vec![Keys::None]), Outcome::Denied(JwtFailure::NoKeys));
    let any = JwtRequirement::Any(vec![FIRST, SECOND]);
    // One that is satisfied need not wait for the other.
    assert_eq!(judge(&any, vec![Keys::Wanted, ready()]), Outcome::Allowed);
    assert_eq!(judge(&any, vec![Keys::Wanted, Keys::Failed]), Outcome::Waiting(vec![0]));
    assert_eq!(judge(&any, vec![Keys::Wanted, Keys::Wanted]), Outcome::Waiting(vec![0, 1]));
    let all = JwtRequirement::All(vec![FIRST, SECOND]);
    assert_eq!(judge(&all, vec![Keys::Wanted, Keys::Failed]), Outcome::Denied(JwtFailure::Fetch));
    assert_eq!(judge(&JwtRequirement::AllowMissing, vec![Keys::Wanted, ready()]), Outcome::Waiting(vec![0]));
    assert_eq!(judge(&JwtRequirement::AllowMissingOrFailed, vec![Keys::Failed, ready()]), Outcome::Allowed);
}

#[test]
fn known_tokens_are_checked_for_all_but_the_signature() {
    let authenticator = authenticator(vec![provider("p", "")]);
    let text = token(&json!({ "exp": 1 }));
    let known = Rc::new(Token::parse(text.as_bytes()).unwrap());
    let mut world = World::of(vec![Keys::None]);
    world.remembered.push((text.clone().into_bytes(), known));
    assert_eq!(authenticator.judge(&FIRST, &request(&text), &mut world).outcome, Outcome::Denied(JwtFailure::Expired));
    let text = token(&json!({ "exp": NOW_S }));
    let known = Rc::new(Token::parse(text.as_bytes()).unwrap());
    world.remembered.push((text.clone().into_bytes(), known));
    assert_eq!(authenticator.judge(&FIRST, &request(&text), &mut world).outcome, Outcome::Allowed);
}

#[test]
fn one_bad_token_is_enough() {
    let authenticator = authenticator(vec![provider("p", "")]);
    let good = token(&json!({}));
    for (parameter, header) in [(&*good, "a.b.c"), ("a.b.c", &*good)] {
        let request = Request { path: format!("/?access_token={parameter}"), ..request(header) };
        for requirement in [FIRST, JwtRequirement::AllowMissing] {
            let outcome = authenticator.judge(&requirement, &request, &mut World::ready()).outcome;
            assert_eq!(outcome, Outcome::Denied(JwtFailure::HeaderBase64));
        }
    }
}

#[test]
fn algorithms_and_keys_cannot_be_confused() {
    let set = |key: Value| Jwks::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
    let secret = URL_SAFE_NO_PAD.encode(SECRET);
    let judge = |header: Value, keys: &Jwks| {
        let text = token_of(&header, &json!({}), SECRET);
        verify_signature(&Token::parse(text.as_bytes()).unwrap(), keys)
    };
    let plain = set(json!({ "kty": "oct", "k": secret }));
    assert_eq!(judge(json!({ "alg": "HS256" }), &plain), Ok(()));
    // The signature is right, and its name is wrong.
    for algorithm in Algorithm::ALL.map(Algorithm::name).into_iter().filter(|name| *name != "HS256") {
        assert_eq!(judge(json!({ "alg": algorithm }), &plain), Err(JwtFailure::Verification), "{algorithm}");
    }
    let bound = set(json!({ "kty": "oct", "k": secret, "alg": "HS384", "kid": "a" }));
    assert_eq!(judge(json!({ "alg": "HS256" }), &bound), Err(JwtFailure::NoMatchingKey));
    let named = set(json!({ "kty": "oct", "k": secret, "kid": "a" }));
    assert_eq!(judge(json!({ "alg": "HS256", "kid": "a" }), &named), Ok(()));
    assert_eq!(judge(json!({ "alg": "HS256" }), &named), Ok(()));
    assert_eq!(judge(json!({ "alg": "HS256", "kid": "b" }), &named), Err(JwtFailure::NoMatchingKey));
}

#[test]
fn the_example_of_rfc_7515_verifies() {
    // Appendix A.1: HS256 over a payload with line ends.
    let text = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let keys = Jwks::parse(json!({ "keys": [{ "kty": "oct", "k": key }] }).to_string().as_bytes()).unwrap();
    let token = Token::parse(text.as_bytes()).unwrap();
    assert_eq!((&*token.issuer, token.expires_s), ("joe", 1_300_819_380));
    assert_eq!(verify_signature(&token, &keys), Ok(()));
}

#[test]
fn times_may_differ_by_the_skew_and_do_not_overflow() {
    let of = |claims: Value| Token::parse(token(&claims).as_bytes()).unwrap();
    let expiring = of(json!({ "exp": 100 }));
    assert_eq!(verify_times(&expiring, 160, 60), Ok(()));
    assert_eq!(verify_times(&expiring, 161, 60), Err(JwtFailure::Expired));
    assert_eq!(verify_times(&of(json!({ "exp": 1.8e19 })), u64::MAX, u64::MAX), Ok(()));
    let later = of(json!({ "nbf": 100 }));
    assert_eq!(verify_times(&later, 40, 60), Ok(()));
    assert_eq!(verify_times(&later, 39, 60), Err(JwtFailure::NotYetValid));
}

#[test]
fn claims_that_would_end_a_header_are_left_out() {
    let authenticator = authenticator(vec![provider("p", "")]);
    for sub in ["a\r\nx-admin: 1", "a\nb", "a\0b", ""] {
        let judged = authenticator.judge(&FIRST, &request(&token(&json!({ "sub": sub }))), &mut World::ready());
        let headers = judged.changes.headers;
        assert_eq!(headers[0], ("x-sub".into(), Vec::new()), "{sub:?}");
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in "([A-Za-z0-9_.=-]{0,60}|\\PC{0,40})") {
        let _ = Token::parse(text.as_bytes());
    }

    #[test]
    fn a_token_is_read_as_it_was_made(sub in "\\PC{0,20}", exp in 0_u32.., list in prop::collection::vec("[a-z]{0,5}", 0..4)) {
        let claims = json!({ "sub": sub, "exp": exp, "aud": list });
        let token = Token::parse(token(&claims).as_bytes()).unwrap();
        prop_assert_eq!(token.subject, sub);
        prop_assert_eq!(token.expires_s, u64::from(exp));
        prop_assert_eq!(token.audiences, list);
        prop_assert_eq!(Value::Object(token.payload), claims);
    }

    #[test]
    fn no_changed_token_verifies(position in 0_usize..200, flip in 1_u8..) {
        let mut text = token(&json!({ "sub": "user", "exp": 1 })).into_bytes();
        let position = position % text.len();
        text[position] ^= flip;
        if let Ok(token) = Token::parse(&text) {
            prop_assert!(verify_signature(&token, &keys()).is_err());
        }
    }

    #[test]
    fn parameters_go_without_touching_others(before in "[a-z]{1,3}=[a-z%0-9]{0,4}", after in "[a-z]{1,3}=[a-z]{0,4}") {
        let authenticator = authenticator(vec![provider("p", "")]);
        let path = format!("/p?{before}&access_token={}&{after}", token(&json!({})));
        let request = Request { path, headers: Vec::new() };
        let judged = authenticator.judge(&FIRST, &request, &mut World::ready());
        prop_assert_eq!(judged.outcome, Outcome::Allowed);
        prop_assert_eq!(judged.changes.path, Some(format!("/p?{before}&{after}")));
    }
}
