//! Which filter chain a connection gets (`FilterChainMatch`, `filter_chain_matcher`).
//!
//! Owns the index over a listener's filter chains. Never reads the connection's bytes.
//!
//! The criteria are asked in Envoy's order, and each takes the most specific value that any chain still in question
//! names. What a criterion has decided stays decided: if a later one fails, there is no way back to a less specific
//! value, and the default filter chain is used.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use outrigger_config::cel::Expression;
use outrigger_config::listener::{ConnectionFacts, FilterChain, FilterChainMatch, Listener, SourceType};
use outrigger_config::matcher::Matcher;
use outrigger_config::rbac::MetadataSource;
use outrigger_config::tls::SanMatcher;

use crate::hash::ConfigMap;
use crate::matcher;
use crate::rbac::{Facts, InputsOf, LookAt, NoRequest, Peer};

/// The filter chains of a listener, indexed by their match criteria.
#[derive(Debug)]
pub struct FilterChainIndex {
    chains: Vec<Arc<FilterChain>>,
    default: Option<Arc<FilterChain>>,
    nodes: Vec<Node>,
    root: Option<NodeId>,
    overlap: Option<(usize, usize)>,
    /// Decides alone, if the listener has one.
    tree: Option<Arc<Matcher<Arc<str>>>>,
}

impl FilterChainIndex {
    /// Indexes the filter chains of a listener.
    pub fn of_listener(listener: &Listener) -> Self {
        match &listener.filter_chain_matcher {
            None => Self::build(&listener.filter_chains, listener.default_filter_chain.clone()),
            Some(tree) => Self {
                chains: listener.filter_chains.clone(),
                tree: Some(Arc::clone(tree)),
                ..Self::build(&[], listener.default_filter_chain.clone())
            },
        }
    }

    /// Indexes `chains`; `default` is for connections that none of them matches.
    pub fn build(chains: &[Arc<FilterChain>], default: Option<Arc<FilterChain>>) -> Self {
        let chains_of_index = chains.to_vec();
        let mut index =
            Self { chains: chains_of_index, default, nodes: Vec::new(), root: None, overlap: None, tree: None };
        if !chains.is_empty() {
            index.root = Some(index.add(0, (0..chains.len()).collect()));
        }
        index
    }

    /// The filter chain for a connection, or the default one.
    pub fn find(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        match &self.tree {
            None => self.find_specific(facts).ok().or(self.default.as_ref()),
            Some(tree) => self.find_named(tree, facts).unwrap_or(self.default.as_ref()),
        }
    }

    /// The chain whose name a tree leads to, which may be none; `None` if it leads nowhere.
    fn find_named(&self, tree: &Matcher<Arc<str>>, facts: &ConnectionFacts<'_>) -> Option<Option<&Arc<FilterChain>>> {
        let name = matcher::find(tree, &InputsOf(&Arriving(facts))).ok().flatten()?;
        Some(self.chains.iter().find(|chain| chain.name == *name))
    }

