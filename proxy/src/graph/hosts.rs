//! From endpoint assignments and resolved names to the hosts of a cluster.
//!
//! Owns how endpoints become [`Host`]s and which state of a host survives an update. Never resolves names, and never
//! picks a host.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_config::address::{Address, EndpointAddress};
use outrigger_config::cluster::{
    Assignment, Cluster, Discovery, DnsFamily, Endpoint, HealthStatus, HttpProxy, Locality, LocalityEndpoints, Probe,
};
use outrigger_config::units::Fraction;
use outrigger_policy::balance::{self, BalanceOptions, Health, HostSet, LevelHealth, Policy};
use outrigger_policy::transport::{Said, may_preconnect, transport_of};

use super::HostList;
use super::facts::HostFacts;
use super::zone::LocalZones;
use crate::health::HealthFlag;
use crate::upstream::host::{Host, HostShared};

/// What the hosts of a cluster are made from.
pub struct HostInputs<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its endpoints; `None` while they are not known.
    pub assignment: Option<&'a Assignment>,
    /// Addresses of host names, as far as they are known.
    pub addresses: &'a dyn Fn(&str) -> Option<Arc<[IpAddr]>>,
    /// The hosts until now.
    pub old: Option<&'a HostList>,
    /// Where the local cluster is, if zones count.
    pub zones: Option<Option<&'a LocalZones>>,
}

