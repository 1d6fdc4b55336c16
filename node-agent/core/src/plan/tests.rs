//! Tests of `super`.

use berth_model::desired::{DesiredGpu, DesiredPlacement, Intent};
use berth_model::request::{ReturnTo, VerifyLevel};

pub(crate) const VM: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";
pub(crate) const GPU: &str = "PCIROOT(20)#PCI(0300)#PCI(0000)";

/// A placement of one A2 in [`VM`] at [`GPU`].
pub(crate) fn desired(intent: Intent) -> DesiredPlacement {
    let card = crate::cards::by_model(&"A2".parse().unwrap()).unwrap();
    DesiredPlacement {
        uid: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        name: "p1".parse().unwrap(),
        vm: VM.parse().unwrap(),
        gpus: vec![DesiredGpu {
            address: GPU.parse().unwrap(),
            fingerprint: berth_model::gpu::Fingerprint { id: card.id, serial: None },
            mmio: card.mmio(),
        }],
        intent,
        allow_standalone: false,
        verify: VerifyLevel::None,
        return_to: ReturnTo::Host,
        trace: None,
    }
}
