//! What is to be known of a placement later.

use super::{At, FromWire, readable, text, timestamp};
use crate::v1;
use berth_model::history::{Adoption, ClusterRole, Forced, MAX_TAGS, Note, Noted};
use berth_model::install::{Install, InstallEnd, InstallOutput};

readable!(
    v1::Forced => Forced,
    v1::ClusterRole => ClusterRole,
    v1::Install => Install,
);

impl From<&Adoption> for v1::Adoption {
    fn from(model: &Adoption) -> Self {
        let Adoption { owner, tags } = model;
        Self {
            owner: owner.as_ref().map(ToString::to_string).unwrap_or_default(),
            tags: tags.iter().map(ToString::to_string).collect(),
        }
    }
}

impl FromWire<v1::Adoption> for Adoption {
    fn read(wire: v1::Adoption, at: At<'_>) -> Option<Self> {
        let v1::Adoption { owner, tags } = wire;
        let owner = at.field("owner").optional(&owner);
        let tags = at.field("tags").list(tags, MAX_TAGS, |tag, at| at.parse(&tag));
        Some(Self { owner: owner?, tags: tags? })
    }
}

impl From<&Forced> for v1::Forced {
    fn from(model: &Forced) -> Self {
        let Forced { step, device } = model;
        Self { step: v1::Step::from(*step).into(), device: device.to_string() }
    }
}

impl FromWire<v1::Forced> for Forced {
    fn read(wire: v1::Forced, at: At<'_>) -> Option<Self> {
        let v1::Forced { step, device } = wire;
        let step = at.field("step").value(step);
        let device = at.field("device").parse(&device);
        Some(Self { step: step?, device: device? })
    }
}

impl From<&ClusterRole> for v1::ClusterRole {
    fn from(model: &ClusterRole) -> Self {
        let ClusterRole { name, owner, priority } = model;
        let owner = owner.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { name: name.to_string(), owner, priority: *priority }
    }
}

impl FromWire<v1::ClusterRole> for ClusterRole {
    fn read(wire: v1::ClusterRole, at: At<'_>) -> Option<Self> {
        let v1::ClusterRole { name, owner, priority } = wire;
        let name = at.field("name").parse(&name);
        let owner = at.field("owner").optional(&owner);
        Some(Self { name: name?, owner: owner?, priority })
    }
}

impl From<&Install> for v1::Install {
    fn from(model: &Install) -> Self {
        let Install { command, end, output } = model;
        let end = match end {
            InstallEnd::Exited(code) => Some(v1::install::End::ExitCode(*code)),
            InstallEnd::Late(seconds) => Some(v1::install::End::LateSeconds(*seconds)),
            InstallEnd::Unknown => None,
        };
        Self { command: command.to_string(), end, output: output.as_str().to_owned() }
    }
}

impl FromWire<v1::Install> for Install {
    fn read(wire: v1::Install, at: At<'_>) -> Option<Self> {
        let v1::Install { command, end, output } = wire;
        let command = at.field("command").parse(&command);
        let end = match end {
            Some(v1::install::End::ExitCode(code)) => InstallEnd::Exited(code),
            Some(v1::install::End::LateSeconds(seconds)) => InstallEnd::Late(seconds),
            None => InstallEnd::Unknown,
        };
        let at_output = at.field("output");
        let output = InstallOutput::read(output).map_or_else(|bad| at_output.refuse(bad), Some);
        Some(Self { command: command?, end, output: output? })
    }
}

impl From<&Noted> for v1::Note {
    fn from(model: &Noted) -> Self {
        let Noted { at, what } = model;
        let sentence = text(&what.to_string());
        let what = match what {
            Note::Adopted(adoption) => v1::note::What::Adopted(adoption.into()),
            Note::Forced(forced) => v1::note::What::Forced(forced.into()),
            Note::Installed(install) => v1::note::What::Installed(install.into()),
            Note::RoleRemoved(role) => v1::note::What::RoleRemoved(role.into()),
        };
        Self { at: Some(timestamp(*at)), what: Some(what), text: sentence }
    }
}

impl FromWire<v1::Note> for Noted {
    fn read(wire: v1::Note, at: At<'_>) -> Option<Self> {
        let v1::Note { at: when, what, text: _ } = wire;
        let when = at.field("at").message(when);
        let what = match at.field("what").required(what)? {
            v1::note::What::Adopted(adoption) => Note::Adopted(FromWire::read(adoption, at.field("adopted"))?),
            v1::note::What::Forced(forced) => Note::Forced(FromWire::read(forced, at.field("forced"))?),
            v1::note::What::Installed(install) => Note::Installed(FromWire::read(install, at.field("installed"))?),
            v1::note::What::RoleRemoved(role) => Note::RoleRemoved(FromWire::read(role, at.field("role_removed"))?),
        };
        Some(Self { at: when?, what })
    }
}