impl HostInputs<'_> {
    /// The hosts. Those that were there before keep their state, and those that did not change at all are the same.
    pub fn build(&self) -> HostList {
        let mut known: HashMap<(&Address, u32), &Arc<Host>> = HashMap::new();
        let mut shared: HashMap<&Address, &Arc<HostShared>> = HashMap::new();
        for host in self.old.iter().flat_map(|old| &old.hosts) {
            known.insert((&host.address, host.priority), host);
            shared.insert(&host.address, &host.shared);
        }
        let logical = matches!(self.cluster.discovery, Discovery::LogicalDns { .. });
        // A logical host is one host, wherever its name leads.
        let logical_shared = logical.then(|| self.old.and_then(|old| old.hosts.first())).flatten();
        let checks = !self.cluster.health_checks.is_empty();
        let mut seen = HashSet::new();
        let mut hosts = Vec::new();
        for LocalityEndpoints { locality, priority, weight, transport, metadata, endpoints } in self.localities() {
            // A locality's weight counts only where the policy weighs localities; none here does, but zero takes none.
            if *weight == Some(0) {
                continue;
            }
            let locality = self.locality(locality);
            let of_locality = Said { transport: transport.as_deref(), balancing: metadata.as_deref() };
            for endpoint in endpoints {
                for (address, more) in self.addresses_of(endpoint, logical) {
                    if !seen.insert((address.clone(), *priority)) {
                        continue;
                    }
                    let old = known.get(&(&address, *priority)).copied();
                    let shared = match (logical_shared, shared.get(&address)) {
                        (Some(host), _) => Arc::clone(&host.shared),
                        (None, Some(shared)) => Arc::clone(shared),
                        (None, None) => Arc::new(self.newcomer(endpoint)),
                    };
                    shared.flags.set(HealthFlag::PendingRemoval, false);
                    if endpoint.health_check.as_ref().is_some_and(|check| check.disabled) {
                        shared.flags.set(HealthFlag::FailedActiveCheck, false);
                        shared.flags.set(HealthFlag::PendingActiveCheck, false);
                    }
                    let mut host = make(endpoint, address, *priority, &locality, shared);
                    host.additional_addresses.extend(more);
                    host.health_check = endpoint.health_check.as_ref().filter(|_| checks).map(Arc::clone);
                    let said =
                        Said { transport: endpoint.transport.as_deref(), balancing: endpoint.metadata.as_deref() };
                    host.transport = transport_of(self.cluster, said, of_locality);
                    host.http_proxy = http_proxy(self.cluster, host.transport, endpoint.http_proxy.as_ref());
                    host.preconnect =
                        self.cluster.preconnect.as_ref().is_some_and(|policy| may_preconnect(policy, said));
                    host.metadata = endpoint.metadata.clone();
                    hosts.push(match old {
                        Some(old) if same(old, &host) => Arc::clone(old),
                        _ => Arc::new(host),
                    });
                }
            }
        }
        self.keep_healthy(&mut hosts);
        hosts.shrink_to_fit();
        let balance = self.balance(&hosts);
        HostList { hosts, balance, drop_overload: self.drop_overload() }
    }

    fn drop_overload(&self) -> Option<Fraction> {
        self.assignment?.drop_overload
    }

    /// A host that was not there before. Where hosts are checked it has to pass first.
    fn newcomer(&self, endpoint: &Endpoint) -> HostShared {
        let shared = HostShared::default();
        if !self.cluster.health_checks.is_empty() && !endpoint.health_check.as_ref().is_some_and(|check| check.disabled)
        {
            shared.flags.set(HealthFlag::FailedActiveCheck, true);
            let ignored = self.cluster.balancing.ignore_new_hosts_until_first_check;
            shared.flags.set(HealthFlag::PendingActiveCheck, ignored);
        }
        shared
    }

    /// Hosts that have gone from discovery but pass their checks stay until they fail one: discovery may be wrong, and
    /// they are not.
    fn keep_healthy(&self, hosts: &mut Vec<Arc<Host>>) {
        let discovered = matches!(self.cluster.discovery, Discovery::Eds { .. } | Discovery::StrictDns { .. });
        let (Some(old), true) = (self.old, discovered && !self.cluster.health_checks.is_empty()) else { return };
        if self.assignment.is_none() || self.cluster.ignore_health_on_host_removal {
            return;
        }
        let there: HashSet<*const HostShared> = hosts.iter().map(|host| Arc::as_ptr(&host.shared)).collect();
        for host in old.hosts.iter().filter(|host| !there.contains(&Arc::as_ptr(&host.shared))) {
            let flags = &host.shared.flags;
            let unhealthy = host.health == HealthStatus::Unhealthy || flags.has(HealthFlag::FailedActiveCheck);
            if !unhealthy && !host.health_check.as_ref().is_some_and(|check| check.disabled) {
                flags.set(HealthFlag::PendingRemoval, true);
                hosts.push(Arc::clone(host));
            }
        }
    }

    /// The same hosts, with what is picked from as their health is now.
    pub fn rebalance(&self, hosts: &[Arc<Host>]) -> HostList {
        HostList { hosts: hosts.to_vec(), balance: self.balance(hosts), drop_overload: self.drop_overload() }
    }

    fn localities(&self) -> &[LocalityEndpoints] {
        self.assignment.map_or(&[], |assignment| &assignment.localities)
    }

    fn locality(&self, locality: &Locality) -> Arc<Locality> {
        let old = self.old.iter().flat_map(|old| &old.hosts).find(|host| *host.locality == *locality);
        old.map_or_else(|| Arc::new(locality.clone()), |host| Arc::clone(&host.locality))
    }

    /// Where an endpoint is: each address with those that are tried after it.
    fn addresses_of(&self, endpoint: &Endpoint, logical: bool) -> Vec<(Address, Vec<Address>)> {
        match &endpoint.address {
            EndpointAddress::Resolved(address) => vec![(address.clone(), Vec::new())],
            EndpointAddress::Named { host, port } => {
                if let Ok(literal) = host.parse::<IpAddr>() {
                    return vec![(Address::Ip(SocketAddr::new(literal, *port)), Vec::new())];
                }
                let found = (self.addresses)(host).unwrap_or_default();
                let mut all = found.iter().map(|ip| Address::Ip(SocketAddr::new(*ip, *port)));
                if !logical {
                    return all.map(|address| (address, Vec::new())).collect();
                }
                let Some(first) = all.next() else { return Vec::new() };
                // A name with both families is reached by whichever answers.
                let more = if self.tries_all() { all.collect() } else { Vec::new() };
                vec![(first, more)]
            }
        }
    }

    /// Whether new connections of a logical host try all of its addresses.
    fn tries_all(&self) -> bool {
        matches!(&self.cluster.discovery, Discovery::LogicalDns { dns, .. } if dns.family == DnsFamily::All)
    }

    fn balance(&self, hosts: &[Arc<Host>]) -> Option<Arc<HostSet>> {
        let policy = Policy::of(&self.cluster.load_balancing)?;
        let options = BalanceOptions {
            policy,
            overprovisioning_factor: self.assignment.map_or(140, |assignment| assignment.overprovisioning_factor),
            panic_threshold: self.cluster.healthy_panic_threshold,
            weighted_priority_health: self.assignment.is_some_and(|assignment| assignment.weighted_priority_health),
        };
        let mut view: Vec<balance::Host> = hosts.iter().map(|host| for_balance(host)).collect();
        for (seen, host) in view.iter_mut().zip(hosts) {
            seen.weight = host.shared.weight_by_hand().unwrap_or(seen.weight);
        }
        // Where endpoints may have a part of their weight only, all weights are in hundredths.
        let agents = self.cluster.health_checks.iter().any(|check| matches!(check.probe, Probe::Agent(_)));
        if agents || self.cluster.outlier_detection.as_ref().is_some_and(|settings| settings.probation_requests > 0) {
            for (seen, host) in view.iter_mut().zip(hosts) {
                let percent = host.shared.agent_weight_percent();
                let percent = if host.shared.flags.has(HealthFlag::OnProbation) { percent / 10 } else { percent };
                seen.weight = seen.weight.saturating_mul(percent).max(1);
            }
        }
        let facts = HostFacts::new(self.cluster, self.localities(), hosts, &view, self.old, self.zones);
        let inputs =
            balance::Inputs { hosts: &view, balance: options, options: &self.cluster.balancing, facts: &facts };
        Some(Arc::new(HostSet::build_with(&inputs)))
    }
}

