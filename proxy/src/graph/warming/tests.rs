//! Tables and random sequences for the state machine.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_xds::{ResourceKind, SourceKey};
use proptest::prelude::*;

use super::holds::SHORT_HOLD;
use super::*;

type Sample = Warming<u32, u32, u32>;

fn need(kind: ResourceKind, name: &str) -> Need {
    Need::Resource { kind, source: SourceKey::Ads("cp".into()), name: name.into() }
}

fn eds(name: &str) -> Need {
    need(ResourceKind::ClusterLoadAssignment, name)
}

fn rds(name: &str) -> Need {
    need(ResourceKind::RouteConfiguration, name)
}

fn wait(needs: &[Need]) -> Vec<Requirement> {
    needs.iter().map(|need| Requirement { need: need.clone(), wait: true }).collect()
}

fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn all(warming: &mut Sample) -> Vec<Action> {
    all_at(warming, Instant::now())
}

fn all_at(warming: &mut Sample, now: Instant) -> Vec<Action> {
    let mut actions = Vec::new();
    loop {
        let more = warming.settle(now);
        if more.is_empty() {
            return actions;
        }
        actions.extend(more);
    }
}

fn started() -> Sample {
    let mut warming = Sample::new(false, false);
    all(&mut warming);
    assert_eq!(warming.phase(), Phase::Initialised);
    warming
}

#[test]
fn r59_listeners_begin_only_after_the_clusters_are_done() {
    let mut warming = Sample::new(true, true);
    warming.offer_cluster(&"xds".into(), 1, wait(&[]));
    let begun = all(&mut warming);
    assert_eq!(begun, [Action::ClusterActivated("xds".into()), Action::Begin(Phase::Clusters)]);
    warming.offer_cluster(&"a".into(), 1, wait(&[eds("a")]));
    warming.clusters_discovered();
    assert_eq!(all(&mut warming), [Action::Watch(eds("a"))]);
    warming.answered(&eds("a"));
    assert_eq!(all(&mut warming), [Action::ClusterActivated("a".into()), Action::Begin(Phase::Listeners)]);
    warming.offer_listener(&"l".into(), 1, wait(&[rds("r")]), names(&[]));
    warming.listeners_discovered();
    assert_eq!(all(&mut warming), [Action::Watch(rds("r"))]);
    warming.offer_routes(&rds("r"), 1, names(&["a"]), Vec::new());
    let done =
        [Action::RoutesActivated(rds("r")), Action::ListenerActivated("l".into()), Action::Begin(Phase::Initialised)];
    assert_eq!(all(&mut warming), done);
}

#[test]
fn r59_a_timeout_ends_the_wait_for_clusters() {
    let mut warming = Sample::new(true, false);
    assert_eq!(all(&mut warming), [Action::Begin(Phase::Clusters)]);
    warming.clusters_discovered();
    assert_eq!(all(&mut warming), [Action::Begin(Phase::Listeners), Action::Begin(Phase::Initialised)]);
}

#[test]
fn r60_an_updated_cluster_uses_the_endpoints_at_hand() {
    let mut warming = started();
    warming.offer_cluster(&"a".into(), 1, wait(&[eds("a")]));
    assert_eq!(all(&mut warming), [Action::Watch(eds("a"))]);
    warming.answered(&eds("a"));
    all(&mut warming);
    warming.offer_cluster(&"a".into(), 2, wait(&[eds("a")]));
    assert_eq!(all(&mut warming), [Action::ClusterActivated("a".into())]);
    assert_eq!(warming.cluster("a").unwrap().active(), Some(&2));
}

#[test]
fn r58_the_old_revision_serves_until_the_new_one_is_ready() {
    let mut warming = started();
    warming.offer_cluster(&"a".into(), 1, wait(&[]));
    all(&mut warming);
    warming.offer_cluster(&"a".into(), 2, wait(&[eds("new")]));
    all(&mut warming);
    let entry = warming.cluster("a").unwrap();
    assert_eq!((entry.active(), entry.warming(), entry.latest()), (Some(&1), Some(&2), Some(&2)));
    warming.offer_cluster(&"a".into(), 3, wait(&[eds("newer")]));
    assert_eq!(all(&mut warming), [Action::Watch(eds("newer")), Action::Unwatch(eds("new"))]);
    warming.answered(&eds("newer"));
    assert_eq!(all(&mut warming), [Action::ClusterActivated("a".into())]);
    assert_eq!(warming.cluster("a").unwrap().active(), Some(&3));
}

