//! Rules as control planes write them, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::filters::http::rbac::v3 as http;
use outrigger_api::{Schema, UnknownFields};

use super::*;
use crate::context::{Context, NoEnvironment};
use crate::listener::NetworkFilterConfig;
use crate::listener::tests::read as read_listener;
use crate::matcher::{Ask, Input, OnMatch, Predicate};
use crate::rejection::FieldPath;
use crate::tls::SanKind;

const AT: &str = "listener \"l\": filter_chains[0].filters[0].typed_config";
const TYPES: &str = "type.googleapis.com";
const ACTION: &str = "action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, \
    name: policy, action: DENY}}";

/// A network filter of this type with these fields, before a TCP proxy.
fn filter(kind: &str, fields: &str) -> Result<NetworkFilterConfig, String> {
    let listener = read_listener(&format!(
        "name: l\naddress: {{pipe: {{path: /run/l}}}}\nfilter_chains: [{{filters: [{{name: f, typed_config: {{'@type': \
         {TYPES}/envoy.extensions.filters.network.{kind}, {fields}}}}}, {{name: tcp, typed_config: {{'@type': \
         {TYPES}/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}}}]}}]\n"
    ))?;
    Ok(listener.filter_chains[0].filters[0].config.clone())
}

fn network(fields: &str) -> Result<Arc<NetworkRbac>, String> {
    match filter("rbac.v3.RBAC", &format!("stat_prefix: tcp., {fields}"))? {
        NetworkFilterConfig::Rbac(rbac) => Ok(rbac),
        other => panic!("{other:?}"),
    }
}

/// The rejection without where the filter stands.
fn refused<T: std::fmt::Debug>(result: Result<T, String>) -> String {
    let rejection = result.expect_err("it is wrong");
    rejection.strip_prefix(AT).unwrap_or(&rejection).trim_start_matches(['.', ':', ' ']).to_owned()
}

fn rules(engine: Option<&Arc<Engine>>) -> &Rules {
    match engine.map(|engine| &**engine) {
        Some(Engine::Rules(rules)) => rules,
        other => panic!("{other:?}"),
    }
}

fn tree(engine: Option<&Arc<Engine>>) -> (&Matcher<NamedAction>, bool) {
    match engine.map(|engine| &**engine) {
        Some(Engine::Matcher { tree, logs }) => (tree, *logs),
        other => panic!("{other:?}"),
    }
}

fn permission(wire: &str) -> Result<Permission, String> {
    let fields = format!("rules: {{policies: {{p: {{permissions: [{wire}], principals: [{{any: true}}]}}}}}}");
    let rbac = network(&fields)?;
    Ok(rules(rbac.enforced.as_ref()).policies[0].permissions[0].clone())
}

fn principal(wire: &str) -> Result<Principal, String> {
    let fields = format!("rules: {{policies: {{p: {{permissions: [{{any: true}}], principals: [{wire}]}}}}}}");
    let rbac = network(&fields)?;
    Ok(rules(rbac.enforced.as_ref()).policies[0].principals[0].clone())
}

fn http_rbac(yaml: &str) -> Result<HttpRbac, String> {
    let wire = Schema::load().parse_yaml::<http::Rbac>(yaml, UnknownFields::Reject).unwrap().message;
    let at = FieldPath::resource("filter", "f");
    HttpRbac::parse(&Context::new(&NoEnvironment), &at, wire).map_err(|rejection| rejection.to_string())
}

#[test]
fn intentions_of_a_mesh_are_read() {
    let got = network(
        r#"rules: {action: DENY, policies: {consul-intentions-layer4: {permissions: [{any: true}], principals: [{and_ids:
        {ids: [{authenticated: {principal_name: {safe_regex: {google_re2: {}, regex: '^spiffe://[^/]+/ns/default/dc/[^/]+/svc/web$'}}}},
        {not_id: {authenticated: {principal_name: {exact: x}}}}]}}]}}}, delay_deny: 0.2s, enforcement_type: CONTINUOUS"#,
    )
    .unwrap();
    assert_eq!(got.delay_deny, Some(Duration::from_millis(200)));
    assert_eq!((&*got.stat_prefix, got.shadow.is_none()), ("tcp.", true));
    let rules = rules(got.enforced.as_ref());
    assert_eq!(rules.action, Action::Deny);
    let [Policy { name, permissions, principals, condition: None }] = rules.policies.as_slice() else {
        panic!("{rules:?}")
    };
    assert_eq!((&**name, permissions.as_slice()), ("consul-intentions-layer4", &[Permission::Any][..]));
    let [Principal::And(ids)] = principals.as_slice() else { panic!("{principals:?}") };
    let [Principal::Authenticated(Some(StringMatcher::Regex(regex))), Principal::Not(_)] = ids.as_slice() else {
        panic!("{ids:?}")
    };
    assert!(regex.is_match("spiffe://x/ns/default/dc/dc1/svc/web"));
}

