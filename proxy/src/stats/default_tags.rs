//! The default tag rules, under the names that dashboards know.
//!
//! Owns the table and its small matcher: names are matched part by part, which needs no regular expressions in memory.
//! Never decides which rules apply (see `tags`).

use super::tags::Found;

/// How a default tag is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// Parts between dots: `*` is any one, `$` the value, a final `**` at least one more. The value is cut out with the
    /// dot after it.
    Parts(&'static [&'static str]),
    /// A special form.
    Special(fn(&str) -> Option<Found>),
}

impl Rule {
    pub(super) fn find(self, name: &str) -> Option<Found> {
        match self {
            Rule::Parts(parts) => match_parts(parts, name),
            Rule::Special(find) => find(name),
        }
    }
}

/// All default rules in the order in which their tags are shown; rules for one tag stand together.
pub(super) const DEFAULTS: &[(&str, Rule)] = &[
    ("envoy.response_code", Rule::Special(response_code)),
    ("envoy.response_code_class", Rule::Special(response_code_class)),
    ("envoy.mongo_callsite", Rule::Parts(&["mongo", "*", "collection", "*", "callsite", "$", "query", "**"])),
    ("envoy.mongo_collection", Rule::Special(mongo_collection)),
    ("envoy.mongo_cmd", Rule::Parts(&["mongo", "*", "cmd", "$", "**"])),
    ("envoy.grpc_bridge_method", Rule::Parts(&["cluster", "*", "grpc", "*", "$", "**"])),
    ("envoy.http_user_agent", Rule::Parts(&["http", "*", "user_agent", "$", "**"])),
    ("envoy.virtual_cluster", Rule::Parts(&["vhost", "*", "vcluster", "$", "**"])),
    ("envoy.fault_downstream_cluster", Rule::Parts(&["http", "*", "fault", "$", "**"])),
    ("envoy.ssl_cipher", Rule::Special(|name| ssl(name, &["listener."], ".ssl.ciphers"))),
    ("envoy.ssl_curve", Rule::Special(|name| ssl(name, &["listener.", "cluster."], ".ssl.curves"))),
    ("envoy.ssl_sigalg", Rule::Special(|name| ssl(name, &["listener.", "cluster."], ".ssl.sigalgs"))),
    ("envoy.ssl_version", Rule::Special(|name| ssl(name, &["listener.", "cluster."], ".ssl.versions"))),
    ("envoy.tls_certificate", Rule::Special(tls_certificate)),
    ("cipher_suite", Rule::Special(|name| ssl(name, &["cluster."], ".ssl.ciphers"))),
    ("envoy.grpc_bridge_service", Rule::Parts(&["cluster", "*", "grpc", "$", "**"])),
    ("envoy.tcp_prefix", Rule::Parts(&["tcp", "$", "**"])),
    ("envoy.udp_prefix", Rule::Parts(&["udp", "$", "**"])),
    ("envoy.clientssl_prefix", Rule::Parts(&["auth", "clientssl", "$", "**"])),
    ("envoy.ratelimit_prefix", Rule::Parts(&["ratelimit", "$", "**"])),
    ("envoy.health_check_name", Rule::Special(health_check_name)),
    ("envoy.cluster_name", Rule::Parts(&["cluster", "$", "**"])),
    ("envoy.ext_authz_prefix", Rule::Parts(&["cluster", "*", "ext_authz", "$", "**"])),
    ("envoy.ext_authz_prefix", Rule::Parts(&["http", "*", "ext_authz", "$", "**"])),
    ("envoy.http_conn_manager_prefix", Rule::Special(listener_http_prefix)),
    ("envoy.http_conn_manager_prefix", Rule::Parts(&["http", "$", "**"])),
    ("envoy.worker_id", Rule::Special(worker_id)),
    ("envoy.listener_address", Rule::Special(listener_address)),
    ("envoy.virtual_host", Rule::Parts(&["vhost", "$", "**"])),
    ("envoy.mongo_prefix", Rule::Parts(&["mongo", "$", "**"])),
    ("envoy.rds_route_config", Rule::Special(|name| route_config(name, "rds"))),
    ("envoy.scoped_rds_config", Rule::Special(|name| route_config(name, "scoped_rds"))),
    ("envoy.route", Rule::Parts(&["vhost", "*", "route", "$", "**"])),
    ("envoy.thrift_prefix", Rule::Parts(&["thrift", "$", "**"])),
    ("envoy.redis_prefix", Rule::Parts(&["redis", "$", "**"])),
    ("envoy.local_http_ratelimit_prefix", Rule::Parts(&["$", "http_local_rate_limit", "**"])),
    ("envoy.local_network_ratelimit_prefix", Rule::Parts(&["local_rate_limit", "$", "**"])),
    ("envoy.local_listener_ratelimit_prefix", Rule::Parts(&["listener_local_ratelimit", "$", "**"])),
    ("envoy.dns_filter_prefix", Rule::Parts(&["dns_filter", "$", "**"])),
    ("envoy.connection_limit_prefix", Rule::Parts(&["connection_limit", "$", "**"])),
    ("envoy.rbac_prefix", Rule::Parts(&["$", "rbac", "**"])),
    ("envoy.rbac_http_prefix", Rule::Special(rbac_http_prefix)),
    ("envoy.rbac_policy_name", Rule::Special(rbac_policy)),
    ("envoy.proxy_protocol_version", Rule::Special(proxy_protocol_version)),
    ("envoy.proxy_protocol_prefix", Rule::Special(proxy_protocol_prefix)),
    ("envoy.google_grpc_client_prefix", Rule::Parts(&["grpc", "$", "**"])),
    ("envoy.xds_resource_name", Rule::Parts(&["sds", "$", "**"])),
];

