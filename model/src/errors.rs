//! What a host's errors mean and what to do about them: the one table, for the driver that classes them and for people.
//!
//! Owns the sentences; `docs/errors.md` is written from it. Sources are Microsoft's documentation and public reports; what
//! nobody has proven says so, and nothing is decided by it. Texts of a host are in its own language, so that an entry
//! known by its English text explains where that text is, and decides nothing.

use crate::placement::StepErrorClass;
use std::fmt::Write as _;

/// By what an error is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A number of 32 bits: an HRESULT, or a hypervisor's status, in the text or beside it.
    Number(u32),
    /// The end of PowerShell's `FullyQualifiedErrorId`.
    ErrorId(&'static str),
    /// A part of the English text.
    Text(&'static str),
    /// Windows' problem code of a device.
    Problem(u32),
}

/// How far an entry can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Documented, or seen with its cause in a published report.
    Seen,
    /// Concluded from what was seen.
    Inferred,
    /// General knowledge: to be proven on real hardware.
    Unproven,
}

impl Trust {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Inferred => "inferred",
            Self::Unproven => "not proven",
        }
    }
}

/// One error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// By what it is known.
    pub key: Key,
    /// Where it shows.
    pub place: &'static str,
    /// What it says, or what it is called.
    pub says: &'static str,
    /// Why it comes about.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// How far that can be trusted.
    pub trust: Trust,
    /// How the driver classes a step that failed with it, where that is known: `Forbidden` is not tried again.
    pub class: Option<StepErrorClass>,
}

const fn entry(
    key: Key,
    place: &'static str,
    says: &'static str,
    cause: &'static str,
    remedy: &'static str,
    trust: Trust,
) -> Entry {
    Entry { key, place, says, cause, remedy, trust, class: None }
}

const fn problem(code: u32, says: &'static str, cause: &'static str, remedy: &'static str, trust: Trust) -> Entry {
    entry(Key::Problem(code), "device", says, cause, remedy, trust)
}

