//! What may be used when: clusters wait for their endpoints and secrets, listeners for their routes, secrets and
//! extension configs, and an update replaces what is in use only once it is ready.
//!
//! Owns, per name, the revision in use and the one that waits, who needs which resource, and the phases of starting.
//! Never knows what a revision holds; no I/O and no clock: what arrives, what will not, and the time are told by the
//! caller.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::need::{Need, Requirement};

mod holds;

pub use holds::LONGEST_HOLD;

/// What the caller has to do next, in this order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Ask for it, and answer with [`Warming::answered`].
    Watch(Need),
    /// Nobody needs it any more: stop asking, and forget it.
    Unwatch(Need),
    /// This phase has begun: offer what belongs to it.
    Begin(Phase),
    /// The latest revision of this cluster is in use from now on.
    ClusterActivated(Arc<str>),
    /// The latest revision of this route configuration is in use from now on.
    RoutesActivated(Need),
    /// The latest revision of this listener is in use from now on.
    ListenerActivated(Arc<str>),
}

/// The phases of starting.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Static clusters without endpoint discovery: those that reach control planes are among them.
    Primary,
    /// All other static clusters, and those that are discovered.
    Clusters,
    /// Listeners, static and discovered.
    Listeners,
    /// Everything has arrived or was given up.
    Initialised,
}

/// One version of something.
#[derive(Debug)]
pub struct Revision<T> {
    /// Whatever the caller offered.
    pub payload: T,
    requirements: Vec<Requirement>,
    /// Waited for, see [`holds`].
    clusters: BTreeSet<Arc<str>>,
}

/// The revisions under one name.
#[derive(Debug)]
pub struct Entry<T> {
    active: Option<Revision<T>>,
    warming: Option<Revision<T>>,
    /// Since when nothing but clusters keeps `warming`, or what it replaced, from being used.
    ready_since: Option<Instant>,
}

impl<T> Entry<T> {
    /// In use.
    pub fn active(&self) -> Option<&T> {
        self.active.as_ref().map(|revision| &revision.payload)
    }

    /// Waiting to replace `active`.
    pub fn warming(&self) -> Option<&T> {
        self.warming.as_ref().map(|revision| &revision.payload)
    }

    /// The newest.
    pub fn latest(&self) -> Option<&T> {
        self.warming().or(self.active())
    }
}

/// Who needs something.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum User {
    /// A cluster.
    Cluster(Arc<str>),
    /// A listener.
    Listener(Arc<str>),
    /// A route configuration.
    Routes(Need),
}

#[derive(Debug)]
struct Collection<K, T> {
    entries: BTreeMap<K, Entry<T>>,
    /// Names that have a warming revision.
    waiting: BTreeSet<K>,
    user: fn(&K) -> User,
}

impl<K: Ord + Clone, T> Collection<K, T> {
    fn new(user: fn(&K) -> User) -> Self {
        Self { entries: BTreeMap::new(), waiting: BTreeSet::new(), user }
    }

    fn offer(&mut self, key: &K, revision: Revision<T>, needs: &mut Needs) {
        let user = (self.user)(key);
        for requirement in &revision.requirements {
            needs.acquire(&user, &requirement.need);
        }
        let new = || Entry { active: None, warming: None, ready_since: None };
        let entry = self.entries.entry(key.clone()).or_insert_with(new);
        if let Some(replaced) = entry.warming.replace(revision) {
            needs.release_all(&user, &replaced.requirements);
        }
        self.waiting.insert(key.clone());
    }

    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q, needs: &mut Needs) -> bool
    where
        K: Borrow<Q>,
    {
        let Some((owned, entry)) = self.entries.remove_entry(key) else { return false };
        for revision in entry.active.iter().chain(&entry.warming) {
            needs.release_all(&(self.user)(&owned), &revision.requirements);
        }
        self.waiting.remove(key);
        true
    }

    /// The names whose warming revision has all that it requires; from now on they wait for clusters only.
    fn ready(&mut self, needs: &Needs, now: Instant) -> Vec<K> {
        let mut ready = Vec::new();
        for key in &self.waiting {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            if entry.warming.as_ref().is_some_and(|warming| needs.met(&warming.requirements)) {
                entry.ready_since.get_or_insert(now);
                ready.push(key.clone());
            }
        }
        ready
    }

    /// Puts the warming revision in use.
    fn promote(&mut self, key: &K, needs: &mut Needs) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.ready_since = None;
        if let Some(old) = std::mem::replace(&mut entry.active, entry.warming.take()) {
            needs.release_all(&(self.user)(key), &old.requirements);
        }
        self.waiting.remove(key);
    }

    /// Whether something was never in use yet.
    fn has_newcomers(&self) -> bool {
        self.waiting.iter().any(|key| self.entries.get(key).is_some_and(|entry| entry.active.is_none()))
    }
}

