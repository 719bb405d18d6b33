//! What an event takes on the disk, by column.

use crate::report::{Section, Table};
use crate::setup::Setup;
use crate::{Result, load};

/// Reads what the parts of the tables take into the report; the bytes of one event in all.
pub async fn measure(setup: &Setup, report: &mut Section) -> Result<f64> {
    let mut direct = setup.clickhouse().await?;
    let tables = ["events", "identities", &setup.table];
    let mut all = 0.0;
    let mut table = Table::new("Bytes on disk per event", &["table", "bytes per row", "of that, by column (compressed)"]);
    let mut rows = 0;
    for (name, shown) in tables.into_iter().zip(["`events`: all that was sent", "`identities`", "one meter: Sum by two groups"]) {
        let of = format!("WHERE active AND database = 'kubemeter' AND table = '{name}'");
        let whole = setup.run(&mut direct, &format!("SELECT sum(bytes_on_disk) / sum(rows), sum(rows) FROM system.parts {of}")).await?;
        let (bytes, count) = whole.split_once('\t').ok_or("system.parts has another form")?;
        let bytes: f64 = bytes.parse()?;
        (all, rows) = (all + bytes, count.parse::<u64>()?.max(rows));
        // Small parts keep all columns in one file, which is in the whole alone.
        let columns = setup
            .run(
                &mut direct,
                &format!(
                    "SELECT arrayStringConcat(groupArray(text), ', ') FROM (SELECT column || ' ' || toString(round(sum(column_data_compressed_bytes) / sum(rows), 2)) AS text \
                     FROM system.parts_columns {of} AND part_type = 'Wide' GROUP BY column ORDER BY sum(column_data_compressed_bytes) DESC)"
                ),
            )
            .await?;
        table.row([shown.to_owned(), format!("{bytes:.1}"), columns]);
    }
    table.row(["all three".to_owned(), format!("**{all:.1}**"), String::new()]);
    table.note(format!(
        "Of {:.2} million events, after merges came to rest. A row's bytes have marks and indexes in them; the columns are those of wide parts, \
         without. The id's text is in `events` alone: elsewhere is its hash of 16 bytes, which is random and compresses to as much.",
        load::millions(rows)
    ));
    report.table(table);
    Ok(all)
}
