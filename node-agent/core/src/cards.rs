//! Facts about cards that a host without a GPU driver cannot tell: memory and address windows by PCI id.
//!
//! A card whose memory or windows no source gives is left out (Tesla P40 and M60, AMD's and Intel's): its host measures
//! it, or it is not measured.
//!
//! Sources: PCI ids from the public pci.ids; windows from published `lspci` listings and installation reports, else
//! inferred from the memory size (the window is the memory size rounded up to a power of two). What was not seen on a
//! real card says so in [`Card::proven`]. What a host measures itself always goes before this table.

use berth_model::ModelName;
use berth_model::gpu::MmioSize;
use berth_model::pci::PciId;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// One model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name in Berth.
    pub model: &'static str,
    /// What its GPU says it is; the subsystem where it is needed to tell boards apart, and known.
    pub id: PciId,
    /// Memory of one GPU, in bytes.
    pub vram_bytes: u64,
    /// Sum of the 32-bit memory windows of one GPU, in bytes.
    pub low_bytes: u64,
    /// Sum of the 64-bit memory windows of one GPU, in bytes.
    pub high_bytes: u64,
    /// GPUs on one board.
    pub gpus_per_board: u8,
    /// Whether the windows were seen on a real card rather than inferred.
    pub proven: bool,
}

impl Card {
    /// Address space of one GPU.
    pub fn mmio(&self) -> MmioSize {
        MmioSize { low_bytes: self.low_bytes, high_bytes: self.high_bytes }
    }
}

const fn nvidia(device: u16, board: Option<u16>) -> PciId {
    let subsystem = match board {
        Some(board) => Some((0x10de, board)),
        None => None,
    };
    PciId { vendor: 0x10de, device, subsystem }
}

/// A card with the usual windows: 16 MiB of registers below 4 GiB; above, the memory aperture and 32 MiB.
const fn card(model: &'static str, id: PciId, vram_gib: u64, aperture_gib: u64, proven: bool) -> Card {
    Card {
        model,
        id,
        vram_bytes: vram_gib * GIB,
        low_bytes: 16 * MIB,
        high_bytes: aperture_gib * GIB + 32 * MIB,
        gpus_per_board: 1,
        proven,
    }
}

/// Every known model, by name. `G2` and `G3` are models whose maker the public openb traces keep secret: entries of
/// ordinary size, with ids no vendor uses.
pub const CARDS: [Card; 20] = [
    card("A10", nvidia(0x2236, None), 24, 32, false),
    card("A100", nvidia(0x20f1, None), 40, 64, false),
    card("A100M80", nvidia(0x20b5, None), 80, 128, false),
    card("A100SXM80", nvidia(0x20b2, None), 80, 128, true),
    Card { gpus_per_board: 4, ..card("A16", nvidia(0x25b6, Some(0x14a9)), 16, 16, false) },
    card("A2", nvidia(0x25b6, Some(0x157e)), 16, 16, false),
    card("A30", nvidia(0x20b7, None), 24, 32, true),
    card("A40", nvidia(0x2235, None), 48, 64, false),
    card("G2", PciId { vendor: 0xfff0, device: 0x0002, subsystem: None }, 16, 16, false),
    card("G3", PciId { vendor: 0xfff0, device: 0x0003, subsystem: None }, 32, 32, false),
    card("H100", nvidia(0x2331, Some(0x1626)), 80, 128, false),
    // Read from a real card's configuration space: its 16 MiB of registers lie above 4 GiB, unlike older cards'.
    Card {
        low_bytes: 0,
        high_bytes: 128 * GIB + 48 * MIB,
        ..card("H100SXM", nvidia(0x2330, Some(0x16c1)), 80, 128, true)
    },
    card("L4", nvidia(0x27b8, None), 24, 32, false),
    card("L40", nvidia(0x26b5, None), 48, 64, false),
    card("L40S", nvidia(0x26b9, None), 48, 64, true),
    // Installations show 32 GiB or 16 GiB; the larger is assumed, for a VM with too little does not start.
    card("P100", nvidia(0x15f8, None), 16, 32, false),
    card("RTX6000Ada", nvidia(0x26b1, None), 48, 64, true),
    card("T4", nvidia(0x1eb8, None), 16, 16, false),
    card("V100M16", nvidia(0x1db4, None), 16, 16, false),
    card("V100M32", nvidia(0x1db6, None), 32, 32, true),
];

/// What to assume of a model that is not in the table: a card of ordinary size.
pub const GENERIC: Card = card("GPU", PciId { vendor: 0xfff0, device: 0x0001, subsystem: None }, 16, 16, false);

/// The card of a model.
pub fn by_model(model: &ModelName) -> Option<&'static Card> {
    CARDS.iter().find(|card| card.model == model.as_str())
}

/// The card with an id. An id that carries a subsystem which the table knows for another board is another board.
pub fn by_id(id: &PciId) -> Option<&'static Card> {
    let same_chip = |card: &&Card| card.id.vendor == id.vendor && card.id.device == id.device;
    let exact =
        CARDS.iter().filter(same_chip).find(|card| card.id.subsystem.is_some() && card.id.subsystem == id.subsystem);
    exact.or_else(|| {
        let mut boards = CARDS.iter().filter(same_chip);
        // Several boards share the chip: without a known subsystem nobody can say which it is.
        boards.next().filter(|_| boards.next().is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_found_by_name_and_by_id() {
        for card in &CARDS {
            assert_eq!(by_model(&card.model.parse().unwrap()), Some(card));
            assert_eq!(by_id(&card.id), Some(card), "{}", card.model);
        }
        assert_eq!(by_model(&"B200".parse().unwrap()), None);
    }

    #[test]
    fn boards_with_one_chip_are_told_apart_by_subsystem_only() {
        let model = |id: &str| by_id(&id.parse().unwrap()).map(|card| card.model);
        assert_eq!(model("10de:25b6:10de:157e"), Some("A2"));
        assert_eq!(model("10de:25b6:10de:14a9"), Some("A16"));
        assert_eq!(model("10de:25b6"), None);
        assert_eq!(model("10de:25b6:1028:0001"), None);
        assert_eq!(model("10de:20b7:1028:0001"), Some("A30"), "only one board has that chip");
        assert_eq!(model("1002:744c"), None);
    }

    #[test]
    fn the_table_is_in_order_and_windows_hold_the_memory() {
        assert!(CARDS.is_sorted_by(|a, b| a.model < b.model));
        for card in &CARDS {
            assert!(card.high_bytes > card.vram_bytes.next_power_of_two(), "{}", card.model);
        }
    }
}
