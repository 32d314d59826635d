//! Reading the policies that place endpoints by hash: ring hash and Maglev.
//!
//! Owns the checks of sizes and of what they have in common. Never places an endpoint.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::cluster::v3::cluster as pb;
use outrigger_api::pb::envoy::extensions::load_balancing_policies as extensions;
use outrigger_api::pb::google::protobuf::{UInt32Value, UInt64Value};

use super::{Consistent, HashFunction, LoadBalancing, LocalityBalancing};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::{HashPolicy, hash_policies};
use crate::wire;

/// Reads `ring_hash_lb_config`.
pub(super) fn ring_hash(
    at: &FieldPath<'_>,
    wire: Option<pb::RingHashLbConfig>,
    consistent: Consistent,
) -> Parsed<LoadBalancing> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, pb::RingHashLbConfig as "envoy.config.cluster.v3.Cluster.RingHashLbConfig" {
        implemented: minimum_ring_size, hash_function, maximum_ring_size;
        no_effect: ;
        unsupported: ;
    });
    use pb::ring_hash_lb_config::HashFunction as Wire;
    let function_at = at.field("hash_function");
    let function = match Wire::try_from(hash_function).map_err(|_| wire::unknown_enum(&function_at, hash_function))? {
        Wire::XxHash => HashFunction::XxHash,
        Wire::MurmurHash2 => HashFunction::MurmurHash2,
    };
    ring(at, function, minimum_ring_size, maximum_ring_size, consistent)
}

/// Reads `maglev_lb_config`.
pub(super) fn maglev(
    at: &FieldPath<'_>,
    wire: Option<pb::MaglevLbConfig>,
    consistent: Consistent,
) -> Parsed<LoadBalancing> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, pb::MaglevLbConfig as "envoy.config.cluster.v3.Cluster.MaglevLbConfig" {
        implemented: table_size;
        no_effect: ;
        unsupported: ;
    });
    Ok(LoadBalancing::Maglev { table_size: checked_table_size(&at.field("table_size"), table_size)?, consistent })
}

/// Reads `consistent_hashing_lb_config` of `common_lb_config`.
pub(super) fn consistent(
    at: &FieldPath<'_>,
    wire: Option<pb::common_lb_config::ConsistentHashingLbConfig>,
) -> Parsed<Consistent> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, pb::common_lb_config::ConsistentHashingLbConfig
        as "envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig" {
        implemented: use_hostname_for_hashing, hash_balance_factor;
        no_effect: ;
        unsupported: ;
    });
    Ok(Consistent {
        use_hostname: use_hostname_for_hashing,
        balance_factor: balance_factor(&at.field("hash_balance_factor"), hash_balance_factor)?,
    })
}

/// An extension that places endpoints by hash.
pub(super) struct HashingExtension {
    pub policy: LoadBalancing,
    pub locality: LocalityBalancing,
    pub hash_policy: Arc<[HashPolicy]>,
}

/// Reads the ring hash extension.
pub(super) fn ring_hash_extension(
    at: &FieldPath<'_>,
    wire: extensions::ring_hash::v3::RingHash,
) -> Parsed<HashingExtension> {
    decide!(wire, at, extensions::ring_hash::v3::RingHash
        as "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" {
        implemented: hash_function, minimum_ring_size, maximum_ring_size, use_hostname_for_hashing,
            hash_balance_factor, consistent_hashing_lb_config, locality_weighted_lb_config;
        no_effect: ;
        unsupported: ;
    });
    use extensions::ring_hash::v3::ring_hash::HashFunction as Wire;
    let function_at = at.field("hash_function");
    let function = match Wire::try_from(hash_function).map_err(|_| wire::unknown_enum(&function_at, hash_function))? {
        Wire::DefaultHash | Wire::XxHash => HashFunction::XxHash,
        Wire::MurmurHash2 => HashFunction::MurmurHash2,
    };
    // The older fields count only without the newer message.
    let older = Consistent {
        use_hostname: use_hostname_for_hashing,
        balance_factor: balance_factor(&at.field("hash_balance_factor"), hash_balance_factor)?,
    };
    let (consistent, hash_policy) = extension_consistent(at, consistent_hashing_lb_config, older)?;
    Ok(HashingExtension {
        policy: ring(at, function, minimum_ring_size, maximum_ring_size, consistent)?,
        locality: weighted(locality_weighted_lb_config.is_some()),
        hash_policy,
    })
}

