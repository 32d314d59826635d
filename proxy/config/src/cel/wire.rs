//! Trees of `google.api.expr.v1alpha1` and `cel.expr`, which control planes parse or check themselves.
//!
//! Owns the translation. Never trusts that a tree was checked.

use outrigger_api::pb::google::api::expr::v1alpha1 as pb;
use outrigger_api::pb::xds::r#type::v3 as xds;
use pb::constant::ConstantKind;
use pb::expr::ExprKind;
use prost::Message;

use super::{Binary, Expression, Literal, MAX_DEPTH, Node, call};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Reads a parsed expression.
pub(crate) fn parsed(at: &FieldPath<'_>, wire: pb::Expr) -> Parsed<Expression> {
    node(wire, 0).map(|root| Expression { root }).map_err(|why| at.reject(why))
}

/// Reads a checked expression; its types are found anew when it is evaluated.
pub(crate) fn checked(at: &FieldPath<'_>, wire: pb::CheckedExpr) -> Parsed<Expression> {
    decide!(wire, at, pb::CheckedExpr as "google.api.expr.v1alpha1.CheckedExpr" {
        implemented: expr;
        no_effect: reference_map = "there is one scope", type_map = "types are found when it is evaluated",
            source_info = "positions in a text that is not here", expr_version = "versions are told apart by what they use";
        unsupported: ;
    });
    match expr {
        Some(expr) => parsed(&at.field("expr"), expr),
        None => Err(at.field("expr").reject("is required")),
    }
}

/// Reads an expression in any of its forms; the newest that is given counts.
pub(crate) fn expression(at: &FieldPath<'_>, wire: xds::CelExpression) -> Parsed<Expression> {
    use xds::cel_expression::ExprSpecifier;
    decide!(wire, at, xds::CelExpression as "xds.type.v3.CelExpression" {
        implemented: expr_specifier, cel_expr_parsed, cel_expr_checked, cel_expr_string;
        no_effect: ;
        unsupported: ;
    });
    if !cel_expr_string.is_empty() {
        return Expression::parse(&cel_expr_string).map_err(|why| at.field("cel_expr_string").reject(why));
    }
    if let Some(wire) = cel_expr_checked {
        return checked(&at.field("cel_expr_checked"), older(&at.field("cel_expr_checked"), &wire)?);
    }
    if let Some(wire) = cel_expr_parsed {
        return tree(&at.field("cel_expr_parsed"), older(&at.field("cel_expr_parsed"), &wire)?);
    }
    match expr_specifier {
        Some(ExprSpecifier::CheckedExpr(wire)) => checked(&at.field("checked_expr"), wire),
        Some(ExprSpecifier::ParsedExpr(wire)) => tree(&at.field("parsed_expr"), wire),
        None => Err(at.reject("has no expression")),
    }
}

fn tree(at: &FieldPath<'_>, wire: pb::ParsedExpr) -> Parsed<Expression> {
    // Positions in a text that is not here tell nothing.
    let pb::ParsedExpr { expr, source_info: _ } = wire;
    match expr {
        Some(expr) => parsed(&at.field("expr"), expr),
        None => Err(at.field("expr").reject("is required")),
    }
}

/// The messages of `cel.expr` are those of `google.api.expr.v1alpha1` under another name: their fields have the same numbers.
fn older<M: Message + Default>(at: &FieldPath<'_>, wire: &impl Message) -> Parsed<M> {
    M::decode(wire.encode_to_vec().as_slice()).map_err(|error| at.reject(error.to_string()))
}

