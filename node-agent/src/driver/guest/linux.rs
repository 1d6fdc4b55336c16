//! What a Linux guest is asked, and what its answer means. Pure.
//!
//! The answer comes from a machine that is somebody else's: it may be anything, and as long as anybody likes. It is read
//! between marks, so that greetings of shells before it and farewells after it do no harm; between them, what has not the
//! form of `lspci` is no answer.

use berth_agent_core::guest::{Complaint, GuestView, MAX_COMPLAINTS, MAX_TEXT};
use berth_model::pci::PciId;
use std::collections::BTreeSet;

/// Longest answer that is read. A guest has some dozens of devices, of about 200 bytes each.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Most devices of one guest: a VM has some dozens at most.
const MAX_DEVICES: usize = 1024;
/// Devices of the hypervisor itself (`1414`, Microsoft) are nobody's GPU.
const HYPERVISORS: u16 = 0x1414;

/// What is run in the guest: always this, word by word, whatever is wanted of it. For any login shell, it hands over to
/// `sh`. `lspci` names devices in English everywhere and shows no secrets; of the kernel's log only lines about devices
/// are asked for, and where the log may not be read (`kernel.dmesg_restrict`) nothing is missing but hints.
///
/// The words of the kernel's lines: `drivers/pci/controller/pci-hyperv.c`, `drivers/pci/setup-res.c` (both forms of "no
/// space", before and since 6.8) and `drivers/base/dd.c` of Linux.
pub const COMMAND: &str = "exec /bin/sh -c 'LC_ALL=C; export LC_ALL; PATH=$PATH:/usr/sbin:/sbin; export PATH; \
    echo; echo berth-guest begins; \
    lspci -Dnnk </dev/null 2>/dev/null; echo berth-guest lspci $?; \
    if log=$(dmesg 2>/dev/null) || log=$(journalctl -q -k -b -o cat --no-pager -n 20000 2>/dev/null); then \
    printf \"%s\\n\" \"$log\" | grep -E \"hv_pci|BAR [0-9].*(no space|failed to assign)|probe with driver|probe of\" | tail -n 64; \
    echo berth-guest kernel 0; else echo berth-guest kernel 1; fi; \
    echo berth-guest ends'";

const BEGINS: &str = "berth-guest begins";
const LSPCI: &str = "berth-guest lspci ";
const KERNEL: &str = "berth-guest kernel ";
const ENDS: &str = "berth-guest ends";

/// The guest's answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not between the marks that belong around it: no Linux, no shell, or it was cut short.
    #[error("it does not answer as a Linux system with a shell does{}", after(.said))]
    NoAnswer {
        /// The end of what it said, made safe to show.
        said: String,
    },
    /// It has no `lspci`.
    #[error("it has no lspci: install pciutils in the guest")]
    NoLspci,
    /// `lspci` did not work.
    #[error("lspci failed there with exit code {code}{}", if *.code == 126 { ": the user may not run it" } else { "" })]
    LspciFailed {
        /// Its exit code.
        code: u8,
    },
    /// What it lists has not the form of `lspci`.
    #[error("its list of devices makes no sense: {0}")]
    BadList(String),
    /// It says too much.
    #[error("it says more than {MAX_ANSWER_BYTES} bytes")]
    TooMuch,
}

fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!("; it said: {said}") }
}

/// A stranger's words, made safe to show: the last of them.
pub(super) fn plain(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said.get(said.len().saturating_sub(4 * MAX_TEXT)..).unwrap_or_default());
    let words: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect();
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    words.get(words.len().saturating_sub(MAX_TEXT)..).unwrap_or_default().trim().to_owned()
}

/// Reads what [`COMMAND`] said.
///
/// # Errors
/// [`Unreadable`], for whoever has to put it right.
pub fn read(answer: &[u8]) -> Result<GuestView, Unreadable> {
    if answer.len() > MAX_ANSWER_BYTES {
        return Err(Unreadable::TooMuch);
    }
    let text = String::from_utf8_lossy(answer);
    let no_answer = || Unreadable::NoAnswer { said: plain(answer) };
    let mut lines = text.lines().skip_while(|line| *line != BEGINS).skip(1);
    let mut list = Vec::new();
    let status = loop {
        let line = lines.next().ok_or_else(no_answer)?;
        if let Some(status) = line.strip_prefix(LSPCI) {
            break status.parse::<u8>().map_err(|_| no_answer())?;
        }
        list.push(line);
    };
    match status {
        0 => {}
        127 => return Err(Unreadable::NoLspci),
        code => return Err(Unreadable::LspciFailed { code }),
    }
    let mut log = Vec::new();
    loop {
        let line = lines.next().ok_or_else(no_answer)?;
        if line.starts_with(KERNEL) {
            break;
        }
        log.push(line);
    }
    if lines.next() != Some(ENDS) {
        return Err(no_answer());
    }
    let mut guest = devices(&list).map_err(Unreadable::BadList)?;
    for complaint in log.into_iter().filter_map(complaint) {
        if guest.complaints.len() < MAX_COMPLAINTS && !guest.complaints.contains(&complaint) {
            guest.complaints.push(complaint);
        }
    }
    Ok(guest)
}

