//! Filters that a match tree chooses.

use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post};

use super::{CLIENT, compare};

const INTENDED: Intended =
    &[CLIENT, ("a body", "header connection: close", "all of the body is read, so the connection stays in step")];

macro_rules! header_is {
    ($input:literal, $value:literal, $action:expr) => {
        concat!(
            "{ predicate: { single_predicate: { input: { name: i, typed_config: { '@type': \
             type.googleapis.com/envoy.type.matcher.v3.",
            $input,
            " } }, value_match: { exact: '",
            $value,
            "' } } }, on_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.extensions.",
            $action,
            " } } } }, "
        )
    };
}

macro_rules! wanted {
    ($value:literal, $action:expr) => {
        header_is!("HttpRequestHeaderMatchInput, header_name: x-want", $value, $action)
    };
}

macro_rules! mutation {
    ($name:literal) => {
        concat!(
            "{ '@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: { \
             request_mutations: [{ append: { header: { key: x-",
            $name,
            ", value: q } } }], response_mutations: [{ append: { header: { key: x-",
            $name,
            ", value: r } } }] } }"
        )
    };
}

macro_rules! run {
    ($filter:expr) => {
        concat!(
            "filters.http.composite.v3.ExecuteFilterAction, typed_config: { name: inner, typed_config: ",
            $filter,
            " }"
        )
    };
}

macro_rules! skip {
    () => {
        "filters.common.matcher.action.v3.SkipFilter"
    };
}

macro_rules! by_route {
    ($type:literal, $field:literal, $tree:expr) => {
        concat!(
            "{ match: { path: /routed }, route: { cluster: one }, typed_per_filter_config: { f: { '@type': \
             type.googleapis.com/envoy.extensions.",
            $type,
            ", ",
            $field,
            ": ",
            $tree,
            " } } }, "
        )
    };
}

macro_rules! tree {
    ($($entry:expr),*) => { concat!("{ matcher_list: { matchers: [", $($entry,)* "] } }") };
}

const CASES: &[Case] = &[
    get("none", "composite", "/", &[]),
    get("one", "composite", "/", &[("x-want", "one")]),
    get("two", "composite", "/", &[("x-want", "two")]),
    get("never", "composite", "/", &[("x-want", "never")]),
    post("a body", "composite", "/", &[("x-want", "buffer")]),
    get("by the response", "composite", "/", &[("x-reply", "status=404")]),
    get("by route", "composite", "/routed", &[("x-want", "one")]),
    get("a tree of its own: one", "own-tree", "/", &[("x-want", "one")]),
    get("a tree of its own: none", "own-tree", "/", &[]),
    get("a tree of its own: by route", "own-tree", "/routed", &[("x-want", "one")]),
    get("runs", "skipped", "/", &[]),
    get("rests", "skipped", "/", &[("x-want", "rest")]),
    get("rests for the response", "skipped", "/", &[("x-reply", "status=404")]),
    get("rests by route", "skipped", "/routed", &[("x-want", "route")]),
    get("runs by route", "skipped", "/routed", &[("x-want", "rest")]),
];

const WITH_MATCHER: &str = "^common.matching.v3.ExtensionWithMatcher";

const CHAINS: &[Chain] = &[
    chain_of(
        "composite",
        &[(
            "f",
            WITH_MATCHER,
            concat!(
                "extension_config: { name: e, typed_config: { '@type': \
                 type.googleapis.com/envoy.extensions.filters.http.composite.v3.Composite } }, xds_matcher: ",
                tree!(
                    wanted!("one", run!(mutation!("one"))),
                    wanted!("two", run!(mutation!("two"))),
                    wanted!(
                        "buffer",
                        run!(
                            "{ '@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, \
                             max_request_bytes: 5 }"
                        )
                    ),
                    wanted!(
                        "never",
                        concat!(run!(mutation!("never")), ", sample_percent: { default_value: { numerator: 0 } }")
                    ),
                    header_is!("HttpResponseStatusCodeMatchInput", "404", run!(mutation!("missing")))
                )
            ),
        )],
        by_route!(
            "common.matching.v3.ExtensionWithMatcherPerRoute",
            "xds_matcher",
            tree!(wanted!("one", run!(mutation!("routed"))))
        ),
    ),
    chain_of(
        "own-tree",
        &[("f", "composite.v3.Composite", concat!("matcher: ", tree!(wanted!("one", run!(mutation!("own"))))))],
        by_route!(
            "filters.http.composite.v3.CompositePerRoute",
            "matcher",
            tree!(wanted!("one", run!(mutation!("routed"))))
        ),
    ),
    chain_of(
        "skipped",
        &[(
            "f",
            WITH_MATCHER,
            concat!(
                "extension_config: { name: e, typed_config: ",
                mutation!("own"),
                " }, xds_matcher: ",
                tree!(wanted!("rest", skip!()), header_is!("HttpResponseStatusCodeMatchInput", "404", skip!()))
            ),
        )],
        by_route!("common.matching.v3.ExtensionWithMatcherPerRoute", "xds_matcher", tree!(wanted!("route", skip!()))),
    ),
];

#[tokio::test]
async fn filters_are_chosen_as_by_envoy() {
    compare(CHAINS, CASES, INTENDED).await;
}
