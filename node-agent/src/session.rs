//! The agent's side of `NodeAgent.Session`: finds the leader, keeps a session with it, and comes back when it is lost.
//!
//! Owns the stream and the waits between attempts. Must never touch the host, and never pass a desired state on before
//! the ledger holds it. Its end is not an error of the agent: hosts go on without controllers.

mod backoff;
mod dial;

use crate::config::Config;
use crate::ledger::{self, AcceptError};
use crate::link::{Host, MAX_NEWS, News, Orders, Talk};
use crate::metrics::{Figures, INSTRUMENTS};
use crate::tls;
use backoff::Backoff;
pub use backoff::Retry;
use berth_agent_core::ledger::Accepted;
use berth_model::desired::{DesiredNode, DesiredPlacement};
use berth_proto::v1;
use berth_telemetry::traces::{self, Span};
use berth_telemetry::{names, spans};
use dial::{Connection, Greeting};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::transport::Uri;
use tracing::{Instrument as _, Level};
use v1::agent_message::Message as Say;
use v1::controller_message::Message as Hear;

/// Most redirects followed without a pause: leaders change, but followers that point at one another must not make a
/// storm.
const MAX_REDIRECTS: u32 = 3;
/// How long one message may wait for the controller to take it. A busy leader may pause for seconds; one that takes
/// nothing for longer is as good as gone.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// How long an agent may be without a session before somebody should know: a change of leaders is over within seconds, and
/// from about then on its node counts as lost.
const ALONE: Duration = Duration::from_secs(30);

/// The agent's half of the protocol.
#[derive(Debug)]
pub(crate) struct Session {
    config: Config,
    ledger: ledger::Handle,
    orders: watch::Sender<Orders>,
    host: watch::Receiver<Option<Host>>,
    /// Sessions agreed so far.
    agreed: u64,
    /// When the last session ended, or the agent began.
    alone_since: Instant,
    /// What the last attempt ended with and how loudly that was said, so that it is said only once.
    last_end: Option<(Level, String)>,
    /// What is measured of it.
    figures: Figures,
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// There was no session, or it ended: dial the next controller.
    Lost(String),
    /// Another controller leads.
    Redirected(Uri),
    /// The controller does not want this agent; trying again soon changes nothing.
    Refused(String),
    /// The host is not what was said of it: say hello again.
    HostChanged,
    /// The other half of the agent is gone.
    Over,
}

impl Session {
    /// A session that publishes accepted orders and speaks for `host`.
    pub(crate) fn new(
        config: Config,
        ledger: ledger::Handle,
        orders: watch::Sender<Orders>,
        host: watch::Receiver<Option<Host>>,
        figures: Figures,
    ) -> Self {
        Self { config, ledger, orders, host, agreed: 0, alone_since: Instant::now(), last_end: None, figures }
    }

