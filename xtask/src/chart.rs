//! What the chart's tests need beside Rust: helm, Kubernetes' schemas and promtool, kept under `target/tools`. And plain
//! manifests, for those who do not use helm.
//!
//! Owns its folders there and `target/manifests`.

use crate::etcd::{run, unpack};
use crate::process::{command, works};
use crate::{config, root};
use anyhow::{Context as _, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The helm that is compiled where there is none: a fixed one, so that what it renders is what was reviewed.
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.22.0";
/// The Kubernetes that manifests are made for; helm itself would take one that is long gone.
pub(crate) const KUBERNETES: &str = "1.31.14";

/// Tells tests where the programs are. Without one, each test that needs it says that it was skipped.
pub(crate) fn tools() -> Vec<(&'static str, PathBuf)> {
    let all = [(config::HELM, helm()), (config::KUBERNETES_VALIDATE, validate()), (config::PROMTOOL, promtool())];
    let mut found = Vec::new();
    for (variable, got) in all {
        match got {
            Ok(program) => found.push((variable, program)),
            Err(error) => println!("{error:#}"),
        }
    }
    found
}

/// Writes what the chart makes of these values to `target/manifests/NAME.yaml`, NAME being that of the file.
///
/// # Errors
/// With what helm says.
pub(crate) fn manifests(values: &[&str]) -> anyhow::Result<()> {
    let files: Vec<_> = values.iter().map(PathBuf::from).collect();
    render(&files, &root().join("target").join("manifests"))
}

/// What a release has of the chart, in `to`: the package, and under `manifests` what it makes of each example.
///
/// # Errors
/// With what helm says.
pub(crate) fn release(to: &Path) -> anyhow::Result<()> {
    let mut package = command(helm()?);
    package.args(["package", "charts/berth", "--destination"]).arg(to);
    run(package)?;
    let examples = root().join("charts").join("berth").join("examples");
    let entries = fs::read_dir(&examples).with_context(|| format!("cannot read {}", examples.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    render(&files, &to.join("manifests"))
}

/// Writes what the chart makes of these values to `NAME.yaml` in `to`.
fn render(values: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    let helm = helm()?;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for file in values {
        let values = file.display();
        let name = file.file_stem().with_context(|| format!("{values} names no file"))?;
        let mut render = command(&helm);
        render
            .args([
                "template",
                "berth",
                "charts/berth",
                "--namespace",
                "berth",
                "--kube-version",
                KUBERNETES,
                "--values",
            ])
            // As the person wrote it, not as seen from the repository.
            .arg(std::path::absolute(file).with_context(|| format!("{values} names no file"))?)
            .stderr(Stdio::inherit());
        let output = render.output().context("cannot start helm")?;
        ensure!(output.status.success(), "helm refuses {values}");
        let manifest = to.join(name).with_extension("yaml");
        fs::write(&manifest, output.stdout).with_context(|| format!("cannot write {}", manifest.display()))?;
        println!("{}", manifest.display());
    }
    Ok(())
}

/// The program that is named or in the PATH, else the one that was got before, else what `get` puts to that path, given a
/// folder to work in.
fn found_or(
    variable: &str,
    program: &str,
    kept: &Path,
    get: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let dir = root().join("target").join("tools").join(program);
    let kept = dir.join(kept);
    let here = config::named(variable).or_else(|| config::in_path(program));
    // What was got knows where it lies, and the repository may have been moved since.
    let runs = |kept: &Path| works(&kept.display().to_string(), &["--help"]);
    if let Some(program) = here.or_else(|| runs(&kept).then(|| kept.clone())) {
        return Ok(program);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    println!("No {program} here; getting one into {}.", dir.display());
    get(&dir).with_context(|| format!("no {program} in the PATH, and none can be got"))?;
    ensure!(kept.is_file(), "no {program} in the PATH, and what was got is not {}", kept.display());
    Ok(kept)
}

/// Helm, compiled.
fn helm() -> anyhow::Result<PathBuf> {
    let kept = PathBuf::from(format!("helm{}", std::env::consts::EXE_SUFFIX));
    found_or(config::HELM, "helm", &kept, |dir| {
        ensure!(works("go", &["version"]), "Go is not installed");
        let mut go = command("go");
        go.args(["install", HELM]).env("GOBIN", dir).env("GOFLAGS", "-mod=mod");
        run(go)
    })
}

/// Kubernetes' schemas, in a program of Python's.
fn validate() -> anyhow::Result<PathBuf> {
    let kept = Path::new("venv/bin/kubernetes-validate");
    found_or(config::KUBERNETES_VALIDATE, "kubernetes-validate", kept, |dir| {
        ensure!(works("python3", &["-m", "venv", "--help"]), "Python 3 with venv is not installed");
        let venv = dir.join("venv");
        let mut python = command("python3");
        python.args(["-m", "venv"]).arg(&venv);
        run(python)?;
        let mut pip = command(venv.join("bin").join("pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "kubernetes-validate==1.37.0"]);
        run(pip)
    })
}

/// Promtool, out of Debian's package of Prometheus.
fn promtool() -> anyhow::Result<PathBuf> {
    found_or(config::PROMTOOL, "promtool", Path::new("promtool"), |dir| {
        unpack("prometheus", Path::new("usr/bin/promtool"), dir, &dir.join("promtool"))
    })
}
