//! Compression and decompression of bodies: the same filters, routes and requests for Envoy and for the proxy under test,
//! and what streams and large bodies look like.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::io::Write as _;

use outrigger_tests::config::{self, bootstrap, chain, cluster, http2_cluster, routes};
use outrigger_tests::side_by_side::{Case, Chain, Intended, chain_of, get, post, same};
use outrigger_tests::{Proxy, Settings, Upstream, h1, h2c, proxy, reply, within};

const INTENDED: Intended = &[
    (
        "*",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
    ("*", "total_compressed_bytes", "two libraries make different bytes of the same content"),
    (
        "http.plain.",
        "total_uncompressed_bytes",
        "reports tell the client's address, which may be longer by a character",
    ),
    ("http.tells.", "content_length_too_small", "Envoy counts a response that is too short twice where it tells of it"),
    ("library of the route: request", "upstream sees body", "two libraries make different bytes of the same content"),
    ("direct response", "header transfer-encoding: chunked", "the whole answer is there, so its length is told"),
    ("direct response", "header content-length: ", "the whole answer is there, so its length is told"),
];

type Headers = outrigger_tests::side_by_side::Headers;

const fn asking(name: &'static str, listener: &'static str, target: &'static str, headers: Headers) -> Case {
    get(name, listener, target, headers)
}

const GZIP: (&str, &str) = ("accept-encoding", "gzip");

const CASES: &[Case] = &[
    asking("long enough", "plain", "/", &[GZIP, ("x-reply", "bytes=1000")]),
    asking("not asked for", "plain", "/", &[("x-reply", "bytes=1000")]),
    asking("chunked", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 chunked")]),
    asking("trailers", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 chunked trailers")]),
    asking("too short", "plain", "/", &[GZIP, ("x-reply", "bytes=29")]),
    asking("just long enough", "plain", "/", &[GZIP, ("x-reply", "bytes=30")]),
    asking("empty", "plain", "/", &[GZIP, ("x-reply", "empty")]),
    Case { method: "HEAD", ..asking("HEAD", "plain", "/", &[GZIP, ("x-reply", "bytes=1000")]) },
    asking("another type", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=content-type:image/png")]),
    asking(
        "a type in another case",
        "plain",
        "/",
        &[GZIP, ("x-reply", "bytes=1000 header=content-type:Text/HTML;x=y")],
    ),
    asking("strong entity tag", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=etag:\"abc\"")]),
    asking("weak entity tag", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=etag:W/\"abc\"")]),
    asking("vary", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=vary:Origin")]),
    asking("vary in another case", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=vary:accept-encoding")]),
    asking("vary is there", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=vary:Accept-Encoding")]),
    asking(
        "no transformation",
        "plain",
        "/",
        &[GZIP, ("x-reply", "bytes=1000 header=cache-control:public,No-Transform")],
    ),
    asking("encoded already", "plain", "/", &[GZIP, ("x-reply", "bytes=1000 header=content-encoding:x-own")]),
    asking("no content", "plain", "/", &[GZIP, ("x-reply", "status=204 empty")]),
    asking("not modified", "plain", "/", &[GZIP, ("x-reply", "status=304 empty")]),
    asking("partial content", "plain", "/", &[GZIP, ("x-reply", "status=206 bytes=1000")]),
    asking("error", "plain", "/", &[GZIP, ("x-reply", "status=500 bytes=1000")]),
    asking("direct response", "plain", "/direct", &[GZIP]),
    asking(
        "accept: identity first",
        "plain",
        "/",
        &[("accept-encoding", "gzip;q=0.5, identity"), ("x-reply", "bytes=1000")],
    ),
    asking("accept: anything", "plain", "/", &[("accept-encoding", "*"), ("x-reply", "bytes=1000")]),
    asking("accept: anything else", "plain", "/", &[("accept-encoding", "gzip;q=0, *"), ("x-reply", "bytes=1000")]),
    asking("accept: another", "plain", "/", &[("accept-encoding", "br"), ("x-reply", "bytes=1000")]),
    asking("accept: in another case", "plain", "/", &[("accept-encoding", "GZIP"), ("x-reply", "bytes=1000")]),
    asking("accept: no weight", "plain", "/", &[("accept-encoding", "gzip;q=x"), ("x-reply", "bytes=1000")]),
    asking("accept: twice", "plain", "/", &[("accept-encoding", "br"), GZIP, ("x-reply", "bytes=1000")]),
    asking("three: gzip first", "three", "/", &[("accept-encoding", "gzip, br, zstd"), ("x-reply", "bytes=1000")]),
    asking("three: br", "three", "/", &[("accept-encoding", "br, gzip"), ("x-reply", "bytes=1000")]),
    asking("three: zstd", "three", "/", &[("accept-encoding", "zstd"), ("x-reply", "bytes=1000")]),
    asking("three: by weight", "three", "/", &[("accept-encoding", "gzip;q=0.1, br;q=0.2"), ("x-reply", "bytes=1000")]),
    asking("three: anything", "three", "/", &[("accept-encoding", "*"), ("x-reply", "bytes=1000")]),
    asking("three: anything but gzip", "three", "/", &[("accept-encoding", "gzip;q=0,*"), ("x-reply", "bytes=1000")]),
    asking("three: identity", "three", "/", &[("accept-encoding", "identity, gzip"), ("x-reply", "bytes=1000")]),
    asking(
        "preferred: the last",
        "preferred",
        "/",
        &[("accept-encoding", "gzip, br, zstd"), ("x-reply", "bytes=1000")],
    ),
    asking("preferred: anything", "preferred", "/", &[("accept-encoding", "*"), ("x-reply", "bytes=1000")]),
    asking(
        "preferred: the weight",
        "preferred",
        "/",
        &[("accept-encoding", "gzip;q=0.3, br;q=0.2"), ("x-reply", "bytes=1000")],
    ),
    asking("strict: partial content", "strict", "/", &[GZIP, ("x-reply", "status=206 bytes=1000")]),
    asking("strict: an entity tag", "strict", "/", &[GZIP, ("x-reply", "bytes=1000 header=etag:W/\"a\"")]),
    asking("strict: what the upstream sees", "strict", "/", &[GZIP]),
    asking(
        "strict: own types",
        "strict",
        "/",
        &[GZIP, ("x-reply", "bytes=1000 header=content-type:application/x-own")],
    ),
    asking("strict: not by default", "strict", "/", &[GZIP, ("x-reply", "bytes=1000 header=content-type:text/plain")]),
    asking("weaken", "weaken", "/", &[GZIP, ("x-reply", "bytes=1000 header=etag:\"abc\"")]),
    asking("off", "switched-off", "/", &[GZIP, ("x-reply", "bytes=1000")]),
    asking("off: on by route", "switched-off", "/on", &[GZIP, ("x-reply", "bytes=1000")]),
    asking("on: off by route", "plain", "/off", &[GZIP, ("x-reply", "bytes=1000")]),
    asking("by route: what the upstream sees", "switched-off", "/remove", &[GZIP]),
    asking("tells: compressed", "tells", "/", &[GZIP, ("x-reply", "bytes=1000")]),
    asking("tells: chunked", "tells", "/", &[GZIP, ("x-reply", "bytes=1000 chunked")]),
    asking("tells: not asked for", "tells", "/", &[("x-reply", "bytes=1000")]),
    asking("tells: another is asked for", "tells", "/", &[("accept-encoding", "br"), ("x-reply", "bytes=1000")]),
    asking("tells: too short", "tells", "/", &[GZIP, ("x-reply", "bytes=10")]),
    asking("tells: another type", "tells", "/", &[GZIP, ("x-reply", "bytes=1000 header=content-type:image/png")]),
    asking("tells: entity tag", "tells", "/", &[GZIP, ("x-reply", "bytes=1000 header=etag:W/\"abc\"")]),
    asking("tells: status", "tells", "/", &[GZIP, ("x-reply", "status=206 bytes=1000")]),
    asking(
        "tells: type before tag before status",
        "tells",
        "/",
        &[GZIP, ("x-reply", "status=206 bytes=1000 header=etag:\"a\" header=content-type:image/png")],
    ),
    asking("tells: encoded already", "tells", "/", &[GZIP, ("x-reply", "bytes=10 header=content-encoding:x-own")]),
    asking(
        "tells: no transformation",
        "tells",
        "/",
        &[GZIP, ("x-reply", "bytes=10 header=cache-control:no-transform")],
    ),
    asking(
        "tells: told before",
        "tells",
        "/",
        &[GZIP, ("x-reply", "bytes=1000 header=x-envoy-compression-status:old")],
    ),
    asking("tells: empty", "tells", "/", &[GZIP, ("x-reply", "empty")]),
    Case { method: "HEAD", ..asking("tells: HEAD", "tells", "/", &[GZIP, ("x-reply", "bytes=1000")]) },
    asking("tells: off by route", "tells", "/off", &[GZIP, ("x-reply", "bytes=1000")]),
    asking("library of the route: not the chain's", "tells", "/zstd", &[GZIP, ("x-reply", "bytes=1000")]),
    Case {
        body: LONG,
        ..post("library of the route: request", "requests", "/zstd", &[("content-type", "text/plain")])
    },
    Case { body: LONG, ..post("request", "requests", "/", &[]) },
    post("request: too short", "requests", "/", &[]),
    Case { body: LONG, ..post("request: encoded already", "requests", "/", &[("content-encoding", "x-own")]) },
    Case { body: LONG, ..post("request: another type", "requests", "/", &[("content-type", "image/png")]) },
    get("request: nothing", "requests", "/", &[]),
    asking("decompress", "inflate", "/", &[("x-reply", "bytes=1000 gzip header=content-encoding:gzip")]),
    asking(
        "decompress: one of two",
        "inflate",
        "/",
        &[("x-reply", "bytes=1000 gzip header=content-encoding:GZip,x-own")],
    ),
    asking(
        "decompress: not the first",
        "inflate",
        "/",
        &[("x-reply", "bytes=1000 gzip header=content-encoding:x-own,gzip")],
    ),
    asking(
        "decompress: no transformation",
        "inflate",
        "/",
        &[("x-reply", "bytes=1000 gzip header=content-encoding:gzip header=cache-control:no-transform")],
    ),
    asking(
        "decompress: transformation all the same",
        "inflate-all",
        "/",
        &[("x-reply", "bytes=1000 gzip header=content-encoding:gzip header=cache-control:no-transform")],
    ),
    asking("decompress: what the upstream sees", "inflate", "/", &[("accept-encoding", "br")]),
    asking("decompress: not told", "inflate-all", "/", &[("accept-encoding", "br")]),
    Case {
        method: "HEAD",
        ..asking("decompress: HEAD", "inflate", "/", &[("x-reply", "bytes=1000 gzip header=content-encoding:gzip")])
    },
    asking("decompress: empty", "inflate", "/", &[("x-reply", "empty header=content-encoding:gzip")]),
    Case { body: GZIPPED, ..post("decompress: request", "inflate", "/", &[("content-encoding", "gzip")]) },
    Case { body: GZIPPED, ..post("decompress: not the request", "inflate-all", "/", &[("content-encoding", "gzip")]) },
];

const LONG: &[u8] = &[b'x'; 200];
/// `hello hello hello hello`.
const GZIPPED: &[u8] =
    &[31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 203, 72, 205, 201, 201, 87, 200, 64, 39, 1, 227, 81, 61, 141, 23, 0, 0, 0];

macro_rules! library {
    ($name:literal, $type:literal) => {
        concat!(
            "{ name: ",
            $name,
            ", typed_config: { '@type': type.googleapis.com/envoy.extensions.compression.",
            $type,
            " } }"
        )
    };
}

/// A route with a library of its own.
macro_rules! by_zstd {
    () => {
        concat!(
            "{ match: { path: /zstd }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': \
             $T/compressor.v3.CompressorPerRoute, overrides: { compressor_library: ",
            library!("zs", "zstd.compressor.v3.Zstd"),
            " } } } }, "
        )
    };
}

const COMPRESSOR: &str = "compressor.v3.Compressor";
const DECOMPRESSOR: &str = "decompressor.v3.Decompressor";
const GZ: &str = concat!("compressor_library: ", library!("gz", "gzip.compressor.v3.Gzip"));
const UNGZ: &str = concat!("decompressor_library: ", library!("gz", "gzip.decompressor.v3.Gzip"));

const CHAINS: &[Chain] = &[
    Chain {
        stats: "http.plain.compressor.",
        ..chain_of(
            "plain",
            &[("c", COMPRESSOR, GZ)],
            "{ match: { path: /direct }, direct_response: { status: 200, body: { inline_string: 'a text that is long enough to be compressed' } } }, \
             { match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/compressor.v3.CompressorPerRoute, disabled: true } } }, ",
        )
    },
    Chain {
        stats: "http.three.compressor.",
        ..chain_of(
            "three",
            &[
                ("c1", COMPRESSOR, GZ),
                ("c2", COMPRESSOR, concat!("compressor_library: ", library!("bro", "brotli.compressor.v3.Brotli"))),
                ("c3", COMPRESSOR, concat!("compressor_library: ", library!("zs", "zstd.compressor.v3.Zstd"))),
            ],
            "",
        )
    },
    Chain {
        stats: "http.preferred.compressor.",
        ..chain_of(
            "preferred",
            &[
                ("c1", COMPRESSOR, GZ),
                (
                    "c2",
                    COMPRESSOR,
                    concat!("choose_first: true, compressor_library: ", library!("bro", "brotli.compressor.v3.Brotli")),
                ),
                (
                    "c3",
                    COMPRESSOR,
                    concat!("choose_first: true, compressor_library: ", library!("zs", "zstd.compressor.v3.Zstd")),
                ),
            ],
            "",
        )
    },
    Chain {
        stats: "http.strict.compressor.",
        ..chain_of(
            "strict",
            &[(
                "c",
                COMPRESSOR,
                concat!(
                    "response_direction_config: { disable_on_etag_header: true, remove_accept_encoding_header: true, \
                     uncompressible_response_codes: [206], common_config: { content_type: [application/x-own] } }, compressor_library: ",
                    library!("gz", "gzip.compressor.v3.Gzip")
                ),
            )],
            "",
        )
    },
    chain_of(
        "weaken",
        &[(
            "c",
            COMPRESSOR,
            concat!(
                "response_direction_config: { disable_on_etag_header: true, weaken_etag_on_compress: true }, compressor_library: ",
                library!("gz", "gzip.compressor.v3.Gzip")
            ),
        )],
        "",
    ),
    Chain {
        stats: "http.switched-off.compressor.",
        ..chain_of(
            "switched-off",
            &[(
                "c",
                COMPRESSOR,
                concat!(
                    "response_direction_config: { common_config: { enabled: { default_value: false, runtime_key: no.key } } }, compressor_library: ",
                    library!("gz", "gzip.compressor.v3.Gzip")
                ),
            )],
            "{ match: { path: /on }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/compressor.v3.CompressorPerRoute, \
             overrides: { response_direction_config: {} } } } }, \
             { match: { path: /remove }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/compressor.v3.CompressorPerRoute, \
             overrides: { response_direction_config: { remove_accept_encoding_header: true } } } } }, ",
        )
    },
    Chain {
        stats: "http.requests.compressor.",
        ..chain_of(
            "requests",
            &[(
                "c",
                COMPRESSOR,
                concat!(
                    "request_direction_config: {}, response_direction_config: { common_config: { min_content_length: 1000000 } }, compressor_library: ",
                    library!("gz", "gzip.compressor.v3.Gzip")
                ),
            )],
            by_zstd!(),
        )
    },
    Chain {
        stats: "http.tells.compressor.",
        ..chain_of(
            "tells",
            &[(
                "c",
                COMPRESSOR,
                concat!(
                    "response_direction_config: { status_header_enabled: true, disable_on_etag_header: true, \
                     uncompressible_response_codes: [206] }, compressor_library: ",
                    library!("gz", "gzip.compressor.v3.Gzip")
                ),
            )],
            concat!(
                "{ match: { path: /off }, route: { cluster: one }, typed_per_filter_config: { c: { '@type': $T/compressor.v3.CompressorPerRoute, disabled: true } } }, ",
                by_zstd!()
            ),
        )
    },
    Chain { stats: "http.inflate.decompressor.", ..chain_of("inflate", &[("d", DECOMPRESSOR, UNGZ)], "") },
    Chain {
        stats: "http.inflate-all.decompressor.",
        ..chain_of(
            "inflate-all",
            &[(
                "d",
                DECOMPRESSOR,
                concat!(
                    "request_direction_config: { advertise_accept_encoding: false, common_config: { enabled: { default_value: false, runtime_key: no.key } } }, \
                     response_direction_config: { common_config: { ignore_no_transform_header: true } }, decompressor_library: ",
                    library!("gz", "gzip.decompressor.v3.Gzip")
                ),
            )],
            "",
        )
    },
];

#[tokio::test]
async fn bodies_are_compressed_as_by_envoy() {
    let upstream = Upstream::start("one").await;
    let listeners: Vec<String> = CHAINS.iter().map(Chain::listener).collect();
    let bootstrap = bootstrap(&listeners, &[cluster("one", &[upstream.port()])]);
    same(&bootstrap, CHAINS, CASES, INTENDED).await;
}

fn with_filters(filters: &str, cluster: &str) -> String {
    // Large bodies take as long as they take.
    let route = format!("{{ match: {{ prefix: / }}, route: {{ cluster: {cluster}, timeout: 0s }} }}");
    let manager =
        config::http("web", &routes(&route)).replace("http_filters: [", &format!("http_filters: [{filters}, "));
    config::listener("web", &[chain(&manager, "")], "")
}

fn compressor() -> String {
    format!(
        "{{ name: c, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{COMPRESSOR}, {GZ} }} }}"
    )
}

/// Envoy compresses such responses with the library of the chain, and says that it was that of the route.
#[tokio::test]
async fn responses_are_compressed_by_the_library_of_their_route() {
    let upstream = Upstream::start("one").await;
    let tells = CHAINS.iter().find(|chain| chain.name == "tells").unwrap();
    let proxy = Proxy::start(&bootstrap(&[tells.listener()], &[cluster("one", &[upstream.port()])])).await;
    let mut client = h1::Client::connect(proxy.listener("tells").await).await;
    for accepted in ["zstd", "gzip, zstd"] {
        let headers = [("accept-encoding", accepted), ("x-reply", "bytes=1000")];
        let response = client.request("GET", "/zstd", &headers, b"").await;
        assert_eq!(response.header("content-encoding"), Some("zstd"));
        assert_eq!(response.header("x-envoy-compression-status"), Some("zstd;Compressed;OriginalLength=1000"));
        assert_eq!(reply::sum(&response.content()), reply::sum(&reply::pattern(1000)));
    }
}

#[tokio::test]
async fn large_bodies_come_through_both_ways() {
    let upstream = Upstream::start("one").await;
    let inflate = format!(
        "{{ name: d, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.{DECOMPRESSOR}, {UNGZ} }} }}"
    );
    for (cluster_name, cluster) in
        [("one", cluster("one", &[upstream.port()])), ("by-h2", http2_cluster("by-h2", &[upstream.port()]))]
    {
        let listener = with_filters(&format!("{}, {inflate}", compressor()), cluster_name);
        let proxy = Proxy::start(&bootstrap(&[listener], &[cluster])).await;
        let mut client = h1::Client::connect(proxy.listener("web").await).await;
        let headers = [("accept-encoding", "gzip"), ("x-reply", "bytes=3000000")];
        let response = client.request("GET", "/", &headers, b"").await;
        assert_eq!(response.header("content-encoding"), Some("gzip"));
        assert!(response.body.len() < 1_000_000, "{}", response.body.len());
        assert_eq!(reply::sum(&response.content()), reply::sum(&reply::pattern(3_000_000)));
        // What the upstream compressed is decompressed on the way, and a new length is not invented.
        let headers = [("x-reply", "bytes=3000000 gzip header=content-encoding:gzip")];
        let response = client.request("GET", "/", &headers, b"").await;
        assert_eq!((response.header("content-encoding"), response.header("content-length")), (None, None));
        assert_eq!(reply::sum(&response.body), reply::sum(&reply::pattern(3_000_000)));
        let body = reply::pattern(2_000_000);
        let compressed = outrigger_tests::response::gzip(&body);
        let response = client.request("POST", "/", &[("content-encoding", "gzip")], &compressed).await;
        assert_eq!(response.json()["body_sum"], reply::sum(&body).to_string());
    }
}

#[tokio::test]
async fn each_piece_of_a_stream_can_be_read_before_the_next_one_is_there() {
    let upstream = Upstream::start("one").await;
    let listener = with_filters(&compressor(), "by-h2");
    let clusters = [http2_cluster("by-h2", &[upstream.port()])];
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters)).await;
    let client = h2c::Client::connect(proxy.listener("web").await).await;
    let headers = [("accept-encoding", "gzip"), ("x-reply", "echo")];
    let (response, mut upload) = client.open("POST", "/", &headers, false).await.unwrap();
    let response = within("a head", response).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let mut download = response.into_body();
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    for piece in ["event: first\n\n", "event: second\n\n", "event: third\n\n"] {
        h2c::send_all(&mut upload, piece.into(), false).await.unwrap();
        let mut read = String::new();
        while read.len() < piece.len() {
            let data = within("a piece", download.data()).await.unwrap().unwrap();
            download.flow_control().release_capacity(data.len()).unwrap();
            decoder.write_all(&data).unwrap();
            decoder.flush().unwrap();
            read.push_str(std::str::from_utf8(&std::mem::take(decoder.get_mut())).unwrap());
        }
        assert_eq!(read, piece);
    }
    h2c::send_all(&mut upload, Default::default(), true).await.unwrap();
    while let Some(data) = within("the end", download.data()).await {
        decoder.write_all(&data.unwrap()).unwrap();
    }
    assert!(decoder.finish().unwrap().is_empty());
}

/// What was learnt from some lines of JSON, by its id.
fn dictionary(id: u32) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/zstd_dictionaries/{id}"))
}

