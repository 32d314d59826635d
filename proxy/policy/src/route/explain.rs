//! Why a request gets its route, and why it does not get those before it.
//!
//! Owns the account of a decision, for people. The decision itself is that of [`RouteTable::find`], by the same code; this
//! never decides anything.

use std::sync::Arc;

use outrigger_config::route::{Route, VirtualHost};

use super::matches::{self, Mismatch};
use super::{RequestView, RouteTable, RuntimeView};

/// A decision, and what speaks against the routes that were asked before.
#[derive(Debug)]
pub struct Explained<'a> {
    /// What domains were compared with.
    pub host: String,
    /// What routes were compared with.
    pub path: String,
    /// Chosen by the host, with its position; `None` if no domain takes the host.
    pub virtual_host: Option<(usize, &'a Arc<VirtualHost>)>,
    /// The first of its routes that matches, with its position.
    pub route: Option<(usize, &'a Arc<Route>)>,
    /// Routes in the order in which they were asked, those that came nearest if there are more than wanted.
    pub misses: Vec<Miss<'a>>,
    /// How many routes there are before the one that matches.
    pub asked: usize,
    /// A match tree says which routes are asked; they are these.
    pub by_tree: Option<&'a [usize]>,
}

/// A route that does not take the request.
#[derive(Clone, Copy, Debug)]
pub struct Miss<'a> {
    /// Its position in the virtual host.
    pub position: usize,
    /// The route.
    pub route: &'a Arc<Route>,
    /// The first of its conditions that does not hold.
    pub mismatch: Mismatch<'a>,
}

impl RouteTable {
    /// What [`Self::find`] decides for the same arguments, and why not otherwise. `wanted` misses are told at most.
    pub fn explain(
        &self,
        request: &impl RequestView,
        random: u64,
        runtime: &dyn RuntimeView,
        wanted: usize,
    ) -> Explained<'_> {
        let (host, (path, query)) = (self.matched_host(request), self.matched_path(request));
        let mut explained = Explained {
            host: host.to_owned(),
            path: path.to_owned(),
            virtual_host: None,
            route: None,
            misses: Vec::new(),
            asked: 0,
            by_tree: None,
        };
        let Some(index) = self.domains.find(host) else { return explained };
        let virtual_host = &self.configuration.virtual_hosts[index];
        let found = self.first_in(index, request, random, runtime);
        explained.virtual_host = Some((index, virtual_host));
        explained.route = found.map(|position| (position, &virtual_host.routes[position]));
        let miss = |position: usize| {
            let route = virtual_host.routes.get(position)?;
            let mismatch = matches::first_mismatch(&route.matches, request, path, query, random, runtime)?;
            Some(Miss { position, route, mismatch })
        };
        let misses: Vec<Miss<'_>> = match virtual_host.matcher.as_ref().map(|tree| request.find(tree)) {
            None => (0..found.unwrap_or(virtual_host.routes.len())).filter_map(miss).collect(),
            Some(led) => {
                let led: &[usize] = led.map_or(&[], |led| led);
                explained.by_tree = Some(led);
                led.iter().copied().take_while(|position| Some(*position) != found).filter_map(miss).collect()
            }
        };
        explained.asked = misses.len();
        explained.misses = nearest(misses, wanted);
        explained
    }
}

/// Those that fail late came nearer than those that fail by their path.
fn nearest(misses: Vec<Miss<'_>>, wanted: usize) -> Vec<Miss<'_>> {
    if misses.len() <= wanted {
        return misses;
    }
    let (far, near): (Vec<_>, Vec<_>) = misses.into_iter().partition(|miss| matches!(miss.mismatch, Mismatch::Path(_)));
    // Of those that are equally near, the last ones are the next to what was chosen.
    let near_from = near.len().saturating_sub(wanted);
    let far_from = far.len().saturating_sub(wanted.saturating_sub(near.len()));
    let mut kept: Vec<Miss<'_>> = near[near_from..].iter().chain(&far[far_from..]).copied().collect();
    kept.sort_by_key(|miss| miss.position);
    kept
}