#[test]
fn r58_new_routes_wait_for_the_clusters_that_they_bring_along() {
    let mut warming = started();
    warming.offer_listener(&"l".into(), 1, wait(&[rds("r")]), names(&[]));
    all(&mut warming);
    warming.offer_routes(&rds("r"), 1, names(&["unknown"]), Vec::new());
    all(&mut warming);
    let start = Instant::now();
    warming.offer_cluster(&"b".into(), 1, wait(&[eds("b")]));
    warming.offer_routes(&rds("r"), 2, names(&["b", "unknown"]), Vec::new());
    assert_eq!(all_at(&mut warming, start), [Action::Watch(eds("b"))]);
    assert_eq!(warming.next_release(), Some(start + LONGEST_HOLD));
    assert_eq!(warming.routes_of(&rds("r")).unwrap().active(), Some(&1));
    warming.answered(&eds("b"));
    assert_eq!(all(&mut warming), [Action::ClusterActivated("b".into()), Action::RoutesActivated(rds("r"))]);
    assert_eq!(warming.next_release(), None);
}

#[test]
fn routes_do_not_wait_for_ever() {
    let mut warming = started();
    warming.offer_listener(&"l".into(), 1, wait(&[rds("r")]), names(&[]));
    warming.offer_routes(&rds("r"), 1, names(&[]), Vec::new());
    all(&mut warming);
    let start = Instant::now();
    warming.offer_cluster(&"c".into(), 1, wait(&[eds("c")]));
    warming.offer_routes(&rds("r"), 2, names(&["c"]), Vec::new());
    all_at(&mut warming, start);
    // Another update does not begin to wait from the start.
    let later = start + Duration::from_secs(10);
    warming.offer_routes(&rds("r"), 3, names(&["c"]), Vec::new());
    assert_eq!(all_at(&mut warming, later), []);
    assert_eq!(warming.next_release(), Some(start + LONGEST_HOLD));
    assert_eq!(all_at(&mut warming, start + LONGEST_HOLD), [Action::RoutesActivated(rds("r"))]);
    assert_eq!(warming.routes_of(&rds("r")).unwrap().active(), Some(&3));
    assert_eq!(warming.next_release(), None);
}

#[test]
fn routes_wait_a_little_for_clusters_of_which_nobody_has_heard() {
    let mut warming = started();
    warming.offer_listener(&"l".into(), 1, wait(&[rds("r")]), names(&[]));
    warming.offer_routes(&rds("r"), 1, names(&[]), Vec::new());
    all(&mut warming);
    let start = Instant::now();
    warming.offer_routes(&rds("r"), 2, names(&["late"]), Vec::new());
    assert_eq!(all_at(&mut warming, start), []);
    warming.offer_cluster(&"late".into(), 1, wait(&[]));
    assert_eq!(all(&mut warming), [Action::ClusterActivated("late".into()), Action::RoutesActivated(rds("r"))]);
    warming.offer_routes(&rds("r"), 3, names(&["never"]), Vec::new());
    assert_eq!(all_at(&mut warming, start), []);
    assert_eq!(all_at(&mut warming, start + SHORT_HOLD), [Action::RoutesActivated(rds("r"))]);
    // It is missed already: nothing gets worse.
    warming.offer_routes(&rds("r"), 4, names(&["never"]), Vec::new());
    assert_eq!(all_at(&mut warming, start), [Action::RoutesActivated(rds("r"))]);
}

