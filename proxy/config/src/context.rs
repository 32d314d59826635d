//! What reading a resource may ask of its surroundings.
//!
//! Owns the seam through which files, environment variables and decoded typed structs come in, and through which clusters
//! go out that stand in a resource unsaid. Never touches the system itself.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::path::Path;
use std::sync::Arc;

use outrigger_api::{NewerFields, Schema};

use crate::source::GoogleTarget;

/// Files and variables of the process.
pub trait Environment {
    /// The content of a file.
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// An environment variable.
    fn variable(&self, name: &str) -> Option<String>;
}

/// Passed through all parsing.
pub struct Context<'a> {
    environment: &'a dyn Environment,
    /// Decoding the schema costs memory, so it happens on first use and ends with the context.
    schema: OnceCell<Schema>,
    newer: NewerFields,
    local_cluster: Cell<bool>,
    google_targets: RefCell<Vec<Arc<GoogleTarget>>>,
}

impl<'a> Context<'a> {
    /// A context that reads through `environment`.
    pub fn new(environment: &'a dyn Environment) -> Self {
        Self {
            environment,
            schema: OnceCell::new(),
            newer: NewerFields::default(),
            local_cluster: Cell::new(false),
            google_targets: RefCell::default(),
        }
    }

    /// The same, with what the messages that are read say in fields that their types do not have.
    #[must_use]
    pub fn with_newer(mut self, newer: NewerFields) -> Self {
        self.newer = newer;
        self
    }

    /// Says whether there is a local cluster (`cluster_manager.local_cluster_name`).
    pub fn set_local_cluster(&self, exists: bool) {
        self.local_cluster.set(exists);
    }

    /// Whether there is a local cluster.
    pub fn has_local_cluster(&self) -> bool {
        self.local_cluster.get()
    }

    /// Keeps a cluster that what is read needs, and nobody has configured.
    pub(crate) fn add_google_target(&self, target: Arc<GoogleTarget>) {
        self.google_targets.borrow_mut().push(target);
    }

    /// The clusters of `google_grpc` targets that were met since the last time.
    pub fn take_google_targets(&self) -> Vec<Arc<GoogleTarget>> {
        self.google_targets.take()
    }

    /// What is said in such fields.
    pub fn newer(&self) -> &NewerFields {
        &self.newer
    }

    /// Files and variables.
    pub fn environment(&self) -> &'a dyn Environment {
        self.environment
    }

    /// The descriptors, decoded on first use.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(Schema::load)
    }
}

/// For tests: no files and no variables.
#[cfg(test)]
pub(crate) struct NoEnvironment;

#[cfg(test)]
impl Environment for NoEnvironment {
    fn read_file(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}
