//! Which routes of a virtual host are worth asking for a path.
//!
//! Owns the index over a route list. It leaves out only routes whose path cannot match and keeps their order, so that
//! the first match is the same as that of asking every route in turn.

use std::cmp::Ordering;
use std::sync::Arc;

use outrigger_config::route::{PathMatch, Route};

use crate::hash::ConfigMap;

/// The routes of a virtual host by path.
#[derive(Debug)]
pub(super) enum PathIndex {
    /// So few that asking all of them is cheaper than looking them up.
    Few(u32),
    /// By exact path, prefix and the rest.
    Many(Box<Tables>),
}

/// Up to this many routes are asked in turn.
const FEW: usize = 8;

/// Lists of candidates held without allocation: one exact, one without literal prefix, and the nested prefixes.
const USUAL_LISTS: usize = 16;

#[derive(Debug)]
pub(super) struct Tables {
    exact: ConfigMap<Box<str>, Box<[u32]>>,
    prefixes: PrefixTable,
    /// In lower case, of routes that ignore case; exact paths too.
    folded: PrefixTable,
    /// Routes without literal prefix.
    others: Box<[u32]>,
}

impl PathIndex {
    pub(super) fn build(routes: &[Arc<Route>]) -> Self {
        if routes.len() <= FEW {
            return Self::Few(routes.len() as u32);
        }
        let mut exact: ConfigMap<Box<str>, Vec<u32>> = ConfigMap::default();
        let (mut prefixes, mut folded, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (position, route) in routes.iter().enumerate() {
            let position = position as u32;
            let prefix = match &route.matches.path {
                PathMatch::Exact(path) if route.matches.case_sensitive => {
                    exact.entry(path.as_str().into()).or_default().push(position);
                    continue;
                }
                PathMatch::Regex(regex) => {
                    match literal_prefix(regex.as_str()) {
                        prefix if prefix.is_empty() => others.push(position),
                        prefix => prefixes.push((prefix, position)),
                    }
                    continue;
                }
                PathMatch::Template(template) => {
                    let text = template.as_str();
                    let literal = &text[..text.find(['{', '*']).unwrap_or(text.len())];
                    prefixes.push((literal.to_owned(), position));
                    continue;
                }
                PathMatch::Connect => {
                    others.push(position);
                    continue;
                }
                PathMatch::Exact(text) | PathMatch::Prefix(text) | PathMatch::SeparatedPrefix(text) => text,
            };
            if route.matches.case_sensitive {
                prefixes.push((prefix.clone(), position));
            } else {
                folded.push((prefix.to_ascii_lowercase(), position));
            }
        }
        Self::Many(Box::new(Tables {
            exact: exact.into_iter().map(|(path, list)| (path, list.into())).collect(),
            prefixes: PrefixTable::build(prefixes),
            folded: PrefixTable::build(folded),
            others: others.into(),
        }))
    }

    /// The first route that `accepts` among those that may match `path`.
    pub(super) fn first(&self, path: &str, mut accepts: impl FnMut(usize) -> bool) -> Option<usize> {
        match self {
            Self::Few(routes) => (0..*routes as usize).find(|route| accepts(*route)),
            Self::Many(tables) => {
                let mut lists = Lists::default();
                if let Some(list) = tables.exact.get(path) {
                    lists.push(list);
                }
                lists.push(&tables.others);
                tables.prefixes.find(path.as_bytes(), |byte| byte, |list| lists.push(list));
                tables.folded.find(path.as_bytes(), |byte| byte.to_ascii_lowercase(), |list| lists.push(list));
                lists.first(accepts)
            }
        }
    }
}

/// Prefixes in order, each knowing the longest other one that it begins with. All prefixes of a path are then found
/// from one place: the last entry not greater than the path, and what that entry begins with.
#[derive(Debug, Default)]
struct PrefixTable {
    prefixes: Box<[Prefix]>,
    /// Route positions of all prefixes.
    routes: Box<[u32]>,
}

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    shorter: Option<u32>,
    /// The range in `routes`.
    routes: (u32, u32),
}

impl PrefixTable {
    fn build(mut entries: Vec<(String, u32)>) -> Self {
        // Stable, so that positions stay in order within equal prefixes.
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut prefixes: Vec<Prefix> = Vec::new();
        let mut routes = Vec::with_capacity(entries.len());
        let mut nested: Vec<u32> = Vec::new();
        for (text, position) in entries {
            routes.push(position);
            let end = routes.len() as u32;
            match prefixes.last_mut() {
                Some(last) if *last.text == *text => last.routes.1 = end,
                _ => {
                    while nested.last().is_some_and(|&top| !text.starts_with(&*prefixes[top as usize].text)) {
                        nested.pop();
                    }
                    let shorter = nested.last().copied();
                    nested.push(prefixes.len() as u32);
                    prefixes.push(Prefix { text: text.into(), shorter, routes: (end - 1, end) });
                }
            }
        }
        Self { prefixes: prefixes.into(), routes: routes.into() }
    }

