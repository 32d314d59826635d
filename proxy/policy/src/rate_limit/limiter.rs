//! The limits of one local rate limit filter.
//!
//! Owns its buckets and the order in which they are asked. Shared by threads without a lock. Never makes descriptors.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use outrigger_config::http::filters::{LocalDescriptor, LocalRateLimit};

use super::descriptors::Descriptor;
use super::table::BucketTable;
use crate::token_bucket::{Gone, Rate, TokenBucket};

/// The buckets of a filter.
#[derive(Debug)]
pub struct LocalLimiter {
    general: Option<TokenBucket>,
    always_takes_general: bool,
    hasher: RandomState,
    /// By the hash of their entries.
    exact: HashMap<u64, Vec<(LocalDescriptor, TokenBucket)>>,
    wildcards: Vec<(LocalDescriptor, BucketTable)>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Whether there was room for it.
    pub verdict: Room,
    /// The limit that decided, if there is one.
    pub told: Option<Told>,
}

/// Whether there is room for a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// There is.
    Yes,
    /// There is none by a limit that is only tried out.
    Shadow,
    /// There is none.
    No,
}

/// What clients may be told of a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Told {
    /// Tokens at most.
    pub limit: u64,
    /// Whole tokens that are left.
    pub remaining: u64,
    /// Until there is a token again; zero if there is one.
    pub until_next: Duration,
    /// What the descriptor says of telling clients.
    pub tells_clients: Option<bool>,
}

/// A bucket that a descriptor found.
struct Found<'a> {
    rate: &'a Rate,
    gone: &'a Gone,
    hits: i64,
    shadow: bool,
    tells_clients: Option<bool>,
}

impl Found<'_> {
    /// What others may take as well costs as many times as much.
    fn take(&self, sharers: u64, age: Duration) -> bool {
        match u64::try_from(self.hits) {
            // As in Envoy: who takes nothing gets nothing.
            Ok(0) => false,
            Ok(hits) => self.rate.take(self.gone, hits.saturating_mul(sharers), age),
            Err(_) => {
                self.rate.give(self.gone, self.hits.unsigned_abs().saturating_mul(sharers), age);
                true
            }
        }
    }

    fn told(&self, age: Duration) -> Told {
        Told {
            limit: self.rate.max_tokens(),
            remaining: self.rate.remaining(self.gone, age),
            until_next: self.rate.until_next(self.gone, age),
            tells_clients: self.tells_clients,
        }
    }
}

impl LocalLimiter {
    /// Full buckets. `hasher` must be random: keys come from clients, and who can make two of them equal takes from the
    /// bucket of another.
    pub fn new(settings: &LocalRateLimit, hasher: RandomState) -> Self {
        let mut limiter = Self {
            general: settings.bucket.map(TokenBucket::new),
            always_takes_general: settings.always_takes_general,
            hasher,
            exact: HashMap::new(),
            wildcards: Vec::new(),
        };
        for descriptor in &settings.descriptors {
            if descriptor.is_wildcard() {
                let capacity = settings.max_dynamic_descriptors as usize;
                let table = BucketTable::new(Rate::new(descriptor.bucket), capacity);
                limiter.wildcards.push((descriptor.clone(), table));
            } else {
                let hash = limiter.hash(descriptor.entries.iter().map(|(key, value)| (&**key, &**value)));
                let bucket = TokenBucket::new(descriptor.bucket);
                limiter.exact.entry(hash).or_default().push((descriptor.clone(), bucket));
            }
        }
        limiter
    }

