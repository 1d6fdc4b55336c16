//! Changes as they are committed, for whoever watches.
//!
//! A watcher that reads slowly holds back only itself: nothing is queued for it but names of what changed. One that
//! falls too far behind is told so (OUT_OF_RANGE) and lists again. After a broken connection it resumes after the last
//! revision it has seen; a change may come again then, none is left out.

use super::{Sources, overloaded, view};
use crate::clock::now;
use crate::replica::{Follow, Published, Snapshot};
use berth_core::world::{Gpu, Node, World};
use berth_model::pci::DeviceAddress;
use berth_model::placement::Placement;
use berth_model::reason::ErrorClass;
use berth_model::{NodeName, PlacementName};
use berth_proto::{status, v1};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Most watches at a time: each costs some KiB and a look at every change; consoles and provisioning systems together
/// need some dozens.
const MAX_WATCHES: usize = 1024;

/// What a watch sends.
pub(crate) type Stream<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

/// Lets watches in, up to a bound.
#[derive(Clone)]
pub(crate) struct Watches {
    places: Arc<Semaphore>,
}

impl Default for Watches {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_WATCHES)) }
    }
}

impl Watches {
    /// Opens a watch.
    pub(crate) fn open<S: Source>(&self, source: S) -> Result<Stream<S::Change>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| overloaded("too many watches are open; close some, or try again later"))?;
        let open = Some((source, place));
        Ok(Box::pin(futures::stream::unfold(open, |open: Option<(S, OwnedSemaphorePermit)>| async {
            let (mut source, place) = open?;
            match source.next().await {
                Ok(change) => Some((Ok(change), Some((source, place)))),
                // Nothing follows an error.
                Err(status) => Some((Err(status), None)),
            }
        })))
    }
}

/// Where the changes of a watch come from.
pub(crate) trait Source: Send + 'static {
    /// One of them.
    type Change: Send + 'static;
    /// Waits for the next. May be dropped while it waits; nothing is lost by it.
    fn next(&mut self) -> impl Future<Output = Result<Self::Change, Status>> + Send;
}

/// Starts following after a revision, `0` meaning from now on.
fn follow(sources: &Sources, after: u64) -> Result<Follow, Status> {
    sources.replica.follow((after > 0).then_some(after)).map_err(|too_old| status::too_old(&too_old.to_string()))
}

async fn next_change(follow: &mut Follow) -> Result<Arc<Published>, Status> {
    match follow.next().await {
        Some(Ok(published)) => Ok(published),
        Some(Err(too_old)) => Err(status::too_old(&too_old.to_string())),
        None => Err(status::failure(
            ErrorClass::Unavailable,
            "STOPPING",
            "the controller is stopping; watch again after the last revision you have seen",
        )),
    }
}

/// The first name of a set after `last`.
fn next_name<'a, T: Ord>(names: &'a BTreeSet<T>, last: Option<&T>) -> Option<&'a T> {
    names.range((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)).next()
}

/// Placements: first, if asked for, all that are live; then each that changes.
pub(crate) struct PlacementChanges {
    follow: Follow,
    only: Option<PlacementName>,
    listing: Option<(Arc<Snapshot>, Arc<Placement>)>,
    change: Option<(Arc<Published>, Option<PlacementName>)>,
}

impl PlacementChanges {
    /// Changes after a revision (`0`: first all live ones), of one placement or of all.
    pub(crate) fn new(sources: &Sources, after: u64, only: Option<PlacementName>) -> Result<Self, Status> {
        // Followed before it is listed: what changes in between comes twice rather than never.
        let follow = follow(sources, after)?;
        let listing = if after == 0 {
            let snapshot = sources.replica.now();
            let first = live_after(&snapshot.world, None, only.as_ref());
            first.map(|first| (snapshot, first))
        } else {
            None
        };
        Ok(Self { follow, only, listing, change: None })
    }
}

