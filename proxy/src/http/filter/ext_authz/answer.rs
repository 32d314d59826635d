//! What an authorization service has said.
//!
//! Owns the reading of both kinds of answers. Pure; never changes a request.

#![expect(deprecated, reason = "services still use the fields, and Envoy reads them")]

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrigger_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_api::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use outrigger_config::http::AppendAction;
use outrigger_config::http::filters::HttpAuthz;
use outrigger_config::matching::StringMatcher;
use outrigger_config::metadata::{self, MetadataMap};

use crate::http::message::ResponseHead;

/// A name, in lower case, and a value.
pub(super) type Header = (String, Vec<u8>);

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub decision: Decision,
    /// What becomes dynamic metadata.
    pub metadata: MetadataMap,
}

/// What follows from it.
#[derive(Debug)]
pub(super) enum Decision {
    /// The request goes on.
    Consent(Box<Consent>),
    /// It does not.
    Refusal(Box<Refusal>),
    /// The service could not tell; what it wants the client to get, if it says so.
    Failure(Option<Box<Refusal>>),
}

/// Changes that a consent asks for.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Consent {
    /// Request headers, in order.
    pub request: Vec<(HeaderAction, Header)>,
    /// Removed from the request afterwards; lower case.
    pub remove: Vec<String>,
    /// Response headers, in order.
    pub response: Vec<(AppendAction, Header)>,
    /// Query parameters that are set.
    pub query_set: Vec<(String, String)>,
    /// Query parameters that are removed.
    pub query_remove: Vec<String>,
}

/// What is done to a request header.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum HeaderAction {
    /// Replaces what is there, or is added.
    Set,
    /// Added beside what is there.
    Add,
    /// Joined to what is there; nothing otherwise.
    Join,
}

/// What the client gets instead.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Refusal {
    /// The status, if the service says.
    pub status: Option<u16>,
    pub headers: Vec<Header>,
    pub body: Vec<u8>,
}

impl Consent {
    /// Whether it asks for a change of the request.
    pub fn changes_request(&self) -> bool {
        !self.request.is_empty()
            || !self.remove.is_empty()
            || !self.query_set.is_empty()
            || !self.query_remove.is_empty()
    }
}

impl Answer {
    /// There is no answer.
    pub fn failure() -> Self {
        Self { decision: Decision::Failure(None), metadata: MetadataMap::new() }
    }

    /// What a gRPC service has said. Source: `CheckResponse`.
    pub fn of_grpc(response: CheckResponse) -> Self {
        let CheckResponse { status, dynamic_metadata, http_response } = response;
        let ok = status.unwrap_or_default().code == 0;
        let mut metadata = dynamic_metadata;
        let decision = match http_response {
            // Whatever the status: a service that could not tell has not consented.
            Some(HttpResponse::ErrorResponse(error)) => Decision::Failure(Some(Box::new(refusal(error)))),
            Some(HttpResponse::OkResponse(mut consent)) => {
                // Deprecated, and still the one that counts.
                metadata = consent.dynamic_metadata.take().or(metadata);
                match ok {
                    true => Decision::Consent(Box::new(consent_of(consent))),
                    false => Decision::Refusal(Box::default()),
                }
            }
            Some(HttpResponse::DeniedResponse(denied)) if !ok => Decision::Refusal(Box::new(refusal(denied))),
            Some(HttpResponse::DeniedResponse(_)) | None if ok => Decision::Consent(Box::default()),
            Some(HttpResponse::DeniedResponse(_)) | None => Decision::Refusal(Box::default()),
        };
        Self { decision, metadata: metadata.map(metadata::object).unwrap_or_default() }
    }

