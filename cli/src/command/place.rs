//! `berth place`: ask for GPUs, and wait for them where asked to.

use super::wait::{self, Goal};
use crate::args::{Format, Place, ReturnTo, Verify};
use crate::client::Client;
use crate::error::{Error, Unsure};
use crate::output::{Out, table};
use crate::progress::Progress;
use berth_proto::v1;
use std::time::Duration;

/// Runs the verb.
///
/// # Errors
/// A refusal with its reasons, a failure while waiting, or what the call ran into.
pub async fn run(client: &Client, args: Place, out: &mut Out<'_>) -> Result<(), Error> {
    let (wait, timeout, format) = (args.wait, args.timeout, args.output.format);
    let request = request(args);
    let unsure = Unsure::Repeat { request_id: request.request_id.clone() };
    let message = v1::CreatePlacementRequest { request: Some(request) };
    let mut placement = client
        .write(message, unsure, |r| {
            let mut api = client.placements();
            async move { api.create(r).await }
        })
        .await?;
    if wait {
        let mut progress = Progress::stderr();
        placement = wait::until(client, placement, Goal::Active, timeout, &mut progress).await?;
    }
    match format {
        Format::Table | Format::Wide => {
            let one = table::placements(std::slice::from_ref(&placement), format == Format::Wide, out.style);
            out.table(one, "")?;
            let next = super::describe::placement::next(&placement, None, out.style);
            out.line(format_args!("\n{next}"))
        }
        Format::Json | Format::Yaml => out.message(format, "Placement", &placement),
    }
}

/// The request as the API takes it.
fn request(args: Place) -> v1::PlacementRequest {
    let Place {
        name,
        vm,
        gpus,
        models,
        exclude_models,
        min_vram,
        node,
        exclude_nodes,
        cluster,
        spread_group,
        require_numa,
        cpu,
        memory,
        hold,
        queue,
        allow_standalone,
        verify,
        install_driver,
        return_to,
        request_id,
        wait: _,
        timeout: _,
        output: _,
    } = args;
    let locality = if require_numa { v1::Locality::Required } else { v1::Locality::Preferred };
    let verify = match verify {
        Verify::None => v1::VerifyLevel::None,
        Verify::Visible => v1::VerifyLevel::Visible,
        Verify::DriverBound => v1::VerifyLevel::DriverBound,
    };
    let return_to = match return_to {
        ReturnTo::Host => v1::ReturnTo::Host,
        ReturnTo::Pool => v1::ReturnTo::Pool,
    };
    let resources = v1::Resources {
        cpu_milli: cpu.unwrap_or_default(),
        memory_bytes: memory.map(|size| size.as_u64()).unwrap_or_default(),
    };
    v1::PlacementRequest {
        request_id: request_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        name,
        vm,
        gpus,
        models,
        exclude_models,
        min_vram_bytes: min_vram.map(|size| size.as_u64()).unwrap_or_default(),
        node: node.unwrap_or_default(),
        exclude_nodes,
        cluster: cluster.unwrap_or_default(),
        spread_group: spread_group.unwrap_or_default(),
        locality: locality.into(),
        resources: (resources != v1::Resources::default()).then_some(resources),
        hold: hold.map(wire_duration),
        queue: queue.map(wire_duration),
        allow_standalone,
        verify: verify.into(),
        return_to: return_to.into(),
        install_driver: install_driver.unwrap_or_default(),
    }
}

/// A length of time on the wire; one too long for it becomes the longest, which the controller refuses by name.
pub(crate) fn wire_duration(length: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(length.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;

    fn parse(line: &str) -> v1::PlacementRequest {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Place(args) = cli.command else { panic!("{:?}", cli.command) };
        request(*args)
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let got = parse(
            "berth place p --vm v --gpus 4 --model A16,A30 --exclude-model H100 --min-vram 24GiB --node n --exclude-node m \
             --cluster c --spread-group g --require-numa --cpu 0.5 --memory 64GiB --hold 10m --queue 2h --allow-standalone \
             --verify driver-bound --install-driver nvidia --return-to pool --request-id r",
        );
        let wanted = v1::PlacementRequest {
            request_id: "r".into(),
            name: "p".into(),
            vm: "v".into(),
            gpus: 4,
            models: vec!["A16".into(), "A30".into()],
            exclude_models: vec!["H100".into()],
            min_vram_bytes: 24 << 30,
            node: "n".into(),
            exclude_nodes: vec!["m".into()],
            cluster: "c".into(),
            spread_group: "g".into(),
            locality: v1::Locality::Required.into(),
            resources: Some(v1::Resources { cpu_milli: 500, memory_bytes: 64 << 30 }),
            hold: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            queue: Some(prost_types::Duration { seconds: 7200, nanos: 0 }),
            allow_standalone: true,
            verify: v1::VerifyLevel::DriverBound.into(),
            return_to: v1::ReturnTo::Pool.into(),
            install_driver: "nvidia".into(),
        };
        assert_eq!(got, wanted);
    }

    #[test]
    fn each_request_without_an_id_gets_its_own() {
        let (a, b) = (parse("berth place p --vm v"), parse("berth place p --vm v"));
        assert_ne!(a.request_id, b.request_id);
        assert_eq!(a.request_id.len(), 36);
    }
}
