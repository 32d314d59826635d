//! Parts of a cluster's hosts that requests ask for by metadata.
//!
//! Owns which hosts are in which subset, and where requests go that ask for none of them. Never picks a host.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use outrigger_config::cluster::{
    Fallback, LbMetadata, LbValue, LocalityBalancing, SelectorFallback, SubsetOptions, SubsetSelector,
};

use super::hosts::{HostIndex, Inputs};
use super::pools::Pools;
use crate::hash::{ConfigMap, WordHasher};

/// The subsets of a cluster.
#[derive(Debug)]
pub(super) struct Subsets {
    options: Arc<SubsetOptions>,
    subsets: Vec<Subset>,
    /// Subsets by selector and the hash of their values.
    index: ConfigMap<(u32, u64), Vec<u32>>,
    default: Option<Pools>,
    /// Hosts that are not used because another one has the subset for itself.
    duplicates: usize,
}

#[derive(Debug)]
struct Subset {
    selector: u32,
    /// In the order of the selector's keys.
    values: Box<[LbValue]>,
    pools: Pools,
}

/// Hosts that a pick may be made from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Section {
    /// All of them.
    All,
    /// The default subset.
    Default,
    /// This subset.
    Subset(u32),
}

/// How a pick came to its hosts.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Via {
    /// There are no subsets, or the fallback of a selector led there.
    #[default]
    Plain,
    /// Its subset was there.
    Subset,
    /// The fallback for all requests.
    Fallback,
    /// Any host, since the fallback had none.
    Panic,
}

/// Where a pick is made: in `first`, and if there is no host in it, in `second`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Ways {
    pub first: Option<(Section, Via)>,
    pub second: Option<(Section, Via)>,
}

impl Subsets {
    /// Sorts `members` of the hosts into subsets.
    pub(super) fn build(options: &Arc<SubsetOptions>, inputs: &Inputs<'_>, members: &[u32]) -> Self {
        let mut subsets = Self {
            options: Arc::clone(options),
            subsets: Vec::new(),
            index: ConfigMap::default(),
            default: None,
            duplicates: 0,
        };
        for (number, selector) in (0..).zip(&options.selectors) {
            subsets.add(number, selector, inputs, members);
        }
        let wants_default = options.fallback == Fallback::Default
            || options
                .selectors
                .iter()
                .any(|selector| selector.fallback == Some(SelectorFallback::Of(Fallback::Default)));
        if wants_default {
            let fits = |member: &&u32| {
                let metadata = inputs.facts.metadata(HostIndex(**member));
                options.default_subset.iter().all(|(key, wanted)| {
                    metadata.and_then(|metadata| metadata.get(key)).is_some_and(|value| match value {
                        LbValue::List(items) if options.list_as_any => items.contains(wanted),
                        value => value == wanted,
                    })
                })
            };
            let fit: Vec<u32> = members.iter().filter(fits).copied().collect();
            subsets.default = Some(subsets.pools(inputs, members, &fit));
        }
        subsets
    }

    fn add(&mut self, number: u32, selector: &SubsetSelector, inputs: &Inputs<'_>, members: &[u32]) {
        // In the order of their first host, so that the result does not depend on hashes.
        let mut order: Vec<Box<[LbValue]>> = Vec::new();
        let mut hosts: ConfigMap<Box<[LbValue]>, Vec<u32>> = ConfigMap::default();
        for member in members {
            let Some(metadata) = inputs.facts.metadata(HostIndex(*member)) else { continue };
            for values in combinations(metadata, &selector.keys, self.options.list_as_any) {
                match hosts.get_mut(&values) {
                    Some(_) if selector.single_host => self.duplicates += 1,
                    Some(hosts) if hosts.last() == Some(member) => {}
                    Some(hosts) => hosts.push(*member),
                    None => {
                        order.push(values.clone());
                        hosts.insert(values, vec![*member]);
                    }
                }
            }
        }
        for values in order {
            let Some(fit) = hosts.remove(&values) else { continue };
            let pools = self.pools(inputs, members, &fit);
            let place = self.subsets.len() as u32;
            self.index.entry((number, hash(values.iter()))).or_default().push(place);
            self.subsets.push(Subset { selector: number, values, pools });
        }
    }

    fn pools(&self, inputs: &Inputs<'_>, all: &[u32], fit: &[u32]) -> Pools {
        let locality = locality(&self.options, inputs.options.locality);
        if !self.options.scale_locality_weight || locality != LocalityBalancing::Weighted {
            return Pools::build(inputs, fit, locality, None);
        }
        let counts = |members: &[u32]| {
            let mut counts = vec![0_u32; inputs.facts.localities() as usize];
            for member in members {
                counts[inputs.facts.locality(HostIndex(*member)) as usize] += 1;
            }
            counts
        };
        let (whole, part) = (counts(all), counts(fit));
        let scale: Vec<f64> =
            part.iter().zip(whole).map(|(part, whole)| f64::from(*part) / f64::from(whole.max(1))).collect();
        Pools::build(inputs, fit, locality, Some(&scale))
    }

