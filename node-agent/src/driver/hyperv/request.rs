//! What the script is asked for, step by step: the name of an operation and its arguments, checked here and there again.
//!
//! Must never ask for more than one VM or one device.

use crate::driver::DriverError;
use berth_agent_core::observed::{CheckpointKind, StopAction, VmMemory, VmSettings};
use berth_model::VmId;
use berth_model::pci::DeviceAddress;
use serde_json::{Value, json};

/// A request that says that it is none of ours: nothing is sent.
fn never(why: &str) -> DriverError {
    DriverError::Failed(format!("this is not asked of a Hyper-V host: {why}"))
}

/// A device's place as the script takes it.
pub(super) fn device(address: &DeviceAddress) -> Result<Value, DriverError> {
    match address {
        DeviceAddress::Location(path) => Ok(json!({ "location_path": path.as_str() })),
        DeviceAddress::Bus(bus) => Err(never(&format!("{bus} is no location path"))),
    }
}

/// A VM's id as the script takes it.
pub(super) fn vm(id: &VmId) -> Result<Value, DriverError> {
    let zero = id.as_str().bytes().all(|b| matches!(b, b'0' | b'-'));
    if zero { Err(never("the VM with the id zero")) } else { Ok(json!({ "vm": id.as_str() })) }
}

/// Both.
pub(super) fn vm_device(id: &VmId, address: &DeviceAddress) -> Result<Value, DriverError> {
    let mut args = vm(id)?;
    args["location_path"] = device(address)?["location_path"].take();
    Ok(args)
}

/// A VM's settings, all of them; whether it is to get devices with them.
pub(super) fn settings(id: &VmId, settings: &VmSettings, for_devices: bool) -> Result<Value, DriverError> {
    let VmSettings { stop_action, guest_cache_types, mmio_low_bytes, mmio_high_bytes, memory, checkpoints } = settings;
    if u32::try_from(*mmio_low_bytes).is_err() {
        return Err(never(&format!("{mmio_low_bytes} bytes of address space below 4 GiB")));
    }
    let mut wanted = json!({
        "stop_action": match stop_action {
            StopAction::TurnOff => "TurnOff",
            StopAction::Save => "Save",
            StopAction::ShutDown => "ShutDown",
        },
        "guest_cache_types": guest_cache_types,
        "mmio_low_bytes": mmio_low_bytes,
        "mmio_high_bytes": mmio_high_bytes,
        "dynamic_memory": *memory != VmMemory::Static,
        "checkpoint_type": match checkpoints.kind {
            CheckpointKind::Disabled => "Disabled",
            CheckpointKind::Production => "Production",
            CheckpointKind::ProductionOnly => "ProductionOnly",
            CheckpointKind::Standard => "Standard",
        },
        "automatic_checkpoints": checkpoints.automatic,
    });
    if let VmMemory::Dynamic { minimum_bytes, maximum_bytes } = memory {
        wanted["memory_minimum_bytes"] = json!(minimum_bytes);
        wanted["memory_maximum_bytes"] = json!(maximum_bytes);
    }
    let mut args = vm(id)?;
    args["settings"] = wanted;
    args["for_devices"] = json!(for_devices);
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_agent_core::observed::Checkpoints;

    const VM: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";

    #[test]
    fn what_names_nothing_or_cannot_be_is_not_sent() {
        let zero = VmId::new("00000000-0000-0000-0000-000000000000").unwrap();
        assert!(vm(&zero).is_err() && vm_device(&zero, &"PCIROOT(0)#PCI(0301)".parse().unwrap()).is_err());
        assert!(device(&"0000:41:00.0".parse().unwrap()).is_err());
        let huge = VmSettings {
            stop_action: StopAction::TurnOff,
            guest_cache_types: true,
            mmio_low_bytes: 1 << 32,
            mmio_high_bytes: u64::MAX,
            memory: VmMemory::Static,
            checkpoints: Checkpoints::NONE,
        };
        let vm = VmId::new(VM).unwrap();
        assert!(settings(&vm, &huge, true).is_err());
        let args = settings(&vm, &VmSettings { mmio_low_bytes: 1 << 31, ..huge }, false).unwrap();
        assert!(args["settings"]["memory_minimum_bytes"].is_null() && args["vm"] == VM, "{args}");
    }
}
