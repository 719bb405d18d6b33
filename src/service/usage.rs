//! fetchUsage: the meter's active table, one SELECT, exact decimals.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bigdecimal::{BigDecimal, RoundingMode};
use jiff::Timestamp;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Service, invalid};
use crate::api::Aggregation;
use crate::catalog::KnownMeter;
use crate::limits;
use crate::meter::Definition;
use crate::metering::{Error, Usage, UsageQuery, UsageRow};
use crate::registry::Registry;
use crate::warehouse::{
    self, Asked,
    counted::Reading,
    select::{self, Source, UsageRecord},
};

/// Deadline of a usage query.
const USAGE: Duration = Duration::from_secs(60);
/// Decimals of an average: as many as a value has.
const AVERAGE_DECIMALS: i64 = 12;

impl<R: Registry> Service<R> {
    pub(super) async fn usage(&self, namespace: &str, meter_id: &str, query: UsageQuery) -> Result<Usage, Error> {
        let meter = self.known_meter(namespace, meter_id)?;
        let (table, definition) = active(&meter)?;
        check_names(definition, &query)?;
        let reading = self.warehouse.reading_for(table, definition, &query).await?;
        let asked = Asked::of(table, definition, query.from);
        let let_go = match definition.retention_days {
            Some(_) => self.warehouse.whole(&asked).await?,
            None => None,
        };
        let database = self.warehouse.database();
        let source = Source { database, namespace, table, definition, reading: &reading, let_go, subjects: None };
        let ask = |subjects: Option<Arc<[String]>>| {
            let query = &query;
            async move { self.records(&Source { subjects: subjects.as_deref(), ..source }, query).await }
        };
        let guess = |most| self.catalog.guess_subjects(namespace, &query.customers, most);
        let records = match self.warehouse.with_subjects(namespace, &query, guess, ask).await {
            // Something was written again since then. What ClickHouse refuses for another reason it refuses in this way, too.
            Err(warehouse::Error::Refused(_)) if matches!(reading, Reading::FirstsAlone | Reading::Balanced | Reading::NearlyBalanced) => {
                self.records(&Source { reading: &Reading::ByKind, ..source }, &query).await
            }
            records => records,
        };
        let records = match records {
            Err(warehouse::Error::Refused(_)) if query.window_size.is_some() && !self.warehouse.has_zone(&query.time_zone).await? => {
                let zone = query.time_zone.iana_name().unwrap_or_default();
                return Err(invalid(
                    "invalid_parameter",
                    format!("windowTimeZone: this ClickHouse has no time zone {zone}: name an older one"),
                ));
            }
            records => records?,
        };
        self.warehouse.still_whole(&asked, let_go).await?;
        if records.len() as u64 > limits::USAGE_ROWS {
            return Err(invalid(
                "too_many_rows",
                format!("the answer has over {} rows: ask for a shorter time, longer windows or fewer groups", limits::USAGE_ROWS),
            ));
        }
        let data = records.into_iter().map(|record| row(definition, &query, record)).collect::<Result<_, _>>()?;
        Ok(Usage {
            meter_id: meter_id.to_owned(),
            unit: definition.unit.clone(),
            from: query.from,
            to: query.to,
            window_size: query.window_size,
            window_time_zone: query.time_zone.iana_name().unwrap_or("UTC").to_owned(),
            data,
        })
    }

    async fn records(&self, source: &Source<'_>, query: &UsageQuery) -> Result<Vec<UsageRecord>, warehouse::Error> {
        let statement = select::usage(source, query, Uuid::new_v4().as_u64_pair().1.cast_signed());
        let records = self.warehouse.query(&statement.sql).bind_all(statement.params).within(USAGE).rows();
        records.instrument(tracing::info_span!("SELECT", table = source.table)).await
    }

    pub(super) fn known_meter(&self, namespace: &str, meter_id: &str) -> Result<Arc<KnownMeter>, Error> {
        self.synced()?;
        self.catalog
            .meter(namespace, meter_id)
            .ok_or_else(|| Error::NotFound(format!("there is no meter {meter_id:?} in namespace {namespace}")))
    }
}

