//! Why a node was passed over, and what came nearest.

use super::unavailable::{Unavailable, join};
use crate::id::{ModelName, NodeName};
use crate::mmio::Excess;
use crate::pci::DeviceAddress;
use std::fmt;

/// Why a node was passed over: the first rule that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request names another node.
    OtherNode,
    /// The request excludes this node.
    ExcludedNode,
    /// The request names another cluster.
    OtherCluster,
    /// The VM exists already, on another node.
    VmElsewhere {
        /// Where.
        node: NodeName,
    },
    /// The node as a whole takes nothing now.
    NotReady(Unavailable),
    /// It has no GPU the request would take, free or not.
    NoSuchGpu {
        /// The models it has.
        has: Vec<ModelName>,
    },
    /// It has too few of them in all.
    TooSmall {
        /// How many it has of the best model.
        has: u32,
    },
    /// It has enough, but not enough are available.
    NotEnoughFree {
        /// The model that comes nearest.
        model: ModelName,
        /// How many are available.
        available: u32,
        /// What blocks the others.
        blocked: Vec<(DeviceAddress, Unavailable)>,
    },
    /// Enough are available, but not on one NUMA node.
    NotOneNuma {
        /// Most available on one NUMA node.
        best: u32,
    },
    /// Not enough processor left.
    Cpu {
        /// Thousandths of a core left.
        left_milli: u64,
    },
    /// Not enough memory left.
    Memory {
        /// Bytes left.
        left_bytes: u64,
    },
    /// The GPUs need more address space than a VM on this host can have.
    Mmio {
        /// How many.
        gpus: u32,
        /// Of which model.
        model: ModelName,
        /// What does not fit.
        excess: Excess,
    },
}

impl Rejection {
    /// Stable name, used as a count's key and a label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OtherNode => "OtherNode",
            Self::ExcludedNode => "ExcludedNode",
            Self::OtherCluster => "OtherCluster",
            Self::VmElsewhere { .. } => "VmElsewhere",
            Self::NotReady(why) => why.name(),
            Self::NoSuchGpu { .. } => "NoSuchGpu",
            Self::TooSmall { .. } => "TooSmall",
            Self::NotEnoughFree { .. } => "NotEnoughFree",
            Self::NotOneNuma { .. } => "NotOneNuma",
            Self::Cpu { .. } => "Cpu",
            Self::Memory { .. } => "Memory",
            Self::Mmio { .. } => "Mmio",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNode => f.write_str("the request names another node"),
            Self::ExcludedNode => f.write_str("the request excludes it"),
            Self::OtherCluster => f.write_str("the request names another cluster"),
            Self::VmElsewhere { node } => write!(f, "the VM is on {node}"),
            Self::NotReady(why) => write!(f, "not ready: {why}"),
            Self::NoSuchGpu { has } if has.is_empty() => f.write_str("it has no GPU"),
            Self::NoSuchGpu { has } => {
                f.write_str("no GPU as asked for; it has ")?;
                join(f, has, ", ")
            }
            Self::TooSmall { has } => write!(f, "it has only {has} in all"),
            Self::NotEnoughFree { model, available, blocked } => {
                write!(f, "only {available} of {} {model} are available", *available as usize + blocked.len())
            }
            Self::NotOneNuma { best } => write!(f, "at most {best} are available on one NUMA node"),
            Self::Cpu { left_milli } => write!(f, "only {}.{:03} cores left", left_milli / 1000, left_milli % 1000),
            Self::Memory { left_bytes } => write!(f, "only {} MiB of memory left", left_bytes >> 20),
            Self::Mmio { gpus, model, excess: Excess { gap, needed_bytes, cap_bytes } } => write!(
                f,
                "needs {} MiB of {gap} MMIO for {gpus} × {model}, the node allows a VM {} MiB",
                needed_bytes.div_ceil(1 << 20),
                cap_bytes >> 20
            ),
        }
    }
}

/// The node that came nearest, and what would make the request fit there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestMiss {
    /// That node.
    pub node: NodeName,
    /// Why it was passed over.
    pub rejection: Rejection,
    /// What would make it fit, one thing a line.
    pub fixes: Vec<String>,
}

/// Why a request cannot be placed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// How many GPUs were asked for.
    pub gpus: u32,
    /// How many nodes were looked at.
    pub nodes: u32,
    /// How many nodes fell to each rule, most first.
    pub counts: Vec<(&'static str, u32)>,
    /// Per node the first failing rule, nearest first, at most [`Explanation::MAX_NODES`].
    pub rejected: Vec<(NodeName, Rejection)>,
    /// The nearest miss, unless there are no nodes.
    pub nearest: Option<NearestMiss>,
}

impl Explanation {
    /// How many nodes are told one by one: a screenful. The counts cover all.
    pub const MAX_NODES: usize = 32;
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no node has ever connected");
        }
        write!(
            f,
            "none of {} nodes can give {} GPU{} now (",
            self.nodes,
            self.gpus,
            if self.gpus == 1 { "" } else { "s" }
        )?;
        for (at, (name, count)) in self.counts.iter().enumerate() {
            write!(f, "{}{name}: {count}", if at > 0 { ", " } else { "" })?;
        }
        f.write_str(")")?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; nearest is {}: {}", nearest.node, nearest.rejection)?;
            if !nearest.fixes.is_empty() {
                f.write_str("; it would fit if ")?;
                join(f, &nearest.fixes, " and ")?;
            }
        }
        Ok(())
    }
}
