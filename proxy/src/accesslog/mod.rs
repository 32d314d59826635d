//! Access logs: formats, filters and sinks.
//!
//! Owns the loggers of the graph and the way their entries take: formatted on the worker, handed over by a copy into a
//! buffer, written by others. A worker never waits for a disk or a peer. Never decides what is worth knowing about a stream
//! (see [`crate::stream`]).

pub(crate) mod attributes;
mod batches;
mod certificates;
mod collector;
mod durations;
pub(crate) mod entry;
mod facts;
mod file;
pub mod filter;
pub mod format;
mod grpc_status;
mod json;
mod lines;
mod manager;
mod metadata;
mod number;
pub(crate) mod records;
mod request_parts;
mod service;
mod shares;
mod stats;
mod time;
mod upstream;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_config::accesslog::{AccessLog, AccessLogSink, LogFormat};

pub use facts::{Facts, LogType};
pub use filter::RuntimeLookup;
pub(crate) use grpc_status::of as grpc_status_of;
pub use lines::LineFile;
pub use manager::{AccessLogManager, FlushOptions};
pub use service::ChannelError;

use collector::Collector;
use file::{LogFile, Target};
use service::LogService;
use shares::Handle;

/// One access logger of the graph.
#[derive(Debug)]
pub struct AccessLogger {
    config: Arc<AccessLog>,
    sink: Sink,
}

/// Where entries go.
#[derive(Debug)]
enum Sink {
    /// `/dev/null`: not even formatted.
    Nowhere,
    /// A file or a standard stream, shared with all loggers of the same path.
    File(Arc<LogFile>),
    /// A gRPC log service, shared with all loggers that send to it under the same name.
    Service(Arc<Handle<LogService>>),
    /// A collector of OpenTelemetry, shared with all loggers whose records are sent alike.
    Collector(Arc<Handle<Collector>>),
}

/// Why a logger could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The file cannot be opened for appending.
    #[error("cannot open access log {}", path.display())]
    Open {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl AccessLogger {
    /// Makes a logger, opening its file unless another logger has it open. Blocks on the file system.
    pub fn open(config: &Arc<AccessLog>, manager: &AccessLogManager) -> Result<Self, AccessLogError> {
        let sink = match &config.sink {
            AccessLogSink::File { path, .. } if path == Path::new("/dev/null") => Sink::Nowhere,
            AccessLogSink::File { path, .. } => Sink::File(manager.file(Target::of(path))?),
            AccessLogSink::Stdout { .. } => Sink::File(manager.file(Target::Stdout)?),
            AccessLogSink::Stderr { .. } => Sink::File(manager.file(Target::Stderr)?),
            AccessLogSink::Grpc(grpc) => Sink::Service(manager.service(grpc)),
            AccessLogSink::OpenTelemetry(config) => Sink::Collector(manager.collector(&config.outlet)),
        };
        Ok(Self { config: Arc::clone(config), sink })
    }

    /// As configured.
    pub fn config(&self) -> &Arc<AccessLog> {
        &self.config
    }

    /// Logs an entry, if the filter lets it through. `random` must be evenly distributed.
    pub fn log(&self, facts: &Facts<'_>, random: u64, runtime: &dyn RuntimeLookup) {
        if self.config.filter.as_ref().is_some_and(|filter| !filter::passes(filter, facts, random, runtime)) {
            return;
        }
        match (&self.sink, &self.config.sink) {
            (
                Sink::File(file),
                AccessLogSink::File { format, .. }
                | AccessLogSink::Stdout { format }
                | AccessLogSink::Stderr { format },
            ) => LINE.with_borrow_mut(|line| {
                write_line(format, facts, line);
                file.append(line);
                line.clear();
                line.shrink_to(MAX_KEPT_LINE_BYTES);
            }),
            (Sink::Service(handle), AccessLogSink::Grpc(config)) => handle.append(entry::Entry::of(config, facts)),
            (Sink::Collector(handle), AccessLogSink::OpenTelemetry(config)) => {
                handle.append(records::record(config, facts));
            }
            // The two are made from each other in `open`, so only the null sink is left.
            _ => {}
        }
    }
}

/// Writes a text of this format; JSON with a line end.
pub fn write_text(format: &LogFormat, facts: &Facts<'_>, text: &mut Vec<u8>) {
    write_line(format, facts, text);
}

fn write_line(format: &LogFormat, facts: &Facts<'_>, line: &mut Vec<u8>) {
    match format {
        LogFormat::Text { format, omit_empty: false } => format::write(format, facts, line),
        LogFormat::Text { format, omit_empty: true } => format::write_header(format, facts, line),
        LogFormat::Json { fields, omit_empty } => json::write(fields, *omit_empty, facts, line),
    }
}

thread_local! {
    /// The line that this worker is writing. Empty between lines.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A worker keeps this much memory for its next line.
const MAX_KEPT_LINE_BYTES: usize = 16 * 1024;
