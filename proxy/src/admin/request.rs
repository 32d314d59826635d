//! Requests to the admin port.
//!
//! Owns how a query string is read: leniently, since agents send regular expressions in it as they are. Never acts.

use http::Method;

/// A request, read.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Without the query, with slashes at its beginning made one.
    pub path: String,
    /// Parameters in order, those of a form in the body after those of the query.
    pub parameters: Vec<(String, String)>,
    /// Whoever asks reads HTML, and says so.
    pub wants_html: bool,
}

impl Request {
    /// From the parts of the request line and the body of a form, which may be empty.
    pub fn new(method: Method, target: &str, form: &[u8]) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut parameters = parse_parameters(query);
        // In a form a plus sign is a blank.
        parameters.extend(parse_parameters(&String::from_utf8_lossy(form).replace('+', " ")));
        Self { method, path: format!("/{}", path.trim_start_matches('/')), parameters, wants_html: false }
    }

    /// The first parameter of this name, if it is not empty.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.first(name).filter(|value| !value.is_empty())
    }

    /// Whether there is a parameter of this name, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.as_str())
    }
}

fn parse_parameters(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(name), percent_decode(value))
        })
        .collect()
}

/// What is no valid escape stays as it is; a plus sign does too, since it means something in regular expressions.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|digits| {
            let digits =
                std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(digits, 16).ok()
        });
        decoded.push(escape.unwrap_or(bytes[at]));
        at += if escape.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_regular_expressions_and_escaped_ones_are_the_same() {
        let raw = Request::new(Method::GET, r"//stats?usedonly&filter=^(server\.state|a)+$", b"");
        let escaped = Request::new(Method::GET, "/stats?usedonly&filter=%5E(server%5c.state%7Ca)+$", b"");
        assert_eq!(raw.path, "/stats");
        assert_eq!(raw.parameters, escaped.parameters);
        assert_eq!(raw.parameter("filter"), Some(r"^(server\.state|a)+$"));
        assert!(raw.has("usedonly") && raw.parameter("usedonly").is_none() && !raw.has("format"));
    }

    #[test]
    fn broken_escapes_stay() {
        let request = Request::new(Method::GET, "/x?a=%&b=%4&c=%zz&d=%é&e=%41", b"f=1&g");
        let values: Vec<&str> = request.parameters.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["%", "%4", "%zz", "%é", "A", "1", ""]);
    }
}
