//! The page at `/` for people with a browser.
//!
//! Owns its parts, which are all in the program, and the policy by which a browser runs nothing else. The data come from
//! other endpoints. The charts are drawn by uPlot ([`VENDORED`](../page/VENDORED)).

use std::sync::OnceLock;

use base64::Engine;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::response::{HTML, Response};

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>outrigger</title>\n<style>";
const BETWEEN: &str = "</style></head>\n<body>\n";
const SCRIPT: &str = "<script>";
const SCRIPT_END: &str = "</script>\n";
const END: &str = "</body>\n</html>\n";
const STYLE: &str = concat!(include_str!("uPlot.min.css"), include_str!("page.css"));
const BODY: &str = include_str!("page.html");
const CHARTS: &str = include_str!("uPlot.iife.min.js");
const PAGE: &str = include_str!("page.js");

/// The page.
pub(super) fn page() -> Response {
    let parts = [HEAD, STYLE, BETWEEN, BODY, SCRIPT, CHARTS, SCRIPT_END, SCRIPT, PAGE, SCRIPT_END, END];
    let pieces = parts.into_iter().map(|part| Bytes::from_static(part.as_bytes()));
    Response { policy: Some(policy()), ..Response::pieces(StatusCode::OK, HTML, Box::new(pieces)) }
}

/// Nothing but what is in the page runs, and it speaks with nobody but this port.
fn policy() -> HeaderValue {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    let make = || {
        let hash = |part: &str| {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, part.as_bytes());
            format!("'sha256-{}'", base64::prelude::BASE64_STANDARD.encode(digest.as_ref()))
        };
        let (charts, page, style) = (hash(CHARTS), hash(PAGE), hash(STYLE));
        let text = format!(
            "default-src 'none'; script-src {charts} {page}; style-src {style}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        // It is ASCII, so this is never taken.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    };
    POLICY.get_or_init(make).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_needs_nobody_else() {
        let parts = [HEAD, STYLE, BETWEEN, BODY, SCRIPT, CHARTS, SCRIPT_END, SCRIPT, PAGE, SCRIPT_END, END];
        let page = parts.concat();
        assert!(page.len() < 200 * 1024, "{} bytes", page.len());
        for foreign in ["src=", "@import", "url(", "innerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            let own = [STYLE, BODY, PAGE].concat();
            assert!(!own.contains(foreign), "{foreign}");
        }
        // A script ends where its end is written, whatever stands around it.
        assert!(!PAGE.contains("</script") && !CHARTS.contains("</script") && !STYLE.contains("</style"));
        assert!(policy().to_str().unwrap().contains("script-src 'sha256-"));
    }

    #[test]
    fn the_chart_library_is_the_one_that_is_named() {
        let named = include_str!("VENDORED");
        for part in [CHARTS, include_str!("uPlot.min.css")] {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, part.as_bytes());
            let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(named.contains(&hex), "{hex}");
        }
    }
}
