//! Asking for GPUs, and giving them back.

use super::forward::REVISION;
use super::page::Page;
use super::plan;
use super::watch::{PlacementChanges, Stream, Watches};
use super::{Sources, refused, view};
use crate::clock::now;
use crate::identity::{self, Caller};
use crate::leader::CallError;
use crate::metrics::code_name;
use berth_core::adopt::{self, Candidate, Naming};
use berth_core::condition::LOST_AFTER;
use berth_core::decide::{Adopt, Input};
use berth_core::schedule::nearest;
use berth_core::world::{Link, Node, View, World};
use berth_model::adopt::Skip;
use berth_model::reason::{ErrorClass, Refusal};
use berth_model::request::PlacementRequest;
use berth_model::trace::TraceParent;
use berth_model::{NodeName, PlacementName, PlacementUid, VmId};
use berth_proto::v1::placements_server::Placements;
use berth_proto::{convert, status, v1};
use berth_telemetry::traces::{self, Span};
use berth_telemetry::{names, spans, trace};
use std::sync::Arc;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

/// Above so many placements a misspelled name gets no suggestion: comparing it with all would cost more than it helps.
const SUGGEST_AMONG: usize = 10_000;

/// `berth.v1.Placements`.
#[derive(Clone)]
pub(crate) struct PlacementsService {
    pub(crate) sources: Sources,
    pub(crate) watches: Watches,
    pub(crate) planner: plan::Planner,
    pub(crate) explainer: plan::Explainer,
}

impl PlacementsService {
    /// Has an input decided, shows the placement that it is about, and writes down who asked.
    async fn submit(
        &self,
        caller: Option<Caller>,
        name: PlacementName,
        input: Input,
        call: Span,
    ) -> Result<Response<v1::Placement>, Status> {
        let outcome = call.within(self.decide(input, call.link(), identity::name_of(caller.as_ref()))).await;
        if call.is_kept() {
            call.set(names::PLACEMENT, name.to_string());
            call.set(names::CALLER, identity::name_of(caller.as_ref()).to_owned());
            match &outcome {
                Ok(answer) => call.set(names::UID, answer.get_ref().uid.clone()),
                Err(status) => call.fail(code_name(status.code()), status.message()),
            }
        }
        call.in_scope(|| identity::audit(caller, name, &outcome));
        outcome
    }

    /// Whether this leader is so new that agents may still be on their way to it: then what does not fit now may fit in
    /// a moment, and saying "no" would be to conclude from what is unknown.
    fn still_gathering(&self) -> Option<String> {
        let snapshot = self.sources.replica.now();
        if now().since(snapshot.leading_since) >= LOST_AFTER {
            return None;
        }
        let awaited = |node: &&Arc<Node>| match (&node.link, &node.view) {
            (Link::Disconnected { since }, _) => *since <= snapshot.leading_since,
            (Link::Connected { .. }, View::NotReported) | (Link::Unheard { .. }, _) => true,
            (Link::Connected { .. }, View::Complete | View::Failed { .. } | View::Stranger { .. }) => false,
        };
        let missing = snapshot.world.nodes().filter(awaited).count();
        (missing > 0).then(|| {
            let known = snapshot.world.node_count();
            format!("the leader is new and {missing} of {known} nodes have not reported to it yet; try again")
        })
    }

    async fn decide(&self, input: Input, link: traces::Link, caller: &str) -> Result<Response<v1::Placement>, Status> {
        let decided = match self.sources.leader.submit_in(input, link, caller).await {
            Ok(decided) => decided,
            // A new leader hears of its nodes one by one.
            Err(CallError::Refused(Refusal::NoRoom(_) | Refusal::UnknownVm { .. } | Refusal::VmNotSeen { .. }))
                if let Some(why) = self.still_gathering() =>
            {
                return Err(status::failure(ErrorClass::Unavailable, "GATHERING", &why));
            }
            Err(CallError::Refused(Refusal::NoRoom(request))) => {
                return Err(self.explainer.explain(self.sources.replica.now(), request).await);
            }
            Err(error) => return Err(error.into()),
        };
        let Some(placement) = decided.placement else {
            return Err(status::failure(ErrorClass::Internal, "NO_PLACEMENT", "the decision names no placement"));
        };
        let snapshot = self.sources.replica.now();
        let mut answer = Response::new(view::placement(&snapshot.world, &placement, now()));
        answer.metadata_mut().insert(REVISION, decided.revision.into());
        Ok(answer)
    }
}