#[test]
fn a_listener_waits_for_the_clusters_of_its_routes() {
    let mut warming = started();
    let start = Instant::now();
    warming.offer_cluster(&"c".into(), 1, wait(&[eds("c")]));
    warming.offer_listener(&"l".into(), 1, wait(&[rds("r")]), names(&[]));
    all_at(&mut warming, start);
    warming.offer_routes(&rds("r"), 1, names(&["c", "unknown"]), Vec::new());
    // The routes are there for whoever may use them, and the new listener is not there for long.
    assert_eq!(all_at(&mut warming, start), [Action::RoutesActivated(rds("r"))]);
    assert_eq!(warming.next_release(), Some(start + SHORT_HOLD));
    warming.answered(&eds("c"));
    let both = [Action::ClusterActivated("c".into()), Action::ListenerActivated("l".into())];
    assert_eq!(all_at(&mut warming, start), both);

    // An update that moves to other routes has time: the old ones serve.
    warming.offer_cluster(&"d".into(), 1, wait(&[eds("d")]));
    warming.offer_listener(&"l".into(), 2, wait(&[rds("other")]), names(&[]));
    warming.offer_routes(&rds("other"), 1, names(&["d"]), Vec::new());
    all_at(&mut warming, start);
    assert_eq!(warming.next_release(), Some(start + LONGEST_HOLD));
    assert_eq!(warming.listener("l").unwrap().active(), Some(&1));
    warming.answered(&eds("d"));
    assert!(all_at(&mut warming, start).contains(&Action::ListenerActivated("l".into())));
}

#[test]
fn what_is_given_up_and_wanted_again_at_once_is_not_asked_for_twice() {
    let mut warming = started();
    warming.offer_cluster(&"a".into(), 1, wait(&[eds("x")]));
    all(&mut warming);
    warming.answered(&eds("x"));
    all(&mut warming);
    warming.remove_cluster("a");
    warming.offer_cluster(&"b".into(), 1, wait(&[eds("x")]));
    assert_eq!(all(&mut warming), [Action::ClusterActivated("b".into())]);
    assert_eq!(warming.users(&eds("x")), [User::Cluster("b".into())]);
}

#[test]
fn a_filter_with_a_default_does_not_wait() {
    let mut warming = started();
    let extension = need(ResourceKind::ExtensionConfig, "f");
    let requirement = Requirement { need: extension.clone(), wait: false };
    warming.offer_listener(&"l".into(), 1, vec![requirement], names(&[]));
    assert_eq!(all(&mut warming), [Action::ListenerActivated("l".into()), Action::Watch(extension)]);
}

#[derive(Clone, Debug)]
enum Step {
    Cluster { name: usize, needs: Vec<usize> },
    Listener { name: usize, routes: Vec<usize>, clusters: Vec<usize> },
    Routes { name: usize, clusters: Vec<usize> },
    Answer(usize),
    RemoveCluster(usize),
    RemoveListener(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let few = || prop::collection::vec(0..4_usize, 0..3);
    prop_oneof![
        (0..4_usize, few()).prop_map(|(name, needs)| Step::Cluster { name, needs }),
        (0..4_usize, few(), few()).prop_map(|(name, routes, clusters)| Step::Listener { name, routes, clusters }),
        (0..4_usize, few()).prop_map(|(name, clusters)| Step::Routes { name, clusters }),
        (0..4_usize).prop_map(Step::Answer),
        (0..4_usize).prop_map(Step::RemoveCluster),
        (0..4_usize).prop_map(Step::RemoveListener),
    ]
}

fn text(kind: &str, number: usize) -> Arc<str> {
    format!("{kind}{number}").into()
}

/// What the caller of the core would know.
#[derive(Default)]
struct Model {
    /// How far the clock is ahead.
    ahead: Duration,
    watched: BTreeSet<Need>,
    answered: BTreeSet<Need>,
    clusters: BTreeMap<Arc<str>, (u32, Vec<Need>)>,
    listeners: BTreeMap<Arc<str>, (u32, Vec<Need>)>,
    latest_routes: BTreeMap<Need, u32>,
}

impl Model {
    fn carry_out(&mut self, warming: &mut Sample) {
        for action in all_at(warming, Instant::now() + self.ahead) {
            match action {
                Action::Watch(need) => assert!(self.watched.insert(need), "watched twice"),
                Action::Unwatch(need) => {
                    assert!(self.watched.remove(&need), "given up without a watch");
                    self.answered.remove(&need);
                    self.latest_routes.remove(&need);
                }
                Action::ClusterActivated(name) => {
                    let (revision, needs) = &self.clusters[&name];
                    assert_eq!(warming.cluster(&name).unwrap().active(), Some(revision));
                    assert!(needs.iter().all(|need| self.answered.contains(need)), "used before it was ready");
                }
                Action::ListenerActivated(name) => {
                    let (revision, needs) = &self.listeners[&name];
                    assert_eq!(warming.listener(&name).unwrap().active(), Some(revision));
                    assert!(needs.iter().all(|need| warming.routes_of(need).unwrap().active().is_some()));
                }
                Action::RoutesActivated(need) => {
                    // The last listener that used them may have moved on in the same breath.
                    if let Some(entry) = warming.routes_of(&need) {
                        assert_eq!(entry.active(), self.latest_routes.get(&need));
                    }
                }
                Action::Begin(_) => {}
            }
        }
    }

