//! The verbs as a script sees them: exit code, answer, error text. Against a described fleet, a controller that is not
//! there, and a stand-in that misbehaves.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use berth::args::Cli;
use berth::error::Exit;
use berth::output::Style;
use berth_model::Timestamp;
use berth_proto::v1;
use berth_proto::v1::inventory_server::{Inventory, InventoryServer};
use berth_proto::v1::operations_server::{Operations, OperationsServer};
use berth_proto::v1::placements_server::{Placements, PlacementsServer};
use clap::Parser as _;
use expect_test::{Expect, expect};
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

async fn berth(line: &str) -> (Exit, String, String) {
    let cli = Cli::try_parse_from(std::iter::once("berth").chain(line.split_whitespace())).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let style = Style { colour: false, clock: || Timestamp::from_millis(1_795_382_868_000) };
    let exit = berth::run(cli, &mut out, &mut err, style).await;
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

async fn check(line: &str, exit: Exit, out: Expect, err: Expect) {
    let (got, answer, error) = berth(line).await;
    assert_eq!(got, exit, "{line}: {error}");
    out.assert_eq(&answer);
    err.assert_eq(&error);
}

/// Writes files into a directory of their own and gives their paths.
fn files<const N: usize>(files: [(&str, &str); N]) -> (tempfile::TempDir, [String; N]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = files.map(|(name, text)| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    });
    (dir, paths)
}

const FLEET: &str = "
nodes:
  - name: hv-{01..02}
    cpu: 32
    memory: 128GiB
    gpus: [{ model: A16, count: 4 }]
  - name: hv-03
    gpus: [{ model: A30, count: 2 }]
";

