//! What a caller can ask for. A [`PlacementRequest`] that exists is legal; the check names every bad field at once.

use crate::id::{ClusterName, CommandName, InvalidName, ModelName, NodeName, PlacementName, RequestId};
use crate::vm::VmSelector;
use std::fmt;
use std::time::Duration;

/// Most GPUs one VM can ask for: what a Hyper-V host's largest servers hold.
pub const MAX_GPUS_PER_REQUEST: u32 = 16;
/// Most alternatives in a list of models or nodes. A longer list is a policy and belongs in a cluster or label.
pub const MAX_ALTERNATIVES: usize = 64;
/// Longest hold and longest wait in the queue: a week. Longer ones are forgotten ones.
pub const MAX_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// One bad field of a request, named as the caller named it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldError {
    /// Path of the field, `models[2]`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl FieldError {
    /// A field and what is wrong with it.
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// Whether the GPUs of one VM must hang on one NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Locality {
    /// Better if they do.
    #[default]
    Preferred,
    /// They must.
    Required,
}

/// How far the placement is verified inside the guest before it counts as active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum VerifyLevel {
    /// The host's word is enough.
    #[default]
    None,
    /// The guest lists the devices.
    Visible,
    /// The guest's driver runs them.
    DriverBound,
}

/// Where GPUs go when the placement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ReturnTo {
    /// Back to the host, mounted and enabled.
    #[default]
    Host,
    /// Into the pool, dismounted, for quick reassignment.
    Pool,
}

/// What the VM needs of its node besides GPUs. Zero means: do not count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Resources {
    /// Processor, in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// A request in the caller's plain terms, not yet checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// See [`PlacementRequest::request_id`].
    pub request_id: String,
    /// See [`PlacementRequest::name`].
    pub name: String,
    /// See [`PlacementRequest::vm`].
    pub vm: String,
    /// See [`PlacementRequest::gpus`].
    pub gpus: u32,
    /// See [`PlacementRequest::models`].
    pub models: Vec<String>,
    /// See [`PlacementRequest::exclude_models`].
    pub exclude_models: Vec<String>,
    /// See [`PlacementRequest::min_vram_bytes`].
    pub min_vram_bytes: u64,
    /// See [`PlacementRequest::node`]; empty means any.
    pub node: String,
    /// See [`PlacementRequest::exclude_nodes`].
    pub exclude_nodes: Vec<String>,
    /// See [`PlacementRequest::cluster`]; empty means any.
    pub cluster: String,
    /// See [`PlacementRequest::spread_group`]; empty means none.
    pub spread_group: String,
    /// See [`PlacementRequest::locality`].
    pub locality: Locality,
    /// See [`PlacementRequest::resources`].
    pub resources: Resources,
    /// See [`PlacementRequest::hold`].
    pub hold: Option<Duration>,
    /// See [`PlacementRequest::queue`].
    pub queue: Option<Duration>,
    /// See [`PlacementRequest::allow_standalone`].
    pub allow_standalone: bool,
    /// See [`PlacementRequest::verify`].
    pub verify: VerifyLevel,
    /// See [`PlacementRequest::return_to`].
    pub return_to: ReturnTo,
    /// See [`PlacementRequest::install_driver`]; empty means none.
    pub install_driver: String,
}

/// A legal request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementRequest {
    /// The caller's id of this call: the same id again gets the same answer.
    pub request_id: RequestId,
    /// What the caller calls the placement.
    pub name: PlacementName,
    /// The VM that gets the GPUs; it may not exist yet.
    pub vm: VmSelector,
    /// How many GPUs, 1 to [`MAX_GPUS_PER_REQUEST`].
    pub gpus: u32,
    /// Any of these models; empty means any at all. All GPUs of one placement are of one model.
    pub models: Vec<ModelName>,
    /// None of these models.
    pub exclude_models: Vec<ModelName>,
    /// At least this much memory per GPU, in bytes; 0 means any.
    pub min_vram_bytes: u64,
    /// Only this node.
    pub node: Option<NodeName>,
    /// None of these nodes.
    pub exclude_nodes: Vec<NodeName>,
    /// Only nodes of this cluster.
    pub cluster: Option<ClusterName>,
    /// Placements that name the same group are spread over clusters, then nodes, as far as room allows.
    pub spread_group: Option<PlacementName>,
    /// Whether all GPUs must hang on one NUMA node.
    pub locality: Locality,
    /// What the VM needs besides GPUs.
    pub resources: Resources,
    /// How long the GPUs are held for a VM that does not exist yet; none means the controller's default.
    pub hold: Option<Duration>,
    /// How long to wait in the queue when nothing fits now; none means: refuse at once.
    pub queue: Option<Duration>,
    /// Whether a clustered VM may be taken out of its cluster role, if nothing else is in that. A release does not put it
    /// back.
    pub allow_standalone: bool,
    /// How far to verify in the guest.
    pub verify: VerifyLevel,
    /// Where the GPUs go afterwards.
    pub return_to: ReturnTo,
    /// Which of the node's driver-install commands is run in the guest when it shows the GPUs and no driver runs them. Only
    /// with [`VerifyLevel::DriverBound`].
    pub install_driver: Option<CommandName>,
}

