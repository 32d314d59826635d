//! TCP proxies as control planes send them.

use std::time::Duration;

use super::TlvMergePolicy;
use crate::listener::tests::{tcp_proxy, with_tcp};

#[test]
fn tlvs_of_a_tcp_proxy_have_a_value_or_a_format() {
    let with = |tlvs: &str| with_tcp(&format!("stat_prefix: t, cluster: c, {tlvs}"));
    let format = "format_string: {text_format_source: {inline_string: '%CONNECTION_ID%'}}";
    let got = with(&format!(
        "proxy_protocol_tlv_merge_policy: APPEND_IF_EXISTS_OR_ADD, \
         proxy_protocol_tlvs: [{{type: 7, {format}}}, {{type: 8, value: YQ==}}]"
    ))
    .unwrap();
    let tlvs = tcp_proxy(&got).proxy_tlvs.as_deref().unwrap();
    assert_eq!((tlvs.policy, tlvs.made[0].kind), (TlvMergePolicy::Append, 7));
    assert_eq!(tlvs.fixed, [(8, b"a"[..].into())]);
    assert!(tcp_proxy(&with("proxy_protocol_tlvs: []").unwrap()).proxy_tlvs.is_none());
    let at = "listener \"l\": filter_chains[0].filters[0].typed_config.proxy_protocol_tlvs[0]";
    for (tlv, expected) in [
        ("{type: 256, value: YQ==}".to_owned(), ".type: 256 is above 255"),
        ("{type: 1}".to_owned(), ": needs one of value, format_string"),
        (format!("{{type: 1, value: YQ==, {format}}}"), ".value: must not be set together with format_string"),
    ] {
        assert_eq!(with(&format!("proxy_protocol_tlvs: [{tlv}]")).unwrap_err(), format!("{at}{expected}"));
    }
}

#[test]
fn a_tcp_proxy_may_wait_for_its_cluster() {
    let with = |fields: &str| with_tcp(&format!("stat_prefix: t, cluster: c, on_demand: {{{fields}}}"));
    let of = |fields: &str| tcp_proxy(&with(fields).unwrap()).on_demand.as_ref().map(|from| from.timeout);
    let source = "odcds_config: {ads: {}, resource_api_version: V3}";
    assert_eq!(of(source), Some(Duration::from_secs(60)));
    assert_eq!(of(&format!("{source}, timeout: 2s")), Some(Duration::from_secs(2)));
    assert_eq!(of(""), None);
    let at = "listener \"l\": filter_chains[0].filters[0].typed_config.on_demand";
    assert_eq!(with("resources_locator: a").unwrap_err(), format!("{at}.resources_locator: is not supported"));
    let error = with("odcds_config: {path_config_source: {path: /a}}").unwrap_err();
    assert!(error.starts_with(&format!("{at}.odcds_config: clusters need a source")), "{error}");
}
