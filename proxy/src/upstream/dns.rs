//! Resolving host names on the control thread (clusters of type STRICT_DNS and LOGICAL_DNS).
//!
//! Owns when a name is asked again, and the resolvers. Never keeps answers: who asks keeps the last good one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use outrigger_config::cluster::{DnsFamily, DnsOptions};
use outrigger_config::dns::DnsResolver;

/// The answer to a lookup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// How long it holds.
    pub ttl: Duration,
}

/// Why a lookup failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot resolve {name:?}: {reason}")]
pub struct DnsError {
    /// The name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// When a name is asked again.
#[derive(Clone, Debug)]
pub struct RefreshSchedule {
    options: DnsOptions,
    failures: u32,
}

impl RefreshSchedule {
    /// Nothing was asked yet.
    pub fn new(options: DnsOptions) -> Self {
        Self { options, failures: 0 }
    }

    /// The wait after an answer with this TTL. `random` lies within `0.0..1.0`.
    pub fn after_answer(&mut self, ttl: Duration, random: f64) -> Duration {
        self.failures = 0;
        let options = &self.options;
        let by_ttl = || ttl.max(options.min_refresh_rate.unwrap_or_default());
        let rate = if options.respect_ttl && !ttl.is_zero() { by_ttl() } else { options.refresh_rate };
        rate.max(SHORTEST_WAIT) + options.jitter.mul_f64(random.clamp(0.0, 1.0))
    }

    /// The wait after a failure: doubled each time up to the longest, and then anywhere below that, but never shorter
    /// than the shortest. `random` lies within `0.0..1.0`.
    pub fn after_failure(&mut self, random: f64) -> Duration {
        let DnsOptions { failure_base_interval: base, failure_max_interval: longest, .. } = &self.options;
        let (base, longest) = ((*base).max(SHORTEST_WAIT), (*longest).max(*base));
        let ceiling = base.saturating_mul(2_u32.saturating_pow(self.failures.min(31))).min(longest);
        self.failures = self.failures.saturating_add(1);
        // The first repetition comes after the base interval; later ones are spread.
        if ceiling <= base { base } else { base + (ceiling - base).mul_f64(random.clamp(0.0, 1.0)) }
    }
}

/// Even a configuration of zero must not ask without pause.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// What tells resolvers apart.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct ResolverKey {
    settings: DnsResolver,
    family: DnsFamily,
}

/// The resolvers in use, made on first use.
#[derive(Default)]
pub struct Resolvers {
    default: DnsResolver,
    made: HashMap<ResolverKey, Result<TokioResolver, String>>,
}

impl Resolvers {
    /// Clusters that do not say how to resolve do it like `default`.
    pub fn new(default: DnsResolver) -> Self {
        Self { default, made: HashMap::new() }
    }

    /// What clusters resolve with that do not say how.
    pub fn default_settings(&self) -> &DnsResolver {
        &self.default
    }

    /// The resolver for these options. It honours `/etc/hosts` and the search list of `/etc/resolv.conf`.
    pub fn get(&mut self, options: &DnsOptions) -> Resolver {
        let settings = options.resolver.as_ref().unwrap_or(&self.default).clone();
        let key = ResolverKey { settings, family: options.family };
        Resolver(self.made.entry(key.clone()).or_insert_with(|| make(&key)).clone())
    }
}

/// Asks for addresses.
#[derive(Clone)]
pub struct Resolver(Result<TokioResolver, String>);

impl Resolver {
    /// The addresses of a name; a literal is its own answer.
    pub async fn resolve(&self, name: &str) -> Result<Answer, DnsError> {
        if let Ok(literal) = name.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![literal], ttl: Duration::MAX });
        }
        let error = |reason: String| DnsError { name: name.to_owned(), reason };
        let resolver = self.0.as_ref().map_err(|reason| error(reason.clone()))?;
        let found = resolver.lookup_ip(name).await.map_err(|failure| error(failure.to_string()))?;
        let mut addresses = Vec::new();
        for address in found.iter() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(error("the name has no addresses".to_owned()));
        }
        Ok(Answer { addresses, ttl: found.valid_until().saturating_duration_since(Instant::now()) })
    }
}

