//! The agent against an in-test controller and a host that misbehaves on demand: sessions, orders, reports, restarts.

use super::*;
use crate::testing::{Controller, FakeHost, Faults, soon};
use berth_agent_core::work::Pace;
use berth_model::NodeName;
use berth_model::desired::{DesiredNode, Intent};
use berth_model::inventory::Listing;
use berth_model::placement::StepReport;
use berth_proto::v1;
use berth_proto::v1::controller_message::Message as Say;
use std::path::Path;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Uri;

/// An agent in a hurry: the same code at a pace that tests can wait for.
fn config(data_dir: &Path, controllers: &[Uri]) -> Config {
    let mut config = Config::new(NodeName::new("n1").unwrap(), controllers.to_vec(), data_dir.to_owned());
    let soon = Duration::from_millis(20);
    let Pace { attempts, verify_attempts, at_once, .. } = Pace::default();
    config.pace = Pace {
        attempts,
        verify_attempts,
        first_pause: soon,
        longest_pause: soon,
        stranded_pause: soon,
        wait: soon,
        idle: soon,
        at_once,
    };
    config.retry = crate::session::Retry { first: soon, longest: soon * 5, refused: soon * 2 };
    config
}

fn desired(term: u64, generation: u64, wishes: &[(u8, Intent)]) -> DesiredNode {
    let placements = wishes.iter().map(|(card, intent)| FakeHost::placement(*card, *intent)).collect();
    DesiredNode { term, generation, fleet: None, placements }
}

/// An agent with one controller and a host of two cards.
struct Setup {
    temp: tempfile::TempDir,
    host: Arc<FakeHost>,
    controller: Controller,
    agent: Running,
}

async fn setup() -> Setup {
    let temp = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::new(2));
    let controller = Controller::start().await;
    let agent = start(config(temp.path(), &[controller.uri()]), host.clone()).await.unwrap();
    Setup { temp, host, controller, agent }
}

#[tokio::test]
async fn a_card_gets_to_its_vm_and_back() {
    let Setup { temp: _temp, host, mut controller, agent } = setup().await;
    let (mut talk, hello) = controller.welcome(1).await;
    assert_eq!((hello.node.as_str(), hello.boot_id.as_str(), hello.ledger_generation), ("n1", "boot-1", 0));
    let first = talk.inventory().await;
    assert!(first.full && first.sequence == 1 && first.listing == Listing::Complete, "{first:?}");
    assert_eq!((first.gpus.len(), first.vms.len()), (2, 2));

    talk.desire(&desired(1, 1, &[(0, Intent::Attached)])).await;
    let done = talk.outcome().await;
    assert_eq!((done.generation, &done.report), (1, &StepReport::Satisfied));
    soon("the card in its VM", host.given(0)).await;
    assert!(host.is_untouched(1), "nobody asked for the other card");

    talk.desire(&desired(1, 2, &[(0, Intent::Detached)])).await;
    let done = talk.outcome().await;
    assert_eq!((done.generation, &done.report), (2, &StepReport::Satisfied));
    assert!(host.is_untouched(0), "the card is the host's again");
    soon("stopping", agent.stop()).await;
    talk.left().await;
}

#[tokio::test]
async fn heartbeats_come_when_nothing_else_does() {
    let Setup { temp: _temp, host: _host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    talk.inventory().await;
    talk.heartbeat().await;
    talk.heartbeat().await;
}

#[tokio::test]
async fn a_redirect_is_followed_to_the_leader() {
    let temp = tempfile::tempdir().unwrap();
    let (mut follower, mut leader) = (Controller::start().await, Controller::start().await);
    let config = config(temp.path(), &[follower.uri()]);
    let _agent = start(config, Arc::new(FakeHost::new(1))).await.unwrap();
    follower.session().await.0.redirect("").await;
    follower.session().await.0.redirect("nonsense").await;
    follower.session().await.0.redirect(&format!("http://{}", leader.address)).await;
    let (talk, _) = leader.welcome(1).await;
    // A leader that resigns says so in the middle of a session.
    talk.redirect(&format!("http://{}", follower.address)).await;
    follower.welcome(2).await.0.inventory().await;
}

#[tokio::test]
async fn redirects_in_a_ring_do_not_keep_the_agent_from_the_list() {
    let temp = tempfile::tempdir().unwrap();
    let (mut ring, mut other) = (Controller::start().await, Controller::start().await);
    let _agent = start(config(temp.path(), &[ring.uri(), other.uri()]), Arc::new(FakeHost::new(1))).await.unwrap();
    let itself = format!("http://{}", ring.address);
    for _ in 0..4 {
        ring.session().await.0.redirect(&itself).await;
    }
    other.welcome(1).await.0.inventory().await;
}

#[tokio::test]
async fn a_refused_agent_tries_again() {
    let Setup { temp: _temp, host: _host, mut controller, agent: _agent } = setup().await;
    controller.session().await.0.refuse(Status::already_exists("node n1 is connected already")).await;
    controller.session().await.0.refuse(Status::failed_precondition("protocol 1 is too old")).await;
    controller.welcome(1).await.0.inventory().await;
}

#[tokio::test]
async fn a_controller_that_vanishes_and_returns_is_told_everything_again() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 1, &[(0, Intent::Attached)])).await;
    talk.outcome().await;
    let address = controller.address;
    drop((talk, controller));
    soon("looking on without a controller", host.looks(3)).await;

    let mut controller = Controller::start_at(address).await;
    let (mut talk, hello) = controller.welcome(2).await;
    assert_eq!((hello.ledger_term, hello.ledger_generation), (1, 1));
    let report = talk.inventory().await;
    assert!(report.full && report.sequence == 1, "{report:?}");
    assert_eq!(talk.outcome().await.report, StepReport::Satisfied);
}