    /// Keeps a session until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let span = spans::session(&self.config.node);
        async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.keep() => {}
            }
        }
        .instrument(span)
        .await;
    }

    async fn keep(&mut self) {
        let mut backoff = Backoff::new(self.config.retry.clone());
        let mut redirected = None;
        let mut redirects = 0;
        let mut controllers = self.config.controllers.clone().into_iter().cycle();
        // Configuration is checked: there is at least one controller.
        while let Some(endpoint) = redirected.take().or_else(|| controllers.next()) {
            let agreed_before = self.agreed;
            let end = never_weaker(&endpoint, self.attempt(&endpoint).await);
            self.orders.send_if_modified(|orders| orders.session.take().is_some());
            if self.agreed > agreed_before {
                backoff.reset();
                redirects = 0;
            }
            self.log_end(&endpoint, &end);
            let wait = match end {
                End::Over => return,
                End::Redirected(leader) if redirects < MAX_REDIRECTS => {
                    redirects += 1;
                    redirected = Some(leader);
                    continue;
                }
                End::Redirected(_) | End::Lost(_) | End::HostChanged => backoff.failed(),
                End::Refused(_) => backoff.refused(),
            };
            redirects = 0;
            sleep(wait).await;
        }
    }

    /// Logs an end; the same one again only in detail logs.
    fn log_end(&mut self, endpoint: &Uri, end: &End) {
        let sentence = match end {
            End::Over => return,
            End::Redirected(leader) => {
                tracing::debug!({ names::ENDPOINT } = %endpoint, %leader, "another controller leads");
                return;
            }
            End::HostChanged => {
                tracing::info!({ names::ENDPOINT } = %endpoint, "the host was restarted or changed; the session begins anew");
                return;
            }
            End::Lost(why) | End::Refused(why) => why,
        };
        let level = loudness(end, self.alone_since.elapsed());
        let said = Some((level, sentence.clone()));
        if self.last_end == said {
            tracing::debug!({ names::ENDPOINT } = %endpoint, { names::ERROR } = %sentence, "{}", names::EVENT_DISCONNECTED);
        } else if level == Level::WARN {
            tracing::warn!({ names::ENDPOINT } = %endpoint, { names::ERROR } = %sentence, "{}", names::EVENT_DISCONNECTED);
        } else {
            tracing::info!({ names::ENDPOINT } = %endpoint, { names::ERROR } = %sentence, "{}", names::EVENT_DISCONNECTED);
        }
        self.last_end = said;
    }

    /// One try with one controller, and the session if there is one.
    async fn attempt(&mut self, endpoint: &Uri) -> End {
        // Who the host is must be known before the agent can speak for it.
        let Ok(Some(host)) = self.host.wait_for(Option::is_some).await.map(|host| host.clone()) else {
            return End::Over;
        };
        let ledger = self.ledger.ledger();
        let hello = dial::hello(&self.config, host, &ledger);
        let (connection, greeting) = match dial::dial(&self.config, endpoint, &hello).await {
            Ok(dialled) => dialled,
            Err(end) => return end,
        };
        if greeting.term < ledger.term {
            return End::Lost(format!("its term {} is over: term {} was seen already", greeting.term, ledger.term));
        }
        tracing::info!({ names::ENDPOINT } = %endpoint, { names::TERM } = greeting.term, "{}", names::EVENT_CONNECTED);
        if let Some(why) = &greeting.stranger {
            tracing::error!({ names::ENDPOINT } = %endpoint, { names::ERROR } = why, "the controller takes this agent for a stranger");
        }
        self.last_end = None;
        self.agreed += 1;
        INSTRUMENTS.sessions.add(1, &[]);
        self.figures.has_session(true);
        let end = self.talk(connection, &greeting).await;
        self.figures.has_session(false);
        self.alone_since = Instant::now();
        end
    }

    /// Tells and listens until the session ends.
    async fn talk(&mut self, connection: Connection, greeting: &Greeting) -> End {
        let Connection { sender, mut receiver } = connection;
        let (news_sender, mut news) = mpsc::channel(MAX_NEWS);
        let number = self.agreed;
        let give_up = CancellationToken::new();
        self.orders.send_modify(|orders| {
            orders.observe = Some(greeting.observe);
            orders.session = Some(Talk { number, news: news_sender, give_up: give_up.clone() });
        });
        // What is to be said next, and since when it waits.
        let mut next: Option<(Say, Instant)> = None;
        let mut quiet_since = Instant::now();
        // Asked for what the ledger holds, and not answered yet.
        let mut owed = false;
        loop {
            if owed && next.is_none() {
                owed = false;
                next = Some((Say::Holdings(self.holdings()), Instant::now()));
            }
            let waits_since = next.as_ref().map_or_else(Instant::now, |(_, since)| *since);
            tokio::select! {
                heard = receiver.message() => match heard {
                    Ok(Some(v1::ControllerMessage { message: Some(Hear::TellHoldings(v1::TellHoldings {})) })) => {
                        owed = true;
                    }
                    Ok(Some(v1::ControllerMessage { message: Some(message) })) => {
                        if let Some(end) = self.hear(message).await {
                            return end;
                        }
                    }
                    Ok(Some(v1::ControllerMessage { message: None })) => {
                        tracing::warn!("the controller sent a message of a kind this agent does not know; it is ignored");
                    }
                    Ok(None) => return End::Lost("the controller ended the session".to_owned()),
                    Err(status) => return dial::ended_by(&status),
                },
                // Only with room, so that a controller that does not listen never keeps the agent from hearing it.
                permit = sender.reserve(), if next.is_some() => {
                    let Ok(permit) = permit else { return End::Lost("the connection broke".to_owned()) };
                    if let Some((message, _)) = next.take() {
                        permit.send(v1::AgentMessage { message: Some(message) });
                        quiet_since = Instant::now();
                    }
                }
                () = sleep_until(waits_since + SEND_LIMIT), if next.is_some() => {
                    return End::Lost(format!("the controller took nothing for {} s", SEND_LIMIT.as_secs()));
                }
                news = news.recv(), if next.is_none() => match news {
                    Some(news) => next = Some((say(&news), Instant::now())),
                    None => return End::Over,
                },
                () = give_up.cancelled() => {
                    return End::Lost("the controller takes news more slowly than they come".to_owned());
                }
                () = sleep_until(quiet_since + greeting.heartbeat), if next.is_none() => {
                    next = Some((Say::Heartbeat(v1::Heartbeat {}), Instant::now()));
                }
                changed = self.host.changed() => {
                    return if changed.is_err() { End::Over } else { End::HostChanged };
                }
            }
        }
    }

    /// Acts on one message; the end of the session, if it means that.
    async fn hear(&mut self, message: Hear) -> Option<End> {
        match message {
            Hear::Desired(wire) => match DesiredNode::try_from(wire) {
                Ok(desired) => self.accept(desired).await,
                // Half an order is no order. The session goes on, so that the node stays visible.
                Err(invalid) => {
                    tracing::error!({ names::ERROR } = %invalid, "{}", names::EVENT_REFUSED);
                    None
                }
            },
            Hear::Survey(v1::SurveyNow {}) => {
                self.orders.send_modify(|orders| orders.surveys = orders.surveys.wrapping_add(1));
                None
            }
            // Answered where there is room to say it.
            Hear::TellHoldings(v1::TellHoldings {}) => None,
            Hear::Redirect(redirect) => Some(dial::redirected(&redirect)),
            Hear::Welcome(_) => Some(End::Lost("the controller said welcome twice".to_owned())),
        }
    }

    fn holdings(&self) -> v1::Holdings {
        v1::Holdings { desired: self.ledger.ledger().desired.as_ref().map(Into::into) }
    }

    /// A span for each placement whose wish is taken in for the first time, in the trace of the call that asked for it.
    fn begin_spans(&self, desired: &DesiredNode) -> Vec<Span> {
        let held = self.ledger.ledger().desired;
        let held = held.as_ref().map(|held| held.placements.as_slice()).unwrap_or_default();
        let fresh = desired.placements.iter().filter(|wish| wish.trace.is_some() && !held.contains(wish));
        let begin = |wish: &DesiredPlacement| {
            let span = traces::follow(names::TRACE_ACCEPT, wish.trace.as_ref());
            span.set(names::NODE, self.config.node.to_string());
            span.set(names::GENERATION, i64::try_from(desired.generation).unwrap_or(i64::MAX));
            span
        };
        fresh.map(begin).collect()
    }

    async fn accept(&mut self, desired: DesiredNode) -> Option<End> {
        let (term, generation) = (desired.term, desired.generation);
        let spans = self.begin_spans(&desired);
        let accepted = self.ledger.accept(desired).await;
        if let Err(error) = &accepted {
            spans.iter().for_each(|span| span.fail("Refused", &error.to_string()));
        }
        drop(spans);
        match accepted {
            Ok(accepted) => {
                self.figures.holds(self.ledger.ledger().placements());
                // What the ledger holds, not what was offered: it is durable, and the newest.
                let desired = self.ledger.ledger().desired.map(Arc::new);
                self.orders.send_if_modified(|orders| {
                    let changed = orders.desired != desired;
                    orders.desired = desired;
                    changed
                });
                match accepted {
                    Accepted::New => tracing::info!(
                        { names::TERM } = term,
                        { names::GENERATION } = generation,
                        "{}",
                        names::EVENT_ACCEPTED
                    ),
                    Accepted::NewTerm | Accepted::Again => {}
                }
                None
            }
            Err(AcceptError::Refused(refused)) => {
                tracing::warn!(
                    { names::TERM } = term, { names::GENERATION } = generation, { names::ERROR } = %refused,
                    "{}", names::EVENT_REFUSED
                );
                None
            }
            // Not durable, so never heard; the next session gets it again.
            Err(AcceptError::Write(error)) => {
                let error = anyhow::Error::new(error);
                tracing::error!(
                    { names::GENERATION } = generation,
                    { names::ERROR } = format!("{error:#}"),
                    "the ledger cannot be written"
                );
                Some(End::Lost("the ledger could not be written".to_owned()))
            }
        }
    }
}

