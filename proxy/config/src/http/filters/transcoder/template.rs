//! Templates of paths in `google.api.http` annotations, and the tree that they form.
//!
//! Owns the grammar of templates and which of two templates comes first. Never reads what a path binds (see
//! `outrigger_policy::transcoding`).

use std::collections::HashMap;

/// A template: `/v1/{name=shelves/*}/books:read`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PathTemplate {
    /// Each of them matches one segment, or, as `**`, any number.
    pub segments: Vec<Segment>,
    /// What follows the last colon; empty if there is none.
    pub verb: String,
    /// What is bound to fields of the request.
    pub variables: Vec<Variable>,
}

/// A part of a template between slashes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Segment {
    /// This text.
    Literal(Box<str>),
    /// `*`: any one segment.
    One,
    /// `**`: any number of segments.
    Any,
}

/// A part of a path that is bound to a field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Variable {
    /// Names of fields, the outermost first.
    pub field: Vec<Box<str>>,
    /// The first segment.
    pub start: usize,
    /// After the last segment.
    pub end: End,
}

/// Where a variable ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Before this segment.
    At(usize),
    /// So many segments before the end of the path.
    FromEnd(usize),
}

/// What is wrong with a template.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// It has to begin with a slash.
    #[error("must begin with \"/\"")]
    NoSlash,
    /// Nothing between two slashes.
    #[error("has an empty segment")]
    EmptySegment,
    /// A variable in a variable.
    #[error("has a variable inside of a variable")]
    Nested,
    /// A variable without a name, or without an end.
    #[error("has a variable without a name or without \"}}\"")]
    Variable,
    /// Nothing but text may follow `**`.
    #[error("has a wildcard after \"**\"")]
    AfterAny,
    /// Text where nothing is expected any more.
    #[error("has something after its end")]
    Rest,
}

impl PathTemplate {
    /// Reads a template. Source: `google/api/http.proto`, "Path template syntax".
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut reader = Reader { rest: text, template: Self::default(), open: None };
        if !reader.take('/') {
            return Err(TemplateError::NoSlash);
        }
        reader.segments()?;
        if reader.take(':') {
            reader.template.verb = reader.literal()?;
        }
        if !reader.rest.is_empty() {
            return Err(TemplateError::Rest);
        }
        reader.finish()
    }
}

struct Reader<'t> {
    rest: &'t str,
    template: PathTemplate,
    /// The variable that is being read, and whether it has `**`.
    open: Option<(Vec<Box<str>>, usize, bool)>,
}

