//! W3C trace context in and out of gRPC metadata and HTTP headers.

use berth_model::trace::TraceParent;
use http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};

/// The header that carries a trace: `traceparent`.
pub const HEADER: &str = "traceparent";

/// The trace a gRPC call belongs to. A header that is no legal `traceparent`, or that comes twice, counts as none: the
/// W3C rule is to go on without it, never to refuse the call.
pub fn from_metadata(metadata: &MetadataMap) -> Option<TraceParent> {
    only(metadata.get_all(HEADER).iter().map(MetadataValue::to_str))
}

/// The trace an HTTP call belongs to; same rules as [`from_metadata`].
pub fn from_headers(headers: &HeaderMap) -> Option<TraceParent> {
    only(headers.get_all(HEADER).iter().map(http::HeaderValue::to_str))
}

fn only<'a, E>(mut values: impl Iterator<Item = Result<&'a str, E>>) -> Option<TraceParent> {
    match (values.next(), values.next()) {
        (Some(Ok(text)), None) => text.parse().ok(),
        (None, _) | (Some(Err(_)), None) | (Some(_), Some(_)) => None,
    }
}

/// Puts a trace into outgoing metadata, in place of what is there.
pub fn into_metadata(trace: &TraceParent, metadata: &mut MetadataMap) {
    // A checked traceparent is hexadecimal digits and dashes, so this cannot fail; a call must not end if it did.
    if let Ok(value) = MetadataValue::try_from(trace.as_str()) {
        metadata.insert(HEADER, value);
    }
}

/// A new trace, for a call that came without one. The caller draws the ids; `None` when one is zero, which W3C forbids.
pub fn start(trace_id: u128, parent_id: u64) -> Option<TraceParent> {
    format!("00-{trace_id:032x}-{parent_id:016x}-01").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_survives_the_way_over_metadata() {
        let trace: TraceParent = GOOD.parse().unwrap();
        let mut metadata = MetadataMap::new();
        into_metadata(&trace, &mut metadata);
        into_metadata(&trace, &mut metadata);
        assert_eq!(from_metadata(&metadata), Some(trace));
    }

    #[test]
    fn what_is_no_single_legal_header_counts_as_none() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, http::HeaderValue::from_static(value));
            }
            let by_headers = from_headers(&headers);
            assert_eq!(from_metadata(&MetadataMap::from_headers(headers)), by_headers);
            by_headers.is_some()
        };
        assert!(read(&[GOOD]));
        assert!(!read(&[]));
        assert!(!read(&["rubbish"]));
        assert!(!read(&["00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"]));
        assert!(!read(&[GOOD, GOOD]));
    }

    #[test]
    fn a_new_trace_has_the_ids_it_was_given() {
        assert_eq!(start(0xabc, 0x1).unwrap().as_str(), "00-00000000000000000000000000000abc-0000000000000001-01");
        assert_eq!(start(0, 1), None);
        assert_eq!(start(1, 0), None);
    }
}