#[derive(Debug, Default)]
struct NeedState {
    /// With the number of times that each needs it.
    users: BTreeMap<User, usize>,
    answered: bool,
}

#[derive(Debug, Default)]
struct Needs {
    states: BTreeMap<Need, NeedState>,
    added: Vec<Need>,
    /// Without users; whoever comes back before the next look finds them as they were.
    idle: BTreeSet<Need>,
}

impl Needs {
    fn acquire(&mut self, user: &User, need: &Need) {
        match self.states.get_mut(need) {
            Some(state) => {
                *state.users.entry(user.clone()).or_default() += 1;
                self.idle.remove(need);
            }
            None => {
                let users = BTreeMap::from([(user.clone(), 1)]);
                self.states.insert(need.clone(), NeedState { users, answered: false });
                self.added.push(need.clone());
            }
        }
    }

    fn release_all(&mut self, user: &User, requirements: &[Requirement]) {
        for Requirement { need, wait: _ } in requirements {
            let Some(state) = self.states.get_mut(need) else { continue };
            let Some(count) = state.users.get_mut(user) else { continue };
            *count -= 1;
            if *count == 0 {
                state.users.remove(user);
            }
            if state.users.is_empty() {
                self.idle.insert(need.clone());
            }
        }
    }

    fn met(&self, requirements: &[Requirement]) -> bool {
        let answered = |need: &Need| self.states.get(need).is_some_and(|state| state.answered);
        requirements.iter().all(|requirement| !requirement.wait || answered(&requirement.need))
    }
}

/// The state machine. `C`, `R` and `L` are what the caller keeps of clusters, route configurations and listeners.
#[derive(Debug)]
pub struct Warming<C, R, L> {
    clusters: Collection<Arc<str>, C>,
    routes: Collection<Need, R>,
    listeners: Collection<Arc<str>, L>,
    needs: Needs,
    phase: Phase,
    /// Clusters are discovered, and the first answer is still out.
    clusters_expected: bool,
    /// Listeners are discovered, and the first answer is still out.
    listeners_expected: bool,
}

