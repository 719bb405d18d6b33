//! Stored events by the million, fast: rows made inside ClickHouse, claimed and then through the landing table.

use std::time::Instant;

use kubemeter::warehouse::row::{COLUMNS, IDENTITY_COLUMNS, written_again_sql};

use crate::setup::Setup;
use crate::stored::Pass;
use crate::{Result, progress};

/// Rows of one INSERT.
const STEP: u64 = 250_000;

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

/// Writes every event again whose number leaves a rest, as a gateway does with what comes again: the same rows, whose
/// versions say so.
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
