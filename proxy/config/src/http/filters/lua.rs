//! Lua filters whose programs are known by their text. There is no interpreter: control planes put filters of this type into
//! every chain whose program does nothing, or is the same for everybody but for a name, and those need none.
//!
//! Owns which programs are known. Never runs one.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::lua::v3 as pb;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.lua.v3.Lua`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lua {
    /// What runs unless a route says otherwise.
    pub program: KnownProgram,
    /// Programs that routes refer to.
    pub named: BTreeMap<Arc<str>, KnownProgram>,
}

/// Source: `envoy.extensions.filters.http.lua.v3.LuaPerRoute`.
#[derive(Clone, Debug, PartialEq)]
pub enum LuaRoute {
    /// No program runs.
    Off,
    /// One that the filter knows by this name; none if it does not.
    Named(Arc<str>),
    /// This one.
    Program(KnownProgram),
}

/// What a known program does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KnownProgram {
    /// Nothing: there is no code, or only comments.
    Nothing,
    /// Answers with 421 where the host of a request, in lower case and up to a colon, is not the one that its connection is
    /// for. Contour has it in each virtual host with TLS.
    RefuseMisdirected(ConnectionHost),
}

/// The host that a connection is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ConnectionHost {
    /// This one.
    Fixed(Box<str>),
    /// The server name that the client asked for.
    ServerName,
}

impl Lua {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::Lua) -> Parsed<Self> {
        decide!(wire, at, pb::Lua as "envoy.extensions.filters.http.lua.v3.Lua" {
            implemented: inline_code, source_codes, default_source_code;
            no_effect: stat_prefix = "the programs that are known cannot fail",
                clear_route_cache = "the programs that are known change no request",
                filter_context = "the programs that are known read no context",
                package_paths = "the programs that are known load nothing",
                package_cpaths = "the programs that are known load nothing";
            unsupported: ;
        });
        let program = match default_source_code {
            Some(_) if !inline_code.is_empty() => {
                return Err(at.field("inline_code").reject("excludes default_source_code, expected one of them"));
            }
            Some(code) => program(context, &at.field("default_source_code"), code)?,
            None => known(&at.field("inline_code"), &inline_code)?,
        };
        let codes_at = at.field("source_codes");
        let mut named = BTreeMap::new();
        for (name, code) in source_codes {
            let program = self::program(context, &codes_at.key(&name), code)?;
            named.insert(name.into(), program);
        }
        Ok(Self { program, named })
    }
}

impl LuaRoute {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::LuaPerRoute) -> Parsed<Self> {
        decide!(wire, at, pb::LuaPerRoute as "envoy.extensions.filters.http.lua.v3.LuaPerRoute" {
            implemented: r#override;
            no_effect: filter_context = "the programs that are known read no context",
                package_paths = "the programs that are known load nothing",
                package_cpaths = "the programs that are known load nothing";
            unsupported: ;
        });
        use pb::lua_per_route::Override;
        match r#override {
            Some(Override::Disabled(true)) => Ok(Self::Off),
            Some(Override::Disabled(false)) => Err(at.field("disabled").reject("must be true")),
            Some(Override::Name(name)) if name.is_empty() => Err(at.field("name").reject("must not be empty")),
            Some(Override::Name(name)) => Ok(Self::Named(name.into())),
            Some(Override::SourceCode(code)) => Ok(Self::Program(program(context, &at.field("source_code"), code)?)),
            None => Err(at.reject("needs one of disabled, name, source_code")),
        }
    }
}

fn program(context: &Context<'_>, at: &FieldPath<'_>, code: core::DataSource) -> Parsed<KnownProgram> {
    let bytes = wire::data_source(context, at, code)?.bytes;
    known(at, &String::from_utf8_lossy(&bytes))
}

fn known(at: &FieldPath<'_>, code: &str) -> Parsed<KnownProgram> {
    if does_nothing(code) {
        return Ok(KnownProgram::Nothing);
    }
    match refused_unless(code) {
        Some(host) => Ok(KnownProgram::RefuseMisdirected(host)),
        None => Err(at.reject("is a Lua program, which is not supported")),
    }
}

/// Whether each line is empty or a comment that ends with it.
fn does_nothing(code: &str) -> bool {
    code.lines().map(str::trim).all(|line| match line.strip_prefix("--") {
        Some(comment) => !comment.starts_with('['),
        None => line.is_empty(),
    })
}

/// The host that Contour's program compares with, if this is that program. Blanks between words do not matter.
fn refused_unless(code: &str) -> Option<ConnectionHost> {
    let words = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let host = words.strip_prefix(MISDIRECTED_BEFORE)?.strip_suffix(MISDIRECTED_AFTER)?;
    if host == "request_handle:streamInfo():requestedServerName()" {
        return Some(ConnectionHost::ServerName);
    }
    let name = host.strip_prefix('"')?.strip_suffix('"')?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    plain.then(|| ConnectionHost::Fixed(name.into()))
}

/// What stands before the host in that program, and after it.
const MISDIRECTED_BEFORE: &str = "function envoy_on_request(request_handle) local headers = request_handle:headers() \
    local host = string.lower(headers:get(\":authority\")) local target = ";
const MISDIRECTED_AFTER: &str = " s, e = string.find(host, \":\", 1, true) if s ~= nil then \
    host = string.sub(host, 1, s - 1) end if host ~= target then request_handle:respond( {[\":status\"] = \"421\"}, \
    string.format(\"misdirected request to %q\", host) ) end end";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_do_nothing() {
        for code in ["", " \n\t", "-- a placeholder", "\n  -- one\n-- two -- three\n"] {
            assert!(does_nothing(code), "{code:?}");
        }
        for code in ["x = 1", "-- a\nx = 1", "--[[ a\n]] x = 1", "--[=[", "return"] {
            assert!(!does_nothing(code), "{code:?}");
        }
    }

    #[test]
    fn the_check_of_hosts_is_known_by_its_words() {
        let program = |host: &str| format!("\n{MISDIRECTED_BEFORE}{host}{MISDIRECTED_AFTER}\n").replace(") ", ")\n\t");
        assert_eq!(refused_unless(&program("\"a.example\"")), Some(ConnectionHost::Fixed("a.example".into())));
        let of_client = "request_handle:streamInfo():requestedServerName()";
        assert_eq!(refused_unless(&program(of_client)), Some(ConnectionHost::ServerName));
        for other in ["\"a\" .. os.time()", "a", "\"a", "\"a\\\"b\"", "\"a\" x = 1 y = \"b\""] {
            assert_eq!(refused_unless(&program(other)), None, "{other}");
        }
        assert_eq!(refused_unless(&program("\"a\"").replace("421", "200")), None);
        assert_eq!(refused_unless(&format!("{} x = 1", program("\"a\""))), None);
    }
}
