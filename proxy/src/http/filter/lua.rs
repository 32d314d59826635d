//! The Lua filter, as far as its programs are known without running them.
//!
//! Owns what these do to a request. Never interprets a program.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{ConnectionHost, KnownProgram, Lua, LuaRoute};

use super::{Exchange, HttpFilter, Verdict};
use crate::http::manager::reply::LocalReply;

/// The filter.
pub struct LuaFilter(Arc<Lua>);

impl LuaFilter {
    /// A filter with these settings.
    pub fn new(settings: &Arc<Lua>) -> Self {
        Self(Arc::clone(settings))
    }

    /// The program for a request.
    fn program<'a>(&'a self, of_route: Option<&'a LuaRoute>) -> &'a KnownProgram {
        match of_route {
            None => &self.0.program,
            Some(LuaRoute::Off) => &KnownProgram::Nothing,
            Some(LuaRoute::Named(name)) => self.0.named.get(name).unwrap_or(&KnownProgram::Nothing),
            Some(LuaRoute::Program(program)) => program,
        }
    }
}

impl HttpFilter for LuaFilter {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let of_route = match exchange.route_config() {
            Some(RouteFilterConfig::Lua(of_route)) => Some(&**of_route),
            _ => None,
        };
        let KnownProgram::RefuseMisdirected(expected) = self.program(of_route) else { return Verdict::Continue };
        let expected = match expected {
            ConnectionHost::Fixed(host) => host,
            ConnectionHost::ServerName => exchange.connection().info.server_name.as_deref().unwrap_or_default(),
        };
        let host = host_of(exchange.head().authority());
        // The program fails on a request without a host, and lets it pass.
        if exchange.head().authority().is_empty() || host == expected.as_bytes() {
            return Verdict::Continue;
        }
        Verdict::reply(LocalReply::new(421, "lua_response").body(refusal(&host)))
    }
}

/// In lower case, up to the first colon.
fn host_of(authority: &[u8]) -> Vec<u8> {
    let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
    authority[..end].to_ascii_lowercase()
}

/// What the client is told. The host stands there as Lua quotes it.
fn refusal(host: &[u8]) -> Vec<u8> {
    let mut text = b"misdirected request to \"".to_vec();
    for byte in host {
        if matches!(byte, b'"' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text.push(b'"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_and_quoted_as_the_program_does_it() {
        assert_eq!(host_of(b"A.Example:8443"), b"a.example");
        assert_eq!(host_of(b"[::1]:80"), b"[");
        assert_eq!(refusal(b"a\"b\\c"), b"misdirected request to \"a\\\"b\\\\c\"");
    }
}
