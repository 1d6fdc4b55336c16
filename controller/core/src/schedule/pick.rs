//! Which GPUs of one node: on one NUMA node, whole cards together, those in the pool first.

use crate::world::Gpu;
use berth_model::gpu::{GpuState, MmioSize};
use berth_model::mmio;
use berth_model::pci::{BusAddress, DeviceAddress};
use berth_model::reason::Rejection;
use berth_model::request::Locality;
use std::collections::BTreeMap;

/// How a choice of GPUs came out; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    /// NUMA nodes beyond the first; GPUs whose NUMA node is unknown count as one of their own.
    pub(super) extra_numa: u32,
    /// Cards of which only a part of what is available is taken.
    pub(super) split_cards: u32,
    /// GPUs the host must give up first; those in the pool are ready.
    pub(super) in_host: u32,
}

/// A card by reference: what [`DeviceAddress::card`] tells apart, without making a text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum CardRef<'a> {
    /// Location path up to the function of its last segment.
    Path(&'a str),
    Bus(BusAddress),
}

fn card(address: &DeviceAddress) -> CardRef<'_> {
    match address {
        DeviceAddress::Location(path) => {
            let text = path.as_str();
            CardRef::Path(&text[..text.len().saturating_sub("FF)".len())])
        }
        DeviceAddress::Bus(bus) => CardRef::Bus(BusAddress { function: 0, ..*bus }),
    }
}

