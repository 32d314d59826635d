//! Weighted random choice in constant time (the alias method).
//!
//! Owns the table. Never makes random numbers.

use super::scale;

/// A table of as many slots as there are weights.
#[derive(Debug)]
pub(super) struct Alias {
    slots: Box<[Slot]>,
}

/// Keeps its own position for coins below `share`, otherwise stands for another one.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Of 2^32.
    share: u32,
    other: u32,
}

impl Alias {
    /// A table for `weights`, none of which is 0.
    pub(super) fn build(weights: &[u32]) -> Self {
        let count = weights.len() as u64;
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        // Every slot holds `total`, and weight `w` brings `w * count`: whole numbers, so that nothing is lost.
        let mut amounts: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * u128::from(count)).collect();
        let full = u128::from(total.max(1));
        let mut slots: Vec<Slot> = (0..weights.len() as u32).map(|other| Slot { share: u32::MAX, other }).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|position| amounts[*position] < full);
        while let (Some(short), Some(&long)) = (small.pop(), large.last()) {
            slots[short] = Slot { share: ((amounts[short] << 32) / full) as u32, other: long as u32 };
            amounts[long] -= full - amounts[short];
            if amounts[long] < full {
                large.pop();
                small.push(long);
            }
        }
        Self { slots: slots.into() }
    }

    /// The position that an evenly distributed `random` falls on.
    pub(super) fn pick(&self, random: u64) -> u32 {
        let position = scale(random as u32, self.slots.len() as u32);
        let slot = self.slots[position as usize];
        if ((random >> 32) as u32) < slot.share { position } else { slot.other }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::spread;
    use super::Alias;

    proptest! {
        #[test]
        fn picks_follow_the_weights(
            weights in proptest::collection::vec(prop_oneof![4 => 1_u32..20, 1 => 500_u32..1000], 1..30),
            mut seed in any::<u64>(),
        ) {
            const PICKS: u32 = 50_000;
            let alias = Alias::build(&weights);
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..PICKS {
                counts[alias.pick(spread(&mut seed)) as usize] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = f64::from(PICKS) * f64::from(*weight) / f64::from(total);
                // Six standard deviations.
                prop_assert!((f64::from(*count) - expected).abs() <= 6.0 * expected.sqrt() + 1.0);
            }
        }
    }

    #[test]
    fn extreme_weights_do_not_overflow() {
        let alias = Alias::build(&[u32::MAX, 1, u32::MAX]);
        let mut seed = 1;
        let picks = (0..10_000).filter(|_| alias.pick(spread(&mut seed)) == 1).count();
        assert_eq!(picks, 0);
    }
}
