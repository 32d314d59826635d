//! `/logging`: levels of the log.
//!
//! Owns the parameters and the listing. Never writes a log.

use http::StatusCode;

use super::context::AdminContext;
use super::request::Request;
use super::response::Response;
use crate::logging::{Component, ComponentLevels, Level, LogControl};

/// Levels of the log that can be read and set.
pub trait LogLevels {
    /// Every component with its level.
    fn levels(&self) -> Vec<(&'static str, &'static str)>;
    /// Sets the level of all components.
    fn set_all(&self, level: Level);
    /// Sets the levels of some components.
    fn set(&self, levels: &ComponentLevels);
}

impl LogLevels for LogControl {
    fn levels(&self) -> Vec<(&'static str, &'static str)> {
        LogControl::levels(self).map(|(component, level)| (component.name(), level.as_str())).collect()
    }

    fn set_all(&self, level: Level) {
        LogControl::set_all(self, level);
    }

    fn set(&self, levels: &ComponentLevels) {
        LogControl::set(self, levels);
    }
}

/// Sets levels if parameters ask for it, and lists all.
pub(super) fn logging(context: &AdminContext, request: &Request) -> Response {
    let mut text = String::new();
    let mut status = StatusCode::OK;
    if let Err(reason) = change(context, request) {
        status = StatusCode::BAD_REQUEST;
        let levels: Vec<&str> = Level::ALL.iter().map(|level| level.as_str()).collect();
        text = format!(
            "error: {reason}\n\n\
             usage: /logging?<logger>=<level> (one logger)\n\
             usage: /logging?paths=<logger>:<level>,<logger>:<level> (several)\n\
             usage: /logging?level=<level> (all of them)\n\
             levels: {}\n",
            levels.join(" ")
        );
    }
    text.push_str("active loggers:\n");
    for (name, level) in context.logging.levels() {
        text.push_str(&format!("  {name}: {level}\n"));
    }
    text.push('\n');
    Response::text(status, text)
}

fn change(context: &AdminContext, request: &Request) -> Result<(), String> {
    let (name, value) = match request.parameters.as_slice() {
        [] => return Ok(()),
        [(name, value)] => (name.as_str(), value.as_str()),
        _ => return Err("invalid number of parameters".to_owned()),
    };
    match name {
        // The form of the home page sends it empty.
        "level" | "paths" | "group" if value.is_empty() => return Ok(()),
        "level" => context.logging.set_all(level(value)?),
        "paths" | "group" => {
            let levels: Result<ComponentLevels, String> = value.split(',').map(pair).collect();
            context.logging.set(&levels?);
        }
        logger => context.logging.set(&std::iter::once((component(logger)?, level(value)?)).collect()),
    }
    Ok(())
}

/// Sets a level of all loggers, or of some.
pub(super) fn set(context: &AdminContext, text: &str) -> Result<(), String> {
    match text.contains(':') {
        false => context.logging.set_all(level(text)?),
        true => {
            let levels: Result<ComponentLevels, String> = text.split(',').map(pair).collect();
            context.logging.set(&levels?);
        }
    }
    Ok(())
}

/// Sets levels to what they were.
pub(super) fn put_back(logging: &dyn LogLevels, before: &[(&'static str, &'static str)]) {
    let known = before.iter().filter_map(|(name, text)| Some((Component::named(name)?, level(text).ok()?)));
    logging.set(&known.collect());
}

fn pair(text: &str) -> Result<(Component, Level), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not <logger>:<level>"))?;
    Ok((component(name)?, level(value)?))
}

fn component(name: &str) -> Result<Component, String> {
    Component::named(name).ok_or_else(|| "unknown logger name".to_owned())
}

fn level(text: &str) -> Result<Level, String> {
    text.parse().map_err(|_| "unknown logger level".to_owned())
}