fn make(key: &ResolverKey) -> Result<TokioResolver, String> {
    let system = hickory_resolver::system_conf::read_system_conf();
    let DnsResolver { servers, servers_as_fallback, use_tcp, no_search_domains, query_timeout, query_tries } =
        &key.settings;
    let (config, mut options) = match (servers.as_slice(), system) {
        ([], Ok((config, options))) => (config, options),
        (_, Ok((config, options))) if *servers_as_fallback && !config.name_servers().is_empty() => (config, options),
        // As the C library does without a readable resolv.conf.
        ([], Err(_)) => {
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
        }
        (servers, system) => {
            let (domain, search, options) = match system {
                Ok((config, options)) => {
                    let (domain, search, _) = config.into_parts();
                    (domain, search, options)
                }
                Err(_) => (None, Vec::new(), ResolverOpts::default()),
            };
            let servers = servers.iter().map(|server| name_server(*server)).collect();
            (ResolverConfig::from_parts(domain, search, servers), options)
        }
    };
    let config = if *use_tcp { over_tcp(config) } else { config };
    let config = if *no_search_domains { without_search(config) } else { config };
    options.timeout = query_timeout.unwrap_or(options.timeout);
    options.attempts = query_tries.map_or(options.attempts, |tries| tries as usize);
    options.ip_strategy = match key.family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    options.use_hosts_file = ResolveHosts::Always;
    // Refreshing is our own matter, and an answer from a cache would come late.
    options.cache_size = 0;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| error.to_string())
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

fn without_search(config: ResolverConfig) -> ResolverConfig {
    let (_, _, servers) = config.into_parts();
    ResolverConfig::from_parts(None, Vec::new(), servers)
}

fn over_tcp(config: ResolverConfig) -> ResolverConfig {
    let (domain, search, servers) = config.into_parts();
    let servers = servers.into_iter().map(|mut server| {
        let port = server.connections.first().map_or(53, |connection| connection.port);
        let mut tcp = ConnectionConfig::tcp();
        tcp.port = port;
        server.connections = vec![tcp];
        server
    });
    ResolverConfig::from_parts(domain, search, servers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> DnsOptions {
        DnsOptions {
            refresh_rate: Duration::from_secs(5),
            jitter: Duration::ZERO,
            failure_base_interval: Duration::from_secs(2),
            failure_max_interval: Duration::from_secs(10),
            respect_ttl: false,
            min_refresh_rate: None,
            family: DnsFamily::V4Only,
            resolver: None,
        }
    }

    #[test]
    fn an_answer_holds_for_the_refresh_rate_or_its_ttl() {
        let ttl = Duration::from_secs(60);
        assert_eq!(RefreshSchedule::new(options()).after_answer(ttl, 0.5), Duration::from_secs(5));
        let respecting = DnsOptions { respect_ttl: true, jitter: Duration::from_secs(4), ..options() };
        let mut schedule = RefreshSchedule::new(respecting);
        assert_eq!(schedule.after_answer(ttl, 0.5), Duration::from_secs(62));
        assert_eq!(schedule.after_answer(Duration::ZERO, 0.0), Duration::from_secs(5));
        let min = Some(Duration::from_secs(30));
        let floored = DnsOptions { respect_ttl: true, min_refresh_rate: min, ..options() };
        let mut schedule = RefreshSchedule::new(floored);
        assert_eq!(schedule.after_answer(Duration::from_secs(3), 0.0), Duration::from_secs(30));
        assert_eq!(schedule.after_answer(ttl, 0.0), ttl);
    }

    #[test]
    fn failures_back_off_up_to_the_longest_wait_until_an_answer_comes() {
        let mut schedule = RefreshSchedule::new(options());
        let waits: Vec<Duration> = (0..5).map(|_| schedule.after_failure(1.0)).collect();
        assert_eq!(waits, [2, 4, 8, 10, 10].map(Duration::from_secs));
        assert_eq!(schedule.after_failure(0.0), Duration::from_secs(2));
        schedule.after_answer(Duration::ZERO, 0.0);
        assert_eq!(schedule.after_failure(1.0), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn literals_need_no_server_and_the_hosts_file_is_read() {
        let mut resolvers = Resolvers::default();
        let settings = DnsResolver { servers: vec!["127.0.0.1:1".parse().unwrap()], ..DnsResolver::default() };
        let unreachable = DnsOptions { resolver: Some(settings), ..options() };
        let resolver = resolvers.get(&unreachable);
        let literal = resolver.resolve("::1").await.unwrap();
        assert_eq!(literal.addresses, ["::1".parse::<IpAddr>().unwrap()]);
        let local = resolver.resolve("localhost").await.unwrap();
        assert_eq!(local.addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    }
}