fn node(wire: pb::Expr, depth: usize) -> Result<Node, String> {
    if depth > MAX_DEPTH {
        return Err(format!("nests deeper than {MAX_DEPTH}"));
    }
    let inner = |wire: Option<Box<pb::Expr>>| match wire {
        Some(wire) => node(*wire, depth + 1),
        None => Err("a part of the expression is missing".to_owned()),
    };
    let pb::Expr { id: _, expr_kind } = wire;
    match expr_kind {
        Some(ExprKind::ConstExpr(constant)) => literal(constant).map(Node::Literal),
        Some(ExprKind::IdentExpr(pb::expr::Ident { name })) => match name.trim_start_matches('.') {
            "" => Err("a name is empty".to_owned()),
            name => Ok(Node::Identifier(name.into())),
        },
        Some(ExprKind::SelectExpr(select)) => {
            let pb::expr::Select { operand, field, test_only } = *select;
            Ok(Node::Select { operand: Box::new(inner(operand)?), field: field.into(), test: test_only })
        }
        Some(ExprKind::CallExpr(wire)) => {
            let pb::expr::Call { target, function, args } = *wire;
            let is_method = target.is_some();
            let mut arguments = Vec::with_capacity(args.len() + 1);
            if is_method {
                arguments.push(inner(target)?);
            }
            for argument in args {
                arguments.push(node(argument, depth + 1)?);
            }
            function_or_operator(&function, is_method, arguments)
        }
        Some(ExprKind::ListExpr(pb::expr::CreateList { elements, optional_indices })) => {
            if !optional_indices.is_empty() {
                return Err("optional elements are not supported".to_owned());
            }
            elements.into_iter().map(|element| node(element, depth + 1)).collect::<Result<_, _>>().map(Node::List)
        }
        Some(ExprKind::StructExpr(pb::expr::CreateStruct { message_name, entries })) => {
            if !message_name.is_empty() {
                return Err(format!("making a message ({message_name}) is not supported"));
            }
            entries.into_iter().map(|entry| self::entry(entry, depth)).collect::<Result<_, _>>().map(Node::Map)
        }
        Some(ExprKind::ComprehensionExpr(_)) => Err("comprehensions are switched off".to_owned()),
        None => Err("a part of the expression is empty".to_owned()),
    }
}

fn entry(wire: pb::expr::create_struct::Entry, depth: usize) -> Result<(Node, Node), String> {
    use pb::expr::create_struct::entry::KeyKind;
    let pb::expr::create_struct::Entry { id: _, value, optional_entry, key_kind } = wire;
    match (key_kind, value) {
        (Some(KeyKind::MapKey(key)), Some(value)) if !optional_entry => {
            Ok((node(key, depth + 1)?, node(value, depth + 1)?))
        }
        _ => Err("an entry of a map needs a key and a value".to_owned()),
    }
}

fn literal(wire: pb::Constant) -> Result<Literal, String> {
    Ok(match wire.constant_kind {
        Some(ConstantKind::NullValue(_)) => Literal::Null,
        Some(ConstantKind::BoolValue(value)) => Literal::Bool(value),
        Some(ConstantKind::Int64Value(value)) => Literal::Int(value),
        Some(ConstantKind::Uint64Value(value)) => Literal::Uint(value),
        Some(ConstantKind::DoubleValue(value)) => Literal::Double(value),
        Some(ConstantKind::StringValue(value)) => Literal::String(value.into()),
        Some(ConstantKind::BytesValue(value)) => Literal::Bytes(value.into()),
        // Deprecated; parsers make calls of them.
        #[allow(deprecated)]
        Some(ConstantKind::DurationValue(_) | ConstantKind::TimestampValue(_)) => {
            return Err("durations and timestamps are written as duration('1s') and timestamp('...')".to_owned());
        }
        None => return Err("a constant is empty".to_owned()),
    })
}

/// Operators are functions with names that no text can have.
fn function_or_operator(name: &str, is_method: bool, mut arguments: Vec<Node>) -> Result<Node, String> {
    let binary = match name {
        "_==_" => Some(Binary::Equal),
        "_!=_" => Some(Binary::NotEqual),
        "_<_" => Some(Binary::Less),
        "_<=_" => Some(Binary::LessOrEqual),
        "_>_" => Some(Binary::Greater),
        "_>=_" => Some(Binary::GreaterOrEqual),
        "_+_" => Some(Binary::Add),
        "_-_" => Some(Binary::Subtract),
        "_*_" => Some(Binary::Multiply),
        "_/_" => Some(Binary::Divide),
        "_%_" => Some(Binary::Remainder),
        "@in" | "_in_" | "in" => Some(Binary::In),
        _ => None,
    };
    let takes = || format!("the operator {name} does not take so many operands");
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || binary.is_some() {
        if name == "_?_:_" {
            let three: Box<[Node; 3]> = arguments.try_into().map_err(|_| takes())?;
            return Ok(Node::Conditional(three));
        }
        if matches!(name, "!_" | "-_") {
            return match (arguments.pop(), arguments.is_empty()) {
                (Some(operand), true) if name == "!_" => Ok(Node::Not(Box::new(operand))),
                (Some(operand), true) => Ok(Node::Negate(Box::new(operand))),
                _ => Err(takes()),
            };
        }
        let operands: Box<[Node; 2]> = arguments.try_into().map_err(|_| takes())?;
        return match (name, binary) {
            (_, Some(operator)) => Ok(Node::Binary { operator, operands }),
            ("_&&_", _) => Ok(Node::And(operands)),
            ("_||_", _) => Ok(Node::Or(operands)),
            ("_[_]", _) => Ok(Node::Index(operands)),
            _ => Err(format!("there is no operator {name}")),
        };
    }
    call(name, is_method, arguments)
}