    /// What an HTTP server has said: 200 is a consent, all else that it may say to a request a refusal. What is no final
    /// status, and 5xx, is no answer.
    pub fn of_http(service: &HttpAuthz, head: &ResponseHead, body: Vec<u8>) -> Self {
        if !(200..500).contains(&head.status) {
            return Self::failure();
        }
        let headers = || {
            let named =
                head.headers.iter().filter_map(|(_, name, value)| Some((std::str::from_utf8(name).ok()?, value)));
            named.filter(|(name, _)| *name != TO_REMOVE)
        };
        let those = |list: &[StringMatcher]| -> Vec<Header> {
            let matching = headers().filter(|(name, _)| matches(list, name));
            matching.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
        };
        let of_metadata = headers().filter(|(name, _)| matches(&service.metadata, name));
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned().into();
        let metadata = of_metadata.map(|(name, value)| (name.to_owned(), text(value))).collect();
        let decision = match head.status {
            200 => {
                let mut request = Vec::new();
                request.extend(those(&service.upstream).into_iter().map(|header| (HeaderAction::Set, header)));
                request.extend(those(&service.upstream_append).into_iter().map(|header| (HeaderAction::Add, header)));
                let response = those(&service.client_on_success).into_iter();
                let lists = head.headers.get_all_by_name(TO_REMOVE).filter_map(|list| std::str::from_utf8(list).ok());
                let names = lists.flat_map(|list| list.split(',')).map(|name| name.trim().to_ascii_lowercase());
                Decision::Consent(Box::new(Consent {
                    request,
                    remove: names.filter(|name| !name.is_empty()).collect(),
                    response: response.map(|header| (AppendAction::AppendIfExistsOrAdd, header)).collect(),
                    ..Consent::default()
                }))
            }
            status => {
                let tells = |name: &str| match service.client.is_empty() {
                    true => name != "host",
                    false => matches!(name, "www-authenticate" | "location") || matches(&service.client, name),
                };
                let told = headers().filter(|(name, _)| tells(name));
                Decision::Refusal(Box::new(Refusal {
                    status: Some(status),
                    headers: told.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
                    body,
                }))
            }
        };
        Self { decision, metadata }
    }
}

fn matches(list: &[StringMatcher], name: &str) -> bool {
    list.iter().any(|matcher| matcher.matches(name.as_bytes()))
}

fn header(wire: Option<core::HeaderValue>) -> Header {
    let core::HeaderValue { key, value, raw_value } = wire.unwrap_or_default();
    (key.to_ascii_lowercase(), if value.is_empty() { raw_value } else { value.into_bytes() })
}

fn refusal(wire: DeniedHttpResponse) -> Refusal {
    let DeniedHttpResponse { status, headers, body } = wire;
    let status = status.and_then(|status| u16::try_from(status.code).ok()).filter(|code| (200..600).contains(code));
    Refusal {
        status,
        headers: headers.into_iter().map(|option| header(option.header)).collect(),
        body: body.into_bytes(),
    }
}

fn consent_of(wire: OkHttpResponse) -> Consent {
    let OkHttpResponse {
        headers,
        headers_to_remove,
        dynamic_metadata: _,
        response_headers_to_add,
        query_parameters_to_set,
        query_parameters_to_remove,
    } = wire;
    let mut request: Vec<_> = headers.into_iter().map(request_change).collect();
    // As Envoy does them: what is set first, what is joined last.
    request.sort_by_key(|(action, _)| *action);
    Consent {
        request,
        remove: headers_to_remove.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
        response: response_headers_to_add.into_iter().map(response_change).collect(),
        query_set: query_parameters_to_set.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        query_remove: query_parameters_to_remove,
    }
}

/// As in Envoy, the action says nothing for request headers: what is not appended replaces.
fn request_change(wire: core::HeaderValueOption) -> (HeaderAction, Header) {
    let core::HeaderValueOption { header: value, append, append_action: _, keep_empty_value: _ } = wire;
    let appends = append.is_some_and(|append| append.value);
    (if appends { HeaderAction::Join } else { HeaderAction::Set }, header(value))
}

fn response_change(wire: core::HeaderValueOption) -> (AppendAction, Header) {
    let core::HeaderValueOption { header: value, append, append_action, keep_empty_value: _ } = wire;
    let action = match (append.map(|append| append.value), HeaderAppendAction::try_from(append_action)) {
        (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd) | Err(_)) => {
            AppendAction::AppendIfExistsOrAdd
        }
        (Some(false), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => {
            AppendAction::OverwriteIfExistsOrAdd
        }
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
    };
    (action, header(value))
}

