//! Writes the records that are kept as files, as the present schema stores them: `cargo run -p berth-store --example
//! record_fixtures`. To be run once for a new schema, before it is released; the files of older schemas stay as they are.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a tool for whoever raises the schema")]

#[path = "../tests/fixtures/records.rs"]
mod records;

use berth_store::record::SCHEMA;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/schema-{SCHEMA}"));
    std::fs::create_dir_all(&dir)?;
    for (name, record) in records::all() {
        std::fs::write(dir.join(format!("{name}.bin")), record.bytes())?;
    }
    println!("{}", dir.display());
    Ok(())
}
