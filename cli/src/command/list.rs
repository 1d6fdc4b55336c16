//! Whole lists out of pages.

use crate::client::Client;
use crate::error::Error;
use berth_model::reason::ErrorClass;
use berth_proto::v1;

/// GPUs, nodes or placements a page: few round trips, and an answer of some MiB at most.
const PAGE: u32 = 5_000;
/// How often a listing begins again because its page token was too old. Each try takes far less time than a token
/// lives, so a second one is rare and a fourth means something else is wrong.
const TRIES: usize = 3;

/// A whole list, and the revision its last page is consistent at.
pub(crate) struct Whole<T> {
    pub(crate) items: Vec<T>,
    pub(crate) revision: u64,
}

/// One page: what is on it, the token of the next, and its revision.
type Page<T> = (Vec<T>, String, u64);

async fn whole<T, F: Future<Output = Result<Page<T>, Error>> + Send>(
    fetch: impl Fn(String) -> F,
) -> Result<Whole<T>, Error> {
    let mut tries = 1;
    'again: loop {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            match fetch(token).await {
                Ok((items, next, revision)) => {
                    all.extend(items);
                    if next.is_empty() {
                        return Ok(Whole { items: all, revision });
                    }
                    token = next;
                }
                Err(Error::Refused(problem)) if problem.class == ErrorClass::Aborted && tries < TRIES => {
                    tries += 1;
                    continue 'again;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

pub(super) async fn nodes(client: &Client, filter: v1::ListNodesRequest) -> Result<Whole<v1::Node>, Error> {
    whole(|page_token| {
        let request = v1::ListNodesRequest { page_size: PAGE, page_token, ..filter.clone() };
        async move {
            let answer = client
                .read(request, |r| {
                    let mut api = client.inventory();
                    async move { api.list_nodes(r).await }
                })
                .await?;
            Ok((answer.nodes, answer.next_page_token, answer.revision))
        }
    })
    .await
}

pub(super) async fn gpus(client: &Client, filter: v1::ListGpusRequest) -> Result<Whole<v1::Gpu>, Error> {
    whole(|page_token| {
        let request = v1::ListGpusRequest { page_size: PAGE, page_token, ..filter.clone() };
        async move {
            let answer = client
                .read(request, |r| {
                    let mut api = client.inventory();
                    async move { api.list_gpus(r).await }
                })
                .await?;
            Ok((answer.gpus, answer.next_page_token, answer.revision))
        }
    })
    .await
}

/// VMs in order of node and name.
pub(super) async fn vms(client: &Client, filter: v1::ListVmsRequest) -> Result<Whole<v1::Vm>, Error> {
    let mut all = whole(|page_token| {
        let request = v1::ListVmsRequest { page_size: PAGE, page_token, ..filter.clone() };
        async move {
            let answer = client
                .read(request, |r| {
                    let mut api = client.inventory();
                    async move { api.list_vms(r).await }
                })
                .await?;
            Ok((answer.vms, answer.next_page_token, answer.revision))
        }
    })
    .await?;
    // They come by id, which says nothing to anybody.
    let name = |vm: &v1::Vm| vm.observed.as_ref().map(|seen| (seen.name.to_lowercase(), seen.id.clone()));
    all.items.sort_by_cached_key(|vm| (vm.node.clone(), name(vm)));
    Ok(all)
}

pub(super) async fn drift(client: &Client, filter: v1::ListDriftRequest) -> Result<Whole<v1::Difference>, Error> {
    whole(|page_token| {
        let request = v1::ListDriftRequest { page_size: PAGE, page_token, ..filter.clone() };
        async move {
            let answer = client
                .read(request, |r| {
                    let mut api = client.inventory();
                    async move { api.list_drift(r).await }
                })
                .await?;
            Ok((answer.differences, answer.next_page_token, answer.revision))
        }
    })
    .await
}

pub(crate) async fn placements(
    client: &Client,
    filter: v1::ListPlacementsRequest,
) -> Result<Whole<v1::Placement>, Error> {
    whole(|page_token| {
        let request = v1::ListPlacementsRequest { page_size: PAGE, page_token, ..filter.clone() };
        async move {
            let answer = client
                .read(request, |r| {
                    let mut api = client.placements();
                    async move { api.list(r).await }
                })
                .await?;
            Ok((answer.placements, answer.next_page_token, answer.revision))
        }
    })
    .await
}
