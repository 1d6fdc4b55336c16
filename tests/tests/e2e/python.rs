//! The Python example of the documentation, run as it is against a real controller.

use super::{claims, dev};
use berth_tests::process::{self, other, root, skip};
use std::path::PathBuf;

/// A Python with grpcio, made once under target/; or why there is none.
fn python() -> Result<PathBuf, String> {
    let venv = root().join("target").join("python-client");
    let (bin, python) = if cfg!(windows) { ("Scripts", "python.exe") } else { ("bin", "python") };
    let python = venv.join(bin).join(python);
    let has_grpc = |python: &PathBuf| {
        let mut check = other(python);
        check.args(["-c", "import grpc, grpc_tools"]);
        process::run(check).is_ok_and(|ran| ran.code == Some(0))
    };
    if has_grpc(&python) {
        return Ok(python);
    }
    let made = ["python3", "python"].iter().any(|name| {
        let mut make = other(name);
        make.args(["-m", "venv"]).arg(&venv);
        process::run(make).is_ok_and(|ran| ran.code == Some(0))
    });
    if !made {
        return Err("there is no Python 3 with venv".to_owned());
    }
    let mut install = other(&python);
    install.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "grpcio", "grpcio-tools"]);
    match process::run(install) {
        Ok(ran) if ran.code == Some(0) && has_grpc(&python) => Ok(python),
        Ok(ran) => {
            Err(format!("pip cannot get grpcio: {}", ran.stderr.lines().last().unwrap_or("it does not say why")))
        }
        Err(error) => Err(format!("pip cannot get grpcio: {error:#}")),
    }
}

#[test]
fn the_python_example_places_and_releases() -> anyhow::Result<()> {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            skip("the_python_example_places_and_releases", &reason);
            return Ok(());
        }
    };
    let dev = dev(1, &[])?;
    let mut script = other(python);
    script.arg(root().join("docs/examples/place.py")).arg(dev.endpoint.trim_start_matches("http://"));
    let ran = process::run(script)?.expect(0)?;
    assert!(ran.stdout.contains("PHASE_ACTIVE") && ran.stdout.contains("PHASE_RELEASED"), "{}", ran.stdout);
    assert_eq!(claims(&dev)?, []);
    Ok(())
}
