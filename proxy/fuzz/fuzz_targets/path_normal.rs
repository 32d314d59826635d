//! Path normalisation: its three steps, each alone and all of them as a connection manager has them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::manager::path::{Nul, merge_slashes, normalize, unescape_slashes};

fuzz_target!(|data: &[u8]| {
    // What is not visible ASCII never comes so far.
    let path: String = data.iter().map(|byte| char::from(0x21 + byte % 0x5e)).collect();
    let path = format!("/{path}");
    for steps in 0..8 {
        let Ok(once) = steps_of(steps, &path) else { continue };
        assert!(once.starts_with('/') && once.bytes().all(|byte| byte.is_ascii_graphic()), "{path} became {once}");
        assert_eq!(query(&once), query(&path), "{path} became {once}");
        // A next hop that does the same sees no other path.
        assert_eq!(steps_of(steps, &once).as_ref(), Ok(&once), "of {path}");
        let plain = once.split(['?', '#']).next().unwrap_or_default();
        if steps & NORMALIZE != 0 {
            assert!(!plain.split('/').any(|segment| matches!(segment, "." | "..")), "{path} became {once}");
            assert!(!plain.contains('\\'), "{path} became {once}");
        }
        if steps & MERGE != 0 {
            assert!(!plain.contains("//"), "{path} became {once}");
        }
        if steps & UNESCAPE != 0 {
            let lower = plain.to_ascii_lowercase();
            assert!(!lower.contains("%2f") && !lower.contains("%5c"), "{path} became {once}");
        }
    }
});

const UNESCAPE: u8 = 1;
const NORMALIZE: u8 = 2;
const MERGE: u8 = 4;

/// As `manager::normalize` goes through them.
fn steps_of(steps: u8, path: &str) -> Result<String, Nul> {
    let mut path = path.to_owned();
    if steps & UNESCAPE != 0 {
        path = unescape_slashes(&path).unwrap_or(path);
    }
    if steps & NORMALIZE != 0 {
        path = normalize(&path)?.unwrap_or(path);
    }
    if steps & MERGE != 0 {
        path = merge_slashes(&path).unwrap_or(path);
    }
    Ok(path)
}

fn query(path: &str) -> &str {
    path.find(['?', '#']).map_or("", |start| &path[start..])
}