    fn take(&mut self, warming: &mut Sample, step: Step, revision: u32) {
        match step {
            Step::Cluster { name, needs } => {
                let needs: Vec<Need> = needs.into_iter().map(|number| eds(&text("e", number))).collect();
                warming.offer_cluster(&text("c", name), revision, wait(&needs));
                self.clusters.insert(text("c", name), (revision, needs));
            }
            Step::Listener { name, routes, clusters } => {
                let needs: Vec<Need> = routes.into_iter().map(|number| rds(&text("r", number))).collect();
                let clusters = clusters.into_iter().map(|number| text("c", number)).collect();
                warming.offer_listener(&text("l", name), revision, wait(&needs), clusters);
                self.listeners.insert(text("l", name), (revision, needs));
            }
            Step::Routes { name, clusters } => {
                let need = rds(&text("r", name));
                let clusters = clusters.into_iter().map(|number| text("c", number)).collect();
                warming.offer_routes(&need, revision, clusters, Vec::new());
                if self.watched.contains(&need) {
                    self.latest_routes.insert(need, revision);
                }
            }
            Step::Answer(number) => self.answer(warming, eds(&text("e", number))),
            Step::RemoveCluster(name) => {
                let known = self.clusters.remove(&text("c", name)).is_some();
                assert_eq!(warming.remove_cluster(&text("c", name)), known);
            }
            Step::RemoveListener(name) => {
                let known = self.listeners.remove(&text("l", name)).is_some();
                assert_eq!(warming.remove_listener(&text("l", name)), known);
            }
        }
    }

    fn answer(&mut self, warming: &mut Sample, need: Need) {
        warming.answered(&need);
        if self.watched.contains(&need) {
            self.answered.insert(need);
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_latest_wins_in_the_end_and_nothing_leaks(steps in prop::collection::vec(step(), 0..60)) {
        let mut warming = started();
        let mut model = Model::default();
        let mut revision = 0;
        for step in steps {
            revision += 1;
            model.take(&mut warming, step, revision);
            model.carry_out(&mut warming);
        }
        for need in model.watched.clone() {
            revision += 1;
            match &need {
                Need::Resource { kind: ResourceKind::RouteConfiguration, .. } => {
                    warming.offer_routes(&need, revision, BTreeSet::new(), Vec::new());
                    model.latest_routes.insert(need, revision);
                }
                _ => model.answer(&mut warming, need),
            }
            model.carry_out(&mut warming);
        }
        // Whatever is held back for clusters has waited long enough.
        model.ahead += 2 * LONGEST_HOLD;
        model.carry_out(&mut warming);
        for (name, (revision, _)) in &model.clusters {
            let entry = warming.cluster(name).unwrap();
            prop_assert_eq!((entry.active(), entry.warming()), (Some(revision), None));
        }
        for (name, (revision, _)) in &model.listeners {
            let entry = warming.listener(name).unwrap();
            prop_assert_eq!((entry.active(), entry.warming()), (Some(revision), None));
        }
        for name in model.clusters.keys() {
            warming.remove_cluster(name);
        }
        for name in model.listeners.keys() {
            warming.remove_listener(name);
        }
        model.clusters.clear();
        model.listeners.clear();
        model.carry_out(&mut warming);
        prop_assert!(model.watched.is_empty());
        prop_assert_eq!((warming.needs().count(), warming.routes().count()), (0, 0));
    }
}
