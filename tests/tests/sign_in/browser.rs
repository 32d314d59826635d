//! A browser that keeps cookies, and tells what it is given without what differs between any two sign-ins.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_tests::authorization_server::{Asked, decoded};
use outrigger_tests::{Response, h1};
use serde_json::Value;

/// A browser at one site.
#[derive(Clone, Default)]
pub struct Browser {
    /// What it keeps, by name.
    pub cookies: BTreeMap<String, String>,
    /// Where it was sent last.
    pub location: String,
}

impl Browser {
    /// Asks for a page of `app.example.com`, whoever serves it.
    pub async fn get(&mut self, address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Response {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        let mut headers = headers.to_vec();
        headers.push(("host", "app.example.com"));
        if !cookies.is_empty() {
            headers.push(("cookie", &cookies));
        }
        let response = h1::Client::connect(address).await.request("GET", target, &headers, b"").await;
        for cookie in set_cookies(&response) {
            let (name, value, attributes) = parts(cookie);
            if value == "deleted" || attributes.contains("Max-Age=0;") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        self.location = response.header("location").unwrap_or_default().to_owned();
        response
    }

    /// A parameter of where it was sent last, decoded.
    pub fn parameter(&self, name: &str) -> String {
        let query = self.location.split_once('?').map_or("", |(_, query)| query);
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        decoded(value.unwrap_or_default())
    }

    /// What the server sends it back with.
    pub fn callback(&self, code: &str) -> String {
        format!("/callback?code={code}&state={}", self.parameter("state"))
    }

    /// Whether the server can tell that the one who asks is the one who was sent.
    pub fn challenge_fits(challenge: &str, asked: &Asked) -> bool {
        let digest = digest::digest(&digest::SHA256, asked.field("code_verifier").as_bytes());
        URL_SAFE_NO_PAD.encode(digest) == challenge
    }
}

fn set_cookies(response: &Response) -> impl Iterator<Item = &str> {
    let headers = response.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    headers.map(|(_, value)| value.as_str())
}

fn parts(cookie: &str) -> (&str, &str, &str) {
    let (pair, attributes) = cookie.split_at(cookie.find(';').unwrap_or(cookie.len()));
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (name, value, attributes)
}

/// What can be compared of a response.
pub fn shown(response: &Response) -> Vec<String> {
    let mut seen = vec![format!("status {}", response.status)];
    for (name, value) in &response.headers {
        match name.to_ascii_lowercase().as_str() {
            "set-cookie" => {
                let (name, value, attributes) = parts(value);
                seen.push(format!("cookie {}={}{attributes}", without_flow(name), steady(name, value)));
            }
            "location" => seen.extend(location(value)),
            "date" | "server" | "x-envoy-upstream-service-time" | "content-length" | "content-type" => {}
            name => seen.push(format!("header {name}: {value}")),
        }
    }
    match serde_json::from_slice::<Value>(&response.body) {
        Ok(report) if report["upstream"].is_string() => {
            for pair in report["headers"].as_array().into_iter().flatten() {
                let (name, value) = (pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
                match name.to_ascii_lowercase().as_str() {
                    // In Envoy's table they have no order.
                    "cookie" => {
                        let mut cookies: Vec<_> = value.split("; ").filter(|cookie| !cookie.is_empty()).collect();
                        cookies.sort_unstable();
                        seen.extend(cookies.into_iter().map(|cookie| format!("upstream sees cookie {cookie}")));
                    }
                    name @ ("authorization" | "x-id" | "x-envoy-oauth-status" | "x-envoy-oauth-failure-reason") => {
                        seen.push(format!("upstream sees {name}: {value}"));
                    }
                    _ => {}
                }
            }
            seen.push(format!("upstream sees {}", report["target"]));
        }
        _ => seen.push(format!("body {:?}", response.text())),
    }
    seen
}

/// The name of a cookie without that of a sign-in.
fn without_flow(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((kind, flow)) if flow.len() == 16 => format!("{kind}.<flow>"),
        _ => name.to_owned(),
    }
}

/// The value of a cookie without what is random, sealed, or of the moment.
fn steady(name: &str, value: &str) -> String {
    let kind = name.split('.').next().unwrap_or_default();
    match kind {
        _ if value == "deleted" => value.to_owned(),
        "OauthNonce" => match value.split_once('.') {
            Some((flow, signature)) => format!("<{} digits>.<{} of signature>", flow.len(), signature.len()),
            None => value.to_owned(),
        },
        "OauthHMAC" | "Proof" => format!("<{} of signature>", value.len()),
        "OauthExpires" | "End" => format!("<{} digits>", value.len()),
        _ if value.starts_with("access.") || value.starts_with("id.") || value.starts_with("refresh.") => {
            value.to_owned()
        }
        _ => format!("<{} sealed>", value.len()),
    }
}

/// Where a browser is sent, in parts.
fn location(url: &str) -> Vec<String> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let mut seen = vec![format!("location {address}")];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = match name {
            "state" => state(value),
            "code_challenge" => format!("<{} of challenge>", value.len()),
            _ => value.to_owned(),
        };
        seen.push(format!("location parameter {name}={value}"));
    }
    seen
}

fn state(text: &str) -> String {
    let state: Value =
        URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null);
    let length = |name: &str| state[name].as_str().map_or(0, str::len);
    format!("url {} nonce of {} flow of {}", state["url"], length("csrf_token"), length("flow_id"))
}
