//! The brain through its only door: inputs go in, the story that follows is shown, and after every input the
//! invariants hold and the changes are what a store would take.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use berth_core::decide::{Brain, Change, Claimed, Decision, Input, Limits, MAX_GENERATION_LEAP};
use berth_core::mirror::{Mirror, SeenNode, Touched};
use berth_core::{condition, invariants};
use berth_model::gpu::*;
use berth_model::id::FleetId;
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_model::node::{BootId, HostFacts, Platform, StoredNode};
use berth_model::placement::*;
use berth_model::reason::Refusal;
use berth_model::request::{Draft, PlacementRequest, Resources};
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::*;
use expect_test::{Expect, expect};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[path = "brain/adopting.rs"]
mod adopting;
#[path = "brain/agents.rs"]
mod agents;
#[path = "brain/fixture.rs"]
mod fixture;
#[path = "brain/hosts.rs"]
mod hosts;
#[path = "brain/leaders.rs"]
mod leaders;
#[path = "brain/life.rs"]
mod life;

use fixture::*;