impl Reader<'_> {
    fn take(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn segments(&mut self) -> Result<(), TemplateError> {
        loop {
            self.segment()?;
            if !self.take('/') {
                return Ok(());
            }
        }
    }

    fn segment(&mut self) -> Result<(), TemplateError> {
        if self.take('*') {
            let any = self.take('*');
            if let Some((_, _, has_any)) = &mut self.open {
                *has_any |= any;
            }
            self.template.segments.push(if any { Segment::Any } else { Segment::One });
            return Ok(());
        }
        if self.rest.starts_with('{') {
            return self.variable();
        }
        let literal = self.literal()?;
        self.template.segments.push(Segment::Literal(literal.into()));
        Ok(())
    }

    fn variable(&mut self) -> Result<(), TemplateError> {
        self.take('{');
        if self.open.is_some() {
            return Err(TemplateError::Nested);
        }
        let length = self.rest.find(['=', '}']).ok_or(TemplateError::Variable)?;
        let (path, rest) = self.rest.split_at(length);
        self.rest = rest;
        let field: Vec<Box<str>> = path.split('.').map(Box::from).collect();
        if field.iter().any(|name| name.is_empty()) {
            return Err(TemplateError::Variable);
        }
        let start = self.template.segments.len();
        self.open = Some((field, start, false));
        if self.take('=') {
            self.segments()?;
        } else {
            self.template.segments.push(Segment::One);
        }
        if !self.take('}') {
            return Err(TemplateError::Variable);
        }
        if let Some((field, start, has_any)) = self.open.take() {
            let end = self.template.segments.len();
            let end = if has_any { End::FromEnd(end) } else { End::At(end) };
            self.template.variables.push(Variable { field, start, end });
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<String, TemplateError> {
        let length = self.rest.find(['/', ':', '}']).unwrap_or(self.rest.len());
        if length == 0 {
            return Err(TemplateError::EmptySegment);
        }
        let (literal, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(literal.to_owned())
    }

    fn finish(self) -> Result<PathTemplate, TemplateError> {
        let mut template = self.template;
        let count = template.segments.len();
        if let Some(any) = template.segments.iter().position(|segment| *segment == Segment::Any)
            && template.segments[any + 1..].iter().any(|segment| !matches!(segment, Segment::Literal(_)))
        {
            return Err(TemplateError::AfterAny);
        }
        for variable in &mut template.variables {
            if let End::FromEnd(end) = &mut variable.end {
                *end = count - *end;
            }
        }
        Ok(template)
    }
}

/// Templates by their segments; the leaves are places in a list.
#[derive(Clone, Debug, Default)]
pub struct PathTree {
    root: Node,
    verbs: Vec<Box<str>>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    children: HashMap<Segment, Node>,
    /// By method and verb.
    leaves: Vec<Leaf>,
}

#[derive(Clone, Debug)]
struct Leaf {
    method: Box<str>,
    verb: Box<str>,
    /// `None` if two templates say the same.
    place: Option<usize>,
}

impl PathTree {
    /// Adds a template for requests with `method`, or with any one if it is `*`.
    pub(super) fn insert(&mut self, method: &str, template: &PathTemplate, place: usize) {
        if !template.verb.is_empty() && !self.is_verb(&template.verb) {
            self.verbs.push(template.verb.as_str().into());
        }
        let mut node = &mut self.root;
        for segment in &template.segments {
            node = node.children.entry(segment.clone()).or_default();
        }
        match node.leaves.iter_mut().find(|leaf| leaf.is(method, &template.verb)) {
            // As in Envoy: nobody can tell which of them was meant.
            Some(leaf) => leaf.place = None,
            None => {
                let leaf = Leaf { method: method.into(), verb: template.verb.as_str().into(), place: Some(place) };
                node.leaves.push(leaf);
            }
        }
    }

    /// Whether some template ends with this verb.
    pub fn is_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| **known == *verb)
    }

    /// The template that matches a path best: text before wildcards, from left to right.
    pub fn find(&self, segments: &[&str], method: &str, verb: &str) -> Option<usize> {
        self.root.find(segments, method, verb, false)?
    }
}

impl Leaf {
    fn is(&self, method: &str, verb: &str) -> bool {
        *self.method == *method && *self.verb == *verb
    }
}

impl Node {
    fn leaf(&self, method: &str, verb: &str) -> Option<Option<usize>> {
        let own = self.leaves.iter().find(|leaf| leaf.is(method, verb));
        // A rule for any method has no verb.
        let any = || self.leaves.iter().find(|leaf| leaf.is("*", ""));
        own.or_else(any).map(|leaf| leaf.place)
    }

    /// `Some(None)` if what matches is ambiguous. In a node of `**`, `in_any` is true: it may take more segments.
    fn find(&self, segments: &[&str], method: &str, verb: &str, in_any: bool) -> Option<Option<usize>> {
        let Some((first, rest)) = segments.split_first() else {
            return self
                .leaf(method, verb)
                .or_else(|| self.children.get(&Segment::Any).and_then(|child| child.leaf(method, verb)));
        };
        let of = |segment: &Segment| {
            let child = self.children.get(segment)?;
            child.find(rest, method, verb, *segment == Segment::Any)
        };
        if let Some(found) = of(&Segment::Literal((*first).into())) {
            return Some(found);
        }
        if in_any {
            return self.find(rest, method, verb, true);
        }
        of(&Segment::One).or_else(|| of(&Segment::Any))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(templates: &[(&str, &str)]) -> PathTree {
        let mut tree = PathTree::default();
        for (place, (method, template)) in templates.iter().enumerate() {
            tree.insert(method, &PathTemplate::parse(template).unwrap(), place);
        }
        tree
    }

    fn find(tree: &PathTree, path: &str, method: &str, verb: &str) -> Option<usize> {
        tree.find(&path.split('/').skip(1).collect::<Vec<_>>(), method, verb)
    }

    #[test]
    fn variables_know_their_segments() {
        let template = PathTemplate::parse("/v1/{a.b=shelves/*}/{c}/{d=**}/end:do").unwrap();
        assert_eq!(template.segments.len(), 6);
        assert_eq!(template.verb, "do");
        let fields: Vec<_> = template.variables.iter().map(|variable| (variable.start, variable.end)).collect();
        assert_eq!(fields, [(1, End::At(3)), (3, End::At(4)), (4, End::FromEnd(1))]);
        assert_eq!(template.variables[0].field, ["a".into(), "b".into()]);
    }

    #[test]
    fn bad_templates_say_what_is_wrong() {
        for (text, error) in [
            ("", TemplateError::NoSlash),
            ("a", TemplateError::NoSlash),
            ("/", TemplateError::EmptySegment),
            ("/a//b", TemplateError::EmptySegment),
            ("/a:", TemplateError::EmptySegment),
            ("/{a={b}}", TemplateError::Nested),
            ("/{a", TemplateError::Variable),
            ("/{}", TemplateError::Variable),
            ("/{a..b}", TemplateError::Variable),
            ("/{a=b", TemplateError::Variable),
            ("/**/*", TemplateError::AfterAny),
            ("/**/{a}", TemplateError::AfterAny),
            ("/***", TemplateError::Rest),
            ("/a}", TemplateError::Rest),
            ("/a:b/c", TemplateError::Rest),
        ] {
            assert_eq!(PathTemplate::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn text_comes_before_wildcards() {
        let tree = tree(&[("GET", "/a/*"), ("GET", "/a/b"), ("GET", "/**"), ("GET", "/a/*/c"), ("*", "/x")]);
        assert_eq!(find(&tree, "/a/b", "GET", ""), Some(1));
        assert_eq!(find(&tree, "/a/z", "GET", ""), Some(0));
        assert_eq!(find(&tree, "/a/b/c", "GET", ""), Some(3));
        assert_eq!(find(&tree, "/q/r/s", "GET", ""), Some(2));
        assert_eq!(find(&tree, "/a/b", "POST", ""), None);
        assert_eq!(find(&tree, "/x", "POST", ""), Some(4));
    }

    #[test]
    fn text_after_any_number_of_segments_is_found() {
        let tree = tree(&[("GET", "/a/**/z"), ("GET", "/b/**")]);
        assert_eq!(find(&tree, "/a/1/2/3/z", "GET", ""), Some(0));
        assert_eq!(find(&tree, "/a/1/2/3", "GET", ""), None);
        assert_eq!(find(&tree, "/b", "GET", ""), Some(1));
        assert_eq!(find(&tree, "/b/1/2", "GET", ""), Some(1));
    }

    #[test]
    fn verbs_belong_to_methods_and_twins_match_nothing() {
        let tree = tree(&[("GET", "/a/*:read"), ("GET", "/a/*"), ("PUT", "/d"), ("PUT", "/d")]);
        assert!(tree.is_verb("read") && !tree.is_verb("write"));
        assert_eq!(find(&tree, "/a/b", "GET", "read"), Some(0));
        assert_eq!(find(&tree, "/a/b", "GET", ""), Some(1));
        assert_eq!(find(&tree, "/a/b", "GET", "write"), None);
        assert_eq!(find(&tree, "/d", "PUT", ""), None);
    }
}
