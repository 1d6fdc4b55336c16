//! Cordons, and why a GPU is not available.

use super::{At, FromWire, readable, text, timestamp};
use crate::{store, v1};
use berth_model::drift::Difference;
use berth_model::node::Cordon;
use berth_model::reason::{Term, Unavailable};

readable!(v1::Cordon => Cordon, store::v1::Cordon => Cordon);

macro_rules! cordon {
    ($wire:ty) => {
        impl From<&Cordon> for $wire {
            fn from(model: &Cordon) -> Self {
                let Cordon { label, reason, since } = model;
                Self { label: text(label), reason: text(reason), since: Some(timestamp(*since)) }
            }
        }

        impl FromWire<$wire> for Cordon {
            fn read(wire: $wire, at: At<'_>) -> Option<Self> {
                let at_label = at.field("label");
                let label =
                    at_label.demand(!wire.label.is_empty(), "is empty").and_then(|()| at_label.text(wire.label));
                let reason = at.field("reason").text(wire.reason);
                let since = at.field("since").message(wire.since);
                Some(Self { label: label?, reason: reason?, since: since? })
            }
        }
    };
}
cordon!(v1::Cordon);
cordon!(store::v1::Cordon);

/// A term of availability as the wire names it.
fn term_name(term: Term) -> &'static str {
    match term {
        Term::Assignable => "assignable",
        Term::Healthy => "healthy",
        Term::Unclaimed => "unclaimed",
        Term::Uncordoned => "uncordoned",
        Term::InReach => "in_reach",
        Term::NodeReady => "node_ready",
    }
}

impl From<&Unavailable> for v1::Unavailable {
    fn from(model: &Unavailable) -> Self {
        Self { reason: model.name().to_owned(), term: term_name(model.term()).to_owned(), text: model.to_string() }
    }
}

impl From<&Difference> for v1::Difference {
    fn from(model: &Difference) -> Self {
        let Difference { node, kind, device, vm, placement, since, seen } = model;
        Self {
            node: node.to_string(),
            kind: kind.name().to_owned(),
            device: device.as_ref().map(ToString::to_string).unwrap_or_default(),
            vm_id: vm.as_ref().map(ToString::to_string).unwrap_or_default(),
            placement: placement.as_ref().map(ToString::to_string).unwrap_or_default(),
            since: since.map(timestamp),
            seen: text(seen),
            remedy: text(&model.remedy()),
        }
    }
}
