//! A controller that does not lead: shows what is stored, read once and then followed, joined with what the leader tells.
//!
//! Owns the replica's publishing side until this controller leads itself. A watch that ends, for whatever reason, is
//! followed by a new listing. Must never write, and never show as fresh what no leader vouches for.

use crate::clock::now;
use crate::leader::load::{self, Listing};
use crate::leader::{Ended, LoadFailure};
use crate::peers::{Heard, Listener, News, Way};
use crate::replica::Publisher;
use crate::standing::{Candidate, Known, Standing};
use berth_core::mirror::{Mirror, Touched};
use berth_store::key::{self, Key};
use berth_store::{Event, Revision, Store, record};
use futures::StreamExt as _;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Revisions taken in at once when many wait: one publication for all of them.
const CHUNK: usize = 256;
/// Pause before a listing is made anew; doubles with each that fails.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a store that is back is noticed soon enough, and one that is away is not hammered.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Follows store and leader.
pub(crate) struct Follower {
    store: Arc<dyn Store>,
    publisher: Publisher,
    mirror: Mirror,
    standing: watch::Sender<Standing>,
    /// This process, in the leader record.
    me: Candidate,
    listener: Listener,
    heard: Heard,
    /// Of the last thing taken in from the store.
    revision: Revision,
}

