//! A line of an event log: an object in JSON whose fields keep their order.
//!
//! Owns the form of times and nesting. Never knows which events there are.

use std::fmt::Write;
use std::time::SystemTime;

use serde_json::Value;

use crate::calendar::Moment;

/// An object that is being written.
pub struct EventLine(String);

impl EventLine {
    /// Without fields.
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    /// Adds a field.
    pub fn field(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.raw(name, &value.into().to_string())
    }

    /// Adds an object.
    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut EventLine)) -> &mut Self {
        let mut inner = EventLine::new();
        fill(&mut inner);
        inner.0.push('}');
        self.raw(name, &inner.0)
    }

    /// Adds a time, as protobuf's JSON has it: to the millisecond, and without a fraction when that is zero.
    pub fn time(&mut self, name: &str, time: SystemTime) -> &mut Self {
        let Moment { year, month, day, hour, minute, second, since_epoch, .. } = Moment::of(time);
        let mut text = format!("\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        let milliseconds = since_epoch.subsec_millis();
        if milliseconds > 0 {
            let _ = write!(text, ".{milliseconds:03}");
        }
        text.push_str("Z\"");
        self.raw(name, &text)
    }

    /// The line, with its end.
    pub fn finish(self) -> String {
        self.0 + "}\n"
    }

    fn raw(&mut self, name: &str, value: &str) -> &mut Self {
        let comma = if self.0.len() > 1 { "," } else { "" };
        let _ = write!(self.0, "{comma}{}:{value}", Value::from(name));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn fields_keep_their_order() {
        let mut line = EventLine::new();
        line.field("b", "x\"").field("a", 1).time("t", UNIX_EPOCH + Duration::from_millis(1_500));
        line.object("o", |inner| {
            inner.field("z", true).time("y", UNIX_EPOCH);
        });
        line.object("e", |_| {});
        let expected = "{\"b\":\"x\\\"\",\"a\":1,\"t\":\"1970-01-01T00:00:01.500Z\",\
                        \"o\":{\"z\":true,\"y\":\"1970-01-01T00:00:00Z\"},\"e\":{}}\n";
        assert_eq!(line.finish(), expected);
    }
}
