//! Whether a redirect of an upstream is followed here, and where it leads (`InternalRedirectPolicy`).
//!
//! Owns the decision and what has to be remembered of earlier redirects of the request. Never changes a request.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_config::route::{InternalRedirect, RedirectPredicate};

/// Where a redirect leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RedirectTarget<'l> {
    /// As it stands in the location.
    pub scheme: &'l str,
    /// Host with port, if it has one.
    pub authority: &'l str,
    /// Path with query, without the fragment.
    pub path: Cow<'l, str>,
}

impl<'l> RedirectTarget<'l> {
    /// Reads an absolute URL; `None` for anything else, relative references too.
    pub fn parse(location: &'l str) -> Option<Self> {
        let (scheme, rest) = location.split_once("://")?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A user's name and password have no place in `:authority` (RFC 9113 section 8.3.1).
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphabetic());
        if !is_scheme || !is_authority(authority) || !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let path = rest.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) };
        Some(Self { scheme, authority, path })
    }

    /// Whether it is plain text.
    pub fn is_http(&self) -> bool {
        self.scheme.eq_ignore_ascii_case("http")
    }
}

fn is_authority(authority: &str) -> bool {
    let (host, port) = match super::port_start(authority) {
        Some(colon) => (&authority[..colon], &authority[colon + 1..]),
        None => (authority, "0"),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    is_host && port.parse::<u16>().is_ok()
}

/// Why a redirect is left to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RedirectRefusal {
    /// The location is missing or no absolute URL.
    BadLocation,
    /// It leads from TLS to plain text, or the other way round.
    UnsafeScheme,
    /// As many were followed as may be.
    TooMany,
    /// It leads to no route.
    NoRoute,
    /// A predicate does not want the route that it leads to.
    Predicate,
}

/// The redirects of one request so far.
#[derive(Clone, Debug, Default)]
pub struct RedirectHistory {
    followed: u32,
    /// By the name of the route that was left, those that were gone to.
    targets: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl RedirectHistory {
    /// How many were followed.
    pub fn followed(&self) -> u32 {
        self.followed
    }

    /// Whether `target` may be asked for at all. `is_http` says that the request came in plain text.
    ///
    /// # Errors
    /// When it may not.
    pub fn check(
        &self,
        policy: &InternalRedirect,
        is_http: bool,
        target: &RedirectTarget<'_>,
    ) -> Result<(), RedirectRefusal> {
        if !policy.allow_cross_scheme && is_http != target.is_http() {
            return Err(RedirectRefusal::UnsafeScheme);
        }
        if self.followed >= policy.max_redirects { Err(RedirectRefusal::TooMany) } else { Ok(()) }
    }

    /// Notes that the route `from` redirects to the route `to`.
    ///
    /// # Errors
    /// When a predicate does not want it.
    pub fn follow(
        &mut self,
        policy: &InternalRedirect,
        (from, to): (&Arc<str>, &Arc<str>),
        is_http: bool,
        target_is_http: bool,
    ) -> Result<(), RedirectRefusal> {
        for predicate in &policy.predicates {
            let wanted = match predicate {
                RedirectPredicate::AllowListedRoutes(names) => names.contains(to),
                RedirectPredicate::PreviousRoutes => {
                    self.targets.entry(Arc::clone(from)).or_default().insert(Arc::clone(to))
                }
                RedirectPredicate::SafeCrossScheme => !is_http || target_is_http,
            };
            if !wanted {
                return Err(RedirectRefusal::Predicate);
            }
        }
        self.followed += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(predicates: Vec<RedirectPredicate>) -> InternalRedirect {
        InternalRedirect {
            max_redirects: 2,
            codes: vec![302],
            allow_cross_scheme: true,
            predicates,
            copied_headers: Vec::new(),
        }
    }

    #[test]
    fn only_absolute_locations_lead_somewhere() {
        let parts = |location| {
            RedirectTarget::parse(location)
                .map(|target| format!("{}|{}|{}", target.scheme, target.authority, target.path))
        };
        for (location, expected) in [
            ("http://a.example/b?c#d", Some("http|a.example|/b?c")),
            ("https://a.example:8443", Some("https|a.example:8443|/")),
            ("http://a?b", Some("http|a|/?b")),
            ("http://user:secret@a/b", Some("http|a|/b")),
            ("http://[::1]:80/x", Some("http|[::1]:80|/x")),
            ("/relative", None),
            ("//a/b", None),
            ("http:///b", None),
            ("http://a b/", None),
            ("http://a/b c", None),
            ("http://a/\u{e4}", None),
            ("http://a:port/", None),
            ("http://[x]/", None),
            ("ht\ntp://a/", None),
            ("", None),
        ] {
            assert_eq!(parts(location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn schemes_and_counts_are_limits() {
        let history = RedirectHistory { followed: 2, ..RedirectHistory::default() };
        let (plain, secure) = (RedirectTarget::parse("http://a").unwrap(), RedirectTarget::parse("https://a").unwrap());
        let same = InternalRedirect { allow_cross_scheme: false, ..policy(Vec::new()) };
        assert_eq!(RedirectHistory::default().check(&same, true, &plain), Ok(()));
        assert_eq!(history.check(&same, true, &secure), Err(RedirectRefusal::UnsafeScheme));
        assert_eq!(history.check(&same, true, &plain), Err(RedirectRefusal::TooMany));
    }

    #[test]
    fn predicates_judge_the_route_that_a_redirect_leads_to() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut history = RedirectHistory::default();
        let listed = policy(vec![RedirectPredicate::AllowListedRoutes(vec![Arc::clone(&b)])]);
        assert_eq!(history.follow(&listed, (&a, &a), true, true), Err(RedirectRefusal::Predicate));
        assert_eq!(history.follow(&listed, (&a, &b), true, true), Ok(()));
        let previous = policy(vec![RedirectPredicate::PreviousRoutes]);
        assert_eq!(history.follow(&previous, (&a, &b), true, true), Ok(()));
        assert_eq!(history.follow(&previous, (&b, &b), true, true), Ok(()));
        assert_eq!(history.follow(&previous, (&a, &b), true, true), Err(RedirectRefusal::Predicate));
        let safe = policy(vec![RedirectPredicate::SafeCrossScheme]);
        assert_eq!(history.follow(&safe, (&a, &b), true, false), Err(RedirectRefusal::Predicate));
        assert_eq!(history.follow(&safe, (&a, &b), false, true), Ok(()));
        assert_eq!(history.followed(), 4);
    }
}
