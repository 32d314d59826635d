//! Numbers that wear their units.
//!
//! Owns the checked number types shared by several resources. Never reads API messages.

use std::fmt;

/// A share in percent, always within 0..=100.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// Everything.
    pub const ALL: Percent = Percent(100.0);

    /// `None` unless `value` lies within 0..=100.
    pub fn new(value: f64) -> Option<Self> {
        (0.0..=100.0).contains(&value).then_some(Self(value))
    }

    /// The share, 0..=100.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A chance of `numerator` in `denominator`. Source: `envoy.type.v3.FractionalPercent`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Always.
    pub const ALWAYS: Fraction = Fraction { numerator: 100, denominator: 100 };

    /// `denominator` must not be 0; a numerator above it counts as always.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (denominator > 0).then_some(Self { numerator, denominator })
    }

    /// True for a share of the values of `random`, which must be evenly distributed.
    pub fn holds(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }

    /// The chance as (numerator, denominator).
    pub fn parts(self) -> (u32, u32) {
        (self.numerator, self.denominator)
    }
}

/// A fraction that a runtime key may override. Source: `envoy.config.core.v3.RuntimeFractionalPercent`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuntimeFraction {
    /// Used unless the runtime has a value.
    pub default: Fraction,
    /// Empty when no key was given.
    pub runtime_key: String,
}

/// A number that a runtime key may override. Source: `envoy.config.core.v3.RuntimeDouble`, `RuntimePercent` and
/// `RuntimeUInt32`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeNumber {
    /// Used unless the runtime has a value.
    pub default: f64,
    /// Empty when no key was given.
    pub runtime_key: String,
}
