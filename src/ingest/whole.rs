//! Which of this gateway's own rounds were written whole. Pure.
//!
//! An event that is stored comes again, most often because an answer was lost. Whether its INSERT reached every table, its
//! rows don't tell; the gateway that was told so by ClickHouse knows. Of such a round nothing needs to be written again.

/// How many INSERTs of claims are remembered, 128 KiB of bits: at ten rounds a second those of the last day.
const REMEMBERED: u64 = 1 << 20;

/// Rounds, by the number of the INSERT of their claims in one table of one ClickHouse.
pub(super) struct Whole {
    /// Of the last [`REMEMBERED`] numbers, at their remainders.
    bits: Vec<u64>,
    /// The greatest number so far.
    last: u64,
}

impl Whole {
    /// None.
    pub(super) fn none() -> Self {
        Self { bits: vec![0; (REMEMBERED / 64) as usize], last: 0 }
    }

    const fn place(block: u64) -> (usize, u64) {
        ((block % REMEMBERED / 64) as usize, 1 << (block % 64))
    }

    /// Notes a round that ClickHouse has confirmed to the last of its INSERTs.
    pub(super) fn insert(&mut self, block: u64) {
        if block > self.last {
            // What stood at these remainders was of numbers that are forgotten now.
            for passed in (self.last + 1).max(block.saturating_sub(REMEMBERED - 1))..=block {
                let (word, bit) = Self::place(passed);
                self.bits[word] &= !bit;
            }
            self.last = block;
        }
        if self.remembers(block) {
            let (word, bit) = Self::place(block);
            self.bits[word] |= bit;
        }
    }

    const fn remembers(&self, block: u64) -> bool {
        block <= self.last && self.last - block < REMEMBERED
    }

    /// True only of a round that was noted.
    pub(super) fn contains(&self, block: u64) -> bool {
        let (word, bit) = Self::place(block);
        self.remembers(block) && self.bits[word] & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_what_was_noted_is_whole_and_only_the_last_are_remembered() {
        let (mut whole, mut noted) = (Whole::none(), BTreeSet::new());
        let mut rng = fastrand::Rng::with_seed(3);
        let mut block = 0;
        for _ in 0..3_000 {
            block += if rng.u8(0..50) == 0 { rng.u64(1..REMEMBERED * 2) } else { rng.u64(1..2_000) };
            // Rounds of several requests may be noted in another order.
            for number in [block, block.saturating_sub(rng.u64(1..REMEMBERED * 2))] {
                if number > 0 {
                    whole.insert(number);
                    noted.insert(number);
                }
            }
            for number in [block, block + 1, block - 1, block.saturating_sub(REMEMBERED), block + REMEMBERED, rng.u64(0..=block)] {
                let expected = noted.contains(&number) && number + REMEMBERED > block;
                assert_eq!(whole.contains(number), expected, "{number} of {block}");
            }
        }
        assert!(!Whole::none().contains(0));
    }
}