    /// Subsets, and hosts that are not used because another one has the subset for itself.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.subsets.len(), self.duplicates)
    }

    /// The hosts of a section, given all of them.
    pub(super) fn section<'a>(&'a self, section: Section, all: &'a Pools) -> &'a Pools {
        match section {
            Section::All => all,
            Section::Default => self.default.as_ref().unwrap_or(all),
            Section::Subset(number) => self.subsets.get(number as usize).map_or(all, |subset| &subset.pools),
        }
    }

    /// What a request brings beside its own metadata to be tried instead of it, in this order; empty if it brings none.
    pub(super) fn alternatives(&self, metadata: Option<&LbMetadata>) -> Vec<LbMetadata> {
        const KEY: &str = "fallback_list";
        let Some(metadata) = metadata.filter(|_| self.options.fallback_list) else { return Vec::new() };
        let Some(LbValue::List(items)) = metadata.get(KEY) else { return Vec::new() };
        let own = metadata.filtered(|key| key != KEY);
        let merged = items.iter().filter_map(|item| match item {
            LbValue::Struct(over) => Some(own.merged(over)),
            _ => None,
        });
        merged.collect()
    }

    /// Where a request goes.
    pub(super) fn ways(&self, metadata: Option<&LbMetadata>) -> Ways {
        let mut selector = metadata.and_then(|metadata| self.selector(metadata));
        while let (Some(number), Some(metadata)) = (selector, metadata) {
            if let Some(subset) = self.find(number, metadata) {
                return Ways::only(Section::Subset(subset), Via::Subset);
            }
            let chosen = &self.options.selectors[number as usize];
            selector = match &chosen.fallback {
                None => None,
                Some(SelectorFallback::Of(Fallback::None)) => return Ways::default(),
                Some(SelectorFallback::Of(Fallback::Any)) => return Ways::only(Section::All, Via::Plain),
                Some(SelectorFallback::Of(Fallback::Default)) => return Ways::only(Section::Default, Via::Plain),
                // Always fewer keys, so this ends.
                Some(SelectorFallback::Keys(keys)) => self.selector_with(|known| known == keys.as_slice()),
            };
        }
        let first = match self.options.fallback {
            Fallback::None => return Ways::default(),
            Fallback::Any => (Section::All, Via::Fallback),
            Fallback::Default => (Section::Default, Via::Fallback),
        };
        Ways { first: Some(first), second: self.options.panic_mode_any.then_some((Section::All, Via::Panic)) }
    }

    /// The selector whose keys are those of the request, or the longest of those that are among them.
    fn selector(&self, metadata: &LbMetadata) -> Option<u32> {
        if !self.options.allow_redundant_keys {
            return self.selector_with(|keys| keys.iter().eq(metadata.iter().map(|(key, _)| key)));
        }
        let fits = |selector: &SubsetSelector| selector.keys.iter().all(|key| metadata.get(key).is_some());
        let fitting = (0..).zip(&self.options.selectors).filter(|(_, selector)| fits(selector));
        // Of the longest ones the first.
        let longest = fitting.max_by_key(|(number, selector)| (selector.keys.len(), std::cmp::Reverse(*number)));
        longest.map(|(number, _): (u32, _)| number)
    }

    fn selector_with(&self, fits: impl Fn(&[Arc<str>]) -> bool) -> Option<u32> {
        self.options.selectors.iter().position(|selector| fits(&selector.keys)).map(|number| number as u32)
    }

    fn find(&self, selector: u32, metadata: &LbMetadata) -> Option<u32> {
        let keys = &self.options.selectors[selector as usize].keys;
        let values = || keys.iter().filter_map(|key| metadata.get(key));
        let candidates = self.index.get(&(selector, hash(values())))?;
        candidates.iter().copied().find(|candidate| {
            let subset = &self.subsets[*candidate as usize];
            subset.selector == selector && subset.values.iter().eq(values())
        })
    }
}

/// Without `locality_weight_aware` the weights of localities do not count as soon as there are subsets.
pub(super) fn locality(options: &SubsetOptions, locality: LocalityBalancing) -> LocalityBalancing {
    match locality {
        LocalityBalancing::Weighted if !options.locality_weight_aware => LocalityBalancing::Ignored,
        locality => locality,
    }
}

impl Ways {
    fn only(section: Section, via: Via) -> Self {
        Self { first: Some((section, via)), second: None }
    }
}

fn hash<'a>(values: impl Iterator<Item = &'a LbValue>) -> u64 {
    let mut hasher = WordHasher::default();
    values.for_each(|value| value.hash(&mut hasher));
    hasher.finish()
}

/// The values of the keys, each in its order; more than one if lists stand for each of their items.
fn combinations(metadata: &LbMetadata, keys: &[Arc<str>], list_as_any: bool) -> Vec<Box<[LbValue]>> {
    let mut combinations: Vec<Vec<LbValue>> = vec![Vec::with_capacity(keys.len())];
    for key in keys {
        let options: &[LbValue] = match metadata.get(key) {
            None => return Vec::new(),
            Some(LbValue::List(items)) if list_as_any => items,
            Some(value) => std::slice::from_ref(value),
        };
        let longer = combinations
            .iter()
            .flat_map(|before| options.iter().map(|value| before.iter().chain([value]).cloned().collect()));
        combinations = longer.collect();
    }
    combinations.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests;
