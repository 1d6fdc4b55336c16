//! Why a connection did not come about, in a sentence that says what to look at.

use rustls::{AlertDescription, CertificateError, Error};
use std::io;

/// Which side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> &'static str {
        match self {
            Self::Client => "server",
            Self::Server => "client",
        }
    }
}

/// The TLS error inside an I/O error, if it is one.
pub(crate) fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// An error of the handshake.
pub(crate) fn handshake(error: &io::Error, side: Side) -> String {
    match cause(error) {
        Some(cause) => sentence(cause, side),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!(
                "the {} closed the connection during the TLS handshake; perhaps it does not speak TLS",
                side.other()
            )
        }
        None => format!("the TLS handshake failed: {error}"),
    }
}

/// What an error of TLS means.
#[expect(clippy::wildcard_enum_match_arm, reason = "the enums are not ours and grow; their own text serves the rest")]
pub(crate) fn sentence(error: &Error, side: Side) -> String {
    let other = side.other();
    match error {
        Error::InvalidMessage(_) if side == Side::Client => {
            "what answers there does not speak TLS; if it is meant to be plain text, write http://".to_owned()
        }
        Error::InvalidMessage(what) => format!("the client does not speak TLS: {what:?}"),
        Error::InvalidCertificate(why) => format!("the {other}'s certificate {}", certificate(why, side)),
        Error::NoCertificatesPresented => format!("the {other} showed no certificate"),
        Error::AlertReceived(alert) => format!("the {other} refused the connection: {}", refusal(*alert, side)),
        Error::NoApplicationProtocol => format!("the {other} speaks TLS but neither HTTP/2 nor HTTP/1.1 on it"),
        other => other.to_string(),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is not ours and grows; its own text serves the rest")]
fn certificate(why: &CertificateError, side: Side) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("has expired, or this machine's clock is wrong ({why})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("is not valid yet, or this machine's clock is wrong ({why})")
        }
        CertificateError::UnknownIssuer => match side {
            Side::Client => "is not from the CA that was named (ca)".to_owned(),
            Side::Server => "is not from the CA of this controller's clients (client_ca)".to_owned(),
        },
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("is for another name: {why}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("is not meant for a {} (extended key usage)", side.other())
        }
        why => format!("cannot be accepted: {why}"),
    }
}

/// An alert that came from the other side: mostly it does not like what it was shown.
#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is not ours and grows; its own name serves the rest")]
fn refusal(alert: AlertDescription, side: Side) -> String {
    let ca = match side {
        Side::Client => "its client_ca",
        Side::Server => "the CA it trusts",
    };
    match alert {
        AlertDescription::CertificateExpired => "the certificate shown to it has expired".to_owned(),
        AlertDescription::UnknownCA => format!("the certificate shown to it is not from {ca}"),
        AlertDescription::CertificateRequired => "it wants a certificate and none was shown".to_owned(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown => format!("the certificate shown to it is not accepted ({alert:?})"),
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.3 nor 1.2".to_owned(),
        AlertDescription::NoApplicationProtocol => "it speaks neither HTTP/2 nor HTTP/1.1 on TLS".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_from_each_side() {
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(handshake(&eof, Side::Client).starts_with("the server closed the connection during the TLS handshake"));
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(handshake(&reset, Side::Server).contains("connection reset"));
        let expired = io::Error::new(io::ErrorKind::InvalidData, Error::InvalidCertificate(CertificateError::Expired));
        assert!(handshake(&expired, Side::Server).starts_with("the client's certificate has expired"));
        assert!(sentence(&Error::AlertReceived(AlertDescription::UnknownCA), Side::Client).contains("client_ca"));
    }
}
