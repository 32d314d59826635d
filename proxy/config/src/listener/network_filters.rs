//! Reads filter chains' network filters, configured in place or discovered.
//!
//! Owns which types exist and their order. Never reads what is inside a filter's own config.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::listener::v3 as pb;
use outrigger_api::pb::google::protobuf::Any;

use super::{NetworkFilter, NetworkFilterConfig};
use crate::context::Context;
use crate::decide::decide;
use crate::extension::{DiscoveredFilter, Kind, message_name};
use crate::http::HttpConnectionManager;
use crate::istio::{MetadataExchange, StandardMetrics};
use crate::network::{
    ConnectionLimit, ExtAuthz, GlobalRateLimit, LocalRateLimit, OwnAnswer, SetFilterState, SniDynamicForward,
    sni_cluster,
};
use crate::rbac::NetworkRbac;
use crate::rejection::{FieldPath, Parsed};
use crate::tcp::TcpProxy;
use crate::wire;

/// Reads the filters of a chain: the last one is terminal, and no other.
pub(super) fn network_filters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::Filter>,
) -> Parsed<Vec<NetworkFilter>> {
    let last = wire.len().saturating_sub(1);
    let mut filters = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let filter = NetworkFilter::parse(context, &at, wire)?;
        match (filter.config.is_terminal(), index == last) {
            (true, false) => {
                return Err(
                    at.reject(format!("the terminal filter {:?} must be the last one of its chain", filter.name))
                );
            }
            (false, true) => {
                return Err(at.reject(format!(
                    "the last filter {:?} is not terminal, expected a TCP proxy or an HTTP connection manager",
                    filter.name
                )));
            }
            (true, true) | (false, false) => {}
        }
        filters.push(filter);
    }
    Ok(filters)
}

impl NetworkFilter {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::Filter) -> Parsed<Self> {
        decide!(wire, at, pb::Filter as "envoy.config.listener.v3.Filter" {
            implemented: name, config_type;
            no_effect: ;
            unsupported: ;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let name: Arc<str> = name.into();
        let config = match config_type {
            Some(pb::filter::ConfigType::TypedConfig(any)) => {
                NetworkFilterConfig::parse(context, &at.field("typed_config"), any)?
            }
            Some(pb::filter::ConfigType::ConfigDiscovery(wire)) => {
                let field = at.field("config_discovery");
                let discovered = DiscoveredFilter::parse(context, &field, Arc::clone(&name), wire, &KIND)?;
                NetworkFilterConfig::Discovered(Arc::new(discovered))
            }
            None => return Err(at.field("typed_config").reject("is required")),
        };
        Ok(Self { name, config })
    }
}

impl NetworkFilterConfig {
    /// Whether a message of this name is one of the network filters.
    pub(crate) fn exists(type_name: &str) -> bool {
        TERMINAL.contains(&type_name) || OTHERS.contains(&type_name)
    }

    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: Any) -> Parsed<Self> {
        let any = wire::extension(context, at, wire)?;
        match wire::type_name(&any) {
            TCP_PROXY => Ok(Self::TcpProxy(Arc::new(TcpProxy::parse(context, at, wire::decode(at, &any)?)?))),
            HTTP_CONNECTION_MANAGER => {
                Ok(Self::Http(Arc::new(HttpConnectionManager::parse(context, at, wire::decode(at, &any)?)?)))
            }
            DIRECT_RESPONSE => Ok(Self::OwnAnswer(OwnAnswer::fixed(context, at, wire::decode(at, &any)?)?)),
            ECHO => Ok(Self::OwnAnswer(OwnAnswer::echo(wire::decode(at, &any)?))),
            RBAC => Ok(Self::Rbac(Arc::new(NetworkRbac::parse(context, at, wire::decode(at, &any)?)?))),
            EXT_AUTHZ => Ok(Self::ExtAuthz(Arc::new(ExtAuthz::parse(context, at, wire::decode(at, &any)?)?))),
            GLOBAL_RATE_LIMIT => {
                let settings = GlobalRateLimit::parse(context, at, wire::decode(at, &any)?)?;
                Ok(Self::GlobalRateLimit(Arc::new(settings)))
            }
            CONNECTION_LIMIT => {
                Ok(Self::ConnectionLimit(Arc::new(ConnectionLimit::parse(at, wire::decode(at, &any)?)?)))
            }
            LOCAL_RATE_LIMIT => Ok(Self::LocalRateLimit(Arc::new(LocalRateLimit::parse(at, wire::decode(at, &any)?)?))),
            SNI_CLUSTER => {
                sni_cluster(wire::decode(at, &any)?);
                Ok(Self::SniCluster)
            }
            SNI_DYNAMIC_FORWARD => {
                let settings = SniDynamicForward::parse(context, at, wire::decode(at, &any)?)?;
                Ok(Self::SniDynamicForward(Arc::new(settings)))
            }
            SET_FILTER_STATE => {
                Ok(Self::SetFilterState(Arc::new(SetFilterState::parse(context, at, wire::decode(at, &any)?)?)))
            }
            MetadataExchange::TYPE_NAME => {
                Ok(Self::MetadataExchange(Arc::new(MetadataExchange::parse(at, wire::decode(at, &any)?)?)))
            }
            ISTIO_STATS => Ok(Self::IstioStats(Arc::new(StandardMetrics::parse(at, wire::decode(at, &any)?)?))),
            _ => Err(at.reject(format!("the network filter {:?} is not supported", any.type_url))),
        }
    }

