//! A gateway's memory of which identities may be stored. Pure.
//!
//! Looking an identity up in ClickHouse costs some 10 µs of CPU for each part of the table, several times what storing
//! the event costs. Most events are new, so a gateway remembers what is stored, in a filter that may say "perhaps" of an
//! identity that is not stored, but never "no" of one that is: only what is perhaps stored is looked up.
//!
//! What other gateways store is seen by it too. ClickHouse keeps rows in parts that never change; each INSERT is a new
//! block, and a part's name says which blocks it was merged from. [`Seen::misses`] tells which parts have blocks that
//! were not read yet: reading these, and nothing else, brings the memory up to date.

use std::collections::BTreeMap;

use crate::warehouse::IdentityPart;

/// Bits of memory for each identity: with these about 1 of 40,000 new identities is looked up in vain. It must be so few
/// that most rounds of thousands look nothing up: each look-up takes a statement, and a granule of each part for each one.
const BITS: u64 = 32;
/// Most bytes of all filters. With 33 million identities they are full; with twice as many about 1 of 1,000 new identities
/// is looked up in vain, with four times as many 1 of 40, with more ever more, and in the end all: slower, never wrong.
const MAX_BYTES: u64 = 128 * 1_024 * 1_024;
/// Least identities that a filter is made for: 4 MiB.
const MIN_ROOM: u64 = 1_024 * 1_024;
/// How many times as large as all before a further filter is: few, for each adds its own mistakes.
const GROWTH: u64 = 3;

/// What was read of the table of identities.
pub(super) struct Seen {
    /// The later ones are for what the earlier ones have no room for.
    filters: Vec<Filter>,
    /// Numbers of the blocks that were read: first and last of each run.
    blocks: BTreeMap<i64, i64>,
}

impl Seen {
    /// Nothing yet, with room for so many.
    pub(super) fn with_room_for(identities: u64) -> Self {
        Self { filters: vec![Filter::new(identities.clamp(MIN_ROOM, MAX_BYTES * 8 / BITS))], blocks: BTreeMap::new() }
    }

    /// Notes a stored identity.
    pub(super) fn insert(&mut self, identity: u128) {
        if self.filters.last().is_none_or(|last| last.count >= last.room) {
            self.grow();
        }
        if let Some(last) = self.filters.last_mut() {
            last.insert(identity);
        }
    }

    /// Makes room in a further filter, while there may be one: reading everything anew into a larger one would cost more
    /// than all the look-ups that it saves.
    fn grow(&mut self) {
        let (room, bytes) = self.filters.iter().fold((0, 0), |(room, bytes), filter| (room + filter.room, bytes + filter.bytes()));
        let room = (room * GROWTH).min(MAX_BYTES.saturating_sub(bytes) * 8 / BITS);
        if room >= MIN_ROOM {
            self.filters.push(Filter::new(room));
        }
        debug_assert!(self.filters.iter().map(Filter::bytes).sum::<u64>() <= MAX_BYTES + 64 * self.filters.len() as u64);
    }

    /// False only for an identity that is in no block that was read.
    pub(super) fn may_have(&self, identity: u128) -> bool {
        self.filters.iter().any(|filter| filter.may_have(identity))
    }

    /// Whether a part has blocks that were not read.
    pub(super) fn misses(&self, part: &IdentityPart) -> bool {
        self.missing(part).is_some()
    }

    /// The first and the last block of a part that were not read.
    pub(super) fn missing(&self, part: &IdentityPart) -> Option<(i64, i64)> {
        let (mut first, mut last) = (part.first_block, part.last_block);
        if let Some((_, &end)) = self.blocks.range(..=first).next_back() {
            first = first.max(end.saturating_add(1));
        }
        if let Some((&begin, &end)) = self.blocks.range(..=last).next_back()
            && end >= last
        {
            last = last.min(begin.saturating_sub(1));
        }
        (first <= last).then_some((first, last))
    }

    /// Notes that all of a part was read. ClickHouse never adds a block between two that were merged, so the part's
    /// blocks are a run without gaps.
    pub(super) fn read(&mut self, part: &IdentityPart) {
        let (mut first, mut last) = (part.first_block, part.last_block);
        // Joins the runs that touch it.
        while let Some((&begin, &end)) = self.blocks.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            (first, last) = (first.min(begin), last.max(end));
            self.blocks.remove(&begin);
        }
        self.blocks.insert(first, last);
    }
}

