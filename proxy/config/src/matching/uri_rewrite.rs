//! Rewriting paths by template (`envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig`).
//!
//! Owns the rewrite's grammar: literals, and variables of the template that matched. Never matches paths (see
//! `uri_template`).

use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::envoy::extensions::path::rewrite::uri_template::v3 as pb;

use super::UriTemplate;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How a path is made of what a template matched.
#[derive(Clone, Debug)]
pub struct UriRewrite {
    template: UriTemplate,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Literal(Box<str>),
    Variable(Box<str>),
}

impl UriRewrite {
    /// The new path, without query; `None` if the path does not fit the template.
    pub fn rewrite(&self, path: &str) -> Option<String> {
        let captures = self.template.captures(path)?;
        let mut out = String::with_capacity(path.len());
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Variable(name) => out.push_str(captures.name(name)?.as_str()),
            }
        }
        Some(out)
    }

    /// Compiles a rewrite; the error says what is wrong with it.
    pub fn compile(template: UriTemplate, rewrite: &str) -> Result<Self, String> {
        if !rewrite.starts_with('/') {
            return Err("must begin with '/'".into());
        }
        if rewrite.contains("//") {
            return Err("must not contain '//'".into());
        }
        let mut parts = Vec::new();
        let mut rest = rewrite;
        while let Some(start) = rest.find(['{', '}']) {
            let (literal, more) = rest.split_at(start);
            let Some((name, after)) = more.strip_prefix('{').and_then(|body| body.split_once('}')) else {
                return Err("a brace has no partner".into());
            };
            if !template.has_variable(name) {
                return Err(format!("{name:?} is no variable of {:?}", template.as_str()));
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.into()));
            }
            parts.push(Part::Variable(name.into()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.into()));
        }
        Ok(Self { template, parts: parts.into() })
    }

    /// Reads the extension of a route that matches by `template`.
    pub(crate) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: TypedExtensionConfig,
        template: Option<&UriTemplate>,
    ) -> Parsed<Self> {
        let TypedExtensionConfig { name: _, typed_config } = wire;
        let typed_at = at.field("typed_config");
        let Some(any) = typed_config else { return Err(typed_at.reject("is required")) };
        let any = wire::extension(context, &typed_at, any)?;
        if wire::type_name(&any) != "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig" {
            return Err(typed_at.reject(format!("the path rewriter {:?} is not supported", any.type_url)));
        }
        let wire: pb::UriTemplateRewriteConfig = wire::decode(&typed_at, &any)?;
        decide!(wire, typed_at, pb::UriTemplateRewriteConfig
            as "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig" {
            implemented: path_template_rewrite;
            no_effect: ;
            unsupported: ;
        });
        let Some(template) = template else {
            return Err(at.reject("needs a path_match_policy with a URI template"));
        };
        let at = typed_at.field("path_template_rewrite");
        if path_template_rewrite.is_empty() || path_template_rewrite.len() > MAX_BYTES {
            return Err(at.reject(format!("has {} bytes, expected 1 to {MAX_BYTES}", path_template_rewrite.len())));
        }
        Self::compile(template.clone(), &path_template_rewrite)
            .map_err(|reason| at.reject(format!("{path_template_rewrite:?}: {reason}")))
    }
}

const MAX_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(template: &str, rewrite: &str, path: &str) -> Option<String> {
        UriRewrite::compile(UriTemplate::compile(template).unwrap(), rewrite).unwrap().rewrite(path)
    }

    #[test]
    fn variables_are_put_where_they_are_named() {
        for (template, to, path, expected) in [
            ("/bar/{country}/{lang}", "/{lang}/{country}", "/bar/en/usa", "/usa/en"),
            ("/x/{rest=**}", "/y/{rest}.json", "/x/a/b", "/y/a/b.json"),
            ("/{a=v1/*}/x", "/{a}", "/v1/y/x", "/v1/y"),
            ("/{a}", "/{a}/{a}", "/p%20q", "/p%20q/p%20q"),
            ("/*", "/fixed", "/any", "/fixed"),
        ] {
            assert_eq!(rewrite(template, to, path).as_deref(), Some(expected), "{template} {to}");
        }
        assert_eq!(rewrite("/{a}", "/{a}", "/b/c"), None);
    }

    #[test]
    fn bad_rewrites_are_refused() {
        for to in ["", "x", "/{b}", "/{a", "/a}", "//{a}", "/{a}//", "/{{a}}"] {
            let template = UriTemplate::compile("/{a}").unwrap();
            assert!(UriRewrite::compile(template, to).is_err(), "{to}");
        }
    }
}