/// The HTTP proxy to an endpoint with this transport, which may name one itself.
pub(crate) fn http_proxy(cluster: &Cluster, transport: usize, named: Option<&Arc<Address>>) -> Option<HttpProxy> {
    cluster.transports().nth(transport)?.http_proxy(named)
}

fn make(endpoint: &Endpoint, address: Address, priority: u32, at: &Arc<Locality>, shared: Arc<HostShared>) -> Host {
    let Endpoint {
        address: configured,
        additional_addresses,
        hostname,
        weight,
        max_requests,
        health,
        metadata: _,
        transport: _,
        health_check: _,
        passed,
        http_proxy: _,
    } = endpoint;
    // The name that was resolved is the host's name unless it has one of its own.
    let hostname = match configured {
        EndpointAddress::Named { host, .. } if hostname.is_empty() => Arc::clone(host),
        _ => Arc::clone(hostname),
    };
    Host {
        address,
        additional_addresses: additional_addresses.clone(),
        hostname,
        weight: (*weight).max(1),
        max_requests: *max_requests,
        priority,
        locality: Arc::clone(at),
        health: *health,
        metadata: None,
        transport: 0,
        preconnect: false,
        health_check: None,
        passed: passed.clone(),
        http_proxy: None,
        shared,
    }
}

fn same(a: &Host, b: &Host) -> bool {
    let Host {
        address,
        additional_addresses,
        hostname,
        weight,
        max_requests,
        priority,
        locality,
        health,
        metadata,
        transport,
        preconnect,
        health_check,
        passed,
        http_proxy,
        shared,
    } = a;
    *address == b.address
        && *additional_addresses == b.additional_addresses
        && *hostname == b.hostname
        && *weight == b.weight
        && *max_requests == b.max_requests
        && *priority == b.priority
        && *locality == b.locality
        && *health == b.health
        && *metadata == b.metadata
        && *passed == b.passed
        && *http_proxy == b.http_proxy
        && *transport == b.transport
        && *preconnect == b.preconnect
        && *health_check == b.health_check
        && Arc::ptr_eq(shared, &b.shared)
}

fn for_balance(host: &Host) -> balance::Host {
    balance::Host { weight: host.weight, health: host.shared.flags.health(host.health), priority: host.priority }
}

