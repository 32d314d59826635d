//! Text to trees.
//!
//! Owns precedence. Never looks at the meaning of names, except of functions.

use super::lexer::{Fault, Token, tokens};
use super::{Binary, Literal, MAX_DEPTH, Node, call};

/// Reads an expression; errors tell the position in characters from 1.
pub(super) fn parse(text: &str) -> Result<Node, String> {
    let described = |(at, why): Fault| {
        let position = text.get(..at).map_or(at, |before| before.chars().count()) + 1;
        format!("{text:?} is not a valid expression: at character {position}: {why}")
    };
    let tokens = tokens(text).map_err(described)?;
    let mut parser = Parser { tokens, next: 0, end: text.len(), depth: 0 };
    let root = parser.expression().map_err(described)?;
    match parser.tokens.get(parser.next) {
        None => Ok(root),
        Some((at, _)) => Err(described((*at, "the expression should end here".to_owned()))),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    end: usize,
    depth: usize,
}

/// Operators by precedence, the weakest first.
const BINARY: [&[(&str, Binary)]; 3] = [
    &[
        ("==", Binary::Equal),
        ("!=", Binary::NotEqual),
        ("<", Binary::Less),
        ("<=", Binary::LessOrEqual),
        (">", Binary::Greater),
        (">=", Binary::GreaterOrEqual),
        ("in", Binary::In),
    ],
    &[("+", Binary::Add), ("-", Binary::Subtract)],
    &[("*", Binary::Multiply), ("/", Binary::Divide), ("%", Binary::Remainder)],
];

/// Names that mean something else in other languages. Source: the CEL specification, "Syntax".
const RESERVED: [&str; 19] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "in",
    "null",
];

impl Parser {
    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn fault<T>(&self, why: impl Into<String>) -> Result<T, Fault> {
        Err((self.at(), why.into()))
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let found = match self.tokens.get(self.next) {
            Some((_, Token::Sign(sign))) => *sign == wanted,
            Some((_, Token::Name(name))) => wanted == "in" && name == "in",
            _ => false,
        };
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, wanted: &str) -> Result<(), Fault> {
        if self.takes(wanted) { Ok(()) } else { self.fault(format!("expected {wanted:?}")) }
    }

