//! What a route's action makes of a request's path and host.
//!
//! Owns path rewrites, redirect locations and the choice among weighted clusters. Never matches requests.

use std::borrow::Cow;

use outrigger_config::route::{
    Forward, PathMatch, PathRedirect, Redirect, RegexRewrite, RouteMatch as RouteCriteria, SchemeRedirect,
    WeightedCluster,
};

use super::{port_start, split_path};

/// The path that is sent upstream, with its query. `path` is the request's path with its query, and `criteria` those
/// of the route that matched it.
///
/// A prefix rewrite replaces the matched prefix, or the whole path where that was matched. Results that would be
/// empty leave the path as it is.
pub fn rewrite_path<'p>(forward: &Forward, criteria: &RouteCriteria, path: &'p str) -> Cow<'p, str> {
    let rewritten = match (&forward.prefix_rewrite, &forward.regex_rewrite) {
        (Some(prefix), _) if !prefix.is_empty() => Some(replace_matched(criteria, path, prefix)),
        (_, Some(rewrite)) => rewrite_path_by_regex(rewrite, path),
        _ => forward.template_rewrite.as_ref().and_then(|rewrite| {
            let (only_path, _) = split_path(path);
            Some(format!("{}{}", rewrite.rewrite(only_path)?, &path[only_path.len()..]))
        }),
    };
    rewritten.map_or(Cow::Borrowed(path), Cow::Owned)
}

/// Rewrites the path, leaving its query; `None` if nothing would be left of it.
pub fn rewrite_path_by_regex(rewrite: &RegexRewrite, path: &str) -> Option<String> {
    let (only_path, _) = split_path(path);
    let rewritten = rewrite.pattern.replace_all(only_path, rewrite.substitution.as_str());
    (!rewritten.is_empty()).then(|| format!("{rewritten}{}", &path[only_path.len()..]))
}

fn replace_matched(criteria: &RouteCriteria, path: &str, replacement: &str) -> String {
    let matched = match &criteria.path {
        PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len(),
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Template(_) | PathMatch::Connect => {
            split_path(path).0.len()
        }
    };
    format!("{replacement}{}", path.get(matched..).unwrap_or(""))
}

/// The `location` of a redirect. `scheme` and `host` are those of the request, `path` is its path with its query, and
/// `criteria` those of the route that matched it.
///
/// A port that is the default one of the old scheme goes when the scheme changes. A query in the configured path
/// replaces the request's and is never stripped.
pub fn redirect_location(
    redirect: &Redirect,
    criteria: &RouteCriteria,
    scheme: &str,
    host: &str,
    path: &str,
) -> String {
    let new_scheme = match &redirect.scheme {
        SchemeRedirect::Keep => scheme,
        SchemeRedirect::Https => "https",
        SchemeRedirect::Scheme(scheme) => scheme,
    };
    let new_host = match &redirect.host {
        Some(host) if !host.is_empty() => host,
        _ => kept_host(host, scheme, new_scheme, redirect.port),
    };
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let mut keeps_query = !redirect.strip_query;
    let new_path = match &redirect.path {
        PathRedirect::Path(new) if !new.is_empty() => {
            keeps_query |= new.contains('?');
            let query = path.find('?').filter(|_| !new.contains('?')).map_or("", |start| &path[start..]);
            Cow::Owned(format!("{new}{query}"))
        }
        PathRedirect::Prefix(new) if !new.is_empty() => Cow::Owned(replace_matched(criteria, path, new)),
        PathRedirect::Regex(rewrite) => rewrite_path_by_regex(rewrite, path).map_or(Cow::Borrowed(path), Cow::Owned),
        PathRedirect::Keep | PathRedirect::Path(_) | PathRedirect::Prefix(_) => Cow::Borrowed(path),
    };
    let new_path = match new_path.find('?') {
        Some(query) if !keeps_query => &new_path[..query],
        _ => &new_path,
    };
    let slash = if new_path.starts_with('/') { "" } else { "/" };
    format!("{new_scheme}://{new_host}{port}{slash}{new_path}")
}