/// Whether no host has come or gone.
pub fn same_hosts(old: &HostList, new: &HostList) -> bool {
    let members = |list: &HostList| list.hosts.iter().map(|host| Arc::as_ptr(&host.shared)).collect::<HashSet<_>>();
    old.hosts.len() == new.hosts.len() && members(old) == members(new)
}

/// The priorities of a cluster that have hosts, and how those are now.
pub fn levels(list: &HostList) -> Vec<(u32, LevelHealth)> {
    let mut levels: BTreeMap<u32, LevelHealth> = BTreeMap::new();
    for host in &list.hosts {
        let level = levels.entry(host.priority).or_default();
        let health = for_balance(host).health;
        level.total += u32::from(health != Health::Excluded);
        level.healthy += u32::from(health == Health::Healthy);
        level.degraded += u32::from(health == Health::Degraded);
    }
    levels.into_iter().collect()
}

/// Whether the new endpoints are the old ones but for health, weights and the like.
pub fn same_members(old: &Assignment, new: &Assignment) -> bool {
    fn members(assignment: &Assignment) -> HashSet<(&EndpointAddress, u32)> {
        let localities = assignment.localities.iter();
        localities.flat_map(|at| at.endpoints.iter().map(|endpoint| (&endpoint.address, at.priority))).collect()
    }
    members(old) == members(new)
}

/// How many hosts there are, and in what state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Membership {
    /// All of them.
    pub total: i64,
    /// Those that take requests.
    pub healthy: i64,
    /// Those that take requests when there is nothing better.
    pub degraded: i64,
    /// Those that do not count.
    pub excluded: i64,
}

