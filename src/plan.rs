//! From what a Meter says and what ClickHouse has to the next steps. Pure.
//!
//! # The edit switch
//! A Meter's tables never change what they hold: another extraction is another table (its name has the layout's hash). And a table that
//! has missed events is never filled again: another takes its place, whose name has another ending, as one has that is made again after
//! an edit was taken back. So a gateway that has not heard of it finds the table that it knows incomplete, or none, for ever, and not one
//! that was filled while it read. Making a table that was cut off goes on under the same name.
//! The new one is filled beside the old one, which answers until the new one is [`TableState::Live`]; then `status.active`
//! names the new one, and the old one goes after [`GRACE_S`], when every gateway has heard of it. A query reads one table,
//! so no answer is a mixture.

use std::collections::{BTreeMap, BTreeSet};

use crate::warehouse::layout::view;
use crate::warehouse::note::{TableNote, TableState};
use crate::warehouse::retention::Month;

/// How long a table goes on being fed and read after another took its place, in seconds.
pub const GRACE_S: i64 = 30;

/// What ClickHouse has of one Meter, by UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Tables with what their comments say.
    pub tables: BTreeMap<String, TableNote>,
    /// Names of views.
    pub views: BTreeSet<String>,
    /// Of tables of a layout's stem the first month that a complete one has, by all clocks. None: it has all.
    pub first_kept: Option<(String, Month)>,
}

/// One step; each may run again, and a plan may be cut off after any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the table, noted as [`TableState::Ahead`], or as [`TableState::New`] where nothing can be copied ahead.
    CreateTable,
    /// Copy events that were stored before the table was made, of the months after this one (`yyyymm`), then note [`TableState::New`].
    CopyAhead {
        /// The last month that is copied.
        after: u32,
    },
    /// Make the target's view.
    CreateView,
    /// Wait for INSERTs that began before the view, then note [`TableState::Filling`].
    Fence,
    /// Copy stored events of the months after this one (`yyyymm`), then note [`TableState::Live`].
    Backfill {
        /// The last month that is copied.
        after: u32,
    },
    /// Note the target as live: it was retired and has been fed all along.
    Revive,
    /// Another table took this one's place just now.
    Retire(String),
    /// Drop a table and its view.
    Drop(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Whether the target is complete. One that is revived must be seen to be there first: another operator may have dropped it.
    pub live: bool,
    /// Come again after so many seconds though nothing changes.
    pub again_s: Option<i64>,
}

/// Whether a table has missed events, or lacks months that are kept, so that it can never be complete.
fn is_spoiled(table: &str, note: &TableNote, observed: &Observed) -> bool {
    let has_view = observed.views.contains(&view(table));
    match note.state {
        // Another operator believed to lead, too, and was quicker: what the view has brought may be copied as well.
        TableState::Ahead(_) => has_view,
        // All that is stored is copied after there is a view.
        TableState::New => false,
        // Without its view it missed events since nobody knows when.
        TableState::Filling(_) => !has_view,
        // Were clocks wrong, months went that are kept.
        TableState::Live | TableState::Retired(_) => {
            let lacks = |(stem, first): &(String, Month)| is_of(stem, table) && !note.has(*first);
            !has_view || observed.first_kept.as_ref().is_some_and(lacks)
        }
        TableState::Going | TableState::Retained => true,
    }
}

/// Whether what is read of a table may be answered.
pub fn can_answer(table: &str, observed: &Observed) -> bool {
    observed.tables.get(table).is_some_and(|note| note.is_complete() && !is_spoiled(table, note, observed))
}

/// The table that a Meter's spec needs, of those that have the layout's stem and can be complete: the one that answers, else the one that
/// has come furthest. None: there is none yet. Two operators that believe to lead may have made one each; builds before gave no ending.
pub fn target(stem: &str, answering: Option<&str>, observed: &Observed) -> Option<String> {
    let came = |table: &String, note: &TableNote| {
        let (state, month) = match note.state {
            TableState::Live => (5, 0),
            TableState::Retired(_) => (4, 0),
            TableState::Filling(month) => (3, month),
            TableState::New => (2, 0),
            TableState::Ahead(month) => (1, month),
            TableState::Going | TableState::Retained => (0, 0),
        };
        (Some(table.as_str()) == answering, state, month)
    };
    let found = observed.tables.iter().filter(|(table, note)| is_of(stem, table) && !is_spoiled(table, note, observed));
    // Of equals it is the first, for all operators.
    found.rev().max_by_key(|(table, note)| came(table, note)).map(|(table, _)| table.clone())
}

