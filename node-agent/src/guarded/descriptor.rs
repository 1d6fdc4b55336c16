//! Who can change a file, or read it, read from its security descriptor in text form (Security Descriptor Definition Language, as
//! documented in Win32 under "ACE Strings", "SID Strings" and "Security Descriptor String Format").
//!
//! Pure and strict: what is not understood is an error, and an error means not guarded.
#![cfg_attr(not(any(windows, test)), expect(dead_code, reason = "only Windows has security descriptors"))]

/// Rights by which a file or folder, or who may change it, can be changed: write or add, append or add a folder, extended
/// attributes, delete a child, attributes, delete, write the list, take it over, and the generic and greatest ones.
pub(super) const CHANGES: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x100 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x0200_0000 | 0x1000_0000 | 0x4000_0000;

/// Rights by which what is in a file can be read: its data, and the generic and greatest ones.
pub(super) const READS: u32 = 0x1 | 0x0200_0000 | 0x1000_0000 | 0x8000_0000;

/// SYSTEM, Administrators, the built-in administrator; what is trusted by being able to do anything anyhow.
const TRUSTED: [&str; 4] = ["SY", "BA", "LA", TRUSTED_INSTALLER];
/// The service that Windows installs itself with; it owns what lies in `Program Files`.
const TRUSTED_INSTALLER: &str = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464";

/// Short names of accounts and groups that have a fixed id.
const NAMES: [(&str, &str); 7] = [
    ("SY", "S-1-5-18"),
    ("LS", "S-1-5-19"),
    ("NS", "S-1-5-20"),
    ("BA", "S-1-5-32-544"),
    ("BU", "S-1-5-32-545"),
    ("AU", "S-1-5-11"),
    ("WD", "S-1-1-0"),
];

/// Everybody but the trusted and `own` (an id, `S-1-…`) who has one of these rights to what this descriptor is of, each once,
/// by short name or id. Empty: it is guarded.
pub(super) fn others(text: &str, own: &str, rights: u32) -> Result<Vec<String>, String> {
    let wanted = rights;
    let mut found = Vec::new();
    let own = NAMES.iter().find(|(_, id)| *id == own).map_or(own, |(name, _)| name);
    let mut note = |who: &str| {
        if !TRUSTED.contains(&who) && who != own && !found.iter().any(|before| before == who) {
            found.push(who.to_owned());
        }
    };
    let rest = text.strip_prefix("O:").ok_or_else(|| odd("it names no owner", text))?;
    let (owner, rest) = account(rest).ok_or_else(|| odd("its owner", text))?;
    // An owner can write the list at any time.
    note(owner);
    let rest = match rest.strip_prefix("G:") {
        Some(rest) => account(rest).ok_or_else(|| odd("its group", text))?.1,
        None => rest,
    };
    let Some(list) = rest.strip_prefix("D:") else {
        // No list: no limits.
        note("WD");
        return Ok(found);
    };
    let (flags, mut list) = list.split_at(list.find(['(', ':']).unwrap_or(list.len()));
    if flags.contains("NO_ACCESS_CONTROL") {
        note("WD");
    }
    while let Some(entry) = list.strip_prefix('(') {
        let (entry, rest) = entry.split_once(')').ok_or_else(|| odd("an entry without an end", text))?;
        list = rest;
        let [kind, flags, rights, "", "", who] = entry.split(';').collect::<Vec<_>>()[..] else {
            return Err(odd("an entry of another form", entry));
        };
        if account(who).is_none_or(|(_, rest)| !rest.is_empty()) {
            return Err(odd("whom an entry is about", entry));
        }
        match kind {
            "D" => {}
            "A" if mask(rights).ok_or_else(|| odd("the rights in an entry", entry))? & wanted == 0 => {}
            // Whoever makes something in it may change that: only those can whose names come up themselves.
            "A" if who == "CO" && flags.contains("IO") => {}
            "A" => note(who),
            _ => return Err(odd("an entry of another kind", entry)),
        }
    }
    // What is audited follows, if it was asked for.
    if list.is_empty() || list.starts_with("S:") { Ok(found) } else { Err(odd("what follows the list", list)) }
}

fn odd(what: &str, text: &str) -> String {
    format!("a security descriptor is not understood: {what}: {text}")
}

/// An account at the start of a text, two letters or an id, and the rest.
fn account(text: &str) -> Option<(&str, &str)> {
    let end = match text.strip_prefix("S-1-") {
        Some(id) => {
            let end = id.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(id.len());
            // The component `S:`, `D:` or `G:` may follow at once; its letter is no digit.
            4 + end
        }
        None => 2,
    };
    let (who, rest) = text.split_at_checked(end)?;
    let short = who.len() == 2 && who.bytes().all(|b| b.is_ascii_uppercase());
    (short || who.len() > 4).then_some((who, rest))
}

