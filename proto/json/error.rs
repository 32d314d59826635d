//! What a person is told about text that does not become a message.

use std::fmt;

/// One thing wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, in the spelling of the document, such as `static_resources.clusters[0].connect_timeout`. Empty for the
    /// document itself.
    pub path: String,
    /// What stands there and what was expected.
    pub reason: String,
}

impl Problem {
    pub(crate) fn new(path: &str, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "document" } else { &self.path };
        write!(f, "{path}: {}", self.reason)
    }
}

/// Why text did not become a message, or a message did not become JSON.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The text is not JSON or YAML.
    #[error("not valid {format}: {reason}")]
    Syntax {
        /// `JSON` or `YAML`.
        format: &'static str,
        /// Counted from 1; 0 when unknown.
        line: usize,
        /// Counted from 1; 0 when unknown.
        column: usize,
        /// The parser's words, with the position where it has one.
        reason: String,
    },
    /// The file is not UTF-8 text.
    #[error("not valid {format}: byte {offset} is not UTF-8")]
    NotText {
        /// `JSON` or `YAML`.
        format: &'static str,
        /// Index of the first bad byte.
        offset: usize,
    },
    /// A YAML stream of more than one document.
    #[error("several YAML documents, expected one: remove what follows the second `---`")]
    SeveralDocuments,
    /// The document does not fit the message. Holds every problem found.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// The schema has no such message.
    #[error("unknown message type {0}")]
    UnknownType(String),
    /// The bytes are no message of the type that they are said to be.
    #[error("malformed {type_name}: {reason}")]
    Malformed {
        /// Full message name.
        type_name: String,
        /// What is wrong.
        reason: String,
    },
    /// A file format that is not read here.
    #[error("protobuf text format is not supported; write JSON, YAML or binary protobuf")]
    TextFormat,
}

impl JsonError {
    /// The single problems, for callers that print one line for each.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) => problems,
            _ => &[],
        }
    }

    pub(crate) fn malformed(type_name: &str, reason: impl ToString) -> Self {
        Self::Malformed { type_name: type_name.to_owned(), reason: reason.to_string() }
    }
}

impl From<Problem> for JsonError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(vec![problem])
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}
