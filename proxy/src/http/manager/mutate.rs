//! Header mutations (`HeaderValueOption` lists) applied to message heads.
//!
//! Owns the append actions. Never decides which mutations apply.

use outrigger_config::format::Format;
use outrigger_config::http::filters::Mutation;
use outrigger_config::http::{AppendAction, HeaderAddition, HeaderMutations};

use crate::http::headers::Headers;

/// A head whose headers can be mutated while its facts are looked at.
pub trait Mutable {
    /// The headers.
    fn headers(&mut self) -> &mut Headers;
    /// Evaluates a format against the head as it stands now.
    fn evaluate(&self, format: &Format, value: &mut Vec<u8>);
}

/// Applies mutations: removals first, then additions in order.
pub fn apply(mutations: &HeaderMutations, head: &mut impl Mutable) {
    for name in &mutations.remove {
        head.headers().remove_by_name(name);
    }
    for addition in &mutations.add {
        add(addition, head);
    }
}

/// Applies one addition.
pub fn add(addition: &HeaderAddition, head: &mut impl Mutable) {
    let mut evaluated = Vec::new();
    let value = match addition.value.as_literal() {
        Some(literal) => literal.as_bytes(),
        None => {
            head.evaluate(&addition.value, &mut evaluated);
            // What a format tells of (certificates, say) may hold anything; line ends would begin another header.
            evaluated
                .iter_mut()
                .filter(|byte| byte.is_ascii_control() && **byte != b'\t')
                .for_each(|byte| *byte = b'_');
            evaluated.as_slice()
        }
    };
    if value.is_empty() && !addition.keep_empty_value {
        return;
    }
    let headers = head.headers();
    let present = headers.get_by_name(&addition.name).is_some();
    match addition.action {
        AppendAction::AppendIfExistsOrAdd => headers.append(addition.name.as_bytes(), value),
        AppendAction::AddIfAbsent if !present => headers.append(addition.name.as_bytes(), value),
        AppendAction::OverwriteIfExistsOrAdd => headers.set_by_name(&addition.name, value),
        AppendAction::OverwriteIfExists if present => headers.set_by_name(&addition.name, value),
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
    }
}

/// Applies changes in their order.
pub fn change(mutations: &[Mutation], head: &mut impl Mutable) {
    for mutation in mutations {
        match mutation {
            Mutation::Add(addition) => add(addition, head),
            Mutation::Remove(name) => drop(head.headers().remove_by_name(name)),
            Mutation::RemoveMatching(matcher) => {
                head.headers().remove_where(|_, name, _| matcher.matches(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Head(Headers);

    impl Mutable for Head {
        fn headers(&mut self) -> &mut Headers {
            &mut self.0
        }

        fn evaluate(&self, _: &Format, _: &mut Vec<u8>) {}
    }

    #[test]
    fn each_append_action_does_what_it_says() {
        let after = |action, present: bool| {
            let mut head = Head(Headers::default());
            if present {
                head.0.append(b"x", b"old");
            }
            let addition =
                HeaderAddition { name: "x".into(), value: Format::literal("new"), action, keep_empty_value: false };
            apply(&HeaderMutations { remove: Vec::new(), add: vec![addition] }, &mut head);
            let values: Vec<_> =
                head.0.get_all_by_name("x").map(|value| String::from_utf8(value.to_vec()).unwrap()).collect();
            values.join(",")
        };
        assert_eq!(after(AppendAction::AppendIfExistsOrAdd, true), "old,new");
        assert_eq!(after(AppendAction::AppendIfExistsOrAdd, false), "new");
        assert_eq!(after(AppendAction::AddIfAbsent, true), "old");
        assert_eq!(after(AppendAction::AddIfAbsent, false), "new");
        assert_eq!(after(AppendAction::OverwriteIfExistsOrAdd, true), "new");
        assert_eq!(after(AppendAction::OverwriteIfExistsOrAdd, false), "new");
        assert_eq!(after(AppendAction::OverwriteIfExists, true), "new");
        assert_eq!(after(AppendAction::OverwriteIfExists, false), "");
    }
}
