//! A request while its tokens are looked at.
//!
//! Owns what was changed so far: later steps see what earlier ones did. The request itself stays as it is until all is
//! decided.

use std::sync::Arc;

use crate::request::{cookie, query_parameter, without_query_parameter};
use crate::route::RequestView;

/// What is to be done to a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Headers that have these values from now on, or are gone.
    pub headers: Vec<(Arc<str>, Vec<Vec<u8>>)>,
    /// A new path with query.
    pub path: Option<String>,
}

/// A request with changes.
pub(super) struct Changed<'r, R> {
    request: &'r R,
    pub changes: Changes,
}

impl<'r, R: RequestView> Changed<'r, R> {
    pub fn new(request: &'r R) -> Self {
        Self { request, changes: Changes::default() }
    }

    pub fn values(&self, name: &str) -> Vec<Vec<u8>> {
        match self.changes.headers.iter().find(|(changed, _)| **changed == *name) {
            Some((_, values)) => values.clone(),
            None => self.request.header(name).map(<[u8]>::to_vec).collect(),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self.changes.headers.iter().find(|(changed, _)| **changed == *name) {
            Some((_, values)) => !values.is_empty(),
            None => self.request.header(name).next().is_some(),
        }
    }

    pub fn remove(&mut self, name: &Arc<str>) {
        if self.has(name) {
            self.entry(name).clear();
        }
    }

    pub fn append(&mut self, name: &Arc<str>, value: Vec<u8>) {
        self.entry(name).push(value);
    }

    fn entry(&mut self, name: &Arc<str>) -> &mut Vec<Vec<u8>> {
        let known = self.changes.headers.iter().position(|(changed, _)| changed == name);
        let index = known.unwrap_or_else(|| {
            let values = self.request.header(name).map(<[u8]>::to_vec).collect();
            self.changes.headers.push((Arc::clone(name), values));
            self.changes.headers.len() - 1
        });
        &mut self.changes.headers[index].1
    }

    pub fn path(&self) -> &str {
        self.changes.path.as_deref().unwrap_or_else(|| self.request.path())
    }

    pub fn parameter(&self, name: &str) -> Option<Vec<u8>> {
        query_parameter(self.path(), name)
    }

    pub fn remove_parameter(&mut self, name: &str) {
        if let Some(path) = without_query_parameter(self.path(), name) {
            self.changes.path = Some(path);
        }
    }

    pub fn cookie(&self, name: &str) -> Option<Vec<u8>> {
        self.values("cookie").iter().find_map(|header| cookie(header, name).map(<[u8]>::to_vec))
    }
}
