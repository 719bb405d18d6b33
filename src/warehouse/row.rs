//! A row of a landing table, in RowBinary.

use std::sync::Arc;

use uuid::Uuid;

use super::StoredKey;
use super::schema::Landing;
use crate::event::{Event, put_bytes};

/// Versions decide which row of equal keys counts: the greatest. No clock decides.
///
/// | from | who | of several |
/// |---|---|---|
/// | [`VERSION_MARK`] up | cancellations and reverts ([`Turn`]) | the later counts: each is above what it takes the place of |
/// | [`ARRIVAL_MARK`] + [`AGAIN`] up | sendings that found their identity claimed, but nothing stored ([`Row::complete`]) | that with the greatest hash of its data |
/// | [`ARRIVAL_MARK`] up | what the first sending stored, written again ([`written_again`]) | they are the same |
/// | below [`ARRIVAL_MARK`] | the first sending: that which claimed the identity, in its first try | **there is one row at most** |
/// | [`CONTRA`] | nobody's: a first sending's row once more, to be taken off sums ([`super::counted`]) | it counts never |
///
/// # `events` first
/// Whatever is to take the place of another row is written to `events` first, alone, and from there, as it is by then, to all tables.
/// So whatever was cut off where, the row that counts of a key in a Meter's table is a first sending's, or `events` has it, or a greater
/// one: to make all tables agree it is enough to write again what `events` has, which everything that comes again does. A sending that
/// found the event stored is not written at all.
///
/// Every row but the first one of a key lies at [`ARRIVAL_MARK`] or above. So a key none of whose rows does so has one row,
/// and a question need not look for others ([`super::counted`]).
pub const VERSION_MARK: u64 = 1 << 62;
/// See [`VERSION_MARK`].
pub const ARRIVAL_MARK: u64 = 1 << 61;
/// What a first sending's version is raised by when its row is written again.
pub const AGAIN: u64 = 1 << 60;

/// The version of a contra row: below every other one, so that wherever rows of a key are merged it is the first to go.
pub const CONTRA: u64 = 0;

/// More than any clock says, µs since 1970: after the year 9999.
const CLOCK_END: u64 = 1 << 58;
/// Bits of a hash that are left out in a version, so that it lies below [`VERSION_MARK`].
const HASH_SHIFT: u32 = 4;

// A first sending is no contra row.
const _: () = assert!(ARRIVAL_MARK - CLOCK_END > CONTRA);
// What is written again lies above every first sending, one that completes above that, a cancellation above all.
const _: () = assert!(ARRIVAL_MARK - CLOCK_END + AGAIN >= ARRIVAL_MARK);
const _: () = assert!(ARRIVAL_MARK + AGAIN + (u64::MAX >> HASH_SHIFT) < VERSION_MARK);

/// What a row's version is above after it was cancelled or its cancellation was reverted. Builds before this one went by a clock there.
const TURNED: u64 = VERSION_MARK + CLOCK_END;
/// Bits of such a version that tell two apart which take the place of the same row.
const TURN_BITS: u32 = 20;
const _: () = assert!(TURNED.trailing_zeros() >= TURN_BITS);

/// The version of a row with this version when it is written again.
pub const fn written_again(version: u64) -> u64 {
    if version < ARRIVAL_MARK { version + AGAIN } else { version }
}

/// [`written_again`] of the column `version`, in SQL.
pub fn written_again_sql() -> String {
    format!("if(version < {ARRIVAL_MARK}, version + {AGAIN}, version)")
}

/// A cancellation of events, or its revert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The cancellation.
    pub cancellation: Uuid,
    /// Whether events are cancelled, or count again.
    pub is_cancelled: bool,
}

impl Turn {
    /// The version, in SQL, of a row that takes the place of one with the column `version`. Of two different turns of one row the same
    /// one has the greater version in all tables.
    pub fn version_sql(self) -> String {
        let hash = xxhash_rust::xxh3::xxh3_64(self.cancellation.as_bytes()) % (1 << TURN_BITS);
        let salt = (hash & !1) | u64::from(self.is_cancelled);
        format!("bitShiftLeft(bitShiftRight(greatest(version, toUInt64({TURNED})), {TURN_BITS}) + 1, {TURN_BITS}) + {salt}")
    }
}

/// Columns of a landing table in the order in which [`encode`] writes them.
pub const COLUMNS: &str = "namespace, type, subject, time, id, source, event_id, received, data, version, cancellation";

/// Columns of `identities` in the order in which [`Row::encode_identity`] writes them.
pub const IDENTITY_COLUMNS: &str = "id, namespace, type, subject, time";

