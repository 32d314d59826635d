//! Operators about parts of a request: its path, its query and the host it asks for.
//!
//! Owns how they are taken apart. Never changes a request.

use outrigger_config::format::{Operator, Original, ServerNameOrder};

use super::facts::Facts;
use super::format::{Given, text};

/// Writes one of them.
pub(super) fn write(operator: &Operator, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let path = || facts.request_header(":path");
    match operator {
        Operator::QueryParameter(name) => {
            let pairs = path().and_then(query).unwrap_or_default().split(|byte| *byte == b'&');
            let mut found = pairs.filter_map(|pair| {
                let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
                let value = pair.get(end + 1..).unwrap_or_default();
                (decoded(&pair[..end], true) == name.as_bytes()).then_some(value)
            });
            match found.next() {
                Some(value) => text(Some(&decoded(value, true)), out),
                None => Given::Absent,
            }
        }
        Operator::QueryParameters { decoded: decode } => match path().and_then(query) {
            Some(query) if *decode => text(Some(&normalised(query)), out),
            query => text(query, out),
        },
        Operator::Path { query, source } => {
            let path = original(facts, *source, "x-envoy-original-path", ":path");
            text(path.map(|path| if *query { path } else { without_query(path) }), out)
        }
        Operator::RequestedServerName { order, host } => {
            let sni = facts.connection.server_name.as_deref().filter(|name| !name.is_empty()).map(str::as_bytes);
            let host = || original(facts, *host, "x-envoy-original-host", ":authority");
            let name = match order {
                ServerNameOrder::SniOnly => sni,
                ServerNameOrder::SniFirst => sni.or_else(host),
                ServerNameOrder::HostFirst => host().or(sni),
            };
            text(name, out)
        }
        _ => Given::Absent,
    }
}

/// A path up to its query.
pub(super) fn without_query(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    &path[..end]
}

/// The query of a path; `None` if it has none.
pub(super) fn query(path: &[u8]) -> Option<&[u8]> {
    let start = path.iter().position(|byte| *byte == b'?')?;
    path.get(start + 1..)
}

fn original<'a>(facts: &Facts<'a>, source: Original, kept: &str, current: &str) -> Option<&'a [u8]> {
    match source {
        Original::Only => facts.request_header(kept),
        Original::Current => facts.request_header(current),
        Original::First => facts.request_header(kept).or_else(|| facts.request_header(current)),
    }
}

/// Every name and value decoded, and encoded again where it must be: what Envoy calls decoded.
fn normalised(query: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(query.len());
    let encode = |part: &[u8], plain: &mut Vec<u8>| {
        for byte in decoded(part, false) {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' | b'~' => plain.push(byte),
                byte => plain.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            }
        }
    };
    for (index, pair) in query.split(|byte| *byte == b'&').enumerate() {
        if index > 0 {
            plain.push(b'&');
        }
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        encode(&pair[..end], &mut plain);
        if let Some(value) = pair.get(end + 1..) {
            plain.push(b'=');
            encode(value, &mut plain);
        }
    }
    plain
}

/// Without percent-encoding; a sign that encodes nothing stays, or is left out.
fn decoded(text: &[u8], stays: bool) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits.
                plain.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            (b'%', _, _) if !stays => rest = tail,
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}
