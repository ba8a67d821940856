//! Models of the denylist's table: one thread looks, another lists, moves, frees, and by that builds tables anew, in memory too
//! that was in use before.

use crate::verdict_table::{Key, Listed, Until, VerdictTable};
use loom::sync::Arc;

const DENIED: Until = Until { denylist_us: 7, graylist_us: 0 };
const GRAY: Until = Until { denylist_us: 0, graylist_us: 9 };

fn key(number: u64) -> Key {
    Key { subject: Listed::Source(number), application: None }
}

/// A table that has source 1 on its denylist, a reader of it, and what a writer does meanwhile. The writer is the thread that goes
/// first: loom remembers the last access to an atomic only, and a writer that looked at what a reader had looked at before would
/// hide that the reader could have come later.
fn meet(read: impl Fn(&VerdictTable) + Send + 'static, write: impl Fn(&VerdictTable)) {
    let table = Arc::new(VerdictTable::new());
    table.set(key(1), Some(DENIED));
    let reader = loom::thread::spawn({
        let table = Arc::clone(&table);
        move || read(&table)
    });
    write(&table);
    reader.join().expect("the reader ends");
}

/// Lists and frees so many others, one after the other. The places of the freed stay taken, so that each few of them a table is
/// built; the second one after a table is in its memory.
fn list_others(table: &VerdictTable, others: u64) {
    for number in 2..2 + others {
        table.set(key(number), Some(GRAY));
        table.set(key(number), None);
    }
}

pub(crate) fn listed_is_found() {
    meet(|table| assert_eq!(table.find(Listed::Source(1), 5), Some(DENIED)), |table| list_others(table, 9));
}

/// Source 17 has the home of source 1 in the smaller tables, and is listed in the place that others had.
pub(crate) fn others_are_not_found() {
    meet(|table| assert_eq!(table.find(Listed::Source(17), 5), None), |table| list_others(table, 9));
}

pub(crate) fn moved_is_on_one_list() {
    let read = |table: &VerdictTable| {
        let found = table.find(Listed::Source(1), 5).expect("on one list or the other");
        assert!([DENIED, GRAY, DENIED.union(GRAY)].contains(&found), "{found:?}");
    };
    meet(read, |table| {
        table.set(key(1), Some(GRAY));
        table.set(key(1), Some(DENIED));
    });
}