#[tokio::test]
async fn a_plan_that_does_not_fit_says_why_and_what_would_help() {
    let (_dir, [fleet, workloads]) = files([
        ("fleet.yaml", FLEET),
        (
            "workloads.yaml",
            "- { name: render, gpus: 4, models: [A16], count: 3 }\n- { name: infer, models: [A30] }\n- { name: dream, models: [H100] }\n",
        ),
    ]);
    check(&format!("plan -f {workloads} --fleet {fleet}"), Exit::NotPlaceable, expect![[r#"
        WORKLOAD    GPUS   ASKED   FITS   NODE    MODEL
        render-01      4   A16     yes    hv-01   A16
        render-02      4   A16     yes    hv-02   A16
        render-03      4   A16     no
        infer          1   A30     yes    hv-03   A30
        dream          1   H100    no

        render-03: none of 3 nodes can give 4 GPUs now
          nodes by reason: NotEnoughFree 2, NoSuchGpu 1
          nearest is hv-01: only 0 of 4 A16 are available
            it would fit if workload render-01 releases PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0000)#PCI(0000), PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0400)#PCI(0000), PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0800)#PCI(0000), PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0C00)#PCI(0000) (A16)
          hv-02: only 0 of 4 A16 are available
          hv-03: no GPU as asked for; it has A30

        dream: no GPU of model H100 is known; known are A16, A30
    "#]], expect![[r#"
        error: 2 of 5 do not fit
    "#]]).await;
}

#[tokio::test]
async fn a_plan_that_fits_exits_with_0_and_speaks_canonical_json() {
    let (_dir, [fleet, workloads]) =
        files([("fleet.yaml", FLEET), ("workloads.yaml", "- { name: infer, models: [A30] }\n")]);
    check(
        &format!("plan -f {workloads} --fleet {fleet} -o json"),
        Exit::Done,
        expect![[r#"
            {
              "planned": [
                {
                  "name": "infer",
                  "assignment": {
                    "node": "hv-03",
                    "gpus": [
                      {
                        "address": "PCIROOT(10)#PCI(0100)#PCI(0000)",
                        "model": "A30",
                        "fingerprint": {
                          "pciId": "10de:20b7",
                          "serial": "SN-hv-03-01"
                        },
                        "mmio": {
                          "lowBytes": "16777216",
                          "highBytes": "34393292800"
                        }
                      }
                    ],
                    "pin": {
                      "reason": "PIN_REASON_DEVICE_ASSIGNMENT",
                      "since": "2026-11-22T21:27:48Z"
                    }
                  }
                }
              ]
            }
        "#]],
        expect![""],
    )
    .await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_bad_usage() {
    let (_dir, [fleet, workloads]) =
        files([("fleet.yaml", "nodes: [{ name: a, gpus: [{ model: A9 }] }]"), ("w.yaml", "- { name: a }")]);
    let (exit, _, error) = berth(&format!("plan -f {workloads} --fleet {fleet}")).await;
    assert_eq!(exit, Exit::Usage);
    assert!(error.contains("fleet.yaml:1: nodes[0].gpus[0].model: model A9 is not known"), "{error}");
    let (exit, _, error) = berth("plan -f /nonexistent.yaml").await;
    assert_eq!(exit, Exit::Usage);
    assert!(error.starts_with("error: /nonexistent.yaml: cannot be read: "), "{error}");
}

#[tokio::test]
async fn flags_without_meaning_are_bad_usage() {
    for line in [
        "get nodes --all",
        "get nodes --state attached",
        "get gpus --state active",
        "get gpus hv-01",
        "get gpus hv-01/0000:41:00.0 --state host",
        "get vms --model A2",
        "get placements p --node n",
        "get nodes --endpoint ftp://localhost",
        "get nodes --endpoint :",
    ] {
        let (exit, _, error) = berth(line).await;
        assert_eq!(exit, Exit::Usage, "{line}: {error}");
    }
}

/// A port on which nobody listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn nobody_there_is_exit_5_and_names_the_way_out() {
    let port = closed_port();
    for line in ["get nodes", "place p --vm v", "release p", "commit p"] {
        let (exit, _, error) = berth(&format!("{line} --endpoint http://127.0.0.1:{port} --deadline 2s")).await;
        assert_eq!(exit, Exit::Unavailable, "{line}: {error}");
        let wanted = format!("error: no controller answers at http://127.0.0.1:{port}: cannot connect: ");
        assert!(error.starts_with(&wanted) && error.contains("berth dev"), "{line}: {error}");
    }
}

#[tokio::test]
async fn completions_name_the_verbs() {
    let (exit, script, _) = berth("completions bash").await;
    assert_eq!(exit, Exit::Done);
    assert!(script.contains("describe") && script.contains("capacity"), "{script}");
}

/// What the stand-in was asked, and how often it still fails.
#[derive(Default)]
struct Told {
    request_ids: Vec<String>,
    failures: Vec<Status>,
}

struct StandIn(Arc<Mutex<Told>>);

type Stream = tokio_stream::Empty<Result<v1::PlacementChange, Status>>;

#[tonic::async_trait]
impl Placements for StandIn {
    type WatchStream = Stream;

    async fn create(&self, call: Request<v1::CreatePlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        let request = call.into_inner().request;
        let mut told = self.0.lock().unwrap();
        told.request_ids.push(request.clone().unwrap_or_default().request_id);
        match told.failures.pop() {
            Some(status) => Err(status),
            None => Ok(Response::new(v1::Placement { request, phase: v1::Phase::Held.into(), ..Default::default() })),
        }
    }

    async fn commit(&self, _: Request<v1::CommitPlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        let mut told = self.0.lock().unwrap();
        told.request_ids.push("commit".into());
        Err(told.failures.pop().unwrap_or_else(|| Status::internal("asked once too often")))
    }

    async fn get(&self, _: Request<v1::GetPlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        Err(Status::not_found("placement p does not exist"))
    }

    async fn list(
        &self,
        _: Request<v1::ListPlacementsRequest>,
    ) -> Result<Response<v1::ListPlacementsResponse>, Status> {
        Ok(Response::new(v1::ListPlacementsResponse::default()))
    }

    async fn watch(&self, _: Request<v1::WatchPlacementsRequest>) -> Result<Response<Stream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn release(&self, _: Request<v1::ReleasePlacementRequest>) -> Result<Response<v1::Placement>, Status> {
        Err(Status::not_found("placement p does not exist"))
    }

    async fn adopt(&self, call: Request<v1::AdoptRequest>) -> Result<Response<v1::AdoptResponse>, Status> {
        let v1::AdoptRequest { dry_run, vms, owner, .. } = call.into_inner();
        let mut told = self.0.lock().unwrap();
        told.request_ids.push(format!("dry_run {dry_run} vms {vms:?} owner {owner}"));
        if let Some(status) = told.failures.pop() {
            return Err(status);
        }
        let named = |id: &str, outcome: v1::AdoptOutcome| v1::AdoptedVm {
            vm: Some(v1::ObservedVm { id: id.into(), name: format!("vm-{id}"), ..Default::default() }),
            outcome: outcome.into(),
            placement: format!("p-{id}"),
            ..Default::default()
        };
        let vms = match (dry_run, vms.is_empty()) {
            (true, _) => vec![named("1", v1::AdoptOutcome::Would), named("2", v1::AdoptOutcome::Skipped)],
            (false, _) => vms.iter().map(|id| named(id, v1::AdoptOutcome::Adopted)).collect(),
        };
        Ok(Response::new(v1::AdoptResponse { vms, revision: 7 }))
    }

    async fn plan(&self, _: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        Err(Status::internal("the planner fell over"))
    }
}

async fn stand_in(failures: Vec<Status>) -> (String, Arc<Mutex<Told>>, tokio::task::JoinSet<()>) {
    let told = Arc::new(Mutex::new(Told { failures, ..Told::default() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = PlacementsServer::new(StandIn(Arc::clone(&told)));
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        let served = tonic::transport::Server::builder().add_service(service);
        served.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (endpoint, told, server)
}

#[tokio::test]
async fn only_what_was_shown_is_adopted_and_a_lost_answer_is_asked_for_again() {
    let (endpoint, told, _server) = stand_in(vec![Status::unavailable("taking over")]).await;
    let (exit, out, error) = berth(&format!("adopt --node n --owner anna --endpoint {endpoint}")).await;
    assert_eq!(exit, Exit::Done, "{error}");
    assert!(out.contains("placement p-1, Active") && out.contains("1 VM adopted; left alone: vm-2"), "{out}");
    let calls = told.lock().unwrap().request_ids.clone();
    let dry = "dry_run true vms [] owner anna";
    assert_eq!(calls, [dry, dry, "dry_run false vms [\"1\"] owner anna"]);
    let (exit, out, _) = berth(&format!("adopt --node n --dry-run --endpoint {endpoint}")).await;
    assert!(exit == Exit::Done && out.contains("1 VM can be adopted, 1 skipped"), "{out}");
    assert_eq!(told.lock().unwrap().request_ids.len(), 4);
}

#[tokio::test]
async fn create_is_repeated_with_the_same_request_id() {
    let (endpoint, told, _server) = stand_in(vec![Status::unavailable("taking over"); 2]).await;
    let (exit, out, error) = berth(&format!("place p --vm v --endpoint {endpoint}")).await;
    assert_eq!(exit, Exit::Done, "{error}");
    assert!(out.contains("Held"), "{out}");
    let ids = told.lock().unwrap().request_ids.clone();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn when_nobody_knows_whether_it_happened_the_user_learns_how_to_repeat_it() {
    let (endpoint, _told, _server) = stand_in(vec![Status::unavailable("taking over"); 20]).await;
    let line = format!("place p --vm v --request-id mine --deadline 1s --endpoint {endpoint}");
    let (exit, out, error) = berth(&line).await;
    assert_eq!((exit, out.as_str()), (Exit::Unavailable, ""));
    expect![[r#"
        error: no answer from ENDPOINT: taking over. It is not known whether it happened
        Repeat the same command with --request-id mine: if it did happen, you get the same placement.
    "#]]
    .assert_eq(&error.replace(&endpoint, "ENDPOINT"));
}

#[tokio::test]
async fn commit_is_asked_once_only() {
    let (endpoint, told, _server) = stand_in(vec![Status::unavailable("taking over")]).await;
    let (exit, _, error) = berth(&format!("commit p --endpoint {endpoint}")).await;
    assert_eq!(exit, Exit::Unavailable);
    assert!(error.contains("berth get placements p"), "{error}");
    assert_eq!(told.lock().unwrap().request_ids, ["commit"]);
}

#[tokio::test]
async fn refusals_have_the_exit_code_of_their_class() {
    let (endpoint, _told, _server) = stand_in(Vec::new()).await;
    let (_dir, [workloads]) = files([("w.yaml", "- { name: a }")]);
    for (line, exit) in [
        ("get placements p".to_owned(), Exit::NotFound),
        ("describe placement p".to_owned(), Exit::NotFound),
        ("release p".to_owned(), Exit::NotFound),
        (format!("plan -f {workloads}"), Exit::Failed),
        ("get placements".to_owned(), Exit::Done),
    ] {
        let (got, _, error) = berth(&format!("{line} --endpoint {endpoint}")).await;
        assert_eq!(got, exit, "{line}: {error}");
    }
}

#[tokio::test]
async fn an_empty_list_says_so_and_is_no_failure() {
    let (endpoint, _told, _server) = stand_in(Vec::new()).await;
    check(&format!("get placements --endpoint {endpoint}"), Exit::Done, expect!["no placements\n"], expect![""]).await;
    check(&format!("get placements -o json --endpoint {endpoint}"), Exit::Done, expect!["{}\n"], expect![""]).await;
}

/// A follower that hears no leader, or hears one.
#[derive(Clone)]
struct Follower {
    leader_revision: u64,
    asked: Arc<Mutex<u32>>,
}

type Never<T> = Result<Response<T>, Status>;

fn never<T>() -> Never<T> {
    Err(Status::unimplemented("nobody asks for that here"))
}

#[tonic::async_trait]
impl Inventory for Follower {
    type WatchStream = tokio_stream::Empty<Result<v1::GpuChange, Status>>;

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Never<v1::ListNodesResponse> {
        let node = |name: &str| v1::Node { name: name.into(), not_ready: "NodeNotFresh".into(), ..Default::default() };
        Ok(Response::new(v1::ListNodesResponse { nodes: vec![node("hv-01"), node("hv-02")], ..Default::default() }))
    }

    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Never<v1::Node> {
        never()
    }

    async fn list_gpus(&self, _: Request<v1::ListGpusRequest>) -> Never<v1::ListGpusResponse> {
        let gpu = |id: &str, term: Option<&str>| v1::Gpu {
            id: id.into(),
            unavailable: term
                .iter()
                .map(|term| v1::Unavailable { term: (*term).into(), ..Default::default() })
                .collect(),
            ..Default::default()
        };
        let gpus = vec![gpu("hv-01/a", Some("node_ready")), gpu("hv-02/a", None)];
        Ok(Response::new(v1::ListGpusResponse { gpus, ..Default::default() }))
    }

    async fn get_gpu(&self, _: Request<v1::GetGpuRequest>) -> Never<v1::Gpu> {
        never()
    }

    async fn list_vms(&self, _: Request<v1::ListVmsRequest>) -> Never<v1::ListVmsResponse> {
        let vm = |node: &str, id: &str, name: &str| v1::Vm {
            node: node.into(),
            observed: Some(v1::ObservedVm { id: id.into(), name: name.into(), ..Default::default() }),
            fresh: true,
            ..Default::default()
        };
        let vms =
            vec![vm("hv-01", "1", "web"), vm("hv-01", "2", "Cad"), vm("hv-02", "3", "app"), vm("hv-01", "4", "db")];
        Ok(Response::new(v1::ListVmsResponse { vms, ..Default::default() }))
    }

    async fn list_drift(&self, _: Request<v1::ListDriftRequest>) -> Never<v1::ListDriftResponse> {
        never()
    }

    async fn summarize(&self, _: Request<v1::SummarizeRequest>) -> Never<v1::SummarizeResponse> {
        never()
    }

    async fn watch(&self, _: Request<v1::WatchGpusRequest>) -> Never<Self::WatchStream> {
        never()
    }
}

#[tonic::async_trait]
impl Operations for Follower {
    type BackupStream = tokio_stream::Empty<Result<v1::BackupPart, Status>>;
    type AuditStream = tokio_stream::Empty<Result<v1::AuditPart, Status>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Never<v1::StatusResponse> {
        *self.asked.lock().unwrap() += 1;
        Ok(Response::new(v1::StatusResponse { leader_revision: self.leader_revision, ..Default::default() }))
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Never<Self::BackupStream> {
        never()
    }

    async fn audit(&self, _: Request<v1::AuditRequest>) -> Never<Self::AuditStream> {
        never()
    }
}

async fn follower(leader_revision: u64) -> (String, Arc<Mutex<u32>>, tokio::task::JoinSet<()>) {
    let follower = Follower { leader_revision, asked: Arc::default() };
    let asked = Arc::clone(&follower.asked);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(InventoryServer::new(follower.clone()))
            .add_service(OperationsServer::new(follower));
        served.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (endpoint, asked, server)
}

#[tokio::test]
async fn what_may_be_old_is_said_beside_the_list_and_asked_for_only_then() {
    let (endpoint, asked, _server) = follower(0).await;
    let (exit, out, error) = berth(&format!("get nodes --endpoint {endpoint}")).await;
    assert!(exit == Exit::Done && out.contains("hv-02"), "{out}{error}");
    assert_eq!(error, "no controller leads, or it is not heard: what is shown may be old\n");
    for line in ["get gpus", "get vms"] {
        let (_, _, error) = berth(&format!("{line} --endpoint {endpoint}")).await;
        assert_eq!(error, "", "{line}: some of it is fresh");
    }
    assert_eq!(*asked.lock().unwrap(), 1);
    let (endpoint, _, _server) = follower(7).await;
    let (_, _, error) = berth(&format!("get nodes --endpoint {endpoint}")).await;
    assert_eq!(error, "", "a leader is heard, and the agents are gone");
}

#[tokio::test]
async fn vms_of_a_node_come_by_name() {
    let (endpoint, _, _server) = follower(7).await;
    check(
        &format!("get vms --endpoint {endpoint}"),
        Exit::Done,
        expect![[r#"
        VM    NODE    STATE         GPUS   PINNED   PLACEMENT
        Cad   hv-01   Unspecified      0   no
        db    hv-01   Unspecified      0   no
        web   hv-01   Unspecified      0   no
        app   hv-02   Unspecified      0   no
    "#]],
        expect![""],
    )
    .await;
}

#[tokio::test]
async fn a_backup_that_cannot_be_written_is_told_by_the_name_that_was_asked_for() {
    // Before anybody is asked: nobody listens there.
    let port = closed_port();
    let (dir, [plain]) = files([("plain", "")]);
    let missing = dir.path().join("missing");
    for (file, why) in [
        (missing.join("x.backup"), format!("x.backup: directory {} does not exist", missing.display())),
        (std::path::Path::new(&plain).join("x.backup"), format!("x.backup: {plain} is no directory")),
    ] {
        let (exit, _, error) = berth(&format!("backup {} --endpoint http://127.0.0.1:{port}", file.display())).await;
        assert_eq!((exit, error), (Exit::Failed, format!("error: cannot write {why}\n")));
    }
    let (exit, _, error) =
        berth(&format!("backup {}/x.backup --endpoint http://127.0.0.1:{port} --deadline 1s", dir.path().display()))
            .await;
    assert_eq!(exit, Exit::Unavailable, "{error}");
    assert!(std::fs::read_dir(dir.path()).unwrap().count() == 1, "nothing is left behind");
}

#[cfg(feature = "dev")]
#[tokio::test]
async fn a_simulated_fleet_says_where_it_can_listen() {
    check("dev --listen 0.0.0.0:7700", Exit::Usage, expect![""], expect![[r#"
        error: --listen 0.0.0.0:7700 can be reached from other machines, and `berth dev` neither encrypts nor asks who calls; listen on 127.0.0.1, or run berth-controller with certificates
    "#]]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (exit, _, error) = berth(&format!("dev --nodes 1 --listen {}", taken.local_addr().unwrap())).await;
    assert!(exit == Exit::Failed && error.ends_with("; --listen 127.0.0.1:0 takes a free one\n"), "{error}");
}
