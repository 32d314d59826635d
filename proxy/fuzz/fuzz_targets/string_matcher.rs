//! Matchers of strings, beside what their names say, and templates of paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_config::matching::{StringMatcher, UriRewrite, UriTemplate};

fuzz_target!(|input: (&str, &[u8], &str, bool)| {
    let (pattern, subject, replacement, ignore_case) = input;
    strings(pattern, subject, ignore_case);
    if let Ok(subject) = std::str::from_utf8(subject) {
        templates(pattern, subject, replacement);
    }
});

fn strings(pattern: &str, subject: &[u8], ignore_case: bool) {
    let value = || pattern.to_owned();
    let exact = StringMatcher::Exact { value: value(), ignore_case }.matches(subject);
    let prefix = StringMatcher::Prefix { value: value(), ignore_case }.matches(subject);
    let suffix = StringMatcher::Suffix { value: value(), ignore_case }.matches(subject);
    let contains = StringMatcher::Contains { value: value(), ignore_case }.matches(subject);
    let fold = |bytes: &[u8]| if ignore_case { bytes.to_ascii_lowercase() } else { bytes.to_vec() };
    let (text, wanted) = (fold(subject), fold(pattern.as_bytes()));
    assert_eq!(exact, text == wanted);
    assert_eq!(prefix, text.starts_with(&wanted));
    assert_eq!(suffix, text.ends_with(&wanted));
    let found = |at: usize| text[at..].starts_with(&wanted);
    assert_eq!(contains, (0..=text.len()).any(found));
}

fn templates(pattern: &str, path: &str, rewrite: &str) {
    let Ok(template) = UriTemplate::compile(pattern) else { return };
    assert_eq!(template.as_str(), pattern);
    assert_eq!(template.matches(path), template.captures(path).is_some());
    let Ok(rewriter) = UriRewrite::compile(template.clone(), rewrite) else { return };
    assert!(rewriter.rewrite(path).is_none() || template.matches(path), "{path} was rewritten by {pattern}");
}
