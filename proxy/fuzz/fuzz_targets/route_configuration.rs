//! A route configuration (`envoy.config.route.v3.RouteConfiguration`), its table, and the way of a request through it.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::config::route::v3::RouteConfiguration as pb;
use outrigger_config::route::RouteConfiguration;
use outrigger_fuzz::decoded;
use outrigger_policy::route::{NoRuntime, RequestView, RouteTable};

struct Asked {
    host: &'static str,
    path: &'static str,
}

impl RequestView for Asked {
    fn host(&self) -> &str {
        self.host
    }

    fn path(&self) -> &str {
        self.path
    }

    fn method(&self) -> &str {
        "GET"
    }

    fn header<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(&b"value"[..])
    }

    fn is_grpc(&self) -> bool {
        false
    }
}

const ASKED: [Asked; 3] = [
    Asked { host: "www.example.com:8080", path: "/a/b?c=d&e" },
    Asked { host: "[::1]", path: "/" },
    Asked { host: "", path: "" },
];

fuzz_target!(|data: &[u8]| {
    decoded(data, |context, wire: pb| {
        let Ok(configuration) = RouteConfiguration::parse(context, wire) else { return };
        let table = RouteTable::build(Arc::new(configuration));
        for asked in &ASKED {
            let _ = table.find(asked, data.len() as u64, &NoRuntime);
        }
    });
});
