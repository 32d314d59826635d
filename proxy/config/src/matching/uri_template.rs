//! Path templates (`envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig`).
//!
//! Owns the template's grammar and how it matches a path: `*` stands for one segment, `**` for any number of them at the
//! end, `{name}` and `{name=pattern}` for what they enclose. Never rewrites paths.

use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::envoy::extensions::path::r#match::uri_template::v3 as pb;

use crate::context::Context;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// A path template, compiled.
#[derive(Clone, Debug)]
pub struct UriTemplate {
    text: Box<str>,
    regex: regex::Regex,
}

impl PartialEq for UriTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl UriTemplate {
    /// Whether a path (without its query) fits as a whole.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the variables enclose in a path that fits.
    pub fn captures<'p>(&self, path: &'p str) -> Option<regex::Captures<'p>> {
        self.regex.captures(path)
    }

    /// Whether there is a variable of this name.
    pub fn has_variable(&self, name: &str) -> bool {
        self.regex.capture_names().flatten().any(|known| known == name)
    }

    /// Compiles a template; the error says what is wrong with it.
    pub fn compile(template: &str) -> Result<Self, String> {
        let pattern = pattern(template)?;
        let regex = regex::Regex::new(&pattern).map_err(|error| error.to_string())?;
        Ok(Self { text: template.into(), regex })
    }

    /// Reads the extension that holds a template.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: TypedExtensionConfig) -> Parsed<Self> {
        let TypedExtensionConfig { name: _, typed_config } = wire;
        let at = at.field("typed_config");
        let Some(any) = typed_config else { return Err(at.reject("is required")) };
        let any = wire::extension(context, &at, any)?;
        if wire::type_name(&any) != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" {
            return Err(at.reject(format!("the path matcher {:?} is not supported", any.type_url)));
        }
        let pb::UriTemplateMatchConfig { path_template } = wire::decode(&at, &any)?;
        let at = at.field("path_template");
        if path_template.is_empty() || path_template.len() > MAX_BYTES {
            return Err(at.reject(format!("has {} bytes, expected 1 to {MAX_BYTES}", path_template.len())));
        }
        Self::compile(&path_template).map_err(|reason| at.reject(format!("{path_template:?}: {reason}")))
    }
}

/// The regular expression of a template.
fn pattern(template: &str) -> Result<String, String> {
    let Some(mut rest) = template.strip_prefix('/') else { return Err("must begin with '/'".into()) };
    let mut out = String::from("^");
    let mut scan = Scan::default();
    if rest.is_empty() {
        return Ok("^/$".into());
    }
    while !rest.is_empty() {
        out.push('/');
        rest = scan.segment(rest, &mut out)?;
        match rest.strip_prefix('/') {
            Some("") => {
                out.push('/');
                break;
            }
            Some(more) => rest = more,
            None if rest.is_empty() => break,
            // What follows a wildcard or a variable in the same segment is a suffix, and nothing comes after it.
            None => {
                literal(rest, &mut out)?;
                break;
            }
        }
    }
    out.push('$');
    Ok(out)
}

#[derive(Default)]
struct Scan<'a> {
    names: Vec<&'a str>,
    /// `**` was seen: no wildcard may follow.
    greedy: bool,
}

