//! The same methods as JSON: `POST /berth.v1.Placements/Create` with a JSON body, on the same port.
//!
//! Canonical protobuf JSON both ways (unknown fields refused, lowerCamelCase out, either case in, 64-bit numbers as
//! text). A call is turned into a gRPC call on the router in this process, so that every method works without being
//! listed here. Streams come as one JSON object a line. Must never do anything that the gRPC method does not do.

use super::MAX_REQUEST_BYTES;
use super::forward::{MIN_REVISION, REVISION};
use crate::identity::Caller;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use berth_model::request::FieldError;
use berth_proto::convert::Invalid;
use berth_proto::status::Problem;
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::StreamExt as _;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use tonic_types::pb;

/// How long a body may take to arrive: it is 4 MiB at most, and who sends slower keeps a place from others.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// Headers of a call that its method sees.
const PASSED_ON: [&str; 3] = ["traceparent", "grpc-timeout", MIN_REVISION];

/// Turns JSON calls into gRPC calls on a router.
#[derive(Clone)]
pub(crate) struct Transcoder {
    grpc: axum::Router,
    methods: DescriptorPool,
    details: DescriptorPool,
}

/// An error of the JSON edge, or of the call itself.
struct Failure {
    http: StatusCode,
    status: Status,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self { http: http_status(status.code()), status }
    }
}

/// As the Connect protocol maps codes to HTTP (https://connectrpc.com/docs/protocol#error-codes).
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // 499, "client closed request", has no name in the registry.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A code as JSON names it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "canceled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// One of our own descriptors does not parse: the build is broken.
#[derive(Debug, thiserror::Error)]
#[error("the built-in descriptors cannot be read: {0}")]
pub struct BrokenDescriptors(#[from] prost_reflect::DescriptorError);

impl Transcoder {
    /// Transcodes to the services of `grpc`.
    pub(crate) fn new(grpc: axum::Router) -> Result<Self, BrokenDescriptors> {
        Ok(Self {
            grpc,
            methods: DescriptorPool::decode(berth_proto::DESCRIPTORS)?,
            details: DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET)?,
        })
    }

    /// Answers one call.
    pub(crate) async fn call(&self, request: http::Request<Body>) -> Response {
        match self.try_call(request).await {
            Ok(response) => response,
            Err(failure) => self.failed(&failure),
        }
    }

    async fn try_call(&self, request: http::Request<Body>) -> Result<Response, Failure> {
        let (parts, body) = request.into_parts();
        let method = self.method(&parts.uri)?;
        if parts.method != Method::POST {
            return Err(Failure {
                http: StatusCode::METHOD_NOT_ALLOWED,
                status: Status::unimplemented(format!("{} is called by POST, {}", parts.uri.path(), example(&method))),
            });
        }
        check_content_type(&parts.headers)?;
        if method.is_client_streaming() {
            return Err(Status::unimplemented(format!("{} takes a stream: call it by gRPC", method.full_name())).into());
        }
        let body = tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, MAX_REQUEST_BYTES)).await;
        let body = match body {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => {
                return Err(Failure {
                    http: StatusCode::PAYLOAD_TOO_LARGE,
                    status: Status::invalid_argument(format!(
                        "the body could not be read ({error}); at most {MAX_REQUEST_BYTES} bytes are taken"
                    )),
                });
            }
            Err(_) => return Err(Status::deadline_exceeded("the body did not arrive in time").into()),
        };
        let message = read(method.input(), &body)?;
        let mut call = tonic::Request::new(Bytes::from(message.encode_to_vec()));
        for name in PASSED_ON {
            if let Some(value) = parts.headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok()) {
                call.metadata_mut().insert(name, value);
            }
        }
        *call.extensions_mut() = extensions(&parts.extensions);
        self.forward(&method, &parts.uri, call).await
    }

    /// Calls the method on the router in this process.
    async fn forward(
        &self,
        method: &MethodDescriptor,
        uri: &Uri,
        call: tonic::Request<Bytes>,
    ) -> Result<Response, Failure> {
        let path: PathAndQuery = uri.path().parse().map_err(|_| Status::invalid_argument("the path is illegal"))?;
        // What comes from this very process has been bounded where it was made.
        let mut client = tonic::client::Grpc::new(self.grpc.clone()).max_decoding_message_size(usize::MAX);
        if let Err(never) = client.ready().await {
            match never {}
        }
        let output = method.output();
        if !method.is_server_streaming() {
            let (metadata, answer, _) = client.unary(call, path, Raw).await?.into_parts();
            let mut response = ([(CONTENT_TYPE, JSON)], write(&output, answer)?).into_response();
            if let Some(revision) = metadata.into_headers().remove(REVISION) {
                response.headers_mut().insert(REVISION, revision);
            }
            return Ok(response);
        }
        let answers = client.server_streaming(call, path, Raw).await?.into_inner();
        let this = self.clone();
        let lines = answers.map(move |answer| {
            // An error ends the stream as its last line: the head has been sent long since.
            let line = answer.and_then(|answer| write(&output, answer));
            Ok::<_, std::convert::Infallible>(match line {
                Ok(line) => Bytes::from(line),
                Err(status) => Bytes::from(line_of(&json!({ "error": this.error(&status) }))),
            })
        });
        Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
    }

    fn method(&self, uri: &Uri) -> Result<MethodDescriptor, Failure> {
        let missing = |message: String| Failure { http: StatusCode::NOT_FOUND, status: Status::unimplemented(message) };
        let path = uri.path();
        let (service, method) = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .ok_or_else(|| missing(format!("{path:?} is not of the form /SERVICE/METHOD; GET / shows an example")))?;
        let Some(service) = self.methods.get_service_by_name(service) else {
            let known: Vec<_> = self.methods.services().map(|service| service.full_name().to_owned()).collect();
            return Err(missing(format!("there is no service {service:?}; there are {}", known.join(", "))));
        };
        service.methods().find(|known| known.name() == method).ok_or_else(|| {
            let known: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
            missing(format!("{} has no method {method:?}; it has {}", service.full_name(), known.join(", ")))
        })
    }

    fn failed(&self, failure: &Failure) -> Response {
        let mut response =
            (failure.http, [(CONTENT_TYPE, JSON)], line_of(&self.error(&failure.status))).into_response();
        if failure.http == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }

    /// A status as JSON.
    fn error(&self, status: &Status) -> Value {
        let details = pb::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
        json!({
            "code": code_name(status.code()),
            "message": status.message(),
            "reason": Problem::from_status(status).reason,
            "details": details.iter().filter_map(|any| self.detail(any)).collect::<Vec<_>>(),
        })
    }

    /// A detail as canonical JSON, its type in `@type`. One of an unknown type is left out.
    fn detail(&self, any: &prost_types::Any) -> Option<Value> {
        let name = any.type_url.rsplit('/').next()?;
        let descriptor = [&self.methods, &self.details].into_iter().find_map(|pool| pool.get_message_by_name(name))?;
        let message = DynamicMessage::decode(descriptor, any.value.as_slice()).ok()?;
        let mut value = serde_json::to_value(&message).ok()?;
        value.as_object_mut()?.insert("@type".to_owned(), Value::String(any.type_url.clone()));
        Some(value)
    }
}