    /// Gives the routes of every prefix of `path` to `found`; `fold` is applied to the bytes of the path.
    fn find<'a>(&'a self, path: &[u8], fold: impl Fn(u8) -> u8 + Copy, mut found: impl FnMut(&'a [u32])) {
        let path = path.iter().map(move |byte| fold(*byte));
        let not_greater =
            self.prefixes.partition_point(|prefix| prefix.text.bytes().cmp(path.clone()) != Ordering::Greater);
        let Some(mut at) = not_greater.checked_sub(1) else { return };
        let common = self.prefixes[at].text.bytes().zip(path).take_while(|(a, b)| a == b).count();
        loop {
            let prefix = &self.prefixes[at];
            if prefix.text.len() <= common {
                let (start, end) = prefix.routes;
                found(&self.routes[start as usize..end as usize]);
            }
            match prefix.shorter {
                Some(shorter) => at = shorter as usize,
                None => return,
            }
        }
    }
}

/// Ascending lists, read as one.
struct Lists<'a> {
    usual: [&'a [u32]; USUAL_LISTS],
    count: usize,
    more: Vec<&'a [u32]>,
}

impl Default for Lists<'_> {
    fn default() -> Self {
        Self { usual: [&[]; USUAL_LISTS], count: 0, more: Vec::new() }
    }
}

impl<'a> Lists<'a> {
    fn push(&mut self, list: &'a [u32]) {
        if list.is_empty() {
            return;
        }
        match self.usual.get_mut(self.count) {
            Some(free) => {
                *free = list;
                self.count += 1;
            }
            None => self.more.push(list),
        }
    }

    fn first(mut self, mut accepts: impl FnMut(usize) -> bool) -> Option<usize> {
        loop {
            let lists = self.usual[..self.count].iter_mut().chain(&mut self.more);
            let next = lists.filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
            let (route, rest) = next.split_first()?;
            *next = rest;
            if accepts(*route as usize) {
                return Some(*route as usize);
            }
        }
    }
}

/// Characters that every text matched by `pattern` begins with; empty when that is not plain to see.
fn literal_prefix(pattern: &str) -> String {
    let mut literal = String::new();
    // Only patterns that must match as a whole, in the form that the configuration compiles them to.
    let Some(inner) = pattern.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")) else { return literal };
    if inner.contains('|') {
        return literal;
    }
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped) if escaped.is_ascii_punctuation() => literal.push(escaped),
                _ => break,
            },
            // They count the character before them, which may then be missing.
            '*' | '?' | '{' | '+' => {
                literal.pop();
                break;
            }
            '.' | '(' | ')' | '[' | ']' | '}' | '^' | '$' => break,
            plain => literal.push(plain),
        }
    }
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_prefixes_are_cautious() {
        for (pattern, expected) in [
            ("/api/.*", "/api/"),
            ("/api/v[0-9]+", "/api/v"),
            ("/a\\.b\\d", "/a.b"),
            ("/ab*", "/a"),
            ("/ab{0,2}c", "/a"),
            ("/ab?", "/a"),
            ("/a|/b", ""),
            ("(?i)/a", ""),
            ("/a(b|c)", ""),
            ("/a(bc)?", "/a"),
            ("^/a", ""),
            ("/plain", "/plain"),
        ] {
            assert_eq!(literal_prefix(&format!("^(?:{pattern})$")), expected, "{pattern}");
        }
        assert_eq!(literal_prefix("/api/.*"), "");
    }

    #[test]
    fn all_prefixes_of_a_path_are_found() {
        let texts = ["", "/", "/a", "/a/b", "/a/b/c", "/a/c", "/ab", "/b"];
        let table = PrefixTable::build(texts.iter().zip(0..).map(|(text, i)| (text.to_string(), i)).collect());
        for path in ["", "/", "/a", "/a/b", "/a/bb", "/a/b/d", "/a/b/c/d", "/abc", "/z", "x", "/a/c/x"] {
            let mut found = Vec::new();
            table.find(path.as_bytes(), |byte| byte, |list| found.extend_from_slice(list));
            found.sort_unstable();
            let expected: Vec<u32> =
                (0..).zip(texts).filter(|(_, text)| path.starts_with(text)).map(|(i, _)| i).collect();
            assert_eq!(found, expected, "{path}");
        }
    }
}
