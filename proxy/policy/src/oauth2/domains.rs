//! Where users may be sent to (`allowed_redirect_domains`).
//!
//! Owns the comparison of hosts. Never sends anybody.

/// Whether `url` leads to one of `domains`, which may begin with `*.`; anywhere if there are none.
pub fn is_allowed(url: &str, domains: &[String]) -> bool {
    if domains.is_empty() {
        return true;
    }
    let Some(host) = host_of(url) else { return false };
    domains.iter().any(|domain| match domain.strip_prefix('*').filter(|suffix| suffix.starts_with('.')) {
        // The name before the dot must not be empty.
        Some(suffix) => {
            host.len() > suffix.len()
                && host.is_char_boundary(host.len() - suffix.len())
                && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
        }
        None => host.eq_ignore_ascii_case(domain),
    })
}

/// The host of an absolute URL, without port and brackets; `None` for anything else.
pub(super) fn host_of(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    // A browser goes to what follows the sign, and takes a backslash for a slash.
    if authority.contains(['@', '\\']) || !authority.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (host, port) = inner.split_once(']')?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some("")))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        },
    };
    let is_port = port.is_some_and(|port| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()));
    (is_port && !host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_whole_or_by_their_end() {
        let domains = ["example.com".to_owned(), "*.example.org".to_owned(), "::1".to_owned()];
        for url in
            ["https://example.com", "http://EXAMPLE.com:8080/x?y", "https://a.b.example.org/", "http://[::1]:443"]
        {
            assert!(is_allowed(url, &domains), "{url}");
        }
        for url in [
            "https://example.org",
            "https://.example.org",
            "https://badexample.org",
            "https://example.com.evil",
            "https://example.com@evil/",
            "https://evil\\.example.org/",
            "https://evil#.example.org",
            "//example.com",
            "example.com",
            "javascript:alert(1)",
            "https://",
        ] {
            assert!(!is_allowed(url, &domains), "{url}");
        }
        assert!(is_allowed("anything", &[]));
    }
}
