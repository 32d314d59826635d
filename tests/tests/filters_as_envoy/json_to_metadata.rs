//! Values of JSON bodies in dynamic metadata.

use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post};

use super::{CLIENT, compare};

const INTENDED: Intended = &[
    CLIENT,
    ("*", "upstream sees header content-length", "a body that is known as a whole has a known length"),
    ("*", "upstream sees header transfer-encoding", "likewise"),
    (
        "fixed where nothing is",
        "logged ",
        "Envoy sets a fixed value for what is present also where it is not; the documentation says otherwise",
    ),
];

const JSON: (&str, &str) = ("content-type", "application/json");

macro_rules! cases {
    ($($name:literal: $body:expr;)*) => {
        &[$(Case { body: $body, ..post($name, "values", "/", &[JSON]) },)*]
    };
}

const VALUES: &[Case] = cases! {
    "a number": br#"{"a":1}"#;
    "a fraction": br#"{"a":1.5}"#;
    "a text": br#"{"a":"x"}"#;
    "a number in a text": br#"{"a":"12"}"#;
    "a text that begins like a number": br#"{"a":"1.5abc"}"#;
    "true": br#"{"a":true}"#;
    "false": br#"{"a":false}"#;
    "null": br#"{"a":null}"#;
    "an object": br#"{"a":{"b":"in"}}"#;
    "a list": br#"{"a":[1]}"#;
    "too large a number": br#"{"a":12345678901234567890}"#;
    "a large number": br#"{"a":123456789012}"#;
    "no key": b"{}";
    "a list as a whole": b"[]";
    "a number as a whole": b"1";
    "null as a whole": b"null";
    "no JSON": b"nonsense";
    "more than JSON": br#"{"a":1} x"#;
    "a key twice": br#"{"a":1,"a":2}"#;
    "a comma too many": br#"{"a":1,}"#;
    "an empty text": br#"{"a":""}"#;
    "blanks": b" ";
    "no UTF-8": b"{\"a\":\"\xff\"}";
    "escapes": br#"{"a":"\u00e9\ud83d\ude00"}"#;
    "kept": br#"{"a":1,"p":7}"#;
    "set anew": br#"{"p":7}"#;
    "empty": b"";
};

const OTHERS: &[Case] = &[
    Case { body: br#"{"a":1}"#, ..post("another type", "values", "/", &[("content-type", "text/plain")]) },
    Case {
        body: br#"{"a":1}"#,
        ..post("a type with more", "values", "/", &[("content-type", "application/json; a=b")])
    },
    Case {
        body: br#"{"a":1}"#,
        ..post("a type in another case", "values", "/", &[("content-type", "Application/JSON")])
    },
    Case { body: br#"{"a":1}"#, ..post("no type", "values", "/", &[]) },
    get("no body", "values", "/", &[JSON]),
    get("no body and no type", "values", "/", &[]),
    Case { body: br#"{"a":3}"#, ..post("by route", "values", "/routed", &[JSON]) },
    Case { body: br#"{"a":3}"#, ..post("fixed", "fixed", "/", &[JSON]) },
    Case { body: b"{}", ..post("fixed where nothing is", "fixed", "/", &[JSON]) },
    get("response: its own type", "responses", "/", &[("x-reply", "header=content-type:text/x")]),
    get("response: a type with more", "responses", "/", &[("x-reply", "header=content-type:text/x;q=1")]),
    get("response: by pattern", "responses", "/", &[("x-reply", "header=content-type:application/foo+json")]),
    get("response: beside the pattern", "responses", "/", &[("x-reply", "header=content-type:application/foo+json;a")]),
    get("response: no JSON", "responses", "/", &[("x-reply", "bytes=10 header=content-type:text/x")]),
    get("response: empty", "responses", "/", &[("x-reply", "empty header=content-type:text/x")]),
    Case { method: "HEAD", ..get("response: HEAD", "responses", "/", &[("x-reply", "header=content-type:text/x")]) },
    get("response: direct", "responses", "/direct", &[]),
];

const LOG: &str = " %DYNAMIC_METADATA(envoy.filters.http.json_to_metadata)% %DYNAMIC_METADATA(ns)%";
const FILTER: &str = "json_to_metadata.v3.JsonToMetadata";

const CHAINS: &[Chain] = &[
    Chain {
        log: LOG,
        ..chain_of(
            "values",
            &[
                ("m", "set_metadata.v3.Config", "metadata: [{ metadata_namespace: ns, value: { before: 1 } }]"),
                (
                    "j",
                    FILTER,
                    "request_rules: { rules: [\
                 { selectors: [{ key: a }], on_present: { key: a }, on_missing: { key: a, value: miss }, on_error: { key: a, value: err } }, \
                 { selectors: [{ key: a }], on_present: { key: text, type: STRING }, on_missing: { key: text, value: [1] } }, \
                 { selectors: [{ key: a }], on_present: { key: number, type: NUMBER }, on_missing: { key: number, value: { x: true } } }, \
                 { selectors: [{ key: a }, { key: b }], on_present: { key: deep }, on_missing: { key: deep, value: miss } }, \
                 { selectors: [{ key: p }], on_present: { key: a, preserve_existing_metadata_value: true } }, \
                 { selectors: [{ key: p }], on_present: { key: other, metadata_namespace: ns } }, \
                 { selectors: [{ key: p }], on_present: { key: before, metadata_namespace: ns, preserve_existing_metadata_value: true } }] }",
                ),
            ],
            "{ match: { path: /routed }, route: { cluster: one }, typed_per_filter_config: { j: { '@type': $T/json_to_metadata.v3.JsonToMetadata, \
             request_rules: { rules: [{ selectors: [{ key: a }], on_present: { key: routed } }] } } } }, ",
        )
    },
    Chain {
        log: LOG,
        ..chain_of(
            "fixed",
            &[(
                "j",
                FILTER,
                "request_rules: { rules: [{ selectors: [{ key: a }], on_present: { key: fixed, value: 5, type: STRING } }] }",
            )],
            "",
        )
    },
    Chain {
        log: LOG,
        // Of all chains: these stats have no prefix.
        stats: "json_to_metadata.",
        ..chain_of(
            "responses",
            &[(
                "j",
                FILTER,
                "response_rules: { rules: [{ selectors: [{ key: upstream }], on_present: { key: from }, \
                 on_missing: { key: from, value: miss }, on_error: { key: from, value: err } }], \
                 allow_content_types: [text/x], allow_empty_content_type: true, \
                 allow_content_types_regex: { regex: 'application/.*\\+json' } }",
            )],
            "{ match: { path: /direct }, direct_response: { status: 200, body: { inline_string: '{}' } } }, ",
        )
    },
];

#[tokio::test]
async fn values_of_bodies_become_metadata_as_by_envoy() {
    compare(CHAINS, VALUES, INTENDED).await;
}

#[tokio::test]
async fn bodies_are_read_where_envoy_reads_them() {
    compare(CHAINS, OTHERS, INTENDED).await;
}