    /// What [`Self::find`] decides, and why no other chain is chosen.
    pub fn explain(&self, facts: &ConnectionFacts<'_>) -> ChainExplained<'_> {
        if let Some(tree) = &self.tree {
            let named = self.find_named(tree, facts);
            return ChainExplained {
                misses: Vec::new(),
                is_default: named.is_none(),
                failed: None,
                chosen: named.unwrap_or(self.default.as_ref()),
            };
        }
        let found = self.find_specific(facts);
        let chosen = found.ok();
        let others =
            self.chains.iter().enumerate().filter(|(_, chain)| chosen.is_none_or(|chosen| !Arc::ptr_eq(chosen, chain)));
        let misses = others.map(|(position, chain)| {
            let alone = Self::build(std::slice::from_ref(chain), None);
            ChainMiss { position, chain, criterion: alone.find_specific(facts).err() }
        });
        ChainExplained {
            misses: misses.collect(),
            is_default: chosen.is_none(),
            failed: found.err(),
            chosen: chosen.or(self.default.as_ref()),
        }
    }

    /// Two filter chains (by position) that some connection matches equally well; the first of them gets it.
    /// Envoy refuses such a listener.
    pub fn overlap(&self) -> Option<(usize, usize)> {
        self.overlap
    }

    fn find_specific(&self, facts: &ConnectionFacts<'_>) -> Result<&Arc<FilterChain>, Criterion> {
        use Criterion as By;
        let mut node = self.root.ok_or(By::DestinationPort)?;
        loop {
            let (next, by) = match &self.nodes[node] {
                Node::Chain(chain) => return Ok(&self.chains[*chain]),
                Node::DestinationPort(ports) => {
                    (ports.find(facts.destination.map(|(_, port)| port)), By::DestinationPort)
                }
                Node::DestinationIp(networks) => {
                    (networks.find(facts.destination.map(|(ip, _)| ip)), By::DestinationIp)
                }
                Node::ServerName(names) => (names.find(facts.server_name), By::ServerName),
                Node::TransportProtocol(words) => (words.find(&[facts.transport_protocol]), By::TransportProtocol),
                Node::ApplicationProtocols(words) => {
                    (words.find(facts.application_protocols), By::ApplicationProtocols)
                }
                Node::DirectSourceIp(networks) => (networks.find(facts.direct_source), By::DirectSourceIp),
                Node::SourceType(sources) => (sources.find(facts), By::SourceType),
                Node::SourceIp(networks) => (networks.find(facts.source.map(|(ip, _)| ip)), By::SourceIp),
                Node::SourcePort(ports) => (ports.find(facts.source.map(|(_, port)| port)), By::SourcePort),
            };
            node = next.ok_or(by)?;
        }
    }

    /// Adds what decides between `members` from criterion `step` on. Criteria that none of them names are left out.
    fn add(&mut self, step: usize, members: Vec<usize>) -> NodeId {
        let node = match STEPS.get(step) {
            None => {
                if let (None, &[first, second, ..]) = (self.overlap, members.as_slice()) {
                    self.overlap = Some((first, second));
                }
                Node::Chain(members[0])
            }
            Some(criterion) if members.iter().all(|&chain| criterion.is_open(&self.chains[chain].matches)) => {
                return self.add(step + 1, members);
            }
            Some(criterion) => self.split(*criterion, step, &members),
        };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn split(&mut self, criterion: Criterion, step: usize, members: &[usize]) -> Node {
        match criterion {
            Criterion::DestinationPort => {
                Node::DestinationPort(self.ports(step, members, |matches| matches.destination_port.as_slice()))
            }
            Criterion::DestinationIp => {
                Node::DestinationIp(self.networks(step, members, |matches| &matches.prefix_ranges))
            }
            Criterion::ServerName => {
                let groups = self.groups(members, |matches, keys| {
                    keys.extend(matches.server_names.iter().map(|name| Some(Box::<str>::from(name.as_str()))));
                });
                Node::ServerName(self.names(step, groups))
            }
            Criterion::TransportProtocol => Node::TransportProtocol(
                self.words(step, members, |matches| std::slice::from_ref(&matches.transport_protocol)),
            ),
            Criterion::ApplicationProtocols => {
                Node::ApplicationProtocols(self.words(step, members, |matches| &matches.application_protocols))
            }
            Criterion::DirectSourceIp => {
                Node::DirectSourceIp(self.networks(step, members, |matches| &matches.direct_source_prefix_ranges))
            }
            Criterion::SourceType => Node::SourceType(self.sources(step, members)),
            Criterion::SourceIp => {
                Node::SourceIp(self.networks(step, members, |matches| &matches.source_prefix_ranges))
            }
            Criterion::SourcePort => Node::SourcePort(self.ports(step, members, |matches| &matches.source_ports)),
        }
    }

    /// Groups `members` by the keys that `keys` lists; those without any stand under `None`.
    fn groups<K: Eq + std::hash::Hash>(
        &self,
        members: &[usize],
        keys: impl Fn(&FilterChainMatch, &mut Vec<Option<K>>),
    ) -> ConfigMap<Option<K>, Vec<usize>> {
        let mut groups: ConfigMap<Option<K>, Vec<usize>> = ConfigMap::default();
        let mut found = Vec::new();
        for &chain in members {
            keys(&self.chains[chain].matches, &mut found);
            if found.is_empty() {
                found.push(None);
            }
            for key in found.drain(..) {
                let group = groups.entry(key).or_default();
                // A chain may name the same value twice.
                if group.last() != Some(&chain) {
                    group.push(chain);
                }
            }
        }
        groups
    }

    fn ports(&mut self, step: usize, members: &[usize], list: impl Fn(&FilterChainMatch) -> &[u16]) -> Ports {
        let groups = self.groups(members, |matches, keys| keys.extend(list(matches).iter().copied().map(Some)));
        let mut ports = Ports { exact: ConfigMap::default(), any: None };
        for (port, group) in groups {
            let node = self.add(step + 1, group);
            match port {
                Some(port) => drop(ports.exact.insert(port, node)),
                None => ports.any = Some(node),
            }
        }
        ports
    }

    fn words(&mut self, step: usize, members: &[usize], list: impl Fn(&FilterChainMatch) -> &[String]) -> Words {
        let groups = self.groups(members, |matches, keys| {
            let named = list(matches).iter().filter(|word| !word.is_empty());
            keys.extend(named.map(|word| Some(Box::<str>::from(word.as_str()))));
        });
        let mut words = Words { exact: ConfigMap::default(), any: None };
        for (word, group) in groups {
            let node = self.add(step + 1, group);
            match word {
                Some(word) => drop(words.exact.insert(word, node)),
                None => words.any = Some(node),
            }
        }
        words
    }

    fn names(&mut self, step: usize, groups: ConfigMap<Option<Box<str>>, Vec<usize>>) -> Names {
        let mut names = Names { exact: ConfigMap::default(), suffixes: ConfigMap::default(), any: None };
        for (name, group) in groups {
            let node = self.add(step + 1, group);
            match name {
                Some(name) => match name.strip_prefix('*') {
                    Some(suffix) => drop(names.suffixes.insert(suffix.into(), node)),
                    None => drop(names.exact.insert(name, node)),
                },
                None => names.any = Some(node),
            }
        }
        names
    }

    fn networks(&mut self, step: usize, members: &[usize], list: impl Fn(&FilterChainMatch) -> &[IpNet]) -> Networks {
        let groups = self.groups(members, |matches, keys| {
            let ranges = list(matches);
            keys.extend(ranges.iter().map(|network| Some(Network::of(network.addr(), network.prefix_len()))));
            if ranges.is_empty() {
                // No range is the widest range of both families.
                keys.extend([false, true].map(|v6| Some(Network { v6, length: 0, bits: 0 })));
            }
        });
        let mut networks = Networks::default();
        for (network, group) in groups {
            let Some(network) = network else { continue };
            let node = self.add(step + 1, group);
            let family = if network.v6 { &mut networks.v6 } else { &mut networks.v4 };
            let length = match family.binary_search_by(|(length, _)| network.length.cmp(length)) {
                Ok(found) => found,
                Err(place) => {
                    family.insert(place, (network.length, ConfigMap::default()));
                    place
                }
            };
            family[length].1.insert(network.bits, node);
        }
        networks
    }

    fn sources(&mut self, step: usize, members: &[usize]) -> Sources {
        let mut groups = self.groups(members, |matches, keys| keys.push(Some(matches.source_type)));
        let mut node = |kind| groups.remove(&Some(kind)).map(|group| self.add(step + 1, group));
        Sources {
            any: node(SourceType::Any),
            local: node(SourceType::SameIpOrLoopback),
            external: node(SourceType::External),
        }
    }
}

type NodeId = usize;

/// The criteria in the order in which they decide.
const STEPS: [Criterion; 9] = [
    Criterion::DestinationPort,
    Criterion::DestinationIp,
    Criterion::ServerName,
    Criterion::TransportProtocol,
    Criterion::ApplicationProtocols,
    Criterion::DirectSourceIp,
    Criterion::SourceType,
    Criterion::SourceIp,
    Criterion::SourcePort,
];

/// A filter chain's choice, and why it is not another one.
#[derive(Debug)]
pub struct ChainExplained<'a> {
    /// The chain of the connection; `None` if it is closed.
    pub chosen: Option<&'a Arc<FilterChain>>,
    /// It is the one for connections that no other takes.
    pub is_default: bool,
    /// The criterion at which no chain was left that is not the default one.
    pub failed: Option<Criterion>,
    /// The other chains.
    pub misses: Vec<ChainMiss<'a>>,
}

/// A filter chain that does not get the connection.
#[derive(Debug)]
pub struct ChainMiss<'a> {
    /// Its position in the listener.
    pub position: usize,
    /// The chain.
    pub chain: &'a Arc<FilterChain>,
    /// The first of its criteria that the connection does not meet; `None` if it meets all, and another chain is more
    /// specific at a criterion that is asked earlier.
    pub criterion: Option<Criterion>,
}

