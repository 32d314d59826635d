//! Requests that a browser makes for another site.
//!
//! Owns how they are told apart: a page of a stranger could otherwise have a browser of an operator change something here.

use http::HeaderMap;
use http::header::{HOST, ORIGIN};

/// Why a request that changes something is refused, if it is.
pub(super) fn refusal(headers: &HeaderMap) -> Option<&'static str> {
    const REFUSED: &str = "This changes something, and the request was made by a page of another site.\n";
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // Browsers of today say what they know; programs that are no browsers send neither header.
    match text("sec-fetch-site") {
        Some("same-origin" | "none") => return None,
        Some(_) => return Some(REFUSED),
        None => {}
    }
    let origin = text(ORIGIN.as_str())?;
    let host = text(HOST.as_str()).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host));
    (!same).then_some(REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_page_and_programs_may_change_something() {
        for (headers, allowed) in [
            (&[("host", "127.0.0.1:9901")][..], true),
            (&[("host", "127.0.0.1:9901"), ("sec-fetch-site", "same-origin")], true),
            (&[("host", "127.0.0.1:9901"), ("sec-fetch-site", "none")], true),
            (&[("host", "127.0.0.1:9901"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "127.0.0.1:9901"), ("sec-fetch-site", "same-site")], false),
            (&[("host", "127.0.0.1:9901"), ("origin", "http://127.0.0.1:9901")], true),
            (&[("host", "127.0.0.1:9901"), ("origin", "http://evil.example")], false),
            (&[("host", "127.0.0.1:9901"), ("origin", "null")], false),
            (&[("host", "127.0.0.1:9901"), ("origin", "http://127.0.0.1:80")], false),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            assert_eq!(refusal(&map).is_none(), allowed, "{headers:?}");
        }
    }
}