/// Where an HTTP server lists the headers that are to be removed from the request.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::r#type::v3::HttpStatus;
    use outrigger_api::pb::google::rpc::Status;
    use outrigger_config::http::filters::AuthzPath;

    use super::*;

    fn option(name: &str, append: Option<bool>, action: i32) -> core::HeaderValueOption {
        core::HeaderValueOption {
            header: Some(core::HeaderValue { key: name.into(), value: "v".into(), raw_value: Vec::new() }),
            append: append.map(|value| outrigger_api::pb::google::protobuf::BoolValue { value }),
            append_action: action,
            keep_empty_value: false,
        }
    }

    fn of_grpc(code: i32, http_response: Option<HttpResponse>) -> Decision {
        let status = Some(Status { code, ..Status::default() });
        Answer::of_grpc(CheckResponse { status, dynamic_metadata: None, http_response }).decision
    }

    #[test]
    fn the_status_decides_whatever_stands_beside_it() {
        let denied = || {
            let status = Some(HttpStatus { code: 401 });
            HttpResponse::DeniedResponse(DeniedHttpResponse { status, ..DeniedHttpResponse::default() })
        };
        let ok = || HttpResponse::OkResponse(OkHttpResponse::default());
        assert!(matches!(of_grpc(0, None), Decision::Consent(_)));
        assert!(matches!(of_grpc(0, Some(denied())), Decision::Consent(_)));
        assert!(matches!(of_grpc(7, Some(ok())), Decision::Refusal(refusal) if refusal.status.is_none()));
        assert!(matches!(of_grpc(7, None), Decision::Refusal(_)));
        assert!(matches!(of_grpc(16, Some(denied())), Decision::Refusal(refusal) if refusal.status == Some(401)));
        // No answer may have such a status.
        let status = Some(HttpStatus { code: 100 });
        let interim = HttpResponse::DeniedResponse(DeniedHttpResponse { status, ..DeniedHttpResponse::default() });
        assert!(matches!(of_grpc(7, Some(interim)), Decision::Refusal(refusal) if refusal.status.is_none()));
        let error = HttpResponse::ErrorResponse(DeniedHttpResponse::default());
        assert!(matches!(of_grpc(0, Some(error)), Decision::Failure(Some(_))));
        // No status is OK, as a message of defaults says it.
        assert!(matches!(Answer::of_grpc(CheckResponse::default()).decision, Decision::Consent(_)));
    }

    #[test]
    fn request_headers_are_replaced_unless_the_service_says_otherwise() {
        let actions = |headers: Vec<core::HeaderValueOption>| -> Vec<_> {
            let consent = consent_of(OkHttpResponse { headers, ..OkHttpResponse::default() });
            consent.request.into_iter().map(|(action, (name, _))| (action, name)).collect()
        };
        let absent = HeaderAppendAction::AddIfAbsent as i32;
        let got = actions(vec![option("A", Some(true), 0), option("b", None, 0), option("c", None, absent)]);
        let expected = [(HeaderAction::Set, "b"), (HeaderAction::Set, "c"), (HeaderAction::Join, "a")];
        assert_eq!(got, expected.map(|(action, name)| (action, name.to_owned())));
    }

    fn service() -> HttpAuthz {
        let exact = |value: &str| vec![StringMatcher::Exact { value: value.into(), ignore_case: false }];
        HttpAuthz {
            cluster: "c".into(),
            timeout: None,
            retries: None,
            path: AuthzPath::Prefix(String::new()),
            allowed_headers: Vec::new(),
            headers_to_add: Vec::new(),
            upstream: exact("x-user"),
            upstream_append: exact("x-group"),
            client: Vec::new(),
            client_on_success: exact("x-note"),
            metadata: exact("x-user"),
        }
    }

    fn answer(service: &HttpAuthz, status: u16) -> Answer {
        let mut head = ResponseHead { status, ..ResponseHead::default() };
        for (name, value) in [
            ("x-user", "ann"),
            ("x-group", "g"),
            ("x-note", "n"),
            ("location", "/login"),
            (TO_REMOVE, "Cookie, x-secret,"),
        ] {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        Answer::of_http(service, &head, b"body".to_vec())
    }

    #[test]
    fn an_http_server_consents_with_200_alone() {
        let Answer { decision, metadata } = answer(&service(), 200);
        assert_eq!(metadata["x-user"], "ann");
        let Decision::Consent(consent) = decision else { panic!("no consent") };
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        assert_eq!(
            *consent,
            Consent {
                request: vec![
                    (HeaderAction::Set, header("x-user", "ann")),
                    (HeaderAction::Add, header("x-group", "g"))
                ],
                remove: vec!["cookie".into(), "x-secret".into()],
                response: vec![(AppendAction::AppendIfExistsOrAdd, header("x-note", "n"))],
                ..Consent::default()
            }
        );
        for status in [101, 503, 999] {
            assert!(matches!(answer(&service(), status).decision, Decision::Failure(None)), "{status}");
        }
    }

    #[test]
    fn all_else_is_a_refusal_of_which_the_client_is_told() {
        let names = |service: &HttpAuthz| match answer(service, 302).decision {
            Decision::Refusal(refusal) => {
                assert_eq!((refusal.status, refusal.body.as_slice()), (Some(302), &b"body"[..]));
                refusal.headers.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(names(&service()), ["x-user", "x-group", "x-note", "location"]);
        let chosen = vec![StringMatcher::Exact { value: "x-note".into(), ignore_case: false }];
        assert_eq!(names(&HttpAuthz { client: chosen, ..service() }), ["x-note", "location"]);
    }
}