/// Whether a name is one of a layout's tables, or of their views.
pub fn is_of(stem: &str, name: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|ending| ending.is_empty() || ending.starts_with('_'))
}

/// The name of a table that is made for a generation of a Meter's spec: an earlier one of this layout was made for another, or was spoiled,
/// and is there or was said to answer until now. Then it has a number, too.
pub fn new_table(stem: &str, generation: i64, answering: Option<&str>, observed: &Observed) -> String {
    let first = format!("{stem}_{generation}");
    let number = |name: &str| match name.strip_prefix(&first)? {
        "" => Some(1_u64),
        ending => ending.strip_prefix('_')?.parse().ok(),
    };
    let last = observed.tables.keys().map(String::as_str).chain(answering).filter_map(number).max();
    last.map_or(first.clone(), |last| format!("{first}_{}", last.saturating_add(1)))
}

/// Plans for a target table. `answering` is the table that the stored status names: only when that is the target do the
/// others go, for gateways read what the stored status says.
pub fn plan(target: &str, answering: Option<&str>, observed: &Observed, now_s: i64) -> Plan {
    assert!(
        observed.tables.get(target).is_none_or(|note| !is_spoiled(target, note, observed)),
        "{target} would be filled, or answer, though it has missed events"
    );
    let fill = |after| vec![Step::CreateView, Step::Fence, Step::Backfill { after }];
    let mut steps = match observed.tables.get(target).map(|note| &note.state) {
        // What its comment says then, by whomever it was made, is what the next plan is made from.
        None => vec![Step::CreateTable],
        Some(TableState::Ahead(after)) => vec![Step::CopyAhead { after: *after }],
        Some(TableState::New) => fill(0),
        Some(TableState::Filling(after)) => vec![Step::Backfill { after: *after }],
        Some(TableState::Retired(_)) => vec![Step::Revive],
        Some(TableState::Live | TableState::Going | TableState::Retained) => Vec::new(),
    };
    let live = steps.is_empty();
    let mut again_s = None;
    if live && answering != Some(target) {
        // Come again when the status is stored.
        again_s = observed.tables.keys().any(|table| table != target).then_some(1);
    } else if live {
        for (table, note) in observed.tables.iter().filter(|(table, _)| *table != target) {
            match note.state {
                // Nothing is answered of it any more.
                _ if note.state != TableState::Retained && is_spoiled(table, note, observed) => steps.push(Step::Drop(table.clone())),
                TableState::Live => {
                    steps.push(Step::Retire(table.clone()));
                    again_s = again_s.max(Some(GRACE_S));
                }
                TableState::Retired(since) if now_s - since < GRACE_S => again_s = again_s.max(Some(GRACE_S - (now_s - since))),
                // Never answered a query, or no longer does.
                TableState::Ahead(_) | TableState::New | TableState::Filling(_) | TableState::Retired(_) | TableState::Going => {
                    steps.push(Step::Drop(table.clone()));
                }
                TableState::Retained => {}
            }
        }
    }
    // The edit switch: only what is complete is to answer, and what answers, and what will, stays.
    assert!(!live || can_answer(target, observed), "{target} would answer, but isn't complete");
    assert!(
        !steps
            .iter()
            .any(|step| matches!(step, Step::Retire(table) | Step::Drop(table) if table == target || Some(table.as_str()) == answering)),
        "a table that answers would go: {steps:?}"
    );
    Plan { steps, live, again_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(tables: &[(&str, TableState)], views: &[&str]) -> Observed {
        let note = |state: &TableState| TableNote {
            uid: "u".into(),
            namespace: "n".into(),
            meter: "m".into(),
            state: state.clone(),
            before: None,
            copied: None,
            let_go: None,
        };
        Observed {
            tables: tables.iter().map(|(name, state)| ((*name).to_owned(), note(state))).collect(),
            views: views.iter().map(|v| view(v)).collect(),
            first_kept: None,
        }
    }

    #[test]
    fn a_new_meter_is_made_fed_fenced_and_filled_in_this_order() {
        let made = plan("b", Some("b"), &observed(&[], &[]), 0);
        assert_eq!((made.steps, made.live), (vec![Step::CreateTable], false));
        let ahead = plan("b", Some("b"), &observed(&[("b", TableState::Ahead(202_601))], &[]), 0);
        assert_eq!((ahead.steps, ahead.live), (vec![Step::CopyAhead { after: 202_601 }], false));
        let fed = plan("b", Some("b"), &observed(&[("b", TableState::New)], &[]), 0);
        assert_eq!((fed.steps, fed.live), (vec![Step::CreateView, Step::Fence, Step::Backfill { after: 0 }], false));
    }

    #[test]
    fn work_goes_on_where_it_was_cut_off() {
        assert_eq!(
            plan("b", Some("b"), &observed(&[("b", TableState::New)], &[]), 0).steps,
            [Step::CreateView, Step::Fence, Step::Backfill { after: 0 }]
        );
        assert_eq!(
            plan("b", Some("b"), &observed(&[("b", TableState::New)], &["b"]), 0).steps,
            [Step::CreateView, Step::Fence, Step::Backfill { after: 0 }]
        );
        assert_eq!(
            plan("b", Some("b"), &observed(&[("b", TableState::Filling(202_601))], &["b"]), 0).steps,
            [Step::Backfill { after: 202_601 }]
        );
        assert_eq!(
            plan("b", Some("b"), &observed(&[("b", TableState::Live)], &["b"]), 0),
            Plan { steps: vec![], live: true, again_s: None }
        );
    }

    #[test]
    fn another_takes_the_place_of_a_table_that_has_missed_events() {
        for (state, has_view) in [
            (TableState::Live, false),
            (TableState::Filling(202_601), false),
            (TableState::Retired(0), false),
            (TableState::Ahead(202_601), true),
            (TableState::Going, true),
        ] {
            let views: &[&str] = if has_view { &["b_1", "b_1_2"] } else { &["b_1_2"] };
            let spoiled = observed(&[("b_1", state.clone())], &views[..views.len() - 1]);
            assert_eq!((target("b", Some("b_1"), &spoiled), can_answer("b_1", &spoiled)), (None, false), "{state:?}");
            assert_eq!(new_table("b", 1, None, &spoiled), "b_1_2");
            let replaced = observed(&[("b_1", state), ("b_1_2", TableState::Live)], views);
            assert_eq!(target("b", Some("b_1"), &replaced).as_deref(), Some("b_1_2"));
            assert_eq!(plan("b_1_2", Some("b_1"), &replaced, 0), Plan { steps: vec![], live: true, again_s: Some(1) });
            assert_eq!(plan("b_1_2", Some("b_1_2"), &replaced, 0).steps, [Step::Drop("b_1".into())]);
        }
    }

    #[test]
    fn no_name_is_given_twice_that_is_known() {
        let of = |tables: &[&str], answering| {
            new_table("b", 7, answering, &observed(&tables.iter().map(|table| (*table, TableState::Going)).collect::<Vec<_>>(), &[]))
        };
        assert_eq!(of(&[], None), "b_7");
        assert_eq!(of(&["b", "b_6", "b_6_9", "b_70", "bb_7", "b_7_x"], Some("b_5")), "b_7");
        assert_eq!(of(&["b_7"], None), "b_7_2");
        assert_eq!(of(&[], Some("b_7")), "b_7_2");
        assert_eq!(of(&["b_7_3"], Some("b_7_10")), "b_7_11");
    }

    #[test]
    fn another_takes_the_place_of_a_table_that_let_go_what_is_kept() {
        for (state, let_go, first_kept, is_whole) in [
            (TableState::Live, Some(202_601), Some(202_602), true),
            (TableState::Live, Some(202_602), Some(202_602), false),
            (TableState::Retired(0), Some(202_602), Some(202_601), false),
            (TableState::Live, Some(202_602), None, true),
            (TableState::Live, None, Some(1), true),
        ] {
            let first_kept = first_kept.map(|first| ("b".to_owned(), first));
            let mut observed = Observed { first_kept, ..observed(&[("a", state.clone()), ("b", state)], &["a", "b"]) };
            observed.tables.values_mut().for_each(|note| note.let_go = let_go);
            assert_eq!(target("b", Some("b"), &observed).is_some(), is_whole, "{observed:?}");
            assert!(can_answer("a", &observed), "it lets go by another retention");
        }
    }

    #[test]
    fn the_old_table_stays_until_the_new_one_is_live_and_known() {
        let old = |state| [("a", TableState::Live), ("b", state)];
        assert!(
            !plan("b", Some("b"), &observed(&old(TableState::Filling(0)), &["a", "b"]), 0)
                .steps
                .iter()
                .any(|s| matches!(s, Step::Drop(_) | Step::Retire(_)))
        );
        let switched = plan("b", Some("b"), &observed(&old(TableState::Live), &["a", "b"]), 0);
        assert_eq!((switched.steps, switched.again_s), (vec![Step::Retire("a".into())], Some(GRACE_S)));
        let retired = [("a", TableState::Retired(100)), ("b", TableState::Live)];
        assert_eq!(
            plan("b", Some("b"), &observed(&retired, &["a", "b"]), 110),
            Plan { steps: vec![], live: true, again_s: Some(GRACE_S - 10) }
        );
        assert_eq!(plan("b", Some("b"), &observed(&retired, &["a", "b"]), 100 + GRACE_S).steps, [Step::Drop("a".into())]);
    }

    #[test]
    fn an_edit_taken_back_revives_the_old_table_and_drops_the_half_made_one() {
        let half = [("a", TableState::Live), ("b", TableState::Filling(0))];
        assert_eq!(plan("a", Some("a"), &observed(&half, &["a", "b"]), 0).steps, [Step::Drop("b".into())]);
        let ahead = [("a", TableState::Live), ("b", TableState::Ahead(0))];
        assert_eq!(plan("a", Some("a"), &observed(&ahead, &["a"]), 0).steps, [Step::Drop("b".into())]);
        let done = [("a", TableState::Retired(0)), ("b", TableState::Live)];
        let back = plan("a", Some("a"), &observed(&done, &["a", "b"]), 5);
        assert_eq!((back.steps, back.live), (vec![Step::Revive], false));
        let revived = [("a", TableState::Live), ("b", TableState::Live)];
        let seen = plan("a", Some("a"), &observed(&revived, &["a", "b"]), 5);
        assert_eq!((seen.steps, seen.live), (vec![Step::Retire("b".into())], true));
    }

    #[test]
    fn of_tables_of_one_layout_the_answering_one_is_gone_on_with_else_the_furthest() {
        let of = |tables: &[(&str, TableState)], answering| {
            let fed = tables.iter().filter(|(_, state)| !matches!(state, TableState::Ahead(_))).map(|(table, _)| *table);
            target("a", answering, &observed(tables, &fed.collect::<Vec<_>>()))
        };
        assert_eq!(of(&[], Some("a_1")), None);
        assert_eq!(of(&[("ab", TableState::Live), ("b_1", TableState::Live)], None), None, "others");
        let two = [("a_1", TableState::Ahead(202_601)), ("a_2", TableState::Ahead(202_602))];
        assert_eq!(of(&two, None).as_deref(), Some("a_2"));
        assert_eq!(of(&two, Some("a_1")).as_deref(), Some("a_1"));
        assert_eq!(of(&[("a", TableState::New), ("a_1", TableState::New)], None).as_deref(), Some("a"));
        assert_eq!(of(&[("a", TableState::Filling(202_612)), ("a_1", TableState::Retired(1))], None).as_deref(), Some("a_1"));
        assert!(is_of("a", &new_table("a", 1, Some("a_1"), &observed(&[], &[]))));
    }

    #[test]
    fn nothing_goes_before_the_stored_status_names_the_new_table() {
        let both = observed(&[("a", TableState::Live), ("b", TableState::Live)], &["a", "b"]);
        let retired = observed(&[("a", TableState::Retired(0)), ("b", TableState::Live)], &["a", "b"]);
        for answering in [None, Some("a")] {
            for observed in [&both, &retired] {
                assert_eq!(plan("b", answering, observed, 1_000), Plan { steps: vec![], live: true, again_s: Some(1) });
            }
        }
    }
}
