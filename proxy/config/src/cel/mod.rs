//! Expressions of the Common Expression Language, as far as Envoy evaluates it.
//!
//! Owns the syntax tree and how it is read, from text, from `google.api.expr.v1alpha1` and from
//! `cel.expr`. There are no comprehensions
//! (`all`, `exists`, `map`, ...), which Envoy switches off as well: the time an evaluation takes is bounded by the length of
//! the expression and of the values that it looks at. Never evaluates (see `outrigger_policy::cel`).

mod lexer;
mod parser;
mod wire;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(crate) use wire::{checked, expression, parsed};

/// A compiled expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    /// Its tree.
    pub root: Node,
}

/// A node of an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A value.
    Literal(Literal),
    /// A name, such as `request`.
    Identifier(Arc<str>),
    /// `operand.field`.
    Select {
        /// What has the field.
        operand: Box<Node>,
        /// Its name.
        field: Arc<str>,
        /// `has(operand.field)`: whether it is there.
        test: bool,
    },
    /// `operand[key]`.
    Index(Box<[Node; 2]>),
    /// `a && b`.
    And(Box<[Node; 2]>),
    /// `a || b`.
    Or(Box<[Node; 2]>),
    /// `condition ? a : b`.
    Conditional(Box<[Node; 3]>),
    /// `!a`.
    Not(Box<Node>),
    /// `-a`.
    Negate(Box<Node>),
    /// A comparison or calculation.
    Binary {
        /// Which.
        operator: Binary,
        /// Left and right.
        operands: Box<[Node; 2]>,
    },
    /// A call; the target of a method is the first argument.
    Call {
        /// Which.
        function: Function,
        /// As many as the function takes.
        arguments: Vec<Node>,
    },
    /// `[a, b]`.
    List(Vec<Node>),
    /// `{a: b}`.
    Map(Vec<(Node, Node)>),
}

/// A value that stands in an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `null`
    Null,
    /// `true`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `1.0`
    Double(f64),
    /// `'a'`
    String(Arc<str>),
    /// `b'a'`
    Bytes(Arc<[u8]>),
}

/// An operator with two operands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Binary {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Remainder,
    /// `in`
    In,
}

/// A function. Those that make something of other types than they take, and string extensions, are off unless Envoy's
/// configuration switches them on, which is refused here.
#[derive(Clone, Debug)]
pub enum Function {
    /// `size(x)`, `x.size()`
    Size,
    /// `a.contains(b)`
    Contains,
    /// `a.startsWith(b)`
    StartsWith,
    /// `a.endsWith(b)`
    EndsWith,
    /// `a.matches(regex)`; compiled where the pattern is a literal, as it nearly always is.
    Matches(Option<regex::Regex>),
    /// `int(x)`
    Int,
    /// `uint(x)`
    Uint,
    /// `double(x)`
    Double,
    /// `duration(x)`
    Duration,
    /// `timestamp(x)`
    Timestamp,
    /// `type(x)`
    Type,
    /// `dyn(x)`
    Dyn,
    /// A part of a timestamp or duration, such as `x.getHours()`.
    Part(TimePart),
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        use Function::{Matches, Part};
        match (self, other) {
            (Matches(a), Matches(b)) => a.as_ref().map(regex::Regex::as_str) == b.as_ref().map(regex::Regex::as_str),
            (Part(a), Part(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Source: the CEL specification, "Date/Time Functions".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimePart {
    /// `getFullYear`
    FullYear,
    /// `getMonth`, from 0
    Month,
    /// `getDayOfMonth`, from 0
    DayOfMonth,
    /// `getDate`, from 1
    Date,
    /// `getDayOfWeek`, from 0 for Sunday
    DayOfWeek,
    /// `getDayOfYear`, from 0
    DayOfYear,
    /// `getHours`
    Hours,
    /// `getMinutes`
    Minutes,
    /// `getSeconds`
    Seconds,
    /// `getMilliseconds`
    Milliseconds,
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong, with its position in characters from 1.
    pub fn parse(text: &str) -> Result<Self, String> {
        parser::parse(text).map(|root| Self { root })
    }
}

/// Makes a call. `arguments` begins with the target of a method.
///
/// # Errors
/// If there is no such function, or it takes another number of arguments.
fn call(name: &str, is_method: bool, arguments: Vec<Node>) -> Result<Node, String> {
    let count = arguments.len();
    let (function, expected) = match (name, is_method) {
        ("size", _) => (Function::Size, 1..=1),
        ("contains", true) => (Function::Contains, 2..=2),
        ("startsWith", true) => (Function::StartsWith, 2..=2),
        ("endsWith", true) => (Function::EndsWith, 2..=2),
        ("matches", _) => (Function::Matches(pattern(arguments.get(1))?), 2..=2),
        ("int", false) => (Function::Int, 1..=1),
        ("uint", false) => (Function::Uint, 1..=1),
        ("double", false) => (Function::Double, 1..=1),
        ("duration", false) => (Function::Duration, 1..=1),
        ("timestamp", false) => (Function::Timestamp, 1..=1),
        ("type", false) => (Function::Type, 1..=1),
        ("dyn", false) => (Function::Dyn, 1..=1),
        (name, true) => match time_part(name) {
            Some(part) => (Function::Part(part), 1..=2),
            None => return Err(unknown(name)),
        },
        _ => return Err(unknown(name)),
    };
    if !expected.contains(&count) {
        let given = if is_method { count.saturating_sub(1) } else { count };
        return Err(format!("{name} does not take {given} arguments"));
    }
    Ok(Node::Call { function, arguments })
}

fn unknown(name: &str) -> String {
    match name {
        "all" | "exists" | "exists_one" | "map" | "filter" => {
            format!("{name} is a comprehension, which are switched off")
        }
        "string" | "bytes" => format!("the conversion {name}() is switched off"),
        name => format!("there is no function {name}"),
    }
}

fn pattern(argument: Option<&Node>) -> Result<Option<regex::Regex>, String> {
    let Some(Node::Literal(Literal::String(pattern))) = argument else { return Ok(None) };
    let compiled = regex::RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build();
    compiled.map(Some).map_err(|error| format!("the pattern {pattern:?} is not valid: {error}"))
}

fn time_part(name: &str) -> Option<TimePart> {
    Some(match name {
        "getFullYear" => TimePart::FullYear,
        "getMonth" => TimePart::Month,
        "getDayOfMonth" => TimePart::DayOfMonth,
        "getDate" => TimePart::Date,
        "getDayOfWeek" => TimePart::DayOfWeek,
        "getDayOfYear" => TimePart::DayOfYear,
        "getHours" => TimePart::Hours,
        "getMinutes" => TimePart::Minutes,
        "getSeconds" => TimePart::Seconds,
        "getMilliseconds" => TimePart::Milliseconds,
        _ => return None,
    })
}

/// Memory of a compiled pattern.
pub const MAX_REGEX_BYTES: usize = 1024 * 1024;
/// How deep expressions may nest: reading and evaluating them goes as deep.
const MAX_DEPTH: usize = 64;
