//! Which stats exist, and how configured names become parts of stat names (`envoy.config.metrics.v3.StatsMatcher`).
//!
//! Owns both rules. Never holds stats.

use std::borrow::Cow;

use outrigger_config::bootstrap::StatsMatcher;
use outrigger_config::matching::StringMatcher;

/// The prefix of the stats of a configured thing, such as `cluster.<name>.`, with its final dot.
pub fn prefix(kind: &str, name: &str) -> String {
    format!("{kind}.{}.", sanitize(name))
}

/// `name` as a part of stat names: colons would be taken for separators by sinks, dots at the end make empty parts.
pub fn sanitize(name: &str) -> Cow<'_, str> {
    let name = name.trim_end_matches('.');
    if !name.contains([':', '\0']) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.replace("://", "_").replace(":/", "_").replace([':', '\0'], "_"))
}

/// Whether the stat of this name exists.
pub fn exists(matcher: &StatsMatcher, name: &str) -> bool {
    let any = |patterns: &[StringMatcher]| patterns.iter().any(|pattern| pattern.matches(name.as_bytes()));
    match matcher {
        StatsMatcher::All => true,
        StatsMatcher::None => false,
        StatsMatcher::Include(patterns) => any(patterns),
        StatsMatcher::Exclude(patterns) => !any(patterns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(value: &str) -> StringMatcher {
        StringMatcher::Prefix { value: value.to_owned(), ignore_case: false }
    }

    fn suffix(value: &str) -> StringMatcher {
        StringMatcher::Suffix { value: value.to_owned(), ignore_case: false }
    }

    #[test]
    fn colons_and_final_dots_do_not_get_into_stat_names() {
        assert_eq!(sanitize("outbound|80||a.b.svc"), "outbound|80||a.b.svc");
        assert_eq!(sanitize("a.b:80"), "a.b_80");
        assert_eq!(sanitize("http://a:80/x."), "http_a_80/x");
        assert_eq!(sanitize("[::1]:80"), "[__1]_80");
        assert_eq!(prefix("cluster", "http://b:80/x"), "cluster.http_b_80/x.");
        assert_eq!(prefix("cluster", ".c."), "cluster..c.");
    }

    #[test]
    fn the_inclusion_list_of_a_mesh_keeps_only_what_it_names() {
        let regex = StringMatcher::Regex(regex::Regex::new(r"^(?:vhost\..*\.route\..*)$").unwrap());
        let matcher = StatsMatcher::Include(vec![
            begins("cluster_manager"),
            begins("server"),
            begins("cluster.xds-grpc"),
            suffix("rbac.allowed"),
            regex,
        ]);
        for name in [
            "cluster_manager.cds.update_success",
            "server.state",
            "cluster.xds-grpc;.upstream_cx_active",
            "http.x.rbac.allowed",
            "vhost.a.route.b.upstream_rq_200",
        ] {
            assert!(exists(&matcher, name), "{name}");
        }
        assert!(!exists(&matcher, "cluster.outbound|80||a;.upstream_cx_active"));
    }

    #[test]
    fn an_exclusion_list_drops_what_it_names() {
        let matcher = StatsMatcher::Exclude(vec![begins("listener.")]);
        assert!(!exists(&matcher, "listener.admin.downstream_cx_active"));
        assert!(exists(&matcher, "listener_manager.lds.update_success"));
        assert!(exists(&StatsMatcher::All, "x"));
        assert!(!exists(&StatsMatcher::None, "x"));
    }
}
