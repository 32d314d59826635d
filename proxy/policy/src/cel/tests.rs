//! Expressions and their values.

use outrigger_config::cel::Expression;
use proptest::prelude::*;

use super::*;

/// A request with a path and one header.
struct Sample;

impl Attributes for Sample {
    fn root(&self, name: &str) -> Option<Value<'_>> {
        (name == "request").then_some(Value::Object(Object::Request))
    }

    fn field(&self, object: Object, name: &str) -> Option<Value<'_>> {
        match (object, name) {
            (Object::Request, "path") => Some(Value::text("/a/b?c")),
            (Object::Request, "size") => Some(Value::Int(7)),
            (Object::Request, "headers") => Some(Value::Object(Object::RequestHeaders)),
            (Object::RequestHeaders, "x") => Some(Value::text("1")),
            _ => None,
        }
    }

    fn size(&self, _: Object) -> usize {
        1
    }
}

fn value(text: &str) -> Result<Value<'static>, String> {
    let expression: &'static Expression = Box::leak(Box::new(Expression::parse(text).unwrap()));
    evaluate(expression, &Sample).map_err(|error| error.to_string())
}

#[test]
fn expressions_that_hold() {
    for text in [
        "request.path.startsWith('/a') && request.size == 7",
        "request.headers['x'] == '1' || request.headers['none'] == '2'",
        "request.headers['none'] == '2' || request.headers['x'] == '1'",
        "!(request.headers['none'] == '2' && false)",
        "has(request.headers.x) && !has(request.headers.y)",
        "'x' in request.headers && !('y' in request.headers)",
        "request.path.matches('^/a/[a-z]') && !request.path.matches('^b')",
        "request.path.contains('b?') && request.path.endsWith('c') && size(request.path) == 6",
        "1 < 2 && 1.5 >= 1 && 2u == 2 && 'a' < 'b' && b'a' != b'b' && 1 != '1'",
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && -7 % 3 == -1 && 0.5 * 2.0 == 1.0",
        "duration('1h30m') == duration('90m') && duration('1.5s') - duration('500ms') == duration('1s')",
        "timestamp('2023-08-26T12:39:00-07:00') == timestamp('2023-08-26T19:39:00Z')",
        "timestamp('2024-03-01T00:00:00.5Z').getDayOfYear() == 60 && timestamp(0).getDayOfWeek() == 4",
        "timestamp('2024-12-31T23:00:00Z').getFullYear('+02:00') == 2025",
        "duration('3730s').getMinutes() == 62 && timestamp(1).getMilliseconds() == 0",
        "[1, 2][1] == 2 && {'a': 1}['a'] == 1 && size([1, 2]) == 2 && [1, 2] == [1.0, 2u]",
        "int('12') == 12 && int(3.9) == 3 && uint(3) == 3u && double(1) == 1.0",
        "type(1) == int && type('') == type(request.path)",
        "true ? true : request.none",
        "1 in [2, 1.0] && !('a' in [1])",
    ] {
        assert_eq!(value(text), Ok(Value::Bool(true)), "{text}");
    }
}

#[test]
fn expressions_without_a_value() {
    for (text, expected) in [
        ("foo", "there is no attribute foo"),
        ("request.headers['none']", "there is no key none"),
        ("request.foo.bar", "there is no key foo"),
        ("request.path && true", "&& does not take string"),
        ("1 || false", "|| does not take int"),
        ("'a' + 'b'", "+ does not take string"),
        ("[1] + [2]", "+ does not take list"),
        ("1 in 1", "in does not take int"),
        ("1 + 1.0", "+ does not take int"),
        ("1 < 'a'", "< does not take int"),
        ("9223372036854775807 + 1", "the result is too large"),
        ("-9223372036854775808 / -1", "the result is too large"),
        ("1 / 0", "division by zero"),
        ("1u - 2u", "the result is too large"),
        ("uint(-1)", "the number does not fit its type"),
        ("int(1e30)", "the number does not fit its type"),
        ("[1][5]", "the index is beyond the list"),
        ("duration('1x')", "the text is no duration"),
        ("timestamp('2024-02-30T00:00:00Z')", "the text is no timestamp"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1h')", "the result is too large"),
        ("request.path.matches(request.headers['x'] == '1' ? '(' : 'a')", "the pattern is not valid"),
        ("timestamp(0).getHours('Europe/Berlin')", "the time zone is not an offset such as +02:00"),
    ] {
        assert_eq!(value(text), Err(expected.to_owned()), "{text}");
    }
    let expression = Expression::parse("request.size").unwrap();
    assert!(!holds(&expression, &Sample));
}

proptest! {
    #[test]
    fn whatever_can_be_read_can_be_evaluated(
        text in "((request|foo|1|2u|0|'a'|[.]path|[.]headers|[.]size[(][)]|size[(]|[)]|[-+*/%<!]|==|&&|[?:]|in|\\[|\\]| )){1,14}"
    ) {
        if let Ok(expression) = Expression::parse(&text) {
            let _ = evaluate(&expression, &Sample);
        }
    }

    #[test]
    fn any_text_is_a_time_or_none(text in "[-+0-9.:TZhmsun]{0,30}") {
        let _ = (super::time::duration(&text), super::time::timestamp(&text), super::time::offset(&text));
    }
}
