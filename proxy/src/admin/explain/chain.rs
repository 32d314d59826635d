//! Which listener and filter chain a described connection gets.
//!
//! Owns the account of both. Never looks at requests.

use std::sync::Arc;

use outrigger_config::listener::{ConnectionFacts, FilterChainMatch, ListenerFilterKind, SourceType};
use outrigger_config::network::OwnAnswer;
use outrigger_policy::filter_chain::Criterion;

use super::super::tree::{Tree, tree};
use super::asked::Asked;
use crate::graph::{Application, ChainNode, ListenerNode};
use crate::worker::GraphView;

/// Misses that are told of at most.
const TOLD: usize = 20;

/// Where a connection arrives.
pub(super) struct Found {
    pub listener: Arc<ListenerNode>,
    pub shown: Tree,
    /// `None` if the connection is closed.
    pub chain: Option<FoundChain>,
}

/// What it passes through.
pub(super) struct FoundChain {
    pub chain: Arc<ChainNode>,
    pub shown: Tree,
}

/// Finds the listener and the filter chain of what is asked about.
pub(super) fn find(view: &GraphView, asked: &Asked) -> Result<Found, String> {
    let (listener, why) = listener(view, asked)?;
    let mut protocols = asked.protocols.clone();
    let inspects = |kind: &ListenerFilterKind| matches!(kind, ListenerFilterKind::HttpInspector);
    if !asked.secure && listener.listener_filters().any(|(_, kind)| kind.is_some_and(inspects)) {
        // What inspection finds in the first bytes of such a request.
        protocols = vec!["http/1.1".to_owned()];
    }
    let own =
        || listener.config.addresses.iter().find_map(|address| Some((address.address.ip()?, address.address.port()?)));
    let facts = ConnectionFacts {
        destination: asked.destination.map(|address| (address.ip(), address.port())).or_else(own),
        source: Some((asked.source.ip(), asked.source.port())),
        direct_source: Some(asked.source.ip()),
        server_name: asked.server_name.as_deref(),
        transport_protocol: if asked.secure { "tls" } else { "raw_buffer" },
        application_protocols: &protocols,
        filter_state: None,
        metadata: None,
    };
    let explained = listener.index.explain(&facts);
    let misses = explained.misses.iter().take(TOLD).map(|miss| {
        let why = match miss.criterion {
            Some(criterion) => unmet(criterion, &miss.chain.matches, &facts),
            None => "the connection meets its criteria, and another chain is more specific".to_owned(),
        };
        tree! { "position": miss.position, "name": name_of(&miss.chain.name), "why_not": why }
    });
    let misses: Vec<Tree> = misses.collect();
    let why_chain = match (explained.chosen, explained.is_default) {
        (None, _) => None,
        (Some(_), false) if listener.config.filter_chain_matcher.is_some() => {
            Some("filter_chain_matcher leads to it".to_owned())
        }
        (Some(_), false) => Some("the most specific match".to_owned()),
        (Some(_), true) => Some("the default filter chain: no other takes the connection".to_owned()),
    };
    let chain = explained.chosen.and_then(|chosen| listener.chain(chosen)).map(|node| {
        let position = listener.chains.iter().position(|other| Arc::ptr_eq(other, node));
        let shown = tree! {
            "position": position,
            "name": name_of(&node.config.name),
            "why": why_chain,
            "ends_tls": node.tls.is_some(),
            "does": match &node.application {
                Application::Http(_) => "HTTP",
                Application::Tcp(_) => "TCP",
                Application::OwnAnswer(OwnAnswer::Fixed(_)) => "an answer of its own",
                Application::OwnAnswer(OwnAnswer::Echo) => "echo",
                Application::Missing => "nothing: a filter is missing",
            },
            "other_chains": if misses.is_empty() { Tree::Nothing } else { Tree::List(misses.clone()) },
        };
        FoundChain { chain: Arc::clone(node), shown }
    });
    let addresses = listener.config.addresses.iter().map(|address| address.address.to_string());
    let shown = tree! {
        "name": &listener.config.name,
        "addresses": Tree::list(addresses),
        "why": why,
        "stopped_at": explained.failed.filter(|_| chain.is_none()).map(|criterion| words(criterion)),
        "filter_chains": if chain.is_none() && !misses.is_empty() { Tree::List(misses) } else { Tree::Nothing },
    };
    Ok(Found { listener, shown, chain })
}

