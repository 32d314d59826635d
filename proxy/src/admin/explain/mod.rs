//! `/explain`: what a described request would get now, and why it would not get something else.
//!
//! Owns the account. All decisions are those of the code that serves requests; nothing is decided here, and nothing is sent.

mod asked;
mod chain;
mod cluster;
mod route;
mod words;

use http::StatusCode;
use outrigger_config::route::ClusterChoice;

use super::context::AdminContext;
use super::request::Request;
use super::response::Response;
use super::tree::{Tree, tree};
use crate::graph::Application;
use crate::worker::GraphView;
use asked::Asked;
use chain::Found;

/// Tells of a request that the parameters describe.
pub(super) fn explain(context: &AdminContext, request: &Request) -> Response {
    let view = GraphView::new(context.process.graph.load());
    match account(&view, request) {
        Ok(account) => account.answer(request),
        Err(reason) => Response::text(StatusCode::BAD_REQUEST, reason + "\n"),
    }
}

fn account(view: &GraphView, request: &Request) -> Result<Tree, String> {
    let asked = Asked::read(request)?;
    let Found { listener, shown, chain } = chain::find(view, &asked)?;
    let mut members = vec![
        ("result", Tree::Nothing),
        ("generation", Tree::from(view.generation)),
        ("request", asked.shown()),
        ("listener", shown),
    ];
    let result = match chain {
        None => "the connection is closed: no filter chain takes it".to_owned(),
        Some(found) => {
            members.push(("filter_chain", found.shown));
            match &found.chain.application {
                Application::Missing => {
                    "the connection is closed: one of its filters has not been discovered".to_owned()
                }
                Application::OwnAnswer(_) => "the connection is answered here, and goes nowhere".to_owned(),
                Application::Tcp(node) => {
                    let target = &node.config.target.clusters;
                    let (clusters, result) = cluster::of_session(view, target);
                    members.push(("tcp_proxy", cluster::tcp_limits(node)));
                    members.push(("clusters", clusters));
                    result
                }
                Application::Http(node) => {
                    let account = route::account(view, &listener, &found.chain, node, &asked);
                    members.extend(account.members);
                    account.result
                }
            }
        }
    };
    members[0].1 = Tree::from(result);
    Ok(Tree::Members(members))
}

pub(super) use cluster::endpoint;

/// What a route takes, in words.
pub(super) fn path_in_words(route: &outrigger_config::route::Route) -> String {
    words::criteria(&route.matches)
}

/// What a route says of its cluster, in words.
fn choice_of(cluster: &ClusterChoice) -> String {
    match cluster {
        ClusterChoice::Cluster(name) => format!("cluster {name:?}"),
        ClusterChoice::Weighted(clusters) => format!("{} weighted clusters", clusters.len()),
        ClusterChoice::Header(name) => format!("the cluster that header {name:?} names"),
    }
}

/// A share in percent.
fn percent(part: u64, whole: u64) -> Tree {
    if whole == 0 {
        return Tree::Nothing;
    }
    Tree::Decimal((part as f64 * 10_000.0 / whole as f64).round() / 100.0)
}

/// What is shown of a limit on something.
fn limit(used: u32, limit: u32) -> Tree {
    tree! { "now": used, "limit": limit }
}
