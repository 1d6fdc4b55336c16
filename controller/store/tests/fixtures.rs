//! Records as earlier schemas wrote them are read, for good: kept as files, each with the value that it must be read as.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "fixtures/records.rs"]
mod records;

use berth_store::record::{self, SCHEMA};
use berth_store::{KeyValue, Revision};
use bytes::Bytes;
use records::Record;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn dir(schema: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/schema-{schema}"))
}

/// A kept file, read as what `like` is.
fn read(like: &Record, bytes: Bytes) -> Record {
    let item = |key: String| KeyValue {
        key,
        value: bytes.clone(),
        created: Revision(1),
        modified: Revision(9),
        // The store's count, no part of the record.
        version: 4,
    };
    match like {
        Record::Placement(placement) => {
            let key = berth_store::key::placement(placement.name());
            Record::Placement(Box::new(record::read_placement(&item(key)).unwrap()))
        }
        Record::Node(node) => {
            Record::Node(Box::new(record::read_node(&item(berth_store::key::node(&node.name))).unwrap()))
        }
        Record::Claim(_) => Record::Claim(record::read_claim(&item("any".to_owned())).unwrap()),
        Record::Leader(_) => Record::Leader(record::read_leader(&bytes).unwrap()),
        Record::Term(_) => Record::Term(record::read_term(&bytes).unwrap()),
        Record::Fleet(_) => Record::Fleet(record::read_fleet(&bytes).unwrap()),
    }
}

#[test]
fn what_any_schema_wrote_is_read_as_it_was_meant() {
    for schema in 1..=SCHEMA {
        for (name, value) in records::all() {
            let path = dir(schema).join(format!("{name}.bin"));
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(read(&value, bytes.into()), value, "{}", path.display());
        }
    }
}

#[test]
fn the_files_of_this_schema_are_what_this_version_writes() {
    let mut names = BTreeSet::new();
    for (name, value) in records::all() {
        let kept = std::fs::read(dir(SCHEMA).join(format!("{name}.bin"))).unwrap_or_default();
        assert!(
            kept == value.bytes(),
            "{name} is stored otherwise than it was under schema {SCHEMA}: older records would have to be read, too. Raise \
             SCHEMA if their meaning changes, then run `cargo run -p berth-store --example record_fixtures`"
        );
        names.insert(format!("{name}.bin"));
    }
    let files = std::fs::read_dir(dir(SCHEMA)).unwrap();
    let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, names, "a file without a record, or a record without a file");
}
