//! Names and ids, each its own type, each checked when it is made.

use crate::pci::DeviceAddress;
use std::fmt;
use std::str::FromStr;

/// Why a text is no legal name or id. `Display` names the rule that was broken and shows the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing but emptiness.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// Longer than the kind allows.
    #[error("{what} is {length} bytes long, at most {limit} are allowed")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A character outside the kind's alphabet.
    #[error("{what} {text:?} has the character {found:?} at position {at}; allowed are {allowed}")]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// The whole text given.
        text: String,
        /// The first character that is not allowed.
        found: char,
        /// Its byte offset.
        at: usize,
        /// The alphabet, in words.
        allowed: &'static str,
    },
    /// The text must be of one fixed form.
    #[error("{what} {text:?} is not of the form {form}")]
    Form {
        /// Which kind of name.
        what: &'static str,
        /// The text given.
        text: String,
        /// The form wanted, in words.
        form: &'static str,
    },
}

fn check(
    what: &'static str,
    text: &str,
    limit: usize,
    allowed: &'static str,
    legal: impl Fn(usize, char) -> bool,
) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty { what });
    }
    if text.len() > limit {
        return Err(InvalidName::TooLong { what, length: text.len(), limit });
    }
    match text.char_indices().find(|(at, c)| !legal(*at, *c)) {
        Some((at, found)) => Err(InvalidName::Character { what, text: text.to_owned(), found, at, allowed }),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:expr, $allowed:literal, $legal:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Longest legal text in bytes.
            pub const MAX_BYTES: usize = $limit;

            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`InvalidName`] naming the broken rule.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                check($what, text, $limit, $allowed, $legal)?;
                Ok(Self(text.into()))
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

fn host_like(at: usize, c: char) -> bool {
    c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '-' | '.' | '_'))
}

text_id!(
    /// Whose a placement is: a person, a team, an account.
    Owner,
    "owner",
    128,
    "printable characters",
    |_, c| !c.is_control()
);
text_id!(
    /// A word on a placement for whoever sorts them, mostly KEY=VALUE.
    Tag,
    "tag",
    128,
    "printable ASCII characters without blanks and commas",
    |_, c| c.is_ascii_graphic() && c != ','
);
text_id!(
    /// A hypervisor host. One label or a dotted host name; case is kept and matters.
    NodeName, "node name", 253, "letters, digits, '-', '.', '_', starting with a letter or digit", host_like
);
text_id!(
    /// What the caller calls a placement; unique among the placements that are not over.
    PlacementName, "placement name", 128, "letters, digits, '-', '.', '_', starting with a letter or digit", host_like
);
text_id!(
    /// A driver-install command, as a node's settings name it. Never the command itself.
    CommandName, "command name", 64, "letters, digits, '-', '.', '_', starting with a letter or digit", host_like
);
text_id!(
    /// The caller's own id of one Create call, for safe repetition.
    RequestId, "request id", 128, "printable ASCII without spaces", |_, c| c.is_ascii_graphic()
);
text_id!(
    /// A GPU model as Berth names it, such as `A16` or `L40S`.
    ModelName, "model name", 64, "letters, digits, '-', '.', '_', starting with a letter or digit", host_like
);
text_id!(
    /// A virtual machine's display name. Hyper-V allows nearly anything and does not keep it unique.
    VmName, "VM name", 100, "any character but control characters, '/' and '\\'", |_, c| !c.is_control() && !matches!(c, '/' | '\\')
);
text_id!(
    /// The cluster (failure domain) a node belongs to.
    ClusterName, "cluster name", 253, "letters, digits, '-', '.', '_', starting with a letter or digit", host_like
);

text_id!(
    /// A clustered role (a resource group), as its cluster names it.
    RoleName, "role name", 256, "any character but control characters", |_, c| !c.is_control()
);