fn match_parts(pattern: &[&str], name: &str) -> Option<Found> {
    let mut rest = name;
    let mut found = None;
    for (index, part) in pattern.iter().enumerate() {
        if *part == "**" {
            return found.filter(|_| !rest.is_empty());
        }
        let (token, after) = rest.split_once('.').unwrap_or((rest, ""));
        let start = name.len() - rest.len();
        match *part {
            "*" => {}
            "$" => {
                let last = index + 1 == pattern.len();
                let end = start + token.len();
                found = Some(Found { removed: start..end + usize::from(!last && end < name.len()), value: start..end });
            }
            literal if literal == token => {}
            _ => return None,
        }
        rest = after;
    }
    found
}

/// A value that stands with the dot after it.
fn part(start: usize, length: usize) -> Option<Found> {
    (length > 0).then(|| Found { removed: start..start + length + 1, value: start..start + length })
}

/// `..._rq_503`
fn response_code(name: &str) -> Option<Found> {
    let start = name.len().checked_sub(3)?;
    let rest = name.get(..start)?;
    let digits = name[start..].bytes().all(|byte| byte.is_ascii_digit());
    (digits && rest.ends_with("_rq_")).then(|| Found { removed: start - 1..name.len(), value: start..name.len() })
}

/// `..._rq_5xx`: the digit alone is cut out.
fn response_code_class(name: &str) -> Option<Found> {
    let rest = name.strip_suffix("xx")?;
    let start = rest.len().checked_sub(1)?;
    let digit = rest.as_bytes()[start].is_ascii_digit();
    (digit && rest.get(..start)?.ends_with("_rq_"))
        .then(|| Found { removed: start..start + 1, value: start..start + 1 })
}

/// `mongo.<prefix>.collection.<value>. ... .query.<last>`
fn mongo_collection(name: &str) -> Option<Found> {
    let found = match_parts(&["mongo", "*", "collection", "$", "**"], name)?;
    let (before, _) = name.rsplit_once('.')?;
    (before.len() >= found.removed.end && before[found.removed.end..].split('.').next_back() == Some("query"))
        .then_some(found)
}

