//! What listener filters read in the first bytes of a connection.
//!
//! Owns pure parsers: bytes seen so far in, a decision out. None of them consumes, waits or closes; a parser looks at
//! the bytes from the beginning each time, and what it has once decided stays decided when more bytes follow.

pub mod client_hello;
pub mod fingerprint;
pub mod http_inspect;
pub mod proxy_protocol;

/// What the bytes seen so far are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Parse<T> {
    /// It is all there.
    Complete(T),
    /// It may become one: more bytes are needed.
    Partial,
    /// Something else, whatever follows.
    NotThis,
    /// It is one, but breaks a rule or a limit; the reason is for logs.
    Invalid(&'static str),
}

#[cfg(test)]
mod tests {
    use super::Parse;

    /// Checks that a decision never depends on how the bytes were split.
    pub(super) fn same_for_every_split<T: std::fmt::Debug + PartialEq>(
        bytes: &[u8],
        parse: impl Fn(&[u8]) -> Parse<T>,
    ) {
        let whole = parse(bytes);
        for end in 0..bytes.len() {
            let part = parse(&bytes[..end]);
            assert!(part == Parse::Partial || part == whole, "{part:?} after {end} bytes, {whole:?} in the end");
        }
    }
}
