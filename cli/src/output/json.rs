//! Messages of the API in their canonical protobuf JSON form.

use crate::error::Error;
use prost_reflect::{DescriptorPool, DynamicMessage};
use std::sync::OnceLock;

/// Descriptors of the whole API. They are compiled in, so decoding either always or never fails.
fn pool() -> Result<&'static DescriptorPool, Error> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(berth_proto::DESCRIPTORS).map_err(|e| e.to_string()))
        .as_ref()
        .map_err(|e| Error::Encode(e.clone()))
}

/// A message that serializes as canonical JSON, its fields in their order. `name` is its name in `berth.v1`.
///
/// # Errors
/// [`Error::Encode`] when the API has no such message.
pub fn canonical(name: &str, message: &impl prost::Message) -> Result<DynamicMessage, Error> {
    let full = format!("berth.v1.{name}");
    let descriptor =
        pool()?.get_message_by_name(&full).ok_or_else(|| Error::Encode(format!("the API has no message {full}")))?;
    let encoded = message.encode_to_vec();
    DynamicMessage::decode(descriptor, encoded.as_slice()).map_err(|e| Error::Encode(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1;

    #[test]
    fn numbers_enums_and_durations_are_canonical() {
        let request = v1::PlacementRequest {
            name: "p".into(),
            gpus: 2,
            min_vram_bytes: 16 << 30,
            verify: v1::VerifyLevel::DriverBound.into(),
            hold: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
            ..Default::default()
        };
        let expected = serde_json::json!({
            "name": "p", "gpus": 2, "minVramBytes": "17179869184", "verify": "VERIFY_LEVEL_DRIVER_BOUND", "hold": "90s"
        });
        assert_eq!(serde_json::to_value(canonical("PlacementRequest", &request).unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_message_the_api_does_not_have_is_an_error() {
        assert!(canonical("Nothing", &v1::PlacementRequest::default()).is_err());
    }
}
