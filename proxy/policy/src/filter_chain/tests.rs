use outrigger_config::listener::DownstreamTransport;
use proptest::prelude::*;

use super::*;

fn chain(name: &str, matches: FilterChainMatch) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        name: name.into(),
        content_hash: 0,
        matches,
        transport: DownstreamTransport::Raw,
        transport_connect_timeout: None,
        filters: Vec::new(),
    })
}

fn facts() -> ConnectionFacts<'static> {
    ConnectionFacts {
        destination: Some(([10, 1, 2, 3].into(), 443)),
        source: Some(([192, 168, 0, 9].into(), 5000)),
        direct_source: Some([192, 168, 0, 9].into()),
        server_name: None,
        transport_protocol: "tls",
        application_protocols: &[],
        filter_state: None,
        metadata: None,
    }
}

fn found(chains: &[Arc<FilterChain>], facts: &ConnectionFacts<'_>) -> Option<String> {
    FilterChainIndex::build(chains, None).find(facts).map(|chain| chain.name.to_string())
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn the_most_specific_server_name_wins() {
    let chains: Vec<_> = ["www.example.com", "*.example.com", "*.com"]
        .map(|name| chain(name, FilterChainMatch { server_names: strings(&[name]), ..Default::default() }))
        .into_iter()
        .chain([chain("none", FilterChainMatch::default())])
        .collect();
    for (name, expected) in [
        ("www.example.com", "www.example.com"),
        ("api.example.com", "*.example.com"),
        ("a.b.example.com", "*.example.com"),
        ("example.com", "*.com"),
        ("com", "none"),
        ("example.org", "none"),
    ] {
        assert_eq!(found(&chains, &ConnectionFacts { server_name: Some(name), ..facts() }).unwrap(), expected);
    }
    assert_eq!(found(&chains, &facts()).unwrap(), "none");
}

#[test]
fn an_earlier_criterion_is_never_taken_back() {
    let chains = [
        chain(
            "port",
            FilterChainMatch {
                destination_port: Some(443),
                prefix_ranges: nets(&["10.9.0.0/16"]),
                ..Default::default()
            },
        ),
        chain("network", FilterChainMatch { prefix_ranges: nets(&["10.1.0.0/16"]), ..Default::default() }),
    ];
    // The port leads to the first chain only, whose network does not fit.
    assert_eq!(found(&chains, &facts()), None);
    let other_port = ConnectionFacts { destination: Some(([10, 1, 2, 3].into(), 80)), ..facts() };
    assert_eq!(found(&chains, &other_port).unwrap(), "network");
    let index = FilterChainIndex::build(&chains, Some(chain("default", FilterChainMatch::default())));
    assert_eq!(&*index.find(&facts()).unwrap().name, "default");
}

#[test]
fn the_longest_network_wins_and_both_families_are_covered() {
    let with = |name: &str, networks: &[&str]| {
        chain(name, FilterChainMatch { prefix_ranges: nets(networks), ..Default::default() })
    };
    let chains = [with("wide", &["10.0.0.0/8"]), with("narrow", &["10.1.0.0/16", "fd00::/8"]), with("any", &[])];
    let to = |ip: &str| ConnectionFacts { destination: Some((ip.parse().unwrap(), 1)), ..facts() };
    for (ip, expected) in [
        ("10.1.2.3", "narrow"),
        ("10.2.2.3", "wide"),
        ("11.0.0.1", "any"),
        ("fd00::1", "narrow"),
        ("fe80::1", "any"),
        ("::ffff:10.2.0.1", "wide"),
    ] {
        assert_eq!(found(&chains, &to(ip)).unwrap(), expected, "{ip}");
    }
    assert_eq!(found(&chains, &ConnectionFacts { destination: None, ..facts() }).unwrap(), "any");
}

#[test]
fn application_protocols_are_tried_in_the_order_offered() {
    let with =
        |name: &str| chain(name, FilterChainMatch { application_protocols: strings(&[name]), ..Default::default() });
    let chains = [with("h2"), with("http/1.1")];
    let offer = strings(&["h3", "http/1.1", "h2"]);
    assert_eq!(found(&chains, &ConnectionFacts { application_protocols: &offer, ..facts() }).unwrap(), "http/1.1");
    assert_eq!(found(&chains, &facts()), None);
}

#[test]
fn loopback_and_same_address_are_local() {
    let with = |name: &str, source_type| chain(name, FilterChainMatch { source_type, ..Default::default() });
    let chains = [with("local", SourceType::SameIpOrLoopback), with("external", SourceType::External)];
    let from = |source: Option<(IpAddr, u16)>| ConnectionFacts { source, ..facts() };
    assert_eq!(found(&chains, &facts()).unwrap(), "external");
    assert_eq!(found(&chains, &from(Some(([127, 0, 0, 1].into(), 1)))).unwrap(), "local");
    assert_eq!(found(&chains, &from(Some(([10, 1, 2, 3].into(), 1)))).unwrap(), "local");
    assert_eq!(found(&chains, &from(None)).unwrap(), "local");
}

#[test]
fn equal_chains_are_reported() {
    let matches = FilterChainMatch { source_ports: vec![1, 2, 2], ..Default::default() };
    let other = FilterChainMatch { source_ports: vec![2, 3], ..Default::default() };
    let index = FilterChainIndex::build(&[chain("a", matches.clone()), chain("b", other)], None);
    assert_eq!(index.overlap(), Some((0, 1)));
    assert_eq!(FilterChainIndex::build(&[chain("a", matches)], None).overlap(), None);
}

/// Prunes the set of chains criterion by criterion, as the documentation describes it.
fn prune<'a>(chains: &'a [Arc<FilterChain>], facts: &ConnectionFacts<'_>) -> Option<&'a Arc<FilterChain>> {
    // For each criterion the rank of a chain: higher is more specific, `None` does not match.
    type Rank<'r> = Box<dyn Fn(&FilterChainMatch) -> Option<usize> + 'r>;
    fn port(list: &[u16], port: Option<u16>) -> Option<usize> {
        if list.is_empty() { Some(0) } else { port.filter(|port| list.contains(port)).map(|_| 1) }
    }
    fn net(list: &[IpNet], ip: Option<IpAddr>) -> Option<usize> {
        // A pipe counts as the broadcast address.
        let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::BROADCAST));
        if list.is_empty() {
            return Some(0);
        }
        list.iter().filter(|net| net.contains(&ip)).map(|net| usize::from(net.prefix_len())).max()
    }
    let ranks: [Rank<'_>; 9] = [
        Box::new(|m| port(m.destination_port.as_slice(), facts.destination.map(|d| d.1))),
        Box::new(|m| net(&m.prefix_ranges, facts.destination.map(|d| d.0))),
        Box::new(|m| {
            let name = facts.server_name.unwrap_or("");
            if m.server_names.is_empty() {
                return Some(0);
            }
            let rank = |known: &String| match known.strip_prefix('*') {
                Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
                None => (known == name).then_some(1000),
            };
            m.server_names.iter().filter_map(rank).max()
        }),
        Box::new(|m| match m.transport_protocol.as_str() {
            "" => Some(0),
            known => (known == facts.transport_protocol).then_some(1),
        }),
        Box::new(|m| {
            if m.application_protocols.is_empty() {
                return Some(0);
            }
            let offers = facts.application_protocols;
            let position = offers.iter().position(|offer| m.application_protocols.contains(offer));
            position.map(|position| offers.len() - position)
        }),
        Box::new(|m| net(&m.direct_source_prefix_ranges, facts.direct_source)),
        Box::new(|m| match m.source_type {
            SourceType::Any => Some(0),
            SourceType::SameIpOrLoopback => is_local(facts).then_some(1),
            SourceType::External => (!is_local(facts)).then_some(1),
        }),
        Box::new(|m| net(&m.source_prefix_ranges, facts.source.map(|s| s.0))),
        Box::new(|m| port(&m.source_ports, facts.source.map(|s| s.1))),
    ];
    let mut left: Vec<_> = chains.iter().collect();
    for rank in &ranks {
        let best = left.iter().filter_map(|chain| rank(&chain.matches)).max()?;
        left.retain(|chain| rank(&chain.matches) == Some(best));
    }
    left.first().copied()
}

