//! Real etcd servers for tests: on free ports of this machine, with data of their own, never left behind.

use crate::config;
use crate::http;
use crate::process::{Paused, Process, free_port, other};
use anyhow::{Context as _, bail, ensure};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// A busy machine starts one within seconds.
const START: Duration = Duration::from_secs(60);
/// Another process may take a port between its choice and its use.
const ATTEMPTS: usize = 3;
/// What each member says when it serves, in all versions.
const READY: &str = "ready to serve client requests";

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further arguments for each member.
    pub args: Vec<String>,
    /// Whether clients speak TLS; the arguments say how.
    pub tls: bool,
}

/// An etcd cluster that ends with its owner.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    program: PathBuf,
    // Kept for its Drop.
    _dir: TempDir,
}

#[derive(Debug)]
struct Member {
    process: Option<Process>,
    endpoint: String,
    args: Vec<String>,
}

impl Etcd {
    /// Starts one member. `None` when there is no etcd here; that was said then.
    ///
    /// # Errors
    /// When it does not start.
    pub fn one(test: &str) -> anyhow::Result<Option<Self>> {
        Self::start(test, 1, &Options::default())
    }

    /// Starts a cluster of so many members, with these options.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(test: &str, members: usize, options: &Options) -> anyhow::Result<Option<Self>> {
        let Some(program) = config::etcd() else {
            crate::process::skip(test, "there is no etcd; cargo xtask test etcd gets one, or put it in the PATH");
            return Ok(None);
        };
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::try_start(program.clone(), members, options) {
                Ok(etcd) => return Ok(Some(etcd)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no attempt was made")))
    }

    fn try_start(program: PathBuf, members: usize, options: &Options) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let scheme = if options.tls { "https" } else { "http" };
        let mut ports = Vec::new();
        for _ in 0..members {
            ports.push((free_port()?, free_port()?));
        }
        let peer = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<_> = ports.iter().enumerate().map(|(n, (_, port))| format!("m{n}={}", peer(*port))).collect();
        let member = |(n, (client, peers)): (usize, &(u16, u16))| {
            let endpoint = format!("{scheme}://127.0.0.1:{client}");
            let name = format!("m{n}");
            let data = dir.path().join(&name).display().to_string();
            let args = [
                ["--name", &name],
                ["--data-dir", &data],
                ["--listen-client-urls", &endpoint],
                ["--advertise-client-urls", &endpoint],
                ["--listen-peer-urls", &peer(*peers)],
                ["--initial-advertise-peer-urls", &peer(*peers)],
                ["--initial-cluster", &all.join(",")],
                ["--initial-cluster-state", "new"],
            ];
            let args = args.concat().into_iter().map(str::to_owned).chain(options.args.iter().cloned()).collect();
            Member { process: None, endpoint, args }
        };
        let members = ports.iter().enumerate().map(member).collect();
        let mut etcd = Self { members, program, _dir: dir };
        for n in 0..etcd.members.len() {
            etcd.launch(n)?;
        }
        for n in 0..etcd.members.len() {
            etcd.wait_ready(n)?;
        }
        Ok(etcd)
    }

    fn launch(&mut self, n: usize) -> anyhow::Result<()> {
        let mut etcd = other(&self.program);
        let member = self.member_mut(n)?;
        // The machine's own settings for etcd are not the test's.
        etcd.args(&member.args).env_clear();
        member.process = Some(Process::start(etcd)?);
        Ok(())
    }

    fn wait_ready(&mut self, n: usize) -> anyhow::Result<()> {
        let Some(process) = &mut self.member_mut(n)?.process else { bail!("member {n} does not run") };
        process.wait_for_line(START, |line| line.contains(READY).then_some(()))
    }

    fn member_mut(&mut self, n: usize) -> anyhow::Result<&mut Member> {
        self.members.get_mut(n).with_context(|| format!("there is no member {n}"))
    }

    fn member(&self, n: usize) -> anyhow::Result<&Member> {
        self.members.get(n).with_context(|| format!("there is no member {n}"))
    }

    /// Where clients reach its members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint.clone()).collect()
    }

    /// The system's number for a member's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn id(&self, n: usize) -> anyhow::Result<u32> {
        let process = self.member(n)?.process.as_ref();
        Ok(process.with_context(|| format!("member {n} does not run"))?.id())
    }

    /// Ends a member as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, n: usize) -> anyhow::Result<()> {
        let process = self.member_mut(n)?.process.take();
        process.with_context(|| format!("member {n} does not run"))?.kill()
    }

    /// Starts a member that was killed, with the data it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self, n: usize) -> anyhow::Result<()> {
        self.launch(n)?;
        self.wait_ready(n)
    }

    /// Stops a member in its tracks; it goes on when what this gives is dropped.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, n: usize) -> anyhow::Result<Paused> {
        let process = self.member(n)?.process.as_ref();
        process.with_context(|| format!("member {n} does not run"))?.pause()
    }

    /// Calls a method of etcd's JSON gateway, such as `v3/auth/enable`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn call(&self, method: &str, body: &str) -> anyhow::Result<serde_json::Value> {
        let answer = http::post_as(&self.member(0)?.endpoint, &format!("/{method}"), "application/json", body)?;
        ensure!(answer.status == 200, "{method} {body}: {} {}", answer.status, answer.body);
        answer.json()
    }

    /// The same by somebody who has logged in, with the token of that.
    ///
    /// # Errors
    /// When it is refused.
    pub fn call_by(&self, token: &str, method: &str, body: &str) -> anyhow::Result<serde_json::Value> {
        let header = format!("Authorization: {token}");
        let answer = http::post_with(&self.member(0)?.endpoint, &format!("/{method}"), &header, body)?;
        ensure!(answer.status == 200, "{method} {body}: {} {}", answer.status, answer.body);
        answer.json()
    }
}
