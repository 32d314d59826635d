//! The JSON and YAML form of messages: what was read is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_api::{JsonStyle, ParseOptions, Schema};
use prost::Message;

fuzz_target!(|text: &str| {
    let schema = Schema::load();
    let _ = schema.parse_yaml::<Bootstrap>(text, ParseOptions::default());
    let Ok(parsed) = schema.parse_json::<Bootstrap>(text, ParseOptions::default()) else { return };
    // Written by our own hand, so it has to be readable.
    let written = match schema.message_to_json(&parsed.message, JsonStyle::default()) {
        Ok(written) => written,
        Err(error) => panic!("cannot be written: {error}"),
    };
    match schema.parse_value::<Bootstrap>(&written, ParseOptions::default()) {
        // Compared as bytes, in which a number that is none is like itself.
        Ok(again) => assert_eq!(parsed.message.encode_to_vec(), again.message.encode_to_vec(), "{written}"),
        Err(error) => panic!("{written} cannot be read: {error}"),
    }
});
