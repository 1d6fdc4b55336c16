//! The same edge for those who do not speak gRPC: JSON over HTTP, gRPC-Web, and a person with a browser.

use super::*;

#[tokio::test]
async fn json_does_what_grpc_does() {
    let edge = Edge::start().await;
    let request = json!({"request": {"requestId": "r1", "name": "p1", "vm": "vm1", "gpus": 2, "hold": "90.5s",
        "min_vram_bytes": "1024", "verify": "VERIFY_LEVEL_VISIBLE"}});
    let (status, made) = edge.json("/berth.v1.Placements/Create", request.to_string()).await;
    assert_eq!((status, &made["phase"], &made["version"]), (200, &json!("PHASE_HELD"), &json!("1")));
    assert_eq!((&made["request"]["hold"], &made["request"]["minVramBytes"]), (&json!("90.500s"), &json!("1024")));
    assert!(made["created"].as_str().unwrap().ends_with('Z'));
    let (_, got) = edge.json("/berth.v1.Placements/Get", r#"{"name": "p1"}"#).await;
    assert_eq!(got, made);
    let (status, summary) = edge.json("/berth.v1.Inventory/Summarize", "").await;
    assert_eq!((status, &summary["models"][0]["available"]), (200, &json!(4)));
    let (status, released) = edge.json("/berth.v1.Placements/Release", r#"{"name": "p1"}"#).await;
    assert_eq!((status, &released["phase"]), (200, &json!("PHASE_RELEASED")));
}

#[tokio::test]
async fn bad_json_is_refused_with_its_place() {
    let edge = Edge::start().await;
    let create = "/berth.v1.Placements/Create";
    edge.refuse(
        create,
        r#"{"request": {"gpu": 1}}"#,
        expect![[
            r#"400 invalid_argument "INVALID_FIELDS" request: unrecognized field name 'gpu' at line 1 column 18"#
        ]],
    )
    .await;
    edge.refuse(create, r#"{"request": {"gpus": -1}}"#, expect![[r#"400 invalid_argument "INVALID_FIELDS" request.gpus: out of range integral type conversion attempted at line 1 column 23"#]]).await;
    edge.refuse(
        create,
        r#"{"request": {"gpus": 1"#,
        expect![[r#"400 invalid_argument "INVALID_FIELDS" request: EOF while parsing an object at line 1 column 22"#]],
    )
    .await;
    edge.refuse(
        create,
        "{} {}",
        expect![[r#"400 invalid_argument "INVALID_FIELDS" body: trailing characters at line 1 column 4"#]],
    )
    .await;
    edge.refuse(
        create,
        "[]",
        expect![[
            r#"400 invalid_argument "INVALID_FIELDS" body: invalid type: sequence, expected a map at line 1 column 0"#
        ]],
    )
    .await;
    edge.refuse(create, r#"{"request": {"name": "a b", "hold": "-1s"}}"#, expect![[r#"400 invalid_argument "INVALID_FIELDS" request.hold: is negative; request.request_id: request id is empty; request.name: placement name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit; request.vm: VM name is empty; request.gpus: 0 is not from 1 to 16"#]]).await;
    edge.refuse("/berth.v1.Placements/Make", "{}", expect![[r#"404 unimplemented "" berth.v1.Placements has no method "Make"; it has Create, Get, List, Watch, Commit, Release, Adopt, Plan"#]]).await;
    edge.refuse("/berth.v2.Placements/Create", "{}", expect![[r#"404 unimplemented "" there is no service "berth.v2.Placements"; there are berth.v1.Inventory, berth.v1.Placements, berth.v1.NodeAgent, berth.v1.Operations, berth.v1.Peers"#]]).await;
    edge.refuse(
        "/x",
        "{}",
        expect![[r#"404 unimplemented "" "/x" is not of the form /SERVICE/METHOD; GET / shows an example"#]],
    )
    .await;
    edge.refuse(
        "/berth.v1.NodeAgent/Session",
        "{}",
        expect![[r#"501 unimplemented "" berth.v1.NodeAgent.Session takes a stream: call it by gRPC"#]],
    )
    .await;
    edge.refuse(
        "/berth.v1.Placements/Get",
        r#"{"name": "p9"}"#,
        expect![[r#"404 not_found "UNKNOWN_PLACEMENT" placement p9 does not exist"#]],
    )
    .await;
    let (status, _) = edge.json(create, " ".repeat(crate::api::MAX_REQUEST_BYTES + 1)).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn a_json_error_carries_its_details() {
    let edge = Edge::start().await;
    let request = json!({"request": {"requestId": "r", "name": "p", "vm": "v", "gpus": 16}});
    let (status, error) = edge.json("/berth.v1.Placements/Create", request.to_string()).await;
    assert_eq!(
        (status, &error["code"], &error["reason"]),
        (429, &json!("resource_exhausted"), &json!("NOT_PLACEABLE"))
    );
    let details = error["details"].as_array().unwrap();
    let find = |name: &str| details.iter().find(|detail| detail["@type"] == format!("type.googleapis.com/{name}"));
    assert_eq!(find("google.rpc.RetryInfo").unwrap()["retryDelay"], "30s");
    assert_eq!(find("berth.v1.Explanation").unwrap()["nearest"]["node"], "n1");
    let (_, error) = edge.json("/berth.v1.Placements/Create", r#"{"request": {}}"#).await;
    let fields = &error["details"][1]["fieldViolations"];
    assert_eq!(fields[0]["field"], "request.request_id", "{error}");
}

#[tokio::test]
async fn json_streams_one_object_a_line() {
    let edge = Edge::start().await;
    edge.placements().await.create(ask("p", 1)).await.unwrap();
    let request = http::Request::post("/berth.v1.Placements/Watch").header("content-type", "application/json");
    let response = edge.router.clone().oneshot(request.body(Body::from("{}")).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut body = response.into_body().into_data_stream();
    let mut line = async || {
        let data = futures::StreamExt::next(&mut body).await.unwrap().unwrap();
        assert!(data.ends_with(b"\n"), "{data:?}");
        serde_json::from_slice::<Value>(&data).unwrap()
    };
    assert_eq!(line().await["placement"]["request"]["name"], "p");
    edge.leader.submit(Input::Release { name: "p".parse().unwrap(), uid: None, version: None }).await.unwrap();
    assert_eq!(line().await["placement"]["phase"], "PHASE_RELEASED");
}

#[tokio::test]
async fn a_broken_stream_ends_with_its_error() {
    let edge = Edge::start().await;
    let request = http::Request::post("/berth.v1.Placements/Watch").header("content-type", "application/json");
    let request = request.body(Body::from(r#"{"afterRevision": "1"}"#)).unwrap();
    let (_, _, text) = edge.send(request).await;
    assert!(text.contains("out_of_range") && text.ends_with('\n'), "{text}");
}

#[tokio::test]
async fn curl_without_a_header_is_understood_and_a_web_page_is_not() {
    let edge = Edge::start().await;
    let form = |origin: Option<&str>| {
        let mut request = http::Request::post("/berth.v1.Inventory/Summarize")
            .header("content-type", "application/x-www-form-urlencoded");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        request.body(Body::from("{}")).unwrap()
    };
    assert_eq!(edge.send(form(None)).await.0, 200);
    let (status, _, text) = edge.send(form(Some("https://elsewhere.example"))).await;
    assert_eq!(status, 415, "{text}");
    let plain = http::Request::post("/berth.v1.Inventory/Summarize").header("content-type", "text/plain");
    assert_eq!(edge.send(plain.body(Body::from("{}")).unwrap()).await.0, 415);
}

#[tokio::test]
async fn a_browser_is_told_what_this_is() {
    let edge = Edge::start().await;
    let get = |path: &str| http::Request::get(path).body(Body::empty()).unwrap();
    let (status, _, text) = edge.send(get("/")).await;
    assert!(status == 200 && text.contains("curl -d"), "{status} {text}");
    let (status, _, text) = edge.send(get("/berth.v1.Placements/List")).await;
    assert!(status == 405 && text.contains("curl"), "{status} {text}");
    assert_eq!(edge.send(get("/favicon.ico")).await.0, 404);
}

#[tokio::test]
async fn grpc_web_works_over_http_1() {
    let edge = Edge::start().await;
    let request = http::Request::post("/berth.v1.Inventory/Summarize")
        .header("content-type", "application/grpc-web+proto")
        .body(Body::from(vec![0_u8; 5]))
        .unwrap();
    let response = edge.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"), "{body:?}");
}
