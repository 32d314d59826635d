//! The cookies of a request (RFC 6265 section 5.4).
//!
//! Owns how they are read, changed and written again; what is not touched stays as it was. Never knows what they mean.

/// Cookies in their order, each name once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestCookies(Vec<(Vec<u8>, Vec<u8>)>);

impl RequestCookies {
    /// Reads all `cookie` headers of a request. Of two cookies with the same name the first one counts.
    pub fn parse<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut cookies = Self::default();
        for pair in headers.into_iter().flat_map(|header| header.split(|byte| *byte == b';')) {
            let pair = pair.trim_ascii();
            let Some(end) = pair.iter().position(|byte| *byte == b'=') else { continue };
            let (name, value) = (&pair[..end], &pair[end + 1..]);
            if cookies.position(name).is_none() {
                cookies.0.push((name.to_vec(), value.to_vec()));
            }
        }
        cookies
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.0.iter().position(|(known, _)| known == name)
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a cookie, without quotes around it; `None` if it is empty or not there.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let value = &self.0[self.position(name.as_bytes())?].1;
        let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(inner.unwrap_or(value)).filter(|value| !value.is_empty())
    }

    /// Whether a cookie is there, whatever its value.
    pub fn contains(&self, name: &str) -> bool {
        self.position(name.as_bytes()).is_some()
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// Gives a cookie another value, or adds it.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        match self.position(name.as_bytes()) {
            Some(position) => self.0[position].1 = value.to_vec(),
            None => self.0.push((name.as_bytes().to_vec(), value.to_vec())),
        }
    }

    /// Removes cookies by their names.
    pub fn remove_where(&mut self, unwanted: impl Fn(&[u8]) -> bool) {
        self.0.retain(|(name, _)| !unwanted(name));
    }

    /// As one header.
    pub fn header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        for (name, value) in &self.0 {
            if !header.is_empty() {
                header.extend(b"; ");
            }
            header.extend(name);
            header.push(b'=');
            header.extend(value);
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(headers: &[&str]) -> RequestCookies {
        RequestCookies::parse(headers.iter().map(|header| header.as_bytes()))
    }

    #[test]
    fn the_first_cookie_of_a_name_counts() {
        let cookies = parse(&["a=1; b=\"2\";;c", " a=3 ;d=x=y"]);
        assert_eq!((cookies.get("a"), cookies.get("b"), cookies.get("c")), (Some(&b"1"[..]), Some(&b"2"[..]), None));
        assert_eq!(cookies.get("d"), Some(&b"x=y"[..]));
        assert_eq!(cookies.header(), b"a=1; b=\"2\"; d=x=y");
    }

    #[test]
    fn what_is_not_touched_stays() {
        let mut cookies = parse(&["a=1; b=2; c=3"]);
        cookies.set("b", b"x");
        cookies.set("d", b"4");
        cookies.remove_where(|name| name == b"a");
        assert_eq!(cookies.header(), b"b=x; c=3; d=4");
        assert!(parse(&["a="]).contains("a") && parse(&["a="]).get("a").is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(header in "[ -~]{0,60}") {
            let cookies = parse(&[&header]);
            let written = cookies.header();
            prop_assert_eq!(RequestCookies::parse([&written[..]]), cookies);
        }
    }
}