/// JSON must say that it is JSON, so that no web page can make a browser send it without asking first (a "simple
/// request"). `curl -d` says that it sends a form; that is taken where no browser can be behind it.
fn check_content_type(headers: &HeaderMap) -> Result<(), Failure> {
    let kind =
        headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim());
    let by_hand = matches!(kind, None | Some("application/x-www-form-urlencoded")) && !headers.contains_key(ORIGIN);
    if by_hand || kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    Err(Failure {
        http: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        status: Status::invalid_argument("send JSON, with the header content-type: application/json"),
    })
}

/// What the connection knows of the caller.
fn extensions(extensions: &http::Extensions) -> tonic::Extensions {
    let mut passed = tonic::Extensions::new();
    if let Some(caller) = extensions.get::<Caller>() {
        passed.insert(caller.clone());
    }
    passed
}

fn example(method: &MethodDescriptor) -> String {
    format!(
        "for example: curl -H 'content-type: application/json' -d '{{}}' http://127.0.0.1:7600/{}/{}",
        method.parent_service().full_name(),
        method.name()
    )
}

/// Reads canonical JSON; an empty body is an empty message.
fn read(descriptor: MessageDescriptor, body: &[u8]) -> Result<DynamicMessage, Failure> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(descriptor));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let read = DynamicMessage::deserialize(descriptor, tracked);
    match read.and_then(|message| json.end().map(|()| message)) {
        Ok(message) => Ok(message),
        Err(error) => {
            let path = track.path().to_string();
            // What ended within a message is told by that message's path; the outermost has none.
            let field = path.trim_end_matches(['.', '?']);
            let field = if field.is_empty() { "body" } else { field };
            Err(Status::from(Invalid(vec![FieldError::new(field, error)])).into())
        }
    }
}

/// Writes canonical JSON, one line.
fn write(descriptor: &MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Status> {
    let wrong =
        |error: &dyn std::fmt::Display| Status::internal(format!("the answer cannot be shown as JSON: {error}"));
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|error| wrong(&error))?;
    let mut line = serde_json::to_vec(&message).map_err(|error| wrong(&error))?;
    line.push(b'\n');
    Ok(line)
}

fn line_of(value: &Value) -> String {
    format!("{value}\n")
}

/// Passes messages through as they are on the wire.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
