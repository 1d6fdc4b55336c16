//! What goes wrong: drawn from a seed, done to a cluster, and mended after a while.
//!
//! Owns the choice and the end of every trouble. Must never take the majority of etcd away for good, and never leave a
//! trouble behind when it is told that all is to be well.

use super::cluster::{AGENTS, CONTROLLERS, Cluster, MEMBERS, PEERS};
use super::proxy::{Lane, Mode, Proxy};
use super::supervised::STOPPING;
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Longest trouble: more than twice a lease. Short ones are drawn more often.
const LONGEST_MS: u64 = 7_000;
/// Shortest trouble.
const SHORTEST_MS: u64 = 200;

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Controller(usize),
    Agent(usize),
    Member(usize),
    /// All members of etcd but this one: without them there is no etcd.
    AllMembersBut(usize),
    /// The way of agents to a controller.
    Agents(usize),
    /// The way of other controllers to a controller.
    Peers(usize),
    /// The way of callers to a controller.
    Callers(usize),
    /// The way of a controller to a member of etcd.
    Store(usize, usize),
    /// The ways of a controller to all of etcd.
    Stores(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller(n) => write!(f, "controller {n}"),
            Self::Agent(n) => write!(f, "agent {n}"),
            Self::Member(n) => write!(f, "etcd member {n}"),
            Self::AllMembersBut(n) => write!(f, "all etcd members but {n}"),
            Self::Agents(n) => write!(f, "agents → controller {n}"),
            Self::Peers(n) => write!(f, "controllers → controller {n}"),
            Self::Callers(n) => write!(f, "callers → controller {n}"),
            Self::Store(n, m) => write!(f, "controller {n} → etcd member {m}"),
            Self::Stores(n) => write!(f, "controller {n} → etcd"),
        }
    }
}

impl Part {
    fn kind(self) -> &'static str {
        match self {
            Self::Controller(_) => "controller",
            Self::Agent(_) => "agent",
            Self::Member(_) => "etcd member",
            Self::AllMembersBut(_) => "majority of etcd",
            Self::Agents(_) => "agents → controller",
            Self::Peers(_) => "controllers → controller",
            Self::Callers(_) => "callers → controller",
            Self::Store(..) => "controller → one etcd member",
            Self::Stores(_) => "controller → all etcd members",
        }
    }

    fn ways(self, cluster: &Cluster) -> Vec<&Lane> {
        let controller = |n: usize| cluster.controllers.get(n);
        let (proxies, lane): (Vec<&Proxy>, _) = match self {
            Self::Controller(_) | Self::Agent(_) | Self::Member(_) | Self::AllMembersBut(_) => (Vec::new(), 0),
            Self::Agents(n) => (controller(n).map(|it| &it.front).into_iter().collect(), AGENTS),
            Self::Peers(n) => (controller(n).map(|it| &it.front).into_iter().collect(), PEERS),
            Self::Callers(n) => (controller(n).map(|it| &it.callers).into_iter().collect(), 0),
            Self::Store(n, m) => (controller(n).and_then(|it| it.store.get(m)).into_iter().collect(), 0),
            Self::Stores(n) => (controller(n).map(|it| it.store.iter().collect()).unwrap_or_default(), 0),
        };
        proxies.into_iter().filter_map(|proxy| proxy.lane(lane)).collect()
    }

    fn others(n: usize) -> impl Iterator<Item = usize> {
        (0..MEMBERS).filter(move |member| *member != n)
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// kill -9, started again later.
    Kill,
    /// SIGSTOP, SIGCONT later.
    Pause,
    /// SIGTERM, started again later.
    Stop,
    /// All connections break once.
    Cut,
    /// Connections break, and none can be made.
    Close,
    /// Nothing comes through.
    Silence,
    /// Everything takes longer.
    Slow,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill -9",
            Self::Pause => "pause",
            Self::Stop => "stop",
            Self::Cut => "cut",
            Self::Close => "close",
            Self::Silence => "silence",
            Self::Slow => "slow down",
        })
    }
}

