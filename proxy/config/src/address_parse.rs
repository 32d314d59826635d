//! Readers of addresses, CIDR ranges and socket settings (`envoy.config.core.v3`).
//!
//! Owns how such a message becomes a checked address or option. Never resolves names or opens sockets.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use outrigger_api::pb::envoy::config::core::v3 as core;

use crate::address::{Address, EndpointAddress, InternalAddress};
use crate::cluster::{BindConfig, SourceAddress};
use crate::decide::decide;
use crate::listener::{SocketOption, SocketOptionValue, SocketState, TcpKeepalive};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// An address that needs no resolution: an IP address with a port, or a pipe.
pub(crate) fn address(at: &FieldPath<'_>, wire: core::Address) -> Parsed<Address> {
    Ok(listen_address(at, wire)?.0)
}

/// An address to listen on, and whether an IPv6 wildcard takes IPv4 too (`ipv4_compat`).
pub(crate) fn listen_address(at: &FieldPath<'_>, wire: core::Address) -> Parsed<(Address, bool)> {
    match any_address(at, wire)? {
        // Endpoints alone can lead to one.
        (EndpointAddress::Resolved(Address::Internal(_)), _) => Err(at.field("envoy_internal_address").unsupported()),
        (EndpointAddress::Resolved(address), ipv4_compat) => Ok((address, ipv4_compat)),
        (EndpointAddress::Named { host, port: _ }, _) => {
            Err(at.field("socket_address").field("address").reject(format!("{host:?} is not an IP address")))
        }
    }
}

/// The address of an endpoint, which may be a host name or a listener of this process.
pub(crate) fn endpoint_address(at: &FieldPath<'_>, wire: core::Address) -> Parsed<EndpointAddress> {
    Ok(any_address(at, wire)?.0)
}

/// An IP address with a port, such as the source address of upstream connections.
pub(crate) fn ip_socket_address(at: &FieldPath<'_>, wire: core::SocketAddress) -> Parsed<SocketAddr> {
    match socket_address(at, wire)? {
        (EndpointAddress::Resolved(Address::Ip(address)), _) => Ok(address),
        (other, _) => Err(at.field("address").reject(format!("{:?} is not an IP address", other.to_string()))),
    }
}

/// The address of an endpoint as a socket address, which may be a host name.
pub(crate) fn endpoint_socket_address(at: &FieldPath<'_>, wire: core::SocketAddress) -> Parsed<EndpointAddress> {
    Ok(socket_address(at, wire)?.0)
}

/// A CIDR range; bits of the host part are cleared, and a length beyond the address's bits counts as all of them.
pub(crate) fn cidr(at: &FieldPath<'_>, wire: core::CidrRange) -> Parsed<IpNet> {
    decide!(wire, at, core::CidrRange as "envoy.config.core.v3.CidrRange" {
        implemented: address_prefix, prefix_len;
        no_effect: ;
        unsupported: ;
    });
    let prefix = at.field("address_prefix");
    let address: IpAddr =
        address_prefix.parse().map_err(|_| prefix.reject(format!("{address_prefix:?} is not an IP address")))?;
    let length = prefix_len.map_or(0, |length| length.value);
    if length > 128 {
        return Err(at.field("prefix_len").reject(format!("{length} is above 128")));
    }
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(length.min(bits)).unwrap_or(u8::MAX);
    let net = IpNet::new(address, length).map_err(|error| at.field("prefix_len").reject(error.to_string()))?;
    Ok(net.trunc())
}

/// Options to set on a socket, in order. Options for datagram sockets alone are left out: we open streams only.
pub(crate) fn socket_options(at: &FieldPath<'_>, wire: Vec<core::SocketOption>) -> Parsed<Vec<SocketOption>> {
    let mut options = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        options.extend(socket_option(&at.item(index), wire)?);
    }
    Ok(options)
}

