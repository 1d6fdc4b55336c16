//! What a certificate says: whom it names, and until when.

use std::time::{Duration, SystemTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Longest text kept of any name: longer ones are made to annoy.
const MAX_NAME_BYTES: usize = 256;

/// What Berth reads from a certificate. It proves something only when its chain was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject as `CN=terraform, O=Example`; empty when there is none. No control characters, at most 256 bytes.
    pub subject: String,
    /// The DNS names among the alternative names.
    pub dns: Vec<String>,
    /// The URIs among the alternative names.
    pub uris: Vec<String>,
    /// Its first moment.
    pub not_before: SystemTime,
    /// Its last moment.
    pub not_after: SystemTime,
}

/// The bytes are no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("holds a certificate that cannot be read: {0}")]
pub struct Unreadable(String);

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`Unreadable`] when it is none.
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let unreadable = |error: &dyn std::fmt::Display| Unreadable(error.to_string());
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
        let (mut dns, mut uris) = (Vec::new(), Vec::new());
        if let Some(names) = parsed.subject_alternative_name().map_err(|error| unreadable(&error))? {
            for name in &names.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    dns.push(clean(name));
                } else if let GeneralName::URI(uri) = name {
                    uris.push(clean(uri));
                }
            }
        }
        let validity = parsed.validity();
        Ok(Self {
            subject: clean(&parsed.subject().to_string()),
            dns,
            uris,
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// Whether one of its DNS names is exactly `name`. As in the DNS, the case of letters does not count (RFC 4343). A
    /// wildcard names no single host, so it stands for none here.
    pub fn has_dns_name(&self, name: &str) -> bool {
        self.dns.iter().any(|dns| dns.eq_ignore_ascii_case(name))
    }

    /// Who it is about, in a few words: the subject, or else the first alternative name, as `DNS:n1` or `URI:…`.
    pub fn who(&self) -> String {
        if !self.subject.is_empty() {
            return self.subject.clone();
        }
        let dns = self.dns.first().map(|name| format!("DNS:{name}"));
        dns.or_else(|| self.uris.first().map(|uri| format!("URI:{uri}"))).unwrap_or_else(|| "nobody".to_owned())
    }
}

fn time(seconds: i64) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH;
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    time.unwrap_or(epoch)
}

/// What goes into logs and records must not hold what breaks a line, nor be of any length.
fn clean(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }) {
        if clean.len() + c.len_utf8() > MAX_NAME_BYTES {
            break;
        }
        clean.push(c);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    fn make(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Certificate::read(made.der()).unwrap()
    }

    #[test]
    fn names_are_read() {
        let read = make(|params| {
            params.distinguished_name.push(DnType::CommonName, "terraform");
            params.distinguished_name.push(DnType::OrganizationName, "Example");
            let names = ["hv-01.example", "*.example"];
            params.subject_alt_names = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
            params.subject_alt_names.push(SanType::URI("spiffe://example/x".try_into().unwrap()));
            params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        });
        assert_eq!(read.subject, "CN=terraform, O=Example");
        assert_eq!((read.dns.len(), read.uris.as_slice()), (2, ["spiffe://example/x".to_owned()].as_slice()));
        assert_eq!(read.not_after, SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000));
        assert!(read.has_dns_name("HV-01.example") && !read.has_dns_name("hv-02.example"));
        assert!(!read.has_dns_name("hv-01") && !read.has_dns_name("") && !read.has_dns_name("hv-01.example."));
    }

    #[test]
    fn whoever_has_no_subject_is_called_by_another_name() {
        assert_eq!(make(|_| ()).who(), "nobody");
        let dns = make(|params| params.subject_alt_names = vec![SanType::DnsName("n1".try_into().unwrap())]);
        assert_eq!(dns.who(), "DNS:n1");
        let uri = make(|params| params.subject_alt_names = vec![SanType::URI("urn:x".try_into().unwrap())]);
        assert_eq!(uri.who(), "URI:urn:x");
    }

    #[test]
    fn hostile_names_do_not_break_a_line() {
        let read =
            make(|params| params.distinguished_name.push(DnType::CommonName, format!("a\nb{}", "x".repeat(999))));
        assert!(!read.subject.contains('\n') && read.subject.len() <= MAX_NAME_BYTES, "{}", read.subject);
        assert!(Certificate::read(b"nonsense").is_err() && Certificate::read(b"").is_err());
    }
}
