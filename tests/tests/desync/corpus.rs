//! The table of requests: `corpus.txt` as cases.
//!
//! A line without indentation names a case; its fields follow, indented. `send` is what the client sends, with the
//! escapes of Rust; a second one goes on where the first ends. `want` is the verdict, `envoy` that of Envoy where it is
//! another one, and `why` the reason for that. `on` names a listener other than `plain`; `end: silence` says that the
//! client ends its side instead of sending a victim's request.

/// What the client does behind the bytes of a case.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum End {
    /// Sends a victim's request.
    #[default]
    Victim,
    /// Ends its side of the connection.
    Silence,
}

/// One case.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub name: String,
    pub on: String,
    pub send: Vec<u8>,
    pub end: End,
    pub want: String,
    pub envoy: Option<String>,
    pub why: String,
}

/// Reads the table.
///
/// # Panics
/// If it is not one.
pub fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let Some(field) = line.strip_prefix("  ") else {
            cases.push(Case { name: line.to_owned(), on: "plain".to_owned(), ..Case::default() });
            continue;
        };
        let (name, value) = field.split_once(':').unwrap_or_else(|| panic!("no field: {line}"));
        let value = value.trim();
        let case = cases.last_mut().unwrap_or_else(|| panic!("a field without a case: {line}"));
        match name {
            "on" => case.on = value.to_owned(),
            "end" => case.end = if value == "silence" { End::Silence } else { End::Victim },
            "send" => case.send.extend(unescaped(value)),
            "want" => case.want = value.to_owned(),
            "envoy" => case.envoy = Some(value.to_owned()),
            "why" => case.why = value.to_owned(),
            _ => panic!("no such field: {line}"),
        }
    }
    for case in &cases {
        assert_eq!(
            case.envoy.is_some(),
            !case.why.is_empty(),
            "{}: a difference and its reason go together",
            case.name
        );
    }
    cases
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut found = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            found.push(byte);
            continue;
        }
        let escaped = bytes.next().expect("something is escaped");
        found.push(match escaped {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'x' => {
                let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.expect("two digits")));
                u8::from_str_radix(&String::from_iter(digits), 16).expect("two digits")
            }
            other => other,
        });
    }
    found
}
