//! What supervisors ask by plain HTTP: `GET /livez` and `GET /readyz`.
//!
//! For those that cannot speak gRPC health over TLS, as Kubernetes' probes cannot. Must never ask the store: one that is
//! away would then get every controller restarted, which helps nobody.

use crate::replica::Replica;
use crate::standing::{Board, Known, Standing};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;

/// Answers supervisors.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) replica: Replica,
    pub(crate) board: Board,
}

impl Probe {
    /// The answer, if this is a question for it.
    pub(crate) fn answer(&self, method: &Method, uri: &Uri) -> Option<Response> {
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        match uri.path() {
            // Being able to answer is all there is to say: whoever cannot go on ends by itself.
            "/livez" => Some("live\n".into_response()),
            "/readyz" => Some(self.readiness()),
            _ => None,
        }
    }

    fn readiness(&self) -> Response {
        // Whoever follows is told at once when nobody publishes any more.
        let ended =
            self.replica.follow(None).is_ok_and(|mut follow| matches!(follow.next().now_or_never(), Some(None)));
        let loaded = self.replica.now().is_loaded();
        match readiness(&self.board.now(), loaded, ended) {
            Ok(why) => format!("ready: {why}\n").into_response(),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
        }
    }
}

/// Whether calls should come here: to a leader, and to a follower that has a copy to show. One that knows no leader stays
/// ready: it still answers reads and says to writers that a leader is to come, where an address that nobody answers at
/// would say nothing.
fn readiness(standing: &Standing, loaded: bool, ended: bool) -> Result<String, &'static str> {
    match standing {
        _ if ended => Err("it stops"),
        Standing { leads: true, .. } => Ok("it leads".to_owned()),
        _ if !loaded => Err("it has not loaded the store yet"),
        Standing { leader: Some(Known { endpoint, term }), .. } => Ok(format!("it follows {endpoint}, term {term}")),
        Standing { leader: None, .. } => Ok("it shows its copy; no controller leads now".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(leads: bool, leader: Option<&str>) -> Standing {
        let leader = leader.map(|endpoint| Known { endpoint: endpoint.to_owned(), term: 4 });
        Standing { leads, leader, told: None }
    }

    #[test]
    fn ready_is_who_leads_or_has_a_copy_to_show() {
        let (leads, follows, nobody) =
            (standing(true, Some("http://c1:7600")), standing(false, Some("http://c2:7600")), standing(false, None));
        assert_eq!(readiness(&leads, true, false), Ok("it leads".to_owned()));
        assert_eq!(readiness(&follows, true, false), Ok("it follows http://c2:7600, term 4".to_owned()));
        assert!(readiness(&nobody, true, false).is_ok(), "reads go on while a leader is elected");
        assert_eq!(readiness(&follows, false, false), Err("it has not loaded the store yet"));
        assert_eq!(readiness(&nobody, false, false), Err("it has not loaded the store yet"));
        for ends in [leads, follows, nobody] {
            assert_eq!(readiness(&ends, true, true), Err("it stops"));
        }
    }
}
