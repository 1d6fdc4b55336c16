//! A client of plain HTTP/1.1 as small as `curl -d`: no header that nobody asked for, one connection per call.

use anyhow::{Context as _, ensure};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// No call takes longer; a hung server must fail the test and not the night.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {} {}", self.status, self.body))
    }
}

/// `curl -d BODY ENDPOINT/PATH`, with the content type that curl sends when none is given.
///
/// # Errors
/// When the connection fails or the answer is no HTTP.
pub fn post(endpoint: &str, path: &str, body: &str) -> anyhow::Result<Answer> {
    post_as(endpoint, path, "application/x-www-form-urlencoded", body)
}

/// The same with a content type.
///
/// # Errors
/// As [`post`].
pub fn post_as(endpoint: &str, path: &str, content_type: &str, body: &str) -> anyhow::Result<Answer> {
    let length = body.len();
    call(
        endpoint,
        &format!("POST {path}"),
        &format!("Content-Type: {content_type}\r\nContent-Length: {length}\r\n"),
        body,
    )
}

/// A JSON call with one more header.
///
/// # Errors
/// As [`post`].
pub fn post_with(endpoint: &str, path: &str, header: &str, body: &str) -> anyhow::Result<Answer> {
    let length = body.len();
    let headers = format!("Content-Type: application/json\r\n{header}\r\nContent-Length: {length}\r\n");
    call(endpoint, &format!("POST {path}"), &headers, body)
}

/// `curl ENDPOINT/PATH`
///
/// # Errors
/// As [`post`].
pub fn get(endpoint: &str, path: &str) -> anyhow::Result<Answer> {
    call(endpoint, &format!("GET {path}"), "", "")
}

fn call(endpoint: &str, line: &str, headers: &str, body: &str) -> anyhow::Result<Answer> {
    let host = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).with_context(|| format!("cannot connect to {host}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n{headers}Connection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).context("cannot send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("cannot read the answer")?;
    parse(&String::from_utf8(answer).context("the answer is no text")?)
}

fn parse(text: &str) -> anyhow::Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {text:?}"))?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status: {first:?}"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Ok(Answer { status, headers, body })
}

fn unchunk(mut rest: &str) -> anyhow::Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk without its size")?;
        let size = usize::from_str_radix(size, 16).context("a chunk's size is no number")?;
        if size == 0 {
            return Ok(body);
        }
        ensure!(after.is_char_boundary(size) && after.len() >= size + 2, "a chunk is cut off");
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_both_forms() {
        let plain = parse("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n{}").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (404, "{}"));
        let chunked =
            parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!(chunked.body, "abcde");
        assert!(parse("SSH-2.0").is_err());
    }
}
