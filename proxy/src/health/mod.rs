//! The health of endpoints: outlier detection by the results of requests, active checks, and the load that endpoints report
//! out of band.
//!
//! What workers observe goes into atomics of the endpoint and, rarely, into a queue. The control thread checks, decides,
//! marks endpoints, and has the cluster's picks rebuilt. Never picks an endpoint.

mod check_log;
mod checked_cluster;
mod checks;
mod event_file;
mod event_line;
mod failure;
mod flags;
mod load_stream;
mod load_streams;
mod marks;
pub mod observe;
mod outlier_log;
mod outliers;
mod probe;
mod reports;
pub mod session;
mod stats;

pub use checks::{Checks, Outcome, SessionKey, Surroundings};
pub use event_file::EventFile;
pub use failure::failed;
pub use flags::{HealthFlag, HealthFlags};
pub use load_streams::LoadStreams;
pub use outliers::{OutlierState, Outliers, Shown};
pub use probe::{Checked, Target};
pub use reports::{Observation, Report, Reports};