    /// Whether it ends a chain. A discovered filter is what its types are.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::TcpProxy(_) | Self::Http(_) | Self::OwnAnswer(_) => true,
            Self::Rbac(_)
            | Self::ExtAuthz(_)
            | Self::GlobalRateLimit(_)
            | Self::ConnectionLimit(_)
            | Self::LocalRateLimit(_)
            | Self::SniCluster
            | Self::SniDynamicForward(_)
            | Self::SetFilterState(_)
            | Self::MetadataExchange(_)
            | Self::IstioStats(_) => false,
            Self::Discovered(filter) => filter.type_urls.iter().all(|url| TERMINAL.contains(&message_name(url))),
        }
    }
}

/// Discovered network filters: either all of them end a chain, or none does.
const KIND: Kind<NetworkFilterConfig> = Kind {
    check_types: |_, at, type_urls| {
        for (index, url) in type_urls.iter().enumerate() {
            if !NetworkFilterConfig::exists(message_name(url)) {
                return Err(at.item(index).reject(format!("the network filter {url:?} is not supported")));
            }
            if TERMINAL.contains(&message_name(url)) != TERMINAL.contains(&message_name(&type_urls[0])) {
                return Err(at.item(index).reject("terminal and other filters must not stand in one list"));
            }
        }
        Ok(())
    },
    read: NetworkFilterConfig::parse,
};

const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP_CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const EXT_AUTHZ: &str = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";
const GLOBAL_RATE_LIMIT: &str = "envoy.extensions.filters.network.ratelimit.v3.RateLimit";
const CONNECTION_LIMIT: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";
const SNI_DYNAMIC_FORWARD: &str = "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig";
const SET_FILTER_STATE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";
const DIRECT_RESPONSE: &str = "envoy.extensions.filters.network.direct_response.v3.Config";
const ECHO: &str = "envoy.extensions.filters.network.echo.v3.Echo";
const TERMINAL: [&str; 4] = [TCP_PROXY, HTTP_CONNECTION_MANAGER, DIRECT_RESPONSE, ECHO];
const ISTIO_STATS: &str = "stats.PluginConfig";
const OTHERS: [&str; 10] = [
    RBAC,
    EXT_AUTHZ,
    GLOBAL_RATE_LIMIT,
    CONNECTION_LIMIT,
    LOCAL_RATE_LIMIT,
    SNI_CLUSTER,
    SNI_DYNAMIC_FORWARD,
    SET_FILTER_STATE,
    MetadataExchange::TYPE_NAME,
    ISTIO_STATS,
];