/// Parses one field, noting what is wrong with it.
fn field<T: std::str::FromStr>(errors: &mut Vec<FieldError>, name: &str, text: &str) -> Option<T>
where
    T::Err: fmt::Display,
{
    text.parse().map_err(|e: T::Err| errors.push(FieldError::new(name, e))).ok()
}

fn optional<T: std::str::FromStr>(errors: &mut Vec<FieldError>, name: &str, text: &str) -> Option<T>
where
    T::Err: fmt::Display,
{
    if text.is_empty() { None } else { field(errors, name, text) }
}

fn list<T: std::str::FromStr<Err = InvalidName> + PartialEq>(
    errors: &mut Vec<FieldError>,
    name: &str,
    texts: &[String],
) -> Vec<T> {
    if texts.len() > MAX_ALTERNATIVES {
        errors.push(FieldError::new(
            name,
            format_args!("{} entries, at most {MAX_ALTERNATIVES} are allowed", texts.len()),
        ));
        return Vec::new();
    }
    let mut found: Vec<T> = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        if let Some(value) = field::<T>(errors, &format!("{name}[{at}]"), text) {
            if found.contains(&value) {
                errors.push(FieldError::new(format!("{name}[{at}]"), format_args!("{text:?} is listed twice")));
            } else {
                found.push(value);
            }
        }
    }
    found
}

fn wait(errors: &mut Vec<FieldError>, name: &str, given: Option<Duration>) -> Option<Duration> {
    let given = given?;
    if given.is_zero() || given > MAX_WAIT {
        errors.push(FieldError::new(name, "must be longer than zero and at most 7 days"));
    }
    if given.subsec_nanos() % 1_000_000 != 0 {
        // Time is kept in milliseconds; what cannot be kept is not taken.
        errors.push(FieldError::new(name, "has parts of a millisecond; give whole milliseconds"));
    }
    Some(given)
}

impl PlacementRequest {
    /// Checks a draft.
    ///
    /// # Errors
    /// Every bad field, in the order of the draft's fields.
    pub fn new(draft: Draft) -> Result<Self, Vec<FieldError>> {
        let Draft {
            request_id,
            name,
            vm,
            gpus,
            models,
            exclude_models,
            min_vram_bytes,
            node,
            exclude_nodes,
            cluster,
            spread_group,
            locality,
            resources,
            hold,
            queue,
            allow_standalone,
            verify,
            return_to,
            install_driver,
        } = draft;
        let mut errors = Vec::new();
        let e = &mut errors;
        let request_id = field::<RequestId>(e, "request_id", &request_id);
        let name = field::<PlacementName>(e, "name", &name);
        let vm = field::<VmSelector>(e, "vm", &vm);
        if gpus == 0 || gpus > MAX_GPUS_PER_REQUEST {
            e.push(FieldError::new("gpus", format_args!("{gpus} is not from 1 to {MAX_GPUS_PER_REQUEST}")));
        }
        let models = list::<ModelName>(e, "models", &models);
        let exclude_models = list::<ModelName>(e, "exclude_models", &exclude_models);
        if let Some(both) = models.iter().find(|m| exclude_models.contains(m)) {
            e.push(FieldError::new("exclude_models", format_args!("excludes {both}, which models asks for")));
        }
        let node = optional::<NodeName>(e, "node", &node);
        let exclude_nodes = list::<NodeName>(e, "exclude_nodes", &exclude_nodes);
        if let Some(both) = node.as_ref().filter(|n| exclude_nodes.contains(n)) {
            e.push(FieldError::new("exclude_nodes", format_args!("excludes {both}, which node asks for")));
        }
        let cluster = optional::<ClusterName>(e, "cluster", &cluster);
        let spread_group = optional::<PlacementName>(e, "spread_group", &spread_group);
        let hold = wait(e, "hold", hold);
        let queue = wait(e, "queue", queue);
        let install_driver = optional::<CommandName>(e, "install_driver", &install_driver);
        if install_driver.is_some() && verify != VerifyLevel::DriverBound {
            // Nobody would look whether there is a driver already, nor whether there is one afterwards.
            e.push(FieldError::new("install_driver", "needs verify to be DriverBound"));
        }
        match (request_id, name, vm) {
            (Some(request_id), Some(name), Some(vm)) if errors.is_empty() => Ok(Self {
                request_id,
                name,
                vm,
                gpus,
                models,
                exclude_models,
                min_vram_bytes,
                node,
                exclude_nodes,
                cluster,
                spread_group,
                locality,
                resources,
                hold,
                queue,
                allow_standalone,
                verify,
                return_to,
                install_driver,
            }),
            _ => Err(errors),
        }
    }