/// What filter chains are chosen by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Criterion {
    /// `destination_port`.
    DestinationPort,
    /// `prefix_ranges`.
    DestinationIp,
    /// `server_names`.
    ServerName,
    /// `transport_protocol`.
    TransportProtocol,
    /// `application_protocols`.
    ApplicationProtocols,
    /// `direct_source_prefix_ranges`.
    DirectSourceIp,
    /// `source_type`.
    SourceType,
    /// `source_prefix_ranges`.
    SourceIp,
    /// `source_ports`.
    SourcePort,
}

impl Criterion {
    /// Whether `matches` takes any value here.
    fn is_open(self, matches: &FilterChainMatch) -> bool {
        match self {
            Self::DestinationPort => matches.destination_port.is_none(),
            Self::DestinationIp => matches.prefix_ranges.is_empty(),
            Self::ServerName => matches.server_names.is_empty(),
            Self::TransportProtocol => matches.transport_protocol.is_empty(),
            Self::ApplicationProtocols => matches.application_protocols.is_empty(),
            Self::DirectSourceIp => matches.direct_source_prefix_ranges.is_empty(),
            Self::SourceType => matches.source_type == SourceType::Any,
            Self::SourceIp => matches.source_prefix_ranges.is_empty(),
            Self::SourcePort => matches.source_ports.is_empty(),
        }
    }
}