impl PlacementsService {
    /// Takes over what can be, one decision and one commit each, in the order of the table. What stops it stops it between two
    /// of them: asking again goes on, since what has a placement is skipped.
    async fn adopt_all(
        &self,
        asked: convert::Adopt,
        caller: Option<Caller>,
        trace: Option<TraceParent>,
        link: &traces::Link,
    ) -> Result<Response<v1::AdoptResponse>, Status> {
        let convert::Adopt { node, vms, dry_run, name, name_prefix, adoption, return_to } = asked;
        let snapshot = self.sources.replica.now();
        let naming = Naming { name, prefix: name_prefix };
        let found = match adopt::candidates(&snapshot.world, &node, &vms, &naming) {
            Ok(found) => found,
            Err(refusal) => return refused(&refusal),
        };
        let mut answer = v1::AdoptResponse { vms: Vec::with_capacity(found.len()), revision: snapshot.revision };
        for Candidate { vm, gpus, outcome } in found {
            let mut shown = v1::AdoptedVm {
                vm: Some((&vm).into()),
                gpus: gpus.iter().map(Into::into).collect(),
                ..v1::AdoptedVm::default()
            };
            match outcome {
                Err(why) => skipped(&mut shown, &why),
                Ok(name) if dry_run => {
                    shown.set_outcome(v1::AdoptOutcome::Would);
                    shown.placement = name.to_string();
                }
                Ok(name) => {
                    let uid = new_uid()?;
                    let by = identity::name_of(caller.as_ref()).to_owned();
                    let input = Input::Adopt(Box::new(Adopt {
                        node: node.clone(),
                        vm: vm.id.clone(),
                        name: name.clone(),
                        adoption: adoption.clone(),
                        return_to,
                        uid,
                        caller: by.clone(),
                        trace: trace.clone(),
                    }));
                    match self.sources.leader.submit_in(input, link.clone(), &by).await {
                        Ok(decided) => {
                            let uid = decided.placement.as_ref().map(|p| p.uid.to_string()).unwrap_or_default();
                            identity::audit_change(caller.clone(), name.clone(), Ok((&uid, v1::Phase::Active)));
                            answer.revision = answer.revision.max(decided.revision);
                            shown.set_outcome(v1::AdoptOutcome::Adopted);
                            shown.placement = name.to_string();
                        }
                        // It changed between the table and this.
                        Err(CallError::Refused(Refusal::NotAdoptable { why, .. })) => skipped(&mut shown, &why),
                        Err(error) => {
                            let status = Status::from(error);
                            identity::audit_change(caller.clone(), name.clone(), Err(&status));
                            return Err(status);
                        }
                    }
                }
            }
            answer.vms.push(shown);
        }
        let revision = answer.revision;
        let mut answer = Response::new(answer);
        answer.metadata_mut().insert(REVISION, revision.into());
        Ok(answer)
    }
}

fn skipped(shown: &mut v1::AdoptedVm, why: &Skip) {
    shown.set_outcome(v1::AdoptOutcome::Skipped);
    shown.reason = why.name().to_owned();
    shown.text = why.to_string();
    if let Skip::AlreadyPlaced { placement } = why {
        shown.placement = placement.to_string();
    }
}

fn new_uid() -> Result<PlacementUid, Status> {
    PlacementUid::new(uuid::Uuid::new_v4().hyphenated().to_string())
        .map_err(|error| status::failure(ErrorClass::Internal, "NO_UID", &error.to_string()))
}

/// Begins, or continues, the trace of a call. The second is how others continue it; the caller's own where nothing is kept.
fn begin<T>(method: &'static str, request: &Request<T>) -> (Span, Option<TraceParent>) {
    let trace = trace::from_metadata(request.metadata());
    let call = traces::begin(method, trace.as_ref());
    let trace = call.trace().or(trace);
    (call, trace)
}

/// A version that a caller rests on; 0 means any.
fn version(wire: u64) -> Option<u64> {
    (wire > 0).then_some(wire)
}

fn unknown(world: &World, name: PlacementName) -> Refusal {
    let names = world.placements().take(SUGGEST_AMONG).map(|placement| placement.name());
    let nearest = nearest(name.as_str(), names).cloned();
    Refusal::UnknownPlacement { name, nearest }
}

#[tonic::async_trait]
impl Placements for PlacementsService {
    async fn create(&self, request: Request<v1::CreatePlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        let caller = Caller::of(&request);
        let (call, trace) = begin("Placements/Create", &request);
        let span = spans::call("Placements/Create", trace.as_ref());
        let request = PlacementRequest::try_from(request.into_inner())?;
        let uid = new_uid()?;
        let (name, by) = (request.name.clone(), identity::name_of(caller.as_ref()).to_owned());
        let input = Input::Create { request: Box::new(request), uid, caller: by, trace };
        self.submit(caller, name, input, call).instrument(span).await
    }