#[test]
fn policies_are_in_the_order_of_their_names() {
    let policy = "{permissions: [{any: true}], principals: [{any: true}]}";
    let got = network(&format!("rules: {{policies: {{b: {policy}, a: {policy}, B: {policy}}}}}")).unwrap();
    let names: Vec<&str> = rules(got.enforced.as_ref()).policies.iter().map(|policy| &*policy.name).collect();
    assert_eq!(names, ["B", "a", "b"]);
    let got = network("shadow_rules: {}, shadow_rules_stat_prefix: istio_dry_run_").unwrap();
    assert!(got.enforced.is_none());
    assert_eq!(rules(got.shadow.as_ref()), &Rules { action: Action::Allow, policies: Vec::new() });
    assert_eq!(&*got.shadow_stat_prefix, "istio_dry_run_");
}

#[test]
fn every_permission_is_read() {
    let exact = |value: &str| StringMatcher::Exact { value: value.into(), ignore_case: false };
    let any = || vec![Permission::Any];
    for (wire, expected) in [
        ("{and_rules: {rules: [{any: true}]}}", Permission::And(any())),
        ("{or_rules: {rules: [{any: true}]}}", Permission::Or(any())),
        ("{not_rule: {any: true}}", Permission::Not(Box::new(Permission::Any))),
        ("{url_path: {path: {exact: /a}}}", Permission::UrlPath(exact("/a"))),
        (
            "{destination_ip: {address_prefix: 10.1.2.3, prefix_len: 8}}",
            Permission::DestinationIp("10.0.0.0/8".parse().unwrap()),
        ),
        ("{destination_port: 80}", Permission::DestinationPort(80)),
        ("{destination_port_range: {start: 1, end: 65536}}", Permission::DestinationPorts { start: 1, end: 65536 }),
        ("{requested_server_name: {exact: s}}", Permission::RequestedServerName(exact("s"))),
    ] {
        assert_eq!(permission(wire).unwrap(), expected, "{wire}");
    }
    let value = "filter: f, path: [{key: a}, {key: b}], value: {string_match: {exact: v}}, invert: true";
    for (wire, source) in [
        (format!("{{metadata: {{{value}}}}}"), MetadataSource::Dynamic),
        (format!("{{sourced_metadata: {{metadata_matcher: {{{value}}}}}}}"), MetadataSource::Dynamic),
        (
            format!("{{sourced_metadata: {{metadata_matcher: {{{value}}}, metadata_source: ROUTE}}}}"),
            MetadataSource::Route,
        ),
    ] {
        let Permission::Metadata(got) = permission(&wire).unwrap() else { panic!("{wire}") };
        assert_eq!((got.source, &*got.matcher.filter, got.matcher.invert), (source, "f", true));
        assert_eq!(got.matcher.path, ["a".into(), "b".into()]);
    }
    let template = permission(
        "{uri_template: {name: t, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/*'}}}",
    );
    let Ok(Permission::UriTemplate(template)) = template else { panic!("{template:?}") };
    assert_eq!(template.as_str(), "/a/*");
}