/// All of them.
pub const ENTRIES: [Entry; 23] = [
    Entry {
        class: Some(StepErrorClass::Forbidden),
        ..entry(
            Key::Number(0xC035_001E),
            "starting a VM",
            "A hypervisor feature is not available to the user.",
            "The host is a client edition of Windows, which gives no devices to VMs; or the hypervisor's IOMMU policy is off; or \
             firmware does not show access control (ACS).",
            "Use a server edition; where it is one: `bcdedit /set hypervisoriommupolicy enable`, restart the host, and turn on \
             VT-d or AMD-Vi and ACS in firmware.",
            Trust::Seen,
        )
    },
    entry(
        Key::Number(0x8007_0490),
        "starting a VM",
        "Element not found.",
        "The VM's configuration names a device that is gone: the card was taken out or moved to another slot.",
        "Remove the stale record (`berth get drift` names it), or put the card back where it was.",
        Trust::Unproven,
    ),
    entry(
        Key::Text("Element not found"),
        "starting a VM",
        "Virtual PCI Express Port … Element not found",
        "The VM's configuration names a device that is gone: the card was taken out or moved to another slot.",
        "Remove the stale record (`berth get drift` names it), or put the card back where it was.",
        Trust::Seen,
    ),
    entry(
        Key::Number(0x8007_05AA),
        "starting a VM",
        "Insufficient system resources exist to complete the requested service.",
        "The VM's address space for devices is too small or larger than the host allows, the edition of Windows is a client's, or \
         the device itself.",
        "Compare what the VM has with `berth describe placement`; if the host allows less, write what it allows into \
         hyperv.mmio_high_cap_mib.",
        Trust::Unproven,
    ),
    entry(
        Key::Text("Insufficient system resources"),
        "starting a VM",
        "Insufficient system resources exist to complete the requested service.",
        "The VM's address space for devices is too small or larger than the host allows, the edition of Windows is a client's, or \
         the device itself.",
        "Compare what the VM has with `berth describe placement`; if the host allows less, write what it allows into \
         hyperv.mmio_high_cap_mib.",
        Trust::Seen,
    ),
    entry(
        Key::Text("has not supplied any directives for securing this device"),
        "dismounting",
        "The manufacturer of this device has not supplied any directives for securing this device while exposing it to a \
         virtual machine.",
        "No mitigation driver for this device is installed on the host.",
        "Install the vendor's mitigation INF (`pnputil /add-driver … /install`); or, where every tenant is trusted, set \
         hyperv.force for this node: each use is recorded.",
        Trust::Seen,
    ),
    entry(
        Key::Text("does not allow for OS control of the PCI Express bus"),
        "dismounting",
        "The current configuration does not allow for OS control of the PCI Express bus. Please check your BIOS or UEFI \
         settings.",
        "Firmware keeps control of PCI Express (_OSC).",
        "Let firmware give it to the system (native PCIe control, SR-IOV, Above 4G Decoding), update firmware. Force does not \
         help.",
        Trust::Seen,
    ),
    entry(
        Key::Text("was not found on server"),
        "attaching",
        "The specified device '…' was not found on server '…'.",
        "The device is not dismounted, or its registration lags behind.",
        "Nothing: the agent looks again, dismounts it and tries again.",
        Trust::Seen,
    ),
    entry(
        Key::Text("RequireSecureDeviceAssignment"),
        "starting a VM",
        "… not compliant with currently set group policy. See HyperV\\RequireSecureDeviceAssignment and \
         HyperV\\RequireSupportedDeviceAssignment for more details.",
        "A policy of the host wants devices whose driver is flagged secure and supported.",
        "Ask whoever set the policy (HKLM\\SOFTWARE\\Policies\\Microsoft\\Windows\\HyperV): 0 turns it off and gives up a \
         safeguard. Seen with partitioned GPUs; with whole ones it is not proven.",
        Trust::Inferred,
    ),
    Entry {
        class: Some(StepErrorClass::NotThere),
        ..entry(
            Key::ErrorId("InvalidParameter,Microsoft.HyperV.PowerShell.Commands.GetVM"),
            "any step about a VM",
            "Hyper-V was unable to find a virtual machine with name \"…\".",
            "The VM is not on this host: deleted, or moved to another one.",
            "Look where it is (`berth get vms`); if it is gone for good, release its placement.",
            Trust::Seen,
        )
    },
    Entry {
        class: Some(StepErrorClass::NotThere),
        ..entry(
            Key::ErrorId("ObjectNotFound,Microsoft.HyperV.PowerShell.Commands.RemoveVM"),
            "any step about a VM",
            "Hyper-V was unable to find a virtual machine with name \"…\".",
            "The VM is not on this host: deleted, or moved to another one.",
            "Look where it is (`berth get vms`); if it is gone for good, release its placement.",
            Trust::Seen,
        )
    },
    entry(
        Key::Text("because the object was not found"),
        "any step",
        "Hyper-V encountered an error trying to access an object on computer '…' because the object was not found.",
        "A race with another change, too few rights, or the management service (vmms) is down.",
        "The agent tries again. If it goes on: Get-Service vmms, and whether the agent runs as an administrator.",
        Trust::Seen,
    ),
    entry(
        Key::Text("has a saved state"),
        "preparing or stopping a VM",
        "VM … has a saved state that would be lost (Berth's own words)",
        "A VM with a device can be neither saved nor restored, and to turn a saved one off throws its memory away.",
        "Start it and shut its guest down, or throw the state away (`Remove-VMSavedState`); then place or release it again. \
         Berth never does either.",
        Trust::Seen,
    ),
    entry(
        Key::Text("that hold a saved state"),
        "preparing a VM",
        "VM … has … checkpoints that hold a saved state (Berth's own words)",
        "A standard checkpoint of a running VM holds its memory. To go back to it would bring back a machine without the \
         device.",
        "Delete those checkpoints (`Get-VMSnapshot`, those whose `State` is `Saved`; `Remove-VMSnapshot`), then place it again. \
         Production checkpoints and those of a VM that was off may stay.",
        Trust::Seen,
    ),
    problem(
        10,
        "cannot start",
        "The driver could not start the device.",
        "On the host: Device Manager, and its driver's log; in a guest: another driver.",
        Trust::Seen,
    ),
    problem(
        12,
        "not enough free resources",
        "In a guest: the VM has too little address space for the device.",
        "Compare with `berth describe placement`, which says how much it needs.",
        Trust::Inferred,
    ),
    problem(
        14,
        "needs a restart",
        "The device works only after the system was restarted.",
        "Restart the host; until then Berth does not hand it out.",
        Trust::Seen,
    ),
    problem(
        22,
        "disabled",
        "Somebody, or Berth on its way, disabled the device.",
        "If `berth get drift` says that it is nobody's: Enable-PnpDevice.",
        Trust::Seen,
    ),
    problem(
        24,
        "not present",
        "The device is not there, or not all of its driver is.",
        "Look whether the card sits in its slot.",
        Trust::Seen,
    ),
    problem(
        28,
        "no driver installed",
        "The host has no driver for it, which giving it to a VM does not need.",
        "Nothing on a host whose GPUs are for VMs; in a guest: install the vendor's driver.",
        Trust::Seen,
    ),
    problem(
        31,
        "driver cannot be loaded",
        "Windows cannot load the drivers that the device needs.",
        "In a guest: another driver; a supported card.",
        Trust::Seen,
    ),
    problem(
        43,
        "stopped by its driver",
        "The driver refuses the card: a consumer card in a VM, or a partitioned GPU beside a whole one.",
        "A supported card and driver; not both kinds of GPU in one VM.",
        Trust::Inferred,
    ),
    problem(
        45,
        "not connected",
        "A phantom: what is remembered of a device that is dismounted or taken out.",
        "Nothing.",
        Trust::Unproven,
    ),
];

