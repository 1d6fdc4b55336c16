//! What a host is told to be, from what its last survey found out: with what people should know beside it. Pure.

use super::answer::{HostWords, Policy, text};
use berth_model::gpu::Finding;
use berth_model::node::{HostFacts, MAX_NOTES, Platform};

/// The facts of a host; unknown ones are zero, and a note says why.
pub(super) fn facts(
    host: Option<&HostWords>,
    module: Option<&str>,
    absent: &[String],
    unknown: &[String],
    accepted: &[Finding],
) -> HostFacts {
    let mut notes: Vec<String> = unknown.iter().map(|why| format!("not surveyed: {}", text(why))).collect();
    let mut system = match host {
        Some(host) => format!("{} {}", host.system, host.version),
        None => "Windows, not surveyed yet".to_owned(),
    };
    if let Some(version) = module {
        system.push_str(", Hyper-V module ");
        system.push_str(version);
    }
    if let Some(host) = host {
        notes.extend(host.reasons.iter().map(|reason| {
            let accepted =
                if reason.overridable() && accepted.contains(reason) { ", accepted by hyperv.accept" } else { "" };
            format!("{reason}{accepted}")
        }));
        notes.extend(host.iov_texts.iter().map(|said| format!("the host says: {}", text(said))));
        notes.extend(policies(host.policy));
    }
    if !absent.is_empty() {
        notes.push(text(&format!("this host's modules lack, and Berth does without: {}", absent.join(", "))));
    }
    notes.truncate(MAX_NOTES);
    HostFacts {
        platform: Platform::HyperV,
        system: text(&system),
        cluster: host.and_then(|host| host.cluster.clone()),
        cpu_milli: host.map_or(0, |host| host.logical_processors.saturating_mul(1000)),
        memory_bytes: host.map_or(0, |host| host.memory_bytes),
        mmio_high_cap_bytes: None,
        notes,
    }
}

/// What group policies demand of assigned devices. A refusal by them is known for GPU partitions alone.
fn policies(policy: Policy) -> impl Iterator<Item = String> {
    let named = [
        ("RequireSecureDeviceAssignment", policy.require_secure),
        ("RequireSupportedDeviceAssignment", policy.require_supported),
    ];
    named.into_iter().filter(|(_, value)| value.is_some_and(|value| value != 0)).map(|(name, _)| {
        format!(
            "the policy {name} is set: it is known to refuse the start of VMs with GPU partitions; that it does so with whole \
             devices is not proven"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn what_is_not_known_is_said_with_the_reason() {
        let unknown = ["the host does not say what it is: Zugriff verweigert\r\n".to_owned()];
        let facts = facts(None, Some("2.0.0.0"), &["Get-ClusterGroup".to_owned()], &unknown, &[]);
        expect![[r#"
            HostFacts {
                platform: HyperV,
                system: "Windows, not surveyed yet, Hyper-V module 2.0.0.0",
                cluster: None,
                cpu_milli: 0,
                memory_bytes: 0,
                mmio_high_cap_bytes: None,
                notes: [
                    "not surveyed: the host does not say what it is: Zugriff verweigert  ",
                    "this host's modules lack, and Berth does without: Get-ClusterGroup",
                ],
            }
        "#]]
        .assert_debug_eq(&facts);
    }

    #[test]
    fn policies_and_reasons_are_told_to_people() {
        let host = HostWords {
            system: "Windows".to_owned(),
            version: "10".to_owned(),
            cluster: None,
            logical_processors: 2,
            memory_bytes: 3,
            reasons: vec![Finding::NoIommu],
            iov_texts: vec!["Es fehlt etwas.".to_owned(); 20],
            policy: Policy { require_secure: Some(1), require_supported: Some(0) },
        };
        let notes = |iov: usize, accepted: &[Finding]| {
            let host = HostWords { iov_texts: vec!["Es fehlt etwas.".to_owned(); iov], ..host.clone() };
            facts(Some(&host), None, &[], &[], accepted).notes
        };
        expect![[r#"
            [
                "the host says that it cannot give devices to VMs (IovSupport is false), accepted by hyperv.accept",
                "the host says: Es fehlt etwas.",
                "the policy RequireSecureDeviceAssignment is set: it is known to refuse the start of VMs with GPU partitions; that it does so with whole devices is not proven",
            ]
        "#]]
        .assert_debug_eq(&notes(1, &[Finding::NoIommu]));
        assert_eq!(notes(20, &[]).len(), MAX_NOTES);
    }
}
