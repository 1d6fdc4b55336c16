//! `cargo xtask kube-apiserver`: compiles an API server of Kubernetes, to try the chart on a real one.
//!
//! Never part of the tests: it takes longer than all of them. Owns its folder under `target/tools`, where the part `chart`
//! finds it.

use crate::chart::KUBERNETES;
use crate::process::{command, stream, works};
use crate::root;
use anyhow::{Context as _, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// As Kubernetes' own `main`, which nobody can build from outside: its module has `replace` lines.
const MAIN: &str = r#"package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
"#;

/// Compiles one, of the version that manifests are made for.
///
/// # Errors
/// Without Go, and with what it says.
pub(crate) fn build() -> anyhow::Result<()> {
    ensure!(works("go", &["version"]), "Go is not installed");
    let dir = root().join("target").join("tools").join("kube-apiserver");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let module = format!("k8s.io/kubernetes@v{KUBERNETES}");
    let output = command("go").args(["mod", "download", "-json", &module]).output().context("cannot start go")?;
    ensure!(output.status.success(), "{module}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).context("go tells no JSON")?;
    let theirs = PathBuf::from(told["GoMod"].as_str().context("go does not say where the module is")?);
    let theirs = fs::read_to_string(&theirs).with_context(|| format!("cannot read {}", theirs.display()))?;
    fs::write(dir.join("go.mod"), go_mod(&theirs)?).context("cannot write go.mod")?;
    fs::write(dir.join("main.go"), MAIN).context("cannot write main.go")?;
    let kept = dir.join(format!("kube-apiserver{}", std::env::consts::EXE_SUFFIX));
    println!("Compiling {module} into {}; that takes a quarter of an hour and some GB.", dir.display());
    // Who it is comes from the linker; without it no chart would take it for new enough.
    let minor = KUBERNETES.split('.').nth(1).context("a version without a minor one")?;
    let set = |name: &str, value: &str| format!(" -X k8s.io/component-base/version.{name}={value}");
    let version = set("gitVersion", &format!("v{KUBERNETES}")) + &set("gitMajor", "1") + &set("gitMinor", minor);
    // One package at a time: some take gigabytes.
    let mut go = command("go");
    go.current_dir(&dir).args(["build", "-p", "1", "-trimpath"]).arg(format!("-ldflags=-s -w{version}"));
    go.arg("-o").arg(&kept).arg(".");
    go.env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
    ensure!(stream(go, |_| ())?.success(), "it did not build");
    println!("{}", kept.display());
    Ok(())
}

/// A module that needs Kubernetes, with what its own `go.mod` replaces by folders beside it as the modules that these are
/// published as: of version 0 where Kubernetes has 1.
fn go_mod(theirs: &str) -> anyhow::Result<String> {
    let staged: Vec<_> = theirs
        .lines()
        .filter_map(|line| line.split_once("=> ./staging/src/"))
        .map(|(_, path)| Path::new(path.trim()).display().to_string())
        .collect();
    ensure!(!staged.is_empty(), "Kubernetes' module has no folders beside it any more");
    let minor = KUBERNETES.strip_prefix("1.").context("another Kubernetes than 1")?;
    let go = theirs.lines().find(|line| line.starts_with("go ")).context("a module without its Go")?;
    let replaced: Vec<_> = staged.iter().map(|module| format!("replace {module} => {module} v0.{minor}\n")).collect();
    Ok(format!(
        "module berth.local/kube-apiserver\n\n{go}\n\nrequire k8s.io/kubernetes v{KUBERNETES}\n\n{}",
        replaced.concat()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_beside_kubernetes_become_modules_of_the_same_release() {
        let theirs =
            "module k8s.io/kubernetes\n\ngo 1.22.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let ours = go_mod(theirs).unwrap();
        assert!(ours.contains("\ngo 1.22.0\n"), "{ours}");
        assert!(ours.ends_with(&format!("replace k8s.io/api => k8s.io/api v0.{}\n", &KUBERNETES[2..])), "{ours}");
        assert!(go_mod("module x\n\ngo 1.22.0\n").is_err());
    }
}
