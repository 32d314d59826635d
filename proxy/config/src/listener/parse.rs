//! Reads listeners.
//!
//! Owns the fields of `Listener`. Never reads filter chains and filters (see the files beside).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::listener::v3 as pb;
use outrigger_api::pb::envoy::config::listener::v3::listener as parts;
use outrigger_api::pb::google::protobuf::{Any, StringValue};
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use super::filter_chain_match::check_unique;
use super::{DrainType, FilterChain, ListenAddress, Listener, ListenerFilter, ListenerFilterKind, TrafficDirection};
use crate::accesslog::access_logs;
use crate::address::{Address, InternalAddress};
use crate::address_parse::{listen_address, socket_options as read_socket_options, tcp_keepalive as read_keepalive};
use crate::context::Context;
use crate::decide::decide;
use crate::matcher::{Kinds, Matcher, Place};
use crate::rejection::{FieldPath, Parsed};
use crate::tls::retire_within;
use crate::wire;

impl Listener {
    /// Reads a listener. One without a name keeps an empty one, for the caller to replace.
    pub fn parse(context: &Context<'_>, mut wire: pb::Listener) -> Parsed<Self> {
        let root_name = wire.name.clone();
        let at = &FieldPath::resource("listener", &root_name);
        wire::drop_zero(&mut wire.per_connection_buffer_high_watermark_timeout);
        decide!(wire, at, pb::Listener as "envoy.config.listener.v3.Listener" {
            implemented: name, address, additional_addresses, stat_prefix, filter_chains, use_original_dst,
                default_filter_chain, per_connection_buffer_limit_bytes, deprecated_v1, drain_type, listener_filters,
                listener_filters_timeout, continue_on_listener_filters_timeout, transparent, freebind, socket_options,
                tcp_fast_open_queue_length, traffic_direction, connection_balance_config, enable_reuse_port,
                access_log, tcp_backlog_size, max_connections_to_accept_per_socket_event, bind_to_port,
                ignore_global_conn_limit, bypass_overload_manager, tcp_keepalive, listener_specifier,
                metadata, filter_chain_matcher;
            no_effect: stats_matcher = "all counters of a listener exist",
                reuse_port = "enable_reuse_port decides, and is on unless switched off";
            unsupported: fcds_config, per_connection_buffer_high_watermark_timeout,
                udp_listener_config, api_listener, enable_mptcp;
        });
        let is_on = |flag: Option<outrigger_api::pb::google::protobuf::BoolValue>| flag.is_some_and(|flag| flag.value);
        let sockets = SocketFields {
            address: address.is_some() || !additional_addresses.is_empty(),
            options: !socket_options.is_empty(),
            // As in Envoy, some of them may be there as long as they are off.
            tcp: is_on(transparent)
                || is_on(freebind)
                || enable_reuse_port.is_some()
                || tcp_backlog_size.is_some()
                || tcp_fast_open_queue_length.is_some()
                || connection_balance_config.is_some(),
        };
        let internal = match listener_specifier {
            Some(parts::ListenerSpecifier::InternalListener(parts::InternalListenerConfig {})) => {
                Some(internal_address(at, &name, &sockets)?)
            }
            None => None,
        };
        let is_internal = internal.is_some();
        let deprecated_bind = deprecated_v1.and_then(|parts::DeprecatedV1 { bind_to_port }| bind_to_port);
        let use_original_dst = is_on(use_original_dst);
        let timeout = at.field("listener_filters_timeout");
        let max_accepts = at.field("max_connections_to_accept_per_socket_event");
        let proxied = begins_with_proxy_header(at, &filter_chains)?;
        let filter_chain_matcher = chain_matcher(context, &at.field("filter_chain_matcher"), filter_chain_matcher)?;
        let (filter_chains, default_filter_chain) = chains(context, at, filter_chains, default_filter_chain)?;
        match &filter_chain_matcher {
            None => check_unique(&at.field("filter_chains"), filter_chains.iter().map(Arc::as_ref))?,
            Some(_) => check_names(&at.field("filter_chains"), &filter_chains)?,
        }
        Ok(Self {
            name: name.into(),
            stat_prefix: Some(stat_prefix).filter(|prefix| !prefix.is_empty()).map(Arc::from),
            addresses: match internal {
                Some(internal) => vec![internal],
                None => addresses(at, address, additional_addresses, socket_options)?,
            },
            // Either of the two switches binding off.
            bind_to_port: !is_internal && [bind_to_port, deprecated_bind].iter().flatten().all(|flag| flag.value),
            use_original_dst,
            transparent: is_on(transparent),
            freebind: is_on(freebind),
            reuse_port: enable_reuse_port.is_none_or(|flag| flag.value),
            backlog: tcp_backlog_size.map(|size| size.value),
            tcp_fast_open_queue_length: tcp_fast_open_queue_length.map(|length| length.value),
            max_accepts_per_event: wire::number_within(
                &max_accepts,
                max_connections_to_accept_per_socket_event,
                1..=u32::MAX,
            )?,
            tcp_keepalive: match tcp_keepalive {
                Some(wire) => read_keepalive(&at.field("tcp_keepalive"), wire)?,
                None => None,
            },
            per_connection_buffer_limit_bytes: match per_connection_buffer_limit_bytes.map(|limit| limit.value) {
                None => DEFAULT_BUFFER_LIMIT_BYTES,
                Some(0) => u32::MAX,
                Some(limit) => limit,
            },
            listener_filters: self::listener_filters(context, at, listener_filters, use_original_dst, proxied)?,
            listener_filters_timeout: wire::limit(&timeout, listener_filters_timeout, Some(DEFAULT_FILTERS_TIMEOUT))?,
            continue_on_listener_filters_timeout,
            filter_chains,
            filter_chain_matcher,
            default_filter_chain,
            traffic_direction: direction(&at.field("traffic_direction"), traffic_direction)?,
            drain_type: match parts::DrainType::try_from(drain_type) {
                Ok(parts::DrainType::Default) => DrainType::Default,
                Ok(parts::DrainType::ModifyOnly) => DrainType::ModifyOnly,
                Err(_) => return Err(wire::unknown_enum(&at.field("drain_type"), drain_type)),
            },
            access_logs: access_logs(context, &at.field("access_log"), access_log)?,
            ignore_global_connection_limit: ignore_global_conn_limit,
            bypass_overload_manager,
            exact_balance: match connection_balance_config {
                Some(wire) => exact_balance(&at.field("connection_balance_config"), wire)?,
                None => false,
            },
            retire_within: retire_within(context, &at.field("metadata"), metadata.as_ref())?,
        })
    }
}