/// One decision; its values lead to the next.
#[derive(Debug)]
enum Node {
    Chain(usize),
    DestinationPort(Ports),
    DestinationIp(Networks),
    ServerName(Names),
    TransportProtocol(Words),
    ApplicationProtocols(Words),
    DirectSourceIp(Networks),
    SourceType(Sources),
    SourceIp(Networks),
    SourcePort(Ports),
}

#[derive(Debug)]
struct Ports {
    exact: ConfigMap<u16, NodeId>,
    any: Option<NodeId>,
}

impl Ports {
    fn find(&self, port: Option<u16>) -> Option<NodeId> {
        port.and_then(|port| self.exact.get(&port)).copied().or(self.any)
    }
}

#[derive(Debug)]
struct Words {
    exact: ConfigMap<Box<str>, NodeId>,
    any: Option<NodeId>,
}

impl Words {
    /// The first of `words` that is known decides.
    fn find<S: AsRef<str>>(&self, words: &[S]) -> Option<NodeId> {
        words.iter().find_map(|word| self.exact.get(word.as_ref())).copied().or(self.any)
    }
}

#[derive(Debug)]
struct Names {
    exact: ConfigMap<Box<str>, NodeId>,
    /// With their leading dot.
    suffixes: ConfigMap<Box<str>, NodeId>,
    any: Option<NodeId>,
}

