//! Callers: each order is one VM that somebody wants on GPUs, with a list of things to do, retried until there is a definite
//! answer. Every answer is judged the moment the controller gives it.

use super::controller::From;
use super::trouble::{Kind as Trouble, host_of};
use super::{Broken, Event, Sim, scene};
use crate::scene::{legal, uid, vm, vm_name};
use berth_controller::leader::{Answer, CallError};
use berth_core::decide::Input;
use berth_core::schedule;
use berth_model::placement::{Phase, Placement};
use berth_model::request::{Draft, PlacementRequest, ReturnTo, VerifyLevel};
use berth_model::vm::VmSelector;
use berth_model::{PlacementUid, RequestId, Timestamp};
use rand::RngExt;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How late a call may arrive that is sent again on its way, in milliseconds: its customer may have gone on long since.
const TWIN_MS: u64 = 20_000;

/// What a customer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Waits up to so many milliseconds.
    Wait(u64),
    /// Makes the VM: where it belongs, or elsewhere.
    MakeVm { wrong: bool },
    /// Asks for the plan of another one like it.
    Plan,
    /// Makes a call.
    Call(Kind),
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    /// The same once more.
    Again,
    /// The same request id with other content.
    Other,
    Commit,
    Release,
    WrongUid,
    WrongVersion,
}

/// One VM that somebody wants on GPUs.
#[derive(Debug)]
struct Order {
    request: PlacementRequest,
    own_vm: bool,
    uid: Option<PlacementUid>,
    todo: VecDeque<Action>,
    call: Option<u64>,
    /// The latest call of it that has arrived.
    arrived: u64,
}

#[derive(Debug)]
struct Call {
    order: usize,
    kind: Kind,
    /// Drawn for this call alone.
    uid: PlacementUid,
    replica: usize,
}

#[derive(Debug)]
pub(super) struct Callers {
    orders: Vec<Order>,
    calls: BTreeMap<u64, Call>,
    /// When the last call arrives that nobody waits for.
    twins_until: Timestamp,
    last_call: u64,
    uids: u32,
    /// The controller that answered last.
    endpoint: usize,
    acknowledged: BTreeMap<RequestId, PlacementUid>,
}

impl Callers {
    pub(super) fn new() -> Self {
        Self {
            orders: Vec::new(),
            calls: BTreeMap::new(),
            twins_until: Timestamp::default(),
            last_call: 0,
            uids: 0,
            endpoint: 0,
            acknowledged: BTreeMap::new(),
        }
    }

    /// Notes a call; its uid is drawn by whoever takes it in.
    fn new_call(&mut self, order: usize, kind: Kind, replica: usize) -> u64 {
        self.uids += 1;
        self.last_call += 1;
        self.calls.insert(self.last_call, Call { order, kind, uid: uid(self.uids), replica });
        self.last_call
    }

    pub(super) fn replica_of(&self, call: u64) -> Option<usize> {
        self.calls.get(&call).map(|call| call.replica)
    }

    /// What was promised to whom.
    pub(super) fn promised(&self) -> impl Iterator<Item = (&RequestId, &PlacementUid)> {
        self.acknowledged.iter()
    }

    /// An order that is not through yet.
    pub(super) fn unfinished(&self, now: Timestamp) -> Option<String> {
        if self.twins_until > now {
            return Some("a call is on its way".to_owned());
        }
        let order = self.orders.iter().find(|order| !order.todo.is_empty())?;
        Some(format!("the caller of {} has still to do {:?}", order.request.name, order.todo))
    }
}

impl Sim {
    pub(super) fn orders(&mut self) -> Result<(), Broken> {
        if !self.trouble {
            return Ok(());
        }
        let number = self.callers.orders.len();
        let request = self.new_request(number)?;
        let own_vm = request.1;
        let request = request.0;
        self.say("caller", || format!("wants {} GPUs for {} as {}", request.gpus, request.vm, request.name));
        let todo = VecDeque::from([Action::Call(Kind::Create)]);
        self.callers.orders.push(Order { request, own_vm, uid: None, todo, call: None, arrived: 0 });
        self.soon(100, Event::CallerWakes { order: number });
        let at = self.now.after(Duration::from_secs(1) + self.up_to(8_000));
        self.agenda.add(at, Event::Orders);
        Ok(())
    }

