//! Reflection, in the version that is current and in the one that common clients still speak.

use super::dev;
use tonic::transport::Endpoint;
use tonic_reflection::pb::{v1, v1alpha};

const SERVICES: [&str; 4] = ["berth.v1.Inventory", "berth.v1.NodeAgent", "berth.v1.Operations", "berth.v1.Placements"];

fn all_there(listed: &[String]) {
    for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
        assert!(listed.iter().any(|name| name == service), "{service} is not in {listed:?}");
    }
}

#[tokio::test]
async fn both_versions_list_all_services() -> anyhow::Result<()> {
    let dev = tokio::task::spawn_blocking(|| dev(1, &[])).await??;
    let channel = Endpoint::from_shared(dev.endpoint.clone())?.connect().await?;

    let ask = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answer = client.server_reflection_info(tokio_stream::once(ask)).await?.into_inner().message().await?.unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer.message_response
    else {
        panic!("not a list: {answer:?}");
    };
    all_there(&list.service.into_iter().map(|service| service.name).collect::<Vec<_>>());

    let ask = v1alpha::ServerReflectionRequest {
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answer = client.server_reflection_info(tokio_stream::once(ask)).await?.into_inner().message().await?.unwrap();
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("not a list: {answer:?}");
    };
    all_there(&list.service.into_iter().map(|service| service.name).collect::<Vec<_>>());
    Ok(())
}
