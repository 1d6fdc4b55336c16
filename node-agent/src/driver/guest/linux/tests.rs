//! Answers of real shape, and of guests that have little, lie, or say too much.

use super::*;
use expect_test::{Expect, expect};
use std::fmt::Write as _;

/// A GPU and its sound function in domains of their own, as captured in a guest of Hyper-V.
const FEDORA: &str = "\
48e0:00:00.0 VGA compatible controller [0300]: NVIDIA Corporation GP102 [GeForce GTX 1080 Ti] [10de:1b06] (rev a1)
\tSubsystem: Micro-Star International Co., Ltd. [MSI] Device [1462:3602]
\tKernel driver in use: nouveau
\tKernel modules: nouveau
b860:00:00.0 Audio device [0403]: NVIDIA Corporation GP102 HDMI Audio Controller [10de:10ef] (rev a1)
\tSubsystem: Micro-Star International Co., Ltd. [MSI] Device [1462:3602]
\tKernel driver in use: snd_hda_intel
\tKernel modules: snd_hda_intel
";

/// A generation 1 VM: the emulated machine's own devices, the hypervisor's display, and an A2 without a driver.
const GEN1: &str = "\
0000:00:00.0 Host bridge [0600]: Intel Corporation 440BX/ZX/DX - 82443BX/ZX/DX Host bridge (AGP disabled) [8086:7192] (rev 03)
0000:00:07.1 IDE interface [0101]: Intel Corporation 82371AB/EB/MB PIIX4 IDE [8086:7111] (rev 01) (prog-if 80 [ISA Compatibility mode-only controller, supports bus mastering])
\tSubsystem: Microsoft Corporation Device [1414:0000]
\tKernel driver in use: ata_piix
0000:00:08.0 VGA compatible controller [0300]: Microsoft Corporation Hyper-V virtual VGA [1414:5353]
\tKernel driver in use: hyperv_fb
00010ce7:00:00.0 3D controller [0302]: NVIDIA Corporation GA107GL [A2 / A16] [10de:25b6] (rev a1)
\tSubsystem: NVIDIA Corporation Device [10de:157e]
\tKernel modules: nouveau
";

fn answer(list: &str, log: &str) -> String {
    format!("\n{BEGINS}\n{list}{LSPCI}0\n{log}{KERNEL}0\n{ENDS}\n")
}

fn shown(answer: &[u8]) -> String {
    match read(answer) {
        Err(error) => format!("{error}\n"),
        Ok(guest) => {
            let mut text = String::new();
            for (id, seen) in &guest.devices {
                writeln!(text, "{id} {} seen, {} driven", seen.visible, seen.driver_bound).unwrap();
            }
            for complaint in &guest.complaints {
                writeln!(text, "{complaint}").unwrap();
            }
            text
        }
    }
}

fn check(answer: impl AsRef<[u8]>, want: &Expect) {
    want.assert_eq(&shown(answer.as_ref()));
}