/// What a listener says of sockets, which one inside the process does not have.
struct SocketFields {
    address: bool,
    options: bool,
    tcp: bool,
}

/// What a listener inside the process is known by.
fn internal_address(at: &FieldPath<'_>, name: &str, sockets: &SocketFields) -> Parsed<ListenAddress> {
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty: an internal_listener is found by it"));
    }
    let SocketFields { address, options, tcp } = sockets;
    let problem = match (address, options, tcp) {
        (true, _, _) => "address and additional_addresses",
        (_, true, _) => "socket_options",
        (_, _, true) => {
            "transparent, freebind, enable_reuse_port, tcp_backlog_size, tcp_fast_open_queue_length and \
             connection_balance_config"
        }
        (false, false, false) => {
            let address = Address::Internal(Arc::new(InternalAddress::of_listener(&name.into())));
            return Ok(ListenAddress { address, ipv4_compat: false, socket_options: Vec::new() });
        }
    };
    Err(at.field("internal_listener").reject(format!("has no socket, so {problem} must not be set")))
}

/// The main address first; additional ones take over its socket options unless they have their own.
fn addresses(
    at: &FieldPath<'_>,
    main: Option<core::Address>,
    additional: Vec<pb::AdditionalAddress>,
    options: Vec<core::SocketOption>,
) -> Parsed<Vec<ListenAddress>> {
    let Some(main) = main else {
        return Err(at.field("address").reject("is required"));
    };
    let socket_options = read_socket_options(&at.field("socket_options"), options)?;
    let (address, ipv4_compat) = tcp_address(&at.field("address"), main)?;
    let mut addresses = vec![ListenAddress { address, ipv4_compat, socket_options }];
    let list = at.field("additional_addresses");
    for (index, wire) in additional.into_iter().enumerate() {
        let at = list.item(index);
        decide!(wire, at, pb::AdditionalAddress as "envoy.config.listener.v3.AdditionalAddress" {
            implemented: address, socket_options;
            no_effect: ;
            unsupported: tcp_keepalive;
        });
        let Some(address) = address else {
            return Err(at.field("address").reject("is required"));
        };
        let (address, ipv4_compat) = tcp_address(&at.field("address"), address)?;
        let socket_options = match socket_options {
            Some(core::SocketOptionsOverride { socket_options }) => {
                let field = at.field("socket_options");
                read_socket_options(&field.field("socket_options"), socket_options)?
            }
            None => addresses[0].socket_options.clone(),
        };
        addresses.push(ListenAddress { address, ipv4_compat, socket_options });
    }
    Ok(addresses)
}

fn tcp_address(at: &FieldPath<'_>, wire: core::Address) -> Parsed<(Address, bool)> {
    if let Some(core::address::Address::SocketAddress(socket)) = &wire.address
        && socket.protocol == core::socket_address::Protocol::Udp as i32
    {
        return Err(at.field("socket_address").field("protocol").reject("UDP is not supported"));
    }
    listen_address(at, wire)
}

