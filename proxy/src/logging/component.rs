//! The components that have a log level each, by the names of Envoy's loggers.
//!
//! Owns which part of our code, and which library, counts as which component. Never knows their levels.

use std::fmt;
use std::str::FromStr;

use super::level::{Level, UnknownLevel};

/// Envoy's loggers, in the order of its `/logging` page. Those of features that are not built in are kept, so that
/// command lines that name them go on working.
const NAMES: [&str; COUNT] = [
    "a2a",
    "admin",
    "ai_protocol_manager",
    "alternate_protocols_cache",
    "aws",
    "assert",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "config",
    "connection",
    "conn_handler",
    "compression",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "rocketmq",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "json_rpc",
    "kafka",
    "key_value_store",
    "lua",
    "local_rate_limit",
    "main",
    "matcher",
    "mcp",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "pool",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "router",
    "runtime",
    "stats",
    "secret",
    "sse",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "upstream",
    "udp",
    "wasm",
    "websocket",
    "golang",
    "stats_sinks",
    "dynamic_modules",
    "ip_tagging",
];

/// How many components there are.
pub(super) const COUNT: usize = 73;

/// Modules and the component that their events belong to. The longest prefix counts.
const MODULES: [(&str, &str); 33] = [
    ("h2", "http2"),
    ("hickory_net", "dns"),
    ("hickory_proto", "dns"),
    ("hickory_resolver", "dns"),
    ("hyper", "http"),
    ("hyper_util", "http"),
    ("outrigger", "main"),
    ("outrigger::accesslog", "file"),
    ("outrigger::admin", "admin"),
    ("outrigger::bootstrap", "config"),
    ("outrigger::graph", "config"),
    ("outrigger::graph::runtime", "runtime"),
    ("outrigger::http", "http"),
    ("outrigger::http::filter", "filter"),
    ("outrigger::http::h2", "http2"),
    ("outrigger::http::router", "router"),
    ("outrigger::lifecycle", "main"),
    ("outrigger::listener", "conn_handler"),
    ("outrigger::stats", "stats"),
    ("outrigger::tcp", "filter"),
    ("outrigger::tls", "connection"),
    ("outrigger::trace", "tracing"),
    ("outrigger::upstream", "upstream"),
    ("outrigger::upstream::dns", "dns"),
    ("outrigger::upstream::health", "hc"),
    ("outrigger::upstream::pool", "pool"),
    ("outrigger::worker", "main"),
    ("outrigger_config", "config"),
    ("outrigger_policy", "upstream"),
    ("outrigger_xds", "config"),
    ("rustls", "connection"),
    ("tonic", "grpc"),
    ("tower", "grpc"),
];

/// Everything else.
const OTHER: &str = "misc";

/// Something that has a log level: an index into `NAMES`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Component(u8);

impl Component {
    /// All components.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT).map(|index| Component(index as u8))
    }

    /// The component of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|component| component.name() == name)
    }

    /// As Envoy calls it.
    pub fn name(self) -> &'static str {
        NAMES[self.index()]
    }

    /// The component of events with this target: a module path, or the name of a component itself.
    pub(super) fn of_target(target: &str) -> Self {
        let belongs =
            |module: &str| target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        let module = MODULES.iter().filter(|(module, _)| belongs(module)).max_by_key(|(module, _)| module.len());
        Self::named(target).or_else(|| Self::named(module.map_or(OTHER, |(_, name)| name))).unwrap_or(Component(0))
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Levels of some components, written `upstream:debug,http:trace`. Later ones win.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ComponentLevels(Vec<(Component, Level)>);

impl ComponentLevels {
    /// In the order given.
    pub fn iter(&self) -> impl Iterator<Item = (Component, Level)> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<(Component, Level)> for ComponentLevels {
    fn from_iter<I: IntoIterator<Item = (Component, Level)>>(levels: I) -> Self {
        Self(levels.into_iter().collect())
    }
}

/// Why a list of levels cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ComponentLevelError {
    /// Without a colon, or with several.
    #[error("{0:?} is not of the form component:level")]
    Form(String),
    /// No such component.
    #[error("there is no component {name:?}{}", near.map(|near| format!(", did you mean {near:?}?")).unwrap_or_default())]
    Component {
        /// As written.
        name: String,
        /// One that begins so.
        near: Option<&'static str>,
    },
    /// No such level.
    #[error(transparent)]
    Level(#[from] UnknownLevel),
}

impl FromStr for ComponentLevels {
    type Err = ComponentLevelError;

    fn from_str(text: &str) -> Result<Self, ComponentLevelError> {
        let entry = |entry: &str| {
            let (name, level) = entry.split_once(':').ok_or_else(|| ComponentLevelError::Form(entry.to_owned()))?;
            let component = Component::named(name).ok_or_else(|| {
                let near =
                    Component::all().map(Component::name).find(|known| known.starts_with(name) && name.len() > 1);
                ComponentLevelError::Component { name: name.to_owned(), near }
            })?;
            Ok((component, level.parse::<Level>()?))
        };
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_modules_point_to_them() {
        let names: std::collections::BTreeSet<_> = Component::all().map(Component::name).collect();
        assert_eq!(names.len(), COUNT);
        for (module, name) in MODULES {
            assert!(Component::named(name).is_some(), "{module} -> {name}");
        }
        assert!(MODULES.is_sorted(), "a sorted table is easier to keep");
        assert_eq!(Component::all().last().unwrap().name(), "ip_tagging");
    }

    #[test]
    fn targets_belong_to_components() {
        for (target, component) in [
            ("outrigger", "main"),
            ("outrigger::upstream::pool", "pool"),
            ("outrigger::upstream::pool::idle", "pool"),
            ("outrigger::upstream::pools", "upstream"),
            ("outrigger::process", "main"),
            ("outrigger_xds::client", "config"),
            ("h2::codec::framed_read", "http2"),
            ("mio::poll", "misc"),
            ("connection", "connection"),
        ] {
            assert_eq!(Component::of_target(target).name(), component, "{target}");
        }
    }

    #[test]
    fn lists_are_read() {
        let levels: ComponentLevels = "upstream:debug,connection:trace".parse().unwrap();
        let shown: Vec<_> = levels.iter().map(|(component, level)| format!("{component}={level}")).collect();
        assert_eq!(shown, ["upstream=debug", "connection=trace"]);
        assert_eq!("".parse(), Ok(ComponentLevels::default()));
        for (text, message) in [
            ("upstream", "\"upstream\" is not of the form component:level"),
            ("upstrea:debug", "there is no component \"upstrea\", did you mean \"upstream\"?"),
            ("foo:debug", "there is no component \"foo\""),
            ("http:x", "\"x\" is none of trace, debug, info, warning, error, critical, off"),
        ] {
            assert_eq!(text.parse::<ComponentLevels>().unwrap_err().to_string(), message);
        }
    }
}
