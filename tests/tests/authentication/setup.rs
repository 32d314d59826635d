//! Configurations with authentication, and the times in tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_tests::config::{self, all_to, chain};

pub const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// A listener with the filter.
pub struct Setup {
    pub name: &'static str,
    /// Fields of `JwtAuthentication`, or the filter that takes its place.
    pub settings: String,
    pub other: String,
    /// Filters before and after.
    pub before: String,
    pub after: String,
    /// Routes besides the last one, which leads to cluster `one`.
    pub routes: String,
}

impl Setup {
    pub fn new(name: &'static str, settings: impl Into<String>) -> Self {
        let (other, before, after, routes) = Default::default();
        Self { name, settings: settings.into(), other, before, after, routes }
    }

    pub fn listener(&self) -> String {
        let Self { name, settings, other, before, after, routes } = self;
        let filter = match other.as_str() {
            "" => format!("name: jwt, typed_config: {{ '@type': $T/jwt_authn.v3.JwtAuthentication, {settings} }}"),
            other => other.to_owned(),
        };
        let routes = format!("{routes}{}", all_to("one"));
        let log = config::access_log_of(
            &format!("{name}.log"),
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(envoy.filters.http.jwt_authn)% %DYNAMIC_METADATA(basic)%",
        );
        let manager = format!(
            "{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
             stat_prefix: {name}, http_filters: [{before}{{ {filter} }}, {after}\
             {{ name: envoy.filters.http.router, typed_config: {{ '@type': $T/router.v3.Router }} }}], \
             route_config: {{ name: local, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}] }}{log} }} }}"
        );
        config::listener(name, &[chain(&manager.replace("$T/", &format!("{TYPES}.")), "")], "")
    }
}

/// Seconds since 1970, some time from now.
pub fn seconds_from_now(offset: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("before the end of time") + offset
}
