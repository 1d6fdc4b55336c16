//! Request and world to a choice, or to the reasons why not.
//!
//! Owns where a placement goes: which node, which GPUs there, and the explanation when nothing fits. Must never change
//! the world or read a clock; equal world and request, equal answer. The order of work is fixed: names are resolved
//! (`ask`), nodes pass `filter`s or fall to a typed rejection, `pick` chooses GPUs inside a node, `score` orders
//! what is left, and `search` finds the best by the world's index without walking over all nodes.

mod ask;
pub mod capacity;
mod explain;
mod filter;
mod pick;
mod score;
mod search;

use crate::world::World;
use ask::Ask;
use berth_model::Timestamp;
use berth_model::placement::Assignment;
use berth_model::reason::Refusal;
use berth_model::request::PlacementRequest;
use std::fmt;

pub use capacity::{Limit, ModelCapacity, Planned, Slots, capacity, plan};

/// Decides where a request goes now.
///
/// # Errors
/// A name nobody knows, a VM that cannot be meant or moved, or [`Refusal::NotPlaceable`] with its explanation. Only the
/// explanation costs time in proportion to the number of nodes.
pub fn schedule(world: &World, request: &PlacementRequest, now: Timestamp) -> Result<Assignment, Refusal> {
    let ask = Ask::new(world, request)?;
    match search::best(world, &ask) {
        Some(choice) => Ok(choice.assignment(now)),
        None => Err(Refusal::NotPlaceable(Box::new(explain::explain(world, &ask)))),
    }
}

/// As [`schedule`], but without an explanation when nothing fits: for looking again at what waits.
///
/// # Errors
/// As [`schedule`], never [`Refusal::NotPlaceable`].
pub fn find(world: &World, request: &PlacementRequest, now: Timestamp) -> Result<Option<Assignment>, Refusal> {
    let ask = Ask::new(world, request)?;
    Ok(search::best(world, &ask).map(|choice| choice.assignment(now)))
}

/// The known name most like `wanted`, if one is near enough to be a slip: at most a third of its letters differ.
pub fn nearest<'a, T: fmt::Display>(wanted: &str, known: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let wanted = wanted.to_lowercase();
    let most = (wanted.chars().count() / 3).max(1);
    known
        .map(|name| (strsim::osa_distance(&wanted, &name.to_string().to_lowercase()), name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_a_slip_away_or_none() {
        let known = ["hv-01".to_owned(), "hv-02".to_owned(), "render".to_owned()];
        let near = |wanted: &str| nearest(wanted, known.iter()).map(String::as_str);
        assert_eq!(near("HV-02"), Some("hv-02"));
        assert_eq!(near("redner"), Some("render"));
        assert_eq!(near("storage"), None);
    }
}
