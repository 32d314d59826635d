//! Reads the bootstrap.
//!
//! Owns the order: file, then `--config-yaml` over it, then what other flags say; and that everything that is wrong is
//! told at once. Never prints.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_api::{Format, JsonError, NewerFields, ParseOptions, Parsed, Schema, UnknownFields, UnknownTypes, pb};
use outrigger_config::bootstrap::{Bootstrap, StatsTag, StatsTagValue};
use outrigger_config::coverage::{NoEffect, collecting};
use outrigger_config::{Context, Environment, Rejection};
use outrigger_sys::process;

use super::node::identify;
use crate::cli::Options;
use crate::logging::{Escape, Pattern, PatternError, pattern_of};

type Message = pb::envoy::config::bootstrap::v3::Bootstrap;

/// A bootstrap that can be started from.
#[derive(Debug)]
pub struct Loaded {
    /// Merged and completed, for dumps.
    pub message: Arc<Message>,
    /// Checked.
    pub bootstrap: Bootstrap,
    /// How log lines look from here on, if the bootstrap says so.
    pub log_pattern: Option<Pattern>,
    /// Unknown fields that were left out, to be logged.
    pub warnings: Vec<String>,
    /// Fields that have no effect.
    pub without_effect: Vec<NoEffect>,
}

/// Why there is no bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither flag was given.
    #[error("no bootstrap: give --config-path, --config-yaml or both")]
    NothingGiven,
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no bootstrap.
    #[error("{origin}: {source}")]
    Document {
        /// Which text.
        origin: Origin,
        /// Why.
        source: JsonError,
    },
    /// It is refused; at least one problem.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// Both ways to say how the log looks.
    #[error("application_log_config.log_format and --log-format exclude each other")]
    TwoLogFormats,
    /// The bootstrap's log format.
    #[error("application_log_config.log_format: {0}")]
    LogFormat(#[from] PatternError),
}

impl LoadError {
    /// Each problem, with its path.
    pub fn problems(&self) -> Vec<String> {
        match self {
            LoadError::Refused(problems) => problems.clone(),
            LoadError::Document { origin, source } if !source.problems().is_empty() => {
                source.problems().iter().map(|problem| format!("{origin}: {problem}")).collect()
            }
            other => vec![other.to_string()],
        }
    }
}

/// Where a part of the bootstrap comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The file.
    File(PathBuf),
    /// `--config-yaml`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Flag => f.write_str("--config-yaml"),
        }
    }
}

/// Reads the bootstrap that `options` name.
///
/// # Errors
/// With every problem found, see [`LoadError::problems`].
pub fn load(options: &Options, environment: &dyn Environment) -> Result<Loaded, LoadError> {
    let mut collected = Collected::default();
    let mut message: Option<Message> = None;
    if let Some(path) = &options.config_path {
        // Read to the end once: it may be a FIFO, which has no size and cannot be read again.
        let content = environment.read_file(path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
        let format = Format::of(path, &content);
        message = Some(collected.parse(Origin::File(path.clone()), &content, format, options)?);
    }
    if !options.config_yaml.is_empty() {
        let content = options.config_yaml.as_bytes();
        let over = collected.parse(Origin::Flag, content, Format::of(Path::new(""), content), options)?;
        match &mut message {
            Some(base) => Schema::load()
                .merge(base, &over)
                .map_err(|source| LoadError::Document { origin: Origin::Flag, source })?,
            None => message = Some(over),
        }
    }
    let mut message = message.ok_or(LoadError::NothingGiven)?;
    identify(message.node.get_or_insert_default(), options);
    let consumed = message.clone();
    // Reading the text took several times what the message takes.
    process::trim_heap();
    let newer = std::mem::take(&mut collected.newer);
    let parse = || Bootstrap::parse(&Context::new(environment).with_newer(newer), consumed);
    let (parsed, without_effect) = collecting(|| process::trimming(parse));
    let mut bootstrap = match parsed {
        Ok(bootstrap) => Some(bootstrap),
        Err(rejections) => {
            collected.problems.extend(rejections.iter().map(Rejection::to_string));
            None
        }
    };
    let Some(mut bootstrap) = bootstrap.take_if(|_| collected.problems.is_empty()) else {
        return Err(LoadError::Refused(collected.problems));
    };
    let log_pattern = bootstrap.log_format.as_ref().map(pattern_of).transpose()?;
    if log_pattern.is_some() && options.log_format.is_some() {
        return Err(LoadError::TwoLogFormats);
    }
    let tags = options.stats_tags.iter();
    bootstrap
        .stats
        .tags
        .extend(tags.map(|tag| StatsTag { name: tag.name.clone(), value: StatsTagValue::Fixed(tag.value.clone()) }));
    Ok(Loaded { message: Arc::new(message), bootstrap, log_pattern, warnings: collected.warnings, without_effect })
}

/// The line format of the log before the bootstrap is read.
pub fn first_pattern(options: &Options) -> Pattern {
    Pattern::new(options.log_format(), if options.log_format_escaped { Escape::C } else { Escape::None })
}

/// What is found on the way.
#[derive(Default)]
struct Collected {
    problems: Vec<String>,
    warnings: Vec<String>,
    newer: NewerFields,
}

impl Collected {
    fn parse(
        &mut self,
        origin: Origin,
        content: &[u8],
        format: Format,
        options: &Options,
    ) -> Result<Message, LoadError> {
        // Extensions that nobody knows are kept: the reader of the field says whether that matters, and where.
        let newer = &mut self.newer;
        let mut parse = |unknown_fields| {
            let how = ParseOptions { unknown_fields, unknown_types: UnknownTypes::Keep };
            let see = &mut |bytes: &[u8]| newer.extend(NewerFields::of_bootstrap(bytes));
            Schema::load().parse_seeing::<Message>(content, format, how, see)
        };
        let document = |source| LoadError::Document { origin: origin.clone(), source };
        if options.allow_unknown_static_fields {
            let Parsed { message, unknown_fields } = parse(UnknownFields::Collect).map_err(document)?;
            let warning = |field| format!("{origin}: unknown field {field} is left out");
            self.warnings.extend(unknown_fields.iter().map(warning));
            return Ok(message);
        }
        let strict = match parse(UnknownFields::Reject) {
            Ok(Parsed { message, .. }) => return Ok(message),
            Err(error) => error,
        };
        // With nothing but unknown fields to blame, the rest can be looked at, so that all problems are told at once.
        match parse(UnknownFields::Collect) {
            Ok(Parsed { message, .. }) => {
                self.problems.extend(strict.problems().iter().map(|problem| format!("{origin}: {problem}")));
                Ok(message)
            }
            Err(_) => Err(document(strict)),
        }
    }
}

#[cfg(test)]
mod tests;
