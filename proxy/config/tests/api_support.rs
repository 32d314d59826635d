//! Keeps `docs/api-support.md` true: what it says is taken from the places where the API is read.
//!
//! `UPDATE_API_SUPPORT=1 cargo test -p outrigger-config --test api_support` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

#[test]
fn the_document_says_what_the_sources_decide() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&manifest.join("src"), &mut files);
    files.sort();
    let mut support = Support::default();
    for file in files {
        support.add(&fs::read_to_string(file).unwrap());
    }
    assert!(support.messages.len() > 50, "only {} messages were found", support.messages.len());
    let document = support.document();
    let path = manifest.join("../../docs/api-support.md");
    if std::env::var_os("UPDATE_API_SUPPORT").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &document).unwrap();
    }
    let on_disk = fs::read_to_string(&path).unwrap_or_default();
    if let Some(line) = first_difference(&on_disk, &document) {
        panic!(
            "docs/api-support.md differs from the sources in line {line}; write it anew with \
             UPDATE_API_SUPPORT=1 cargo test -p outrigger-config --test api_support"
        );
    }
}

#[test]
fn a_block_is_read_as_the_macro_reads_it() {
    let mut support = Support::default();
    support.add(
        r#"
fn read() {
    decide!(wire, at, pb::A as "envoy.a.v3.A" {
        implemented: one, r#type;
        no_effect: two = "told; in \
                          full"; // not this
        unsupported: three,
            four;
    });
    match r#type {
        "envoy.b.v3.B" => {}
        _ => return Err(at.field("five").unsupported()),
    }
    if one { return Err(at.field("one").unsupported()) }
}
fn other() { at.field("six").unsupported() }
#[cfg(test)]
mod tests { const IGNORED: &str = "envoy.c.v3.C"; }
"#,
    );
    let document = support.document();
    let section = &document[document.find("### envoy.a").unwrap()..];
    assert_eq!(
        section,
        "### envoy.a.v3.A\n\n- implemented: `one` (not every value), `type`\n- no effect: `two` (told; in full)\n\
         - rejected: `five`, `four`, `three`\n"
    );
    assert!(document.contains("- `envoy.b.v3.B`\n") && !document.contains("envoy.c.v3.C"));
}

/// What is decided about one field of a message.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Decision {
    Implemented,
    NoEffect(String),
    Rejected,
}

/// All that the sources decide.
#[derive(Default)]
struct Support {
    messages: BTreeMap<String, BTreeMap<String, BTreeSet<Decision>>>,
    extensions: BTreeSet<String>,
}