/// The listener, and why it is that one.
fn listener(view: &GraphView, asked: &Asked) -> Result<(Arc<ListenerNode>, String), String> {
    let first = match (&asked.listener, asked.destination) {
        (Some(name), _) => match view.listeners.get(name.as_str()) {
            Some(node) => (Arc::clone(node), "asked for by name".to_owned()),
            None => return Err(format!("there is no listener {name:?}; {}", names(view))),
        },
        (None, Some(destination)) => match view.listener_at(destination) {
            Some(node) => (Arc::clone(node), format!("it has the address of the destination {destination}")),
            None => match redirecting(view) {
                Some(node) => (node, "connections that were redirected arrive at it".to_owned()),
                None => return Err(format!("no listener has the address {destination}; {}", names(view))),
            },
        },
        (None, None) => {
            let mut all = view.listeners.values();
            match (all.next(), all.next()) {
                (Some(only), None) => (Arc::clone(only), "there is no other".to_owned()),
                (None, _) => return Err("there is no listener".to_owned()),
                _ => return Err(format!("give a listener or a destination; {}", names(view))),
            }
        }
    };
    let (node, _) = &first;
    let handed = asked.destination.filter(|_| node.config.use_original_dst).and_then(|to| view.listener_at(to));
    match handed {
        Some(other) if !Arc::ptr_eq(other, node) => {
            let why = format!("listener {:?} hands over by original destination", node.config.name);
            Ok((Arc::clone(other), why))
        }
        _ => Ok(first),
    }
}

/// The only listener that hands over by original destination.
fn redirecting(view: &GraphView) -> Option<Arc<ListenerNode>> {
    let mut all = view.listeners.values().filter(|node| node.config.use_original_dst);
    all.next().filter(|_| all.next().is_none()).cloned()
}

fn names(view: &GraphView) -> String {
    let mut names: Vec<&str> = view.listeners.keys().map(|name| &**name).collect();
    names.sort_unstable();
    let more = if names.len() > TOLD { ", ..." } else { "" };
    format!("listeners are: {}{more}", names[..names.len().min(TOLD)].join(", "))
}

fn name_of(name: &str) -> Tree {
    if name.is_empty() { Tree::Nothing } else { Tree::from(name) }
}

fn words(criterion: Criterion) -> &'static str {
    match criterion {
        Criterion::DestinationPort => "destination_port",
        Criterion::DestinationIp => "prefix_ranges",
        Criterion::ServerName => "server_names",
        Criterion::TransportProtocol => "transport_protocol",
        Criterion::ApplicationProtocols => "application_protocols",
        Criterion::DirectSourceIp => "direct_source_prefix_ranges",
        Criterion::SourceType => "source_type",
        Criterion::SourceIp => "source_prefix_ranges",
        Criterion::SourcePort => "source_ports",
    }
}

/// What a chain wants there, and what the connection has.
fn unmet(criterion: Criterion, wanted: &FilterChainMatch, facts: &ConnectionFacts<'_>) -> String {
    fn list<T: ToString>(items: &[T]) -> String {
        let texts: Vec<String> = items.iter().take(TOLD).map(ToString::to_string).collect();
        texts.join(", ")
    }
    let shown = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let (wants, has) = match criterion {
        Criterion::DestinationPort => (
            shown(wanted.destination_port.map(|port| port.to_string())),
            shown(facts.destination.map(|(_, port)| port.to_string())),
        ),
        Criterion::DestinationIp => {
            (list(&wanted.prefix_ranges), shown(facts.destination.map(|(ip, _)| ip.to_string())))
        }
        Criterion::ServerName => (list(&wanted.server_names), shown(facts.server_name.map(str::to_owned))),
        Criterion::TransportProtocol => (wanted.transport_protocol.clone(), facts.transport_protocol.to_owned()),
        Criterion::ApplicationProtocols => (
            list(&wanted.application_protocols),
            shown(Some(list(facts.application_protocols)).filter(|l| !l.is_empty())),
        ),
        Criterion::DirectSourceIp => {
            (list(&wanted.direct_source_prefix_ranges), shown(facts.direct_source.map(|ip| ip.to_string())))
        }
        Criterion::SourceType => {
            let wants = match wanted.source_type {
                SourceType::Any => "any",
                SourceType::SameIpOrLoopback => "the same host",
                SourceType::External => "another host",
            };
            (wants.to_owned(), shown(facts.source.map(|(ip, _)| ip.to_string())))
        }
        Criterion::SourceIp => (list(&wanted.source_prefix_ranges), shown(facts.source.map(|(ip, _)| ip.to_string()))),
        Criterion::SourcePort => (list(&wanted.source_ports), shown(facts.source.map(|(_, port)| port.to_string()))),
    };
    format!("{} wants {wants}; the connection has {has}", words(criterion))
}