/// Reads the Maglev extension.
pub(super) fn maglev_extension(at: &FieldPath<'_>, wire: extensions::maglev::v3::Maglev) -> Parsed<HashingExtension> {
    decide!(wire, at, extensions::maglev::v3::Maglev
        as "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" {
        implemented: table_size, consistent_hashing_lb_config, locality_weighted_lb_config;
        no_effect: ;
        unsupported: ;
    });
    let (consistent, hash_policy) = extension_consistent(at, consistent_hashing_lb_config, Consistent::default())?;
    let table_size = checked_table_size(&at.field("table_size"), table_size)?;
    Ok(HashingExtension {
        policy: LoadBalancing::Maglev { table_size, consistent },
        locality: weighted(locality_weighted_lb_config.is_some()),
        hash_policy,
    })
}

fn weighted(is_set: bool) -> LocalityBalancing {
    if is_set { LocalityBalancing::Weighted } else { LocalityBalancing::Ignored }
}

fn extension_consistent(
    at: &FieldPath<'_>,
    wire: Option<extensions::common::v3::ConsistentHashingLbConfig>,
    older: Consistent,
) -> Parsed<(Consistent, Arc<[HashPolicy]>)> {
    let Some(wire) = wire else { return Ok((older, Arc::default())) };
    let at = at.field("consistent_hashing_lb_config");
    decide!(wire, at, extensions::common::v3::ConsistentHashingLbConfig
        as "envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig" {
        implemented: use_hostname_for_hashing, hash_balance_factor, hash_policy;
        no_effect: ;
        unsupported: ;
    });
    let consistent = Consistent {
        use_hostname: use_hostname_for_hashing,
        balance_factor: balance_factor(&at.field("hash_balance_factor"), hash_balance_factor)?,
    };
    Ok((consistent, hash_policies(&at.field("hash_policy"), hash_policy)?))
}

fn ring(
    at: &FieldPath<'_>,
    function: HashFunction,
    minimum: Option<UInt64Value>,
    maximum: Option<UInt64Value>,
    consistent: Consistent,
) -> Parsed<LoadBalancing> {
    let minimum_at = at.field("minimum_ring_size");
    let minimum_size = size(&minimum_at, minimum, MAX_RING_SIZE)?.unwrap_or(DEFAULT_MIN_RING_SIZE);
    let maximum_size = size(&at.field("maximum_ring_size"), maximum, MAX_RING_SIZE)?.unwrap_or(MAX_RING_SIZE);
    if minimum_size > maximum_size {
        return Err(minimum_at.reject(format!("{minimum_size} is more than the maximum_ring_size of {maximum_size}")));
    }
    Ok(LoadBalancing::RingHash { function, minimum_size, maximum_size, consistent })
}

fn size(at: &FieldPath<'_>, wire: Option<UInt64Value>, limit: u32) -> Parsed<Option<u32>> {
    let Some(UInt64Value { value }) = wire else { return Ok(None) };
    match u32::try_from(value) {
        Ok(value) if (1..=limit).contains(&value) => Ok(Some(value)),
        _ => Err(at.reject(format!("{value} is not within 1 to {limit}"))),
    }
}

fn checked_table_size(at: &FieldPath<'_>, wire: Option<UInt64Value>) -> Parsed<u32> {
    let size = size(at, wire, MAX_TABLE_SIZE)?.unwrap_or(DEFAULT_TABLE_SIZE);
    if is_prime(size) { Ok(size) } else { Err(at.reject(format!("{size} is not a prime number"))) }
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|factor| u64::from(*factor).pow(2) <= u64::from(number)).all(|f| !number.is_multiple_of(f))
}

fn balance_factor(at: &FieldPath<'_>, wire: Option<UInt32Value>) -> Parsed<Option<u32>> {
    // Zero says that there is no bound, as its absence does.
    wire::number_within(at, wire.filter(|factor| factor.value != 0), 100..=u32::MAX)
}

const DEFAULT_MIN_RING_SIZE: u32 = 1024;
const MAX_RING_SIZE: u32 = 8 << 20;
const DEFAULT_TABLE_SIZE: u32 = 65_537;
const MAX_TABLE_SIZE: u32 = 5_000_011;

#[cfg(test)]
mod tests {
    use super::is_prime;

    #[test]
    fn primes() {
        let primes: Vec<u32> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(5_000_011) && !is_prime(65_539 * 3));
    }
}