/// The first live placement after a name.
fn live_after(world: &World, last: Option<&PlacementName>, only: Option<&PlacementName>) -> Option<Arc<Placement>> {
    let live = |p: &&Arc<Placement>| p.phase.is_live();
    match only {
        Some(only) => world.placement(only).filter(|_| last.is_none()).filter(live).cloned(),
        None => world.placements_after(last).find(live).cloned(),
    }
}

impl Source for PlacementChanges {
    type Change = v1::PlacementChange;

    async fn next(&mut self) -> Result<Self::Change, Status> {
        loop {
            if let Some((snapshot, placement)) = self.listing.take() {
                let following = live_after(&snapshot.world, Some(placement.name()), self.only.as_ref());
                // Whoever is cut off within the list must begin it anew: only its last item names a revision.
                let revision = if following.is_none() { snapshot.revision } else { 0 };
                let view = view::placement(&snapshot.world, &placement, now());
                self.listing = following.map(|following| (snapshot, following));
                return Ok(v1::PlacementChange { revision, placement: Some(view) });
            }
            if let Some((published, last)) = self.change.take() {
                if let Some(name) = next_name(&published.placements, last.as_ref()) {
                    let snapshot = Arc::clone(&published.snapshot);
                    let name = name.clone();
                    self.change = Some((published, Some(name.clone())));
                    let wanted = self.only.as_ref().is_none_or(|only| *only == name);
                    // One that is not there was over and is forgotten: it changed for the last time before.
                    if let Some(placement) = snapshot.world.placement(&name).filter(|_| wanted) {
                        let view = view::placement(&snapshot.world, placement, now());
                        return Ok(v1::PlacementChange { revision: snapshot.revision, placement: Some(view) });
                    }
                }
                continue;
            }
            self.change = Some((next_change(&mut self.follow).await?, None));
        }
    }
}

/// GPUs whose view changed.
pub(crate) struct GpuChanges {
    follow: Follow,
    /// The world as the watcher knows it; none right after resuming.
    known: Option<Arc<Snapshot>>,
    change: Option<(Arc<Published>, Option<NodeName>)>,
    ready: VecDeque<v1::GpuChange>,
}

impl GpuChanges {
    /// Changes after a revision (`0`: from now on).
    pub(crate) fn new(sources: &Sources, after: u64) -> Result<Self, Status> {
        let known = (after == 0).then(|| sources.replica.now());
        Ok(Self { follow: follow(sources, after)?, known, change: None, ready: VecDeque::new() })
    }
}

/// The GPUs of a node that look different now. That it was merely seen again is no news.
fn changed<'a>(before: Option<&'a Node>, after: &'a Node) -> impl Iterator<Item = (&'a DeviceAddress, &'a Gpu)> {
    let same_node = before.filter(|b| b.link == after.link && b.view == after.view && b.cordons == after.cordons);
    after.gpus.iter().filter(move |(address, gpu)| {
        let known = same_node.and_then(|node| node.gpus.get(*address));
        known.is_none_or(|known| known.observed != gpu.observed || known.claim != gpu.claim)
    })
}

impl Source for GpuChanges {
    type Change = v1::GpuChange;

    async fn next(&mut self) -> Result<Self::Change, Status> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            if let Some((published, last)) = self.change.take() {
                let snapshot = Arc::clone(&published.snapshot);
                let Some(name) = next_name(&published.nodes, last.as_ref()).cloned() else {
                    self.known = Some(snapshot);
                    continue;
                };
                if let Some(node) = snapshot.world.node(&name) {
                    let before = self.known.as_ref().and_then(|known| known.world.node(&name));
                    self.ready.extend(changed(before.map(AsRef::as_ref), node).map(|(address, gpu)| v1::GpuChange {
                        revision: snapshot.revision,
                        gpu: Some(view::gpu(node, address, gpu)),
                    }));
                }
                self.change = Some((published, Some(name)));
                continue;
            }
            self.change = Some((next_change(&mut self.follow).await?, None));
        }
    }
}