/// Checks the 8-4-4-4-12 form and gives it in lower case.
fn guid(what: &'static str, text: &str) -> Result<std::sync::Arc<str>, InvalidName> {
    let form_ok = text.len() == 36
        && text
            .char_indices()
            .all(|(at, c)| if matches!(at, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() });
    if form_ok {
        Ok(text.to_ascii_lowercase().into())
    } else {
        Err(InvalidName::Form { what, text: text.to_owned(), form: "8-4-4-4-12 hexadecimal digits" })
    }
}

macro_rules! guid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks `text` and keeps it in lower case.
            ///
            /// # Errors
            /// [`InvalidName::Form`] when it is not 8-4-4-4-12 hexadecimal digits.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                guid($what, text.as_ref()).map(Self)
            }

            /// The text, lower case.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }
    };
}

guid_id!(
    /// A virtual machine's GUID: the identity the host keeps for it (Hyper-V `Get-VM` Id, libvirt UUID).
    VmId, "VM id"
);
guid_id!(
    /// Tells the fleet of one Berth from that of another: drawn when a store is first led, kept by backup and rebuild, and
    /// remembered by agents with what they hold.
    FleetId, "fleet id"
);
guid_id!(
    /// Tells two placements of the same name, one after the other, apart. Drawn by the controller's shell.
    PlacementUid, "placement uid"
);

/// One assignable device of one node, named by where it sits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuId {
    /// The host it is plugged into.
    pub node: NodeName,
    /// Where on that host.
    pub address: DeviceAddress,
}

impl fmt::Display for GpuId {
    /// `node/address`, also the form users type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.node, self.address))
    }
}

impl FromStr for GpuId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let form = || InvalidName::Form { what: "GPU id", text: text.to_owned(), form: "NODE/ADDRESS" };
        let (node, address) = text.split_once('/').ok_or_else(form)?;
        Ok(Self { node: node.parse()?, address: address.parse().map_err(|_| form())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn refuse<T: std::str::FromStr<Err = InvalidName> + std::fmt::Debug>(text: &str, why: Expect) {
        why.assert_eq(&text.parse::<T>().unwrap_err().to_string());
    }

    #[test]
    fn illegal_names_are_refused_by_rule() {
        refuse::<NodeName>("", expect!["node name is empty"]);
        refuse::<NodeName>(&"n".repeat(254), expect!["node name is 254 bytes long, at most 253 are allowed"]);
        refuse::<NodeName>(
            "-node",
            expect![[
                r#"node name "-node" has the character '-' at position 0; allowed are letters, digits, '-', '.', '_', starting with a letter or digit"#
            ]],
        );
        refuse::<PlacementName>(
            "a/b",
            expect![[
                r#"placement name "a/b" has the character '/' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit"#
            ]],
        );
        refuse::<RequestId>(
            "a b",
            expect![[
                r#"request id "a b" has the character ' ' at position 1; allowed are printable ASCII without spaces"#
            ]],
        );
        refuse::<VmId>(
            "8fce3318aa0f4de38664278533573cd2",
            expect![[r#"VM id "8fce3318aa0f4de38664278533573cd2" is not of the form 8-4-4-4-12 hexadecimal digits"#]],
        );
        refuse::<GpuId>("node1", expect![[r#"GPU id "node1" is not of the form NODE/ADDRESS"#]]);
    }

    #[test]
    fn vm_names_may_hold_what_hyper_v_allows() {
        assert!(VmName::new("Räuber & Söhne (test) 'x'").is_ok());
    }

    #[test]
    fn guids_compare_in_any_case() {
        let upper = VmId::new("8FCE3318-AA0F-4DE3-8664-278533573CD2").unwrap();
        assert_eq!(upper, VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap());
    }

    #[test]
    fn gpu_ids_round_trip() {
        for text in ["hv-01/PCIROOT(20)#PCI(0300)#PCI(0000)", "kvm1.example/0000:41:00.0"] {
            assert_eq!(text.parse::<GpuId>().unwrap().to_string(), text);
        }
    }
}