#[derive(Debug)]
struct Ongoing {
    part: Part,
    deed: Deed,
    until: Instant,
}

/// Whoever makes trouble.
#[derive(Debug)]
pub struct Nemesis {
    random: StdRng,
    ongoing: Vec<Ongoing>,
    /// How often what was done to what.
    pub done: BTreeMap<String, u64>,
}

impl Nemesis {
    /// Somebody who does what this source of chance says.
    #[must_use]
    pub fn new(random: StdRng) -> Self {
        Self { random, ongoing: Vec::new(), done: BTreeMap::new() }
    }

    /// How long to wait before the next trouble.
    pub fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(200..2_500))
    }

    fn draw(&mut self, cluster: &Cluster) -> (Part, Deed) {
        let agent = self.random.random_range(0..cluster.agents.len());
        let member = self.random.random_range(0..MEMBERS);
        // Half of what is done to controllers is done to the one that counts.
        let leader = cluster.leading().ok().flatten().map(|leading| leading.controller);
        let any = self.random.random_range(0..CONTROLLERS);
        let controller = if self.random.random_bool(0.5) { leader.unwrap_or(any) } else { any };
        let process = [Deed::Kill, Deed::Pause, Deed::Stop][self.random.random_range(0..3)];
        let way = [Deed::Cut, Deed::Close, Deed::Silence, Deed::Slow][self.random.random_range(0..4)];
        match self.random.random_range(0..100) {
            0..25 => (Part::Controller(controller), process),
            25..45 => (Part::Agent(agent), process),
            45..52 => (Part::Member(member), if process == Deed::Pause { Deed::Pause } else { Deed::Kill }),
            52..55 => (Part::AllMembersBut(member), Deed::Pause),
            55..64 => (Part::Agents(controller), way),
            64..72 => (Part::Peers(controller), way),
            72..80 => (Part::Callers(controller), way),
            80..90 => (Part::Store(controller, member), way),
            _ => (Part::Stores(controller), way),
        }
    }

    /// Whether this can be done now.
    fn fits(&self, part: Part) -> bool {
        self.ongoing.iter().all(|trouble| match (part, trouble.part) {
            // What is left of etcd must come back when one of them ends.
            (Part::Member(_) | Part::AllMembersBut(_), Part::Member(_) | Part::AllMembersBut(_)) => false,
            (Part::Stores(n), Part::Store(m, _)) | (Part::Store(n, _), Part::Stores(m)) => n != m,
            (one, other) => one != other,
        })
    }

    /// Draws one trouble and begins it; says what it is. `None` when what was drawn cannot be done now.
    ///
    /// # Errors
    /// When it cannot be done although it should.
    pub fn begin(&mut self, cluster: &mut Cluster) -> anyhow::Result<Option<String>> {
        let (part, deed) = self.draw(cluster);
        let longest = self.random.random_range(SHORTEST_MS + 1..LONGEST_MS);
        let lasts = Duration::from_millis(self.random.random_range(SHORTEST_MS..longest));
        let delay = Duration::from_millis(self.random.random_range(20..400));
        let runs = match part {
            Part::Controller(n) => cluster.controller(n)?.runs(),
            Part::Agent(n) => cluster.agent(n)?.runs(),
            Part::Member(_) | Part::AllMembersBut(_) => true,
            Part::Agents(_) | Part::Peers(_) | Part::Callers(_) | Part::Store(..) | Part::Stores(_) => true,
        };
        if !runs || !self.fits(part) {
            return Ok(None);
        }
        match (part, deed) {
            (Part::Controller(n), Deed::Kill) => cluster.controller(n)?.kill()?,
            (Part::Controller(n), Deed::Pause) => match cluster.controller(n)?.pause() {
                Ok(()) => {}
                // It may have lost its lead at this very moment.
                Err(_) if !cluster.controller(n)?.runs() => return Ok(None),
                Err(error) => return Err(error),
            },
            (Part::Controller(n), _) => cluster.controller(n)?.stop()?,
            (Part::Agent(n), Deed::Kill) => cluster.agent(n)?.kill()?,
            (Part::Agent(n), Deed::Pause) => cluster.agent(n)?.pause()?,
            (Part::Agent(n), _) => cluster.agent(n)?.stop()?,
            (Part::Member(n), Deed::Pause) => cluster.pause_member(n)?,
            (Part::Member(n), _) => cluster.kill_member(n)?,
            (Part::AllMembersBut(n), _) => {
                for member in Part::others(n) {
                    cluster.pause_member(member)?;
                }
            }
            (Part::Agents(_) | Part::Peers(_) | Part::Callers(_) | Part::Store(..) | Part::Stores(_), _) => {
                for way in part.ways(cluster) {
                    match deed {
                        Deed::Close => way.set(Mode::Closed),
                        Deed::Silence => way.set(Mode::Silent),
                        Deed::Slow => way.set(Mode::Slow(delay)),
                        Deed::Cut | Deed::Kill | Deed::Pause | Deed::Stop => way.cut(),
                    }
                }
            }
        }
        *self.done.entry(format!("{deed} {}", part.kind())).or_default() += 1;
        let text = match deed {
            Deed::Cut => format!("cut {part}"),
            Deed::Slow => format!("slow down {part} by {delay:?} for {lasts:.1?}"),
            Deed::Kill | Deed::Pause | Deed::Stop | Deed::Close | Deed::Silence => {
                format!("{deed} {part} for {lasts:.1?}")
            }
        };
        if deed != Deed::Cut {
            self.ongoing.push(Ongoing { part, deed, until: Instant::now() + lasts });
        }
        Ok(Some(text))
    }

    /// Ends every trouble that has lasted long enough; says which.
    ///
    /// # Errors
    /// When something does not start again.
    pub fn mend(&mut self, cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
        let now = Instant::now();
        let (over, ongoing) = std::mem::take(&mut self.ongoing).into_iter().partition(|trouble| trouble.until <= now);
        self.ongoing = ongoing;
        over.into_iter().map(|trouble: Ongoing| end(cluster, trouble.part, trouble.deed)).collect()
    }

    /// Ends every trouble now.
    ///
    /// # Errors
    /// When something does not start again.
    pub fn mend_all(&mut self, cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
        let all = std::mem::take(&mut self.ongoing);
        all.into_iter().map(|trouble| end(cluster, trouble.part, trouble.deed)).collect()
    }
}