/// The request's host, without its port where the redirect brings one or its meaning would change.
fn kept_host<'h>(host: &'h str, scheme: &str, new_scheme: &str, new_port: Option<u16>) -> &'h str {
    let Some(colon) = port_start(host) else { return host };
    let was_default = match &host[colon..] {
        ":80" => scheme.eq_ignore_ascii_case("http"),
        ":443" => scheme.eq_ignore_ascii_case("https"),
        _ => false,
    };
    if new_port.is_some() || (scheme != new_scheme && was_default) { &host[..colon] } else { host }
}

/// The cluster that an evenly distributed `random` falls on; `None` if all weights are 0. `runtime` has the numbers of keys
/// that stand in for weights.
pub fn pick_weighted(
    clusters: &[WeightedCluster],
    random: u64,
    runtime: impl Fn(&str) -> Option<u64>,
) -> Option<&WeightedCluster> {
    let weight = |cluster: &WeightedCluster| {
        let given = cluster.runtime_key.as_deref().and_then(&runtime);
        given.map_or(u64::from(cluster.weight), |weight| weight.min(u64::from(u32::MAX)))
    };
    let total: u64 = clusters.iter().map(weight).sum();
    let mut left = random.checked_rem(total)?;
    clusters.iter().find(|cluster| {
        let weight = weight(cluster);
        let found = left < weight;
        left = left.saturating_sub(weight);
        found
    })
}

#[cfg(test)]
mod tests {
    use outrigger_config::http::HeaderMutations;

    use super::super::samples::{criteria, forward, redirect};
    use super::*;

    fn regex(pattern: &str, substitution: &str) -> RegexRewrite {
        RegexRewrite { pattern: regex::Regex::new(pattern).unwrap(), substitution: substitution.into() }
    }

    #[test]
    fn prefixes_are_replaced_and_queries_kept() {
        let rewrite = |path_match: PathMatch, to: &str, path: &str| {
            let forward = Forward { prefix_rewrite: Some(to.into()), ..forward("c") };
            rewrite_path(&forward, &criteria(path_match), path).into_owned()
        };
        let prefix = |text: &str| PathMatch::Prefix(text.into());
        assert_eq!(rewrite(prefix("/prefix/"), "/", "/prefix/etc?a=/prefix/"), "/etc?a=/prefix/");
        assert_eq!(rewrite(prefix("/prefix"), "/", "/prefix?x"), "/?x");
        assert_eq!(rewrite(prefix("/prefix"), "/", "/prefix/etc"), "//etc");
        assert_eq!(rewrite(PathMatch::SeparatedPrefix("/a".into()), "/b", "/a/c"), "/b/c");
        assert_eq!(rewrite(PathMatch::Exact("/a".into()), "/b", "/a?q"), "/b?q");
        assert_eq!(rewrite(PathMatch::Regex(regex::Regex::new("/.*").unwrap()), "/b", "/a/c?q"), "/b?q");
        assert_eq!(rewrite(prefix("/prefix"), "", "/prefix/etc"), "/prefix/etc");
        assert!(matches!(rewrite_path(&forward("c"), &criteria(prefix("/")), "/a?b"), Cow::Borrowed("/a?b")));
    }

    #[test]
    fn regexes_rewrite_the_path_only() {
        let rewrite = |rewrite: RegexRewrite, path: &str| {
            let forward = Forward { regex_rewrite: Some(rewrite), ..forward("c") };
            rewrite_path(&forward, &criteria(PathMatch::Prefix("/".into())), path).into_owned()
        };
        assert_eq!(
            rewrite(regex("^/service/([^/]+)(/.*)$", "${2}/instance/${1}"), "/service/foo/v1/api?one=1"),
            "/v1/api/instance/foo?one=1"
        );
        assert_eq!(rewrite(regex("one", "two"), "/xxx/one/yyy/one/zzz?one"), "/xxx/two/yyy/two/zzz?one");
        assert_eq!(rewrite(regex("(?i)/xxx/", "/yyy/"), "/aaa/XxX/bbb"), "/aaa/yyy/bbb");
        assert_eq!(rewrite(regex(".*", ""), "/gone?q"), "/gone?q");
    }