impl Follower {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        publisher: Publisher,
        standing: watch::Sender<Standing>,
        me: Candidate,
        heard: Heard,
        way: Way,
    ) -> Self {
        let (mirror, revision) = (Mirror::new(now()), Revision::default());
        Self { store, publisher, mirror, standing, me, listener: Listener::new(way), heard, revision }
    }

    /// What goes on when this controller leads: the publisher, and where it says so.
    pub(crate) fn into_leader(self) -> (Publisher, watch::Sender<Standing>) {
        (self.publisher, self.standing)
    }

    /// Follows until it is dropped; may be dropped at any moment.
    ///
    /// # Errors
    /// When a record cannot be read: a person must look.
    pub(crate) async fn run(&mut self) -> Result<Infallible, Ended> {
        let mut pause = PAUSE;
        loop {
            let before = self.revision;
            let why = match self.round().await {
                Err(error) if !error.retry_helps() => return Err(Ended::Broken(LoadFailure::from(error))),
                Err(error) => error,
            };
            let progressed = self.revision > before;
            if progressed {
                tracing::info!(error = %why, "the store is listed anew");
                pause = PAUSE;
            } else {
                tracing::warn!(error = %why, pause_ms = pause.as_millis(), "the store cannot be followed; trying again");
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
            let end = tokio::time::Instant::now() + pause;
            // What the leader tells, or does not tell any more, counts meanwhile, too.
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(end) => break,
                    news = self.listener.next() => self.hear(news),
                }
            }
        }
    }

    /// Lists, then watches from there until the watch ends.
    async fn round(&mut self) -> Result<Infallible, load::Error> {
        let Listing { nodes, placements, leader, fleet, read_at, revision } = load::list(self.store.as_ref()).await?;
        self.mirror.set_fleet(fleet);
        self.mirror.list(nodes, placements);
        self.revision = revision;
        self.lead_by(leader.as_ref());
        let world = self.mirror.world().clone();
        if self.publisher.now().is_loaded() {
            self.publisher.replace(world, revision.0);
        } else {
            let term = leader.as_ref().map_or(0, |leader| leader.term);
            self.publisher.restart(world, revision.0, term, now());
        }
        let mut events = self.store.watch(key::ALL, Revision(read_at.0.saturating_add(1))).await?.ready_chunks(CHUNK);
        loop {
            tokio::select! {
                chunk = events.next() => match chunk {
                    Some(chunk) => self.take(chunk)?,
                    None => return Err(away("the watch ended".to_owned())),
                },
                news = self.listener.next() => self.hear(news),
            }
        }
    }

    /// Takes in what was committed, up to the first error.
    fn take(&mut self, chunk: Vec<Result<Vec<Event>, berth_store::WatchError>>) -> Result<(), load::Error> {
        let mut touched = Touched::default();
        let mut outcome = Ok(());
        for item in chunk {
            match item {
                Ok(events) => {
                    for event in events {
                        self.revision = self.revision.max(event.revision());
                        self.take_event(event, &mut touched)?;
                    }
                }
                Err(error) => outcome = Err(away(error.to_string())),
            }
        }
        self.publish(touched);
        outcome
    }

    fn take_event(&mut self, event: Event, touched: &mut Touched) -> Result<(), record::Error> {
        // What this version does not know is none of its business.
        let Ok(key) = Key::parse(event.key()) else { return Ok(()) };
        match (key, event) {
            (Key::Leader, Event::Put(item)) => {
                let leader = record::read_leader(&item.value)?;
                self.lead_by_noting(Some(&leader), touched);
            }
            (Key::Leader, Event::Delete { .. }) => self.lead_by_noting(None, touched),
            (Key::Fleet, Event::Put(item)) => self.mirror.set_fleet(Some(record::read_fleet(&item.value)?)),
            (Key::Fleet, Event::Delete { .. }) => self.mirror.set_fleet(None),
            (Key::Placement(_), Event::Put(item)) => {
                self.mirror.put_placement(record::read_placement(&item)?, touched);
            }
            (Key::Placement(name), Event::Delete { .. }) => self.mirror.remove_placement(&name, touched),
            (Key::Node(_), Event::Put(item)) => self.mirror.put_node(record::read_node(&item)?, touched),
            (Key::Node(name), Event::Delete { .. }) => self.mirror.remove_node(&name, touched),
            // What they say is in the placements, too.
            (
                Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_) | Key::Term,
                Event::Put(_) | Event::Delete { .. },
            ) => {}
        }
        Ok(())
    }

    fn publish(&mut self, touched: Touched) {
        let Touched { placements, nodes } = touched;
        self.publisher.publish(self.mirror.world().clone(), self.revision.0, placements, nodes);
    }

    fn lead_by(&mut self, leader: Option<&record::Leader>) {
        // What it touches is shown with everything else.
        self.lead_by_noting(leader, &mut Touched::default());
    }

    /// Somebody leads, or nobody does.
    fn lead_by_noting(&mut self, leader: Option<&record::Leader>, touched: &mut Touched) {
        let known = leader.and_then(|leader| match leader.candidate.parse::<Candidate>() {
            // This process has won and does not know it yet: until it leads, nobody does.
            Ok(candidate) if candidate == self.me => None,
            Ok(Candidate { endpoint, instance: _ }) => Some(Known { endpoint, term: leader.term }),
            Err(error) => {
                tracing::warn!(%error, "the leader record names a leader that cannot be reached");
                None
            }
        });
        self.publisher.set_term(leader.map_or(0, |leader| leader.term), now());
        if self.listener.turn_to(known.clone()) {
            tracing::info!(leader = known.as_ref().map(|known| known.endpoint.as_str()), "following");
            self.mirror.lose(now(), touched);
            self.standing.send_replace(Standing { leads: false, leader: known, told: None });
        }
    }

    /// Takes in what is heard of the leader.
    fn hear(&mut self, news: News) {
        let mut touched = Touched::default();
        match news {
            News::Lost => {
                self.standing.send_modify(|standing| standing.told = None);
                self.mirror.lose(now(), &mut touched);
            }
            News::Told(observed) => {
                let known = self.standing.borrow().leader.as_ref().map_or(0, |known| known.term);
                // One that was deposed and has not noticed.
                if observed.term < known {
                    return;
                }
                for node in observed.nodes {
                    self.mirror.see_node(node, &mut touched);
                }
                for (placement, live) in observed.placements {
                    self.mirror.see_live(placement, live, &mut touched);
                }
                if observed.complete {
                    self.mirror.complete(&mut touched);
                }
                self.heard.note(observed.heard);
                self.standing.send_modify(|standing| {
                    standing.told = Some(standing.told.unwrap_or(0).max(observed.revision));
                });
            }
        }
        // Before the first listing there is nothing to show it with.
        if touched != Touched::default() && self.publisher.now().is_loaded() {
            self.publish(touched);
        }
    }
}

fn away(why: String) -> load::Error {
    load::Error::Store(berth_store::Error::Unavailable(why))
}