/// SO_KEEPALIVE settings. `None` if one of them is 0, which switches keep-alive off.
pub(crate) fn tcp_keepalive(at: &FieldPath<'_>, wire: core::TcpKeepalive) -> Parsed<Option<TcpKeepalive>> {
    decide!(wire, at, core::TcpKeepalive as "envoy.config.core.v3.TcpKeepalive" {
        implemented: keepalive_probes, keepalive_time, keepalive_interval;
        no_effect: ;
        unsupported: ;
    });
    let number = |field: &'static str, value: Option<outrigger_api::pb::google::protobuf::UInt32Value>| match value {
        None => Ok(None),
        Some(value) if i32::try_from(value.value).is_ok() => Ok(Some(value.value)),
        Some(value) => Err(at.field(field).reject(format!("{} is above {}", value.value, i32::MAX))),
    };
    let settings = TcpKeepalive {
        probes: number("keepalive_probes", keepalive_probes)?,
        time_s: number("keepalive_time", keepalive_time)?,
        interval_s: number("keepalive_interval", keepalive_interval)?,
    };
    let off = [settings.probes, settings.time_s, settings.interval_s].contains(&Some(0));
    Ok((!off).then_some(settings))
}

/// Where upstream connections come from.
pub(crate) fn bind_config(at: &FieldPath<'_>, wire: core::BindConfig) -> Parsed<BindConfig> {
    decide!(wire, at, core::BindConfig as "envoy.config.core.v3.BindConfig" {
        implemented: source_address, freebind, socket_options, local_address_selector, extra_source_addresses,
            additional_source_addresses;
        no_effect: validate_network_namespaces = "network namespaces are refused where they are named";
        unsupported: ;
    });
    if let Some(selector) = local_address_selector {
        let type_url = selector.typed_config.map(|config| config.type_url).unwrap_or_default();
        if !type_url.ends_with("/envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector") {
            return Err(at.field("local_address_selector").reject(format!("{type_url:?} is not supported")));
        }
    }
    let source_at = at.field("source_address");
    let extra_at = at.field("extra_source_addresses");
    let older_at = at.field("additional_source_addresses");
    if !extra_source_addresses.is_empty() && !additional_source_addresses.is_empty() {
        return Err(older_at.reject("must not be set together with extra_source_addresses"));
    }
    let older = |at: &FieldPath<'_>, address| {
        Ok(SourceAddress { address: ip_socket_address(at, address)?, socket_options: None })
    };
    let mut extra_sources = wire::each(&extra_at, extra_source_addresses, extra_source)?;
    extra_sources.extend(wire::each(&older_at, additional_source_addresses, older)?);
    if source_address.is_none() && !extra_sources.is_empty() {
        return Err(source_at.reject("is required where there are further source addresses"));
    }
    if extra_sources.len() > 1 {
        return Err(extra_at
            .item(1)
            .reject("is not supported: one further address may be given, for the other family"));
    }
    let source = source_address.map(|address| ip_socket_address(&source_at, address)).transpose()?;
    if let (Some(source), Some(extra)) = (source, extra_sources.first())
        && source.is_ipv4() == extra.address.is_ipv4()
    {
        return Err(extra_at.item(0).reject("must be of the other family than source_address"));
    }
    Ok(BindConfig {
        source,
        extra_sources,
        freebind: freebind.is_some_and(|flag| flag.value),
        socket_options: self::socket_options(&at.field("socket_options"), socket_options)?,
    })
}

fn extra_source(at: &FieldPath<'_>, wire: core::ExtraSourceAddress) -> Parsed<SourceAddress> {
    decide!(wire, at, core::ExtraSourceAddress as "envoy.config.core.v3.ExtraSourceAddress" {
        implemented: address, socket_options;
        no_effect: ;
        unsupported: ;
    });
    let options_at = at.field("socket_options");
    let at = at.field("address");
    let Some(address) = address else { return Err(at.reject("is required")) };
    Ok(SourceAddress {
        address: ip_socket_address(&at, address)?,
        socket_options: match socket_options {
            None => None,
            Some(list) => Some(self::socket_options(&options_at.field("socket_options"), list.socket_options)?),
        },
    })
}

