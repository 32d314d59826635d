//! Matchers of values (`envoy.type.matcher.v3`).
//!
//! Owns the string matcher's checked model and how it matches; structured values and paths have files of their own. Never
//! knows what is matched.

mod node;
mod uri_rewrite;
mod uri_template;
mod value;

pub use node::NodeMatcher;
pub use uri_rewrite::UriRewrite;
pub use uri_template::UriTemplate;
pub(crate) use value::namespace_path;
pub use value::{FilterStateMatcher, FilterStateValue, MetadataMatcher, ValueMatcher, lookup};

/// A string matcher.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    /// Equal.
    Exact { value: String, ignore_case: bool },
    /// Starts with.
    Prefix { value: String, ignore_case: bool },
    /// Ends with.
    Suffix { value: String, ignore_case: bool },
    /// Contains.
    Contains { value: String, ignore_case: bool },
    /// Matches as a whole, RE2 syntax.
    Regex(regex::Regex),
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        use StringMatcher::{Contains, Exact, Prefix, Regex, Suffix};
        match (self, other) {
            (Exact { value: a, ignore_case: x }, Exact { value: b, ignore_case: y })
            | (Prefix { value: a, ignore_case: x }, Prefix { value: b, ignore_case: y })
            | (Suffix { value: a, ignore_case: x }, Suffix { value: b, ignore_case: y })
            | (Contains { value: a, ignore_case: x }, Contains { value: b, ignore_case: y }) => a == b && x == y,
            (Regex(a), Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl StringMatcher {
    /// Whether `text` matches. Bytes that are not UTF-8 never match a regex.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact { value, ignore_case } => same(text, value.as_bytes(), *ignore_case),
            Self::Prefix { value, ignore_case } => {
                text.len() >= value.len() && same(&text[..value.len()], value.as_bytes(), *ignore_case)
            }
            Self::Suffix { value, ignore_case } => {
                text.len() >= value.len() && same(&text[text.len() - value.len()..], value.as_bytes(), *ignore_case)
            }
            Self::Contains { value, ignore_case } => {
                value.is_empty() || text.windows(value.len()).any(|window| same(window, value.as_bytes(), *ignore_case))
            }
            Self::Regex(regex) => std::str::from_utf8(text).is_ok_and(|text| regex.is_match(text)),
        }
    }
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}
