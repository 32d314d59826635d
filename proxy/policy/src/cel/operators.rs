//! What operators and functions make of values.
//!
//! Owns the types that each takes. Joining texts and lists is off, as in Envoy.

use std::cmp::Ordering;

use outrigger_config::cel::{Binary, Function, MAX_REGEX_BYTES};

use super::evaluate::{Attributes, Error};
use super::time;
use super::value::Value;

/// `-a`
pub(super) fn negate(value: Value<'_>) -> Result<Value<'_>, Error> {
    match value {
        Value::Int(number) => number.checked_neg().map(Value::Int).ok_or(OVERFLOW),
        Value::Double(number) => Ok(Value::Double(-number)),
        other => Err(Error::NoOverload("-", other.type_name())),
    }
}

const OVERFLOW: Error = Error::OutOfRange("the result is too large");

/// An operator with two operands.
pub(super) fn binary<'a>(
    operator: Binary,
    left: Value<'a>,
    right: Value<'a>,
    attributes: &dyn Attributes,
) -> Result<Value<'a>, Error> {
    let ordered = |name: &'static str, fits: fn(Ordering) -> bool| {
        let order = left.order(&right).ok_or(Error::NoOverload(name, left.type_name()))?;
        Ok(Value::Bool(fits(order)))
    };
    match operator {
        Binary::Equal => Ok(Value::Bool(left.is(&right))),
        Binary::NotEqual => Ok(Value::Bool(!left.is(&right))),
        Binary::Less => ordered("<", Ordering::is_lt),
        Binary::LessOrEqual => ordered("<=", Ordering::is_le),
        Binary::Greater => ordered(">", Ordering::is_gt),
        Binary::GreaterOrEqual => ordered(">=", Ordering::is_ge),
        Binary::In => contained(&left, &right, attributes),
        Binary::Add | Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Remainder => {
            calculate(operator, &left, &right)
        }
    }
}

fn contained(key: &Value<'_>, place: &Value<'_>, attributes: &dyn Attributes) -> Result<Value<'static>, Error> {
    match (key, place) {
        (Value::String(name), Value::Object(object)) => Ok(Value::Bool(attributes.field(*object, name).is_some())),
        (key, Value::List(items)) => Ok(Value::Bool(items.iter().any(|item| item.is(key)))),
        (key, Value::Map(entries)) => Ok(Value::Bool(entries.iter().any(|(known, _)| known.is(key)))),
        (_, place) => Err(Error::NoOverload("in", place.type_name())),
    }
}

fn calculate(operator: Binary, left: &Value<'_>, right: &Value<'_>) -> Result<Value<'static>, Error> {
    let name = match operator {
        Binary::Add => "+",
        Binary::Subtract => "-",
        Binary::Multiply => "*",
        Binary::Divide => "/",
        _ => "%",
    };
    let by_zero = Error::OutOfRange("division by zero");
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => match operator {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            _ if *b == 0 => return Err(by_zero),
            Binary::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int)
        .ok_or(OVERFLOW),
        (Value::Uint(a), Value::Uint(b)) => match operator {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            _ if *b == 0 => return Err(by_zero),
            Binary::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint)
        .ok_or(OVERFLOW),
        (Value::Double(a), Value::Double(b)) => match operator {
            Binary::Add => Ok(Value::Double(a + b)),
            Binary::Subtract => Ok(Value::Double(a - b)),
            Binary::Multiply => Ok(Value::Double(a * b)),
            Binary::Divide => Ok(Value::Double(a / b)),
            _ => Err(Error::NoOverload(name, left.type_name())),
        },
        _ => calculate_time(operator, left, right).ok_or(Error::NoOverload(name, left.type_name()))?,
    }
}

/// `None` if these are not times that can be added or subtracted.
fn calculate_time(operator: Binary, left: &Value<'_>, right: &Value<'_>) -> Option<Result<Value<'static>, Error>> {
    use Value::{Duration, Timestamp};
    let value = match (operator, left, right) {
        (Binary::Add, Duration(a), Duration(b)) => Duration(a + b),
        (Binary::Subtract, Duration(a), Duration(b)) => Duration(a - b),
        (Binary::Add, Timestamp(a), Duration(b)) | (Binary::Add, Duration(b), Timestamp(a)) => Timestamp(a + b),
        (Binary::Subtract, Timestamp(a), Duration(b)) => Timestamp(a - b),
        (Binary::Subtract, Timestamp(a), Timestamp(b)) => Duration(a - b),
        _ => return None,
    };
    Some(time::checked(value).ok_or(OVERFLOW))
}

