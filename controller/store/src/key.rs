//! The whole key space on one page.
//!
//! | key, after `berth/v1/`    | value             |                                                        |
//! |---------------------------|-------------------|--------------------------------------------------------|
//! | `leader`                  | `LeaderRecord`    | whose creation revision is the fence                   |
//! | `term`                    | `TermRecord`      | every leadership from now on has a higher term         |
//! | `fleet`                   | `FleetRecord`     | which fleet the store holds                            |
//! | `placements/NAME`         | `PlacementRecord` | a request and its whole life                           |
//! | `nodes/NAME`              | `NodeRecord`      | what is durable about a node                           |
//! | `claims/gpu/NODE/ADDRESS` | `ClaimRecord`     | the placement that owns the GPU                        |
//! | `claims/vm/id/GUID`       | `ClaimRecord`     | the live placement of the VM with this id              |
//! | `claims/vm/name/NAME`     | `ClaimRecord`     | the same by display name, ASCII letters in lower case  |
//! | `requests/REQUEST_ID`     | `ClaimRecord`     | the placement that answered this Create                |
//!
//! Owns how keys are written and read back. Must never know what a value holds. The `v1` is the version of this page:
//! another arrangement of keys gets another prefix, so that old and new never mix.
//!
//! No part can break out of its place: node and placement names and GUIDs hold no `/`, nor do addresses; a VM name or a
//! request id is the rest of its key, whatever it holds.

use berth_model::id::{GpuId, NodeName, PlacementName, RequestId, VmId, VmName};
use berth_model::vm::VmSelector;
use std::fmt;

/// All of Berth's keys begin with it.
pub const ALL: &str = "berth/v1/";
/// All placements.
pub const PLACEMENTS: &str = "berth/v1/placements/";
/// All nodes.
pub const NODES: &str = "berth/v1/nodes/";
/// All claims, of GPUs and of VMs.
pub const CLAIMS: &str = "berth/v1/claims/";
/// All claims of GPUs.
pub const GPU_CLAIMS: &str = "berth/v1/claims/gpu/";
/// All claims of VMs by id.
pub const VM_ID_CLAIMS: &str = "berth/v1/claims/vm/id/";
/// All claims of VMs by display name.
pub const VM_NAME_CLAIMS: &str = "berth/v1/claims/vm/name/";
/// All request ids.
pub const REQUESTS: &str = "berth/v1/requests/";
/// Who leads.
pub const LEADER: &str = "berth/v1/leader";

/// The term that every leadership from now on must be above; see [`crate::term`].
pub const TERM: &str = "berth/v1/term";

/// Which fleet the store holds; see [`crate::fleet`].
pub const FLEET: &str = "berth/v1/fleet";

/// Key of the leader record.
pub fn leader() -> String {
    LEADER.to_owned()
}

/// Key of a placement.
pub fn placement(name: &PlacementName) -> String {
    format!("{PLACEMENTS}{name}")
}

/// Key of a node.
pub fn node(name: &NodeName) -> String {
    format!("{NODES}{name}")
}

/// Key of the claim on a GPU.
pub fn gpu_claim(gpu: &GpuId) -> String {
    format!("{GPU_CLAIMS}{}/{}", gpu.node, gpu.address)
}

/// Key of the claim on a VM. Names that differ only in the case of ASCII letters give the same key, because they
/// select the same VM.
pub fn vm_claim(vm: &VmSelector) -> String {
    match vm {
        VmSelector::Id(id) => format!("{VM_ID_CLAIMS}{id}"),
        VmSelector::Name(name) => format!("{VM_NAME_CLAIMS}{}", name.as_str().to_ascii_lowercase()),
    }
}

/// Key of a request id.
pub fn request(id: &RequestId) -> String {
    format!("{REQUESTS}{id}")
}

/// A key read back: what it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The leader record.
    Leader,
    /// The term to be above.
    Term,
    /// Which fleet the store holds.
    Fleet,
    /// A placement.
    Placement(PlacementName),
    /// A node.
    Node(NodeName),
    /// The claim on a GPU.
    GpuClaim(GpuId),
    /// The claim on a VM; a name is in lower case.
    VmClaim(VmSelector),
    /// A request id.
    Request(RequestId),
}

/// A text that is no key of this page, or not written as this page writes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key of this version of Berth")]
pub struct UnknownKey(pub String);

