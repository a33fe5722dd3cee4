use std::collections::BTreeMap;

use super::*;
use crate::store::crash_disk::Disk;

/// Operation `n`: two records that must appear together, and one that goes.
fn operation(n: u32) -> Vec<Write> {
    let put = |table, key: String| Write {
        table,
        key,
        value: Some(encode_record(&n).unwrap()),
    };
    let mut writes = vec![
        put(Table::Ports, format!("port{n}")),
        put(Table::Bindings, format!("binding{n}")),
    ];
    if n > 0 {
        writes.push(Write {
            table: Table::Ports,
            key: format!("port{}", n - 1),
            value: None,
        });
    }
    writes
}

type Content = BTreeMap<(Table, String), Vec<u8>>;

fn content(store: &Store) -> Content {
    store
        .load()
        .unwrap()
        .into_iter()
        .map(|s| ((s.table, s.key), s.value))
        .collect()
}

/// What the store holds after operations `0..n`.
fn expected(n: u32) -> Content {
    let mut content = Content::new();
    for write in (0..n).flat_map(operation) {
        match write.value {
            Some(value) => content.insert((write.table, write.key), value),
            None => content.remove(&(write.table, write.key)),
        };
    }
    content
}

const OPERATIONS: u32 = 6;

/// Runs operations until the disk dies; returns how many were acknowledged. `eager` acknowledges before the commit.
fn run(disk: &Disk, eager: bool) -> u32 {
    let mut acknowledged = 0;
    let Ok(store) = Store::open_on(disk.clone()) else {
        return 0;
    };
    for n in 0..OPERATIONS {
        if eager {
            acknowledged = n + 1;
        }
        if store.commit(&operation(n)).is_err() {
            return acknowledged;
        }
        acknowledged = n + 1;
    }
    acknowledged
}

/// Crashes at every call in turn; returns at how many an acknowledged operation was lost.
fn crash_everywhere(leaks: Option<usize>, eager: bool) -> usize {
    let whole = Disk::with_store();
    assert_eq!(run(&whole, eager), OPERATIONS);
    let mut lost = 0;
    for call in 0..whole.calls() {
        let disk = Disk::with_store().dying_at(call, leaks);
        let acknowledged = run(&disk, eager);
        let store = Store::open_on(disk.after_crash()).unwrap_or_else(|e| panic!("crash at call {call}: {e}"));
        let found = content(&store);
        let state = (0..=OPERATIONS).find(|n| found == expected(*n));
        let state = state.unwrap_or_else(|| panic!("crash at call {call}: half an operation is there: {found:?}"));
        lost += usize::from(state < acknowledged);
        // And it goes on from there.
        store.commit(&operation(state)).unwrap();
        assert_eq!(content(&store), expected(state + 1));
    }
    lost
}

#[test]
fn a_crash_anywhere_leaves_whole_operations_and_loses_none_that_was_acknowledged() {
    assert_eq!(crash_everywhere(None, false), 0);
}

#[test]
fn a_disk_that_wrote_some_of_it_in_any_order_changes_nothing_about_that() {
    for leaks in [1, 2, 3] {
        assert_eq!(
            crash_everywhere(Some(leaks), false),
            0,
            "every {leaks}th unsynced write reached the disk"
        );
    }
}

#[test]
fn control_acknowledging_before_the_commit_is_found() {
    assert!(crash_everywhere(None, true) > 0);
}

fn store_file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(directory.path());
    let store = Store::open(&path).unwrap();
    (0..50).for_each(|n| store.commit(&operation(n)).unwrap());
    drop(store);
    (directory, path)
}

#[test]
fn a_truncated_file_is_refused_with_a_remedy() {
    let (_directory, path) = store_file();
    let whole = std::fs::read(&path).unwrap();
    for len in [1, 8, 63, 100, 512, 4095, 4096, 8192, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = Store::open(&path)
            .map(|s| content(&s))
            .expect_err("a truncated store was opened");
        assert!(matches!(error, StoreError::Damaged(_)), "{len} bytes: {error:?}");
        let error = error.at_start(&path);
        assert!(
            error.what.contains("broker.redb") && error.fix.contains("backup"),
            "{error}"
        );
    }
    std::fs::write(&path, b"").unwrap();
    assert!(
        matches!(Store::open(&path), Err(StoreError::Damaged(_))),
        "an empty file was taken for a new store"
    );
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(content(&Store::open(&path).unwrap()), expected(50));
}

#[test]
fn a_crash_while_the_store_is_made_leaves_none() {
    let (directory, path) = store_file();
    let part = std::fs::read(&path).unwrap();
    std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    for len in [0, 100, 4096, part.len()] {
        std::fs::write(path.with_extension("new"), &part[..len]).unwrap();
        assert_eq!(content(&Store::open(&path).unwrap()), Content::new());
        assert!(!path.with_extension("new").exists());
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_changed_byte_is_never_taken_for_content() {
    let (_directory, path) = store_file();
    let whole = std::fs::read(&path).unwrap();
    for offset in (0..whole.len()).step_by(whole.len() / 211) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        // A byte that no record needs may pass; a record that was changed may not, nor at the next start.
        for start in 1..=2 {
            match Store::open(&path).and_then(|s| s.load()) {
                Ok(records) => {
                    let found: Content = records.into_iter().map(|s| ((s.table, s.key), s.value)).collect();
                    assert_eq!(found, expected(50), "byte {offset}, start {start}");
                }
                Err(error) => assert!(matches!(error, StoreError::Damaged(_)), "byte {offset}: {error:?}"),
            }
        }
    }
}

#[test]
fn one_broker_at_a_time() {
    let (_directory, path) = store_file();
    let first = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse), "{error:?}");
    assert!(error.at_start(&path).fix.contains("other broker"));
    drop(first);
    assert!(Store::open(&path).is_ok());
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let (_directory, path) = store_file();
    let store = Store::open(&path).unwrap();
    let later = Write {
        table: Table::Meta,
        key: SCHEMA_KEY.to_owned(),
        value: Some(encode_record(&2_u32).unwrap()),
    };
    store.commit(&[later]).unwrap();
    drop(store);
    assert!(matches!(Store::open(&path), Err(StoreError::Schema { found: 2 })));
}
