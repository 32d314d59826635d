//! Texts and trees that are read, and mistakes that are explained.

use proptest::prelude::*;

use super::*;

fn why(text: &str) -> String {
    Expression::parse(text).unwrap_err().rsplit_once("expression: ").unwrap().1.to_owned()
}

#[test]
fn precedence_is_that_of_the_language() {
    for (one, other) in [
        ("a || b && c", "a || (b && c)"),
        ("!a.b == c", "(!(a.b)) == c"),
        ("1 + 2 * 3 - 4", "(1 + (2 * 3)) - 4"),
        ("a ? b : c ? d : e", "a ? b : (c ? d : e)"),
        ("x in y == true", "(x in y) == true"),
        ("-a.b", "-(a.b)"),
        ("a['b'].c(d)", "((a)['b']).c(d)".replace(".c(d)", ".contains(d)").as_str()),
    ] {
        let one = one.replace(".c(d)", ".contains(d)");
        assert_eq!(Expression::parse(&one), Expression::parse(other), "{one}");
    }
}

#[test]
fn literals_are_read() {
    for (text, literal) in [
        ("null", Literal::Null),
        ("-9223372036854775808", Literal::Int(i64::MIN)),
        ("0x1F", Literal::Int(31)),
        ("7u", Literal::Uint(7)),
        ("1e3", Literal::Double(1000.0)),
        (".5", Literal::Double(0.5)),
        (r#""a\n\u00e9""#, Literal::String("a\né".into())),
        (r"r'a\n'", Literal::String(r"a\n".into())),
        ("'''it's'''", Literal::String("it's".into())),
        (r"b'\xff\001'", Literal::Bytes([255, 1].into())),
    ] {
        assert_eq!(Expression::parse(text).unwrap().root, Node::Literal(literal), "{text}");
    }
    assert!(Expression::parse("[1, 2,]").is_ok() && Expression::parse("{'a': 1, 'b': [2]}").is_ok());
    assert!(Expression::parse("has(request.headers.x) // why").is_ok());
}

#[test]
fn mistakes_have_a_position() {
    for (text, expected) in [
        ("", "at character 1: expected something more"),
        ("a ==", "at character 5: expected something more"),
        ("a b", "at character 3: the expression should end here"),
        ("a = b", "at character 3: '=' has no meaning here"),
        ("'é", "at character 1: a string has no end"),
        ("(a", "at character 3: expected \")\""),
        ("a.foo()", "at character 3: there is no function foo"),
        ("a.exists(x, x)", "at character 3: exists is a comprehension, which are switched off"),
        ("string(1)", "at character 1: the conversion string() is switched off"),
        ("a.contains()", "at character 3: contains does not take 0 arguments"),
        ("has(a)", "at character 1: has() takes a field, such as has(request.headers.x)"),
        ("99999999999999999999", "at character 1: not a 64-bit number"),
        ("import", "at character 1: \"import\" is reserved"),
    ] {
        assert_eq!(why(text), expected, "{text}");
    }
    assert!(why("a.matches('(')").contains("the pattern \"(\" is not valid"));
    assert!(why(&"(".repeat(10_000)).contains("nests deeper than 64"));
    assert!(why(&"-".repeat(10_000)).contains("nests deeper than 64"));
    assert!(why(&"a.b".replace('b', &"b.".repeat(100))).contains("in a row"));
    assert!(Expression::parse(&vec!["a"; 5_000].join(" || ")).is_ok());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "([a-z]{1,3}|[0-9]|[-+*/%!<>=&|?:.,()\\[\\]{}'\" ]|\\PC){0,40}") {
        let _ = Expression::parse(&text);
    }
}