fn any_address(at: &FieldPath<'_>, wire: core::Address) -> Parsed<(EndpointAddress, bool)> {
    decide!(wire, at, core::Address as "envoy.config.core.v3.Address" {
        implemented: address;
        no_effect: ;
        unsupported: ;
    });
    match address {
        Some(core::address::Address::SocketAddress(wire)) => socket_address(&at.field("socket_address"), wire),
        Some(core::address::Address::Pipe(wire)) => {
            Ok((EndpointAddress::Resolved(pipe(&at.field("pipe"), wire)?), false))
        }
        Some(core::address::Address::EnvoyInternalAddress(wire)) => {
            let address = internal_address(&at.field("envoy_internal_address"), wire)?;
            Ok((EndpointAddress::Resolved(Address::Internal(Arc::new(address))), false))
        }
        None => Err(at.reject("needs one of socket_address, pipe, envoy_internal_address")),
    }
}

fn internal_address(at: &FieldPath<'_>, wire: core::EnvoyInternalAddress) -> Parsed<InternalAddress> {
    decide!(wire, at, core::EnvoyInternalAddress as "envoy.config.core.v3.EnvoyInternalAddress" {
        implemented: address_name_specifier, endpoint_id;
        no_effect: ;
        unsupported: ;
    });
    let at = at.field("server_listener_name");
    use core::envoy_internal_address::AddressNameSpecifier;
    match address_name_specifier {
        Some(AddressNameSpecifier::ServerListenerName(name)) if !name.is_empty() => {
            Ok(InternalAddress { listener: name.into(), endpoint: endpoint_id.into() })
        }
        Some(AddressNameSpecifier::ServerListenerName(_)) => Err(at.reject("must not be empty")),
        None => Err(at.reject("is required")),
    }
}

fn socket_address(at: &FieldPath<'_>, wire: core::SocketAddress) -> Parsed<(EndpointAddress, bool)> {
    decide!(wire, at, core::SocketAddress as "envoy.config.core.v3.SocketAddress" {
        implemented: protocol, address, port_specifier, resolver_name, ipv4_compat;
        no_effect: ;
        unsupported: network_namespace_filepath;
    });
    match core::socket_address::Protocol::try_from(protocol) {
        Ok(core::socket_address::Protocol::Tcp) => {}
        Ok(core::socket_address::Protocol::Udp) => return Err(at.field("protocol").reject("UDP is not supported")),
        Err(_) => return Err(wire::unknown_enum(&at.field("protocol"), protocol)),
    }
    // The resolver for IP addresses is what an empty name means, too.
    if !resolver_name.is_empty() && resolver_name != "envoy.ip" {
        return Err(at.field("resolver_name").reject(format!("{resolver_name:?} is not supported")));
    }
    let port = match port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port)
            .map_err(|_| at.field("port_value").reject(format!("{port} is not a port, expected 0 to 65535")))?,
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => return Err(at.field("named_port").unsupported()),
        None => return Err(at.field("port_value").reject("is required")),
    };
    if address.is_empty() {
        return Err(at.field("address").reject("must not be empty"));
    }
    match address.parse::<IpAddr>() {
        Ok(ip) => Ok((EndpointAddress::Resolved(Address::Ip(SocketAddr::new(ip, port))), ipv4_compat)),
        Err(_) if is_host_name(&address) => Ok((EndpointAddress::Named { host: Arc::from(address), port }, false)),
        Err(_) => Err(at.field("address").reject(format!("{address:?} is neither an IP address nor a host name"))),
    }
}