impl Support {
    fn add(&mut self, source: &str) {
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = without_comments(source);
        let head = Regex::new(r#"decide!\([^"{};]*?as\s+"([^"]+)"\s*\{"#).unwrap();
        let function = Regex::new(r"\n\s*(pub(\([a-z]+\))? )?(const )?fn ").unwrap();
        let variant = Regex::new(r#"\.field\("([a-z0-9_]+)"\)\s*\.unsupported\(\)"#).unwrap();
        for found in head.captures_iter(&code) {
            let message = self.messages.entry(found[1].to_owned()).or_default();
            let start = found.get(0).unwrap().end();
            let rest = &code[start..];
            let block = &rest[..unquoted(rest, '}').expect("a decide! block ends")];
            for (field, decision) in decisions(block) {
                message.entry(field).or_default().insert(decision);
            }
            // Variants of a oneof and single values are refused in the code that follows.
            let after = &rest[block.len()..];
            let end = function.find(after).map_or(after.len(), |next| next.start());
            let end = after[..end].find("decide!(").unwrap_or(end);
            for refused in variant.captures_iter(&after[..end]) {
                message.entry(refused[1].to_owned()).or_default().insert(Decision::Rejected);
            }
        }
        let named = Regex::new(r#"(as\s+)?"(?:type\.googleapis\.com/|/)?((?:[a-z0-9_]+\.)+v\d+\.[A-Z]\w*)""#).unwrap();
        for found in named.captures_iter(&code) {
            if found.get(1).is_none() {
                self.extensions.insert(found[2].to_owned());
            }
        }
    }

    fn document(&self) -> String {
        let mut text = String::from(INTRODUCTION);
        for name in &self.extensions {
            writeln!(text, "- `{name}`").unwrap();
        }
        text.push_str("\n## Messages\n");
        for (name, fields) in &self.messages {
            write!(text, "\n### {name}\n\n").unwrap();
            let mut lines: [Vec<String>; 3] = Default::default();
            for (field, decisions) in fields {
                let implemented = decisions.contains(&Decision::Implemented);
                let idle = decisions.iter().find_map(|decision| match decision {
                    Decision::NoEffect(reason) => Some(reason),
                    _ => None,
                });
                match (implemented, idle) {
                    (true, _) if decisions.len() > 1 => lines[0].push(format!("`{field}` (not every value)")),
                    (true, _) => lines[0].push(format!("`{field}`")),
                    (false, Some(reason)) => lines[1].push(format!("`{field}` ({reason})")),
                    (false, None) => lines[2].push(format!("`{field}`")),
                }
            }
            let titles = ["implemented", "no effect", "rejected"];
            for (title, fields) in titles.iter().zip(lines).filter(|(_, fields)| !fields.is_empty()) {
                writeln!(text, "- {title}: {}", fields.join(", ")).unwrap();
            }
            if fields.is_empty() {
                text.push_str("- has no fields\n");
            }
        }
        text
    }
}

/// The fields of the inside of a block.
fn decisions(block: &str) -> Vec<(String, Decision)> {
    let mut found = Vec::new();
    let fields = Regex::new(r#"(?:r#)?([a-z0-9_]+)(?:\s*=\s*"([^"]*)")?"#).unwrap();
    let wrapped = Regex::new(r"\\\n\s*").unwrap();
    let mut rest = block;
    while let Some(end) = unquoted(rest, ';').or_else(|| (!rest.trim().is_empty()).then_some(rest.len())) {
        let (kind, list) = rest[..end].split_once(':').expect("a kind of decision");
        for field in fields.captures_iter(list) {
            let decision = match kind.trim() {
                "implemented" => Decision::Implemented,
                "no_effect" => Decision::NoEffect(wrapped.replace_all(&field[2], "").into_owned()),
                "unsupported" => Decision::Rejected,
                other => panic!("{other:?} is not a kind of decision"),
            };
            found.push((field[1].to_owned(), decision));
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    found
}

/// The first `wanted` that is not inside a string.
fn unquoted(text: &str, wanted: char) -> Option<usize> {
    let mut inside = false;
    text.char_indices().find_map(|(index, character)| {
        inside ^= character == '"';
        (character == wanted && !inside).then_some(index)
    })
}

fn without_comments(source: &str) -> String {
    let comment = Regex::new(r"(?m)(^|[ ;,{])\s*//.*$").unwrap();
    comment.replace_all(source, "$1").into_owned()
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|kind| kind == "rs")
            && !path.ends_with("tests.rs")
            && !path.ends_with("decide.rs")
        {
            files.push(path);
        }
    }
}

/// The number of the first line that differs.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    let (mut a, mut b) = (a.split('\n'), b.split('\n'));
    (1..).find_map(|number| match (a.next(), b.next()) {
        (None, None) => Some(None),
        (a, b) if a == b => None,
        _ => Some(Some(number)),
    })?
}

const INTRODUCTION: &str = "\
# What is supported of the Envoy API

This file is written by a test from the code that reads the API, so it cannot fall behind. To write it anew:
`UPDATE_API_SUPPORT=1 cargo test -p outrigger-config --test api_support`.

Each field of a message that is read at all is one of these:

- **implemented**: it does what Envoy's documentation says. \"Not every value\" means that some values are rejected.
- **no effect**: it may be set and changes nothing here, for the reason given.
- **rejected**: a resource that sets it is rejected, with the path of the field as the reason.

What is not listed, a message or an extension, is rejected where it would be needed. A oneof stands under its own name;
those of its members that are rejected are listed by theirs.

## Extensions

These types are known where the API takes an extension, directly or inside a `TypedStruct`:

";