fn listener_filters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::ListenerFilter>,
    use_original_dst: bool,
    proxied: bool,
) -> Parsed<Vec<ListenerFilter>> {
    let list = at.field("listener_filters");
    let mut filters = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        filters.push(ListenerFilter::parse(context, &list.item(index), wire)?);
    }
    // The flag is older than the filter, and still means that the destination is looked up.
    if use_original_dst && !filters.iter().any(|filter| filter.kind == ListenerFilterKind::OriginalDst) {
        filters.push(ListenerFilter::original_dst());
    }
    if proxied {
        filters.push(ListenerFilter::proxy_protocol()?);
    }
    Ok(filters)
}

/// Whether connections begin with a PROXY protocol header (`use_proxy_proto`): the first filter chain says so for all.
fn begins_with_proxy_header(at: &FieldPath<'_>, chains: &[pb::FilterChain]) -> Parsed<bool> {
    let wants = |chain: &pb::FilterChain| chain.use_proxy_proto.is_some_and(|flag| flag.value);
    let first = chains.first().is_some_and(wants);
    match chains.iter().position(wants) {
        Some(index) if !first => {
            let at = at.field("filter_chains");
            let at = at.item(index);
            Err(at.field("use_proxy_proto").reject("holds for all filter chains and must be set for the first one"))
        }
        _ => Ok(first),
    }
}

type Chains = (Vec<Arc<FilterChain>>, Option<Arc<FilterChain>>);

fn chains(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::FilterChain>,
    default: Option<pb::FilterChain>,
) -> Parsed<Chains> {
    let list = at.field("filter_chains");
    if wire.is_empty() && default.is_none() {
        return Err(list.reject("no filter chains specified"));
    }
    let mut chains = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        chains.push(Arc::new(FilterChain::parse(context, &list.item(index), wire)?));
    }
    let default = match default {
        Some(mut wire) => {
            // It takes what no other chain matches; the API says that its own match is ignored.
            wire.filter_chain_match = None;
            Some(Arc::new(FilterChain::parse(context, &at.field("default_filter_chain"), wire)?))
        }
        None => None,
    };
    Ok((chains, default))
}

/// Reads a tree that leads to names of filter chains.
fn chain_matcher(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<xds::Matcher>,
) -> Parsed<Option<Arc<Matcher<Arc<str>>>>> {
    let Some(wire) = wire else { return Ok(None) };
    let action = |at: &FieldPath<'_>, any: &Any| -> Parsed<Arc<str>> {
        if wire::type_name(any) != "google.protobuf.StringValue" {
            return Err(at.reject(format!("{:?} is no name of a filter chain", any.type_url)));
        }
        let StringValue { value } = wire::decode(at, any)?;
        Ok(value.into())
    };
    let kinds = Kinds { place: Place::Listener, action: &action };
    Ok(Some(Arc::new(Matcher::parse(context, at, &kinds, wire)?)))
}

/// Chains that are chosen by name have one of their own.
fn check_names(at: &FieldPath<'_>, chains: &[Arc<FilterChain>]) -> Parsed<()> {
    let mut names = HashSet::new();
    for (index, chain) in chains.iter().enumerate() {
        let at = at.item(index);
        if chain.name.is_empty() {
            return Err(at.field("name").reject("is required with filter_chain_matcher"));
        }
        if !names.insert(&chain.name) {
            return Err(at.field("name").reject(format!("{:?} is the name of another filter chain", &*chain.name)));
        }
    }
    Ok(())
}

fn direction(at: &FieldPath<'_>, value: i32) -> Parsed<TrafficDirection> {
    match core::TrafficDirection::try_from(value) {
        Ok(core::TrafficDirection::Unspecified) => Ok(TrafficDirection::Unspecified),
        Ok(core::TrafficDirection::Inbound) => Ok(TrafficDirection::Inbound),
        Ok(core::TrafficDirection::Outbound) => Ok(TrafficDirection::Outbound),
        Err(_) => Err(wire::unknown_enum(at, value)),
    }
}

fn exact_balance(at: &FieldPath<'_>, wire: parts::ConnectionBalanceConfig) -> Parsed<bool> {
    use parts::connection_balance_config::BalanceType;
    let parts::ConnectionBalanceConfig { balance_type } = wire;
    match balance_type {
        Some(BalanceType::ExactBalance(_)) => Ok(true),
        Some(BalanceType::ExtendBalance(_)) => Err(at.field("extend_balance").unsupported()),
        Some(BalanceType::CpuLocalityBalance(_)) => Err(at.field("cpu_locality_balance").unsupported()),
        None => Err(at.reject("needs one of exact_balance")),
    }
}

/// Source: `Listener.per_connection_buffer_limit_bytes`.
const DEFAULT_BUFFER_LIMIT_BYTES: u32 = 1 << 20;
/// Source: `Listener.listener_filters_timeout`.
const DEFAULT_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
