//! Format strings: read, and evaluated for a header, a line of text and a line of JSON. Zero bytes part the format from the
//! words of the request, the response and the certificate.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::accesslog::{format, write_text};
use outrigger::http::headers::Headers;
use outrigger::http::manager::mutate::{self, Mutable};
use outrigger_config::FieldPath;
use outrigger_config::accesslog::{JsonFormat, LogFormat};
use outrigger_config::format::Format;
use outrigger_config::http::{AppendAction, HeaderAddition};
use outrigger_fuzz::sample::Sample;

struct Head<'s> {
    headers: Headers,
    sample: &'s Sample,
}

impl Mutable for Head<'_> {
    fn headers(&mut self) -> &mut Headers {
        &mut self.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        format::write_header(format, &self.sample.facts(), value);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let Some(Ok(text)) = parts.next().map(std::str::from_utf8) else { return };
    let at = FieldPath::resource("listener", "fuzz");
    let Ok(parsed) = Format::parse(&at, text) else { return };
    assert_eq!(Format::parse(&at, text).as_ref(), Ok(&parsed), "read once more");
    let sample = Sample::of(parts);
    let mut head = Head { headers: Headers::default(), sample: &sample };
    let value = parsed.clone();
    // Literals are checked where a header's format is read, not here.
    if parsed.as_literal().is_none() {
        let addition = HeaderAddition {
            name: "x-fuzz".into(),
            value,
            action: AppendAction::AppendIfExistsOrAdd,
            keep_empty_value: true,
        };
        mutate::add(&addition, &mut head);
        let value = head.headers.get_by_name("x-fuzz").unwrap_or_default();
        assert!(value.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\t'), "{text}: {value:?}");
    }
    let mut line = Vec::new();
    write_text(&LogFormat::Text { format: parsed.clone(), omit_empty: false }, &sample.facts(), &mut line);
    for omit_empty in [false, true] {
        let fields = vec![("a".to_owned(), JsonFormat::Text(parsed.clone()))];
        let mut line = Vec::new();
        write_text(&LogFormat::Json { fields, omit_empty }, &sample.facts(), &mut line);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line: {line:?}");
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&line) {
            panic!("{text} gives no JSON: {error}: {}", String::from_utf8_lossy(&line));
        }
    }
});
