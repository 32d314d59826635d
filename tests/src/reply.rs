//! What an upstream answers: it obeys the `x-reply` header of the request, else it reports what it saw.
//!
//! Words of the header, separated by blanks: `status=503`, `bytes=1048576`, `empty`, `chunked`, `trailers`,
//! `header=name:value`, `gate` (answer when the test opens the gate), `early` (answer before the body is read),
//! `delay=50` (answer so many milliseconds later), `hang` (never answer), `reset` (break the connection or stream), `close` (close after the answer),
//! `half` (break off in the middle of the body), `interim` (a 103 before it), `echo` (HTTP/2: send each piece of the body
//! back as it comes), `gzip` (the body is compressed, and says so).
//!
//! Between ` | ` stand the orders for one try after the other, by `x-envoy-attempt-count`; the last are for all that follow.

use std::time::Duration;

use serde_json::json;

use crate::response;

/// A request as an upstream saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Number of the connection it came on, from 1.
    pub connection: usize,
    /// `1.1` or `2`.
    pub version: &'static str,
    /// Method.
    pub method: String,
    /// Request target; the `:path` of HTTP/2.
    pub target: String,
    /// `host`, or `:authority`.
    pub authority: String,
    /// Headers as sent; HTTP/2 without pseudo headers.
    pub headers: Vec<(String, String)>,
    /// Body without framing.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
}

impl Seen {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        response::find(&self.headers, name)
    }
}

/// The wanted answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub bytes: Option<usize>,
    pub empty: bool,
    pub chunked: bool,
    pub trailers: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub gate: bool,
    pub delay: Option<Duration>,
    pub early: bool,
    pub hang: bool,
    pub reset: bool,
    pub close: bool,
    pub half: bool,
    pub interim: bool,
    pub echo: bool,
    pub gzip: bool,
}

impl Reply {
    /// Reads the orders in a request's headers.
    ///
    /// # Panics
    /// If there is a word that it does not know: a test is wrong then.
    pub fn to(headers: &[(String, String)]) -> Self {
        let mut reply = Self {
            status: 200,
            bytes: None,
            empty: false,
            chunked: false,
            trailers: Vec::new(),
            headers: Vec::new(),
            gate: false,
            delay: None,
            early: false,
            hang: false,
            reset: false,
            close: false,
            half: false,
            interim: false,
            echo: false,
            gzip: false,
        };
        let attempt =
            response::find(headers, "x-envoy-attempt-count").and_then(|count| count.parse().ok()).unwrap_or(1);
        let orders = response::find(headers, "x-reply").unwrap_or_default();
        for word in orders.split(" | ").take(attempt).last().unwrap_or_default().split_whitespace() {
            reply.obey(word);
        }
        reply
    }

    /// Whether the answer does not follow at once.
    pub fn waits(&self) -> bool {
        self.gate || self.hang || self.delay.is_some()
    }

    /// The body for a request.
    pub fn body(&self, upstream: &str, seen: &Seen) -> Vec<u8> {
        if self.empty {
            return Vec::new();
        }
        let body = match self.bytes {
            Some(count) => pattern(count),
            None => report(upstream, seen),
        };
        if self.gzip { response::gzip(&body) } else { body }
    }

    fn obey(&mut self, word: &str) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "status" => self.status = value.parse().expect("a status"),
            "bytes" => self.bytes = Some(value.parse().expect("a count")),
            "header" => {
                let (name, value) = value.split_once(':').expect("name:value");
                self.headers.push((name.to_owned(), value.to_owned()));
            }
            "empty" => self.empty = true,
            "chunked" => self.chunked = true,
            "trailers" => {
                self.trailers.extend(TRAILERS.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            "gate" => self.gate = true,
            "delay" => self.delay = Some(Duration::from_millis(value.parse().expect("milliseconds"))),
            "early" => self.early = true,
            "hang" => self.hang = true,
            "reset" => self.reset = true,
            "close" => self.close = true,
            "half" => self.half = true,
            "interim" => self.interim = true,
            "echo" => self.echo = true,
            "gzip" => self.gzip = true,
            other => panic!("x-reply: no such word: {other}"),
        }
    }
}

/// The trailers that `trailers` adds.
pub const TRAILERS: [(&str, &str); 2] = [("x-trailer", "after-the-body"), ("x-checksum", "42")];

/// So many bytes in which every position differs from its neighbours, to notice what is lost or doubled.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| b'a' + u8::try_from((index ^ (index >> 8) ^ (index >> 16)) % 23).unwrap_or(0)).collect()
}

/// A sum that changes with content and order (FNV-1a).
pub fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn report(upstream: &str, seen: &Seen) -> Vec<u8> {
    let body = if seen.body.len() <= 1024 { String::from_utf8_lossy(&seen.body).into_owned() } else { String::new() };
    let report = json!({
        "upstream": upstream,
        "connection": seen.connection,
        "version": seen.version,
        "method": seen.method,
        "target": seen.target,
        "authority": seen.authority,
        "headers": seen.headers,
        "body": body,
        "body_bytes": seen.body.len(),
        "body_sum": sum(&seen.body).to_string(),
        "trailers": seen.trailers,
    });
    report.to_string().into_bytes()
}