/// A function.
pub(super) fn call<'a>(
    function: &Function,
    arguments: Vec<Value<'a>>,
    attributes: &dyn Attributes,
) -> Result<Value<'a>, Error> {
    let mut arguments = arguments.into_iter();
    let first = arguments.next().unwrap_or(Value::Null);
    let second = arguments.next();
    let refuse = |name| Err(Error::NoOverload(name, first.type_name()));
    let range = || Error::OutOfRange("the number does not fit its type");
    match function {
        Function::Size => Ok(Value::Int(match &first {
            Value::String(text) => count(text.chars().count()),
            Value::Bytes(bytes) => count(bytes.len()),
            Value::List(items) => count(items.len()),
            Value::Map(entries) => count(entries.len()),
            Value::Object(object) => count(attributes.size(*object)),
            _ => return refuse("size"),
        })),
        Function::Contains => texts("contains", &first, second.as_ref(), |text, part| text.contains(part)),
        Function::StartsWith => texts("startsWith", &first, second.as_ref(), |text, part| text.starts_with(part)),
        Function::EndsWith => texts("endsWith", &first, second.as_ref(), |text, part| text.ends_with(part)),
        Function::Matches(Some(regex)) => match &first {
            Value::String(text) => Ok(Value::Bool(regex.is_match(text))),
            _ => refuse("matches"),
        },
        Function::Matches(None) => match (&first, second) {
            (Value::String(text), Some(Value::String(pattern))) => {
                let regex = regex::RegexBuilder::new(&pattern).size_limit(MAX_REGEX_BYTES).build();
                let regex = regex.map_err(|_| Error::OutOfRange("the pattern is not valid"))?;
                Ok(Value::Bool(regex.is_match(text)))
            }
            _ => refuse("matches"),
        },
        Function::Int => Ok(Value::Int(match &first {
            Value::Int(number) => *number,
            Value::Uint(number) => i64::try_from(*number).map_err(|_| range())?,
            Value::Double(number) if number.abs() < 9.3e18 => whole(*number).ok_or_else(range)?,
            Value::Double(_) => return Err(range()),
            Value::String(text) => text.parse().map_err(|_| range())?,
            Value::Timestamp(at) => i64::try_from(at.div_euclid(1_000_000_000)).map_err(|_| range())?,
            _ => return refuse("int"),
        })),
        Function::Uint => Ok(Value::Uint(match &first {
            Value::Uint(number) => *number,
            Value::Int(number) => u64::try_from(*number).map_err(|_| range())?,
            Value::Double(number) if (0.0..1.8e19).contains(number) => number.trunc() as u64,
            Value::Double(_) => return Err(range()),
            Value::String(text) => text.parse().map_err(|_| range())?,
            _ => return refuse("uint"),
        })),
        Function::Double => Ok(Value::Double(match &first {
            Value::Double(number) => *number,
            Value::Int(number) => *number as f64,
            Value::Uint(number) => *number as f64,
            Value::String(text) => text.parse().map_err(|_| range())?,
            _ => return refuse("double"),
        })),
        Function::Duration => match &first {
            Value::Duration(length) => Ok(Value::Duration(*length)),
            Value::String(text) => {
                time::duration(text).map(Value::Duration).ok_or(Error::OutOfRange("the text is no duration"))
            }
            _ => refuse("duration"),
        },
        Function::Timestamp => match &first {
            Value::Timestamp(at) => Ok(Value::Timestamp(*at)),
            Value::Int(seconds) => {
                time::checked(Value::Timestamp(i128::from(*seconds) * 1_000_000_000)).ok_or(OVERFLOW)
            }
            Value::String(text) => {
                time::timestamp(text).map(Value::Timestamp).ok_or(Error::OutOfRange("the text is no timestamp"))
            }
            _ => refuse("timestamp"),
        },
        Function::Type => Ok(Value::Type(first.type_name())),
        Function::Dyn => Ok(first),
        Function::Part(part) => {
            let zone = match &second {
                None => 0,
                Some(Value::String(zone)) => {
                    time::offset(zone).ok_or(Error::OutOfRange("the time zone is not an offset such as +02:00"))?
                }
                Some(_) => return refuse("time zone"),
            };
            time::part(*part, &first, zone).map(Value::Int).ok_or(Error::NoOverload("time part", first.type_name()))
        }
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn whole(number: f64) -> Option<i64> {
    // The bounds are powers of two, so they are exact.
    (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number).then(|| number.trunc() as i64)
}

fn texts(
    name: &'static str,
    text: &Value<'_>,
    part: Option<&Value<'_>>,
    fits: fn(&str, &str) -> bool,
) -> Result<Value<'static>, Error> {
    match (text, part) {
        (Value::String(text), Some(Value::String(part))) => Ok(Value::Bool(fits(text, part))),
        _ => Err(Error::NoOverload(name, text.type_name())),
    }
}