/// Where to look for what is not in the table.
pub const ELSEWHERE: &str = "not in Berth's table; look on the host: Get-WinEvent -LogName \
                             Microsoft-Windows-Hyper-V-Worker-Admin and Microsoft-Windows-Hyper-V-VMMS-Admin";

/// The entry of a number.
pub fn by_number(number: u32) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.key == Key::Number(number))
}

/// The entry of a device's problem code.
pub fn by_problem(code: u32) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.key == Key::Problem(code))
}

/// The entry of PowerShell's id of an error.
pub fn by_error_id(id: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| matches!(entry.key, Key::ErrorId(end) if id.ends_with(end)))
}

/// Numbers of the form `0x` and eight hexadecimal digits that stand in a text, in order.
pub fn numbers(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("0x") {
        let digits = text.get(at + 2..at + 10).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let whole = text.get(at + 10..).is_none_or(|rest| !rest.starts_with(|c: char| c.is_ascii_hexdigit()));
        if let Some(number) = digits.filter(|_| whole).and_then(|digits| u32::from_str_radix(digits, 16).ok())
            && !found.contains(&number)
        {
            found.push(number);
        }
    }
    found
}

/// What an error's text is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is in the table.
    Known(&'static Entry),
    /// A number that is not.
    Number(u32),
}

/// What stands in an error's text, numbers before words, each meaning once. What no entry knows is told as it is.
pub fn meanings(text: &str) -> Vec<Meaning> {
    let mut found: Vec<Meaning> = Vec::new();
    let same = |found: &[Meaning], entry: &Entry| {
        found.iter().any(|known| matches!(known, Meaning::Known(known) if known.cause == entry.cause))
    };
    // HRESULTs that only say that it failed, or that something was wrong with it, explain nothing, nor are they worth looking
    // up: E_FAIL and E_INVALIDARG come with nearly every error of Hyper-V's cmdlets.
    const GENERAL: [u32; 2] = [0x8000_4005, 0x8007_0057];
    for number in numbers(text).into_iter().filter(|number| !GENERAL.contains(number)) {
        match by_number(number) {
            Some(entry) if same(&found, entry) => {}
            Some(entry) => found.push(Meaning::Known(entry)),
            None => found.push(Meaning::Number(number)),
        }
    }
    for entry in &ENTRIES {
        let here = match entry.key {
            Key::Text(part) => text.contains(part),
            Key::ErrorId(id) => text.contains(id),
            Key::Number(_) | Key::Problem(_) => false,
        };
        if here && !same(&found, entry) {
            found.push(Meaning::Known(entry));
        }
    }
    found
}

/// How a step's error is classed by what is known of it. Nothing unproven and nothing in the host's language decides.
pub fn class(error_id: &str, numbers: impl IntoIterator<Item = u32>) -> Option<StepErrorClass> {
    let by_numbers = numbers.into_iter().filter_map(by_number).find_map(proven_class);
    by_numbers.or_else(|| by_error_id(error_id).and_then(proven_class))
}

fn proven_class(entry: &'static Entry) -> Option<StepErrorClass> {
    entry.class.filter(|_| entry.trust == Trust::Seen)
}