fn in_host(gpu: &Gpu) -> bool {
    gpu.observed.state != GpuState::Pooled
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

/// Chooses `wanted` of the available GPUs of one node and model, in order of address. `cap_bytes` bounds the address
/// space of one VM.
pub(super) fn pick<'a>(
    available: &[&'a Gpu],
    wanted: u32,
    locality: Locality,
    cap_bytes: Option<u64>,
) -> Result<Vec<&'a Gpu>, Rejection> {
    let take = wanted as usize;
    let mut numa: BTreeMap<Option<u16>, Vec<&'a Gpu>> = BTreeMap::new();
    for gpu in available {
        numa.entry(gpu.observed.survey.numa_node).or_default().push(gpu);
    }
    let mut groups: Vec<(Option<u16>, Vec<&'a Gpu>)> = numa.into_iter().collect();
    let local = |numa: Option<u16>| numa.is_some() || take == 1;
    let required = take > 1 && locality == Locality::Required;
    if required && !groups.iter().any(|(numa, gpus)| local(*numa) && gpus.len() >= take) {
        let best = groups.iter().filter(|(numa, _)| local(*numa)).map(|(_, gpus)| count(gpus)).max();
        return Err(Rejection::NotOneNuma { best: best.unwrap_or(0) });
    }
    let fits = |gpus: &[&Gpu]| mmio::check(&sizes(gpus), cap_bytes).is_ok();

    // The tightest NUMA node that holds all of them, then, unless forbidden, as few NUMA nodes as possible.
    groups.sort_by_key(|(numa, gpus)| (!local(*numa), gpus.len(), *numa));
    let mut chosen = groups
        .iter()
        .filter(|(numa, gpus)| local(*numa) && gpus.len() >= take)
        .map(|(_, g)| cards(g, take))
        .find(|c| fits(c));
    if chosen.is_none() && !required {
        groups.sort_by_key(|(numa, gpus)| (numa.is_none(), std::cmp::Reverse(gpus.len()), *numa));
        let mut over = Vec::with_capacity(take);
        for (_, gpus) in &groups {
            over.extend(cards(gpus, gpus.len().min(take - over.len())));
        }
        chosen = Some(over).filter(|c| fits(c));
    }
    // Only address space stands in the way: the smallest windows are the best that can be had.
    let chosen = match chosen {
        Some(chosen) => chosen,
        None => {
            let smallest = |gpus: &[&'a Gpu]| {
                let mut gpus = gpus.to_vec();
                gpus.sort_by_key(|gpu| (gpu.observed.survey.mmio.high_bytes, &gpu.observed.address));
                gpus.truncate(take);
                gpus
            };
            let choices: Vec<Vec<&Gpu>> = if required {
                groups.iter().filter(|(n, g)| local(*n) && g.len() >= take).map(|(_, g)| smallest(g)).collect()
            } else {
                vec![smallest(available)]
            };
            let least = choices.into_iter().min_by_key(|gpus| high_bytes(gpus)).unwrap_or_default();
            if let (Some(gpu), Err(excess)) = (least.first(), mmio::check(&sizes(&least), cap_bytes)) {
                return Err(Rejection::Mmio { gpus: wanted, model: gpu.model().clone(), excess });
            }
            least
        }
    };
    let mut chosen = chosen;
    chosen.sort_by(|a, b| a.observed.address.cmp(&b.observed.address));
    Ok(chosen)
}

fn sizes(gpus: &[&Gpu]) -> Vec<MmioSize> {
    gpus.iter().map(|gpu| gpu.observed.survey.mmio).collect()
}

fn high_bytes(gpus: &[&Gpu]) -> u64 {
    mmio::required_high(&sizes(gpus))
}

/// Whether a node could ever give a VM `wanted` of these GPUs of one model, all of them being free: address space is the
/// one thing that waiting does not bring.
pub(super) fn ever(gpus: &[&Gpu], wanted: u32, cap_bytes: Option<u64>) -> Result<(), Rejection> {
    let mut sizes = sizes(gpus);
    sizes.sort_unstable_by_key(|size| (size.high_bytes, size.low_bytes));
    sizes.truncate(wanted as usize);
    match (gpus.first(), mmio::check(&sizes, cap_bytes)) {
        (Some(gpu), Err(excess)) => Err(Rejection::Mmio { gpus: wanted, model: gpu.model().clone(), excess }),
        (Some(_) | None, Ok(())) | (None, Err(_)) => Ok(()),
    }
}

/// Takes `wanted` GPUs, whole cards as far as they go, and splits the smallest card that must be split.
fn cards<'a>(gpus: &[&'a Gpu], wanted: usize) -> Vec<&'a Gpu> {
    if gpus.len() <= wanted {
        return gpus.to_vec();
    }
    let mut cards: Vec<(CardRef<'a>, Vec<&'a Gpu>)> = Vec::with_capacity(gpus.len());
    for gpu in gpus {
        let key = card(&gpu.observed.address);
        match cards.iter_mut().find(|(k, _)| *k == key) {
            Some((_, members)) => members.push(gpu),
            None => cards.push((key, vec![gpu])),
        }
    }
    for (_, members) in &mut cards {
        members.sort_by_key(|gpu| (in_host(gpu), &gpu.observed.address));
    }
    let mut taken = Vec::with_capacity(wanted);
    while taken.len() < wanted && !cards.is_empty() {
        let missing = wanted - taken.len();
        let best = cards.iter().enumerate().min_by_key(|(_, (key, members))| {
            let size = members.len();
            // A card that fits whole, the larger the better; else the smallest to split.
            let fit = if size <= missing { (0, missing - size) } else { (1, size) };
            (fit, members.iter().filter(|gpu| in_host(gpu)).count(), *key)
        });
        let Some((at, _)) = best else { break };
        let (_, members) = cards.swap_remove(at);
        taken.extend(members.into_iter().take(missing));
    }
    taken
}

/// How well these GPUs were chosen from the available ones.
pub(super) fn shape(chosen: &[&Gpu], available: &[&Gpu]) -> Shape {
    let mut numa: Vec<Option<u16>> = chosen.iter().map(|gpu| gpu.observed.survey.numa_node).collect();
    numa.sort_unstable();
    numa.dedup();
    let split = if chosen.len() == available.len() {
        0
    } else {
        let mut split: Vec<CardRef<'_>> = available
            .iter()
            .filter(|gpu| !chosen.iter().any(|taken| std::ptr::eq(*taken, **gpu)))
            .map(|gpu| card(&gpu.observed.address))
            .filter(|left| chosen.iter().any(|taken| card(&taken.observed.address) == *left))
            .collect();
        split.sort_unstable();
        split.dedup();
        count(&split)
    };
    Shape {
        extra_numa: count(&numa).saturating_sub(1),
        split_cards: split,
        in_host: count(&chosen.iter().filter(|gpu| in_host(gpu)).collect::<Vec<_>>()),
    }
}
