//! How [`super::Memory`] lies on disk. Fields may be added with a default, never renamed.

use crate::observed::{StopAction, VmSettings};
use berth_model::gpu::{Finding, Fingerprint, MmioSize, SerialNumber, Survey, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is wrong with a stored text.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bad {
    #[error(transparent)]
    Name(#[from] berth_model::id::InvalidName),
    #[error(transparent)]
    Pci(#[from] berth_model::pci::InvalidPci),
    #[error("finding {0:?} is not known")]
    Finding(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    original: BTreeMap<String, Settings>,
    known: BTreeMap<String, Card>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    stop_action: Stop,
    guest_cache_types: bool,
    mmio_low_bytes: u64,
    mmio_high_bytes: u64,
    static_memory: bool,
    checkpoints: bool,
}

#[derive(Serialize, Deserialize)]
enum Stop {
    TurnOff,
    Save,
    ShutDown,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Card {
    model: String,
    id: String,
    serial: Option<String>,
    vram_bytes: Option<u64>,
    mmio_low_bytes: u64,
    mmio_high_bytes: u64,
    numa_node: Option<u16>,
    companions: Vec<String>,
    /// `None`: never measured. Empty: assignable.
    findings: Option<Vec<String>>,
}

impl From<&super::Memory> for Memory {
    fn from(memory: &super::Memory) -> Self {
        Self {
            original: memory.original.iter().map(|(vm, settings)| (vm.to_string(), settings.into())).collect(),
            known: memory.known.iter().map(|(address, survey)| (address.to_string(), survey.into())).collect(),
        }
    }
}

impl TryFrom<Memory> for super::Memory {
    type Error = Bad;
    fn try_from(stored: Memory) -> Result<Self, Bad> {
        let original = stored.original.into_iter().map(|(vm, settings)| Ok((vm.parse()?, settings.into())));
        let known = stored.known.into_iter().map(|(address, card)| Ok((address.parse()?, card.try_into()?)));
        Ok(Self { original: original.collect::<Result<_, Bad>>()?, known: known.collect::<Result<_, Bad>>()? })
    }
}

impl From<&VmSettings> for Settings {
    fn from(settings: &VmSettings) -> Self {
        Self {
            stop_action: match settings.stop_action {
                StopAction::TurnOff => Stop::TurnOff,
                StopAction::Save => Stop::Save,
                StopAction::ShutDown => Stop::ShutDown,
            },
            guest_cache_types: settings.guest_cache_types,
            mmio_low_bytes: settings.mmio_low_bytes,
            mmio_high_bytes: settings.mmio_high_bytes,
            static_memory: settings.static_memory,
            checkpoints: settings.checkpoints,
        }
    }
}

impl From<Settings> for VmSettings {
    fn from(stored: Settings) -> Self {
        Self {
            stop_action: match stored.stop_action {
                Stop::TurnOff => StopAction::TurnOff,
                Stop::Save => StopAction::Save,
                Stop::ShutDown => StopAction::ShutDown,
            },
            guest_cache_types: stored.guest_cache_types,
            mmio_low_bytes: stored.mmio_low_bytes,
            mmio_high_bytes: stored.mmio_high_bytes,
            static_memory: stored.static_memory,
            checkpoints: stored.checkpoints,
        }
    }
}

impl From<&Survey> for Card {
    fn from(survey: &Survey) -> Self {
        Self {
            model: survey.model.to_string(),
            id: survey.fingerprint.id.to_string(),
            serial: survey.fingerprint.serial.as_ref().map(ToString::to_string),
            vram_bytes: survey.vram_bytes,
            mmio_low_bytes: survey.mmio.low_bytes,
            mmio_high_bytes: survey.mmio.high_bytes,
            numa_node: survey.numa_node,
            companions: survey.companions.iter().map(ToString::to_string).collect(),
            findings: match &survey.verdict {
                Verdict::Assignable => Some(Vec::new()),
                Verdict::Blocked(findings) => Some(findings.iter().map(|f| f.name().to_owned()).collect()),
                Verdict::NotMeasured => None,
            },
        }
    }
}

impl TryFrom<Card> for Survey {
    type Error = Bad;
    fn try_from(stored: Card) -> Result<Self, Bad> {
        let finding = |name: String| Finding::ALL.into_iter().find(|f| f.name() == name).ok_or(Bad::Finding(name));
        let findings = stored.findings.map(|names| names.into_iter().map(finding).collect::<Result<Vec<_>, _>>());
        Ok(Self {
            model: stored.model.parse()?,
            fingerprint: Fingerprint {
                id: stored.id.parse()?,
                serial: stored.serial.map(SerialNumber::new).transpose()?,
            },
            vram_bytes: stored.vram_bytes,
            mmio: MmioSize { low_bytes: stored.mmio_low_bytes, high_bytes: stored.mmio_high_bytes },
            numa_node: stored.numa_node,
            companions: stored.companions.into_iter().map(|c| c.parse()).collect::<Result<_, _>>()?,
            verdict: match findings.transpose()? {
                None => Verdict::NotMeasured,
                Some(findings) if findings.is_empty() => Verdict::Assignable,
                Some(findings) => Verdict::Blocked(findings),
            },
        })
    }
}
