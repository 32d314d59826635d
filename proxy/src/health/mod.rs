//! The health of endpoints: outlier detection by the results of requests.
//!
//! What workers observe goes into atomics of the endpoint and, rarely, into a queue; the control thread decides, marks
//! endpoints, and has the cluster's picks rebuilt. Never picks an endpoint.

mod event_file;
mod event_line;
mod flags;
pub mod observe;
mod outlier_log;
mod outliers;
mod reports;
mod stats;

pub use event_file::EventFile;
pub use flags::{HealthFlag, HealthFlags};
pub use outliers::{OutlierState, Outliers, Shown};
pub use reports::{Observation, Report, Reports};