/// `listener.<any>.ssl.ciphers.<value>`: the value is the end of the name, cut out with the dot before it.
fn ssl(name: &str, roots: &[&str], group: &str) -> Option<Found> {
    if !roots.iter().any(|root| name.starts_with(root)) {
        return None;
    }
    let (before, value) = name.rsplit_once('.')?;
    let start = before.len();
    let dotted_version = || {
        // The one value with a dot in it: `TLSv1.3`.
        let (before, version) = before.rsplit_once('.')?;
        (version.starts_with("TLSv") && before.ends_with(group)).then_some(before.len())
    };
    let start = if before.ends_with(group) { start } else { dotted_version()? };
    (!value.is_empty()).then(|| Found { removed: start..name.len(), value: start + 1..name.len() })
}

/// `listener.<any>.ssl.certificate.<value>.<rest>`
fn tls_certificate(name: &str) -> Option<Found> {
    if !name.starts_with("listener.") && !name.starts_with("cluster.") {
        return None;
    }
    after(name, ".ssl.certificate.")
}

/// The part after the first `marker` that does not stand at the beginning.
fn after(name: &str, marker: &str) -> Option<Found> {
    let start = name.find(marker)? + marker.len();
    part(start, name[start..].find('.')?)
}

/// `cluster.<cluster>.health_check.name.<value>.<rest>`
fn health_check_name(name: &str) -> Option<Found> {
    let found = match_parts(&["cluster", "*", "health_check", "name", "$", "**"], name)?;
    let dot = ".name.".len();
    Some(Found { removed: found.value.start - dot..found.value.end, value: found.value })
}

/// `listener.<any>.http.<value>.<rest>`
fn listener_http_prefix(name: &str) -> Option<Found> {
    name.starts_with("listener.").then_some(())?;
    after(name, ".http.")
}

/// `listener.<address>.worker_<value>.<rest>` and the like.
fn worker_id(name: &str) -> Option<Found> {
    let roots = ["server.", "listener_manager.", "thread_local_cluster_manager."];
    let start = match roots.iter().find(|root| name.starts_with(*root)) {
        Some(root) => root.len(),
        None => listener_part(name)?.removed.end,
    };
    let digits = name[start..].strip_prefix("worker_")?;
    let length = digits.find('.')?;
    let number = digits[..length].bytes().all(|byte| byte.is_ascii_digit());
    part(name.len() - digits.len(), length).filter(|_| number)
}

/// `listener.<value>.<rest>`, but for the admin listener.
fn listener_address(name: &str) -> Option<Found> {
    listener_part(name).filter(|found| &name[found.value.clone()] != "admin")
}

fn listener_part(name: &str) -> Option<Found> {
    let rest = name.strip_prefix("listener.")?;
    let start = name.len() - rest.len();
    part(start, address_length(rest).or_else(|| rest.find('.'))?)
}

/// Length of an address with its port at the beginning of `text`: `127.0.0.1_80` or `[__1]_80`, then a dot.
fn address_length(text: &str) -> Option<usize> {
    let host = match text.strip_prefix('[') {
        Some(inside) => {
            let length = inside.find(']')?;
            let legal = |byte: u8| byte.is_ascii_hexdigit() || byte == b'_';
            (length > 0 && inside[..length].bytes().all(legal)).then_some(length + 2)?
        }
        None => {
            let length = text.find('_')?;
            text[..length].parse::<std::net::Ipv4Addr>().ok()?;
            length
        }
    };
    let port = text[host..].strip_prefix('_')?;
    let length = port.find('.')?;
    (length > 0 && port[..length].bytes().all(|byte| byte.is_ascii_digit())).then_some(host + 1 + length)
}

/// `http.<prefix>.rds.<value>.<last>`: the value may hold dots.
fn route_config(name: &str, kind: &str) -> Option<Found> {
    let (_, rest) = name.strip_prefix("http.")?.split_once('.')?;
    let rest = rest.strip_prefix(kind)?.strip_prefix('.')?;
    part(name.len() - rest.len(), rest.rfind('.')?)
}

/// `http.<prefix>.rbac.<value>.<rest>`
fn rbac_http_prefix(name: &str) -> Option<Found> {
    let found = match_parts(&["http", "*", "rbac", "$", "**"], name)?;
    (&name[found.value.clone()] != "policy").then_some(found)
}

