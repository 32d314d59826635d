//! The log of the process: what Envoy calls application log, in Envoy's format, through `tracing`.
//!
//! Owns levels per component, the line format, and where lines go. Never writes access logs (see `accesslog`).
//!
//! Whether an event is wanted is decided once per place in the code and remembered by `tracing` until a level changes,
//! so that a disabled event costs one load and one branch.

mod component;
mod level;
mod pattern;
mod sink;
mod subscriber;

use std::io;
use std::path::Path;
use std::sync::Arc;

use outrigger_config::bootstrap::ApplicationLogFormat;

pub use component::{Component, ComponentLevelError, ComponentLevels};
pub use level::{Level, UnknownLevel};
pub use pattern::{Escape, Pattern, PatternError};

use self::sink::Sink;
use self::subscriber::{Levels, Subscriber};

/// Lines look so unless told otherwise.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// How the log begins.
#[derive(Debug)]
pub struct LogOptions<'a> {
    /// Of all components that `components` does not name.
    pub level: Level,
    /// Levels of single components.
    pub components: &'a ComponentLevels,
    /// How lines look.
    pub pattern: Pattern,
    /// Appended to; standard error if `None`.
    pub path: Option<&'a Path>,
}

/// Changes the log while the process runs. Clones control the same log.
#[derive(Clone, Debug)]
pub struct LogControl {
    levels: Arc<Levels>,
    sink: Arc<Sink>,
}

impl LogControl {
    /// Starts the log of the process. Panics are logged from here on, too.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(options: LogOptions<'_>) -> io::Result<Self> {
        let control = Self::new(options)?;
        // A second log in one process happens in tests only; the first one stays.
        let _ = tracing::subscriber::set_global_default(control.subscriber());
        std::panic::set_hook(Box::new(|panic| tracing::error!(target: "assert", critical = true, "{panic}")));
        Ok(control)
    }

    fn new(LogOptions { level, components, pattern, path }: LogOptions<'_>) -> io::Result<Self> {
        let levels = Levels::new(level);
        for (component, level) in components.iter() {
            levels.set(component, level);
        }
        Ok(Self { levels: Arc::new(levels), sink: Arc::new(Sink::open(path, pattern)?) })
    }

    fn subscriber(&self) -> Subscriber {
        Subscriber::new(Arc::clone(&self.levels), Arc::clone(&self.sink))
    }

    /// Whether events of this level and component are written.
    pub fn allows(&self, component: Component, level: Level) -> bool {
        level != Level::Off && level >= self.levels.of(component)
    }

    /// Every component with its level, in the order in which Envoy lists them.
    pub fn levels(&self) -> impl Iterator<Item = (Component, Level)> + '_ {
        Component::all().map(|component| (component, self.levels.of(component)))
    }

    /// Sets the level of all components.
    pub fn set_all(&self, level: Level) {
        Component::all().for_each(|component| self.levels.set(component, level));
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets the levels of some components.
    pub fn set(&self, levels: &ComponentLevels) {
        levels.iter().for_each(|(component, level)| self.levels.set(component, level));
        tracing::callsite::rebuild_interest_cache();
    }

    /// Changes how lines look.
    pub fn set_pattern(&self, pattern: Pattern) {
        self.sink.set_pattern(pattern);
    }

    /// Opens the file again, after somebody renamed it. Keeps the old one if that fails.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn reopen(&self) -> io::Result<()> {
        self.sink.reopen()
    }
}

/// The pattern that the bootstrap asks for (`application_log_config.log_format`).
///
/// # Errors
/// When a JSON format uses a flag that would break it.
pub fn pattern_of(format: &ApplicationLogFormat) -> Result<Pattern, PatternError> {
    match format {
        ApplicationLogFormat::Text(text) => Ok(Pattern::new(text, Escape::None)),
        ApplicationLogFormat::Json(members) => Pattern::json(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_to(path: &Path, level: Level, components: &str) -> LogControl {
        let components: ComponentLevels = components.parse().unwrap();
        let pattern = Pattern::new("%l %n %v", Escape::None);
        LogControl::new(LogOptions { level, components: &components, pattern, path: Some(path) }).unwrap()
    }

    #[test]
    fn levels_apply_by_component_and_change_while_running() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let control = log_to(&path, Level::Warning, "upstream:debug,http:off");
        tracing::subscriber::with_default(control.subscriber(), || {
            let say = || {
                tracing::info!(target: "outrigger::upstream::pool", "info");
                tracing::debug!(target: "upstream", "debug");
                tracing::trace!(target: "upstream", "trace");
                tracing::error!(target: "http", "error");
                tracing::error!(target: "outrigger::lifecycle", critical = true, "critical");
                tracing::warn!(target: "outrigger::lifecycle", code = 7, name = "x y", "warning");
            };
            say();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(
                text,
                "debug upstream debug\ncritical main critical\nwarning main warning code=7 name=\"x y\"\n"
            );
            std::fs::rename(&path, directory.path().join("old")).unwrap();
            control.set_all(Level::Critical);
            control.set(&"upstream:trace".parse().unwrap());
            control.reopen().unwrap();
            say();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, "debug upstream debug\ntrace upstream trace\ncritical main critical\n");
        });
        let upstream = Component::named("upstream").unwrap();
        assert!(control.allows(upstream, Level::Trace));
        let levels: Vec<_> = control.levels().collect();
        assert_eq!(levels[1], (Component::named("admin").unwrap(), Level::Critical));
        assert!(levels.contains(&(upstream, Level::Trace)));
    }

    #[test]
    fn spans_are_not_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let control = log_to(&directory.path().join("log"), Level::Trace, "");
        tracing::subscriber::with_default(control.subscriber(), || {
            assert!(tracing::error_span!("request").is_disabled());
        });
    }
}
