//! Fields that are set and have no effect here, written down while resources are read.
//!
//! Owns the list while somebody wants it. Never judges a field: [`crate::decide`] says which have no effect, and why.

use std::cell::RefCell;

use crate::rejection::FieldPath;

/// A field of a resource that is accepted and changes nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NoEffect {
    /// What kind of resource it stands in, such as `cluster`.
    pub kind: &'static str,
    /// The name of that.
    pub name: String,
    /// The path of the field in it.
    pub path: String,
    /// Why it changes nothing.
    pub reason: &'static str,
}

/// Fields of one reading that are kept.
const MOST: usize = 1000;

thread_local! {
    static FOUND: RefCell<Option<Vec<NoEffect>>> = const { RefCell::new(None) };
}

/// Reads something with `read`, and tells which of the fields that were met have no effect. Only the current thread counts.
pub fn collecting<R>(read: impl FnOnce() -> R) -> (R, Vec<NoEffect>) {
    let before = FOUND.replace(Some(Vec::new()));
    let result = read();
    (result, FOUND.replace(before).unwrap_or_default())
}

/// Whether somebody wants to know.
pub(crate) fn is_wanted() -> bool {
    FOUND.with_borrow(Option::is_some)
}

/// A field that is set has no effect.
pub(crate) fn note(at: &FieldPath<'_>, reason: &'static str) {
    FOUND.with_borrow_mut(|found| {
        if let Some(found) = found.as_mut().filter(|found| found.len() < MOST) {
            let (kind, name) = at.root();
            let no_effect = NoEffect { kind, name: name.to_owned(), path: at.place().replace("r#", ""), reason };
            // Some messages are read twice.
            if !found.contains(&no_effect) {
                found.push(no_effect);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_of_only_while_somebody_wants_to_know() {
        let root = FieldPath::resource("cluster", "a");
        let at = root.field("x");
        note(&at.item(1), "nobody knows");
        let ((), found) = collecting(|| {
            note(&at.item(2), "because");
            note(&at.item(2), "because");
        });
        assert_eq!(found, [NoEffect { kind: "cluster", name: "a".into(), path: "x[2]".into(), reason: "because" }]);
        assert!(!is_wanted());
    }
}