impl Key {
    /// Reads a key back.
    ///
    /// # Errors
    /// [`UnknownKey`] when it is not on this page, has an illegal name in it, or is not in the one form this page writes.
    pub fn parse(text: &str) -> Result<Self, UnknownKey> {
        let read = || {
            if text == LEADER {
                Some(Self::Leader)
            } else if text == TERM {
                Some(Self::Term)
            } else if text == FLEET {
                Some(Self::Fleet)
            } else if let Some(name) = text.strip_prefix(PLACEMENTS) {
                name.parse().ok().map(Self::Placement)
            } else if let Some(name) = text.strip_prefix(NODES) {
                name.parse().ok().map(Self::Node)
            } else if let Some(gpu) = text.strip_prefix(GPU_CLAIMS) {
                gpu.parse().ok().map(Self::GpuClaim)
            } else if let Some(id) = text.strip_prefix(VM_ID_CLAIMS) {
                VmId::new(id).ok().map(VmSelector::Id).map(Self::VmClaim)
            } else if let Some(name) = text.strip_prefix(VM_NAME_CLAIMS) {
                VmName::new(name).ok().map(VmSelector::Name).map(Self::VmClaim)
            } else if let Some(id) = text.strip_prefix(REQUESTS) {
                id.parse().ok().map(Self::Request)
            } else {
                None
            }
        };
        // One thing has one key: a GUID in capitals, say, would be a second one.
        read().filter(|key: &Self| key.to_string() == text).ok_or_else(|| UnknownKey(text.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Leader => leader(),
            Self::Term => TERM.to_owned(),
            Self::Fleet => FLEET.to_owned(),
            Self::Placement(name) => placement(name),
            Self::Node(name) => node(name),
            Self::GpuClaim(gpu) => gpu_claim(gpu),
            Self::VmClaim(vm) => vm_claim(vm),
            Self::Request(id) => request(id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn vm(text: &str) -> VmSelector {
        text.parse().unwrap()
    }

    #[test]
    fn the_page_is_as_it_says() {
        let keys = [
            leader(),
            placement(&"render-07".parse().unwrap()),
            node(&"hv-01.example".parse().unwrap()),
            gpu_claim(&"hv-01/PCIROOT(20)#PCI(0300)#PCI(0000)".parse().unwrap()),
            gpu_claim(&"kvm1/0000:41:00.0".parse().unwrap()),
            vm_claim(&vm("8FCE3318-AA0F-4DE3-8664-278533573CD2")),
            vm_claim(&vm("Render 07 (Tests & Söhne ÄÖ)")),
            request(&"order/4711#1".parse().unwrap()),
        ];
        expect![[r"
            berth/v1/leader
            berth/v1/placements/render-07
            berth/v1/nodes/hv-01.example
            berth/v1/claims/gpu/hv-01/PCIROOT(20)#PCI(0300)#PCI(0000)
            berth/v1/claims/gpu/kvm1/0000:41:00.0
            berth/v1/claims/vm/id/8fce3318-aa0f-4de3-8664-278533573cd2
            berth/v1/claims/vm/name/render 07 (tests & söhne ÄÖ)
            berth/v1/requests/order/4711#1"]]
        .assert_eq(&keys.join("\n"));
        for key in keys {
            assert_eq!(Key::parse(&key).unwrap().to_string(), key);
        }
    }

    #[test]
    fn keys_say_what_they_are_about() {
        let gpu: GpuId = "hv-01/0000:41:00.0".parse().unwrap();
        assert_eq!(Key::parse(&gpu_claim(&gpu)), Ok(Key::GpuClaim(gpu)));
        assert_eq!(Key::parse(&vm_claim(&vm("Web"))), Ok(Key::VmClaim(vm("web"))));
        let name: PlacementName = "p".parse().unwrap();
        assert_eq!(Key::parse(&placement(&name)), Ok(Key::Placement(name)));
        let id: RequestId = "a/b/c".parse().unwrap();
        assert_eq!(Key::parse(&request(&id)), Ok(Key::Request(id)));
    }

    #[test]
    fn names_that_select_the_same_vm_share_a_claim() {
        assert_eq!(vm_claim(&vm("WEB-1")), vm_claim(&vm("web-1")));
        assert_ne!(vm_claim(&vm("Ä")), vm_claim(&vm("ä")), "only ASCII letters compare without case");
    }

    #[test]
    fn what_is_not_on_the_page_is_refused() {
        for text in [
            "",
            "berth/v1/",
            "berth/v1/leader/x",
            "berth/v2/leader",
            "berth/v1/placements/",
            "berth/v1/placements/a/b",
            "berth/v1/nodes/-n",
            "berth/v1/claims/gpu/hv-01",
            "berth/v1/claims/gpu/hv-01/",
            "berth/v1/claims/gpu/hv-01/0000:41:00.0/x",
            "berth/v1/claims/gpu/hv-01/0000:4A:00.0",
            "berth/v1/claims/vm/id/8FCE3318-AA0F-4DE3-8664-278533573CD2",
            "berth/v1/claims/vm/name/Web",
            "berth/v1/claims/vm/name/a/b",
            "berth/v1/claims/vm/8fce3318-aa0f-4de3-8664-278533573cd2",
            "berth/v1/requests/a b",
        ] {
            assert_eq!(Key::parse(text), Err(UnknownKey(text.to_owned())));
        }
    }

    #[test]
    fn a_vm_name_that_looks_like_a_guid_does_not_meet_the_guid() {
        let guid = "8fce3318-aa0f-4de3-8664-278533573cd2";
        let name = VmSelector::Name(VmName::new(guid).unwrap());
        assert_ne!(vm_claim(&name), vm_claim(&vm(guid)));
        assert_eq!(Key::parse(&vm_claim(&name)), Ok(Key::VmClaim(name)));
    }
}
