//! What the line of an agent says: the text protocol of HAProxy's `agent-check`.
//!
//! Owns the words. Never reads from anywhere, and never changes an endpoint.

/// A line of an agent. What a line does not mention stays as it was.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AgentReport {
    /// Whether the service works: `up`; or `down`, `fail` and `stopped`.
    pub up: Option<bool>,
    /// Whether requests are wanted.
    pub mode: Option<AgentMode>,
    /// Share of the endpoint's weight in percent, up to [`MAX_PERCENT`]. None at all for 0.
    pub weight_percent: Option<u16>,
    /// Requests that the endpoint takes at the same time. No limit for 0.
    pub max_requests: Option<u32>,
}

/// Whether an endpoint wants requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AgentMode {
    /// `ready`: as other checks say.
    Ready,
    /// `drain`: no new ones.
    Drain,
    /// `maint`: none at all, and what there is may end.
    Maintenance,
}

/// The most that HAProxy takes.
pub const MAX_PERCENT: u16 = 25_600;

/// Where the first line of `bytes` ends: at a line feed or carriage return.
pub fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'))
}

/// Reads a line, without its end: words between blanks and commas in any order and any case, the last of a kind winning.
/// What follows a `#` is for people and comes second. Words that nobody knows are passed over.
pub fn agent_report(line: &[u8]) -> (AgentReport, &[u8]) {
    let end = line_end(line).unwrap_or(line.len());
    let line = line.get(..end).unwrap_or(line);
    let (words, reason) = match line.iter().position(|byte| *byte == b'#') {
        Some(at) => (&line[..at], line[at + 1..].trim_ascii()),
        None => (line, &[][..]),
    };
    let mut report = AgentReport::default();
    for word in words.split(|byte| matches!(byte, b' ' | b'\t' | b',')) {
        report.take(word);
    }
    (report, reason)
}

impl AgentReport {
    fn take(&mut self, word: &[u8]) {
        let lower = word.to_ascii_lowercase();
        match lower.as_slice() {
            b"up" => self.up = Some(true),
            b"down" | b"fail" | b"stopped" => self.up = Some(false),
            b"ready" => self.mode = Some(AgentMode::Ready),
            b"drain" => self.mode = Some(AgentMode::Drain),
            b"maint" => self.mode = Some(AgentMode::Maintenance),
            other => {
                if let Some(digits) = other.strip_suffix(b"%") {
                    let percent = number(digits).and_then(|percent| u16::try_from(percent).ok());
                    self.weight_percent = percent.filter(|percent| *percent <= MAX_PERCENT).or(self.weight_percent);
                } else if let Some(digits) = other.strip_prefix(b"maxconn:") {
                    self.max_requests = number(digits).or(self.max_requests);
                }
            }
        }
    }

    /// Whether it says anything at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A number of nothing but digits.
fn number(digits: &[u8]) -> Option<u32> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(line: &str) -> AgentReport {
        agent_report(line.as_bytes()).0
    }

    #[test]
    fn each_word_says_one_thing() {
        let nothing = AgentReport::default();
        for (line, expected) in [
            ("up", AgentReport { up: Some(true), ..nothing }),
            ("down", AgentReport { up: Some(false), ..nothing }),
            ("FAIL", AgentReport { up: Some(false), ..nothing }),
            ("stopped", AgentReport { up: Some(false), ..nothing }),
            ("ready", AgentReport { mode: Some(AgentMode::Ready), ..nothing }),
            ("drain", AgentReport { mode: Some(AgentMode::Drain), ..nothing }),
            ("Maint", AgentReport { mode: Some(AgentMode::Maintenance), ..nothing }),
            ("75%", AgentReport { weight_percent: Some(75), ..nothing }),
            ("0%", AgentReport { weight_percent: Some(0), ..nothing }),
            ("200%", AgentReport { weight_percent: Some(200), ..nothing }),
            ("maxconn:30", AgentReport { max_requests: Some(30), ..nothing }),
            ("", nothing),
        ] {
            assert_eq!(report(line), expected, "{line:?}");
        }
        assert!(nothing.is_empty() && !report("up").is_empty());
    }

    #[test]
    fn a_line_holds_several_words_and_a_reason() {
        let (report, reason) = agent_report(b"ready, UP\t50%,,maxconn:10 60% # all well, thanks\r\nmaint\n");
        let expected = AgentReport {
            up: Some(true),
            mode: Some(AgentMode::Ready),
            weight_percent: Some(60),
            max_requests: Some(10),
        };
        assert_eq!((report, reason), (expected, &b"all well, thanks"[..]));
        let (report, reason) = agent_report(b"down#up 10%");
        assert_eq!((report.up, report.weight_percent, reason), (Some(false), None, &b"up 10%"[..]));
    }

    #[test]
    fn what_is_no_word_says_nothing() {
        for line in ["upp", "%", "-5%", "7 %", "25601%", "99999999999%", "maxconn:", "maxconn: 3", "maxconn:x", "+3%"] {
            let found = report(line);
            assert!(found.is_empty(), "{line:?}: {found:?}");
        }
        assert_eq!(report("50% bogus%").weight_percent, Some(50));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_numbers_keep_their_limits(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let (report, reason) = agent_report(&line);
            prop_assert!(report.weight_percent.is_none_or(|percent| percent <= MAX_PERCENT));
            prop_assert!(reason.len() <= line.len() && line_end(reason).is_none());
        }

        #[test]
        fn numbers_are_read_back(percent in 0..=MAX_PERCENT, limit: u32) {
            let found = report(&format!("{percent}% maxconn:{limit}"));
            prop_assert_eq!((found.weight_percent, found.max_requests), (Some(percent), Some(limit)));
        }
    }
}