fn pipe(at: &FieldPath<'_>, wire: core::Pipe) -> Parsed<Address> {
    decide!(wire, at, core::Pipe as "envoy.config.core.v3.Pipe" {
        implemented: path, mode;
        no_effect: ;
        unsupported: ;
    });
    if path.is_empty() {
        return Err(at.field("path").reject("must not be empty"));
    }
    if path.len() > MAX_PIPE_PATH_BYTES {
        return Err(at.field("path").reject(format!("{path:?} is longer than {MAX_PIPE_PATH_BYTES} bytes")));
    }
    if path.contains('\0') {
        return Err(at.field("path").reject(format!("{path:?} must not contain a zero byte")));
    }
    if mode > 0o777 {
        return Err(at.field("mode").reject(format!("{mode:#o} is above 0o777")));
    }
    if path.starts_with('@') && mode != 0 {
        return Err(at.field("mode").reject("an abstract socket has no mode"));
    }
    Ok(Address::Pipe { path: PathBuf::from(path), mode })
}

fn socket_option(at: &FieldPath<'_>, wire: core::SocketOption) -> Parsed<Option<SocketOption>> {
    decide!(wire, at, core::SocketOption as "envoy.config.core.v3.SocketOption" {
        implemented: level, name, value, state, r#type, ip_version;
        no_effect: description = "for people";
        unsupported: ;
    });
    let number = |field: &'static str, value: i64| {
        i32::try_from(value).map_err(|_| at.field(field).reject(format!("{value} is not a C int")))
    };
    let value = match value {
        Some(core::socket_option::Value::IntValue(value)) => SocketOptionValue::Int(number("int_value", value)?),
        Some(core::socket_option::Value::BufValue(bytes)) => SocketOptionValue::Bytes(bytes),
        None => return Err(at.reject("needs one of int_value, buf_value")),
    };
    let state = match core::socket_option::SocketState::try_from(state) {
        Ok(core::socket_option::SocketState::StatePrebind) => SocketState::PreBind,
        Ok(core::socket_option::SocketState::StateBound) => SocketState::Bound,
        Ok(core::socket_option::SocketState::StateListening) => SocketState::Listening,
        Err(_) => return Err(wire::unknown_enum(&at.field("state"), state)),
    };
    let is_ipv6 = match core::socket_option::SocketIpVersion::try_from(ip_version) {
        Ok(core::socket_option::SocketIpVersion::Unspecified) => None,
        Ok(core::socket_option::SocketIpVersion::Ipv4) => Some(false),
        Ok(core::socket_option::SocketIpVersion::Ipv6) => Some(true),
        Err(_) => return Err(wire::unknown_enum(&at.field("ip_version"), ip_version)),
    };
    let option = SocketOption { level: number("level", level)?, name: number("name", name)?, value, state, is_ipv6 };
    let core::socket_option::SocketType { stream, datagram } = r#type.unwrap_or_default();
    Ok((stream.is_some() || datagram.is_none()).then_some(option))
}

/// Whether a resolver could be asked for `text`; underscores occur in service names, so this is generous.
fn is_host_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= 255 && text.bytes().all(allowed)
}

