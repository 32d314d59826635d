//! Resources from YAML or JSON text.
//!
//! Owns the three forms that a document may have. The translation to messages is `outrigger_api::Schema`'s.

use outrigger_api::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::{Format, JsonError, ParseOptions, Schema, UnknownFields, UnknownTypes};

use crate::state::NamedResource;

/// How a text is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TextFormat {
    /// YAML; JSON is nearly all YAML too.
    Yaml,
    /// JSON.
    Json,
}

/// Why a text gives no resources.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// It does not become messages.
    #[error(transparent)]
    Message(#[from] JsonError),
    /// A resource has no name to subscribe to.
    #[error("resource {index} ({type_url}) has no name")]
    NoName {
        /// Place in its document, from 0.
        index: usize,
        /// Its type.
        type_url: String,
    },
}

/// Extensions that the schema does not have are served all the same: a client must cope with them.
const OPTIONS: ParseOptions = ParseOptions { unknown_fields: UnknownFields::Reject, unknown_types: UnknownTypes::Keep };

/// The resources of a text. A document is a discovery response (`resources: [...]`), a list of resources, or one
/// resource; each resource has its `@type`. A YAML text may have several documents. A resource may be wrapped in an
/// `envoy.service.discovery.v3.Resource` to give it another name, a TTL or aliases.
///
/// # Errors
/// If any part is not good: all or nothing.
pub fn parse(text: &str, format: TextFormat) -> Result<Vec<NamedResource>, TextError> {
    let mut resources = Vec::new();
    for document in documents(text, format) {
        for (index, any) in messages(&document, format)?.into_iter().enumerate() {
            let type_url = any.type_url.clone();
            let named = NamedResource::from_any(any).ok_or(TextError::NoName { index, type_url })?;
            resources.push(named);
        }
    }
    Ok(resources)
}

fn messages(document: &str, format: TextFormat) -> Result<Vec<Any>, JsonError> {
    let schema = Schema::load();
    let format = match format {
        TextFormat::Yaml => Format::Yaml,
        TextFormat::Json => Format::Json,
    };
    let response = |text: &str| -> Result<Vec<Any>, JsonError> {
        let DiscoveryResponse { resources, .. } =
            schema.parse_discovery_response(text.as_bytes(), format, OPTIONS)?.message;
        Ok(resources)
    };
    match (shape_of(document), format) {
        (Shape::Nothing, _) => Ok(Vec::new()),
        (Shape::Response, _) => response(document),
        (Shape::List, Format::Json) => response(&format!("{{\"resources\":{document}}}")),
        (Shape::List, _) => response(&format!("resources:\n{document}")),
        (Shape::Resource, _) => Ok(vec![schema.parse::<Any>(document.as_bytes(), format, OPTIONS)?.message]),
    }
}

enum Shape {
    Nothing,
    Response,
    List,
    Resource,
}

/// Told by the first characters and by `@type` at the top level, without parsing twice.
fn shape_of(document: &str) -> Shape {
    let mut lines = document.lines().filter(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && line != "---"
    });
    let Some(first) = lines.clone().next() else { return Shape::Nothing };
    if first.starts_with('-') || first.starts_with('[') {
        return Shape::List;
    }
    let is_resource = if first.trim_start().starts_with('{') {
        serde_json::from_str::<serde_json::Value>(document).is_ok_and(|value| value.get("@type").is_some())
    } else {
        lines.any(|line| line.trim_start_matches(['\'', '"']).starts_with("@type"))
    };
    if is_resource { Shape::Resource } else { Shape::Response }
}

/// The documents of a YAML stream: separated by a line `---`, with the indentation of a literal in a test taken away.
fn documents(text: &str, format: TextFormat) -> Vec<String> {
    if format == TextFormat::Json {
        return vec![text.trim().to_owned()];
    }
    let margin = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start_matches(' ').len())
        .min()
        .unwrap_or(0);
    let mut documents = vec![String::new()];
    for line in text.lines() {
        let line = line.get(margin..).unwrap_or_default();
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{CLUSTER, RESOURCE, VIRTUAL_HOST};

    fn names(text: &str, format: TextFormat) -> Vec<String> {
        parse(text, format).unwrap().into_iter().map(|resource| resource.name).collect()
    }

    #[test]
    fn a_document_has_one_of_three_forms() {
        let one = format!("'@type': {CLUSTER}\nname: a\n");
        let list = format!("# clusters\n- '@type': {CLUSTER}\n  name: b\n- {{\"@type\": {CLUSTER}, name: c}}\n");
        let response = format!("    resources:\n    - '@type': {CLUSTER}\n      name: d\n");
        assert_eq!(names(&one, TextFormat::Yaml), ["a"]);
        assert_eq!(names(&list, TextFormat::Yaml), ["b", "c"]);
        assert_eq!(names(&response, TextFormat::Yaml), ["d"]);
        assert_eq!(names(&format!("---\n{one}---\n{list}---\n"), TextFormat::Yaml), ["a", "b", "c"]);
        let json = format!(r#"{{"@type": "{CLUSTER}", "name": "a"}}"#);
        assert_eq!(names(&json, TextFormat::Json), ["a"]);
        assert_eq!(names(&format!("[{json}]"), TextFormat::Json), ["a"]);
        assert_eq!(names(&format!(r#"{{"resources": [{json}]}}"#), TextFormat::Json), ["a"]);
        assert!(names("# nothing\n", TextFormat::Yaml).is_empty());
    }

    #[test]
    fn a_wrapper_names_what_it_holds() {
        let text = format!(
            "resources:\n- '@type': {RESOURCE}\n  name: routes/billing\n  ttl: 2s\n  resource:\n    '@type': {VIRTUAL_HOST}\n    name: billing\n"
        );
        let parsed = parse(&text, TextFormat::Yaml).unwrap();
        assert_eq!(parsed[0].name, "routes/billing");
        assert_eq!(parsed[0].ttl, Some(std::time::Duration::from_secs(2)));
        assert_eq!(parsed[0].body.type_url, VIRTUAL_HOST);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let typo = format!("resources:\n- '@type': {CLUSTER}\n  nam: a\n");
        assert!(parse(&typo, TextFormat::Yaml).unwrap_err().to_string().contains("nam"));
        let nameless = format!("resources:\n- '@type': {CLUSTER}\n");
        assert!(matches!(parse(&nameless, TextFormat::Yaml), Err(TextError::NoName { index: 0, .. })));
    }
}