impl<C, R, L> Warming<C, R, L> {
    /// Nothing is known yet. Static clusters of the primary phase are offered next, then [`Self::settle`] is called.
    pub fn new(clusters_are_discovered: bool, listeners_are_discovered: bool) -> Self {
        Self {
            clusters: Collection::new(|name: &Arc<str>| User::Cluster(Arc::clone(name))),
            routes: Collection::new(|need: &Need| User::Routes(need.clone())),
            listeners: Collection::new(|name: &Arc<str>| User::Listener(Arc::clone(name))),
            needs: Needs::default(),
            phase: Phase::Primary,
            clusters_expected: clusters_are_discovered,
            listeners_expected: listeners_are_discovered,
        }
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// A cluster that is new or changed.
    pub fn offer_cluster(&mut self, name: &Arc<str>, payload: C, requirements: Vec<Requirement>) {
        self.clusters.offer(name, Revision { payload, requirements, clusters: BTreeSet::new() }, &mut self.needs);
    }

    /// A listener that is new or changed, with the clusters that it names itself.
    pub fn offer_listener(
        &mut self,
        name: &Arc<str>,
        payload: L,
        requirements: Vec<Requirement>,
        clusters: BTreeSet<Arc<str>>,
    ) {
        self.listeners.offer(name, Revision { payload, requirements, clusters }, &mut self.needs);
    }

    /// A route configuration that is new or changed; counts as the answer to `need`, once it has what it requires itself.
    /// Nobody needing it, it is dropped.
    pub fn offer_routes(
        &mut self,
        need: &Need,
        payload: R,
        clusters: BTreeSet<Arc<str>>,
        requirements: Vec<Requirement>,
    ) {
        if self.needs.states.contains_key(need) {
            let waits = requirements.iter().any(|requirement| requirement.wait);
            self.routes.offer(need, Revision { payload, requirements, clusters }, &mut self.needs);
            if !waits {
                self.answered(need);
            }
        }
    }

    /// What a listener's revisions require has changed with something that they refer to.
    pub fn revise_listener(&mut self, name: &str, active: Option<Vec<Requirement>>, warming: Option<Vec<Requirement>>) {
        let Some(entry) = self.listeners.entries.get_mut(name) else { return };
        let user = User::Listener(Arc::from(name));
        for (revision, requirements) in [(&mut entry.active, active), (&mut entry.warming, warming)] {
            let (Some(revision), Some(requirements)) = (revision, requirements) else { continue };
            for requirement in &requirements {
                self.needs.acquire(&user, &requirement.need);
            }
            let old = std::mem::replace(&mut revision.requirements, requirements);
            self.needs.release_all(&user, &old);
        }
    }

    /// Whether a route configuration is as it will be: in use, or not to be had.
    pub fn is_settled(&self, need: &Need) -> bool {
        match self.needs.states.get(need) {
            Some(state) => state.answered && self.routes.entries.get(need).is_none_or(|entry| entry.warming.is_none()),
            None => true,
        }
    }

    /// A cluster is gone; false if it was not there.
    pub fn remove_cluster(&mut self, name: &str) -> bool {
        self.clusters.remove(name, &mut self.needs)
    }

    /// A listener is gone; false if it was not there.
    pub fn remove_listener(&mut self, name: &str) -> bool {
        self.listeners.remove(name, &mut self.needs)
    }

    /// A need has arrived, or will not: it does not exist, was refused, or took too long.
    pub fn answered(&mut self, need: &Need) {
        if let Some(state) = self.needs.states.get_mut(need) {
            state.answered = true;
        }
    }

    /// The first answer about which clusters exist is in, or was given up.
    pub fn clusters_discovered(&mut self) {
        self.clusters_expected = false;
    }

    /// The first answer about which listeners exist is in, or was given up.
    pub fn listeners_discovered(&mut self) {
        self.listeners_expected = false;
    }

    /// Puts in use what is ready and says what is to be done. To be called again after doing it, until there is
    /// nothing, and at [`Self::next_release`].
    pub fn settle(&mut self, now: Instant) -> Vec<Action> {
        let mut actions: Vec<Action> = Vec::new();
        for name in self.clusters.ready(&self.needs, now) {
            self.clusters.promote(&name, &mut self.needs);
            actions.push(Action::ClusterActivated(name));
        }
        let over = |held: Option<Instant>| held.is_none_or(|until| until <= now);
        for need in self.routes.ready(&self.needs, now) {
            if over(self.routes_held_until(&need)) {
                self.routes.promote(&need, &mut self.needs);
                self.answered(&need);
                actions.push(Action::RoutesActivated(need));
            }
        }
        if self.phase >= Phase::Listeners {
            for name in self.listeners.ready(&self.needs, now) {
                if over(self.listener_held_until(&name)) {
                    self.listeners.promote(&name, &mut self.needs);
                    actions.push(Action::ListenerActivated(name));
                }
            }
        }
        self.settle_needs(&mut actions);
        if actions.is_empty() {
            actions.extend(self.advance().map(Action::Begin));
        }
        actions
    }

    fn settle_needs(&mut self, actions: &mut Vec<Action>) {
        let mut gone = Vec::new();
        // A route configuration that is gone may leave others without users.
        while let Some(need) = self.needs.idle.pop_first() {
            self.needs.states.remove(&need);
            self.routes.remove(&need, &mut self.needs);
            gone.push(need);
        }
        for need in self.needs.added.drain(..) {
            // Wanted and given up in one breath: nobody has to hear of it.
            match gone.iter().position(|gone| *gone == need) {
                Some(position) => drop(gone.swap_remove(position)),
                None => actions.push(Action::Watch(need)),
            }
        }
        actions.extend(gone.into_iter().map(Action::Unwatch));
    }

    fn advance(&mut self) -> Option<Phase> {
        let (over, next) = match self.phase {
            Phase::Primary => (!self.clusters.has_newcomers(), Phase::Clusters),
            Phase::Clusters => (!self.clusters_expected && !self.clusters.has_newcomers(), Phase::Listeners),
            Phase::Listeners => {
                let over = !self.listeners_expected && !self.listeners.has_newcomers();
                (over && !self.clusters.has_newcomers(), Phase::Initialised)
            }
            Phase::Initialised => (false, Phase::Initialised),
        };
        if !over {
            return None;
        }
        self.phase = next;
        Some(next)
    }

    /// Clusters that routes and listeners in use name.
    pub fn clusters_in_use(&self) -> BTreeSet<&str> {
        let routes = self.routes.entries.values().filter_map(|entry| entry.active.as_ref());
        let listeners = self.listeners.entries.values().filter_map(|entry| entry.active.as_ref());
        let names = routes.flat_map(|revision| &revision.clusters);
        names.chain(listeners.flat_map(|revision| &revision.clusters)).map(|name| &**name).collect()
    }

    /// Whether a cluster's waiting revision waits for nothing else than `need`.
    pub fn waits_only_for(&self, name: &str, need: &Need) -> bool {
        let answered = |need: &Need| self.needs.states.get(need).is_some_and(|state| state.answered);
        let waiting = self.clusters.entries.get(name).and_then(|entry| entry.warming.as_ref());
        waiting.is_some_and(|revision| {
            let mut others = revision.requirements.iter().filter(|requirement| requirement.need != *need);
            others.all(|requirement| !requirement.wait || answered(&requirement.need))
        })
    }

    /// A cluster's revisions.
    pub fn cluster(&self, name: &str) -> Option<&Entry<C>> {
        self.clusters.entries.get(name)
    }

    /// A listener's revisions.
    pub fn listener(&self, name: &str) -> Option<&Entry<L>> {
        self.listeners.entries.get(name)
    }

    /// A route configuration's revisions.
    pub fn routes_of(&self, need: &Need) -> Option<&Entry<R>> {
        self.routes.entries.get(need)
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = (&Arc<str>, &Entry<C>)> {
        self.clusters.entries.iter()
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = (&Arc<str>, &Entry<L>)> {
        self.listeners.entries.iter()
    }

    /// All discovered route configurations.
    pub fn routes(&self) -> impl Iterator<Item = (&Need, &Entry<R>)> {
        self.routes.entries.iter()
    }

    /// Who needs it, in any revision.
    pub fn users(&self, need: &Need) -> Vec<User> {
        self.needs.states.get(need).map(|state| state.users.keys().cloned().collect()).unwrap_or_default()
    }

    /// Everything that is needed, and whether it was answered.
    pub fn needs(&self) -> impl Iterator<Item = (&Need, bool)> {
        self.needs.states.iter().map(|(need, state)| (need, state.answered))
    }
}

#[cfg(test)]
mod tests;