    /// Everything that nests goes through here or through [`Self::unary`].
    fn expression(&mut self) -> Result<Node, Fault> {
        self.deeper()?;
        let condition = self.or()?;
        let node = if self.takes("?") {
            let then = self.or()?;
            self.expect(":")?;
            Node::Conditional(Box::new([condition, then, self.expression()?]))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn deeper(&mut self) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { self.fault(format!("nests deeper than {MAX_DEPTH}")) } else { Ok(()) }
    }

    fn or(&mut self) -> Result<Node, Fault> {
        let mut alternatives = vec![self.and()?];
        while self.takes("||") {
            alternatives.push(self.and()?);
        }
        Ok(balanced(alternatives, &|a, b| Node::Or(Box::new([a, b]))))
    }

    fn and(&mut self) -> Result<Node, Fault> {
        let mut conditions = vec![self.binary(0)?];
        while self.takes("&&") {
            conditions.push(self.binary(0)?);
        }
        Ok(balanced(conditions, &|a, b| Node::And(Box::new([a, b]))))
    }

    fn binary(&mut self, level: usize) -> Result<Node, Fault> {
        let Some(operators) = BINARY.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        let mut chained = 0;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.takes(sign)) {
            chained += 1;
            if chained > MAX_DEPTH {
                return self.fault(format!("more than {MAX_DEPTH} operators in a row"));
            }
            let right = self.binary(level + 1)?;
            left = Node::Binary { operator: *operator, operands: Box::new([left, right]) };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Node, Fault> {
        self.deeper()?;
        let node = if self.takes("!") {
            Node::Not(Box::new(self.unary()?))
        } else if self.takes("-") {
            self.negative()?
        } else {
            self.member()?
        };
        self.depth -= 1;
        Ok(node)
    }

    /// The smallest number has no positive counterpart, so the sign belongs to the literal.
    fn negative(&mut self) -> Result<Node, Fault> {
        let literal = match self.tokens.get(self.next) {
            Some((_, Token::Int(value))) => match 0i64.checked_sub_unsigned(*value) {
                Some(value) => Literal::Int(value),
                None => return self.fault("not a 64-bit number"),
            },
            Some((_, Token::Double(value))) => Literal::Double(-value),
            _ => return Ok(Node::Negate(Box::new(self.unary()?))),
        };
        self.next += 1;
        self.members(Node::Literal(literal))
    }

    fn member(&mut self) -> Result<Node, Fault> {
        let primary = self.primary()?;
        self.members(primary)
    }

    fn members(&mut self, mut node: Node) -> Result<Node, Fault> {
        let mut chained = 0;
        loop {
            chained += 1;
            if chained > MAX_DEPTH {
                return self.fault(format!("more than {MAX_DEPTH} fields and calls in a row"));
            }
            if self.takes(".") {
                let at = self.at();
                let name = self.name()?;
                if self.takes("(") {
                    let mut arguments = vec![node];
                    arguments.extend(self.list(")")?);
                    node = call(&name, true, arguments).map_err(|why| (at, why))?;
                } else {
                    node = Node::Select { operand: Box::new(node), field: name.into(), test: false };
                }
            } else if self.takes("[") {
                let key = self.expression()?;
                self.expect("]")?;
                node = Node::Index(Box::new([node, key]));
            } else {
                return Ok(node);
            }
        }
    }

    fn name(&mut self) -> Result<String, Fault> {
        match self.tokens.get(self.next) {
            Some((_, Token::Name(name))) => {
                let name = name.clone();
                self.next += 1;
                Ok(name)
            }
            _ => self.fault("expected a name"),
        }
    }

    fn primary(&mut self) -> Result<Node, Fault> {
        let at = self.at();
        let Some((_, token)) = self.tokens.get(self.next).cloned() else {
            return self.fault("expected something more");
        };
        let literal = match token {
            Token::Int(value) => match i64::try_from(value) {
                Ok(value) => Literal::Int(value),
                Err(_) => return self.fault("not a 64-bit number"),
            },
            Token::Uint(value) => Literal::Uint(value),
            Token::Double(value) => Literal::Double(value),
            Token::String(value) => Literal::String(value.into()),
            Token::Bytes(value) => Literal::Bytes(value.into()),
            Token::Name(name) => {
                self.next += 1;
                return self.named(at, name);
            }
            Token::Sign(_) => return self.nested(),
        };
        self.next += 1;
        Ok(Node::Literal(literal))
    }

    fn nested(&mut self) -> Result<Node, Fault> {
        if self.takes("(") {
            let inner = self.expression()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.takes("[") {
            return self.list("]").map(Node::List);
        }
        if self.takes("{") {
            return self.map();
        }
        if self.takes(".") {
            // A name of the outermost scope, which is the only one.
            let at = self.at();
            let name = self.name()?;
            return self.named(at, name);
        }
        self.fault("expected a value")
    }

    fn named(&mut self, at: usize, name: String) -> Result<Node, Fault> {
        let literal = match &*name {
            "true" => Literal::Bool(true),
            "false" => Literal::Bool(false),
            "null" => Literal::Null,
            reserved if RESERVED.contains(&reserved) => return Err((at, format!("{reserved:?} is reserved"))),
            _ if self.takes("(") => {
                let mut arguments = self.list(")")?;
                if name != "has" {
                    return call(&name, false, arguments).map_err(|why| (at, why));
                }
                return match (arguments.pop(), arguments.is_empty()) {
                    (Some(Node::Select { operand, field, test: false }), true) => {
                        Ok(Node::Select { operand, field, test: true })
                    }
                    _ => Err((at, "has() takes a field, such as has(request.headers.x)".to_owned())),
                };
            }
            _ => return Ok(Node::Identifier(name.into())),
        };
        Ok(Node::Literal(literal))
    }

    fn list(&mut self, close: &str) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        while !self.takes(close) {
            items.push(self.expression()?);
            if !self.takes(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(items)
    }

    fn map(&mut self) -> Result<Node, Fault> {
        let mut entries = Vec::new();
        while !self.takes("}") {
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?));
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Node::Map(entries))
    }
}

/// A tree that is as flat as can be: long chains of conditions must not make evaluation deep.
fn balanced(mut operands: Vec<Node>, join: &dyn Fn(Node, Node) -> Node) -> Node {
    while operands.len() > 1 {
        let mut joined = Vec::with_capacity(operands.len().div_ceil(2));
        let mut rest = operands.into_iter();
        while let Some(left) = rest.next() {
            joined.push(match rest.next() {
                Some(right) => join(left, right),
                None => left,
            });
        }
        operands = joined;
    }
    operands.pop().unwrap_or(Node::Literal(Literal::Null))
}
