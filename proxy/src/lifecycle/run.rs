//! From parsed flags to an exit code.
//!
//! Owns the modes, and how failures to start are told. Never parses flags.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::serve::{StartError, export_settings, flush_options, serve, workers_of};
use crate::accesslog::AccessLogManager;
use crate::bootstrap::{self, Loaded, System};
use crate::cli::{Mode, Options};
use crate::graph::{self, ManagerOptions};
use crate::logging::{Component, Level, LogControl, LogOptions};
use crate::stats::Registry;

/// Does what the command line asks for. Exit codes are Envoy's: 0, or 1 if it could not start.
pub fn run(options: Options) -> ExitCode {
    let started = Instant::now();
    if options.dump_cpus {
        let (topology, plan) = workers_of(&options);
        println!("{topology}\n{plan}");
        return ExitCode::SUCCESS;
    }
    let log_options = LogOptions {
        level: options.log_level,
        components: &options.component_log_levels,
        pattern: bootstrap::first_pattern(&options),
        // Nothing is written by a check.
        path: options.log_path.as_deref().filter(|_| options.mode != Mode::Validate),
    };
    let log = match LogControl::start(log_options) {
        Ok(log) => log,
        Err(error) => {
            let path = options.log_path.clone().unwrap_or_default();
            eprintln!("error: cannot open log file {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    let telling = Telling::new(&options, &log);
    let result = match bootstrap::load(&options, &System) {
        Ok(loaded) => {
            begin_log(&log, &loaded);
            match options.mode {
                Mode::Validate => validate(&options, loaded),
                Mode::Serve | Mode::InitOnly => serve(options, log, loaded, started),
            }
        }
        Err(error) => Err(StartError::Refused(error.problems())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telling.tell(&error);
            ExitCode::FAILURE
        }
    }
}

/// What the bootstrap says about the log.
fn begin_log(log: &LogControl, loaded: &Loaded) {
    if let Some(pattern) = &loaded.log_pattern {
        log.set_pattern(pattern.clone());
    }
    for warning in &loaded.warnings {
        tracing::warn!(target: "config", "{warning}");
    }
}

/// Source: `--mode validate`.
fn validate(options: &Options, loaded: Loaded) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(|source| StartError::System { what: "start the control thread", source })?;
    let access_logs = AccessLogManager::new(flush_options(options), &Registry::default());
    let manager_options = ManagerOptions {
        drain_time: options.drain_time,
        drain_strategy: options.drain_strategy,
        unknown_fields: options.unknown_dynamic_fields(),
        environment: Rc::new(System),
        access_logs: Arc::new(access_logs),
        bootstrap_message: None,
        without_effect: Vec::new(),
    };
    let mut problems = Vec::new();
    match export_settings(&loaded.bootstrap.stats) {
        Err(StartError::Refused(found)) => problems.extend(found),
        Err(other) => return Err(other),
        Ok(_) => {}
    }
    problems.extend(runtime.block_on(async { graph::validate(loaded.bootstrap, manager_options) }));
    if !problems.is_empty() {
        return Err(StartError::Refused(problems));
    }
    println!("configuration '{}' OK", path_of(options).display());
    Ok(())
}

fn path_of(options: &Options) -> PathBuf {
    options.config_path.clone().unwrap_or_default()
}

/// How the last words are said.
struct Telling {
    path: PathBuf,
    /// The log reaches standard error, so nothing need be said twice.
    log_is_seen: bool,
}

impl Telling {
    fn new(options: &Options, log: &LogControl) -> Self {
        let component = Component::named("main");
        let allowed = component.is_some_and(|component| log.allows(component, Level::Critical));
        let in_file = options.log_path.is_some() && options.mode != Mode::Validate;
        Self { path: path_of(options), log_is_seen: allowed && !in_file }
    }

    fn tell(&self, error: &StartError) {
        let text = match error {
            StartError::Refused(problems) => refused(&self.path.to_string_lossy(), problems),
            StartError::Admin(_) | StartError::System { .. } => with_causes(error),
        };
        tracing::error!(target: "main", critical = true, "{text}");
        if !self.log_is_seen {
            eprintln!("{text}");
        }
    }
}

fn with_causes(error: &StartError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Several problems stand on a line each.
fn refused(path: &str, problems: &[String]) -> String {
    let header = format!("error initializing configuration '{path}'");
    match problems {
        [problem] => format!("{header}: {problem}"),
        problems => format!("{header}: {} problems\n  {}", problems.len(), problems.join("\n  ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_listed() {
        assert_eq!(refused("a", &["x".into()]), "error initializing configuration 'a': x");
        let two = refused("a", &["x".into(), "y".into()]);
        assert_eq!(two, "error initializing configuration 'a': 2 problems\n  x\n  y");
    }
}
