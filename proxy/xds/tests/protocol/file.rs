use std::time::Instant;

use outrigger_api::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_xds::core::FileCore;
use outrigger_xds::{Interest, Rejection, Update};

use crate::harness::*;

fn response(names: &[&str]) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: names.len().to_string(),
        resources: names.iter().map(|name| resource(SDS, name)).collect(),
        ..DiscoveryResponse::default()
    }
}

#[test]
fn r88_a_file_is_read_when_watched_and_when_changed() {
    let mut file = FileCore::new(SDS);
    let now = Instant::now();
    assert!(!file.poll_read());
    file.subscribe(&Interest::Name("cert".into()), Some(seconds(15)), now);
    assert!(file.poll_read() && !file.poll_read());
    let mut seen: Vec<Update> = Vec::new();
    let mut judge = |update: Update| {
        seen.push(update);
        Vec::<Rejection>::new()
    };
    assert!(file.loaded(response(&["cert", "other"]), now, &mut judge).is_empty());
    assert_eq!(file.poll_timeout(), None, "the wait is over");
    file.subscribe(&Interest::Name("other".into()), None, now);
    assert!(file.poll_read(), "what was not wanted was not kept");
    file.loaded(response(&["cert", "other"]), now, &mut judge);
    file.changed();
    assert!(file.poll_read());
    assert_eq!(seen.iter().map(added).collect::<Vec<_>>(), [["cert"], ["other"]]);
}

#[test]
fn r88_a_bad_file_keeps_what_was_good() {
    let mut file = FileCore::new(SDS);
    let now = Instant::now();
    file.subscribe(&Interest::Name("cert".into()), None, now);
    let mut judge = |_: Update| Vec::<Rejection>::new();
    file.loaded(response(&["cert"]), now, &mut judge);
    file.failed("line 3: not a mapping");
    let wrong_type = DiscoveryResponse { type_url: CDS.type_url().into(), ..response(&["cert"]) };
    assert_eq!(file.loaded(wrong_type, now, &mut judge).len(), 1);
    file.failed("no such file");
    let stats = file.state().stats();
    assert_eq!((stats.update_success, stats.update_rejected, stats.update_failure), (1, 1, 2));
    assert_eq!(file.state().held().count(), 1);
}