/// `http.<prefix>.rbac.[<prefix>.]policy.<value>.<result>`
fn rbac_policy(name: &str) -> Option<Found> {
    let found = match_parts(&["http", "*", "rbac", "policy", "$", "**"], name)
        .or_else(|| match_parts(&["http", "*", "rbac", "*", "policy", "$", "**"], name))?;
    let result = &name[found.removed.end..];
    matches!(result, "allowed" | "denied" | "shadow_allowed" | "shadow_denied").then_some(found)
}

/// `proxy_proto.[<prefix>.]versions.v<value>.<last>`: all of it but the last part is cut out.
fn proxy_protocol_version(name: &str) -> Option<Found> {
    let rest = name.strip_prefix("proxy_proto.")?;
    let start = name.len() - rest.len();
    let (before, _) = rest.rsplit_once('.')?;
    let (head, version) =
        before.rsplit_once(".v").or_else(|| before.rsplit_once("versions.v").map(|(_, v)| ("versions", v)))?;
    let known = head == "versions" || head.strip_suffix(".versions").is_some_and(|prefix| !prefix.contains('.'));
    let end = start + before.len();
    (known && !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| Found { removed: start..end + 1, value: end - version.len()..end })
}

/// `proxy_proto.<value>.<rest>`
fn proxy_protocol_prefix(name: &str) -> Option<Found> {
    let found = match_parts(&["proxy_proto", "$", "**"], name)?;
    (&name[found.value.clone()] != "versions").then_some(found)
}

#[cfg(test)]
mod tests {
    use super::super::tags::tests::config;
    use super::super::tags::{TagExtractor, Tagged};

