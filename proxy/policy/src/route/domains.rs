//! Which virtual host takes a host name.
//!
//! Owns the search order of domains: exact, longest suffix wildcard, longest prefix wildcard, `*`.

use crate::hash::ConfigMap;

/// The domains of a route configuration.
#[derive(Debug, Default)]
pub(super) struct DomainIndex {
    exact: ConfigMap<Box<str>, u32>,
    /// What follows the leading `*`.
    suffixes: Wildcards,
    /// What precedes the trailing `*`.
    prefixes: Wildcards,
    any: Option<u32>,
}

/// Wildcards by length, longest first.
type Wildcards = Vec<(usize, ConfigMap<Box<str>, u32>)>;

/// Longer host names are lower-cased on the heap.
const USUAL_HOST_BYTES: usize = 256;

impl DomainIndex {
    /// Indexes the domains of each virtual host. Where a domain stands twice, the first one counts.
    pub(super) fn build<'a>(virtual_hosts: impl Iterator<Item = &'a [String]>) -> Self {
        let mut index = Self::default();
        for (position, domains) in virtual_hosts.enumerate() {
            let position = position as u32;
            for domain in domains {
                let domain = domain.to_ascii_lowercase();
                if domain == "*" {
                    index.any.get_or_insert(position);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    insert(&mut index.suffixes, suffix, position);
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    insert(&mut index.prefixes, prefix, position);
                } else {
                    index.exact.entry(domain.into()).or_insert(position);
                }
            }
        }
        index.exact.shrink_to_fit();
        index
    }

    /// The position of the virtual host for `host`, in any case of letters.
    pub(super) fn find(&self, host: &str) -> Option<usize> {
        let mut buffer = [0; USUAL_HOST_BYTES];
        let found = if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.find_lower_case(host)
        } else if let Some(lower) = lower_case(host, &mut buffer) {
            self.find_lower_case(lower)
        } else {
            self.find_lower_case(&host.to_ascii_lowercase())
        };
        found.map(|position| position as usize)
    }

    fn find_lower_case(&self, host: &str) -> Option<u32> {
        if let Some(position) = self.exact.get(host) {
            return Some(*position);
        }
        // A wildcard stands for at least one character.
        let wildcard = |wildcards: &Wildcards, part: fn(&str, usize) -> Option<&str>| {
            wildcards
                .iter()
                .filter(|(length, _)| host.len() > *length)
                .find_map(|(length, domains)| domains.get(part(host, *length)?))
                .copied()
        };
        wildcard(&self.suffixes, |host, length| host.get(host.len() - length..))
            .or_else(|| wildcard(&self.prefixes, |host, length| host.get(..length)))
            .or(self.any)
    }
}

fn insert(wildcards: &mut Wildcards, text: &str, position: u32) {
    let place = match wildcards.binary_search_by(|(length, _)| text.len().cmp(length)) {
        Ok(place) => place,
        Err(place) => {
            wildcards.insert(place, (text.len(), ConfigMap::default()));
            place
        }
    };
    wildcards[place].1.entry(text.into()).or_insert(position);
}

fn lower_case<'b>(text: &str, buffer: &'b mut [u8; USUAL_HOST_BYTES]) -> Option<&'b str> {
    let lower = buffer.get_mut(..text.len())?;
    lower.copy_from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    // Changing the case of ASCII letters keeps UTF-8 valid.
    std::str::from_utf8(lower).ok()
}

#[cfg(test)]
mod tests {
    use super::DomainIndex;

    fn index(domains: &[&str]) -> DomainIndex {
        let hosts: Vec<Vec<String>> = domains.iter().map(|domain| vec![domain.to_string()]).collect();
        DomainIndex::build(hosts.iter().map(Vec::as_slice))
    }

    #[test]
    fn exact_then_longest_suffix_then_longest_prefix_then_any() {
        let domains =
            ["*", "foo.*", "foo.bar.*", "*.foo.com", "*-bar.foo.com", "www.foo.com", "foo-*", "baz:8080", "[::1]:*"];
        let index = index(&domains);
        for (host, expected) in [
            ("www.foo.com", "www.foo.com"),
            ("WWW.Foo.COM", "www.foo.com"),
            ("a.foo.com", "*.foo.com"),
            ("baz-bar.foo.com", "*-bar.foo.com"),
            ("-bar.foo.com", "*.foo.com"),
            ("foo.bar.org", "foo.bar.*"),
            ("foo.bar", "foo.*"),
            ("foo-x", "foo-*"),
            (".foo.com", "*"),
            ("foo.", "*"),
            ("baz", "*"),
            ("baz:8080", "baz:8080"),
            ("[::1]:99", "[::1]:*"),
            ("", "*"),
        ] {
            assert_eq!(index.find(host).map(|position| domains[position]), Some(expected), "{host}");
        }
    }

    #[test]
    fn nothing_matches_without_a_catch_all() {
        let index = index(&["a", "*.b"]);
        assert_eq!(index.find("c"), None);
        assert_eq!(index.find(""), None);
        assert_eq!(index.find("ü"), None);
        assert_eq!(index.find(&format!("{}.B", "X".repeat(1000))), Some(1));
    }
}
