//! Reading rewrites by regular expression (`envoy.type.matcher.v3.RegexMatchAndSubstitute`).
//!
//! Owns the translation of substitutions from RE2's `\1` to `${1}`. Never rewrites a path.

use outrigger_api::pb::envoy::r#type::matcher::v3 as pb;

use super::RegexRewrite;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads a rewrite. The API itself does not refuse a substitution that names a group which is not there; such a rewrite
/// would never do anything, so it is refused here.
pub(crate) fn regex_rewrite(at: &FieldPath<'_>, wire: pb::RegexMatchAndSubstitute) -> Parsed<RegexRewrite> {
    decide!(wire, at, pb::RegexMatchAndSubstitute as "envoy.type.matcher.v3.RegexMatchAndSubstitute" {
        implemented: pattern, substitution;
        no_effect: ;
        unsupported: ;
    });
    let Some(pattern) = pattern else {
        return Err(at.field("pattern").reject("is required"));
    };
    let pattern = wire::search_regex(&at.field("pattern"), pattern)?;
    let substitution = self::substitution(&at.field("substitution"), &substitution, &pattern)?;
    Ok(RegexRewrite { pattern, substitution })
}

fn substitution(at: &FieldPath<'_>, text: &str, pattern: &regex::Regex) -> Parsed<String> {
    if text.contains(['\0', '\r', '\n']) {
        return Err(at.reject(format!("{text:?} must not contain a line end or a zero byte")));
    }
    let mut translated = String::with_capacity(text.len() + 4);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '$' => translated.push_str("$$"),
            '\\' => match characters.next() {
                Some('\\') => translated.push('\\'),
                Some(digit @ '0'..='9') => {
                    // The digit is an index below ten, and the groups include group 0, the whole match.
                    let group = (digit as usize) - ('0' as usize);
                    if group >= pattern.captures_len() {
                        return Err(at.reject(format!(
                            "{text:?} uses group {group}, but the pattern has {}",
                            pattern.captures_len() - 1
                        )));
                    }
                    translated.push_str("${");
                    translated.push(digit);
                    translated.push('}');
                }
                _ => {
                    return Err(at.reject(format!("{text:?}: a backslash must be followed by a digit or a backslash")));
                }
            },
            other => translated.push(other),
        }
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(regex: &str, substitution: &str) -> Parsed<RegexRewrite> {
        let wire = pb::RegexMatchAndSubstitute {
            pattern: Some(pb::RegexMatcher { regex: regex.to_owned(), engine_type: None }),
            substitution: substitution.to_owned(),
        };
        regex_rewrite(&FieldPath::resource("route configuration", "r"), wire)
    }

    #[test]
    fn groups_are_translated() {
        let swapped = rewrite("^/service/([^/]+)(/.*)$", "\\2/instance/\\1").unwrap();
        assert_eq!(swapped.pattern.replace_all("/service/foo/v1/api", swapped.substitution), "/v1/api/instance/foo");
        let literal = rewrite("one", "$1\\\\${name}").unwrap();
        assert_eq!(literal.pattern.replace_all("/one/one", literal.substitution), "/$1\\${name}/$1\\${name}");
        let whole = rewrite("o(n)e", "\\0\\12").unwrap();
        assert_eq!(whole.pattern.replace_all("one", whole.substitution), "onen2");
    }

    #[test]
    fn groups_that_do_not_exist_are_refused() {
        let reason = |result: Parsed<RegexRewrite>| result.unwrap_err().to_string();
        assert_eq!(
            reason(rewrite("a(b)", "\\2")),
            "route configuration \"r\": substitution: \"\\\\2\" uses group 2, but the pattern has 1"
        );
        assert_eq!(
            reason(rewrite("a(b)", "x\\")),
            "route configuration \"r\": substitution: \"x\\\\\": a backslash must be followed by a digit or a backslash"
        );
        assert!(
            reason(rewrite("a(b", "x"))
                .starts_with("route configuration \"r\": pattern.regex: is not a valid regular expression")
        );
    }
}
