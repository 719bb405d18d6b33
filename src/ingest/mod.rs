//! From judged events to rows that ClickHouse has confirmed.
//!
//! ```text
//! request ─► judge ─► queue (bounded in bytes) ─► committer, a round at a time:
//!                                                 1. look up which identities are claimed already
//!                                                 2. claim the new ones, and see who else did   ([`claim`])
//!                                                 3. every row takes the key of its identity; what is stored is left out
//!                                                 4. one INSERT per landing table, tried again; begun at 1. with the rows that
//!                                                    seem to be new, so that ClickHouse prepares them meanwhile. What was claimed
//!                                                    before and not stored goes to `events` first ([`crate::warehouse::row`])
//! request ◄──────────────── answer ◄──────────────5. tell every request of the round
//! ```
//! # Acknowledgement
//! A request is told Ok only after every INSERT of step 4 that has rows of it returned Ok. With one that did not the gateway goes on by itself
//! ([`unfinished`]): some of its tables may have the rows.
//!
//! # Identity
//! (namespace, source, id), hashed to 128 bits. The first who claims it decides its key: type, subject and time. Rows of
//! equal keys collapse in ClickHouse whenever they come, and every sending takes the key, so an identity counts once,
//! whatever its sendings say, and whether or not an INSERT of one of them was ever finished.
//!
//! An event of *another type* than the claim's would be another event to other meters. Where the claimed one is stored,
//! it repeats that one and changes nothing; where it is not, it is refused, for acknowledged it must count.

mod claim;
mod commit;
mod judge;
mod look;
mod seen;
mod send;
mod unfinished;
mod whole;

pub use commit::{CommitError, Committer, Reject, Submission};
pub use judge::{Judge, Judged, countable};