/// An event with what the gateway adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Kubernetes namespace; the rows of a request share it.
    pub namespace: Arc<str>,
    /// Where it is inserted.
    pub landing: Landing,
    /// Hash of (namespace, source, id).
    pub identity: u128,
    /// When it arrived, µs since 1970.
    pub received_us: i64,
    /// See [`VERSION_MARK`].
    pub version: u64,
    /// Its time, or that of its arrival, ms since 1970.
    pub time_ms: i64,
    /// The cancellation by which it does not count; nil: it counts.
    pub cancellation: Uuid,
    /// The rest.
    pub event: Event,
}

impl Row {
    /// The version of an event that arrived at a time.
    pub const fn arrival_version(received_us: i64) -> u64 {
        let version = ARRIVAL_MARK - received_us.unsigned_abs();
        debug_assert!(version < ARRIVAL_MARK && written_again(version) >= ARRIVAL_MARK, "a first sending gives way to all others");
        version
    }

    /// Gives the row the key that its identity has, so that it collapses with the rows of its other sendings.
    pub fn adopt(&mut self, key: &StoredKey) {
        debug_assert_eq!(self.event.attributes.event_type(), key.event_type, "of another type it would be another event to other meters");
        self.time_ms = key.time_ms;
        self.event.attributes.set_subject(&key.subject);
    }

    /// Makes the row take the place of what the first to claim its identity failed to store. It must be written to `events` first
    /// ([`VERSION_MARK`]).
    pub fn complete(&mut self, key: &StoredKey) {
        self.adopt(key);
        let mut data = Vec::with_capacity(self.event.data.encoded_len());
        self.event.data.encode(&mut data);
        self.version = ARRIVAL_MARK + AGAIN + (xxhash_rust::xxh3::xxh3_64(&data) >> HASH_SHIFT);
        debug_assert!((ARRIVAL_MARK..VERSION_MARK).contains(&self.version), "it lies above the first sending and below cancellations");
    }

    /// The key that it has.
    pub fn key(&self) -> StoredKey {
        let attributes = &self.event.attributes;
        StoredKey { time_ms: self.time_ms, subject: attributes.subject().to_owned(), event_type: attributes.event_type().to_owned() }
    }

    /// Whether it has a key.
    pub fn has_key(&self, key: &StoredKey) -> bool {
        let attributes = &self.event.attributes;
        (self.time_ms, attributes.subject(), attributes.event_type()) == (key.time_ms, key.subject.as_str(), key.event_type.as_str())
    }

    /// Bytes of memory that it takes, about, until it is confirmed: itself and its texts.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.encoded_len()
    }

    /// Bytes that [`encode`](Self::encode) adds, about.
    pub fn encoded_len(&self) -> usize {
        self.namespace.len() + self.event.attributes.bytes() + self.event.data.encoded_len() + 80
    }

    /// Appends the row in the order of [`COLUMNS`], as one that may be there already or for the first time.
    pub fn encode(&self, out: &mut Vec<u8>, is_again: bool) {
        let Event { attributes, data, .. } = &self.event;
        put_bytes(out, self.namespace.as_bytes());
        put_bytes(out, attributes.event_type().as_bytes());
        put_bytes(out, attributes.subject().as_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.identity.to_le_bytes());
        put_bytes(out, attributes.source().as_bytes());
        put_bytes(out, attributes.id().as_bytes());
        out.extend_from_slice(&self.received_us.to_le_bytes());
        data.encode(out);
        let version = if is_again { written_again(self.version) } else { self.version };
        out.extend_from_slice(&version.to_le_bytes());
        put_uuid(out, self.cancellation);
    }

    /// Bytes that [`encode_identity`](Self::encode_identity) adds, about.
    pub fn encoded_identity_len(&self) -> usize {
        self.namespace.len() + self.event.attributes.event_type().len() + self.event.attributes.subject().len() + 32
    }

    /// Appends the claim of its identity in the order of [`IDENTITY_COLUMNS`].
    pub fn encode_identity(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.identity.to_le_bytes());
        put_bytes(out, self.namespace.as_bytes());
        put_bytes(out, self.event.attributes.event_type().as_bytes());
        put_bytes(out, self.event.attributes.subject().as_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
    }
}

/// Appends a UUID as RowBinary has it: two little-endian halves, the higher first.
pub fn put_uuid(out: &mut Vec<u8>, uuid: Uuid) {
    let (high, low) = uuid.as_u64_pair();
    out.extend_from_slice(&high.to_le_bytes());
    out.extend_from_slice(&low.to_le_bytes());
}