    #[test]
    fn names_give_the_same_series_as_envoys() {
        let extractor = TagExtractor::new(&config(&[], true)).unwrap();
        // Left: raw names; right: what Envoy 1.40 shows of them.
        for (name, base, tags) in [
            ("cluster.pipes.upstream_rq_200", "cluster.upstream_rq", "response_code=200 cluster_name=pipes"),
            ("cluster.pipes.upstream_rq_5xx", "cluster.upstream_rq_xx", "response_code_class=5 cluster_name=pipes"),
            ("cluster.pipes.upstream_rq_time", "cluster.upstream_rq_time", "cluster_name=pipes"),
            ("cluster.pipes.upstream_rq_2000", "cluster.upstream_rq_2000", "cluster_name=pipes"),
            ("cluster.a.b_80.upstream_rq_503", "cluster.b_80.upstream_rq", "response_code=503 cluster_name=a"),
            ("cluster.out|80||x;.bind_errors", "cluster.bind_errors", "cluster_name=out|80||x;"),
            ("cluster.c.external.upstream_rq_503", "cluster.external.upstream_rq", "response_code=503 cluster_name=c"),
            ("cluster.c.ssl.ciphers.AES-GCM", "cluster.ssl.ciphers", "cipher_suite=AES-GCM cluster_name=c"),
            ("cluster.c.ssl.versions.TLSv1.3", "cluster.ssl.versions", "ssl_version=TLSv1.3 cluster_name=c"),
            (
                "cluster.c.grpc.svc.Get.total",
                "cluster.grpc.total",
                "grpc_bridge_method=Get grpc_bridge_service=svc cluster_name=c",
            ),
            ("cluster_manager.cds.update_success", "cluster_manager.cds.update_success", ""),
            (
                "http.ingress.downstream_rq_2xx",
                "http.downstream_rq_xx",
                "response_code_class=2 http_conn_manager_prefix=ingress",
            ),
            (
                "http.i.rds.a.b.update_success",
                "http.rds.update_success",
                "http_conn_manager_prefix=i rds_route_config=a.b",
            ),
            (
                "http.i.rbac.policy.p.allowed",
                "http.rbac.policy.allowed",
                "http_conn_manager_prefix=i rbac_policy_name=p",
            ),
            ("http.i.ext_authz.waf.ok", "http.ext_authz.ok", "ext_authz_prefix=waf http_conn_manager_prefix=i"),
            (
                "listener.127.0.0.1_8080.http.x.downstream_rq_5xx",
                "listener.http.downstream_rq_xx",
                "response_code_class=5 http_conn_manager_prefix=x listener_address=127.0.0.1_8080",
            ),
            (
                "listener.127.0.0.1_0.downstream_cx_active",
                "listener.downstream_cx_active",
                "listener_address=127.0.0.1_0",
            ),
            ("listener.[__1]_80.downstream_cx_active", "listener.downstream_cx_active", "listener_address=[__1]_80"),
            (
                "listener./tmp/adm/p.sock.downstream_cx_total",
                "listener.sock.downstream_cx_total",
                "listener_address=/tmp/adm/p",
            ),
            ("listener.mine.downstream_cx_total", "listener.downstream_cx_total", "listener_address=mine"),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total", ""),
            (
                "listener.admin.http.admin.downstream_rq_2xx",
                "listener.admin.http.downstream_rq_xx",
                "response_code_class=2 http_conn_manager_prefix=admin",
            ),
            (
                "listener.127.0.0.1_0.worker_0.downstream_cx_active",
                "listener.worker_downstream_cx_active",
                "worker_id=0 listener_address=127.0.0.1_0",
            ),
            (
                "listener.127.0.0.1_0.ssl.certificate.sec.expiration_unix_time_seconds",
                "listener.ssl.certificate.expiration_unix_time_seconds",
                "tls_certificate=sec listener_address=127.0.0.1_0",
            ),
            ("listener.1.2.3.4_1.ssl.ciphers.X_Y", "listener.ssl.ciphers", "ssl_cipher=X_Y listener_address=1.2.3.4_1"),
            ("listener_manager.worker_3.x", "listener_manager.worker_x", "worker_id=3"),
            ("server.worker_0.watchdog_miss", "server.worker_watchdog_miss", "worker_id=0"),
            ("server.live", "server.live", ""),
            (
                "thread_local_cluster_manager.worker_0.clusters_inflated",
                "thread_local_cluster_manager.worker_clusters_inflated",
                "worker_id=0",
            ),
            ("tcp.tcpx.downstream_cx_total", "tcp.downstream_cx_total", "tcp_prefix=tcpx"),
            (
                "vhost.v.route.rsp.upstream_rq_503",
                "vhost.route.upstream_rq",
                "response_code=503 virtual_host=v route=rsp",
            ),
            (
                "vhost.v.vcluster.other.upstream_rq_5xx",
                "vhost.vcluster.upstream_rq_xx",
                "response_code_class=5 virtual_cluster=other virtual_host=v",
            ),
            ("lim.http_local_rate_limit.ok", "http_local_rate_limit.ok", "local_http_ratelimit_prefix=lim"),
            ("local_rate_limit.n.ok", "local_rate_limit.ok", "local_network_ratelimit_prefix=n"),
            ("proxy_proto.versions.v2.found", "proxy_proto.found", "proxy_protocol_version=2"),
            ("sds.default.update_success", "sds.update_success", "xds_resource_name=default"),
            ("mongo.m.collection.c.query.total", "mongo.collection.query.total", "mongo_collection=c mongo_prefix=m"),
            ("cluster.", "cluster.", ""),
            ("", "", ""),
        ] {
            let Tagged { base: found, tags: found_tags } = extractor.extract(name);
            let shown: Vec<String> = found_tags
                .iter()
                .map(|(tag, value)| format!("{}={value}", tag.strip_prefix("envoy.").unwrap_or(tag)))
                .collect();
            assert_eq!((found.as_str(), shown.join(" ").as_str()), (base, tags), "{name}");
        }
    }

    #[test]
    fn any_text_is_taken_without_a_panic() {
        let extractor = TagExtractor::new(&config(&[], true)).unwrap();
        for name in [
            "listener.é.http.ü.x",
            "_rq_ééé",
            "é_rq_1",
            "listener.[é]_1.x",
            "proxy_proto.v1.x",
            "xx",
            "mongo.a.collection.b",
        ] {
            extractor.extract(name);
        }
    }
}