#[test]
fn every_principal_is_read() {
    let exact = |value: &str| StringMatcher::Exact { value: value.into(), ignore_case: false };
    let net = "{address_prefix: 10.0.0.0, prefix_len: 8}";
    let network = "10.0.0.0/8".parse().unwrap();
    let any = || vec![Principal::Any];
    for (wire, expected) in [
        ("{and_ids: {ids: [{any: true}]}}".to_owned(), Principal::And(any())),
        ("{or_ids: {ids: [{any: true}]}}".to_owned(), Principal::Or(any())),
        ("{not_id: {any: true}}".to_owned(), Principal::Not(Box::new(Principal::Any))),
        ("{authenticated: {}}".to_owned(), Principal::Authenticated(None)),
        ("{authenticated: {principal_name: {exact: n}}}".to_owned(), Principal::Authenticated(Some(exact("n")))),
        (format!("{{source_ip: {net}}}"), Principal::SourceIp(network)),
        (format!("{{direct_remote_ip: {net}}}"), Principal::DirectRemoteIp(network)),
        (format!("{{remote_ip: {net}}}"), Principal::RemoteIp(network)),
        ("{url_path: {path: {exact: /a}}}".to_owned(), Principal::UrlPath(exact("/a"))),
    ] {
        assert_eq!(principal(&wire).unwrap(), expected, "{wire}");
    }
    let mtls = |fields: &str| {
        principal(&format!(
            "{{custom: {{name: m, typed_config: {{'@type': \
             {TYPES}/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config{fields}}}}}}}"
        ))
    };
    assert_eq!(mtls(", any_validated_client_certificate: true").unwrap(), Principal::MtlsAuthenticated(None));
    let got = mtls(", san_matcher: {san_type: URI, matcher: {exact: u}}").unwrap();
    let expected = crate::tls::SanMatcher { kind: Some(SanKind::Uri), oid: None, matcher: exact("u") };
    assert_eq!(got, Principal::MtlsAuthenticated(Some(expected)));
    assert!(refused(mtls("")).ends_with("typed_config: needs san_matcher or any_validated_client_certificate"));
    let Principal::FilterState(got) =
        principal("{filter_state: {key: k, address_match: {ranges: [{address_prefix: '::1'}]}}}").unwrap()
    else {
        panic!()
    };
    assert_eq!(&*got.key, "k");
}

#[test]
fn what_could_not_be_enforced_is_refused() {
    let policy = |fields: &str| network(&format!("rules: {{policies: {{p: {{{fields}}}}}}}"));
    let both = "permissions: [{any: true}], principals: [{any: true}]";
    for (result, expected) in [
        (policy("permissions: [{any: true}]"), "rules.policies[\"p\"].principals: must not be empty"),
        (policy("principals: [{any: true}]"), "rules.policies[\"p\"].permissions: must not be empty"),
        (
            policy(&format!("{both}, condition: {{call_expr: {{function: nope, args: []}}}}")),
            "rules.policies[\"p\"].condition: there is no function nope",
        ),
        (
            policy(&format!("{both}, checked_condition: {{expr: {{}}}}")),
            "rules.policies[\"p\"].checked_condition.expr: a part of the expression is empty",
        ),
        (
            network(
                "rules: {audit_logging_options: {audit_condition: ON_DENY, logger_configs: [{is_optional: true}, {}]}}",
            ),
            "rules.audit_logging_options.logger_configs[1].audit_logger: is not supported",
        ),
        (network("rules: {action: 7}"), "rules.action: 7 is not a known value"),
        (network("enforcement_type: 7"), "enforcement_type: 7 is not a known value"),
    ] {
        assert_eq!(refused(result), expected);
    }
    assert!(network("rules: {audit_logging_options: {logger_configs: [{}]}}").is_ok());
    let optional = "rules: {audit_logging_options: {audit_condition: ON_DENY, logger_configs: [{is_optional: true}]}}";
    assert!(network(optional).is_ok());
    for (wire, expected) in [
        ("{any: false}", ".any: false is not a permission"),
        ("{header: {name: x}}", ".header: exists in HTTP requests only"),
        ("{not_rule: {header: {name: x}}}", ".not_rule.header: exists in HTTP requests only"),
        ("{destination_port: 65536}", ".destination_port: 65536 is not a port, expected 0 to 65535"),
        (
            "{destination_port_range: {start: 5, end: 5}}",
            ".destination_port_range: 5 to 5 is not a range of ports, expected 0 to 65536",
        ),
        (
            "{destination_port_range: {start: -1, end: 5}}",
            ".destination_port_range: -1 to 5 is not a range of ports, expected 0 to 65536",
        ),
        ("{and_rules: {}}", ".and_rules.rules: must not be empty"),
        ("{matcher: {name: m}}", ".matcher: is not supported"),
        ("{uri_template: {name: t}}", ".uri_template.typed_config: is required"),
        ("{sourced_metadata: {}}", ".sourced_metadata.metadata_matcher: is required"),
        ("{metadata: {filter: f, path: [{}], value: {null_match: {}}}}", ".metadata.path[0].key: must not be empty"),
    ] {
        let place = "rules.policies[\"p\"].permissions[0]";
        assert_eq!(refused(permission(wire)), format!("{place}{expected}"), "{wire}");
    }
    for (wire, expected) in [
        ("{any: false}", ".any: false is not a principal"),
        ("{header: {name: x}}", ".header: exists in HTTP requests only"),
        ("{or_ids: {}}", ".or_ids.ids: must not be empty"),
        ("{custom: {name: c}}", ".custom.typed_config: is required"),
        ("{filter_state: {key: k}}", ".filter_state: needs one of string_match, address_match"),
    ] {
        let place = "rules.policies[\"p\"].principals[0]";
        assert_eq!(refused(principal(wire)), format!("{place}{expected}"), "{wire}");
    }
    assert!(refused(permission("{}")).contains("permissions[0]: needs one of and_rules"));
    assert!(refused(principal("{}")).contains("principals[0]: needs one of and_ids"));
}

