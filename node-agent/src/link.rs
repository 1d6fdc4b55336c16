//! What the two halves of an agent tell one another: the session what is wanted and whom to tell, the reconcile loop who
//! the host is.
//!
//! Both are values to look at, not messages to receive: whoever was busy looks later and has missed nothing that counts.

use berth_model::desired::DesiredNode;
use berth_model::inventory::InventoryReport;
use berth_model::node::{BootId, HostFacts};
use berth_model::placement::Progress;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most news that wait for a session. The start of one tells everything: the inventory and one report for each of at
/// most 64 placements; four times that is room for what happens meanwhile. A session that takes less is given up.
pub(crate) const MAX_NEWS: usize = 256;

/// What is wanted of the reconcile loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orders {
    /// The desired state last accepted, durable.
    pub(crate) desired: Option<Arc<DesiredNode>>,
    /// How often to look at the host when nothing is to be done; `None` until a controller has said.
    pub(crate) observe: Option<Duration>,
    /// Counts demands to look at once.
    pub(crate) surveys: u64,
    /// The session there is.
    pub(crate) session: Option<Talk>,
}

/// Where to send news while one session lasts.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    /// Tells one session from the next.
    pub(crate) number: u64,
    /// Takes up to [`MAX_NEWS`].
    pub(crate) news: mpsc::Sender<News>,
    /// To be cancelled when news had to be dropped: the next session tells everything again.
    pub(crate) give_up: CancellationToken,
}

/// One thing to tell the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// What is seen of the host.
    Inventory(InventoryReport),
    /// How work on a placement stands.
    Progress(Progress),
}

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its facts.
    pub(crate) facts: HostFacts,
    /// Its boot.
    pub(crate) boot: BootId,
}
