//! Meters: tables, views, retention, the edit switch.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use super::backfill::Job;
use super::counts::Counted;
use super::{Error, Outcome, Reconciler, transition};
use crate::api::{ActiveMeter, BackfillProgress, ConditionType, Conditions, DeletionPolicy, Meter, MeterStatus, Reason};
use crate::meter::{Definition, Measure};
use crate::plan::{self, Observed, Step, plan};
use crate::warehouse::Topology;
use crate::warehouse::layout::{Layout, view};
use crate::warehouse::note::{TableNote, TableState};
use crate::warehouse::retention::{Kept, Month};

/// How often a Meter whose table is being filled is looked at again.
const FILLING: Duration = Duration::from_secs(1);
/// How often the counts in a Meter's status are read again.
const COUNTS: Duration = Duration::from_secs(300);
/// How often a Meter whose events are being counted is looked at again.
const COUNTING: Duration = Duration::from_secs(15);

impl Reconciler {
    /// Provisions what the Meter says. A long backfill goes on in the background; `requeue` asks to come and look.
    ///
    /// # Errors
    /// When ClickHouse fails; an invalid spec is no error but a status that says so.
    pub async fn meter(&self, meter: &Meter) -> Result<Outcome<MeterStatus>, Error> {
        let definition = match Definition::parse(&meter.spec) {
            Ok(definition) => definition,
            Err(wrong) => {
                let wrong = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Ok(self.invalid(meter, &format!("Change the spec: {wrong}")).await);
            }
        };
        let landings = self.warehouse.ensure_bootstrap().await?;
        self.mend().await?;
        let uid = meter.uid().unwrap_or_default();
        let namespace = meter.namespace().unwrap_or_default();
        let layout = Layout::of(landings, &namespace, &definition);
        let stem = layout.stem(&uid);
        let generation = meter.metadata.generation.unwrap_or_default();
        let kept = self.kept(&definition).await?;
        let note = TableNote {
            uid: uid.clone(),
            namespace,
            meter: meter.name_any(),
            state: TableState::New,
            before: None,
            copied: None,
            let_go: kept.map(|kept| kept.may_go),
        };
        let answering = meter.status.as_ref().and_then(|status| status.active.as_ref()).map(|active| active.table.as_str());
        loop {
            let observed = Observed { first_kept: kept.map(|kept| (stem.clone(), kept.first)), ..self.observe(&uid).await? };
            if let Some(table) = observed.views.iter().find(|name| plan::is_of(&stem, name) && !name.ends_with(&view(""))) {
                return Err(Error::Refused(format!(
                    "a table {table} is there whose comment doesn't say that it is this Meter's: rename or drop it"
                )));
            }
            let target =
                plan::target(&stem, answering, &observed).unwrap_or_else(|| plan::new_table(&stem, generation, answering, &observed));
            let plan = plan(&target, answering, &observed, Timestamp::now().as_second());
            let mut filling = None;
            for step in &plan.steps {
                filling = self.apply(step, &target, &layout, &definition, &note, &observed).await?;
            }
            if plan.live {
                let ready = self.ready(meter, &definition, target.clone(), plan.again_s).await?;
                if let Some(kept) = kept
                    && let Err(why) = self.let_go(&uid, &target, kept.may_go).await
                {
                    tracing::warn!(%why, table = %target, "months that are past can't be let go; it is tried again");
                }
                return Ok(ready);
            }
            if let Some(progress) = filling {
                return Ok(self.backfilling(meter, &observed, progress).await);
            }
            // The table is made, or its backfill done: what is there now makes another plan.
        }
    }

    /// Stops counting, and drops the tables when the deletion policy says so. Idempotent.
    ///
    /// # Errors
    /// When ClickHouse fails.
    pub async fn forget_meter(&self, meter: &Meter) -> Result<(), Error> {
        let observed = self.observe(&meter.uid().unwrap_or_default()).await?;
        for (table, note) in &observed.tables {
            match meter.spec.deletion_policy {
                DeletionPolicy::Delete => self.drop(table, note).await?,
                DeletionPolicy::Retain => self.starve(table, note, TableState::Retained).await?,
            }
        }
        Ok(())
    }

