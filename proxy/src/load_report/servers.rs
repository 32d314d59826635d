//! Which servers take load reports.
//!
//! Owns what the bootstrap says about them. Never connects.

use std::collections::HashSet;
use std::sync::Arc;

use outrigger_config::bootstrap::Bootstrap;
use outrigger_config::cluster::{Cluster, LoadReports};
use outrigger_config::source::{ApiSource, GrpcService, SourceKind};

/// The servers that the bootstrap knows.
#[derive(Debug, Default)]
pub struct LoadServers {
    /// Hears of all clusters.
    all: Option<Arc<ApiSource>>,
    ads: Option<Arc<ApiSource>>,
    /// Where discovered clusters come from.
    clusters: Option<Arc<ApiSource>>,
    statics: HashSet<Arc<str>>,
}

impl LoadServers {
    /// Those of a bootstrap.
    pub fn new(bootstrap: &Bootstrap) -> Self {
        let ads = bootstrap.ads.clone();
        let clusters = match bootstrap.cds.as_ref().map(|source| &source.kind) {
            Some(SourceKind::Ads) => ads.clone(),
            Some(SourceKind::Api(api)) => Some(Arc::clone(api)),
            Some(SourceKind::File(_)) | None => None,
        };
        let statics = bootstrap.clusters.iter().map(|cluster| Arc::clone(&cluster.name)).collect();
        Self { all: bootstrap.load_reports.clone(), ads, clusters, statics }
    }

    /// The server that hears of all clusters.
    pub fn of_all(&self) -> Option<&GrpcService> {
        self.all.as_ref()?.services.first()
    }

    /// The server that hears of this cluster because the cluster says so; `None` if it says nothing, or there is no such
    /// server.
    pub fn of<'a>(&'a self, cluster: &'a Cluster) -> Option<&'a GrpcService> {
        let source = match cluster.load_reports.as_ref()? {
            LoadReports::SameServer if self.statics.contains(&cluster.name) => self.ads.as_ref(),
            LoadReports::SameServer => self.clusters.as_ref(),
            LoadReports::Ads => self.ads.as_ref(),
            LoadReports::Api(api) => Some(api),
        };
        source?.services.first()
    }

    /// Refuses a cluster that names a server that is not there.
    pub fn check(&self, cluster: &Cluster) -> Result<(), String> {
        match &cluster.load_reports {
            Some(wanted) if self.of(cluster).is_none() => {
                let needed = match wanted {
                    LoadReports::SameServer if !self.statics.contains(&cluster.name) => "a cluster from a server",
                    _ => "dynamic_resources.ads_config in the bootstrap",
                };
                Err(format!("lrs_server: needs {needed}"))
            }
            _ => Ok(()),
        }
    }
}