impl<'a> Scan<'a> {
    /// Takes a wildcard, a variable or a literal segment; gives what follows.
    fn segment(&mut self, text: &'a str, out: &mut String) -> Result<&'a str, String> {
        if let Some(body) = text.strip_prefix('{') {
            let Some((body, rest)) = body.split_once('}') else { return Err("a variable is not closed".into()) };
            self.variable(body, out)?;
            return Ok(rest);
        }
        if text.starts_with('*') {
            return self.wildcard(text, out);
        }
        let end = text.find('/').unwrap_or(text.len());
        literal(&text[..end], out)?;
        Ok(&text[end..])
    }

    fn wildcard(&mut self, text: &'a str, out: &mut String) -> Result<&'a str, String> {
        if self.greedy {
            return Err("no wildcard may follow '**'".into());
        }
        if let Some(rest) = text.strip_prefix("**") {
            self.greedy = true;
            out.push_str(&format!("[{CHARACTERS}/]*"));
            return Ok(rest);
        }
        out.push_str(&format!("[{CHARACTERS}]+"));
        Ok(&text[1..])
    }

    fn variable(&mut self, body: &'a str, out: &mut String) -> Result<(), String> {
        let (name, mut rest) = body.split_once('=').unwrap_or((body, "*"));
        let valid = name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.len() <= MAX_NAME_BYTES
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !valid {
            return Err(format!("{name:?} is not a name for a variable"));
        }
        if self.names.contains(&name) {
            return Err(format!("the variable {name:?} stands there twice"));
        }
        self.names.push(name);
        // Captured, for rewrites.
        out.push_str(&format!("(?P<{name}>"));
        if self.names.len() > MAX_VARIABLES {
            return Err(format!("has more than {MAX_VARIABLES} variables"));
        }
        loop {
            if rest.starts_with('*') {
                rest = self.wildcard(rest, out)?;
            } else {
                let end = rest.find('/').unwrap_or(rest.len());
                literal(&rest[..end], out)?;
                rest = &rest[end..];
            }
            match rest.strip_prefix('/') {
                Some(more) => {
                    out.push('/');
                    rest = more;
                }
                None if rest.is_empty() => {
                    out.push(')');
                    return Ok(());
                }
                None => return Err(format!("{rest:?} cannot follow a wildcard")),
            }
        }
    }
}

fn literal(text: &str, out: &mut String) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(format!("{text:?} is not a literal segment"));
    }
    out.push_str(&regex::escape(text));
    Ok(())
}

/// What a path segment is made of, inside a character class.
const CHARACTERS: &str = r"a-zA-Z0-9\-\._\~%!\$\&'\(\)\+,;:@=";
const MAX_BYTES: usize = 256;
const MAX_NAME_BYTES: usize = 16;
const MAX_VARIABLES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        for (template, path, expected) in [
            ("/foo/*", "/foo/bar", true),
            ("/foo/*", "/foo/bar/baz", false),
            ("/foo/*", "/foo/", false),
            ("/foo/**", "/foo/bar/baz", true),
            ("/foo/**", "/foo/", true),
            ("/foo/**", "/foo", false),
            ("/foo/*/baz", "/foo/x/baz", true),
            ("/foo/*/baz", "/foo/x/y/baz", false),
            ("/{country}/{lang=*}/{rest=**}", "/fr/fr/a/b", true),
            ("/{a=v1/*}/x", "/v1/y/x", true),
            ("/{a=v1/*}/x", "/v2/y/x", false),
            ("/media/{name=**}.m4s", "/media/a/b.m4s", true),
            ("/media/{name=**}.m4s", "/media/a/b.mp4", false),
            ("/", "/", true),
            ("/", "/a", false),
            ("/foo/", "/foo/", true),
            ("/foo/", "/foo", false),
            ("/**/bar", "/a/b/bar", true),
            ("/a.b", "/axb", false),
            ("/foo/*", "/foo/b%20r", true),
        ] {
            let compiled = UriTemplate::compile(template).unwrap();
            assert_eq!(compiled.matches(path), expected, "{template} {path}");
            assert_eq!(compiled.as_str(), template);
        }
    }

    #[test]
    fn bad_templates_are_refused() {
        for template in [
            "foo",
            "",
            "//a",
            "/a//b",
            "/**/*",
            "/**/**",
            "/{a",
            "/{1a}",
            "/{}",
            "/{a}/{a}",
            "/{a=}",
            "/{a=*b}",
            "/a*",
            "/*a*",
            "/{abcdefghijklmnopq}",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/a b",
            "/{a=**}/{b}",
        ] {
            assert!(UriTemplate::compile(template).is_err(), "{template}");
        }
    }
}
