//! One identity, one key: claimed in ClickHouse before an event is written.
//!
//! A key is what rows of one event collapse by: type, subject and time. Whoever has an identity that nobody has claimed
//! claims it for its own key, and then looks who else did. ClickHouse numbers INSERTs in the order in which they become
//! visible, so everybody who looks after its own claim sees every earlier one, and the first claim is the same to all: its
//! key is the identity's, for ever. Only then is the event written, under that key. So whatever is cut off where, and
//! however many gateways write at once, no identity ever has rows under two keys.
//!
//! Of all who claim an identity one at most sees no other claim: the first one, if it looks before the second claims. It
//! alone writes a *first sending*, once; everybody else's rows say that there may be others ([`crate::warehouse::row`]).

use tokio::sync::watch;

use super::look::{Claims, Ids, Lookup};
use super::send::{INSERT, pieces, retried};
use crate::warehouse::row::{IDENTITY_COLUMNS, Row};
use crate::warehouse::{CLAIMS, Claim, Error, Insert, Warehouse};

/// Most claims of an event that can't be stored while a purge runs, however often it is sent: a ClickHouse that takes claims and no events
/// shall not fill its disk.
const MOST: u32 = 8;

/// Claims what is new among rows of different identities, of which `first` are those that were claimed before. Tells the first
/// claims of these and of all identities that are claimed more than once. What it doesn't tell is this round's alone. And the number
/// of the INSERT of what it claimed, where it is known. Says so when it has `claimed` what is new.
pub(super) async fn claim(
    warehouse: &Warehouse,
    lookup: &mut Lookup,
    rows: &[&Row],
    mut first: Claims,
    claimed: watch::Sender<bool>,
) -> Result<(Claims, Option<u64>), Error> {
    let new: Vec<&Row> = rows.iter().copied().filter(|row| !first.contains_key(&row.identity)).collect();
    if new.is_empty() {
        return Ok((first, None));
    }
    // Claimed twice by a retry, it is claimed for the same key, and not taken for a first sending.
    insert_claims(warehouse, &new).await?;
    claimed.send_replace(true);
    let ids: Vec<u128> = new.iter().map(|row| row.identity).collect();
    let (contested, block) = lookup.after(&ids).await?;
    first.extend(contested);
    Ok((first, block))
}

/// Claims anew what was `claimed` and is not stored, and notes there whose claim is the first by now: the purge that runs removes claims from
/// before it ([`crate::warehouse::Fence::is_purging`]), and may have done so since they were looked at, and then somebody else may have
/// claimed the identity. Gives those that can't be stored before the purge has ended: of claims with different keys it isn't known which will
/// be the first.
pub(super) async fn claim_again<'a>(
    warehouse: &Warehouse,
    lookup: &Lookup,
    rows: impl Iterator<Item = &'a mut Row>,
    claimed: &mut Claims,
) -> Result<Ids, Error> {
    let (mut again, mut ids, mut held_up) = (Vec::new(), Ids::default(), Ids::default());
    for row in rows {
        let Some(Claim { key, count, .. }) = claimed.get(&row.identity) else { continue };
        if *count >= MOST {
            held_up.insert(row.identity);
        } else if key.event_type == row.event.attributes.event_type() && ids.insert(row.identity) {
            row.adopt(key);
            again.push(&*row);
        }
    }
    insert_claims(warehouse, &again).await?;
    let first = lookup.confirmed(ids.into_iter().collect()).await?;
    held_up.extend(first.iter().filter(|(_, claim)| !claim.has_one_key).map(|(id, _)| *id));
    claimed.extend(first);
    Ok(held_up)
}

/// Writes claims of rows' identities for the keys that they have.
async fn insert_claims(warehouse: &Warehouse, rows: &[&Row]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let bytes = rows.iter().map(|row| row.encoded_identity_len()).sum();
    let (table, columns) = ("identities", IDENTITY_COLUMNS);
    let insert = Insert { table, columns, bytes, name: CLAIMS, deadline: INSERT, is_alone: false, fence: None };
    retried(warehouse, || warehouse.insert(insert, pieces(rows, bytes, Row::encode_identity))).await
}
