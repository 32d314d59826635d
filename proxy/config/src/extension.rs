//! Filters that a control plane hands out one by one (extension config discovery).
//!
//! Owns how filters are asked for, and which kinds of them a resource can hold. Never reads what is inside a filter.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::google::protobuf::Any;

use crate::context::Context;
use crate::decide::decide;
use crate::http::HttpFilterConfig;
use crate::listener::{ListenerFilterKind, NetworkFilterConfig};
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, ConfigSource};
use crate::wire;

/// A filter that comes by discovery. Source: `envoy.config.core.v3.ExtensionConfigSource`.
#[derive(Debug)]
pub struct DiscoveredFilter<F> {
    /// The name of the TypedExtensionConfig resource.
    pub name: Arc<str>,
    /// Where it comes from.
    pub source: ConfigSource,
    /// Used until (or instead of) the discovered one.
    pub default: Option<F>,
    /// Use the default without waiting for discovery.
    pub apply_default_without_warming: bool,
    /// Type URLs (of the inner config) that are accepted; others are refused.
    pub type_urls: Vec<String>,
}

/// Two are the same only if they are one.
impl<F> PartialEq for DiscoveredFilter<F> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// How the filters of a kind are read.
pub(crate) struct Kind<F> {
    /// Whether these type URLs may stand in one list.
    pub check_types: fn(&Context<'_>, &FieldPath<'_>, &[String]) -> Parsed<()>,
    /// Reads one.
    pub read: fn(&Context<'_>, &FieldPath<'_>, Any) -> Parsed<F>,
}

impl<F> DiscoveredFilter<F> {
    /// Whether a filter of this message may take the place.
    pub fn accepts(&self, type_name: &str) -> bool {
        self.type_urls.iter().any(|url| message_name(url) == type_name)
    }

    /// Whether the listener waits for it.
    pub fn waits(&self) -> bool {
        !(self.default.is_some() && self.apply_default_without_warming)
    }

    pub(crate) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        name: Arc<str>,
        wire: core::ExtensionConfigSource,
        kind: &Kind<F>,
    ) -> Parsed<Self> {
        decide!(wire, at, core::ExtensionConfigSource as "envoy.config.core.v3.ExtensionConfigSource" {
            implemented: config_source, default_config, apply_default_config_without_warming, type_urls;
            no_effect: ;
            unsupported: ;
        });
        let Some(config_source) = config_source else {
            return Err(at.field("config_source").reject("is required"));
        };
        let types = at.field("type_urls");
        if type_urls.is_empty() {
            return Err(types.reject("must not be empty"));
        }
        (kind.check_types)(context, &types, &type_urls)?;
        let default = match default_config {
            Some(any) => {
                let field = at.field("default_config");
                let any = wire::extension(context, &field, any)?;
                if !type_urls.iter().any(|url| message_name(url) == wire::type_name(&any)) {
                    return Err(field.reject(format!("has type {:?}, which is not in type_urls", any.type_url)));
                }
                Some((kind.read)(context, &field, any)?)
            }
            None if apply_default_config_without_warming => {
                return Err(at.field("apply_default_config_without_warming").reject("needs default_config"));
            }
            None => None,
        };
        Ok(Self {
            name,
            source: source::config_source(context, &at.field("config_source"), config_source)?,
            default,
            apply_default_without_warming: apply_default_config_without_warming,
            type_urls,
        })
    }
}

/// A discovered filter as it came. Some types stand for filters of more than one kind.
/// Source: `envoy.config.core.v3.TypedExtensionConfig`.
#[derive(Clone, Debug)]
pub struct Extension {
    /// The name of the filter's message.
    pub type_name: Arc<str>,
    /// For a connection manager.
    pub http: Option<HttpFilterConfig>,
    /// For a filter chain.
    pub network: Option<NetworkFilterConfig>,
    /// For a listener.
    pub listener: Option<ListenerFilterKind>,
}

impl Extension {
    /// Reads a resource of extension config discovery.
    pub fn parse(context: &Context<'_>, wire: core::TypedExtensionConfig) -> Parsed<Self> {
        let core::TypedExtensionConfig { name, typed_config } = wire;
        let root = FieldPath::resource("extension config", &name);
        if name.is_empty() {
            return Err(root.field("name").reject("must not be empty"));
        }
        let at = root.field("typed_config");
        let Some(any) = typed_config else {
            return Err(at.reject("is required"));
        };
        let any = wire::extension(context, &at, any)?;
        let type_name: Arc<str> = wire::type_name(&any).into();
        let http = HttpFilterConfig::parse(context, &at, &any)?;
        let listener = match ListenerFilterKind::exists(&type_name) {
            true => Some(ListenerFilterKind::parse(&at, &any)?),
            false => None,
        };
        let network = match NetworkFilterConfig::exists(&type_name) {
            true => Some(NetworkFilterConfig::parse(context, &at, any)?),
            false if http.is_none() && listener.is_none() => {
                return Err(at.reject(format!("the filter {:?} is not supported", any.type_url)));
            }
            false => None,
        };
        Ok(Self { type_name, http, network, listener })
    }
}

/// The message that a type URL names.
pub(crate) fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}
