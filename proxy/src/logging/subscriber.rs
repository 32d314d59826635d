//! The end of `tracing`: events become lines.
//!
//! Owns the levels in force and the text of an event. Never keeps spans: nothing here prints them, so nobody pays.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata};

use super::component::{COUNT, Component};
use super::level::Level;
use super::pattern::Record;
use super::sink::Sink;

/// The level of each component.
#[derive(Debug)]
pub(super) struct Levels([AtomicU8; COUNT]);

impl Levels {
    pub fn new(level: Level) -> Self {
        Self(std::array::from_fn(|_| AtomicU8::new(level as u8)))
    }

    pub fn of(&self, component: Component) -> Level {
        Level::from_number(self.0[component.index()].load(Ordering::Relaxed))
    }

    /// Takes effect at [`tracing::callsite::rebuild_interest_cache`].
    pub fn set(&self, component: Component, level: Level) {
        self.0[component.index()].store(level as u8, Ordering::Relaxed);
    }

    fn most_talkative(&self) -> Level {
        Component::all().map(|component| self.of(component)).min().unwrap_or(Level::Off)
    }
}

/// Turns events into lines.
pub(super) struct Subscriber {
    levels: Arc<Levels>,
    sink: Arc<Sink>,
}

impl Subscriber {
    pub fn new(levels: Arc<Levels>, sink: Arc<Sink>) -> Self {
        Self { levels, sink }
    }
}

impl tracing::Subscriber for Subscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && Level::of(metadata) >= self.levels.of(Component::of_target(metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.levels.most_talkative().filter())
    }

    /// Never called, as no span is wanted; any id will do.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &SpanRecord<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = EventText::default();
        event.record(&mut text);
        let metadata = event.metadata();
        THREAD_ID.with(|thread| {
            self.sink.write(Record {
                time: SystemTime::now(),
                since_previous: Duration::ZERO,
                thread,
                level: Level::of(metadata),
                component: Component::of_target(metadata.target()).name(),
                file: metadata.file().unwrap_or_default(),
                line: metadata.line().unwrap_or_default(),
                module: metadata.module_path().unwrap_or_default(),
                message: &text.finish(),
            });
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

thread_local! {
    /// The kernel's id of this thread, as `top -H` shows it. The process id where `/proc` is missing.
    static THREAD_ID: String = std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| std::process::id().to_string());
}

/// `message key=value key="a value"`.
#[derive(Default)]
struct EventText {
    message: String,
    fields: String,
}

impl EventText {
    fn finish(mut self) -> String {
        if self.message.is_empty() {
            return self.fields.trim_start().to_owned();
        }
        self.message.push_str(&self.fields);
        self.message
    }

    // Writing to a String cannot fail; a Display that fails leaves what it wrote.
    fn push(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => drop(self.message.write_fmt(value)),
            // It chooses the level.
            "critical" => {}
            name => drop(write!(self.fields, " {name}={value}")),
        }
    }
}

impl Visit for EventText {
    fn record_str(&mut self, field: &Field, value: &str) {
        let plain = !value.is_empty() && !value.chars().any(|char| char.is_whitespace() || char == '"');
        if plain || field.name() == "message" {
            self.push(field, format_args!("{value}"));
        } else {
            self.push(field, format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format_args!("{value:?}"));
    }
}
