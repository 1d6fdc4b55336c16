//! Values that cannot be: each is refused before anything is installed, with a sentence that says what to do.

use berth_tests::chart::{example, helm};

/// Example, what is set beside it, and what must be said.
const BAD: &[(&str, &[&str], &str)] = &[
    ("small", &["image.repository="], "image.repository is empty: no image of Berth is published"),
    ("small", &["controller.replicas=2"], "set replicas to 1, or store to etcd"),
    ("small", &["controller.replicas=0"], "at '/controller/replicas': minimum: got 0, want 1"),
    ("small", &["contoller.replicas=1"], "additional properties 'contoller' not allowed"),
    ("small", &["controller.store=memory"], "at '/controller/store': value must be one of 'etcd', 'embedded'"),
    ("small", &["controller.settings.limits.hodl=3s"], "additional properties 'hodl' not allowed"),
    (
        "small",
        &["controller.settings.limits.hold=soon"],
        "at '/controller/settings/limits/hold': 'soon' does not match",
    ),
    ("small", &["controller.port=80"], "at '/controller/port': minimum: got 80, want 1,024"),
    ("small", &["tls.mode=secret"], "tls.secretName is empty: name a secret with tls.crt, tls.key and ca.crt"),
    ("small", &["tls.mode=certManager"], "tls.certManager.issuer.name is empty"),
    ("small", &["telemetry.endpoint=otel:4317"], "at '/telemetry/endpoint'"),
    ("small", &["telemetry.sample=2"], "at '/telemetry/sample': maximum: got 2, want 1"),
    ("small", &["telemetry.caSecretName=otel-ca"], "is for a collector that is https://"),
    ("small", &["controller.perPodServices.enabled=true"], "controller.perPodServices needs controller.advertise"),
    ("ha", &["etcd.bundled.members=2"], "at '/etcd/bundled/members': value must be one of 1, 3, 5"),
    ("ha", &["etcd.bundled.image.repository="], "etcd.bundled.image.repository and its tag or digest are missing"),
    ("ha", &["etcd.bundled.tls.mode=secret"], "etcd.bundled.tls.secretName is empty"),
    ("ha", &["controller.advertise=https://berth.example.com:7600"], "agents could not tell them apart"),
    ("ha", &["controller.advertise=http://berth-{ordinal}.example.com:7600"], "must begin with https://"),
    ("ha", &["controller.advertise=https://berth-{ordinal}.example.com"], "at '/controller/advertise'"),
    ("ha", &["etcd.mode=external"], "etcd.external.endpoints is empty"),
    (
        "external-etcd",
        &["etcd.external.endpoints={http://etcd-1.example:2379}"],
        "write https://, or leave the secret out",
    ),
    ("external-etcd", &["etcd.external.endpoints={etcd-1.example}"], "at '/etcd/external/endpoints/0'"),
    ("external-etcd", &["etcd.external.passwordSecretName="], "belong together: set both or neither"),
    ("vfio", &["agent.dataHostPath=data"], "at '/agent/dataHostPath'"),
    ("vfio", &["agent.settings.driver=sim"], "additional properties 'driver' not allowed"),
];

#[test]
fn values_that_cannot_be_are_refused_with_what_to_do() {
    let Some(helm) = helm("values_that_cannot_be_are_refused_with_what_to_do") else { return };
    let mut wrong = Vec::new();
    for (name, set, sentence) in BAD {
        let ran = helm.call(&["template", "berth"], &[&example(name)], set).unwrap();
        if ran.code == Some(0) || !ran.stderr.contains(sentence) {
            wrong.push(format!("{name} with {set:?} should say {sentence:?}, and said: {}", ran.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn values_as_they_come_are_not_enough_and_say_so() {
    let Some(helm) = helm("values_as_they_come_are_not_enough_and_say_so") else { return };
    let ran = helm.call(&["template", "berth"], &[], &[]).unwrap();
    assert!(ran.code != Some(0) && ran.stderr.contains("image.repository is empty"), "{}", ran.stderr);
}