    async fn observe(&self, uid: &str) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        for (name, comment) in self.warehouse.tables_with_prefix(&format!("meter_{}_", uid.replace('-', ""))).await? {
            match serde_json::from_str::<TableNote>(&comment) {
                Ok(note) if note.uid == uid => drop(observed.tables.insert(name, note)),
                // A view, or a table that somebody else made: its name alone makes it nobody's.
                _ => drop(observed.views.insert(name)),
            }
        }
        Ok(observed)
    }

    async fn apply(
        &self,
        step: &Step,
        target: &str,
        layout: &Layout,
        definition: &Definition,
        note: &TableNote,
        observed: &Observed,
    ) -> Result<Option<BackfillProgress>, Error> {
        let warehouse = &self.warehouse;
        let (topology, database) = (warehouse.topology(), warehouse.database());
        let noted = observed.tables.get(target).unwrap_or(note);
        match step {
            Step::CreateTable => {
                warehouse.ensure_landing(layout.landing()).await?;
                // Before there can be a view: what was stored by now can't come by it.
                let before = warehouse.stored_before().await?;
                let state = if before.is_some() { TableState::Ahead(0) } else { TableState::New };
                let note = TableNote { state, before, ..note.clone() };
                warehouse.run_all_ddl(&layout.create_table(topology, database, target, &note)?).await?;
            }
            Step::CreateView => {
                warehouse.ensure_landing(layout.landing()).await?;
                self.on_every_shard(layout, target, note).await?;
                warehouse.run_ddl(&layout.create_view(topology, database, target)).await?;
            }
            // An INSERT that began before the view was made may store events after the backfill has passed their place.
            // Those that begin now meet the view.
            Step::Fence => {
                warehouse.await_inserts(layout.landing()).await?;
                // Another operator may believe to lead, too, for a moment, and have come further.
                if self.observe(&note.uid).await?.tables.get(target).map(|note| &note.state) != Some(&TableState::New) {
                    return Err(Error::Unavailable(format!("table {target} is no longer as it was planned to be filled")));
                }
                self.note(target, &TableNote { state: TableState::Filling(0), ..noted.clone() }).await?;
            }
            Step::CopyAhead { after } | Step::Backfill { after } => {
                let copy = layout.backfill(topology, database, target);
                let (warehouse, table, event_type) = (warehouse.clone(), target.to_owned(), definition.event_type.clone());
                let after = noted.let_go.map_or(*after, |gone| gone.max(*after));
                return self.backfills.advance(Job { warehouse, table, copy, event_type, note: noted.clone(), after }).await;
            }
            Step::Revive => self.note(target, &TableNote { state: TableState::Live, ..noted.clone() }).await?,
            Step::Retire(table) => {
                if let Some(before) = observed.tables.get(table) {
                    self.note(table, &TableNote { state: TableState::Retired(Timestamp::now().as_second()), ..before.clone() }).await?;
                }
            }
            Step::Drop(table) => {
                assert!(observed.tables.contains_key(table), "only a table whose comment names this Meter is dropped");
                // Another operator may believe to lead, too, for a moment, and have revived it since.
                if self.observe(&note.uid).await?.tables.get(table) != observed.tables.get(table) {
                    return Err(Error::Unavailable(format!("table {table} is no longer as it was planned to be dropped")));
                }
                if let Some(note) = observed.tables.get(table) {
                    self.drop(table, note).await?;
                }
            }
        }
        Ok(None)
    }

    /// Ends that a table is fed. What it is from now on is noted first: whichever server a gateway asks then, it hears of it.
    async fn starve(&self, table: &str, note: &TableNote, state: TableState) -> Result<(), Error> {
        let note = TableNote { state, ..note.clone() };
        assert!(!note.is_complete(), "table {table} would lose its view while gateways answer from it");
        self.backfills.stop(table);
        self.counts.forget(table);
        let (topology, database) = (self.warehouse.topology(), self.warehouse.database());
        // A shard that came back empty has none.
        self.warehouse.run_ddl_where_there(&note.alter(topology, database, table)?).await?;
        Ok(self.warehouse.run_ddl(&topology.drop_one(database, &view(table))).await?)
    }

    async fn drop(&self, table: &str, note: &TableNote) -> Result<(), Error> {
        self.starve(table, note, TableState::Going).await?;
        Ok(self.warehouse.run_all_ddl(&self.warehouse.topology().drop(self.warehouse.database(), table)).await?)
    }

    /// What a Meter's retention says by now. None: all is kept, for ever.
    async fn kept(&self, definition: &Definition) -> Result<Option<Kept>, Error> {
        let Some(days) = definition.retention_days else { return Ok(None) };
        let clickhouse = self.warehouse.now().await?;
        Ok(Some(Kept::by([Timestamp::now(), clickhouse], days)))
    }

    /// Drops what a table has of months that may go. No answer is read of them from when they are noted.
    async fn let_go(&self, uid: &str, table: &str, month: Month) -> Result<(), Error> {
        let warehouse = &self.warehouse;
        let partitions = warehouse.partitions_until(table, month).await?;
        if partitions.is_empty() {
            return Ok(());
        }
        let observed = self.observe(uid).await?;
        let Some(note) = observed.tables.get(table).filter(|note| note.is_complete()) else { return Ok(()) };
        if note.has(month) {
            self.note(table, &TableNote { let_go: Some(month), ..note.clone() }).await?;
        }
        for partition in partitions {
            warehouse.run_ddl(&Layout::drop_partition(warehouse.topology(), warehouse.database(), table, &partition)).await?;
        }
        Ok(())
    }

    /// Makes a table on the shards that lack it, because making it was cut off or the shard came back empty.
    async fn on_every_shard(&self, layout: &Layout, target: &str, note: &TableNote) -> Result<(), Error> {
        let warehouse = &self.warehouse;
        if let topology @ Topology::Cluster(_) = warehouse.topology() {
            warehouse.run_all_ddl(&layout.create_table(topology, warehouse.database(), target, note)?).await?;
        }
        Ok(())
    }

    async fn note(&self, table: &str, note: &TableNote) -> Result<(), Error> {
        let warehouse = &self.warehouse;
        Ok(warehouse.run_ddl(&note.alter(warehouse.topology(), warehouse.database(), table)?).await?)
    }

    async fn ready(
        &self,
        meter: &Meter,
        definition: &Definition,
        target: String,
        again_s: Option<i64>,
    ) -> Result<Outcome<MeterStatus>, Error> {
        let (counts, counts_again) = self.counts(meter, &target, definition, Duration::ZERO).await;
        let before = meter.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        let message = format!("Counts events of type {} in table {target}.", definition.event_type);
        let conditions = Conditions::after(&before, meter.metadata.generation, Timestamp::now())
            .with(ConditionType::Ready, true, Reason::Provisioned, &message)
            .build();
        let notices = transition(&before, &conditions, Reason::Provisioned);
        let status = MeterStatus {
            observed_generation: meter.metadata.generation,
            conditions,
            active: Some(definition.active(target)),
            backfill: None,
            events: counts.map(|counts| counts.events),
            uncounted_events: counts.map(|counts| counts.uncounted),
        };
        let requeue = again_s.and_then(|s| u64::try_from(s).ok()).map_or(COUNTS, |s| Duration::from_secs(s.max(1)).min(COUNTS));
        let requeue = requeue.min(counts_again);
        Ok(Outcome { status, notices, requeue: Some(requeue) })
    }
}