    /// Whether there is room for a request with these descriptors, `age` after the limiter was made. The slowest limit is
    /// asked first; what was taken before one refuses is gone.
    pub fn check(&self, descriptors: &[Descriptor<'_>], age: Duration) -> Outcome {
        self.check_share(descriptors, 1, age)
    }

    /// The same where so many, this one among them, share the limits equally.
    pub fn check_share(&self, descriptors: &[Descriptor<'_>], sharers: u64, age: Duration) -> Outcome {
        let mut found: Vec<Found<'_>> =
            descriptors.iter().filter_map(|descriptor| self.find(descriptor, age)).collect();
        found.sort_by(|a, b| a.rate.tokens_per_second().total_cmp(&b.rate.tokens_per_second()));
        let mut shadow = None;
        for bucket in &found {
            if bucket.take(sharers, age) {
                continue;
            }
            if !bucket.shadow {
                return Outcome { verdict: Room::No, told: Some(bucket.told(age)) };
            }
            shadow = shadow.or(Some(bucket));
        }
        let general = self.general.as_ref().filter(|_| found.is_empty() || self.always_takes_general);
        let general = general.map(|bucket| Found {
            rate: bucket.rate(),
            gone: bucket.gone(),
            hits: 1,
            shadow: false,
            tells_clients: None,
        });
        if let Some(bucket) = &general
            && !bucket.take(sharers, age)
        {
            return Outcome { verdict: Room::No, told: Some(bucket.told(age)) };
        }
        match shadow {
            Some(bucket) => Outcome { verdict: Room::Shadow, told: Some(bucket.told(age)) },
            None => {
                let decided = found.first().or(general.as_ref());
                Outcome { verdict: Room::Yes, told: decided.map(|bucket| bucket.told(age)) }
            }
        }
    }

    fn find(&self, descriptor: &Descriptor<'_>, age: Duration) -> Option<Found<'_>> {
        let hash = self.hash(descriptor.entries.iter().map(|(key, value)| (*key, &**value)));
        let (hits, tells_clients) = (descriptor.hits, descriptor.tells_clients);
        let exact = self.exact.get(&hash).and_then(|list| list.iter().find(|(known, _)| is_for(known, descriptor)));
        if let Some((known, bucket)) = exact {
            let (rate, gone) = (bucket.rate(), bucket.gone());
            return Some(Found { rate, gone, hits, shadow: known.shadow, tells_clients });
        }
        let (known, table) = self.wildcards.iter().find(|(known, _)| is_for(known, descriptor))?;
        Some(Found { rate: table.rate(), gone: table.bucket(hash, age), hits, shadow: known.shadow, tells_clients })
    }

    fn hash<'a>(&self, entries: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
        self.hasher.hash_one(EntriesHash(std::cell::RefCell::new(entries)))
    }
}

/// Hashes entries wherever they stand.
struct EntriesHash<I>(std::cell::RefCell<I>);

impl<'a, I: Iterator<Item = (&'a str, &'a str)>> std::hash::Hash for EntriesHash<I> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        for entry in &mut *self.0.borrow_mut() {
            entry.hash(state);
        }
    }
}

/// Whether `known` is for requests with this descriptor: the same keys in the same order, and the same values where it has
/// some.
fn is_for(known: &LocalDescriptor, descriptor: &Descriptor<'_>) -> bool {
    known.entries.len() == descriptor.entries.len()
        && known
            .entries
            .iter()
            .zip(&descriptor.entries)
            .all(|((key, value), (other, given))| **key == **other && (value.is_empty() || **value == **given))
}

#[cfg(test)]
mod tests {
    use outrigger_config::network::TokenBucket as Settings;

    use super::*;

    fn bucket(max_tokens: u32, seconds: u64) -> Settings {
        Settings { max_tokens, tokens_per_fill: 1, fill_interval: Duration::from_secs(seconds) }
    }

    fn known(entries: &[(&str, &str)], bucket: Settings, shadow: bool) -> LocalDescriptor {
        let entries = entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        LocalDescriptor { entries, bucket, shadow }
    }

    fn limiter(general: Option<Settings>, descriptors: Vec<LocalDescriptor>, always: bool) -> LocalLimiter {
        let settings = LocalRateLimit {
            stat_prefix: "p".into(),
            status: 429,
            bucket: general,
            enabled: None,
            enforced: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            descriptors,
            stage: 0,
            per_connection: false,
            tells_clients: false,
            virtual_host: Default::default(),
            always_takes_general: always,
            resource_exhausted: false,
            rate_limits: Box::default(),
            max_dynamic_descriptors: 2,
            retry_after: false,
            shared_by_local_cluster: false,
        };
        LocalLimiter::new(&settings, RandomState::new())
    }

    fn request<'a>(entries: &[(&'a str, &'a str)]) -> Descriptor<'a> {
        let entries = entries.iter().map(|(key, value)| (*key, (*value).into())).collect();
        Descriptor { entries, hits: 1, tells_clients: None }
    }

