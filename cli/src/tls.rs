//! The way to the controller: in plain text, or by TLS with the files that were named.
//!
//! Owns what the flags mean together with the endpoint. Must never fall back to plain text, nor trust a CA that nobody
//! named.

use crate::args::Tls;
use crate::error::Error;
use berth_tls::Pair;
use berth_tls::client::{Connector, Files, is_server_name, transport};
use tonic::transport::{Channel, Endpoint, Uri};

/// The files for an endpoint; `None` where it is plain text. What is named for nothing (an environment made for another
/// endpoint) is ignored.
///
/// # Errors
/// Which flag is missing.
fn files(endpoint: &Uri, given: &Tls) -> Result<Option<Files>, Error> {
    if endpoint.scheme_str() != Some("https") {
        return Ok(None);
    }
    let missing = |flag: &str, why: &str| Err(Error::Usage(format!("{flag} is missing: {why}")));
    let Tls { ca, cert, key, server_name } = given.clone();
    let Some(ca) = ca else {
        return missing("--ca FILE (or BERTH_CA)", "an https:// endpoint is trusted only by a CA that you name");
    };
    let own = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(Pair { cert, key }),
        (Some(_), None) => return missing("--key FILE (or BERTH_KEY)", "the private key of the certificate"),
        (None, Some(_)) => return missing("--cert FILE (or BERTH_CERT)", "the certificate of the private key"),
    };
    if let Some(name) = server_name.as_deref().filter(|name| !is_server_name(name)) {
        return Err(Error::Usage(format!("--server-name {name:?} is neither a DNS name nor an IP address")));
    }
    Ok(Some(Files { ca, own, server_name }))
}

/// A channel that connects with its first call; `prepare` sets all that has nothing to do with TLS. The connector, where
/// there is one, knows why it could not connect.
///
/// # Errors
/// As [`files`].
pub(crate) fn channel(
    endpoint: &Uri,
    given: &Tls,
    prepare: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<(Channel, Option<Connector>), Error> {
    let Some(files) = files(endpoint, given)? else {
        return Ok((prepare(Endpoint::from(endpoint.clone())).connect_lazy(), None));
    };
    let address = transport(endpoint).map_err(|error| Error::Usage(format!("--endpoint {endpoint}: {error}")))?;
    let connector = Connector::new(files);
    let channel = prepare(Endpoint::from(address).origin(endpoint.clone()));
    Ok((channel.connect_with_connector_lazy(connector.clone()), Some(connector)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_together_or_are_named() {
        let https: Uri = "https://c1:7600".parse().unwrap();
        let refused = |tls: &Tls| files(&https, tls).unwrap_err().to_string();
        assert!(refused(&Tls::default()).starts_with("--ca FILE (or BERTH_CA) is missing"));
        let with = Tls { ca: Some("ca.pem".into()), ..Tls::default() };
        let mut half = Tls { cert: Some("c.pem".into()), ..with.clone() };
        assert!(refused(&half).starts_with("--key FILE"));
        (half.key, half.cert) = (half.cert, None);
        assert!(refused(&half).starts_with("--cert FILE"));
        assert!(refused(&Tls { server_name: Some("a b".into()), ..with.clone() }).starts_with("--server-name"));
        let files = |endpoint: &Uri| super::files(endpoint, &with).unwrap();
        assert_eq!(files(&https).unwrap().own, None);
        assert_eq!(files(&"http://127.0.0.1:7600".parse().unwrap()), None);
    }
}
