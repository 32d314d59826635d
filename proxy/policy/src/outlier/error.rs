//! What a response means to outlier detection.
//!
//! Owns the evaluation of `error_matcher`. Never counts anything.

use outrigger_config::cluster::ErrorMatcher;

use crate::route::header_matches;

/// The head of a response.
pub trait ResponseView {
    /// The values of a header by its lower-case name. `:status` is never asked for.
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
}

/// The status that a response counts as: what `matcher` takes for an error counts as 500 unless it is a 5xx itself, and all
/// else as 200.
pub fn status_by(matcher: &ErrorMatcher, status: u16, response: &impl ResponseView) -> u16 {
    match (matches(matcher, status, response), status) {
        (true, 500..600) => status,
        (true, _) => 500,
        (false, _) => 200,
    }
}

fn matches(matcher: &ErrorMatcher, status: u16, response: &impl ResponseView) -> bool {
    let holds = |matcher: &ErrorMatcher| matches(matcher, status, response);
    match matcher {
        ErrorMatcher::Any => true,
        ErrorMatcher::Not(inner) => !holds(inner),
        ErrorMatcher::All(all) => all.iter().all(holds),
        ErrorMatcher::One(any) => any.iter().any(holds),
        ErrorMatcher::Headers(headers) => headers.iter().all(|header| match &*header.name {
            ":status" => header_matches(header, Some(status.to_string().as_bytes())),
            name => header_matches(header, response.header(name)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::matching::StringMatcher;
    use outrigger_config::route::{HeaderMatch, HeaderMatcher};

    use super::*;

    struct Head(&'static [(&'static str, &'static str)]);

    impl ResponseView for Head {
        fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            self.0.iter().filter(move |(key, _)| *key == name).map(|(_, value)| value.as_bytes())
        }
    }

    fn header(name: &str, value: &str) -> ErrorMatcher {
        ErrorMatcher::Headers(vec![HeaderMatcher {
            name: name.into(),
            value: HeaderMatch::String(StringMatcher::Exact { value: value.into(), ignore_case: false }),
            invert: false,
            treat_missing_as_empty: false,
        }])
    }

    #[test]
    fn what_matches_is_an_error_and_all_else_is_a_success() {
        let none = Head(&[]);
        let teapot = header(":status", "418");
        let statuses = [418, 500, 200].map(|status| status_by(&teapot, status, &none));
        assert_eq!(statuses, [500, 200, 200]);
        assert_eq!(status_by(&header(":status", "503"), 503, &none), 503);
        let either = ErrorMatcher::One(vec![teapot.clone(), header("x-failed", "1")]);
        assert_eq!(status_by(&either, 200, &Head(&[("x-failed", "0"), ("x-failed", "1")])), 500);
        let both = ErrorMatcher::All(vec![teapot, header("x-failed", "1")]);
        assert_eq!(status_by(&both, 418, &none), 200);
        assert_eq!(status_by(&ErrorMatcher::Not(Box::new(both)), 200, &none), 500);
        assert_eq!(status_by(&ErrorMatcher::Any, 200, &none), 500);
    }
}
