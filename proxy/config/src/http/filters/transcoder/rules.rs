//! Which requests call which methods: the `google.api.http` annotations of services.
//!
//! Owns the reading of annotations and the tree of their paths. Never matches a request.

use std::sync::Arc;

use outrigger_api::pb::google::api::HttpRule;
use outrigger_api::pb::google::api::http_rule::Pattern;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor};

use super::schema::{MessageId, Schema};
use super::template::{PathTemplate, PathTree, Variable};
use super::{Kind, refuse};
use crate::rejection::{FieldPath, Parsed};

/// Requests that call a method.
#[derive(Clone, Debug)]
pub struct TranscodingRule {
    /// What is called.
    pub method: Arc<TranscodedMethod>,
    /// What of the path becomes fields of the request message.
    pub variables: Box<[Variable]>,
    /// The fields in which the body stands, the outermost first; empty if it is the whole message.
    pub body: Box<[Box<str>]>,
}

/// A method of a service.
#[derive(Clone, Debug)]
pub struct TranscodedMethod {
    /// The path of its calls: `/package.Service/Method`.
    pub path: Box<str>,
    /// The request message.
    pub input: MessageId,
    /// The response message.
    pub output: MessageId,
    /// Requests are arrays of messages.
    pub client_streaming: bool,
    /// Responses are any number of messages.
    pub server_streaming: bool,
    /// Where the bytes of the body go, if they are not read as JSON.
    pub raw_input: Option<HttpBodyPath>,
    /// Where the bytes of the response's body are, if they are not written as JSON.
    pub raw_output: Option<HttpBodyPath>,
}

/// The numbers of the fields that lead to a `google.api.HttpBody`, the outermost first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HttpBodyPath(pub Box<[u32]>);

/// The options of a method, as far as they are read. The number is that of the extension `google.api.http`.
#[derive(Clone, PartialEq, prost::Message)]
struct MethodOptions {
    #[prost(message, optional, tag = "72295728")]
    http: Option<HttpRule>,
}

/// Reads the rules of `services`. Those of methods without annotations follow from their names, if `auto_mapping` is on.
pub(super) fn read(
    list: &FieldPath<'_>,
    set: &FieldPath<'_>,
    pool: &DescriptorPool,
    schema: &Schema,
    services: &[String],
    auto_mapping: bool,
) -> Parsed<(Box<[TranscodingRule]>, PathTree)> {
    let mut found = Found { set, rules: Vec::new(), paths: PathTree::default() };
    for (index, name) in services.iter().enumerate() {
        let Some(service) = pool.get_service_by_name(name) else {
            return Err(list.item(index).reject(format!("{name:?} is not a service of the descriptors")));
        };
        for method in service.methods() {
            let options = MethodOptions::decode(method.options().encode_to_vec().as_slice())
                .map_err(|error| refuse(set, method.full_name(), &format!("cannot be read: {error}")))?;
            let path = format!("/{}/{}", service.full_name(), method.name());
            let rule = match options.http {
                Some(rule) => rule,
                None if auto_mapping => {
                    HttpRule { body: "*".to_owned(), pattern: Some(Pattern::Post(path.clone())), ..Default::default() }
                }
                None => continue,
            };
            let described = Arc::new(describe(set, schema, &method, path, &rule)?);
            found.add(&method, &described, &rule)?;
        }
    }
    Ok((found.rules.into(), found.paths))
}

struct Found<'a> {
    set: &'a FieldPath<'a>,
    rules: Vec<TranscodingRule>,
    paths: PathTree,
}

impl Found<'_> {
    fn add(&mut self, method: &MethodDescriptor, described: &Arc<TranscodedMethod>, rule: &HttpRule) -> Parsed<()> {
        let HttpRule { selector: _, body, response_body: _, additional_bindings, pattern } = rule;
        let request = match pattern {
            Some(Pattern::Get(path)) => Some(("GET", path)),
            Some(Pattern::Put(path)) => Some(("PUT", path)),
            Some(Pattern::Post(path)) => Some(("POST", path)),
            Some(Pattern::Delete(path)) => Some(("DELETE", path)),
            Some(Pattern::Patch(path)) => Some(("PATCH", path)),
            Some(Pattern::Custom(custom)) => Some((custom.kind.as_str(), &custom.path)),
            None => None,
        };
        if let Some((verb, path)) = request {
            let template = PathTemplate::parse(path).map_err(|error| {
                refuse(self.set, method.full_name(), &format!("has the path {path:?}, which {error}"))
            })?;
            self.paths.insert(verb, &template, self.rules.len());
            let body = body.split('.').filter(|name| !name.is_empty() && *name != "*").map(Box::from).collect();
            let method = Arc::clone(described);
            self.rules.push(TranscodingRule { method, variables: template.variables.into(), body });
        }
        additional_bindings.iter().try_for_each(|rule| self.add(method, described, rule))
    }
}

fn describe(
    set: &FieldPath<'_>,
    schema: &Schema,
    method: &MethodDescriptor,
    path: String,
    rule: &HttpRule,
) -> Parsed<TranscodedMethod> {
    let id = |name: &str| {
        schema.find(name).ok_or_else(|| refuse(set, method.full_name(), &format!("needs the unknown type {name:?}")))
    };
    let (input, output) = (id(method.input().full_name())?, id(method.output().full_name())?);
    let raw = |field: &'static str, message: MessageId, path: &str| {
        raw_path(schema, message, path)
            .map_err(|error| refuse(set, method.full_name(), &format!("has the {field} {path:?}: {error}")))
    };
    let raw_output = raw("response_body", output, &rule.response_body)?;
    if !rule.response_body.is_empty() && rule.response_body != "*" && raw_output.is_none() {
        let reason = format!(
            "has the response_body {:?}, which is supported for fields of the type google.api.HttpBody alone",
            rule.response_body
        );
        return Err(refuse(set, method.full_name(), &reason));
    }
    Ok(TranscodedMethod {
        path: path.into(),
        input,
        output,
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
        raw_input: raw("body", input, &rule.body)?,
        raw_output,
    })
}

/// The way from `message` to the end of `path`, if a `google.api.HttpBody` is there.
fn raw_path(schema: &Schema, message: MessageId, path: &str) -> Result<Option<HttpBodyPath>, super::PathError> {
    let names = path.split('.').filter(|name| !name.is_empty() && *name != "*");
    let fields = schema.path(message, names)?;
    let end = match fields.last() {
        None => Some(message),
        Some(field) => match field.kind {
            Kind::Message(id) => Some(id),
            _ => None,
        },
    };
    let is_raw = end.is_some_and(|id| &*schema.message(id).name == "google.api.HttpBody");
    Ok(is_raw.then(|| HttpBodyPath(fields.iter().map(|field| field.number).collect())))
}