    fn rooms(limiter: &LocalLimiter, descriptors: &[Descriptor<'_>], times: usize) -> String {
        let letter = |room| match room {
            Room::Yes => 'y',
            Room::Shadow => 's',
            Room::No => 'n',
        };
        (0..times).map(|_| letter(limiter.check(descriptors, Duration::ZERO).verdict)).collect()
    }

    #[test]
    fn those_who_share_a_limit_get_equal_parts() {
        let ten = Settings { max_tokens: 10, tokens_per_fill: 10, fill_interval: Duration::from_secs(3600) };
        for (sharers, expected) in [(1, 10), (2, 5), (3, 3), (4, 2), (11, 0)] {
            let limiter = limiter(Some(ten), Vec::new(), true);
            let had = (0..20).filter(|_| limiter.check_share(&[], sharers, Duration::ZERO).verdict == Room::Yes);
            assert_eq!(had.count(), expected, "{sharers}");
        }
    }

    #[test]
    fn without_a_bucket_there_is_no_limit() {
        let limiter = limiter(None, vec![known(&[("k", "v")], bucket(1, 10), false)], true);
        assert_eq!(rooms(&limiter, &[], 3), "yyy");
        assert_eq!(limiter.check(&[], Duration::ZERO).told, None);
        assert_eq!(rooms(&limiter, &[request(&[("k", "v")])], 3), "ynn");
    }

    #[test]
    fn the_general_bucket_is_for_all_or_for_the_rest() {
        let descriptors = || vec![known(&[("k", "v")], bucket(3, 10), false)];
        let always = limiter(Some(bucket(2, 10)), descriptors(), true);
        assert_eq!(rooms(&always, &[request(&[("k", "v")])], 4), "yynn");
        let rest = limiter(Some(bucket(2, 10)), descriptors(), false);
        assert_eq!(rooms(&rest, &[request(&[("k", "v")])], 4), "yyyn");
        assert_eq!(rooms(&rest, &[request(&[("k", "other")])], 3), "yyn");
    }

    #[test]
    fn entries_must_be_the_same_in_the_same_order() {
        let limiter = limiter(None, vec![known(&[("a", "1"), ("b", "2")], bucket(0, 10), false)], true);
        for (entries, expected) in [
            (&[("a", "1"), ("b", "2")][..], "n"),
            (&[("b", "2"), ("a", "1")], "y"),
            (&[("a", "1")], "y"),
            (&[("a", "1"), ("b", "2"), ("c", "3")], "y"),
            (&[("a", "1"), ("b", "3")], "y"),
        ] {
            assert_eq!(rooms(&limiter, &[request(entries)], 1), expected, "{entries:?}");
        }
    }

    #[test]
    fn each_value_of_a_wildcard_has_a_bucket_and_the_oldest_goes() {
        let limiter = limiter(None, vec![known(&[("k", "")], bucket(1, 1000), false)], true);
        let check = |value: &str, now| {
            limiter.check(&[request(&[("k", value)])], Duration::from_millis(now)).verdict == Room::Yes
        };
        assert!(check("a", 1) && !check("a", 2) && check("b", 3) && !check("b", 4));
        assert!(check("c", 5) && !check("b", 6) && check("a", 7));
    }

    #[test]
    fn the_slowest_limit_is_asked_first_and_is_told_of() {
        let descriptors =
            vec![known(&[("k", "fast")], bucket(1, 10), false), known(&[("k", "slow")], bucket(2, 1000), false)];
        let limiter = limiter(None, descriptors, true);
        let both = [request(&[("k", "fast")]), request(&[("k", "slow")])];
        let limits: Vec<_> = (0..3).map(|_| limiter.check(&both, Duration::ZERO)).collect();
        let told: Vec<_> = limits.iter().map(|outcome| outcome.told.map(|told| (told.limit, told.remaining))).collect();
        assert_eq!(told, [Some((2, 1)), Some((1, 0)), Some((2, 0))]);
        assert_eq!(limits[2].told.map(|told| told.until_next.as_secs()), Some(1000));
    }

    #[test]
    fn limits_in_the_shadow_let_requests_through() {
        let descriptors = || vec![known(&[("k", "v")], bucket(0, 10), true)];
        assert_eq!(rooms(&limiter(None, descriptors(), true), &[request(&[("k", "v")])], 2), "ss");
        assert_eq!(rooms(&limiter(Some(bucket(1, 10)), descriptors(), true), &[request(&[("k", "v")])], 2), "sn");
    }

    #[test]
    fn a_request_may_count_more_than_once_or_give_back() {
        let limiter = limiter(None, vec![known(&[("k", "v")], bucket(3, 1000), false)], true);
        let hits = |hits| Descriptor { hits, ..request(&[("k", "v")]) };
        assert_eq!(rooms(&limiter, &[hits(2)], 2), "yn");
        assert_eq!(rooms(&limiter, &[hits(0)], 1), "n");
        assert_eq!(rooms(&limiter, &[hits(-2)], 1), "y");
        assert_eq!(rooms(&limiter, &[hits(3)], 2), "yn");
    }
}
