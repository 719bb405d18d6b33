//! Kubemeter: usage metering for SaaS on Kubernetes, kept in ClickHouse.
//!
//! # The way of an event
//! ```text
//! POST /events ─► http ─► event     parse once: CloudEvents in any form → Event
//!                         ingest    judge against the catalog, group-commit, answer after ClickHouse did
//!                         warehouse one INSERT into the landing table; views fill events, identities, meters
//! GET  /usage  ─► http ─► usage     a request → a checked Query
//!                         warehouse one SELECT … FINAL from the meter's active table → exact decimals
//! ```
//! # The way of a Meter
//! ```text
//! kubectl apply ─► API server ─► controller    watch, finalizer, status   (in `dev`: folder)
//!                                reconcile     observe → plan → apply
//!                                meter         spec → Definition, or why not
//!                                warehouse     DDL: meter table, view, backfill
//!                                └─► status.active ─► catalog (what every gateway knows)
//! ```
//! Pure modules (`meter`, `event`, `plan`, `warehouse::{schema, select}`) do no I/O.

pub mod api;
pub mod catalog;
pub mod catalog_watch;
pub mod cluster;
pub mod command;
pub mod controller;
pub mod engine;
pub mod event;
pub mod folder;
pub mod http;
pub mod ingest;
pub mod limits;
pub mod meter;
pub mod metering;
pub mod plan;
pub mod reconcile;
pub mod registry;
pub mod service;
pub mod telemetry;
pub mod warehouse;
pub mod yaml;