#[test]
fn devices_are_read_with_their_boards_and_drivers() {
    check(
        answer(FEDORA, ""),
        &expect![[r"
            10de:10ef:1462:3602 1 seen, 1 driven
            10de:1b06:1462:3602 1 seen, 1 driven
        "]],
    );
    check(
        answer(GEN1, ""),
        &expect![[r#"
            10de:25b6:10de:157e 1 seen, 0 driven
            8086:7111:1414:0000 1 seen, 1 driven
            8086:7192 1 seen, 0 driven
        "#]],
    );
    // A guest without any device: Generation 2 has none of its own.
    check(answer("", ""), &expect![""]);
}

#[test]
fn greetings_and_farewells_of_shells_do_no_harm() {
    let noisy = format!(
        "Welcome to Ubuntu\n\n * 0000:00:00.0 VGA [0300]: not one [10de:25b6]\n\u{1b}[31mlast login\n{}logout\n\u{0}\n",
        answer(FEDORA, "")
    );
    assert_eq!(shown(noisy.as_bytes()), shown(answer(FEDORA, "").as_bytes()));
    let mut bytes = b"\xff\xfe motd in another encoding \xc3\n".to_vec();
    bytes.extend(answer(&FEDORA.replace("Micro-Star", "Micro\u{2013}St\u{e4}r"), "").into_bytes());
    assert_eq!(shown(&bytes), shown(answer(FEDORA, "").as_bytes()));
}

#[test]
fn the_kernels_complaints_are_understood_in_all_their_forms() {
    let log = "\
[    2.281] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: PCI VMBus probing: Using version 0x10004
[    2.290] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: Need 0x802000000 of high MMIO space. Consider reconfiguring the VM.
[    2.290] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: Need 0x1000000 of low MMIO space. Consider reconfiguring the VM.
[    2.300] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: PCI Pass-through VSP failed D0 Entry with status c0000001
[    2.310] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: resource allocated returned 0xc0000023
[    2.400] pci 48e0:00:00.0: BAR 1: no space for [mem size 0x800000000 64bit pref]
[    2.401] pci 48e0:00:00.0: BAR 1: failed to assign [mem size 0x800000000 64bit pref]
[    2.402] pci 48e0:00:00.0: BAR 1 [mem size 0x800000000 64bit pref]: can't assign; no space
[    9.000] nvidia 48e0:00:00.0: probe with driver nvidia failed with error -1
[    9.001] nvidia: probe of 48e0:00:00.0 failed with error -1
[    9.002] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: PCI host bridge to bus 48e0:00
";
    check(
        answer("", log),
        &expect![[r"
            its system needs 0x802000000 bytes of address space above 4 GiB for a device: the VM's HighMemoryMappedIoSpace is too small
            its system needs 0x1000000 bytes of address space below 4 GiB for a device: the VM's LowMemoryMappedIoSpace is too small
            the host did not bring a device up for it (status 0xc0000001)
            its system says: [    2.310] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: resource allocated returned 0xc0000023
            its system finds no address space for a device: the VM's HighMemoryMappedIoSpace or LowMemoryMappedIoSpace is too small
            its system says: [    9.000] nvidia 48e0:00:00.0: probe with driver nvidia failed with error -1
            its system says: [    9.001] nvidia: probe of 48e0:00:00.0 failed with error -1
        "]],
    );
    // The same a thousand times is one; different ones are bounded.
    let many: String = (0..1000).map(|n| format!("hv_pci x: Need 0x{n:x} of high MMIO space.\n")).collect();
    assert_eq!(read(answer("", &many).as_bytes()).unwrap().complaints.len(), MAX_COMPLAINTS);
    // Numbers that are none, and far too large ones.
    check(
        answer("", "hv_pci x: Need 0xzz of high MMIO space\nhv_pci x: failed D0 Entry with status 123456789abc\n"),
        &expect![[r"
            its system finds no address space above 4 GiB for a device: the VM's HighMemoryMappedIoSpace is too small
        "]],
    );
}

#[test]
fn a_kernel_log_that_nobody_may_read_costs_the_hints_alone() {
    check(
        answer(FEDORA, "").replace("kernel 0", "kernel 1"),
        &expect![[r"
            10de:10ef:1462:3602 1 seen, 1 driven
            10de:1b06:1462:3602 1 seen, 1 driven
        "]],
    );
}

#[test]
fn guests_that_cannot_answer_are_told_apart() {
    let status = |code: &str| answer("", "").replace("lspci 0", &format!("lspci {code}"));
    check(status("127"), &expect!["it has no lspci: install pciutils in the guest\n"]);
    check(status("126"), &expect!["lspci failed there with exit code 126: the user may not run it\n"]);
    check(status("1"), &expect!["lspci failed there with exit code 1\n"]);
    check("", &expect!["it does not answer as a Linux system with a shell does\n"]);
    check(
        "'exec' is not recognized as an internal or external command,\r\noperable program or batch file.\r\n",
        &expect![
            "it does not answer as a Linux system with a shell does; it said: 'exec' is not recognized as an internal or external command, operable program or batch file.\n"
        ],
    );
    // Cut short at any line, or at any byte: never half an answer.
    let whole = answer(GEN1, "hv_pci x: Need 0x1 of low MMIO space\n");
    let end = whole.find(ENDS).unwrap() + ENDS.len();
    for at in 0..end {
        assert!(matches!(read(&whole.as_bytes()[..at]), Err(Unreadable::NoAnswer { .. })), "cut at {at}");
    }
}

#[test]
fn lists_that_are_none_are_refused() {
    let line = "48e0:00:00.0 3D controller [0302]: NVIDIA Corporation GA107GL [A2 / A16] [10de:25b6] (rev a1)";
    assert!(read(answer(&format!("{line}\n"), "").as_bytes()).is_ok());
    for bad in [
        "\tKernel driver in use: nvidia",
        "lspci: Unable to load libkmod resources: error -2",
        "48e0:00:00.0",
        "48e0:00:00.8 3D controller [0302]: NVIDIA [10de:25b6]",
        "48e0:00:0.0 3D controller [0302]: NVIDIA [10de:25b6]",
        "00:00.0 3D controller [0302]: NVIDIA [10de:25b6]",
        "48E0:00:00.0 3D controller [0302]: NVIDIA [10de:25b6]",
        "48e0:00:00.0 3D controller [0302]: NVIDIA",
        "48e0:00:00.0 3D controller: NVIDIA [10de:25b6]",
        "48e0:00:00.0 3D controller [0302]: NVIDIA [10de:25b]",
        "48e0:00:00.0 3D controller [0302]: NVIDIA [+0de:25b6]",
        "Virtuelle Ger\u{e4}te:",
        &format!("{line}\n{line}"),
    ] {
        let read = read(answer(&format!("{bad}\n"), "").as_bytes());
        assert!(matches!(read, Err(Unreadable::BadList(_))), "{bad}: {read:?}");
    }
    let many: String = (0..2000).map(|n| line.replace("48e0", &format!("{n:08x}")) + "\n").collect();
    check(answer(&many, ""), &expect!["its list of devices makes no sense: more than 1024 devices\n"]);
    // Names hold brackets; the pair that counts stands last. A subsystem without numbers is none.
    check(
        answer("48e0:00:00.0 3D controller [0302]: X [1234:5678] [0300]: Y [10de:25b6]\n\tSubsystem: Z\n", ""),
        &expect!["10de:25b6 1 seen, 0 driven\n"],
    );
}

#[test]
fn an_answer_without_end_is_refused_before_it_is_read() {
    let huge = vec![b'x'; MAX_ANSWER_BYTES + 1];
    assert_eq!(read(&huge), Err(Unreadable::TooMuch));
    // As much as is read at all, of the worst kind: no panic, and no long error.
    for bytes in [vec![b'['; MAX_ANSWER_BYTES], vec![0xff; MAX_ANSWER_BYTES], vec![b'\n'; MAX_ANSWER_BYTES]] {
        assert!(read(&bytes).unwrap_err().to_string().len() < 400);
        let mut inside = format!("{BEGINS}\n").into_bytes();
        inside.extend_from_slice(&bytes[..MAX_ANSWER_BYTES - 100]);
        inside.extend_from_slice(format!("\n{LSPCI}0\n{KERNEL}0\n{ENDS}\n").as_bytes());
        drop(read(&inside));
    }
}

/// Nothing in it comes from outside: it is a constant, and its quotes are closed.
#[test]
fn the_command_is_one_word_for_the_shell() {
    assert!(COMMAND.starts_with("exec /bin/sh -c '") && COMMAND.ends_with('\''));
    assert_eq!(COMMAND.matches('\'').count(), 2);
    assert!(!COMMAND.contains('\n') && !COMMAND.contains('!') && COMMAND.is_ascii());
}
