//! What a meter table's comment says: all that the operator knows of a table, so that a restart goes on where it was. Pure.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::retention::Month;
use super::run::Run;
use super::sql::{identifier, literal};
use super::topology::Topology;

/// What a meter table's comment says: whose it is and how far it has come. The operator trusts nothing else.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TableNote {
    /// UID of the Meter. A table without it is never dropped or adopted.
    pub uid: String,
    /// The Meter's namespace.
    pub namespace: String,
    /// The Meter's name.
    pub meter: String,
    /// Where the table is in its life.
    pub state: TableState,
    /// What was stored before the table had a view; None: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<StoredBefore>,
    /// Number of the last block of `events` that was copied before the table had a view, in the same life of ClickHouse as `before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<u64>,
    /// The last month of which rows may be gone, by the Meter's [retention](super::retention), or were never copied. None: all are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub let_go: Option<Month>,
}

impl TableNote {
    /// Whether a table that has its view has every event that is stored, of months that were not let go.
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, TableState::Live | TableState::Retired(_))
    }

    /// Whether no month from this one on was let go.
    pub fn has(&self, from: Month) -> bool {
        self.let_go.is_none_or(|gone| gone < from)
    }

    /// Makes a table's comment say it.
    ///
    /// # Errors
    /// When the note can't be written as JSON.
    pub fn alter(&self, topology: &Topology, database: &str, table: &str) -> Result<String, serde_json::Error> {
        Ok(format!(
            "ALTER TABLE {}.{}{} MODIFY COMMENT {}",
            identifier(database),
            identifier(table),
            topology.on_cluster(),
            literal(&serde_json::to_string(self)?)
        ))
    }
}

/// A moment in the life of `events`: what it has up to then can't have come to a table by a later view.
#[derive(Serialize, Deserialize, Clone, Copy, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StoredBefore {
    /// Number of the last INSERT.
    pub block: u64,
    /// That of the ClickHouse that gave it: the next one may give it a second time.
    #[serde(flatten)]
    pub run: Run,
    /// The table's UUID, for one that was restored from a backup numbers anew, too. Nil in notes of builds that did not ask.
    #[serde(default)]
    pub events: Uuid,
}

/// A meter table's life: `Ahead → New → Filling → Live → Retired → Going`, or `Retained` when its Meter has gone. Only from `Live` to
/// `Retired` there is a way back: a table that has missed events is never filled again, for some gateway may still ask it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum TableState {
    /// Made, and nothing feeds it: what was stored before is copied first, up to this month (`yyyymm`), so that INSERTs need not pay
    /// for a view meanwhile.
    Ahead(u32),
    /// Made; its view may not be there yet, and INSERTs that began before the view may still run.
    New,
    /// Every event from now on comes by the view; those that were not copied ahead are copied, up to this month.
    Filling(u32),
    /// Complete.
    Live,
    /// Another table answers since this time (s since 1970); gateways that don't know it yet still read this one.
    Retired(i64),
    /// It is being dropped: its view may be gone from some servers.
    Going,
    /// Its Meter has gone; it stays for people.
    Retained,
}
