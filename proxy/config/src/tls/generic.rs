//! Secrets that filters use (`GenericSecret`), and how filters name them (`SdsSecretConfig`).
//!
//! Owns their content, which is never printed, and their names. Never waits for one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::context::sds;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{ConfigSource, SourceKind};
use crate::wire;

/// Source: `GenericSecret`.
#[derive(Clone, Default, PartialEq)]
pub struct GenericSecret {
    /// The secret; empty if there is none. Never printed.
    pub value: Vec<u8>,
    /// Secrets that belong together, by name. Never printed.
    pub values: BTreeMap<Box<str>, Vec<u8>>,
    /// Files these came from, to be watched.
    pub files: Vec<PathBuf>,
}

impl fmt::Debug for GenericSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenericSecret").field("files", &self.files).finish_non_exhaustive()
    }
}

impl GenericSecret {
    pub(super) fn read(context: &Context<'_>, at: &FieldPath<'_>, wire: tls::GenericSecret) -> Parsed<Self> {
        decide!(wire, at, tls::GenericSecret as "envoy.extensions.transport_sockets.tls.v3.GenericSecret" {
            implemented: secret, secrets;
            no_effect: ;
            unsupported: ;
        });
        let mut read = Self::default();
        if let Some(wire) = secret {
            let wire::Data { bytes, file } = wire::data_source(context, &at.field("secret"), wire)?;
            read.value = bytes;
            read.files.extend(file);
        }
        // In order, so that the same one is refused each time.
        let secrets: BTreeMap<_, _> = secrets.into_iter().collect();
        let map_at = at.field("secrets");
        for (name, wire) in secrets {
            let wire::Data { bytes, file } = wire::data_source(context, &map_at.key(&name), wire)?;
            read.values.insert(name.into(), bytes);
            read.files.extend(file);
        }
        Ok(read)
    }
}

/// A generic secret as a filter names it. Source: `SdsSecretConfig`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SecretRef {
    /// Its name.
    pub name: Arc<str>,
    /// Where it comes from; `None` for a static secret of the bootstrap.
    pub source: Option<ConfigSource>,
}

/// Where a secret stands among those that are known, however long its user waits for it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SecretPlace {
    /// Its name.
    pub name: Arc<str>,
    /// Where it comes from; `None` for a static secret of the bootstrap.
    pub source: Option<SourceKind>,
}

impl SecretRef {
    /// Reads a reference that has to be there.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: Option<tls::SdsSecretConfig>) -> Parsed<Self> {
        let Some(wire) = wire else { return Err(at.reject("is required")) };
        let (name, source) = sds(context, at, wire)?;
        Ok(Self { name, source })
    }

    /// Where it stands.
    pub fn place(&self) -> SecretPlace {
        let source = self.source.as_ref().map(|source| source.kind.clone());
        SecretPlace { name: Arc::clone(&self.name), source }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use outrigger_api::pb::envoy::config::core::v3 as core;
    use outrigger_api::pb::envoy::config::core::v3::data_source::Specifier;

    use super::*;
    use crate::context::Environment;

    struct OneFile;

    impl Environment for OneFile {
        fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
            if path == Path::new("/secret") { Ok(b"of a file".to_vec()) } else { Err(io::ErrorKind::NotFound.into()) }
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }
    }

    fn source(specifier: Specifier) -> core::DataSource {
        core::DataSource { specifier: Some(specifier), ..Default::default() }
    }

    fn read(wire: tls::GenericSecret) -> Result<GenericSecret, String> {
        let root = FieldPath::resource("secret", "s");
        GenericSecret::read(&Context::new(&OneFile), &root, wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn a_secret_is_read_from_wherever_it_is_and_never_printed() {
        let secret = Some(source(Specifier::Filename("/secret".into())));
        let inline = source(Specifier::InlineString("in place".into()));
        let read_well = read(tls::GenericSecret { secret, secrets: [("a".to_owned(), inline)].into() }).unwrap();
        assert_eq!(read_well.value, b"of a file");
        assert_eq!(read_well.values["a"], b"in place");
        assert_eq!(read_well.files, [PathBuf::from("/secret")]);
        let printed = format!("{read_well:?}");
        assert!(!printed.contains("of a file") && !printed.contains("in place"), "{printed}");
        assert!(read(tls::GenericSecret::default()).unwrap().value.is_empty());
    }

    #[test]
    fn a_source_that_cannot_be_read_is_named() {
        let missing = || source(Specifier::Filename("/missing".into()));
        let error = read(tls::GenericSecret { secret: Some(missing()), ..Default::default() }).unwrap_err();
        assert!(error.starts_with("secret \"s\": secret.filename: cannot read \"/missing\""), "{error}");
        let secrets = [("a".to_owned(), missing())].into();
        let error = read(tls::GenericSecret { secret: None, secrets }).unwrap_err();
        assert!(error.contains("secrets[\"a\"].filename") || error.contains("secrets.a.filename"), "{error}");
    }
}