#[tokio::test]
async fn an_agent_tells_what_it_holds_when_asked_and_touches_nothing_for_it() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    talk.say(Say::TellHoldings(v1::TellHoldings {})).await;
    assert_eq!(talk.holdings().await, None, "nothing was ever wanted of it");
    let wanted = desired(1, 3, &[(0, Intent::Attached)]);
    talk.desire(&wanted).await;
    talk.outcome().await;
    drop(talk);
    // The next controller has lost everything, and wants to know before it wants anything.
    let (mut talk, _) = controller.welcome(1).await;
    talk.say(Say::TellHoldings(v1::TellHoldings {})).await;
    assert_eq!(talk.holdings().await, Some(wanted.clone()));
    soon("looking on", host.looks(2)).await;
    talk.say(Say::TellHoldings(v1::TellHoldings {})).await;
    assert_eq!(talk.holdings().await, Some(wanted));
}

#[tokio::test]
async fn a_controller_whose_term_is_over_is_left() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(5).await;
    talk.desire(&desired(5, 1, &[(0, Intent::Attached)])).await;
    talk.outcome().await;
    drop(talk);
    let (talk, hello) = controller.welcome(4).await;
    assert_eq!(hello.ledger_term, 5);
    talk.left().await;
    let (mut talk, _) = controller.welcome(5).await;
    talk.inventory().await;
    assert!(host.is_untouched(1));
}

#[tokio::test]
async fn an_old_order_is_not_obeyed() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 7, &[(0, Intent::Attached)])).await;
    talk.outcome().await;
    talk.desire(&desired(1, 6, &[(0, Intent::Attached), (1, Intent::Attached)])).await;
    talk.desire(&desired(1, 7, &[(1, Intent::Attached)])).await;
    // The refusals came before this one is obeyed.
    talk.desire(&desired(1, 8, &[(0, Intent::Detached)])).await;
    assert_eq!(talk.outcome().await.generation, 8);
    soon("more looks", host.looks(3)).await;
    assert!(host.is_untouched(1), "an order that was refused was carried out");
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_refused_whole() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    let mut bad = v1::DesiredNode::from(&desired(1, 1, &[(0, Intent::Attached), (1, Intent::Attached)]));
    bad.placements[1].intent = 0;
    talk.say(Say::Desired(bad)).await;
    talk.desire(&desired(1, 2, &[(1, Intent::Attached)])).await;
    assert_eq!(talk.outcome().await.generation, 2);
    assert!(host.is_untouched(0), "half of a bad order was carried out");
}

#[tokio::test]
async fn an_order_is_durable_before_it_is_acted_on_and_survives_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("ledger");
    let mut host = FakeHost::new(1);
    host.on_act = Box::new(move || assert!(file.exists(), "a step began before its order was durable"));
    let host = Arc::new(host);
    host.set_faults(Faults { hang: true, ..Faults::default() });
    let mut controller = Controller::start().await;
    let config = config(temp.path(), &[controller.uri()]);
    let agent = start(config.clone(), host.clone()).await.unwrap();
    let (talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 1, &[(0, Intent::Attached)])).await;
    soon("a step", host.step_begun()).await;
    soon("stopping in the middle of a step", agent.stop()).await;
    drop((talk, controller));

    host.set_faults(Faults::default());
    let _agent = start(config, host.clone()).await.unwrap();
    soon("the card in its VM, without any controller", host.given(0)).await;
}

#[tokio::test]
async fn a_host_that_cannot_be_seen_is_reported_and_nothing_is_concluded() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    talk.inventory().await;
    host.set_faults(Faults { look: Some("no answer".to_owned()), ..Faults::default() });
    let report = talk.inventory().await;
    assert!(matches!(&report.listing, Listing::Failed { why } if why.contains("no answer")), "{report:?}");
    assert!(!report.full && report.gpus.is_empty() && report.vms_gone.is_empty(), "{report:?}");
    host.set_faults(Faults::default());
    let report = talk.inventory().await;
    assert_eq!(report.listing, Listing::Complete);
}