    /// The first field in which `other` asks for something else, by name. The request id itself does not count.
    pub fn first_difference(&self, other: &Self) -> Option<&'static str> {
        let Self {
            request_id: _,
            name,
            vm,
            gpus,
            models,
            exclude_models,
            min_vram_bytes,
            node,
            exclude_nodes,
            cluster,
            spread_group,
            locality,
            resources,
            hold,
            queue,
            allow_standalone,
            verify,
            return_to,
            install_driver,
        } = self;
        let fields = [
            ("name", *name == other.name),
            ("vm", *vm == other.vm),
            ("gpus", *gpus == other.gpus),
            ("models", *models == other.models),
            ("exclude_models", *exclude_models == other.exclude_models),
            ("min_vram_bytes", *min_vram_bytes == other.min_vram_bytes),
            ("node", *node == other.node),
            ("exclude_nodes", *exclude_nodes == other.exclude_nodes),
            ("cluster", *cluster == other.cluster),
            ("spread_group", *spread_group == other.spread_group),
            ("locality", *locality == other.locality),
            ("resources", *resources == other.resources),
            ("hold", *hold == other.hold),
            ("queue", *queue == other.queue),
            ("allow_standalone", *allow_standalone == other.allow_standalone),
            ("verify", *verify == other.verify),
            ("return_to", *return_to == other.return_to),
            ("install_driver", *install_driver == other.install_driver),
        ];
        fields.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn draft() -> Draft {
        Draft { request_id: "r1".into(), name: "p1".into(), vm: "vm1".into(), gpus: 1, ..Draft::default() }
    }

    fn refuse(draft: Draft, why: Expect) {
        let errors = PlacementRequest::new(draft).unwrap_err();
        let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
        why.assert_eq(&text.join("\n"));
    }

    #[test]
    fn the_smallest_request_is_legal() {
        assert!(PlacementRequest::new(draft()).is_ok());
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        refuse(
            Draft {
                name: "a b".into(),
                gpus: 17,
                models: vec!["A2".into(), "".into(), "A2".into()],
                hold: Some(Duration::ZERO),
                ..Draft::default()
            },
            expect![[r#"
                request_id: request id is empty
                name: placement name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
                vm: VM name is empty
                gpus: 17 is not from 1 to 16
                models[1]: model name is empty
                models[2]: "A2" is listed twice
                hold: must be longer than zero and at most 7 days"#]],
        );
    }

    #[test]
    fn selectors_that_exclude_each_other_are_refused() {
        refuse(
            Draft {
                models: vec!["A2".into()],
                exclude_models: vec!["A2".into()],
                node: "n1".into(),
                exclude_nodes: vec!["n1".into()],
                ..draft()
            },
            expect![[r#"
                exclude_models: excludes A2, which models asks for
                exclude_nodes: excludes n1, which node asks for"#]],
        );
    }

    #[test]
    fn a_driver_is_installed_only_where_somebody_looks_for_it_and_by_a_name() {
        let installs = |verify, name: &str| Draft { verify, install_driver: name.into(), ..draft() };
        let request = PlacementRequest::new(installs(VerifyLevel::DriverBound, "nvidia-550")).unwrap();
        assert_eq!(request.install_driver.unwrap().as_str(), "nvidia-550");
        refuse(
            installs(VerifyLevel::Visible, "nvidia"),
            expect![[r#"install_driver: needs verify to be DriverBound"#]],
        );
        refuse(
            installs(VerifyLevel::DriverBound, "sh -c 'reboot'"),
            expect![[
                r#"install_driver: command name "sh -c 'reboot'" has the character ' ' at position 2; allowed are letters, digits, '-', '.', '_', starting with a letter or digit"#
            ]],
        );
    }

    #[test]
    fn a_difference_is_named_by_its_field() {
        let a = PlacementRequest::new(draft()).unwrap();
        let b = PlacementRequest::new(Draft { gpus: 2, ..draft() }).unwrap();
        assert_eq!(a.first_difference(&a), None);
        assert_eq!(a.first_difference(&b), Some("gpus"));
    }
}
