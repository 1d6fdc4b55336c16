//! The queries of dashboards and alerts against a Prometheus that scrapes a running Berth.
//!
//! `BERTH_TEST_PROMETHEUS_URL=http://127.0.0.1:9090 cargo test -p berth-tests --test chart live`

use crate::alerts::every_expression;
use berth_tests::http;
use berth_tests::process::skip;
use std::fmt::Write as _;

/// What a placed VM and a leader surely make: these must have data, whatever else is quiet.
const ALWAYS: [&str; 5] = [
    "sum(berth_leader)",
    "sum(berth_agents_connected)",
    "sum(berth_queue_depth)",
    "max(berth_term)",
    "sum(berth_drift)",
];

fn encoded(text: &str) -> String {
    let mut url = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => url.push(byte.into()),
            _ => write!(url, "%{byte:02X}").unwrap(),
        }
    }
    url
}

#[test]
fn a_prometheus_answers_every_query() {
    let test = "a_prometheus_answers_every_query";
    let Some(prometheus) = berth_tests::config::prometheus_url() else {
        return skip(test, "no Prometheus is named in BERTH_TEST_PROMETHEUS_URL");
    };
    let ask = |expr: &str| {
        let answer = http::get(&prometheus, &format!("/api/v1/query?query={}", encoded(expr))).unwrap();
        let answer = answer.json().unwrap();
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        answer["data"]["result"].as_array().unwrap().len()
    };
    let queries = every_expression().unwrap();
    let quiet: Vec<_> = queries.iter().filter(|query| ask(&query.expr) == 0).map(|query| &query.place).collect();
    println!("{} of {} queries have no data: {quiet:#?}", quiet.len(), queries.len());
    for expr in ALWAYS {
        assert!(ask(expr) > 0, "{expr} has no data: does this Prometheus scrape a controller?");
    }
}
