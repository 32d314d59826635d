//! Rate limits: what requests are counted by, and whether there is room for them.
//!
//! Owns descriptors and the limits that the proxy keeps by itself. Never reads a clock, and never answers a request.

mod descriptors;
mod limiter;
mod table;

pub(crate) use descriptors::parameter;
pub use descriptors::{Descriptor, DescriptorView, descriptor};
pub use limiter::{LocalLimiter, Outcome, Room, Told};
