//! Where and why a piece of configuration was refused.
//!
//! Owns the borrowed field path and the [`Rejection`] that travels back in a NACK or to a terminal.
//! Never decides what is acceptable.

use std::fmt;

/// The place of a value inside a resource: a chain that borrows, so it costs nothing until something is wrong.
#[derive(Clone, Copy, Debug)]
pub enum FieldPath<'a> {
    /// The resource itself, such as `cluster "billing"`.
    Resource { kind: &'static str, name: &'a str },
    /// A named field of a message.
    Field(&'a FieldPath<'a>, &'static str),
    /// An element of a repeated field.
    Item(&'a FieldPath<'a>, usize),
    /// A value of a map field.
    Key(&'a FieldPath<'a>, &'a str),
}

impl<'a> FieldPath<'a> {
    /// The root of a path.
    pub fn resource(kind: &'static str, name: &'a str) -> Self {
        FieldPath::Resource { kind, name }
    }

    /// The path of a field of this message, by its proto name.
    pub fn field(&'a self, name: &'static str) -> FieldPath<'a> {
        FieldPath::Field(self, name)
    }

    /// The path of element `index` of this repeated field.
    pub fn item(&'a self, index: usize) -> FieldPath<'a> {
        FieldPath::Item(self, index)
    }

    /// The path of the entry `key` of this map.
    pub fn key(&'a self, key: &'a str) -> FieldPath<'a> {
        FieldPath::Key(self, key)
    }

    /// Refuses the value here: `reason` says the value and what was expected.
    pub fn reject(&self, reason: impl Into<String>) -> Rejection {
        Rejection { path: self.to_string(), reason: reason.into() }
    }

    /// Refuses a set field that would change behaviour and that outrigger does not implement.
    pub fn unsupported(&self) -> Rejection {
        self.reject("is not supported")
    }

    /// The path without the resource.
    pub(crate) fn place(&self) -> String {
        struct Place<'p>(&'p FieldPath<'p>);
        impl fmt::Display for Place<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write_segments(f)
            }
        }
        Place(self).to_string()
    }

    fn write_segments(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldPath::Resource { .. } => Ok(()),
            FieldPath::Field(parent, name) => {
                parent.write_segments(f)?;
                let first = matches!(parent, FieldPath::Resource { .. });
                write!(f, "{}{name}", if first { "" } else { "." })
            }
            FieldPath::Item(parent, index) => {
                parent.write_segments(f)?;
                write!(f, "[{index}]")
            }
            FieldPath::Key(parent, key) => {
                parent.write_segments(f)?;
                write!(f, "[{key:?}]")
            }
        }
    }

    pub(crate) fn root(&self) -> (&'static str, &'a str) {
        match self {
            FieldPath::Resource { kind, name } => (kind, name),
            FieldPath::Field(parent, _) | FieldPath::Item(parent, _) | FieldPath::Key(parent, _) => parent.root(),
        }
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = self.root();
        match self {
            FieldPath::Resource { .. } => write!(f, "{kind} {name:?}"),
            _ => {
                write!(f, "{kind} {name:?}: ")?;
                self.write_segments(f)
            }
        }
    }
}

/// One refused value. Displays as `cluster "billing": connect_timeout: 0s must be above zero`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Rejection {
    /// The resource and the field path.
    pub path: String,
    /// The value, and what was expected.
    pub reason: String,
}

/// The result of reading a piece of configuration.
pub type Parsed<T> = Result<T, Rejection>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_a_person_would_write_it() {
        let root = FieldPath::resource("endpoints", "billing");
        let (a, b);
        let list = {
            a = root.field("endpoints");
            b = a.item(2);
            b.field("lb_endpoints")
        };
        let item = list.item(0);
        let status = item.field("health_status");
        let rejection = status.reject("9 is not a known status");
        assert_eq!(
            rejection.to_string(),
            "endpoints \"billing\": endpoints[2].lb_endpoints[0].health_status: 9 is not a known status"
        );
    }
}