fn input(kind: &str) -> String {
    format!("input: {{name: i, typed_config: {{'@type': {TYPES}/{kind}}}}}")
}

fn list(input: &str, value: &str) -> String {
    format!(
        "matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{{input}, {value}}}}}, \
         on_match: {{{ACTION}}}}}]}}}}"
    )
}

#[test]
fn match_trees_take_the_place_of_rules() {
    let uri = input("envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput");
    let got = network(&format!("rules: {{}}, {}", list(&uri, "value_match: {prefix: 'spiffe://'}"))).unwrap();
    let (tree, logs) = tree(got.enforced.as_ref());
    let Some(Ask::List(list)) = &tree.ask else { panic!("{tree:?}") };
    assert!(!logs);
    let [(Predicate::Single { input: Input::UriSan, .. }, OnMatch::Action(action))] = list.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!((&*action.name, action.action), ("policy", Action::Deny));
    let log = ACTION.replace("DENY", "LOG");
    let got = network(&format!("shadow_matcher: {{on_no_match: {{matcher: {{on_no_match: {{{log}}}}}}}}}")).unwrap();
    assert!(self::tree(got.shadow.as_ref()).1);
    assert!(network("matcher: {}").unwrap().enforced.is_some());
}

#[test]
fn match_trees_by_maps_are_read() {
    let port = input("envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput");
    let by = |kind: &str| {
        let map = format!("{kind}: {{map: {{'80': {{{ACTION}}}, '443': {{{ACTION}}}}}}}");
        network(&format!("matcher: {{matcher_tree: {{{port}, {map}}}}}"))
    };
    let keys =
        |map: &[(Box<str>, OnMatch<NamedAction>)]| map.iter().map(|(key, _)| key.to_string()).collect::<Vec<String>>();
    let got = by("exact_match_map").unwrap();
    let Some(Ask::Exact { input: Input::DestinationPort, map }) = &tree(got.enforced.as_ref()).0.ask else { panic!() };
    assert_eq!(keys(map), ["443", "80"]);
    let got = by("prefix_match_map").unwrap();
    assert!(matches!(&tree(got.enforced.as_ref()).0.ask, Some(Ask::Prefix { .. })));
}

#[test]
fn bad_match_trees_are_refused() {
    let text = "value_match: {exact: v}";
    let source = input("envoy.extensions.matching.common_inputs.network.v3.SourceIPInput");
    let header = input("envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: X-A");
    let unknown = input("envoy.extensions.matching.common_inputs.network.v3.NetworkNamespaceInput");
    let metadata = "custom_match: {name: m, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.matching.input_matchers.metadata.v3.Metadata, value: {null_match: {}}}}";
    let place = "matcher.matcher_list.matchers[0]";
    let at = |rest: &str| format!("{place}.{rest}");
    for (result, expected) in [
        (
            network(&list(&header, text)),
            at("predicate.single_predicate.input: exists in HTTP requests only, and this is a connection"),
        ),
        (
            network(&list(&unknown, text)),
            at("predicate.single_predicate.input.typed_config: the input \
                \"type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.NetworkNamespaceInput\" is not supported"),
        ),
        (network(&list(&source, "")), at("predicate.single_predicate: needs one of value_match, custom_match")),
        (
            network(&list(&source, metadata)),
            at("predicate.single_predicate.custom_match.typed_config: needs metadata as its input"),
        ),
        (
            network(&list(&source, text).replace("on_match: {", "on_match: {keep_matching: true, ")),
            at("on_match.keep_matching: is not supported"),
        ),
        (
            network(&list(&source, text).replace("name: policy, ", "")),
            at("on_match.action.typed_config.name: must not be empty"),
        ),
        (network("matcher: {matcher_list: {}}"), "matcher.matcher_list.matchers: must not be empty".to_owned()),
        (network("matcher: {on_no_match: {}}"), "matcher.on_no_match: needs one of matcher, action".to_owned()),
    ] {
        assert_eq!(refused(result), expected);
    }
    let http = http_rbac(&format!("{{{}}}", list(&header, text))).unwrap();
    let Some(Ask::List(list)) = &tree(http.enforced.as_ref()).0.ask else { panic!() };
    let Predicate::Single { input: Input::RequestHeader { name }, .. } = &list[0].0 else { panic!() };
    assert_eq!(&**name, "x-a");
}

