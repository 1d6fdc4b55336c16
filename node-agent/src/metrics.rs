//! What an agent measures of itself and of its host. The names are `berth_telemetry::metrics`'.
//!
//! Must never be what anything is decided by.

use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu};
use berth_model::inventory::{InventoryReport, Listing};
use berth_model::pci::DeviceAddress;
use berth_telemetry::metrics::agent as names;
use berth_telemetry::metrics::instruments::{counter, histogram, observe};
use berth_telemetry::{Counter, Histogram, KeyValue};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

/// The instruments. Made when first used, which is after the process has begun to export.
pub(crate) static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| Instruments {
    step_duration: histogram(&names::STEP_DURATION),
    observe_duration: histogram(&names::OBSERVE_DURATION),
    sessions: counter(&names::SESSIONS),
});

/// What records at once.
pub(crate) struct Instruments {
    pub(crate) step_duration: Histogram<f64>,
    pub(crate) observe_duration: Histogram<f64>,
    pub(crate) sessions: Counter<u64>,
}

/// How the agent stands, for whoever asks for metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    session: AtomicBool,
    placements: AtomicU32,
    /// When the host was last seen completely.
    seen: Mutex<Option<Instant>>,
    /// Its GPUs as last reported, those that are unknown or missing included.
    gpus: Mutex<BTreeMap<DeviceAddress, ObservedGpu>>,
}

impl Figures {
    /// Takes note of a complete look.
    pub(crate) fn saw(&self) {
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Takes note of what is reported to the controller.
    pub(crate) fn reports(&self, report: &InventoryReport) {
        let mut gpus = self.0.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        if report.full && report.listing == Listing::Complete {
            gpus.clear();
        }
        gpus.extend(report.gpus.iter().map(|gpu| (gpu.address.clone(), gpu.clone())));
    }

    /// Takes note of a session's beginning or end.
    pub(crate) fn has_session(&self, session: bool) {
        self.0.session.store(session, Ordering::Relaxed);
    }

    /// Takes note of how many placements the ledger holds.
    pub(crate) fn holds(&self, placements: u32) {
        self.0.placements.store(placements, Ordering::Relaxed);
    }

    /// Has it read whenever somebody asks.
    pub(crate) fn register(&self) {
        let me = self.clone();
        let session = move || me.0.session.load(Ordering::Relaxed);
        observe(&names::SESSION, move |to| to.observe(if session() { 1.0 } else { 0.0 }, &[]));
        let me = self.clone();
        observe(&names::LEDGER_PLACEMENTS, move |to| {
            to.observe(f64::from(me.0.placements.load(Ordering::Relaxed)), &[]);
        });
        let me = self.clone();
        observe(&names::OBSERVED_AGE, move |to| {
            if let Some(at) = *me.0.seen.lock().unwrap_or_else(PoisonError::into_inner) {
                to.observe(at.elapsed().as_secs_f64(), &[]);
            }
        });
        let me = self.clone();
        observe(&names::HOST_GPUS, move |to| {
            me.with(|gpus| {
                let mut counts = BTreeMap::new();
                for gpu in gpus.values() {
                    *counts.entry((gpu.state.name(), gpu.health.name())).or_insert(0.0) += 1.0;
                }
                for ((state, health), count) in counts {
                    to.observe(count, &[KeyValue::new("state", state), KeyValue::new("health", health)]);
                }
            });
        });
        let me = self.clone();
        observe(&names::HW_STATUS, move |to| {
            me.with(|gpus| {
                for gpu in gpus.values() {
                    for state in ["ok", "degraded", "failed"] {
                        let is = if status(gpu) == state { 1.0 } else { 0.0 };
                        let [id, kind] = hardware(gpu);
                        to.observe(is, &[id, kind, KeyValue::new(names::HW_STATE, state)]);
                    }
                }
            });
        });
        let me = self.clone();
        observe(&names::HW_GPU_MEMORY_LIMIT, move |to| {
            me.with(|gpus| {
                for gpu in gpus.values() {
                    if let Some(bytes) = gpu.survey.vram_bytes {
                        let [id, kind] = hardware(gpu);
                        let model = KeyValue::new(names::HW_MODEL, gpu.survey.model.to_string());
                        to.observe(number(bytes), &[id, kind, model]);
                    }
                }
            });
        });
    }

    fn with(&self, tell: impl FnOnce(&BTreeMap<DeviceAddress, ObservedGpu>)) {
        tell(&self.0.gpus.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[expect(clippy::cast_precision_loss, reason = "no card has 2^53 bytes of memory")]
fn number(bytes: u64) -> f64 {
    bytes as f64
}

fn hardware(gpu: &ObservedGpu) -> [KeyValue; 2] {
    [KeyValue::new(names::HW_ID, gpu.address.to_string()), KeyValue::new(names::HW_TYPE, "gpu")]
}

/// A GPU's state in the words of OpenTelemetry's hardware conventions.
fn status(gpu: &ObservedGpu) -> &'static str {
    match (&gpu.health, &gpu.state) {
        (GpuHealth::Quarantined(_), _) | (_, GpuState::Missing | GpuState::Stale { .. }) => "failed",
        (GpuHealth::NeedsHostReboot, _) | (_, GpuState::Unknown) => "degraded",
        (GpuHealth::Ok, GpuState::Host { .. } | GpuState::Pooled | GpuState::Attached { .. }) => "ok",
    }
}
