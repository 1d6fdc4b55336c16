//! The contract of all stores, kept by the etcd store on a server of its own for each rule.

use super::{Server, options};
use async_trait::async_trait;
use berth_store::contract::Subject;
use berth_store::{Revision, Store};
use berth_store_etcd::{Etcd, Options};
use std::sync::Arc;

struct OnEtcd(Server);

fn on_etcd() -> Option<OnEtcd> {
    Server::one("etcd contract").expect("etcd starts").map(OnEtcd)
}

#[async_trait]
impl Subject for OnEtcd {
    async fn fresh(&self) -> Arc<dyn Store> {
        // A prefix must make no difference.
        let options = Options { prefix: "contract/".to_owned(), ..options(&self.0) };
        Arc::new(Etcd::connect(options).await.expect("etcd answers"))
    }

    async fn compact(&self, _: &Arc<dyn Store>, before: Revision) {
        super::connect(&self.0).await.compact(before).await.expect("etcd compacts");
    }
}

berth_store::contract!(maybe on_etcd());
