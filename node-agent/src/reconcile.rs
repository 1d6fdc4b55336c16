//! The loop that makes a host what is wanted: look, let the brain decide, act, look again.
//!
//! Owns the calls to the host driver, their deadlines and how many run at once, and the clock the brain is told. What is
//! done, in which order and how often is `berth_agent_core::work`'s. Must never act on what is not durable, and never
//! believe a call's result: the brain looks again.

use crate::driver::{DriverError, HostDriver};
use crate::ledger;
use crate::link::{Host, News, Orders};
use crate::metrics::{Figures, INSTRUMENTS};
use berth_agent_core::memory::Memory;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_agent_core::work::{Pace, Start, Todo, Work};
use berth_model::desired::{DesiredNode, DesiredPlacement};
use berth_model::install::Install;
use berth_model::node::HostFacts;
use berth_model::placement::{Progress, StepError, StepKind, StepReport};
use berth_model::{NodeName, PlacementUid, Timestamp};
use berth_telemetry::metrics::fleet::{CLASS, OUTCOME, STEP};
use berth_telemetry::{KeyValue, names, spans, traces};
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Bounds on the calls to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One look at the host. Drivers have limits of their own, for what they ask of the host; this one cuts off what has
    /// got stuck elsewhere, so it is longer than the longest look of any driver. A Hyper-V host's waits for the step under
    /// way (at most 290 s, and 10 s to end what hangs), starts a PowerShell (90 s), looks (100 s) and surveys (100 s, and
    /// 10 s to end it): cut off before that, a slow host would never be seen, however often it is tried.
    pub look: Duration,
    /// A step that waits for a guest: shutting down alone may take five minutes before it is forced.
    pub guest_step: Duration,
    /// A driver-install command in a guest. The driver's own limit comes first: the longest that can be set, and as long again
    /// for the way in and for the end of what hangs.
    pub install_step: Duration,
    /// Any other step. Host cmdlets take seconds; a device that hangs while it is dismounted takes a minute or two.
    pub host_step: Duration,
    /// Steps at once, of different placements. The host's own management serialises much; more only wait there.
    pub steps: usize,
    /// Pause before something durable is written again after the disk refused.
    pub disk_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(600),
            guest_step: Duration::from_secs(600),
            install_step: Duration::from_secs(7200),
            host_step: Duration::from_secs(300),
            steps: 8,
            // A full disk is emptied by people; a second costs them nothing.
            disk_pause: Duration::from_secs(1),
        }
    }
}

impl Limits {
    fn of(&self, step: StepKind) -> Duration {
        match step {
            StepKind::StopVm | StepKind::StartVm | StepKind::Verify => self.guest_step,
            StepKind::InstallDriver => self.install_step,
            StepKind::Check
            | StepKind::MakeStandalone
            | StepKind::ConfigureVm
            | StepKind::Disable
            | StepKind::Dismount
            | StepKind::Attach
            | StepKind::Detach
            | StepKind::Mount
            | StepKind::Enable
            | StepKind::RestoreVm => self.host_step,
        }
    }
}

/// What a look gave: the view, and the facts if they were asked for and given.
type Looked = (Result<HostView, String>, Option<HostFacts>);
/// What a step gave.
type Stepped = (PlacementUid, Gave);

enum Gave {
    Ended(Result<(), StepError>),
    Installed(Result<Install, StepError>),
}

/// The agent's hands and eyes.
pub(crate) struct Reconcile {
    node: NodeName,
    driver: Arc<dyn HostDriver>,
    ledger: ledger::Handle,
    limits: Limits,
    orders: watch::Receiver<Orders>,
    host: watch::Sender<Option<Host>>,
    work: Work,
    clock: Clock,
    /// The orders last taken in.
    taken: Orders,
    looking: OptionFuture<BoxFuture<'static, Looked>>,
    acting: FuturesUnordered<BoxFuture<'static, Stepped>>,
    /// Steps that wait because enough run. At most one for each of the node's placements.
    waiting: VecDeque<Start>,
    /// Whether the last look failed, so that each change is logged once.
    blind: bool,
    /// What is measured of it.
    figures: Figures,
}