    fn new_request(&mut self, number: usize) -> Result<(PlacementRequest, bool), Broken> {
        let own_vm = self.rng.random_ratio(2, 3);
        let vm =
            if own_vm { format!("own-{number}") } else { vm_name(self.rng.random_range(0..scene::VMS)).to_string() };
        let models = [vec!["A2".to_owned()], vec!["A30".to_owned()], Vec::new()];
        let nodes: Vec<String> = self.agents.iter().map(|agent| agent.name.to_string()).collect();
        let node = if self.rng.random_ratio(1, 6) { self.pick(&nodes).unwrap_or_default() } else { String::new() };
        let draft = Draft {
            request_id: format!("r{number}"),
            name: format!("p{number}"),
            vm,
            gpus: self.rng.random_range(1..=2),
            models: self.pick(&models).unwrap_or_default(),
            node,
            spread_group: if self.rng.random_ratio(1, 4) { "group".to_owned() } else { String::new() },
            queue: self.rng.random_ratio(1, 2).then_some(Duration::from_secs(60)),
            allow_standalone: self.rng.random(),
            verify: self.pick(&[VerifyLevel::None, VerifyLevel::Visible, VerifyLevel::DriverBound]).unwrap_or_default(),
            return_to: self.pick(&[ReturnTo::Host, ReturnTo::Pool]).unwrap_or_default(),
            ..Draft::default()
        };
        let request = PlacementRequest::new(draft).map_err(|e| Broken(format!("the request is illegal: {e:?}")))?;
        Ok((request, own_vm))
    }

    /// What a customer does with a placement that was promised.
    fn list(&mut self, own_vm: bool) -> VecDeque<Action> {
        let mut todo = VecDeque::new();
        let call = Action::Call;
        let mut sometimes = |sim: &mut Self, times, what: Action| {
            if sim.rng.random_ratio(1, times) {
                todo.extend([Action::Wait(8_000), what]);
            }
        };
        if own_vm {
            let roll = self.rng.random_range(0..10);
            if roll < 8 {
                sometimes(self, 1, Action::MakeVm { wrong: roll == 0 });
            } else {
                self.counts.add("host: VM never made");
            }
        }
        sometimes(self, 4, call(Kind::Again));
        sometimes(self, 6, call(Kind::Other));
        sometimes(self, 3, call(Kind::Commit));
        sometimes(self, 6, Action::Plan);
        sometimes(self, 8, call(Kind::WrongUid));
        sometimes(self, 8, call(Kind::WrongVersion));
        if self.rng.random_ratio(3, 4) {
            todo.extend([Action::Wait(60_000), call(Kind::Release)]);
        }
        todo
    }

    /// Everything that is active is given back by its caller.
    pub(super) fn callers_give_back(&mut self) {
        let active: Vec<Placement> =
            self.store.truth.placements.values().filter(|p| p.phase == Phase::Active).cloned().collect();
        for placement in active {
            let order = self.callers.orders.len();
            let todo = VecDeque::from([Action::Call(Kind::Release)]);
            let (request, uid) = (placement.request, Some(placement.uid));
            self.callers.orders.push(Order { request, own_vm: false, uid, todo, call: None, arrived: 0 });
            self.soon(500, Event::CallerWakes { order });
        }
    }

    pub(super) fn caller_wakes(&mut self, number: usize) -> Result<(), Broken> {
        let Some(order) = self.callers.orders.get(number).filter(|order| order.call.is_none()) else { return Ok(()) };
        let (uid, request) = (order.uid.clone(), order.request.clone());
        match order.todo.front().copied() {
            None => return Ok(()),
            Some(Action::Wait(most)) => {
                self.done(number);
                let at = self.now.after(self.up_to(most));
                self.agenda.add(at, Event::CallerWakes { order: number });
                return Ok(());
            }
            Some(Action::MakeVm { wrong }) => {
                let placement = uid.and_then(|uid| self.store.truth.by_uid(&uid));
                if placement.is_some_and(|p| matches!(p.phase, Phase::Queued { .. })) {
                    let at = self.now.after(Duration::from_secs(3));
                    self.agenda.add(at, Event::CallerWakes { order: number });
                    return Ok(());
                }
                let node = placement.and_then(|p| p.assignment.as_ref()).map(|a| a.node.clone());
                if let (Some(node), VmSelector::Name(name)) = (node, request.vm) {
                    let at = host_of(&self.agents, &node);
                    let at = if wrong { at + 1 } else { at } % self.agents.len();
                    let spec = vm(&mut self.rng, name);
                    if let Some(agent) = self.agents.get_mut(at) {
                        let line = format!("makes VM {} {} on {}", spec.name, spec.id, agent.name);
                        agent.host.create_vm(spec).map_err(|e| Broken(e.to_string()))?;
                        self.counts.add(if wrong { "host: VM made on a wrong node" } else { "host: VM made late" });
                        self.say("caller", || line);
                    }
                }
                self.done(number);
            }
            Some(Action::Plan) => {
                self.plan(&request);
                self.done(number);
            }
            Some(Action::Call(kind)) => return self.call(number, kind),
        }
        self.soon(500, Event::CallerWakes { order: number });
        Ok(())
    }