/// Rights as a number: `0x…`, or pairs of letters.
fn mask(rights: &str) -> Option<u32> {
    if let Some(digits) = rights.strip_prefix("0x") {
        return u32::from_str_radix(digits, 16).ok();
    }
    if !rights.is_ascii() || !rights.len().is_multiple_of(2) {
        return None;
    }
    let mut mask = 0;
    for at in (0..rights.len()).step_by(2) {
        mask |= match &rights[at..at + 2] {
            "GA" => 0x1000_0000,
            "GR" => 0x8000_0000,
            "GW" => 0x4000_0000,
            "GX" => 0x2000_0000,
            "RC" => 0x2_0000,
            "SD" => 0x1_0000,
            "WD" => 0x4_0000,
            "WO" => 0x8_0000,
            "FA" => 0x1F_01FF,
            "FR" => 0x12_0089,
            "FW" => 0x12_0116,
            "FX" => 0x12_00A0,
            "CC" => 0x1,
            "DC" => 0x2,
            "LC" => 0x4,
            "SW" => 0x8,
            "RP" => 0x10,
            "WP" => 0x20,
            "DT" => 0x40,
            "LO" => 0x80,
            "CR" => 0x100,
            _ => return None,
        };
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "S-1-5-21-1-2-3-1104";

    fn who(text: &str) -> String {
        match others(text, OWN, CHANGES) {
            Ok(others) => others.join(" "),
            Err(why) => format!("? {why}"),
        }
    }

    #[test]
    fn whoever_can_change_it_is_named() {
        for (text, expected) in [
            ("O:SYG:SYD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)", ""),
            ("O:S-1-5-21-1-2-3-1104G:DUD:PAI(A;OICI;FA;;;SY)(A;OICI;0x1f01ff;;;S-1-5-21-1-2-3-1104)", ""),
            // Reading is nobody's harm.
            ("O:BAG:SYD:AI(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)(A;ID;FR;;;WD)", ""),
            // As ProgramData comes: users may make files and folders in it.
            (
                "O:SYG:SYD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICIIO;GA;;;CO)(A;OICI;0x1200a9;;;BU)(A;CI;DCLCRPCR;;;BU)",
                "BU",
            ),
            ("O:S-1-5-21-1-2-3-1001G:DUD:P(A;OICI;FA;;;SY)", "S-1-5-21-1-2-3-1001"),
            ("O:BAG:SYD:P(A;;GW;;;AU)(A;;SD;;;WD)(A;;WDWO;;;WD)", "AU WD"),
            ("O:BAG:SYD:(D;;FA;;;WD)(A;;GR;;;WD)", ""),
            // Somebody else's id that only begins like the own one.
            ("O:BAG:SYD:(A;;FA;;;S-1-5-21-1-2-3-11041)", "S-1-5-21-1-2-3-11041"),
            // What is made by others in it belongs to them only where it is not inherited alone.
            ("O:BAG:SYD:(A;;FA;;;CO)", "CO"),
            ("O:BAG:SY", "WD"),
            ("O:BAG:SYD:NO_ACCESS_CONTROL", "WD"),
            (
                "O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464G:SYD:PAI(A;;0x1301bf;;;SY)S:AI(AU;SA;FA;;;WD)",
                "",
            ),
        ] {
            assert_eq!(who(text), expected, "{text}");
        }
    }

    #[test]
    fn the_agents_own_account_may_be_the_system() {
        assert_eq!(others("O:SYG:SYD:P(A;;FA;;;SY)", "S-1-5-18", CHANGES), Ok(Vec::new()));
        assert_eq!(others("O:NSG:SYD:P(A;;FA;;;NS)", "S-1-5-20", CHANGES), Ok(Vec::new()));
        assert_eq!(others("O:NSG:SYD:P(A;;FA;;;NS)", "S-1-5-19", CHANGES), Ok(vec!["NS".to_owned()]));
    }

    #[test]
    fn whoever_can_read_a_secret_is_named() {
        for (text, expected) in [
            ("O:SYG:SYD:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FR;;;S-1-5-21-1-2-3-1104)", ""),
            ("O:BAG:SYD:(A;ID;FA;;;SY)(A;ID;0x1200a9;;;BU)", "BU"),
            ("O:BAG:SYD:(A;;GR;;;WD)(A;;CC;;;AU)", "WD AU"),
            // Its attributes and its list are no secret; who can write it can read it afterwards.
            ("O:BAG:SYD:(A;;RCLO;;;WD)(A;;DC;;;AU)", "AU"),
        ] {
            assert_eq!(others(text, OWN, CHANGES | READS).unwrap().join(" "), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_no_guard() {
        for text in [
            "",
            "D:(A;;FA;;;SY)",
            "O:",
            "O:b",
            "O:BAG:SYD:(A;;FA;;;SY",
            "O:BAG:SYD:(A;;FA;;SY)",
            "O:BAG:SYD:(A;;QQ;;;WD)",
            "O:BAG:SYD:(A;;F;;;WD)",
            "O:BAG:SYD:(A;;0xzz;;;WD)",
            "O:BAG:SYD:(A;;FA;;;)",
            "O:BAG:SYD:(A;;FA;;;everyone)",
            "O:BAG:SYD:(XA;;FA;;;WD;(@User.x == 1))",
            "O:BAG:SYD:(OA;;FA;4c164200-20c0-11d0-a768-00aa006e0529;;WD)",
            "O:BAG:SYD:(A;;FA;;;SY)trailing",
        ] {
            assert!(who(text).starts_with('?'), "{text:?}: {}", who(text));
        }
    }
}
