//! Which host of a cluster a request or connection goes to.
//!
//! [`HostSet`] is the shared, immutable part: built whenever hosts, weights or health change. [`Picker`] is a worker's
//! own part: where its round robin stands. Active requests, randomness and hosts to avoid come with each pick. Never
//! keeps hosts themselves: they are numbers into the caller's list.

mod alias;
mod hashing;
mod hosts;
mod latency;
pub mod load_report;
mod locality;
mod picker;
mod picking;
mod placement;
mod pools;
mod priority;
mod reported;
mod request_hash;
mod retry_priority;
mod schedule;
mod slow_start;
mod subset;

pub use hashing::xx_hash;
pub use hosts::{BalanceOptions, Callers, Facts, Health, Host, HostIndex, HostSet, Inputs, Policy};
pub use latency::Latency;
pub use locality::{Zone, ZoneRouting};
pub use picker::{Load, Pick, Picker, Wanted};
pub use placement::PlacementStats;
pub use priority::{Availability, LevelHealth, LevelLoad, PriorityLoad};
pub use reported::ReportedWeight;
pub use request_hash::{HashView, request_hash};
pub use retry_priority::Attempted;
pub use subset::Via;

/// Scales the even distribution of 32 random bits to `0..count`.
fn scale(random: u32, count: u32) -> u32 {
    ((u64::from(random) * u64::from(count)) >> 32) as u32
}

/// Turns one seed into a sequence of evenly distributed numbers, so that a schedule can start anywhere.
fn spread(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