impl Names {
    fn find(&self, name: Option<&str>) -> Option<NodeId> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return self.any };
        if let Some(node) = self.exact.get(name) {
            return Some(*node);
        }
        if !self.suffixes.is_empty() {
            // Dots from left to right: the longest suffix comes first.
            for (dot, _) in name.match_indices('.').skip_while(|(dot, _)| *dot == 0) {
                if let Some(node) = self.suffixes.get(&name[dot..]) {
                    return Some(*node);
                }
            }
        }
        self.any
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Network {
    v6: bool,
    length: u8,
    /// The first `length` bits of the address, as a number.
    bits: u128,
}

impl Network {
    fn of(address: IpAddr, length: u8) -> Self {
        let (v6, width, bits) = match address {
            IpAddr::V4(address) => (false, 32, u128::from(address.to_bits())),
            IpAddr::V6(address) => (true, 128, address.to_bits()),
        };
        Self { v6, length, bits: bits.checked_shr(width - u32::from(length)).unwrap_or(0) }
    }
}

/// Networks by prefix length, longest first.
#[derive(Debug, Default)]
struct Networks {
    v4: Vec<(u8, ConfigMap<u128, NodeId>)>,
    v6: Vec<(u8, ConfigMap<u128, NodeId>)>,
}

impl Networks {
    fn find(&self, address: Option<IpAddr>) -> Option<NodeId> {
        // Connections without addresses (pipes) are in the widest networks only, as the broadcast address is.
        let address = address.map_or(IpAddr::V4(Ipv4Addr::BROADCAST), |address| address.to_canonical());
        let family = if address.is_ipv6() { &self.v6 } else { &self.v4 };
        family.iter().find_map(|(length, nodes)| nodes.get(&Network::of(address, *length).bits)).copied()
    }
}

#[derive(Debug)]
struct Sources {
    any: Option<NodeId>,
    local: Option<NodeId>,
    external: Option<NodeId>,
}

impl Sources {
    fn find(&self, facts: &ConnectionFacts<'_>) -> Option<NodeId> {
        if is_local(facts) { self.local.or(self.any) } else { self.external.or(self.any) }
    }
}

/// Whether the connection comes from this host, as far as its addresses tell.
fn is_local(facts: &ConnectionFacts<'_>) -> bool {
    crate::rbac::is_local(facts.source.map(|(source, _)| source), facts.destination.map(|(own, _)| own))
}

/// A connection as a match tree sees it before it has a filter chain.
struct Arriving<'a, 'f>(&'a ConnectionFacts<'f>);

impl Facts for Arriving<'_, '_> {
    type Request = NoRequest;

    fn request(&self) -> Option<&NoRequest> {
        None
    }

    fn destination(&self) -> Option<SocketAddr> {
        self.0.destination.map(SocketAddr::from)
    }

    fn source(&self) -> Option<SocketAddr> {
        self.0.source.map(SocketAddr::from)
    }

    fn direct_remote(&self) -> Option<IpAddr> {
        self.0.direct_source
    }

    fn remote(&self) -> Option<IpAddr> {
        self.0.source.map(|(ip, _)| ip)
    }

    fn server_name(&self) -> &str {
        self.0.server_name.unwrap_or_default()
    }

    fn peer(&self) -> Option<Peer<'_>> {
        None
    }

    fn has_name(&self, _: &SanMatcher) -> bool {
        false
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut LookAt<'_>) -> bool {
        let known = self.0.metadata.filter(|_| matches!(source, MetadataSource::Dynamic));
        look(known.and_then(|known| known.get(namespace)))
    }

    fn holds(&self, _: &Expression) -> bool {
        false
    }

    fn transport_protocol(&self) -> Option<&str> {
        Some(self.0.transport_protocol)
    }

    fn application_protocols(&self) -> &[String] {
        self.0.application_protocols
    }

    fn filter_state(&self, key: &str, look: &mut dyn FnMut(Option<&str>) -> bool) -> bool {
        look(self.0.filter_state.and_then(|known| known.get(key)).map(String::as_str))
    }
}

#[cfg(test)]
mod tests;
