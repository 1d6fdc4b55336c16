//! Who calls, as far as the connection proves it: set once for each connection, known to every handler.
//!
//! Owns the one form in which a caller is written down: `cert:` and the certificate's subject (`cert:CN=terraform,
//! O=Example`; without a subject `cert:DNS:NAME` or `cert:URI:…`), else the address of the other end
//! (`127.0.0.1:53112`). Owns the one rule about agents, too: an agent speaks for a node only if one of the DNS names of
//! its certificate is the node's name. Must never let a handler read an identity from what a caller wrote;
//! what another controller says about whom it asks for is taken by [`crate::api`] before any handler sees a call.

use crate::afterwards::afterwards;
use berth_model::{NodeName, PlacementName};
use berth_proto::v1;
use berth_telemetry::names;
use berth_tls::Certificate;
use std::net::SocketAddr;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Who is at the other end of a connection. Cheap to clone; an extension of each request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: SocketAddr,
    proof: Proof,
    name: String,
}

/// What a connection proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It is plain text: nothing.
    PlainText,
    /// It is encrypted, and the client showed no certificate.
    Anonymous,
    /// The client showed this certificate, from the CA of our clients.
    Certificate(Box<Certificate>),
}

impl Caller {
    /// The caller at the other end of a connection.
    pub(crate) fn new(peer: SocketAddr, proof: Proof) -> Self {
        let name = match &proof {
            Proof::PlainText | Proof::Anonymous => peer.to_string(),
            Proof::Certificate(certificate) => format!("cert:{}", certificate.who()),
        };
        Self(Arc::new(Inner { peer, proof, name }))
    }

    /// Whoever made this request; `None` if it did not come over a connection.
    pub(crate) fn of<T>(request: &Request<T>) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// The form in which it is written down.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The one for whom another controller asks.
    pub(crate) fn relayed(&self, name: &str) -> Self {
        Self(Arc::new(Inner { peer: self.0.peer, proof: self.0.proof.clone(), name: name.to_owned() }))
    }

    /// Whether it may be another controller: known by the subject of its certificate, which is the same for all of them
    /// (`own`). Only a controller may say for whom it asks, or hear what the leader tells its followers.
    ///
    /// # Errors
    /// The status that ends the call.
    pub(crate) fn may_be_controller(&self, own: Option<&str>) -> Result<(), Status> {
        let own = own.unwrap_or("none");
        match &self.0.proof {
            // Nobody proves anything here.
            Proof::PlainText => Ok(()),
            Proof::Anonymous => Err(Status::unauthenticated(format!(
                "only another controller may do this: it shows a certificate with this one's subject ({own}), and this \
                 client showed none"
            ))),
            Proof::Certificate(certificate) if certificate.who() == own => Ok(()),
            Proof::Certificate(certificate) => Err(Status::permission_denied(format!(
                "only another controller may do this: its certificate has this one's subject ({own}), and this client's \
                 has {}",
                certificate.who()
            ))),
        }
    }

    /// Whether it may be an agent at all: encrypted connections need a certificate.
    ///
    /// # Errors
    /// The status that ends the call.
    pub(crate) fn may_be_agent(&self) -> Result<(), Status> {
        match &self.0.proof {
            Proof::PlainText | Proof::Certificate(_) => Ok(()),
            Proof::Anonymous => Err(Status::unauthenticated(
                "an agent must show a certificate, and this one showed none: set cert and key under [tls] in its \
                 configuration",
            )),
        }
    }

    /// Whether it may speak for a node.
    ///
    /// # Errors
    /// The status that ends the session.
    pub(crate) fn may_speak_for(&self, node: &NodeName) -> Result<(), Status> {
        self.may_be_agent()?;
        match &self.0.proof {
            // Nobody proves anything here; only loopback, or a network that the operator trusts, gets this far.
            Proof::PlainText | Proof::Anonymous => Ok(()),
            Proof::Certificate(certificate) if certificate.has_dns_name(node.as_str()) => Ok(()),
            Proof::Certificate(certificate) => {
                let names = if certificate.dns.is_empty() { "none".to_owned() } else { certificate.dns.join(", ") };
                Err(Status::permission_denied(format!(
                    "this agent wants to speak for node {node}, but its certificate ({}) has other DNS names: {names}; an \
                     agent's certificate must name its node",
                    certificate.who()
                )))
            }
        }
    }
}

/// The name of whoever made a request, in the one form.
pub(crate) fn name_of(caller: Option<&Caller>) -> &str {
    caller.map_or("unknown", Caller::name)
}

