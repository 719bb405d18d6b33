//! Stored events by the million, fast: rows made inside ClickHouse, claimed and then through the landing table. Some by HTTP.

use std::cell::RefCell;
use std::time::Instant;

use hyper::{Method, StatusCode};
use kubemeter::warehouse::row::{COLUMNS, IDENTITY_COLUMNS, written_again_sql};

use crate::setup::Setup;
use crate::stored::Pass;
use crate::{Result, progress};

/// Rows of one INSERT.
const STEP: u64 = 250_000;
/// Events of one request, and how many connections send such.
const POST: (u64, usize) = (1_000, 16);

/// Stores the events of a pass.
pub async fn load(setup: &Setup, pass: &Pass) -> Result<()> {
    let began = Instant::now();
    let mut direct = setup.clickhouse().await?;
    let mut at = pass.numbers.start;
    while at < pass.numbers.end {
        let end = (at + STEP).min(pass.numbers.end);
        let rows = pass.rows(&(at..end));
        setup
            .run(&mut direct, &format!("INSERT INTO kubemeter.identities ({IDENTITY_COLUMNS}) SELECT {IDENTITY_COLUMNS} FROM ({rows})"))
            .await?;
        setup.run(&mut direct, &format!("INSERT INTO kubemeter.{} ({COLUMNS}) SELECT {COLUMNS} FROM ({rows})", setup.landing)).await?;
        at = end;
        if at.is_multiple_of(10 * STEP) || at == pass.numbers.end {
            let (done, all) = (millions(at), millions(pass.numbers.end));
            progress(format_args!("{done:.2} of {all:.2} million events loaded, {} s", began.elapsed().as_secs()));
        }
    }
    setup.quiet().await
}

/// Posts the events of a pass to the gateway, for the first time or again: all of them must be accepted.
pub async fn post(setup: &Setup, pass: &Pass) -> Result<()> {
    let began = Instant::now();
    let starts = RefCell::new(pass.numbers.clone().step_by(POST.0 as usize));
    let posting = (0..POST.1).map(|_| async {
        let mut gateway = setup.gateway().await?;
        loop {
            let Some(start) = starts.borrow_mut().next() else { return Result::Ok(()) };
            let numbers = start..(start + POST.0).min(pass.numbers.end);
            let accepted = format!("{{\"accepted\":{},", numbers.end - numbers.start);
            let events = numbers.map(|number| pass.json(number)).collect::<Result<Vec<_>>>()?;
            let body = format!("[{}]", events.join(","));
            let answer = gateway.expect(StatusCode::ACCEPTED, Method::POST, "/events", "application/json", body.into()).await?;
            if !answer.starts_with(accepted.as_bytes()) {
                return Err(format!("not all was accepted: {}", String::from_utf8_lossy(&answer)).into());
            }
        }
    });
    futures::future::try_join_all(posting).await?;
    let events = millions(pass.numbers.end - pass.numbers.start);
    progress(format_args!("{events:.2} million events posted, {:.0} s", began.elapsed().as_secs_f64()));
    setup.quiet().await
}

/// Writes every event again whose number leaves a rest, as a gateway does with what comes again and may not be
/// everywhere: the same rows, whose versions say so.
pub async fn repeat(setup: &Setup, pass: &Pass, every: u64, rest: u64) -> Result<()> {
    let mut direct = setup.clickhouse().await?;
    let again = COLUMNS.replace("version", &written_again_sql());
    let mut at = pass.numbers.start;
    while at < pass.numbers.end {
        let end = (at + STEP * every).min(pass.numbers.end);
        let rows = pass.rows(&(at..end));
        let sql =
            format!("INSERT INTO kubemeter.{} ({COLUMNS}) SELECT {again} FROM ({rows}) WHERE number % {every} = {rest}", setup.landing);
        setup.run(&mut direct, &sql).await?;
        at = end;
    }
    Ok(())
}

pub fn millions(events: u64) -> f64 {
    events as f64 / 1e6
}