fn end(cluster: &mut Cluster, part: Part, deed: Deed) -> anyhow::Result<String> {
    match (part, deed) {
        (Part::Controller(n), Deed::Pause) => cluster.controller(n)?.wake(),
        (Part::Controller(n), Deed::Stop) => {
            // It may have lost its lead at the same time; whether it said anything else is for its log to tell.
            cluster.controller(n)?.ends(STOPPING)?;
            cluster.start_controller(n)?;
        }
        (Part::Controller(n), _) => cluster.start_controller(n)?,
        (Part::Agent(n), Deed::Pause) => cluster.agent(n)?.wake(),
        (Part::Agent(n), Deed::Stop) => {
            cluster.agent(n)?.stopped()?;
            cluster.start_agent(n)?;
        }
        (Part::Agent(n), _) => cluster.start_agent(n)?,
        (Part::Member(n), _) => cluster.mend_member(n)?,
        (Part::AllMembersBut(n), _) => {
            for member in Part::others(n) {
                cluster.mend_member(member)?;
            }
        }
        (Part::Agents(_) | Part::Peers(_) | Part::Callers(_) | Part::Store(..) | Part::Stores(_), _) => {
            for way in part.ways(cluster) {
                way.set(Mode::Open);
            }
        }
    }
    Ok(format!("over: {deed} {part}"))
}
