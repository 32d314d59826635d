//! The macro by which every field of an API message is decided.
//!
//! Owns [`decide!`], which destructures a message completely, refuses set fields that are not supported, and is the
//! source that `docs/api-support.md` is generated from. Never reads a particular message.

use std::collections::HashMap;

/// Destructures an API message completely, so that a new field of the API does not compile until somebody decides it.
///
/// `implemented` fields become local variables. `no_effect` fields are dropped, with the reason that users read; where
/// they are set, [`crate::coverage`] hears of it.
/// `unsupported` fields reject the message with their path when they are set.
///
/// ```ignore
/// decide!(wire, at, pb::FilterChain as "envoy.config.listener.v3.FilterChain" {
///     implemented: name, filters;
///     no_effect: metadata = "shown in dumps only";
///     unsupported: use_proxy_proto;
/// });
/// ```
macro_rules! decide {
    ($wire:expr, $at:expr, $($message:ident)::+ as $full_name:literal {
        implemented: $($done:ident),* ;
        no_effect: $($idle:ident = $reason:literal),* ;
        unsupported: $($refused:ident),* $(;)?
    }) => {
        let wire = $wire;
        $(
            if $crate::coverage::is_wanted() && $crate::decide::IsSet::is_set(&wire.$idle) {
                $crate::coverage::note(&$at.field(stringify!($idle)), $reason);
            }
        )*
        let $($message)::+ { $($done,)* $($idle: _,)* $($refused,)* } = wire;
        $(
            if $crate::decide::IsSet::is_set(&$refused) {
                return Err($at.field(stringify!($refused)).unsupported());
            }
        )*
    };
}
pub(crate) use decide;

/// Whether a field of a message differs from its proto3 default.
pub(crate) trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

macro_rules! is_set_number {
    ($($number:ty),*) => {
        $(impl IsSet for $number {
            fn is_set(&self) -> bool {
                *self != <$number>::default()
            }
        })*
    };
}
is_set_number!(i32, u32, i64, u64, f32, f64);
