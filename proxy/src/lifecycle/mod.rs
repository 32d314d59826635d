//! The life of the process: what starts in what order, what runs while it lives, and how it ends.
//!
//! Owns the control thread's runtime, signals, exit codes, and the [`State`] that the admin port shows and changes. Never
//! carries traffic and never judges configuration.
//!
//! ```text
//! flags -> log -> bootstrap -> workers -> graph manager -> admin port -> initialised -> SIGTERM, SIGINT, /quitquitquit
//!                                                                                    -> drained, or again -> exit 0
//! ```

mod address_file;
mod channels;
mod run;
mod serve;
mod shutdown;
mod signals;
mod state;
mod stats;
mod stop;

pub use run::run;
pub use state::State;
pub use stats::ServerStats;
pub use stop::StopRequests;