/// The table that answers, and how to read it.
pub(super) fn active(meter: &KnownMeter) -> Result<(&str, &Definition), Error> {
    match &meter.active {
        Some((table, definition)) => Ok((table, definition)),
        None => Err(Error::Unavailable {
            message: format!("meter {} has no complete table yet: its status says how far it is", meter.meter_id),
            retry_after: 2,
        }),
    }
}

/// Group and filter names must be the meter's, so that no name from outside reaches SQL.
pub(super) fn check_names(definition: &Definition, query: &UsageQuery) -> Result<(), Error> {
    let declared = || definition.group_by.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(name) =
        query.group_by.iter().find(|name| !matches!(name.as_str(), "customer" | "subject") && !definition.group_by.contains_key(*name))
    {
        return Err(invalid("unknown_group", format!("groupBy={name}: the meter has customer, subject, {}", declared())));
    }
    if let Some(name) = query.filters.keys().find(|name| !definition.group_by.contains_key(*name)) {
        return Err(invalid("unknown_group", format!("filter[{name}]: the meter has {}", declared())));
    }
    Ok(())
}

fn row(definition: &Definition, query: &UsageQuery, record: UsageRecord) -> Result<UsageRow, Error> {
    let names = query.group_by.iter().filter(|name| !matches!(name.as_str(), "customer" | "subject"));
    let group_by: BTreeMap<_, _> = names.cloned().zip(record.groups).collect();
    let value = if definition.aggregation() == Aggregation::Average { average(&record.value, record.events)? } else { record.value };
    let second = |s: u32| Timestamp::from_second(s.into()).map_err(|why| Error::Internal(format!("a window is outside time: {why}")));
    let (start, end) = match query.window_size {
        None => (query.from, query.to),
        // A window is cut to what was asked, so that its number is of exactly this time.
        Some(_) => {
            let (start, end) = (second(record.window_start)?, second(record.window_end)?);
            (Some(query.from.map_or(start, |from| from.max(start))), Some(query.to.map_or(end, |to| to.min(end))))
        }
    };
    Ok(UsageRow {
        window_start: start,
        window_end: end,
        customer: query.group_by.contains("customer").then_some(record.customer),
        subject: query.group_by.contains("subject").then_some(record.subject),
        group_by,
        value,
    })
}

/// Sum over count, rounded half-even.
fn average(sum: &str, count: u64) -> Result<String, Error> {
    let sum: BigDecimal = sum.parse().map_err(|_| Error::Internal(format!("ClickHouse answered {sum:?} for a sum")))?;
    let count = NonZeroU64::new(count).ok_or_else(|| Error::Internal("ClickHouse answered an average of no events".to_owned()))?;
    // Division in whole numbers of 10^-13 and a remainder: exact before the one rounding.
    let (digits, scale) = sum.into_bigint_and_scale();
    let numerator = BigDecimal::new(digits, scale).with_scale(AVERAGE_DECIMALS + 1);
    let (scaled, _) = numerator.into_bigint_and_scale();
    let count = bigdecimal::num_bigint::BigInt::from(count.get());
    let (quotient, remainder) = (&scaled / &count, &scaled % &count);
    // One more digit than is kept says "there is more", so that a tie is only a true tie.
    let sticky = BigDecimal::new(
        quotient * 10
            + if remainder == bigdecimal::num_bigint::BigInt::ZERO {
                0
            } else if scaled.sign() == bigdecimal::num_bigint::Sign::Minus {
                -1
            } else {
                1
            },
        AVERAGE_DECIMALS + 2,
    );
    Ok(sticky.with_scale_round(AVERAGE_DECIMALS, RoundingMode::HalfEven).normalized().to_plain_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_round_half_even_and_only_true_ties() {
        for (sum, count, mean) in [
            ("1", 3, "0.333333333333"),
            ("2", 3, "0.666666666667"),
            ("-2", 3, "-0.666666666667"),
            ("0.000000000001", 2, "0"),
            ("0.000000000003", 2, "0.000000000002"),
            ("-0.000000000003", 2, "-0.000000000002"),
            ("0.000000000001", 3, "0"),
            ("10", 4, "2.5"),
            ("600", 6, "100"),
            ("0", 7, "0"),
            ("99999999999999999999999999999999.999999999999", 1, "99999999999999999999999999999999.999999999999"),
        ] {
            assert_eq!(average(sum, count).unwrap(), mean, "{sum}/{count}");
        }
    }
}
