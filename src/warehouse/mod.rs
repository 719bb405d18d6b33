//! ClickHouse: the only place that talks to it.
//!
//! [`schema`], [`select`], [`counted`] and [`row`] are pure text and bytes; [`client`] does the I/O, each call with a deadline.

mod balance;
mod begun;
mod cancellations;
mod client;
pub mod counted;
mod customers;
mod fed;
mod fence;
mod identities;
pub mod layout;
mod listings;
pub mod note;
mod purge;
mod reading;
mod replicas;
pub mod retention;
pub mod row;
pub mod run;
pub mod schema;
pub mod select;
pub mod sql;
mod tables;
mod topology;

pub use begun::Begun;
pub use cancellations::Recorded;
pub use client::{Error, Insert, Query, Rows, Warehouse, WarehouseOptions};
pub use fed::Asked;
pub use fence::Fence;
pub use identities::{CLAIMS, Claim, Identities, IdentityPart, IdentityTable, StoredKey};
pub use listings::{EventRecord, RejectRecord};
pub use reading::Others;
pub use tables::{BACKFILL, insert_name};
pub use topology::{Cluster, Topology};
