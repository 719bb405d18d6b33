//! From judged events to rows that ClickHouse has confirmed.
//!
//! ```text
//! request ─► judge ─► queue (bounded in bytes) ─► committer, one round at a time:
//!                                                 1. of equal identities in the round the first stays
//!                                                 2. look up which identities are stored already
//!                                                 3. write down the places of new events without a time
//!                                                 4. one INSERT per landing table, retried as it is
//!                                                 5. look again at identities that were new
//! request ◄──────────────── answer ◄──────────────6. tell every request of the round
//! ```
//! # Acknowledgement
//! A request is told Ok only after steps 4 and 5 returned Ok for every landing table that has rows of it.
//!
//! # Identity
//! (namespace, source, id), hashed to 128 bits. Rows of equal identity, type, subject and time collapse in ClickHouse
//! whenever they come. One that comes again with another time or subject is found in step 2 and takes the stored key, so
//! that it collapses too. A gateway's rounds follow each other, so step 2 sees all that it confirmed before; what another
//! gateway stores at the same moment is seen in step 5 ([`identity`]).
//!
//! An INSERT that fails may have filled some of the tables, or be done later after all. The sender comes again: with the
//! same time the rows collapse; without one, step 2 finds the time that step 3 wrote.

mod commit;
mod identity;
mod judge;
mod look;
mod seen;

pub use commit::{CommitError, Committer, Reject, Submission};
pub use judge::{Judge, Judged};