fn any_net() -> impl Strategy<Value = IpNet> {
    let nets =
        ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "127.0.0.0/8", "0.0.0.0/0", "fd00::/16", "::/0"].map(|net| {
            let net: IpNet = net.parse().unwrap();
            net
        });
    proptest::sample::select(nets.to_vec())
}

fn some<T: std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    proptest::option::weighted(0.33, proptest::collection::vec(item, 1..3)).prop_map(Option::unwrap_or_default)
}

fn any_match() -> impl Strategy<Value = FilterChainMatch> {
    let names = prop_oneof!["a\\.b\\.c", "\\*\\.b\\.c", "\\*\\.c", "x\\.b\\.c"];
    let protocols = prop_oneof!["h2", "http/1.1"];
    let sources = prop_oneof![
        Just(SourceType::Any),
        Just(SourceType::Any),
        Just(SourceType::SameIpOrLoopback),
        Just(SourceType::External)
    ];
    (
        proptest::option::weighted(0.4, 1_u16..3),
        some(any_net()),
        some(names),
        prop_oneof!["", "tls"],
        some(protocols),
        some(any_net()),
        sources,
        some(any_net()),
        some(1_u16..4),
    )
        .prop_map(|(port, to, names, transport, protocols, direct, source, from, ports)| FilterChainMatch {
            destination_port: port,
            prefix_ranges: to,
            server_names: names,
            transport_protocol: transport,
            application_protocols: protocols,
            direct_source_prefix_ranges: direct,
            source_type: source,
            source_prefix_ranges: from,
            source_ports: ports,
        })
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof!["10\\.1\\.2\\.3", "10\\.1\\.9\\.9", "10\\.7\\.0\\.1", "127\\.0\\.0\\.1", "8\\.8\\.8\\.8", "fd00::1"]
        .prop_map(|ip| ip.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_index_agrees_with_pruning(
        matches in proptest::collection::vec(any_match(), 1..12),
        destination in proptest::option::weighted(0.9, (any_ip(), 1_u16..4)),
        source in proptest::option::weighted(0.9, (any_ip(), 1_u16..5)),
        direct_source in proptest::option::weighted(0.9, any_ip()),
        server_name in proptest::option::of(prop_oneof!["a\\.b\\.c", "x\\.b\\.c", "q\\.c", "z\\.z\\.b\\.c", "c"]),
        transport in prop_oneof!["raw_buffer", "tls"],
        offers in proptest::collection::vec(prop_oneof!["h2", "http/1.1", "h3"], 0..3),
    ) {
        let chains: Vec<_> =
            matches.into_iter().enumerate().map(|(i, matches)| chain(&i.to_string(), matches)).collect();
        let facts = ConnectionFacts {
            destination,
            source,
            direct_source,
            server_name: server_name.as_deref(),
            transport_protocol: &transport,
            application_protocols: &offers,
            filter_state: None,
            metadata: None,
        };
        let index = FilterChainIndex::build(&chains, None);
        prop_assert_eq!(index.find(&facts).map(|c| &c.name), prune(&chains, &facts).map(|c| &c.name));
        let explained = index.explain(&facts);
        prop_assert_eq!(explained.chosen.map(|c| &c.name), index.find(&facts).map(|c| &c.name));
        prop_assert_eq!(explained.chosen.is_none(), explained.failed.is_some());
        prop_assert_eq!(explained.misses.len() + usize::from(explained.chosen.is_some()), chains.len());
    }
}