/// Writes down that somebody asked for a change, and what came of it. One line for each call that can change something,
/// inside the span that names the method; after the answer, which need not wait for it: who asked for a placement also
/// stands in its record.
pub(crate) fn audit(
    caller: Option<Caller>,
    placement: PlacementName,
    outcome: &Result<Response<v1::Placement>, Status>,
) {
    let made = outcome.as_ref().map(|answer| {
        let placement = answer.get_ref();
        (placement.uid.as_str(), placement.phase())
    });
    audit_change(caller, placement, made);
}

/// The same of a change that was answered together with others: the uid and phase of what it made, or why not.
pub(crate) fn audit_change(
    caller: Option<Caller>,
    placement: PlacementName,
    outcome: Result<(&str, v1::Phase), &Status>,
) {
    let (uid, phase, code, why) = match outcome {
        Ok((uid, phase)) => (uid.to_owned(), Some(phase.as_str_name()), tonic::Code::Ok, None),
        Err(status) => (String::new(), None, status.code(), Some(status.message().to_owned())),
    };
    afterwards(move || {
        tracing::info!(
            { names::CALLER } = name_of(caller.as_ref()),
            { names::PEER } = caller.as_ref().map(|caller| tracing::field::display(caller.0.peer)),
            { names::PLACEMENT } = %placement,
            { names::UID } = uid,
            { names::PHASE } = phase,
            { names::OUTCOME } = ?code,
            { names::ERROR } = why,
            "{}",
            names::EVENT_CHANGE_ASKED
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use tonic::Code;

    fn caller(subject: &str, dns: &[&str]) -> Caller {
        let certificate = Certificate {
            subject: subject.to_owned(),
            dns: dns.iter().map(ToString::to_string).collect(),
            uris: vec![],
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
        };
        Caller::new(peer(), Proof::Certificate(Box::new(certificate)))
    }

    fn peer() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], 4711))
    }

    #[test]
    fn callers_have_one_form() {
        assert_eq!(caller("CN=terraform, O=Example", &["x"]).name(), "cert:CN=terraform, O=Example");
        assert_eq!(caller("", &["hv-01"]).name(), "cert:DNS:hv-01");
        assert_eq!(Caller::new(peer(), Proof::Anonymous).name(), "192.0.2.7:4711");
        assert_eq!(Caller::new(peer(), Proof::PlainText).name(), "192.0.2.7:4711");
        assert_eq!(name_of(None), "unknown");
    }

    #[test]
    fn a_controller_is_known_by_the_subject_that_all_controllers_have() {
        let own = Some("CN=berth-controller");
        let code = |caller: &Caller, own| caller.may_be_controller(own).map_err(|status| status.code());
        assert_eq!(code(&caller("CN=berth-controller", &["c2"]), own), Ok(()));
        assert_eq!(code(&Caller::new(peer(), Proof::PlainText), None), Ok(()));
        for other in ["CN=berth-controller, O=x", "CN=hv-01", ""] {
            // What stands for an empty subject is a name, and no subject.
            let other = caller(other, &["CN=berth-controller", "c2"]);
            assert_eq!(code(&other, own), Err(Code::PermissionDenied), "{}", other.name());
        }
        assert_eq!(code(&Caller::new(peer(), Proof::Anonymous), own), Err(Code::Unauthenticated));
    }

    #[test]
    fn an_agent_speaks_only_for_the_node_that_its_certificate_names() {
        let node = NodeName::new("hv-01").unwrap();
        let refused = |caller: &Caller| caller.may_speak_for(&node).unwrap_err();
        assert!(caller("CN=x", &["other", "HV-01"]).may_speak_for(&node).is_ok());
        assert!(Caller::new(peer(), Proof::PlainText).may_speak_for(&node).is_ok());

        let other = refused(&caller("CN=hv-02", &["hv-02", "hv-02.example"]));
        assert_eq!(other.code(), Code::PermissionDenied);
        for part in ["node hv-01", "CN=hv-02", "hv-02, hv-02.example"] {
            assert!(other.message().contains(part), "{other:?}");
        }
        // The subject proves nothing, nor does a wildcard, nor a longer name.
        for names in [&[][..], &["*"], &["hv-01.example"], &["hv-0"]] {
            assert_eq!(refused(&caller("CN=hv-01", names)).code(), Code::PermissionDenied, "{names:?}");
        }
        assert_eq!(refused(&Caller::new(peer(), Proof::Anonymous)).code(), Code::Unauthenticated);
    }
}