/// `sockaddr_un.sun_path` less its final zero.
const MAX_PIPE_PATH_BYTES: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_api::pb::google::protobuf::{BoolValue, UInt32Value};

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "cluster", name: "billing" };

    fn socket(address: &str, port: u32) -> core::SocketAddress {
        core::SocketAddress {
            address: address.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        }
    }

    fn in_socket(wire: core::SocketAddress) -> core::Address {
        core::Address { address: Some(core::address::Address::SocketAddress(wire)) }
    }

    fn in_pipe(path: &str, mode: u32) -> core::Address {
        core::Address { address: Some(core::address::Address::Pipe(core::Pipe { path: path.into(), mode })) }
    }

    #[test]
    fn addresses_that_are_taken() {
        let show = |wire| endpoint_address(&ROOT.field("address"), wire).map(|address| address.to_string());
        assert_eq!(show(in_socket(socket("10.0.0.1", 80))).unwrap(), "10.0.0.1:80");
        assert_eq!(show(in_socket(socket("::1", 80))).unwrap(), "[::1]:80");
        assert_eq!(show(in_socket(socket("billing.prod.svc", 80))).unwrap(), "billing.prod.svc:80");
        assert_eq!(show(in_pipe("/run/app.sock", 0o600)).unwrap(), "/run/app.sock");
        assert_eq!(show(in_pipe("@abstract", 0)).unwrap(), "@abstract");
        let mut dual = socket("::", 80);
        dual.ipv4_compat = true;
        assert!(listen_address(&ROOT, in_socket(dual)).unwrap().1);
    }

    #[test]
    fn addresses_that_are_refused() {
        let with = |change: fn(&mut core::SocketAddress)| {
            let mut wire = socket("10.0.0.1", 80);
            change(&mut wire);
            in_socket(wire)
        };
        let cases = [
            (core::Address { address: None }, "address: needs one of socket_address, pipe, envoy_internal_address"),
            (in_socket(socket("", 80)), "address.socket_address.address: must not be empty"),
            (
                in_socket(socket("a b", 80)),
                "address.socket_address.address: \"a b\" is neither an IP address nor a host name",
            ),
            (
                in_socket(socket("10.0.0.1", 65536)),
                "address.socket_address.port_value: 65536 is not a port, expected 0 to 65535",
            ),
            (with(|wire| wire.port_specifier = None), "address.socket_address.port_value: is required"),
            (with(|wire| wire.protocol = 1), "address.socket_address.protocol: UDP is not supported"),
            (with(|wire| wire.protocol = 9), "address.socket_address.protocol: 9 is not a known value"),
            (
                with(|wire| wire.resolver_name = "mine".into()),
                "address.socket_address.resolver_name: \"mine\" is not supported",
            ),
            (
                with(|wire| wire.network_namespace_filepath = "/run/netns/a".into()),
                "address.socket_address.network_namespace_filepath: is not supported",
            ),
            (in_pipe("", 0), "address.pipe.path: must not be empty"),
            (in_pipe("/a", 0o1000), "address.pipe.mode: 0o1000 is above 0o777"),
            (in_pipe("@a", 0o600), "address.pipe.mode: an abstract socket has no mode"),
        ];
        for (wire, expected) in cases {
            let error = endpoint_address(&ROOT.field("address"), wire).unwrap_err().to_string();
            assert_eq!(error, format!("cluster \"billing\": {expected}"));
        }
        let error = address(&ROOT.field("address"), in_socket(socket("localhost", 80))).unwrap_err().to_string();
        assert_eq!(error, "cluster \"billing\": address.socket_address.address: \"localhost\" is not an IP address");
    }

    #[test]
    fn a_listener_of_this_process_is_for_endpoints_alone() {
        use super::core::envoy_internal_address::AddressNameSpecifier::ServerListenerName;
        let internal = |name: Option<&str>| core::Address {
            address: Some(core::address::Address::EnvoyInternalAddress(core::EnvoyInternalAddress {
                address_name_specifier: name.map(|name| ServerListenerName(name.into())),
                endpoint_id: "10.0.0.1:80".into(),
            })),
        };
        let at = ROOT.field("address");
        let show = |wire| endpoint_address(&at, wire).map_or_else(|error| error.to_string(), |found| found.to_string());
        assert_eq!(show(internal(Some("inner"))), "envoy://inner/10.0.0.1:80");
        let field = "cluster \"billing\": address.envoy_internal_address";
        assert_eq!(show(internal(Some(""))), format!("{field}.server_listener_name: must not be empty"));
        assert_eq!(show(internal(None)), format!("{field}.server_listener_name: is required"));
        let error = address(&at, internal(Some("inner"))).unwrap_err().to_string();
        assert_eq!(error, format!("{field}: is not supported"));
    }

    #[test]
    fn a_cidr_range_is_masked_to_its_length() {
        let range = |prefix: &str, length: Option<u32>| {
            let wire = core::CidrRange {
                address_prefix: prefix.into(),
                prefix_len: length.map(|value| UInt32Value { value }),
            };
            cidr(&ROOT.field("range"), wire).map(|net| net.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(range("10.1.2.3", Some(8)).unwrap(), "10.0.0.0/8");
        assert_eq!(range("10.1.2.3", None).unwrap(), "0.0.0.0/0");
        assert_eq!(range("10.1.2.3", Some(64)).unwrap(), "10.1.2.3/32");
        assert_eq!(range("fd00::1", Some(16)).unwrap(), "fd00::/16");
        assert_eq!(range("fd00::1", Some(129)).unwrap_err(), "cluster \"billing\": range.prefix_len: 129 is above 128");
        assert_eq!(
            range("x", Some(1)).unwrap_err(),
            "cluster \"billing\": range.address_prefix: \"x\" is not an IP address"
        );
    }

    #[test]
    fn socket_options_for_datagrams_are_left_out() {
        let option = |datagram: bool| core::SocketOption {
            level: 1,
            name: 9,
            value: Some(core::socket_option::Value::IntValue(1)),
            r#type: Some(core::socket_option::SocketType {
                stream: None,
                datagram: datagram.then(core::socket_option::socket_type::Datagram::default),
            }),
            ..Default::default()
        };
        let options = socket_options(&ROOT, vec![option(false), option(true)]).unwrap();
        let (value, state) = (SocketOptionValue::Int(1), SocketState::PreBind);
        assert_eq!(options, [SocketOption { level: 1, name: 9, value, state, is_ipv6: None }]);
        let mut large = option(false);
        large.level = 1 << 40;
        let error = socket_options(&ROOT.field("socket_options"), vec![large]).unwrap_err().to_string();
        assert_eq!(error, "cluster \"billing\": socket_options[0].level: 1099511627776 is not a C int");
    }

    #[test]
    fn socket_options_may_be_for_one_version_of_ip() {
        let takes = |ip_version: core::socket_option::SocketIpVersion| {
            let option = core::SocketOption {
                value: Some(core::socket_option::Value::IntValue(1)),
                ip_version: ip_version.into(),
                ..Default::default()
            };
            let option = socket_options(&ROOT, vec![option]).unwrap().remove(0);
            let addresses = [Some("10.0.0.1".parse().unwrap()), Some("fd00::1".parse().unwrap()), None];
            addresses.map(|address| option.is_for(address, SocketState::PreBind))
        };
        use outrigger_api::pb::envoy::config::core::v3::socket_option::SocketIpVersion::{Ipv4, Ipv6, Unspecified};
        assert_eq!([Unspecified, Ipv4, Ipv6].map(takes), [[true; 3], [true, false, false], [false, true, false]]);
    }

    #[test]
    fn a_zero_switches_keepalive_off() {
        let wire =
            |time: u32| core::TcpKeepalive { keepalive_time: Some(UInt32Value { value: time }), ..Default::default() };
        assert_eq!(
            tcp_keepalive(&ROOT, wire(300)).unwrap(),
            Some(TcpKeepalive { time_s: Some(300), ..Default::default() })
        );
        assert_eq!(tcp_keepalive(&ROOT, wire(0)).unwrap(), None);
    }

    #[test]
    fn a_bind_config_names_its_refused_parts() {
        let wire = core::BindConfig {
            source_address: Some(socket("127.0.0.6", 0)),
            freebind: Some(BoolValue { value: true }),
            ..Default::default()
        };
        let bind = bind_config(&ROOT, wire.clone()).unwrap();
        assert_eq!(bind.source, Some("127.0.0.6:0".parse().unwrap()));
        assert!(bind.freebind);
        let extra = |address| core::BindConfig {
            extra_source_addresses: vec![core::ExtraSourceAddress { address, socket_options: None }],
            ..wire.clone()
        };
        let bind = bind_config(&ROOT, extra(Some(socket("::6", 0)))).unwrap();
        assert_eq!(bind.source_for("10.0.0.1:80".parse().unwrap()), Some("127.0.0.6:0".parse().unwrap()));
        assert_eq!(bind.source_for("[fd00::1]:80".parse().unwrap()), Some("[::6]:0".parse().unwrap()));
        let error = bind_config(&ROOT.field("upstream_bind_config"), extra(None)).unwrap_err().to_string();
        assert_eq!(error, "cluster \"billing\": upstream_bind_config.extra_source_addresses[0].address: is required");
    }
}
