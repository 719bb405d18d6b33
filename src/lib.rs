//! Kubemeter: usage metering for SaaS on Kubernetes, kept in ClickHouse.
//!
//! # The way of an event
//! ```text
//! every call   ─► auth      who is it, by TokenReview or an API key; may they, by SubjectAccessReview
//! POST /events ─► http      limits, decompression; a body → event::parse → Items
//!                 metering  the trait that http calls: the ten functions of IMetering
//!                 service   what implements it: commands to the registry, events to
//!                 ingest    judge by the catalog, group-commit, answer after ClickHouse did
//!                 warehouse claims in identities, then one INSERT into the landing table; views fill events and meters
//! GET  /usage  ─► http      a request → a checked UsageQuery
//!                 service   names checked by the meter; averages, windows cut to what was asked
//!                 warehouse one SELECT of the rows that count in the meter's active table → exact decimals
//! /meters      ─► http ─► metering ─► service ─► registry: the Kubernetes API, or a folder in `dev`
//! ```
//! # The way of a Meter
//! ```text
//! kubectl apply ─► API server ─► controller    watch, finalizer, status   (in `dev`: folder, with a plan of its own)
//!                                reconcile     observe → plan → apply
//!                                meter         spec (api::Meter) → Definition, or why not
//!                                warehouse     DDL: meter table, view, backfill
//!                                balance       beside it, from time to time: sums after repeats and cancellations
//!                                └─► status.active ─► catalog (what every gateway knows)
//! ```
//! Pure modules (`meter`, `event`, `plan`, `warehouse::{schema, select, counted}`) do no I/O.

pub mod api;
pub mod auth;
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
