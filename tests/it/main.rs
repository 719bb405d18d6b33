//! The integration tests, against the real parts. One binary, so that they are linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../support/mod.rs"]
mod support;

mod again;
mod begun;
mod behind;
mod catalog;
mod chart;
mod chart_rights;
mod cluster;
mod controller;
mod counting;
mod crds;
mod customers;
mod cut;
mod dev;
mod edits;
mod engine;
mod faults;
mod fence;
mod halt;
mod image;
mod killed;
mod lab;
mod leader;
mod load;
mod many;
mod names;
mod nowhere;
mod operator;
mod outside;
mod parity;
mod registry;
mod replicas;
mod retention;
mod rig;
mod rights;
mod secrets;
mod shards;
mod tls;
mod two_leaders;
mod unfinished;
mod way;
mod whole;
mod windows;
