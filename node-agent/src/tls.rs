//! The way to a controller: in plain text, or by TLS with the node's certificate.
//!
//! Owns what an endpoint's scheme means for a connection. Files are read anew for each connection, so that a renewed
//! certificate counts from the next session on. Must never fall back to plain text.

use berth_tls::client::{Connector, Files, transport};
use tonic::transport::{Channel, Endpoint, Uri};

/// Why there is no connection, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

/// A connection, with what finds out why it was refused.
pub(crate) struct Way {
    pub(crate) channel: Channel,
    connector: Option<Connector>,
}

impl Way {
    /// Connects to `endpoint`; `prepare` sets all that has nothing to do with TLS.
    pub(crate) async fn connect(
        endpoint: &Uri,
        files: Option<&Files>,
        prepare: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Self, Failed> {
        if !is_encrypted(endpoint) {
            let channel = prepare(Endpoint::from(endpoint.clone())).connect().await;
            let channel = channel.map_err(|error| Failed(sentence(&error)))?;
            return Ok(Self { channel, connector: None });
        }
        let files = files.ok_or_else(|| Failed(NO_FILES.to_owned()))?;
        let address = transport(endpoint).map_err(|error| Failed(error.to_string()))?;
        let connector = Connector::new(files.clone());
        let channel = prepare(Endpoint::from(address).origin(endpoint.clone()));
        let channel = channel.connect_with_connector(connector.clone()).await;
        let channel = channel.map_err(|error| Failed(connector.failure().unwrap_or_else(|| sentence(&error))))?;
        Ok(Self { channel, connector: Some(connector) })
    }

    /// Why the controller refused the connection although it seemed to stand. With TLS 1.3 it says so late.
    pub(crate) fn refused(&self) -> Option<String> {
        self.connector.as_ref()?.failure()
    }
}

const NO_FILES: &str = "the endpoint is https://, and no [tls] with ca, cert and key is configured";

/// Whether a connection to this endpoint is encrypted.
pub(crate) fn is_encrypted(endpoint: &Uri) -> bool {
    endpoint.scheme_str() == Some("https")
}

/// Whether an endpoint leaves this machine.
pub(crate) fn is_remote(endpoint: &Uri) -> bool {
    let host = endpoint.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let loopback = host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    !loopback && !host.eq_ignore_ascii_case("localhost")
}

/// An error with its causes: the transport's own text is only "transport error".
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let causes: Vec<_> = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_machine_is_known() {
        for near in ["http://127.0.0.1:7600", "http://127.9.9.9", "http://[::1]:7600", "http://LOCALHOST:1"] {
            assert!(!is_remote(&near.parse().unwrap()), "{near}");
        }
        for far in ["http://10.0.0.1:7600", "https://c1.example", "http://[2001:db8::1]:1", "http://127.0.0.1.example"]
        {
            assert!(is_remote(&far.parse().unwrap()), "{far}");
        }
    }

    #[tokio::test]
    async fn https_without_files_is_refused_before_anything_is_sent() {
        let way = Way::connect(&"https://127.0.0.1:1".parse().unwrap(), None, |endpoint| endpoint).await;
        assert_eq!(way.err().unwrap(), Failed(NO_FILES.to_owned()));
    }
}