/// How loudly the end of an attempt is told, for an agent that has been without a session for so long. Controllers come and
/// go: that is news for a person only when none is found for long, or one refuses this agent.
fn loudness(end: &End, alone: Duration) -> Level {
    match end {
        End::Refused(_) => Level::WARN,
        End::Lost(_) if alone >= ALONE => Level::WARN,
        End::Lost(_) | End::Redirected(_) | End::HostChanged | End::Over => Level::INFO,
    }
}

/// An encrypted session is never followed by one in plain text, whoever says so.
fn never_weaker(endpoint: &Uri, end: End) -> End {
    if let End::Redirected(leader) = &end
        && tls::is_encrypted(endpoint)
        && !tls::is_encrypted(leader)
    {
        return End::Lost(format!(
            "the controller names a leader that is to be dialled in plain text ({leader}); that is not followed"
        ));
    }
    end
}

fn say(news: &News) -> Say {
    match news {
        News::Inventory(report) => Say::Inventory(report.into()),
        News::Progress(progress) => Say::Progress(progress.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_leaders_is_no_warning_and_a_fleet_without_one_is() {
        let lost = || End::Lost("connection reset".to_owned());
        assert_eq!(loudness(&lost(), Duration::from_secs(5)), Level::INFO);
        assert_eq!(loudness(&lost(), ALONE), Level::WARN);
        assert_eq!(loudness(&End::Refused("not you".to_owned()), Duration::ZERO), Level::WARN);
    }

    #[test]
    fn no_redirect_leads_from_tls_to_plain_text() {
        let uri = |text: &str| -> Uri { text.parse().unwrap() };
        let follow = |from: &str, to: &str| never_weaker(&uri(from), End::Redirected(uri(to)));
        assert!(matches!(follow("https://a", "http://b"), End::Lost(why) if why.contains("http://b")));
        for (from, to) in [("https://a", "https://b"), ("http://a", "https://b"), ("http://a", "http://b")] {
            assert_eq!(follow(from, to), End::Redirected(uri(to)));
        }
    }
}
