//! Reads the arguments.
//!
//! Owns how flags are written: `--flag value`, `--flag=value`, `-c value`, and both in one argument, as in
//! `"--flag value"`: Envoy's parser takes a blank as delimiter, and Contour's manifests rely on it. Never reads the
//! environment: the caller tells what it needs of it.

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::flags::{self, Effect, Flag, Print, Standing};
use super::help::help;
use super::options::Options;
use super::version::{EMULATED_VERSION_VARIABLE, EmulatedVersion, version_line};

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To run with these options.
    Run(Box<Options>),
    /// To print something and exit successfully.
    Print(Output),
}

/// Text to print, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Standard output.
    Standard(String),
    /// Standard error, where Envoy prints its hot restart version.
    Error(String),
}

/// Why a command line cannot be understood. The process ends with exit code 1.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UsageError {
    /// Not text.
    #[error("argument {0} is not valid UTF-8: {1}")]
    NotText(usize, String),
    /// No such flag.
    #[error("unknown argument {written:?}{}", suggestion(.meant))]
    Unknown {
        /// As written.
        written: String,
        /// What was probably meant.
        meant: Option<&'static str>,
    },
    /// Something that is no flag.
    #[error("unexpected argument {0:?}: all arguments begin with a dash")]
    Unexpected(String),
    /// The command line ends too early.
    #[error("--{flag} needs a value: --{flag} <{placeholder}>")]
    MissingValue {
        /// Its name.
        flag: &'static str,
        /// What the value is.
        placeholder: &'static str,
    },
    /// A value where none belongs.
    #[error("--{flag} takes no value, but {value:?} is given")]
    ValueNotTaken {
        /// Its name.
        flag: &'static str,
        /// As written.
        value: String,
    },
    /// A value that is not understood.
    #[error("--{flag}: {reason}")]
    Value {
        /// Its name.
        flag: &'static str,
        /// What was written, and what was expected.
        reason: String,
    },
    /// Once is enough.
    #[error("--{0} is given twice")]
    Twice(&'static str),
    /// The environment variable for the emulated version.
    #[error("environment variable {EMULATED_VERSION_VARIABLE}: {0}")]
    Variable(String),
}

fn suggestion(meant: &Option<&'static str>) -> String {
    meant.map(|name| format!(", did you mean --{name}?")).unwrap_or_default()
}

/// Reads the arguments, without the name of the program. `emulated_version` is what the environment says.
///
/// # Errors
/// What is wrong first.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    emulated_version: Option<&str>,
) -> Result<Invocation, UsageError> {
    let mut reader = Reader::default();
    let read = reader.read_all(arguments, emulated_version);
    // Envoy prints without looking at the rest of the line, so whatever else is wrong with it does not matter.
    match reader.print {
        Some(Print::Help) => Ok(Invocation::Print(Output::Standard(help()))),
        Some(Print::Version) => Ok(Invocation::Print(Output::Standard(version_line(reader.options.emulated_version)))),
        Some(Print::HotRestartVersion) => Ok(Invocation::Print(Output::Error("disabled\n".to_owned()))),
        None => read.map(|()| Invocation::Run(Box::new(reader.options))),
    }
}

#[derive(Default)]
struct Reader {
    options: Options,
    print: Option<Print>,
    seen: BTreeSet<&'static str>,
}

impl Reader {
    fn read_all(
        &mut self,
        arguments: impl IntoIterator<Item = OsString>,
        emulated_version: Option<&str>,
    ) -> Result<(), UsageError> {
        if let Some(text) = emulated_version.filter(|text| !text.is_empty()) {
            self.options.emulated_version = text.parse::<EmulatedVersion>().map_err(UsageError::Variable)?;
        }
        let mut texts = arguments.into_iter().enumerate().map(|(index, argument)| {
            argument.into_string().map_err(|raw| UsageError::NotText(index + 1, raw.to_string_lossy().into_owned()))
        });
        while let Some(argument) = texts.next().transpose()? {
            let (flag, inline) = recognise(&argument)?;
            let repeatable = matches!(flag.effect, Effect::Repeated(..) | Effect::Rest);
            if !self.seen.insert(flag.name) && !repeatable {
                return Err(UsageError::Twice(flag.name));
            }
            if let Standing::WithoutEffect(reason) = flag.standing {
                self.options.warnings.push(format!("--{} has no effect: {reason}", flag.name));
            }
            match flag.effect {
                Effect::Value(placeholder, set) | Effect::Repeated(placeholder, set) => {
                    let next = || texts.next().transpose();
                    let value = inline.map_or_else(next, |value| Ok(Some(value.to_owned())))?;
                    let value = value.ok_or(UsageError::MissingValue { flag: flag.name, placeholder })?;
                    set(&mut self.options, &value).map_err(|reason| UsageError::Value { flag: flag.name, reason })?;
                }
                Effect::Switch(set) => set(&mut self.options),
                Effect::Print(print) => self.print = self.print.or(Some(print)),
                Effect::Rest => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The flag of an argument, and the value if that is part of the same argument.
fn recognise(argument: &str) -> Result<(&'static Flag, Option<&str>), UsageError> {
    if let Some(flag) = flags::find(argument) {
        return Ok((flag, None));
    }
    if !argument.starts_with('-') {
        return Err(UsageError::Unexpected(argument.to_owned()));
    }
    let (written, value) = argument.split_once([' ', '=']).unwrap_or((argument, ""));
    match flags::find(written) {
        Some(flag) if flag.placeholder().is_some() => Ok((flag, Some(value))),
        Some(flag) if value.trim().is_empty() && !argument.contains('=') => Ok((flag, None)),
        Some(flag) => Err(UsageError::ValueNotTaken { flag: flag.name, value: value.to_owned() }),
        None => {
            let meant = flags::nearest(written).map(|flag| flag.name);
            Err(UsageError::Unknown { written: written.to_owned(), meant })
        }
    }
}

#[cfg(test)]
mod tests;