impl Reconcile {
    /// A loop that follows `orders` and says through `host` who the host is.
    pub(crate) fn new(
        node: NodeName,
        driver: Arc<dyn HostDriver>,
        ledger: ledger::Handle,
        (pace, limits): (Pace, Limits),
        orders: watch::Receiver<Orders>,
        host: watch::Sender<Option<Host>>,
        figures: Figures,
    ) -> Self {
        let work = Work::new(ledger.memory(), pace).forcing(driver.forces());
        Self {
            node,
            driver,
            ledger,
            limits,
            orders,
            host,
            work,
            clock: Clock::start(),
            taken: Orders::default(),
            looking: OptionFuture::default(),
            acting: FuturesUnordered::new(),
            waiting: VecDeque::new(),
            blind: false,
            figures,
        }
    }

    /// Works until `stop`. Steps under way are left where they are: every step may be cut off and repeated.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        self.take_orders();
        loop {
            let todo = self.work.next(self.clock.now());
            let wake = self.carry_out(todo).await;
            let pause: OptionFuture<_> = wake.map(|at| sleep(at.since(self.clock.now()))).into();
            tokio::select! {
                changed = self.orders.changed() => {
                    // The session has ended for good; so does this.
                    if changed.is_err() {
                        return;
                    }
                    self.take_orders();
                }
                Some(looked) = &mut self.looking => {
                    self.looking = OptionFuture::default();
                    self.take_look(looked);
                }
                Some((uid, gave)) = self.acting.next(), if !self.acting.is_empty() => {
                    match gave {
                        Gave::Ended(result) => self.work.stepped(&uid, result),
                        Gave::Installed(result) => self.work.installed(&uid, result),
                    }
                    self.fill();
                }
                Some(()) = pause => {}
            }
        }
    }

    /// Does what the brain asks for; says when to ask it again.
    async fn carry_out(&mut self, todo: Todo) -> Option<Timestamp> {
        let Todo { remember, start, look, progress, inventory, wake } = todo;
        if let Some(memory) = remember {
            self.remember(memory).await;
        }
        if let Some(report) = &inventory {
            self.figures.reports(report);
        }
        // Inventory first: the controller judges progress by what it sees.
        self.tell(inventory.map(News::Inventory).into_iter().chain(progress.into_iter().map(News::Progress)));
        if look {
            self.looking = Some(self.look()).into();
        }
        self.waiting.extend(start);
        self.fill();
        wake
    }

    /// Writes until it is written: without it no step may begin, and nothing else that the agent does is worth more.
    async fn remember(&mut self, memory: Memory) {
        let mut failed_before = false;
        while let Err(error) = self.ledger.remember(memory.clone()).await {
            if !failed_before {
                let error = anyhow::Error::new(error);
                tracing::error!({ names::NODE } = %self.node, { names::ERROR } = format!("{error:#}"), "the ledger cannot be written; no step begins until it can");
            }
            failed_before = true;
            sleep(self.limits.disk_pause).await;
        }
    }

    /// Tells the session, if there is one. When it cannot take it, it is given up: the next is told everything.
    fn tell(&mut self, news: impl Iterator<Item = News>) {
        for news in news {
            if let News::Progress(progress) = &news {
                self.log(progress);
            }
            let Some(talk) = &self.taken.session else { continue };
            if talk.news.try_send(news).is_err() {
                talk.give_up.cancel();
                self.taken.session = None;
                self.work.no_session();
            }
        }
    }

    /// Progress that means that the state changed, or that a person must look.
    fn log(&self, progress: &Progress) {
        let _in_span = self.span(&progress.uid).entered();
        let trace = self.wished(&progress.uid).and_then(|wish| wish.trace.as_ref());
        traces::Here::of(trace).in_scope(|| match &progress.report {
            StepReport::Working { step, attempt, last_error } => {
                let error = last_error.as_ref().map(tracing::field::display);
                tracing::debug!({ names::STEP } = %step, { names::ATTEMPT } = attempt, { names::ERROR } = error, "{}", names::EVENT_STEP_STARTED);
            }
            StepReport::Satisfied => tracing::info!("{}", names::EVENT_SATISFIED),
            StepReport::Failed { step, error } => {
                tracing::warn!({ names::STEP } = %step, { names::ERROR_CLASS } = error.class.name(), { names::ERROR } = %error, "{}", names::EVENT_GAVE_UP);
            }
        });
    }

    /// The span of a placement, with the trace of the call that asked for it.
    fn span(&self, uid: &PlacementUid) -> tracing::Span {
        self.wished(uid)
            .map_or_else(tracing::Span::none, |p| spans::placement(&self.node, &p.name, &p.uid, p.trace.as_ref()))
    }

    /// What is wanted of a placement.
    fn wished(&self, uid: &PlacementUid) -> Option<&DesiredPlacement> {
        self.taken.desired.as_ref()?.placements.iter().find(|wish| wish.uid == *uid)
    }

    /// Begins steps that wait, as far as there is room.
    fn fill(&mut self) {
        while self.acting.len() < self.limits.steps.max(1) {
            let Some(start) = self.waiting.pop_front() else { return };
            let step = self.step(start);
            self.acting.push(step);
        }
    }

    fn take_orders(&mut self) {
        let orders = self.orders.borrow_and_update().clone();
        let Orders { desired, observe, surveys, session } = &orders;
        if let Some(desired) = desired.as_ref().filter(|desired| self.taken.desired.as_ref() != Some(desired)) {
            self.work.desire(DesiredNode::clone(desired));
        }
        if let Some(observe) = observe.filter(|_| *observe != self.taken.observe) {
            self.work.set_idle(observe);
        }
        if *surveys != self.taken.surveys {
            // Asked for by a controller that lost what it was told: it needs what did not change, too.
            self.work.look_now();
            if session.is_some() {
                self.work.new_session();
            }
        }
        match session {
            None => self.work.no_session(),
            Some(talk) if talk.give_up.is_cancelled() => {}
            Some(talk) if self.taken.session.as_ref().is_some_and(|before| before.number == talk.number) => {}
            Some(_) => self.work.new_session(),
        }
        self.taken = orders;
    }

    /// Begins a look. The facts are asked for each time: a driver has them at hand, and they can change.
    fn look(&self) -> BoxFuture<'static, Looked> {
        let driver = Arc::clone(&self.driver);
        let limit = self.limits.look;
        let known = self.host.borrow().is_some();
        Box::pin(async move {
            let begun = Instant::now();
            let view = bounded(limit, driver.observe()).await.map_err(|error| error.to_string());
            let outcome = KeyValue::new(OUTCOME, if view.is_ok() { "ok" } else { "failed" });
            INSTRUMENTS.observe_duration.record(begun.elapsed().as_secs_f64(), &[outcome]);
            let facts = match &view {
                Ok(_) => bounded(limit, driver.facts()).await.map_err(|error| error.to_string()),
                Err(_) => return (view, None),
            };
            match facts {
                Ok(facts) => (view, Some(facts)),
                // What it said before still holds.
                Err(_) if known => (view, None),
                // Without its facts the agent cannot speak for the host; the look counts as failed and is repeated.
                Err(why) => (Err(format!("the host does not say what it is: {why}")), None),
            }
        })
    }

    fn take_look(&mut self, (view, facts): Looked) {
        let failed = view.is_err();
        match &view {
            Err(why) if !self.blind => {
                tracing::warn!({ names::NODE } = %self.node, { names::ERROR } = %why, "{}", names::EVENT_BLIND);
            }
            Ok(_) if self.blind => tracing::info!({ names::NODE } = %self.node, "{}", names::EVENT_SEES_AGAIN),
            Ok(_) | Err(_) => {}
        }
        self.blind = failed;
        if !failed {
            self.figures.saw();
        }
        if let (Ok(view), Some(facts)) = (&view, facts) {
            let host = Some(Host { facts, boot: view.boot.clone() });
            self.host.send_if_modified(|before| std::mem::replace(before, host.clone()) != host);
        }
        self.work.looked(view, self.clock.now());
    }

    /// Begins a step, under its deadline.
    fn step(&self, start: Start) -> BoxFuture<'static, Stepped> {
        let Start { uid, step, attempt, trace: _ } = start;
        let driver = Arc::clone(&self.driver);
        let limit = self.limits.of(step.kind());
        let kind = step.kind();
        let wished = self.wished(&uid);
        let trace = traces::follow(names::TRACE_STEP, wished.and_then(|wish| wish.trace.as_ref()));
        if let (true, Some(wish)) = (trace.is_kept(), wished) {
            trace.set(names::STEP, kind.name());
            trace.set(names::ATTEMPT, i64::from(attempt));
            trace.set(names::NODE, self.node.to_string());
            trace.set(names::PLACEMENT, wish.name.to_string());
            trace.set(names::UID, uid.to_string());
            trace.set(names::VM, wish.vm.to_string());
        }
        let span = spans::step(&self.span(&uid), kind, attempt, trace.trace().as_ref());
        let act = async move {
            let begun = Instant::now();
            let call = trace.child(names::TRACE_DRIVER);
            call.set(names::STEP, kind.name());
            let gave = match &step {
                Step::InstallDriver { vm, command } => Gave::Installed(
                    call.within(bounded(limit, driver.install(vm, command))).await.map_err(StepError::from),
                ),
                Step::MakeStandalone { .. }
                | Step::StopVm { .. }
                | Step::ConfigureVm { .. }
                | Step::Disable { .. }
                | Step::Dismount { .. }
                | Step::Attach { .. }
                | Step::StartVm { .. }
                | Step::Verify { .. }
                | Step::Detach { .. }
                | Step::DetachStale { .. }
                | Step::Mount { .. }
                | Step::Enable { .. }
                | Step::RestoreVm { .. } => {
                    Gave::Ended(call.within(bounded(limit, driver.act(&step))).await.map_err(StepError::from))
                }
            };
            let result = match &gave {
                Gave::Ended(result) => result.as_ref().map(|()| None),
                Gave::Installed(result) => result.as_ref().map(Some),
            };
            if let Err(error) = result {
                call.fail(error.class.name(), &error.text);
                trace.fail(error.class.name(), &error.text);
            }
            drop(call);
            let class = result.map_or_else(|error| error.class.name(), |_| "Ok");
            INSTRUMENTS.step_duration.record(
                begun.elapsed().as_secs_f64(),
                &[KeyValue::new(STEP, kind.name()), KeyValue::new(CLASS, class)],
            );
            let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            trace.in_scope(|| match result {
                // Its output is not the log's business.
                Ok(Some(run)) => tracing::info!(
                    { names::STEP } = %kind, { names::DURATION_MS } = duration_ms, "{run}"
                ),
                Ok(None) => tracing::info!(
                    { names::STEP } = %kind, { names::DURATION_MS } = duration_ms, "{}", names::EVENT_STEP_ENDED
                ),
                Err(error) => tracing::warn!(
                    { names::STEP } = %kind, { names::DURATION_MS } = duration_ms,
                    { names::ERROR_CLASS } = error.class.name(), { names::ERROR } = %error, "{}", names::EVENT_STEP_ENDED
                ),
            });
            (uid, gave)
        };
        Box::pin(act.instrument(span))
    }
}

/// A call under the agent's own deadline, should the driver's fail.
async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
    let late = DriverError::TimedOut { limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) };
    timeout(limit, call).await.unwrap_or(Err(late))
}

/// Time that never steps back: the system's at the start, and a steady clock since.
#[derive(Debug)]
struct Clock {
    at_start: Timestamp,
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { at_start: Timestamp::from_system(SystemTime::now()), start: Instant::now() }
    }

    fn now(&self) -> Timestamp {
        self.at_start.after(self.start.elapsed())
    }
}
