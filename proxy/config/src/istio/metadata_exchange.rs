//! Saying who one is before the first byte of the application (`envoy.tcp.metadataexchange.config.MetadataExchange`).
//!
//! Owns the filter on both sides: in filter chains, and in the `filters` of clusters. Never sends a byte.

use std::sync::Arc;

use outrigger_api::istio::metadata_exchange as pb;
use outrigger_api::pb::envoy::config::cluster::v3 as cluster;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.tcp.metadataexchange.config.MetadataExchange`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetadataExchange {
    /// Both sides do it only if they negotiated this protocol (ALPN).
    pub protocol: Box<str>,
    /// Labels of ours that are told beside the usual ones.
    pub additional_labels: Vec<String>,
}

impl MetadataExchange {
    /// The name of the message.
    pub(crate) const TYPE_NAME: &'static str = "envoy.tcp.metadataexchange.config.MetadataExchange";

    /// Reads the message at `at`.
    pub(crate) fn parse(at: &FieldPath<'_>, wire: pb::MetadataExchange) -> Parsed<Self> {
        decide!(wire, at, pb::MetadataExchange as "envoy.tcp.metadataexchange.config.MetadataExchange" {
            implemented: protocol, additional_labels;
            no_effect: enable_discovery = "there is no discovery of workloads";
            unsupported: ;
        });
        if protocol.is_empty() {
            return Err(at.field("protocol").reject("must not be empty"));
        }
        Ok(Self { protocol: protocol.into(), additional_labels })
    }
}

/// Reads the filters on connections of a cluster, among which only this one exists.
pub(crate) fn upstream_filters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<cluster::Filter>,
) -> Parsed<Option<Arc<MetadataExchange>>> {
    let mut exchange = None;
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        decide!(wire, at, cluster::Filter as "envoy.config.cluster.v3.Filter" {
            implemented: name, typed_config;
            no_effect: ;
            unsupported: config_discovery;
        });
        if name.is_empty() {
            return Err(at.field("name").reject("must not be empty"));
        }
        let config = at.field("typed_config");
        let Some(any) = typed_config else { return Err(config.reject("is required")) };
        let any = wire::extension(context, &config, any)?;
        if wire::type_name(&any) != MetadataExchange::TYPE_NAME {
            return Err(config.reject(format!("the upstream network filter {:?} is not supported", any.type_url)));
        }
        let read = MetadataExchange::parse(&config, wire::decode(&config, &any)?)?;
        if exchange.replace(Arc::new(read)).is_some() {
            return Err(at.reject("exchanges metadata a second time"));
        }
    }
    Ok(exchange)
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::Any;

    use super::*;
    use crate::context::NoEnvironment;

    fn read(types: &[&str]) -> Parsed<Option<Arc<MetadataExchange>>> {
        let message = pb::MetadataExchange { protocol: "p".to_owned(), ..Default::default() };
        let filter = |name: &&str| cluster::Filter {
            name: "f".to_owned(),
            typed_config: Some(Any {
                type_url: format!("type.googleapis.com/{name}"),
                value: prost::Message::encode_to_vec(&message),
            }),
            config_discovery: None,
        };
        let at = FieldPath::resource("cluster", "c");
        upstream_filters(&Context::new(&NoEnvironment), &at, types.iter().map(filter).collect())
    }

    #[test]
    fn the_exchange_is_the_only_upstream_filter() {
        const EXCHANGE: &str = MetadataExchange::TYPE_NAME;
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(&*read(&[EXCHANGE]).unwrap().unwrap().protocol, "p");
        assert!(read(&["other.Filter"]).is_err());
        assert!(read(&[EXCHANGE, EXCHANGE]).is_err());
    }
}