/// Counts hosts by their state now.
pub fn membership(list: &HostList) -> Membership {
    let count = |wanted: Health| list.hosts.iter().filter(|host| for_balance(host).health == wanted).count() as i64;
    Membership {
        total: list.hosts.len() as i64,
        healthy: count(Health::Healthy),
        degraded: count(Health::Degraded),
        excluded: count(Health::Excluded),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use outrigger_config::cluster::{
        CircuitBreakers, DnsOptions, LoadBalancing, Thresholds, UpstreamHttp, UpstreamProtocol, UpstreamTransport,
    };
    use outrigger_config::units::Percent;

    use super::*;

    pub fn assignment(addresses: &[&str]) -> Assignment {
        let endpoint = |text: &&str| Endpoint {
            address: match text.parse::<SocketAddr>() {
                Ok(address) => EndpointAddress::Resolved(Address::Ip(address)),
                Err(_) => EndpointAddress::Named { host: (*text).into(), port: 80 },
            },
            additional_addresses: Vec::new(),
            hostname: "".into(),
            weight: 1,
            max_requests: None,
            health: HealthStatus::Unknown,
            metadata: None,
            transport: None,
            health_check: None,
            passed: None,
            http_proxy: None,
        };
        Assignment {
            name: "a".into(),
            localities: vec![LocalityEndpoints {
                locality: Locality::default(),
                priority: 0,
                weight: None,
                transport: None,
                metadata: None,
                endpoints: addresses.iter().map(endpoint).collect(),
            }],
            overprovisioning_factor: 140,
            weighted_priority_health: false,
            stale_after: None,
            drop_overload: None,
        }
    }

    pub fn cluster(name: &str, discovery: Discovery) -> Cluster {
        let thresholds = Thresholds {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            track_remaining: false,
            retry_budget: None,
        };
        Cluster {
            metadata: None,
            name: name.into(),
            stat_name: name.into(),
            discovery,
            connect_timeout: Duration::from_secs(5),
            per_connection_buffer_limit_bytes: 1 << 20,
            load_balancing: LoadBalancing::RoundRobin,
            balancing: Default::default(),
            circuit_breakers: CircuitBreakers { default: thresholds, high: thresholds, per_host_max_connections: None },
            concurrency: None,
            load_metrics: Box::default(),
            http: UpstreamHttp {
                protocol: UpstreamProtocol::Http1,
                http1: Default::default(),
                http2: Default::default(),
                idle_timeout: None,
                max_connection_duration: None,
                max_headers_count: 100,
                max_response_headers_bytes: 60 * 1024,
                max_stream_duration: None,
                error_matcher: None,
                filters: None,
                auto_sni: false,
                auto_san_validation: false,
                override_auto_sni_header: None,
            },
            transport: UpstreamTransport::Raw,
            transport_matches: Vec::new(),
            retire_within: None,
            transport_matcher: None,
            requests: None,
            tcp_keepalive: None,
            happy_eyeballs: Default::default(),
            preconnect: None,
            pool_per_downstream: false,
            bind: None,
            healthy_panic_threshold: Percent::new(50.0).unwrap(),
            update_merge_window: Duration::from_secs(1),
            max_requests_per_connection: None,
            ignore_health_on_host_removal: false,
            outlier_detection: None,
            close_connections_on_host_health_failure: false,
            health_checks: Box::default(),
            load_reports: None,
            istio: Default::default(),
            metadata_exchange: None,
        }
    }

    pub fn dns_options() -> DnsOptions {
        DnsOptions {
            refresh_rate: Duration::from_secs(5),
            jitter: Duration::ZERO,
            failure_base_interval: Duration::from_secs(5),
            failure_max_interval: Duration::from_secs(5),
            respect_ttl: false,
            min_refresh_rate: None,
            family: DnsFamily::Auto,
            resolver: None,
        }
    }

    fn build(cluster: &Cluster, assignment: &Assignment, old: Option<&HostList>, dns: &[&str]) -> HostList {
        let answer: Arc<[IpAddr]> = dns.iter().map(|ip| ip.parse().unwrap()).collect();
        let addresses = |_: &str| Some(Arc::clone(&answer));
        HostInputs { cluster, assignment: Some(assignment), addresses: &addresses, old, zones: None }.build()
    }

    #[test]
    fn hosts_that_stay_keep_their_state_and_unchanged_ones_are_the_same() {
        let config = cluster("c", Discovery::Static(Arc::new(assignment(&[]))));
        let first = build(&config, &assignment(&["10.0.0.1:80", "10.0.0.2:80"]), None, &[]);
        let mut changed = assignment(&["10.0.0.2:80", "10.0.0.1:80", "10.0.0.3:80", "10.0.0.3:80"]);
        changed.localities[0].endpoints[0].weight = 7;
        let second = build(&config, &changed, Some(&first), &[]);
        assert_eq!(second.hosts.len(), 3);
        assert!(Arc::ptr_eq(&second.hosts[1], &first.hosts[0]));
        assert!(!Arc::ptr_eq(&second.hosts[0], &first.hosts[1]));
        assert!(Arc::ptr_eq(&second.hosts[0].shared, &first.hosts[1].shared));
        assert_eq!(membership(&second), Membership { total: 3, healthy: 3, degraded: 0, excluded: 0 });
    }

    #[test]
    fn a_strict_dns_name_gives_a_host_for_each_address_and_a_logical_one_gives_one_host() {
        let named = Arc::new(assignment(&["db.local"]));
        let strict = Discovery::StrictDns { assignment: Arc::clone(&named), dns: dns_options() };
        let list = build(&cluster("c", strict), &named, None, &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(
            list.hosts.iter().map(|host| host.address.to_string()).collect::<Vec<_>>(),
            ["10.0.0.1:80", "10.0.0.2:80"]
        );
        assert_eq!(&*list.hosts[0].hostname, "db.local");
        let logical = cluster("c", Discovery::LogicalDns { assignment: Arc::clone(&named), dns: dns_options() });
        let first = build(&logical, &named, None, &["10.0.0.1", "10.0.0.2"]);
        let second = build(&logical, &named, Some(&first), &["10.0.0.9"]);
        assert_eq!((first.hosts.len(), second.hosts[0].address.to_string()), (1, "10.0.0.9:80".to_owned()));
        assert!(Arc::ptr_eq(&first.hosts[0].shared, &second.hosts[0].shared));
    }

    #[test]
    fn only_members_count_as_membership() {
        let old = assignment(&["10.0.0.1:80"]);
        let mut new = old.clone();
        new.localities[0].endpoints[0].health = HealthStatus::Draining;
        assert!(same_members(&old, &new));
        assert!(!same_members(&old, &assignment(&["10.0.0.2:80"])));
    }
}
