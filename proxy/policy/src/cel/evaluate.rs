//! Walking an expression.
//!
//! Owns the order of evaluation and how errors pass through `&&`, `||` and `?:`.

use outrigger_config::cel::{Expression, Literal, Node};

use super::operators::{binary, call, negate};
use super::value::{Object, Value};

/// Why there is no value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// No attribute has this name.
    #[error("there is no attribute {0}")]
    NoAttribute(String),
    /// A field or key is not there.
    #[error("there is no key {0}")]
    NoKey(String),
    /// An operator or function does not take values of these types.
    #[error("{0} does not take {1}")]
    NoOverload(&'static str, &'static str),
    /// A result is no value of its type.
    #[error("{0}")]
    OutOfRange(&'static str),
}

/// What expressions are about.
pub trait Attributes {
    /// The attribute with this name, such as `request`.
    fn root(&self, name: &str) -> Option<Value<'_>>;
    /// A field or key of an object; `None` if it is not there.
    fn field(&self, object: Object, name: &str) -> Option<Value<'_>>;
    /// How many entries an object with keys has.
    fn size(&self, object: Object) -> usize;
}

/// The value of an expression.
///
/// # Errors
/// As the language has it: an attribute is missing, types do not fit, a number is out of range.
pub fn evaluate<'a>(expression: &'a Expression, attributes: &'a dyn Attributes) -> Result<Value<'a>, Error> {
    value(&expression.root, attributes)
}

/// Whether an expression is true. Errors and values of other types are not.
pub fn holds(expression: &Expression, attributes: &dyn Attributes) -> bool {
    evaluate(expression, attributes) == Ok(Value::Bool(true))
}

fn value<'a>(node: &'a Node, attributes: &'a dyn Attributes) -> Result<Value<'a>, Error> {
    match node {
        Node::Literal(literal) => Ok(match literal {
            Literal::Null => Value::Null,
            Literal::Bool(flag) => Value::Bool(*flag),
            Literal::Int(number) => Value::Int(*number),
            Literal::Uint(number) => Value::Uint(*number),
            Literal::Double(number) => Value::Double(*number),
            Literal::String(text) => Value::text(&**text),
            Literal::Bytes(bytes) => Value::Bytes((&**bytes).into()),
        }),
        Node::Identifier(name) => match attributes.root(name) {
            Some(value) => Ok(value),
            None => type_named(name).map(Value::Type).ok_or_else(|| Error::NoAttribute(name.to_string())),
        },
        Node::Select { operand, field, test } => {
            let operand = value(operand, attributes)?;
            let found = member(&operand, &Value::text(&**field), attributes);
            match (test, found) {
                (true, Err(Error::NoKey(_))) => Ok(Value::Bool(false)),
                (true, found) => found.map(|_| Value::Bool(true)),
                (false, found) => found,
            }
        }
        Node::Index(operands) => {
            let [operand, key] = &**operands;
            member(&value(operand, attributes)?, &value(key, attributes)?, attributes)
        }
        Node::And(operands) => junction(operands, false, attributes),
        Node::Or(operands) => junction(operands, true, attributes),
        Node::Conditional(operands) => {
            let [condition, then, otherwise] = &**operands;
            match value(condition, attributes)? {
                Value::Bool(true) => value(then, attributes),
                Value::Bool(false) => value(otherwise, attributes),
                other => Err(Error::NoOverload("?:", other.type_name())),
            }
        }
        Node::Not(operand) => match value(operand, attributes)? {
            Value::Bool(flag) => Ok(Value::Bool(!flag)),
            other => Err(Error::NoOverload("!", other.type_name())),
        },
        Node::Negate(operand) => negate(value(operand, attributes)?),
        Node::Binary { operator, operands } => {
            let [left, right] = &**operands;
            binary(*operator, value(left, attributes)?, value(right, attributes)?, attributes)
        }
        Node::Call { function, arguments } => {
            let mut values = Vec::with_capacity(arguments.len());
            for argument in arguments {
                values.push(value(argument, attributes)?);
            }
            call(function, values, attributes)
        }
        Node::List(items) => {
            items.iter().map(|item| value(item, attributes)).collect::<Result<_, _>>().map(Value::List)
        }
        Node::Map(entries) => {
            let evaluated = entries.iter().map(|(key, item)| Ok((value(key, attributes)?, value(item, attributes)?)));
            evaluated.collect::<Result<_, Error>>().map(Value::Map)
        }
    }
}

/// `&&` and `||`: the value that decides wins over an error on the other side.
fn junction<'a>(operands: &'a [Node; 2], decides: bool, attributes: &'a dyn Attributes) -> Result<Value<'a>, Error> {
    let [left, right] = operands;
    let left = value(left, attributes);
    if left == Ok(Value::Bool(decides)) {
        return left;
    }
    let right = value(right, attributes);
    if right == Ok(Value::Bool(decides)) {
        return right;
    }
    for side in [left, right] {
        match side? {
            Value::Bool(_) => {}
            other => return Err(Error::NoOverload(if decides { "||" } else { "&&" }, other.type_name())),
        }
    }
    Ok(Value::Bool(!decides))
}

/// What is under a key or in a field.
fn member<'a>(operand: &Value<'a>, key: &Value<'_>, attributes: &'a dyn Attributes) -> Result<Value<'a>, Error> {
    match (operand, key) {
        (Value::Object(object), Value::String(name)) => {
            attributes.field(*object, name).ok_or_else(|| Error::NoKey(name.to_string()))
        }
        (Value::Map(entries), key) => {
            let found = entries.iter().find(|(known, _)| known.is(key));
            found.map(|(_, value)| value.clone()).ok_or_else(|| Error::NoKey(shown(key)))
        }
        (Value::List(items), Value::Int(index)) => {
            let item = usize::try_from(*index).ok().and_then(|index| items.get(index));
            item.cloned().ok_or(Error::OutOfRange("the index is beyond the list"))
        }
        (operand, _) => Err(Error::NoOverload("[]", operand.type_name())),
    }
}

fn shown(key: &Value<'_>) -> String {
    match key {
        Value::String(name) => name.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        other => other.type_name().to_owned(),
    }
}

fn type_named(name: &str) -> Option<&'static str> {
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"]
        .into_iter()
        .find(|known| *known == name)
}