    fn location(redirect: &Redirect, scheme: &str, host: &str, path: &str) -> String {
        redirect_location(redirect, &criteria(PathMatch::Prefix("/old".into())), scheme, host, path)
    }

    #[test]
    fn default_ports_go_with_their_scheme() {
        let https = Redirect { scheme: SchemeRedirect::Https, ..redirect() };
        assert_eq!(location(&https, "http", "foo.com:80", "/a?b"), "https://foo.com/a?b");
        assert_eq!(location(&https, "http", "foo.com:8080", "/"), "https://foo.com:8080/");
        assert_eq!(location(&https, "https", "foo.com:443", "/"), "https://foo.com:443/");
        assert_eq!(location(&https, "http", "[fe80::1]:80", "/"), "https://[fe80::1]/");
        assert_eq!(location(&https, "http", "[fe80::1]", "/"), "https://[fe80::1]/");
        let http = Redirect { scheme: SchemeRedirect::Scheme("http".into()), ..redirect() };
        assert_eq!(location(&http, "https", "foo.com:443", "/"), "http://foo.com/");
        let port = Redirect { port: Some(8443), ..https.clone() };
        assert_eq!(location(&port, "http", "foo.com:9000", "/"), "https://foo.com:8443/");
        let host = Redirect { host: Some("bar.com".into()), port: Some(81), ..redirect() };
        assert_eq!(location(&host, "http", "foo.com:9000", "/x"), "http://bar.com:81/x");
    }

    #[test]
    fn redirected_paths_and_queries() {
        let path = |to: &str, strip_query| Redirect { path: PathRedirect::Path(to.into()), strip_query, ..redirect() };
        let go = |redirect: &Redirect| location(redirect, "http", "h", "/old-path?bar=1");
        assert_eq!(go(&path("/new-path-1", false)), "http://h/new-path-1?bar=1");
        assert_eq!(go(&path("/new-path-2", true)), "http://h/new-path-2");
        assert_eq!(go(&path("/new-path-3?foo=1", true)), "http://h/new-path-3?foo=1");
        assert_eq!(go(&path("/new-path-3?foo=1", false)), "http://h/new-path-3?foo=1");
        assert_eq!(go(&path("bare", false)), "http://h/bare?bar=1");
        assert_eq!(go(&Redirect { strip_query: true, ..redirect() }), "http://h/old-path");
        let prefix = Redirect { path: PathRedirect::Prefix("/new".into()), ..redirect() };
        assert_eq!(go(&prefix), "http://h/new-path?bar=1");
        let rewritten = Redirect { path: PathRedirect::Regex(regex("old", "young")), ..redirect() };
        assert_eq!(go(&rewritten), "http://h/young-path?bar=1");
    }

    #[test]
    fn weighted_clusters_get_their_shares() {
        let cluster = |name: &str, weight| WeightedCluster {
            name: name.into(),
            name_header: None,
            runtime_key: Some(format!("weights.{name}").into()),
            weight,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            host_rewrite_literal: None,
            metadata_match: None,
            filters: Default::default(),
        };
        let clusters = [cluster("a", 90), cluster("none", 0), cluster("b", 10)];
        let picks = |name: &str| {
            (0..1000)
                .filter(|random| pick_weighted(&clusters, *random, |_| None).is_some_and(|found| &*found.name == name))
                .count()
        };
        assert_eq!((picks("a"), picks("none"), picks("b")), (900, 0, 100));
        assert!(pick_weighted(&[cluster("none", 0)], 5, |_| None).is_none());
        let runtime = |key: &str| (key == "weights.none").then_some(1);
        assert!(pick_weighted(&[cluster("none", 0)], 5, runtime).is_some());
    }
}
