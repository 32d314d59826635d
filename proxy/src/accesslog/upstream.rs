//! Operators about the upstream's side.
//!
//! Owns what they print. Never looks a cluster or an endpoint up.

use outrigger_config::address::Address;
use outrigger_config::format::{AddressPart, Operator};

use super::facts::Facts;
use super::format::{Given, address, non_empty, number, text, without_blanks};
use crate::listener::internal::client_address;
use crate::stream::StreamInfo;
use crate::upstream::host::Host;

/// Writes one of them.
pub(super) fn write(operator: &Operator, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let info = facts.info;
    match operator {
        Operator::UpstreamHost => match &*info.upstream_host.borrow() {
            Some(host) => address(&host.address, AddressPart::Full, out),
            None => Given::Absent,
        },
        Operator::UpstreamHostName { port } => match &*info.upstream_host.borrow() {
            Some(host) => name(host, *port, out),
            None => Given::Absent,
        },
        Operator::UpstreamHostsAttempted { names, port } => attempted(facts, out, |host, out| match (names, port) {
            (true, port) => name(host, *port, out),
            (false, true) => address(&host.address, AddressPart::Full, out),
            (false, false) => address(&host.address, AddressPart::WithoutPort, out),
        }),
        Operator::UpstreamConnectionId => number(info.upstream_connection.get(), out),
        Operator::UpstreamConnectionIdsAttempted => connections(facts, out),
        Operator::UpstreamCluster { raw } => match &*info.cluster_config.borrow() {
            Some(cluster) if *raw => non_empty(&cluster.name, out),
            _ => {
                let raw = facts.cluster_name.filter(|_| *raw);
                non_empty(raw.or(info.cluster.borrow().as_deref()).unwrap_or(""), out)
            }
        },
        Operator::UpstreamLocalAddress(part) => match local_address(info) {
            Some(local) => address(&local, *part, out),
            None => Given::Absent,
        },
        // A host that was chosen but not reached has no remote address yet.
        Operator::UpstreamRemoteAddress(part) => match (&*info.upstream_host.borrow(), local_address(info)) {
            (Some(host), Some(_)) => address(host.peer(), *part, out),
            _ => Given::Absent,
        },
        Operator::UpstreamTransportFailureReason => {
            without_blanks(info.upstream_failure.borrow().as_deref().unwrap_or(""), out)
        }
        Operator::UpstreamRequestAttemptCount => number(u64::from(info.attempts.get()), out),
        Operator::UpstreamProtocol => text(info.upstream_version.get().map(|version| version.as_str().as_bytes()), out),
        _ => match &*info.upstream_tls.borrow() {
            Some(tls) => match operator {
                Operator::UpstreamTlsVersion => non_empty(tls.version, out),
                Operator::UpstreamTlsCipher => non_empty(tls.cipher, out),
                Operator::UpstreamTlsGroup => non_empty(tls.group, out),
                Operator::UpstreamServerName => non_empty(tls.sni.as_deref().unwrap_or(""), out),
                // TLS 1.3 has no session ids, and rustls does not tell those of TLS 1.2.
                _ => Given::Absent,
            },
            None => Given::Absent,
        },
    }
}

/// Our end of the connection to the endpoint, if there is such a connection.
pub(super) fn local_address(info: &StreamInfo) -> Option<Address> {
    if let Some(local) = info.upstream_local.get() {
        return Some(Address::Ip(local));
    }
    let host = info.upstream_host.borrow();
    let internal = host.as_ref().is_some_and(|host| matches!(host.address, Address::Internal(_)));
    (internal && info.upstream_connection.get() != 0).then(client_address)
}

/// The name of an endpoint, or else its address.
fn name(host: &Host, port: bool, out: &mut Vec<u8>) -> Given {
    if host.hostname.is_empty() {
        let part = if port { AddressPart::Full } else { AddressPart::WithoutPort };
        return address(&host.address, part, out);
    }
    let name = &*host.hostname;
    if port {
        return non_empty(name, out);
    }
    // A colon within an IPv6 address is no port.
    let without = match name.rsplit_once(':') {
        Some((name, digits)) if !name.contains(':') && digits.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    };
    non_empty(without, out)
}

fn attempted(facts: &Facts<'_>, out: &mut Vec<u8>, mut one: impl FnMut(&Host, &mut Vec<u8>) -> Given) -> Given {
    let info = facts.info;
    let (earlier, last) = (info.earlier_tries.borrow(), info.upstream_host.borrow());
    let last = last.iter().map(|host| (host, info.upstream_connection.get()));
    // Those that were reached.
    let all = earlier.iter().map(|(host, id)| (host, *id)).chain(last);
    let hosts = all.filter(|(_, id)| *id != 0).map(|(host, _)| host);
    let mut given = Given::Absent;
    for host in hosts {
        if given != Given::Absent {
            out.push(b',');
        }
        one(host, out);
        given = Given::Text;
    }
    given
}

fn connections(facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let earlier = facts.info.earlier_tries.borrow();
    let ids = earlier.iter().map(|(_, id)| *id).chain([facts.info.upstream_connection.get()]);
    let mut given = Given::Absent;
    for id in ids.filter(|id| *id != 0) {
        if given != Given::Absent {
            out.push(b',');
        }
        number(id, out);
        given = Given::Text;
    }
    given
}