#[test]
fn the_http_filter_knows_headers_and_routes() {
    let got = http_rbac(
        "{rules: {policies: {p: {permissions: [{header: {name: ':method', exact_match: GET}}], principals: [{header: \
         {name: X-A, present_match: true}}]}}}, rules_stat_prefix: r, shadow_rules_stat_prefix: s, track_per_rule_stats: true}",
    )
    .unwrap();
    let policy = &rules(got.enforced.as_ref()).policies[0];
    assert!(matches!(&policy.permissions[0], Permission::Header(matcher) if &*matcher.name == ":method"));
    assert!(matches!(&policy.principals[0], Principal::Header(matcher) if &*matcher.name == "x-a"));
    assert_eq!((&*got.stat_prefix, &*got.shadow_stat_prefix, got.track_per_rule_stats), ("r", "s", true));
    let at = FieldPath::resource("route", "r");
    let per_route = |wire| HttpRbac::parse_per_route(&Context::new(&NoEnvironment), &at, wire).unwrap();
    assert_eq!(per_route(http::RbacPerRoute { rbac: None }), None);
    assert_eq!(per_route(http::RbacPerRoute { rbac: Some(http::Rbac::default()) }), Some(HttpRbac::default()));
}

#[test]
fn small_network_filters_are_read() {
    let limit = |fields: &str| filter("connection_limit.v3.ConnectionLimit", fields);
    let Ok(NetworkFilterConfig::ConnectionLimit(got)) =
        limit("stat_prefix: s, max_connections: 7, delay: 2s, runtime_enabled: {default_value: false, runtime_key: k}")
    else {
        panic!()
    };
    assert_eq!((got.max_connections, got.delay, got.enabled.default), (7, Some(Duration::from_secs(2)), false));
    assert_eq!(refused(limit("stat_prefix: s, max_connections: 0")), "max_connections: 0 must be above zero");
    assert_eq!(refused(limit("stat_prefix: s")), "max_connections: is required");
    assert_eq!(refused(limit("max_connections: 1")), "stat_prefix: must not be empty");
    let rate = |fields: &str| filter("local_ratelimit.v3.LocalRateLimit", &format!("stat_prefix: s, {fields}"));
    let Ok(NetworkFilterConfig::LocalRateLimit(got)) =
        rate("token_bucket: {max_tokens: 5, fill_interval: 1s}, share_key: k")
    else {
        panic!()
    };
    assert_eq!((got.bucket.max_tokens, got.bucket.tokens_per_fill, got.share_key.as_deref()), (5, 1, Some("k")));
    assert_eq!(refused(rate("token_bucket: {max_tokens: 5}")), "token_bucket.fill_interval: is required");
    assert_eq!(
        refused(rate("token_bucket: {max_tokens: 5, fill_interval: 0.01s}")),
        "token_bucket.fill_interval: 10ms is below 50ms"
    );
    let state = filter(
        "set_filter_state.v3.Config",
        "on_new_connection: [{object_key: envoy.tcp_proxy.cluster, format_string: {text_format_source: {inline_string: c}}}], \
         on_downstream_data: [{object_key: k, factory_key: envoy.string, format_string: {text_format_source: \
         {inline_string: '%CONNECTION_ID%'}}}]",
    );
    let Ok(NetworkFilterConfig::SetFilterState(got)) = state else { panic!("{state:?}") };
    assert_eq!(got.objects.iter().map(|object| &*object.key).collect::<Vec<_>>(), ["envoy.tcp_proxy.cluster", "k"]);
    assert!(matches!(filter("sni_cluster.v3.SniCluster", ""), Ok(NetworkFilterConfig::SniCluster)));
}