/// A blocked Bloom filter: all bits of an identity are in one line of the processor's cache. Identities are
/// cryptographic hashes, so their own bits choose.
struct Filter {
    lines: Vec<[u64; 8]>,
    room: u64,
    count: u64,
}

impl Filter {
    fn new(room: u64) -> Self {
        let lines = usize::try_from(room * BITS / 512 + 1).unwrap_or(usize::MAX);
        Self { lines: vec![[0; 8]; lines], room, count: 0 }
    }

    const fn bytes(&self) -> u64 {
        self.lines.len() as u64 * 64
    }

    /// The low half of an identity chooses its line.
    fn line(&self, identity: u128) -> usize {
        (((identity & u128::from(u64::MAX)) * self.lines.len() as u128) >> 64) as usize
    }

    /// The high half chooses seven bits of 512: of each the word of the line, and the place in it.
    fn bits(identity: u128) -> impl Iterator<Item = (usize, u64)> {
        let choice = (identity >> 64) as u64;
        (0..7).map(move |n| choice >> (9 * n)).map(|choice| ((choice & 7) as usize, choice >> 3 & 63))
    }

    fn insert(&mut self, identity: u128) {
        let line = self.line(identity);
        Self::bits(identity).for_each(|(word, bit)| self.lines[line][word] |= 1 << bit);
        self.count += 1;
    }

    fn may_have(&self, identity: u128) -> bool {
        let line = &self.lines[self.line(identity)];
        // All bits, without a branch between: the processor then fetches the lines of several identities at a time.
        Self::bits(identity).fold(1, |all, (word, bit)| all & line[word] >> bit) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits as random as those of a cryptographic hash, sooner.
    fn id(number: u64) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes())
    }

    fn part(first_block: i64, last_block: i64) -> IdentityPart {
        IdentityPart { name: format!("all_{first_block}_{last_block}_0"), rows: 1, least: 0, first_block, last_block }
    }

    #[test]
    fn what_is_stored_is_never_denied_and_little_else_is_suspected() {
        // More than the first filter has room for.
        let mut seen = Seen::with_room_for(0);
        let stored = MIN_ROOM + 300_000;
        (0..stored).for_each(|number| seen.insert(id(number)));
        assert_eq!(seen.filters.len(), 2);
        assert!((0..stored).all(|number| seen.may_have(id(number))));
        let suspected = (stored..stored + 100_000).filter(|number| seen.may_have(id(*number))).count();
        assert!(suspected < 10, "{suspected} of 100,000");
    }

    #[test]
    fn memory_is_bounded() {
        for start in [0, u64::MAX] {
            let mut seen = Seen::with_room_for(start);
            for number in 0..10 {
                seen.filters.last_mut().unwrap().count = u64::MAX / 2;
                seen.insert(number);
            }
            let bytes: u64 = seen.filters.iter().map(Filter::bytes).sum();
            assert!(bytes <= MAX_BYTES + 1_024 && bytes > MAX_BYTES * 9 / 10, "{bytes} in {}", seen.filters.len());
        }
    }

    #[test]
    fn a_part_is_read_once_however_it_is_merged() {
        let mut seen = Seen::with_room_for(0);
        assert!(seen.misses(&part(1, 1)));
        seen.read(&part(1, 1));
        seen.read(&part(3, 4));
        assert!(!seen.misses(&part(1, 1)) && !seen.misses(&part(3, 3)));
        assert!(seen.misses(&part(2, 2)) && seen.misses(&part(1, 4)) && seen.misses(&part(4, 5)));
        assert_eq!(seen.missing(&part(1, 4)), Some((2, 2)));
        assert_eq!(seen.missing(&part(0, 3)), Some((0, 2)));
        assert_eq!(seen.missing(&part(3, 9)), Some((5, 9)));
        assert_eq!(seen.missing(&part(0, 9)), Some((0, 9)));
        seen.read(&part(2, 2));
        assert!(!seen.misses(&part(1, 4)));
        assert_eq!(seen.blocks, BTreeMap::from([(1, 4)]));
        // Merged with one that was not read: all of it is read again.
        assert!(seen.misses(&part(1, 5)));
        seen.read(&part(1, 5));
        seen.read(&part(7, 9));
        seen.read(&part(0, 8));
        assert_eq!(seen.blocks, BTreeMap::from([(0, 9)]));
    }
}
