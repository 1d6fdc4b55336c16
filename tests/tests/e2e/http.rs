//! Plain HTTP with JSON on the gRPC port, as `curl -d` sends it.

use super::{dev, wait_phase};
use berth_tests::http::{get, post, post_as};

#[test]
fn curl_places_and_releases() -> anyhow::Result<()> {
    let dev = dev(1, &[])?;
    let create = r#"{"request": {"requestId": "order-1", "name": "web", "vm": "web-vm", "gpus": 1}}"#;
    let created = post(&dev.endpoint, "/berth.v1.Placements/Create", create)?;
    assert_eq!(created.status, 200, "{}", created.body);
    let created = created.json()?;
    assert_eq!(created["request"]["name"], "web");
    assert!(created["assignment"]["gpus"][0]["address"].is_string(), "{created:#}");
    // Canonical JSON: 64-bit numbers are strings.
    assert!(created["version"].is_string(), "{created:#}");

    let again = post_as(&dev.endpoint, "/berth.v1.Placements/Create", "application/json", create)?.json()?;
    assert_eq!(again["uid"], created["uid"], "the same request id is the same placement");

    let active = wait_phase(&dev, "web", "PHASE_ACTIVE")?;
    assert_eq!(active["uid"], created["uid"]);
    let released = post(&dev.endpoint, "/berth.v1.Placements/Release", r#"{"name": "web"}"#)?;
    assert_eq!(released.status, 200, "{}", released.body);
    wait_phase(&dev, "web", "PHASE_RELEASED")?;
    Ok(())
}

#[test]
fn what_is_no_call_gets_a_hint() -> anyhow::Result<()> {
    let dev = dev(1, &[])?;
    let unknown_field = post(
        &dev.endpoint,
        "/berth.v1.Placements/Create",
        r#"{"request": {"requestId": "r", "name": "n", "vm": "v", "gpus": 1, "modle": "A2"}}"#,
    )?;
    assert_eq!(unknown_field.status, 400, "{}", unknown_field.body);
    assert!(unknown_field.body.contains("modle"), "the field is named: {}", unknown_field.body);

    let no_json = post(&dev.endpoint, "/berth.v1.Placements/Create", "gpus=1")?;
    assert_eq!(no_json.status, 400, "{}", no_json.body);

    let hint = get(&dev.endpoint, "/berth.v1.Placements/List")?;
    assert_eq!(hint.status, 405, "{}", hint.body);
    assert!(hint.body.contains("POST"), "{}", hint.body);

    let no_method = post(&dev.endpoint, "/berth.v1.Placements/Steal", "{}")?;
    assert_eq!(no_method.status, 404, "{}", no_method.body);

    let not_found = post(&dev.endpoint, "/berth.v1.Placements/Get", r#"{"name": "nothing"}"#)?;
    assert_eq!(not_found.status, 404, "{}", not_found.body);
    let not_found = not_found.json()?;
    assert_eq!(not_found["code"], "not_found", "{not_found:#}");
    assert!(not_found["message"].as_str().unwrap().contains("nothing does not exist"), "{not_found:#}");
    Ok(())
}