    /// A dry run touches nothing; that it gives what is there is the scheduler's own test.
    fn plan(&mut self, request: &PlacementRequest) {
        if let Some(world) = self.replicas.iter().find_map(|replica| replica.world()) {
            let planned = schedule::plan(world, std::slice::from_ref(request), self.now);
            if !planned.is_empty() {
                self.counts.add("call: plan");
            }
        }
    }

    fn done(&mut self, order: usize) {
        if let Some(order) = self.callers.orders.get_mut(order) {
            order.todo.pop_front();
        }
    }

    fn call(&mut self, number: usize, kind: Kind) -> Result<(), Broken> {
        let known = self.callers.endpoint;
        let replica = if self.rng.random_ratio(4, 5) { known } else { self.rng.random_range(0..self.replicas.len()) };
        let call = self.callers.new_call(number, kind, replica);
        let Some(order) = self.callers.orders.get_mut(number) else { return Ok(()) };
        order.call = Some(call);
        if let (Kind::Release, Some(uid)) = (kind, &order.uid) {
            self.store.truth.ask_release(uid);
        }
        match kind {
            Kind::Create | Kind::Release => {}
            Kind::Again => self.counts.add("call: same id, same content"),
            Kind::Other => self.counts.add("call: same id, other content"),
            Kind::Commit => self.counts.add("call: commit"),
            Kind::WrongUid => self.counts.add("call: release with a wrong uid"),
            Kind::WrongVersion => self.counts.add("call: release with a wrong version"),
        }
        let name = order.request.name.clone();
        self.say("caller", || format!("calls {kind:?} of {name} at control-{replica}, call {call}"));
        self.agenda.add(self.now.after(PATIENCE), Event::CallTimesOut { call });
        if self.mishap(Trouble::Net, 40) {
            self.counts.add("call: lost on its way");
        } else {
            self.soon(100, Event::CallArrives { call });
        }
        if self.mishap(Trouble::Net, 30) {
            // Somebody on the way sends it again, perhaps to another one, perhaps long after; nobody hears that answer.
            self.counts.add("call: sent twice on its way");
            let replica = self.rng.random_range(0..self.replicas.len());
            let twin = self.callers.new_call(number, kind, replica);
            let at = self.now.after(self.up_to(TWIN_MS));
            self.callers.twins_until = self.callers.twins_until.max(at);
            self.agenda.add(at, Event::CallArrives { call: twin });
        }
        Ok(())
    }

    pub(super) fn call_arrives(&mut self, number: u64) -> Result<(), Broken> {
        let Some(call) = self.callers.calls.get(&number) else { return Ok(()) };
        let (replica, kind, drawn) = (call.replica, call.kind, call.uid.clone());
        let Some(order) = self.callers.orders.get_mut(call.order) else { return Ok(()) };
        if order.arrived > number {
            self.counts.add("call: overtaken by a later one");
        }
        order.arrived = order.arrived.max(number);
        if !self.replicas.get(replica).is_some_and(|replica| replica.serves()) {
            return self.replies(number, Err(CallError::Unavailable("this controller does not lead".to_owned())));
        }
        let name = order.request.name.clone();
        let create = |request| Input::Create { request, uid: drawn.clone(), caller: "test".to_owned(), trace: None };
        let input = match kind {
            Kind::Create | Kind::Again => create(Box::new(order.request.clone())),
            Kind::Other => create(Box::new(altered(&order.request))),
            Kind::Commit => Input::Commit { name, vm_id: None, version: None },
            Kind::Release => Input::Release { name, uid: order.uid.clone(), version: None },
            Kind::WrongUid => Input::Release { name, uid: Some(drawn), version: None },
            Kind::WrongVersion => Input::Release { name, uid: order.uid.clone(), version: Some(1_000_000) },
        };
        self.hand_in(replica, input, From::Caller(number))
    }

    /// A controller answers a call. What it says must be so, whether or not anybody hears it.
    pub(super) fn replies(&mut self, number: u64, answer: Answer) -> Result<(), Broken> {
        let Some(call) = self.callers.calls.get(&number) else { return Ok(()) };
        let (kind, drawn) = (call.kind, call.uid.clone());
        let Some(order) = self.callers.orders.get(call.order) else { return Ok(()) };
        let (request, replica) = (order.request.clone(), call.replica);
        let name = &request.name;
        match &answer {
            Ok(decided) => {
                self.store.truth.check_decided(decided)?;
                let Some(placement) = &decided.placement else {
                    return Err(Broken(format!("{kind:?} of {name} is answered with nothing")));
                };
                self.judge(kind, &drawn, &request, placement)?;
            }
            // Surely nothing was changed: nothing with the uid of this call may ever come to be.
            Err(CallError::Refused(_) | CallError::Overloaded | CallError::Unavailable(_)) => {
                self.store.truth.never(drawn)?;
            }
            Err(CallError::Unknown(_)) => {}
        }
        self.say(format_args!("control-{replica}"), || format!("answers call {number}: {}", show(&answer)));
        if self.mishap(Trouble::Net, 25) {
            self.counts.add("call: answer lost");
            return Ok(());
        }
        self.soon(100, Event::AnswerArrives { call: number, answer: Box::new(answer) });
        Ok(())
    }