#[tokio::test]
async fn a_step_that_keeps_failing_is_reported_and_another_wish_heals_it() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (mut talk, _) = controller.welcome(1).await;
    host.set_faults(Faults { step: Some("device is busy".to_owned()), ..Faults::default() });
    talk.desire(&desired(1, 1, &[(0, Intent::Attached)])).await;
    match talk.outcome().await.report {
        StepReport::Failed { error, .. } => assert!(error.text.contains("device is busy"), "{error}"),
        other @ (StepReport::Working { .. } | StepReport::Satisfied) => panic!("{other:?}"),
    }
    host.set_faults(Faults::default());
    talk.desire(&desired(1, 2, &[(0, Intent::Detached)])).await;
    assert_eq!(talk.outcome().await.report, StepReport::Satisfied);
}

#[tokio::test]
async fn steps_of_different_placements_run_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::new(2).needing_together(2));
    let mut controller = Controller::start().await;
    let _agent = start(config(temp.path(), &[controller.uri()]), host.clone()).await.unwrap();
    let (mut talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 1, &[(0, Intent::Attached), (1, Intent::Attached)])).await;
    talk.outcome().await;
    talk.outcome().await;
    assert_eq!(host.most_at_once(), 2);
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_allowed() {
    let temp = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::new(4));
    let mut controller = Controller::start().await;
    let mut config = config(temp.path(), &[controller.uri()]);
    config.limits.steps = 1;
    let _agent = start(config, host.clone()).await.unwrap();
    let (mut talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 1, &[0, 1, 2, 3].map(|card| (card, Intent::Attached)))).await;
    for _ in 0..4 {
        assert_eq!(talk.outcome().await.report, StepReport::Satisfied);
    }
    assert_eq!(host.most_at_once(), 1);
}

#[tokio::test]
async fn a_step_past_its_deadline_is_given_up_and_the_agent_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::new(1));
    host.set_faults(Faults { hang: true, ..Faults::default() });
    let mut controller = Controller::start().await;
    let mut config = config(temp.path(), &[controller.uri()]);
    config.limits.host_step = Duration::from_millis(20);
    let _agent = start(config, host.clone()).await.unwrap();
    let (mut talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 1, &[(0, Intent::Attached)])).await;
    match talk.outcome().await.report {
        StepReport::Failed { error, .. } => assert!(error.text.contains("not done after 20 ms"), "{error}"),
        other @ (StepReport::Working { .. } | StepReport::Satisfied) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_demand_to_look_is_followed_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::new(1));
    let mut controller = Controller::start().await;
    let _agent = start(config(temp.path(), &[controller.uri()]), host.clone()).await.unwrap();
    let (mut talk, _) = controller.session().await;
    let rarely = Duration::from_secs(3600).try_into().ok();
    talk.say(Say::Welcome(v1::Welcome { term: 1, heartbeat: rarely, observe: rarely, ..Default::default() })).await;
    talk.inventory().await;
    for _ in 0..3 {
        let look = host.looks(1);
        tokio::pin!(look);
        // The count is taken before the demand, so that only a look after it counts.
        assert!(futures::poll!(&mut look).is_pending());
        talk.say(Say::Survey(v1::SurveyNow {})).await;
        soon("a look", look).await;
    }
}

#[tokio::test]
async fn a_restarted_host_says_hello_again() {
    let Setup { temp: _temp, host, mut controller, agent: _agent } = setup().await;
    let (talk, hello) = controller.welcome(1).await;
    assert_eq!(hello.boot_id, "boot-1");
    host.reboot("boot-2");
    talk.left().await;
    assert_eq!(controller.welcome(1).await.1.boot_id, "boot-2");
}

#[tokio::test]
async fn two_agents_cannot_have_one_data_directory() {
    let Setup { temp, host, controller, agent } = setup().await;
    let config = config(temp.path(), &[controller.uri()]);
    let error = start(config.clone(), host.clone()).await.unwrap_err();
    assert!(error.to_string().contains("in use by another agent"), "{error}");
    soon("stopping", agent.stop()).await;
    start(config, host).await.unwrap();
}

#[tokio::test]
async fn a_lost_part_ends_the_agent() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = FakeHost::new(1);
    host.on_act = Box::new(|| panic!("a fault in a driver"));
    let mut controller = Controller::start().await;
    let mut agent = start(config(temp.path(), &[controller.uri()]), Arc::new(host)).await.unwrap();
    let (talk, _) = controller.welcome(1).await;
    talk.desire(&desired(1, 1, &[(0, Intent::Attached)])).await;
    let error = soon("the end of the agent", agent.failed()).await;
    assert!(format!("{error:#}").contains("a part of the agent was lost"), "{error:#}");
}

#[tokio::test]
async fn an_agent_without_a_controller_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let error = start(config(temp.path(), &[]), Arc::new(FakeHost::new(1))).await.unwrap_err();
    assert!(matches!(error, StartError::NoController), "{error}");
}