/// What a proxy makes of content that needs dictionaries, in both directions.
async fn with_dictionaries(program: std::path::PathBuf) -> Vec<String> {
    let upstream = Upstream::start("one").await;
    let source = |id| format!("{{ filename: {} }}", dictionary(id).display());
    let types = "type.googleapis.com/envoy.extensions";
    // In this order, responses are not decompressed behind the one that compresses them.
    let filters = format!(
        "{{ name: c, typed_config: {{ '@type': {types}.filters.http.{COMPRESSOR}, compressor_library: {{ name: zs, \
         typed_config: {{ '@type': {types}.compression.zstd.compressor.v3.Zstd, dictionary: {} }} }} }} }}, \
         {{ name: d, typed_config: {{ '@type': {types}.filters.http.{DECOMPRESSOR}, decompressor_library: {{ name: zs, \
         typed_config: {{ '@type': {types}.compression.zstd.decompressor.v3.Zstd, dictionaries: [{}, {}] }} }} }} }}",
        source(7001),
        source(7001),
        source(7002),
    );
    let text = bootstrap(&[with_filters(&filters, "one")], &[cluster("one", &[upstream.port()])]);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    let content = br#"{"service": "billing", "status": 200, "message": "the request was answered by the upstream"}"#;
    let mut seen = Vec::new();
    for id in [0, 7001, 7002] {
        let known = if id == 0 { Vec::new() } else { std::fs::read(dictionary(id)).unwrap() };
        let body = zstd::bulk::Compressor::with_dictionary(3, &known).unwrap().compress(content).unwrap();
        // Twice: what was made ready serves again.
        for _ in 0..2 {
            let response = client.request("POST", "/", &[("content-encoding", "zstd")], &body).await;
            seen.push(format!("{id}: {} {}", response.status, response.json()["body"]));
        }
    }
    let known = std::fs::read(dictionary(7001)).unwrap();
    for _ in 0..2 {
        let headers = [("accept-encoding", "zstd"), ("x-reply", "bytes=1000")];
        let response = client.request("GET", "/", &headers, b"").await;
        let coding = response.header("content-encoding").unwrap_or_default().to_owned();
        let mut reader = zstd::stream::read::Decoder::with_dictionary(&response.body[..], &known).unwrap();
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut plain).unwrap();
        seen.push(format!("{coding}: {}", reply::sum(&plain) == reply::sum(&reply::pattern(1000))));
        // Whoever does not have it cannot read it.
        seen.push(format!("without: {}", zstd::stream::decode_all(&response.body[..]).is_ok()));
    }
    seen
}

#[tokio::test]
async fn content_that_needs_dictionaries_is_as_with_envoy() {
    let seen = with_dictionaries(proxy::program()).await;
    assert_eq!(seen, with_dictionaries(proxy::envoy()).await);
    assert_eq!(seen.iter().filter(|line| line.contains("answered by the upstream")).count(), 6, "{seen:?}");
    assert_eq!(seen[6..], ["zstd: true", "without: false", "zstd: true", "without: false"]);
}
