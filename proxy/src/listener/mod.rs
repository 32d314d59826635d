//! Listeners: from an accepted socket to the filter chain that takes it.
//!
//! Owns accepting, the listener filters and the choice of the filter chain. Never speaks an application protocol.

pub mod accept;
pub mod connection;
pub mod filters;
pub mod inspect;
pub mod internal;
pub mod socket_options;
pub mod stats;
