//! From judged events to rows that ClickHouse has confirmed.
//!
//! ```text
//! request ─► judge ─► queue (bounded in bytes) ─► committer, one round at a time:
//!                                                 1. of equal identities in the round the first stays
//!                                                 2. look up which identities are stored already
//!                                                 3. one INSERT per landing table, retried as it is
//!                                                 4. look again at identities that were new
//! request ◄──────────────── answer ◄──────────────5. tell every request of the round
//! ```
//! # Acknowledgement
//! A request is told Ok only after steps 3 and 4 returned Ok for every landing table that has rows of it.
//!
//! # Identity
//! (namespace, source, id), hashed to 128 bits. Rows of equal identity, type, subject and time collapse in ClickHouse
//! whenever they come. One that comes again with another time or subject is found in step 2 and takes the stored key, so
//! that it collapses too. A gateway's rounds follow each other, so step 2 sees all that it confirmed before; what another
//! gateway stores at the same moment is seen in step 4 ([`identity`]).

mod commit;
mod identity;
mod judge;

pub use commit::{CommitError, Committer, Reject, Submission};
pub use judge::{Judge, Judged};