    fn judge(
        &mut self,
        kind: Kind,
        drawn: &PlacementUid,
        request: &PlacementRequest,
        placement: &Placement,
    ) -> Result<(), Broken> {
        let name = placement.name();
        // What failed and is not undone yet is still being undone.
        let ending = matches!(placement.phase, Phase::Releasing { .. } | Phase::Released | Phase::Failed { .. });
        match kind {
            Kind::Create | Kind::Again | Kind::Other => {
                let asked = if kind == Kind::Other { &altered(request) } else { request };
                if placement.request != *asked {
                    return Err(Broken(format!("{kind:?} of {name} is answered with another request's placement")));
                }
                if placement.uid != *drawn {
                    self.store.truth.never(drawn.clone())?;
                }
                let id = request.request_id.clone();
                let before = self.callers.acknowledged.insert(id.clone(), placement.uid.clone());
                let before = before.filter(|uid| *uid != placement.uid);
                if let Some(other) = before.and_then(|uid| self.store.truth.by_uid(&uid)) {
                    return Err(Broken(format!("request id {id} made {} and now {}", other.uid, placement.uid)));
                }
                Ok(())
            }
            Kind::Commit if placement.vm_id.is_none() => Err(Broken(format!("{name} is committed without a VM"))),
            Kind::WrongUid => Err(Broken(format!("{name} is released by a wrong uid"))),
            Kind::Release | Kind::WrongVersion if !ending => {
                Err(Broken(format!("the release of {name} is answered, but it is {}", placement.phase.name())))
            }
            Kind::Commit | Kind::Release | Kind::WrongVersion => Ok(()),
        }
    }

    pub(super) fn answer_arrives(&mut self, number: u64, answer: Answer) -> Result<(), Broken> {
        let Some(call) = self.callers.calls.get(&number) else { return Ok(()) };
        let (number, order, kind, replica) = (number, call.order, call.kind, call.replica);
        let Some(order_of) = self.callers.orders.get_mut(order).filter(|order| order.call == Some(number)) else {
            return Ok(());
        };
        order_of.call = None;
        match answer {
            Ok(decided) => {
                self.callers.endpoint = replica;
                if let (Kind::Create, Some(placement)) = (kind, decided.placement) {
                    order_of.uid = Some(placement.uid.clone());
                    let own_vm = order_of.own_vm;
                    let todo = self.list(own_vm);
                    if let Some(order) = self.callers.orders.get_mut(order) {
                        order.todo.extend(todo);
                    }
                }
                self.done(order);
            }
            Err(CallError::Refused(_)) => {
                self.callers.endpoint = replica;
                self.done(order);
            }
            Err(CallError::Overloaded | CallError::Unavailable(_)) => {
                self.callers.endpoint = self.rng.random_range(0..self.replicas.len());
                return self.again(order);
            }
            Err(CallError::Unknown(_)) => {
                self.counts.add("call: retried after an unknown answer");
                return self.again(order);
            }
        }
        self.soon(1_000, Event::CallerWakes { order });
        Ok(())
    }

    fn again(&mut self, order: usize) -> Result<(), Broken> {
        let at = self.now.after(Duration::from_millis(300) + self.up_to(2_500));
        self.agenda.add(at, Event::CallerWakes { order });
        Ok(())
    }

    pub(super) fn call_times_out(&mut self, number: u64) -> Result<(), Broken> {
        let Some(call) = self.callers.calls.get(&number) else { return Ok(()) };
        let order = call.order;
        let Some(waits) = self.callers.orders.get_mut(order).filter(|order| order.call == Some(number)) else {
            return Ok(());
        };
        waits.call = None;
        self.counts.add("call: retried after an unknown answer");
        self.callers.endpoint = self.rng.random_range(0..self.replicas.len());
        self.again(order)
    }
}

/// The same request id for something else.
fn altered(request: &PlacementRequest) -> PlacementRequest {
    let spread_group = Some(legal("another".parse()));
    PlacementRequest { gpus: request.gpus + 1, spread_group, ..request.clone() }
}

fn show(answer: &Answer) -> String {
    match answer {
        Ok(decided) => match &decided.placement {
            Some(placement) => format!("{} is {}", placement.name(), placement.phase.name()),
            None => "ok".to_owned(),
        },
        Err(error) => error.to_string(),
    }
}