/// The page `docs/errors.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Errors of a host, what they mean and what to do\n\n\
         Written from the table in `model/src/errors.rs`; a test holds both together. The driver for Hyper-V classes errors by it, \
         and `berth describe placement` and `berth describe gpu` show it beside the host's own words. Texts are the host's, in \
         its language: an entry that is known by its English text explains and decides nothing.\n\n\
         *seen*: documented, or published with its cause. *inferred*: concluded from that. *not proven*: to be proven on real \
         hardware; Berth decides nothing by it.\n\n## Errors of a step\n",
    );
    let of_steps = ENTRIES.iter().filter(|entry| !matches!(entry.key, Key::Problem(_)));
    for entry in of_steps {
        let key = match entry.key {
            Key::Number(number) => format!("`0x{number:08X}`"),
            Key::ErrorId(id) => format!("`{id}`"),
            Key::Text(_) | Key::Problem(_) => "by its text".to_owned(),
        };
        let retry = match entry.class {
            Some(StepErrorClass::Forbidden) => " The agent does not try again.",
            Some(_) | None => "",
        };
        let Entry { place, says, cause, remedy, trust, .. } = entry;
        let trust = trust.words();
        // Writing to a string cannot fail.
        let _infallible = write!(
            page,
            "\n**{says}**\n\n- {key}, when {place}; {trust}\n- Cause: {cause}\n- To do: {remedy}{retry}\n"
        );
    }
    page.push_str("\n## Problem codes of a device\n\n| code | | cause | to do | |\n|---|---|---|---|---|\n");
    for entry in &ENTRIES {
        if let Key::Problem(code) = entry.key {
            let Entry { says, cause, remedy, trust, .. } = entry;
            let _infallible = writeln!(page, "| {code} | {says} | {cause} | {remedy} | {} |", trust.words());
        }
    }
    let _infallible = write!(page, "\nAny other number is shown as it is: {ELSEWHERE}.\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect_file;

    /// `UPDATE_EXPECT=1 cargo test -p berth-model errors` writes it anew.
    #[test]
    fn the_page_is_what_the_table_says() {
        expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md")].assert_eq(&page());
    }

    #[test]
    fn no_two_entries_are_known_by_the_same() {
        for (at, entry) in ENTRIES.iter().enumerate() {
            assert!(ENTRIES[at + 1..].iter().all(|other| other.key != entry.key), "{:?}", entry.key);
            let whole = [entry.place, entry.says, entry.cause, entry.remedy];
            assert!(whole.iter().all(|text| !text.is_empty() && !text.contains('|')), "{entry:?}");
        }
    }

    #[test]
    fn numbers_are_found_wherever_they_stand_and_only_whole_ones() {
        assert_eq!(
            numbers("Failed to Power on (0xC035001E). [0x80004005 OperationFailed,X]"),
            [0xC035_001E, 0x8000_4005]
        );
        assert_eq!(numbers("0xC035001E and 0xc035001e"), [0xC035_001E]);
        assert!(numbers("0x802000000 of high MMIO, 0x12, 0x, 0xÄÄÄÄÄÄÄÄ").is_empty());
    }

    #[test]
    fn an_error_is_explained_once_and_an_unknown_number_is_told() {
        let known = |text: &str| -> Vec<String> {
            let told = |meaning: Meaning| match meaning {
                Meaning::Known(entry) => entry.says.chars().take(20).collect(),
                Meaning::Number(number) => format!("{number:#x}"),
            };
            meanings(text).into_iter().map(told).collect()
        };
        assert_eq!(known("Start-VM: … (0xC035001E) [0x80004005 OperationFailed,X]"), ["A hypervisor feature"]);
        assert_eq!(known("Virtual PCI Express Port: Element not found (0x80070490)"), ["Element not found."]);
        assert_eq!(known("no more (0x80070718)"), ["0x80070718"]);
        assert!(known("the guest does not show the GPUs as wanted").is_empty());
        // In another language only the number tells.
        assert_eq!(known("Das Element wurde nicht gefunden. (0x80070490)"), ["Element not found."]);
    }

    #[test]
    fn only_what_is_proven_decides() {
        assert_eq!(class("", [0xC035_001E]), Some(StepErrorClass::Forbidden));
        assert_eq!(class("", [0x8007_0490, 0x8007_05AA]), None, "not proven");
        let id = "InvalidParameter,Microsoft.HyperV.PowerShell.Commands.GetVM";
        assert_eq!(class(id, []), Some(StepErrorClass::NotThere));
        assert_eq!(class("InvalidParameter,Microsoft.HyperV.PowerShell.Commands.SetVM", [0]), None);
        for entry in ENTRIES.iter().filter(|entry| entry.class.is_some()) {
            assert!(entry.trust == Trust::Seen && !matches!(entry.key, Key::Text(_)), "{entry:?}");
        }
    }
}
