//! Compiles `berth/**/*.proto` without an external protoc.

use prost::Message as _;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "berth/v1/common.proto",
        "berth/v1/inventory.proto",
        "berth/v1/placements.proto",
        "berth/v1/node_agent.proto",
        "berth/v1/operations.proto",
        "berth/v1/audit.proto",
        "berth/v1/backup.proto",
        "berth/v1/peers.proto",
        "berth/store/v1/records.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    #[expect(clippy::disallowed_methods, reason = "cargo tells a build script where to write by this variable")]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("berth.descriptors"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(true).compile_fds(descriptors)?;
    Ok(())
}
