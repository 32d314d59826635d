//! Header names as a peer wrote them (`preserve_case`).
//!
//! Owns what the parser of HTTP/1 remembers of a head and how a name is written by it. Never changes which header is
//! meant: names are compared without regard to case.

use outrigger_config::http::{HeaderCase, PreserveCase};

/// The spelling of one message. A name that came in several spellings keeps the first, as in Envoy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OriginalNames {
    names: Vec<Box<[u8]>>,
    reason: Option<Box<[u8]>>,
    unknown: HeaderCase,
}

impl OriginalNames {
    /// Nothing remembered yet.
    pub fn new(options: PreserveCase) -> Self {
        Self { names: Vec::new(), reason: None, unknown: options.unknown }
    }

    /// Remembers a name.
    pub fn remember(&mut self, name: &[u8]) {
        if self.find(name).is_none() {
            self.names.push(name.into());
        }
    }

    /// Remembers the words that follow the status.
    pub fn remember_reason(&mut self, reason: &str) {
        self.reason = Some(reason.as_bytes().into());
    }

    /// The words that follow the status, if they are to be passed on.
    pub fn reason(&self) -> Option<&[u8]> {
        self.reason.as_deref()
    }

    /// How the peer wrote this name.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.names.iter().map(|known| &**known).find(|known| known.eq_ignore_ascii_case(name))
    }

    /// How names are written that the peer did not send.
    pub fn unknown(&self) -> HeaderCase {
        self.unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_spelling_stays() {
        let mut names = OriginalNames::new(PreserveCase { reason_phrase: true, unknown: HeaderCase::Proper });
        names.remember(b"X-ABc");
        names.remember(b"x-aBC");
        names.remember(b"HOST");
        assert_eq!(names.find(b"x-abc"), Some(&b"X-ABc"[..]));
        assert_eq!(names.find(b"host"), Some(&b"HOST"[..]));
        assert_eq!(names.find(b"x-ab"), None);
        assert_eq!(names.reason(), None);
        assert_eq!(names.unknown(), HeaderCase::Proper);
    }
}
