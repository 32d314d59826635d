//! Property: any message, shown as JSON and read again, is the same bytes.
//!
//! Messages are made from the schema, so every kind of field, map, oneof and well-known type is met.

use proptest::prelude::*;

use super::scalar::Scalar;
use super::view::{JsonStyle, JsonView, Names};
use super::{ParseOptions, read, time};
use crate::schema::{Field, Message, kind, shape};
use crate::wire;

const TYPES: &[&str] = &[
    "envoy.admin.v3.ClustersConfigDump",
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.service.discovery.v3.DeltaDiscoveryResponse",
];

/// Choices, taken one by one from random words; zero when they run out, which ends the message.
struct Choices {
    words: std::vec::IntoIter<u64>,
}

impl Choices {
    fn next(&mut self) -> u64 {
        self.words.next().unwrap_or_default()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 8] = ["a", "", "x.y", "grüße", "\"quoted\\\"", "[0]", "10s", "\u{1f600}\n"];
        // Eight entries; the index fits.
        TEXTS[self.below(8) as usize].to_owned()
    }
}

fn message(message: Message, choices: &mut Choices, depth: u32) -> Vec<u8> {
    let mut out = Vec::new();
    match message.shape() {
        shape::ANY => {
            let inner = TYPES[choices.below(TYPES.len() as u64) as usize];
            if let Some(inner_type) = Message::named(inner).filter(|_| depth < 6) {
                wire::put_bytes(&mut out, 1, format!("type.googleapis.com/{inner}").as_bytes());
                let bytes = self::message(inner_type, choices, depth + 1);
                if !bytes.is_empty() {
                    wire::put_bytes(&mut out, 2, &bytes);
                }
            }
            return out;
        }
        shape::DURATION | shape::TIMESTAMP => {
            let seconds = choices.below(200_000_000_000).cast_signed();
            let nanos = choices.below(1_000_000_000).cast_signed();
            for (number, value) in [(1, seconds), (2, nanos)] {
                if value != 0 {
                    Scalar::Varint(value.cast_unsigned()).put_field(&mut out, number);
                }
            }
            return out;
        }
        _ => {}
    }
    let mut fields: Vec<Field> = message.fields().collect();
    fields.sort_by_key(|field| field.number());
    // A `Value` always holds one choice.
    let forced = (message.shape() == shape::VALUE).then(|| if depth < 8 { 1 + choices.below(6) } else { 1 });
    let mut chosen: Vec<u32> = Vec::new();
    for field in fields {
        let wanted = match forced {
            Some(number) => u64::from(field.number()) == number,
            None => depth < 8 && choices.below(4) == 1,
        };
        if !wanted || field.oneof().is_some_and(|oneof| chosen.contains(&oneof)) {
            continue;
        }
        chosen.extend(field.oneof());
        put_field(field, choices, depth, &mut out);
    }
    out
}

fn put_field(field: Field, choices: &mut Choices, depth: u32, out: &mut Vec<u8>) {
    if field.is_map() {
        let Some(entry) = field.message() else { return };
        let (Some(key), Some(value)) = (entry.field_by_number(1), entry.field_by_number(2)) else { return };
        if key.kind() != kind::STRING {
            return;
        }
        let mut bytes = Vec::new();
        let text = choices.text();
        if !text.is_empty() {
            wire::put_bytes(&mut bytes, 1, text.as_bytes());
        }
        put_single(value, choices, depth, &mut bytes);
        wire::put_bytes(out, field.number(), &bytes);
    } else if field.is_repeated() {
        let mut packed = Vec::new();
        for _ in 0..choices.below(3) {
            match field.message() {
                Some(inner) => wire::put_bytes(out, field.number(), &message(inner, choices, depth + 1)),
                None if field.is_packed() => scalar(field, choices).put_packed(&mut packed),
                None => scalar(field, choices).put_field(out, field.number()),
            }
        }
        if !packed.is_empty() {
            wire::put_bytes(out, field.number(), &packed);
        }
    } else {
        put_single(field, choices, depth, out);
    }
}

fn put_single(field: Field, choices: &mut Choices, depth: u32, out: &mut Vec<u8>) {
    if let Some(inner) = field.message() {
        wire::put_bytes(out, field.number(), &message(inner, choices, depth + 1));
        return;
    }
    let scalar = scalar(field, choices);
    if field.has_presence() || !scalar.is_default() {
        scalar.put_field(out, field.number());
    }
}

fn scalar(field: Field, choices: &mut Choices) -> Scalar {
    let word = choices.next();
    match field.kind() {
        kind::DOUBLE => Scalar::Fixed64((word.cast_signed() as f64 / 3.0).to_bits()),
        kind::FLOAT => Scalar::Fixed32((word.cast_signed() as f32 / 3.0).to_bits()),
        kind::BOOL => Scalar::Varint(word & 1),
        kind::STRING => Scalar::Bytes(choices.text().into_bytes()),
        kind::BYTES => Scalar::Bytes(word.to_le_bytes().to_vec()),
        kind::FIXED32 | kind::SFIXED32 => Scalar::Fixed32(word as u32),
        kind::FIXED64 | kind::SFIXED64 => Scalar::Fixed64(word),
        kind::INT32 => Scalar::Varint(i64::from(word as i32).cast_unsigned()),
        kind::UINT32 | kind::SINT32 => Scalar::Varint(u64::from(word as u32)),
        kind::ENUM => {
            let numbers: Vec<i32> =
                field.enumeration().into_iter().flat_map(|e| e.values()).map(|(_, number)| number).collect();
            let number = numbers.get((word % numbers.len().max(1) as u64) as usize).copied().unwrap_or_default();
            Scalar::Varint(i64::from(number).cast_unsigned())
        }
        _ => Scalar::Varint(word),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn json_and_back_is_the_same_message(
        which in 0..TYPES.len(),
        words in proptest::collection::vec(any::<u64>(), 0..2_000),
        names in prop_oneof![Just(Names::Proto), Just(Names::Camel)],
    ) {
        let message_type = Message::named(TYPES[which]).unwrap();
        let bytes = message(message_type, &mut Choices { words: words.into_iter() }, 0);
        let view = JsonView::new(message_type, &bytes, JsonStyle::from(names)).unwrap();
        let json = serde_json::to_value(&view).unwrap();
        let again = read(message_type, &json, ParseOptions::default()).map_err(|e| e.to_string());
        prop_assert_eq!(again.map(|parsed| parsed.message), Ok(bytes), "{}", json);
    }

    #[test]
    fn durations_and_times_survive_their_text(seconds in 0_i64..200_000_000_000, nanos in 0_i32..1_000_000_000) {
        let text = serde_json::Value::from(time::format_duration(-seconds, -nanos));
        prop_assert_eq!(time::parse_duration(&text), Some((-seconds, -nanos)));
        let text = time::format_timestamp(seconds, nanos);
        prop_assert_eq!(time::parse_timestamp(&text), Some((seconds, nanos)));
    }

    #[test]
    fn no_bytes_make_a_dump_panic(which in 0..TYPES.len(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(view) = JsonView::new(Message::named(TYPES[which]).unwrap(), &bytes, JsonStyle::default()) {
            prop_assert!(serde_json::to_value(&view).is_ok());
        }
    }
}