impl Reconciler {
    /// What the table has that answers, in which it may be seen that events came which can't be counted; and when to count again. While it
    /// is not counted yet that is what the status says, if it says it of this table.
    async fn counts(&self, meter: &Meter, table: &str, definition: &Definition, fresh: Duration) -> (Option<Counted>, Duration) {
        let (counted, is_running) = self.counts.of(&self.warehouse, table, definition.measure != Measure::Count, fresh).await;
        let said = meter.status.as_ref().filter(|status| status.active.as_ref().is_some_and(|active| active.table == table));
        let said = said.and_then(|said| Some(Counted { events: said.events?, uncounted: said.uncounted_events? }));
        (counted.or(said), if is_running { COUNTING } else { COUNTS })
    }

    /// The same of what the status says that answers.
    async fn counts_of(&self, meter: &Meter, active: Option<&ActiveMeter>, fresh: Duration) -> (Option<Counted>, Duration) {
        match active.and_then(|active| Some((&active.table, Definition::parse_active(active).ok()?))) {
            Some((table, definition)) => self.counts(meter, table, &definition, fresh).await,
            None => (None, COUNTS),
        }
    }

    async fn invalid(&self, meter: &Meter, message: &str) -> Outcome<MeterStatus> {
        let before = meter.status.clone().unwrap_or_default();
        let conditions = Conditions::after(&before.conditions, meter.metadata.generation, Timestamp::now())
            .with(ConditionType::Ready, false, Reason::InvalidSpec, message)
            .with(ConditionType::Stalled, true, Reason::InvalidSpec, message)
            .build();
        let notices = transition(&before.conditions, &conditions, Reason::InvalidSpec);
        // What answered before goes on, and is fed.
        let (counts, again) = self.counts_of(meter, before.active.as_ref(), Duration::ZERO).await;
        let requeue = before.active.is_some().then_some(again);
        let status = MeterStatus {
            conditions,
            observed_generation: meter.metadata.generation,
            events: counts.map(|counts| counts.events),
            uncounted_events: counts.map(|counts| counts.uncounted),
            ..before
        };
        Outcome { status, notices, requeue }
    }

    async fn backfilling(&self, meter: &Meter, observed: &Observed, progress: BackfillProgress) -> Outcome<MeterStatus> {
        let before = meter.status.clone().unwrap_or_default();
        // The table that answered before goes on answering, as long as it is there and complete.
        let active: Option<ActiveMeter> = before.active.clone().filter(|active| plan::can_answer(&active.table, observed));
        let (counts, _) = self.counts_of(meter, active.as_ref(), COUNTS).await;
        let until = if active.is_some() {
            "Usage is answered by the previous definition until then."
        } else {
            "Usage is answered when it is complete."
        };
        let message = format!("Copying stored events: {} of {} months done. {until}", progress.months_done, progress.months_total);
        let conditions = Conditions::after(&before.conditions, meter.metadata.generation, Timestamp::now())
            .with(ConditionType::Ready, false, Reason::Backfilling, &message)
            .with(ConditionType::Reconciling, true, Reason::Backfilling, &message)
            .build();
        let notices = transition(&before.conditions, &conditions, Reason::Backfilling);
        let status = MeterStatus {
            observed_generation: meter.metadata.generation,
            conditions,
            active,
            backfill: Some(progress),
            events: counts.map(|counts| counts.events),
            uncounted_events: counts.map(|counts| counts.uncounted),
        };
        Outcome { status, notices, requeue: Some(FILLING) }
    }
}