    async fn get(&self, request: Request<v1::GetPlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        let name: PlacementName = convert::read(|at| at.field("name").parse(&request.get_ref().name))?;
        let snapshot = self.sources.replica.now();
        match snapshot.world.placement(&name) {
            Some(placement) => Ok(Response::new(view::placement(&snapshot.world, placement, now()))),
            None => refused(&unknown(&snapshot.world, name)),
        }
    }

    async fn list(
        &self,
        request: Request<v1::ListPlacementsRequest>,
    ) -> Result<Response<v1::ListPlacementsResponse>, Status> {
        let v1::ListPlacementsRequest { page_size, page_token, node, phase, live_only } = request.into_inner();
        let (node, phase) = convert::read(|at| {
            let node = at.field("node").optional::<NodeName>(&node);
            let phase = match v1::Phase::try_from(phase) {
                Ok(v1::Phase::Unspecified) => Some(None),
                Ok(phase) => Some(Some(phase)),
                Err(_) => at.field("phase").refuse(format_args!("{phase} is no Phase")),
            };
            Some((node?, phase?))
        })?;
        let filters = ("Placements", &node, phase.map(i32::from), live_only);
        let page = Page::open(&self.sources.replica, page_size, &page_token, filters)?;
        let after: Option<PlacementName> = page.after()?;
        let world = &page.snapshot.world;
        let now = now();
        let placements = world
            .placements_after(after.as_ref())
            .filter(|placement| !live_only || placement.phase.is_live())
            .filter(|placement| phase.is_none_or(|phase| phase == v1::Phase::from(&placement.phase)))
            .filter(|placement| {
                node.is_none() || placement.assignment.as_ref().map(|assignment| &assignment.node) == node.as_ref()
            });
        let (placements, next_page_token) = page.fill(
            placements,
            |placement| view::placement(world, placement, now),
            |placement| placement.name().to_string(),
        );
        Ok(Response::new(v1::ListPlacementsResponse { placements, next_page_token, revision: page.snapshot.revision }))
    }

    type WatchStream = Stream<v1::PlacementChange>;

    async fn watch(&self, request: Request<v1::WatchPlacementsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchPlacementsRequest { after_revision, name } = request.into_inner();
        let only = convert::read(|at| at.field("name").optional::<PlacementName>(&name))?;
        let changes = PlacementChanges::new(&self.sources, after_revision, only)?;
        Ok(Response::new(self.watches.open(changes)?))
    }

    async fn commit(&self, request: Request<v1::CommitPlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        let caller = Caller::of(&request);
        let (call, trace) = begin("Placements/Commit", &request);
        let span = spans::call("Placements/Commit", trace.as_ref());
        let v1::CommitPlacementRequest { name, vm_id, version: expected } = request.into_inner();
        let (name, vm_id) = convert::read(|at| {
            let name: Option<PlacementName> = at.field("name").parse(&name);
            let vm_id = at.field("vm_id").optional::<VmId>(&vm_id);
            Some((name?, vm_id?))
        })?;
        let input = Input::Commit { name: name.clone(), vm_id, version: version(expected) };
        self.submit(caller, name, input, call).instrument(span).await
    }

    async fn release(&self, request: Request<v1::ReleasePlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        let caller = Caller::of(&request);
        let (call, trace) = begin("Placements/Release", &request);
        let span = spans::call("Placements/Release", trace.as_ref());
        let v1::ReleasePlacementRequest { name, uid, version: expected } = request.into_inner();
        let (name, uid) = convert::read(|at| {
            let name: Option<PlacementName> = at.field("name").parse(&name);
            let uid = at.field("uid").optional::<PlacementUid>(&uid);
            Some((name?, uid?))
        })?;
        let input = Input::Release { name: name.clone(), uid, version: version(expected) };
        self.submit(caller, name, input, call).instrument(span).await
    }

    async fn adopt(&self, request: Request<v1::AdoptRequest>) -> Result<Response<v1::AdoptResponse>, Status> {
        let caller = Caller::of(&request);
        let (call, trace) = begin("Placements/Adopt", &request);
        let span = spans::call("Placements/Adopt", trace.as_ref());
        let asked = convert::Adopt::try_from(request.into_inner())?;
        let outcome = call.within(self.adopt_all(asked, caller, trace, &call.link())).instrument(span).await;
        if let Err(status) = &outcome {
            call.fail(code_name(status.code()), status.message());
        }
        outcome
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let requests = Vec::<PlacementRequest>::try_from(request.into_inner())?;
        let answer = self.planner.plan(self.sources.replica.now(), requests).await?;
        Ok(Response::new(answer))
    }
}