/// One device of the list, as far as it was read.
struct Device {
    id: PciId,
    driven: bool,
}

/// Reads `lspci -Dnnk`: a line at the margin for each device, further ones of it indented by a tab.
fn devices(list: &[&str]) -> Result<GuestView, String> {
    let mut places = BTreeSet::new();
    let mut devices: Vec<Device> = Vec::new();
    for line in list {
        let odd = || format!("{:?}", line.chars().take(80).collect::<String>());
        if line.is_empty() {
            continue;
        }
        if let Some(detail) = line.strip_prefix('\t') {
            let device = devices.last_mut().ok_or_else(odd)?;
            if detail.starts_with("Subsystem: ") {
                // Not every device has one, and some say no numbers.
                device.id.subsystem = last_pair(detail).or(device.id.subsystem);
            } else if let Some(driver) = detail.strip_prefix("Kernel driver in use: ") {
                device.driven = !driver.trim().is_empty();
            }
            continue;
        }
        let (place, rest) = line.split_once(' ').ok_or_else(odd)?;
        if !is_place(place) || !has_class(rest) {
            return Err(odd());
        }
        let (vendor, device) = last_pair(rest).ok_or_else(odd)?;
        if !places.insert(place) {
            return Err(format!("{place} is listed twice"));
        }
        if devices.len() >= MAX_DEVICES {
            return Err(format!("more than {MAX_DEVICES} devices"));
        }
        devices.push(Device { id: PciId { vendor, device, subsystem: None }, driven: false });
    }
    let mut guest = GuestView::default();
    for device in devices.into_iter().filter(|device| device.id.vendor != HYPERVISORS) {
        let seen = guest.devices.entry(device.id).or_default();
        seen.visible += 1;
        seen.driver_bound += u32::from(device.driven);
    }
    Ok(guest)
}

/// `48e0:00:00.0`: domain, which is of any size in a guest of Hyper-V, bus, device, function.
fn is_place(text: &str) -> bool {
    let hex = |text: &str, least: usize, most: usize| {
        (least..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = text.splitn(3, ':');
    let (Some(domain), Some(bus), Some(slot)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let Some((device, function)) = slot.split_once('.') else { return false };
    hex(domain, 4, 8) && hex(bus, 2, 2) && hex(device, 2, 2) && matches!(function.as_bytes(), [b'0'..=b'7'])
}

/// Whether the class stands where it belongs: `3D controller [0302]: …`.
fn has_class(text: &str) -> bool {
    text.match_indices("]: ").any(|(end, _)| {
        let class = end.checked_sub(5).and_then(|start| text.get(start..end)).and_then(|text| text.strip_prefix('['));
        class.is_some_and(|class| class.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

/// The last `[10de:25b6]` in a line: names may hold brackets, too, but stand before it.
fn last_pair(text: &str) -> Option<(u16, u16)> {
    let word = |text: &str| {
        let hex = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if hex { u16::from_str_radix(text, 16).ok() } else { None }
    };
    text.rsplit('[').find_map(|part| {
        let (pair, _) = part.split_once(']')?;
        let (first, second) = pair.split_once(':')?;
        Some((word(first)?, word(second)?))
    })
}

/// What a line of the kernel's log complains about, if it does.
fn complaint(line: &str) -> Option<Complaint> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_hexdigit).collect();
        u64::from_str_radix(&digits, 16).ok()
    };
    if line.contains("hv_pci") {
        if let Some((_, need)) = line.split_once("Need 0x")
            && need.contains(" MMIO space")
        {
            let above = match (need.contains(" of high "), need.contains(" of low ")) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            };
            return Some(Complaint::NoSpace { above, bytes: number(need) });
        }
        if let Some((_, status)) = line.split_once("failed D0 Entry with status ") {
            let status = number(status.trim_start_matches("0x")).and_then(|status| u32::try_from(status).ok());
            return status.map(|status| Complaint::NotBroughtUp { status });
        }
        return line.contains("resource allocated returned").then(|| Complaint::said(line));
    }
    if line.contains("BAR ") && (line.contains("no space") || line.contains("failed to assign")) {
        return Some(Complaint::NoSpace { above: None, bytes: None });
    }
    let probe = line.contains("probe with driver") || line.contains("probe of");
    (probe && line.contains("failed")).then(|| Complaint::said(line))
}

#[cfg(test)]
mod tests;
