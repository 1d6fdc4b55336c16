//! The stored form of the vocabulary: model ↔ bytes, with the version of the schema that wrote them.
//!
//! Owns the messages of `berth.store.v1`. What cannot be read is refused, naming the key: a record that is guessed at
//! could hand out a GPU twice. Must never fill in what is missing. Equal values give equal bytes, so that a claim can be
//! compared as it is stored.

use crate::store::{self, KeyValue};
use crate::{key, key::Key};
use berth_model::gpu::Survey;
use berth_model::id::{FleetId, PlacementName, PlacementUid};
use berth_model::node::{Cordon, HostFacts, StoredNode};
use berth_model::pci::DeviceAddress;
use berth_model::placement::{Phase, Placement};
use berth_proto::convert;
use berth_proto::store::v1::{
    ClaimRecord, FleetRecord, GpuRecord, LeaderRecord, NodeRecord, PlacementRecord, TermRecord,
};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeSet;
use std::fmt::Display;

/// The schema that is written, and the newest that can be read.
pub const SCHEMA: u32 = 1;

/// Why a record cannot be read. A person must look at either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A newer Berth wrote it.
    #[error(
        "record {key} was written by a newer Berth (schema {found}, this one knows up to {SCHEMA}): use that version"
    )]
    Newer {
        /// Its key.
        key: String,
        /// Its schema.
        found: u32,
    },
    /// It makes no sense.
    #[error("record {key} is damaged: {what}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    fn damaged(key: &str, what: impl Display) -> Self {
        Self::Damaged { key: key.to_owned(), what: what.to_string() }
    }
}

impl From<Error> for store::Error {
    fn from(error: Error) -> Self {
        Self::Corrupt(error.to_string())
    }
}

/// What a claim says: whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The placement that owns what the key names.
    pub placement: PlacementName,
    /// Which of that name.
    pub uid: PlacementUid,
}

/// Who leads, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its term.
    pub term: u64,
    /// What it calls itself.
    pub candidate: String,
}

/// A placement as bytes. Its version is not among them: the store counts it.
///
/// # Panics
/// For [`Phase::Requested`], which exists only inside one decision and has no stored form.
pub fn placement(placement: &Placement) -> Bytes {
    assert!(placement.phase != Phase::Requested, "{} must be decided before it is stored", placement.name());
    let mut wire = berth_proto::v1::Placement::from(placement);
    wire.version = 0;
    encode(&PlacementRecord { schema: SCHEMA, placement: Some(wire) })
}

/// A node as bytes. Its version is not among them: the store counts it.
pub fn node(node: &StoredNode) -> Bytes {
    let StoredNode { name, facts, agent_version, first_seen, cordons, gpus, generation, version: _ } = node;
    let gpu = |(address, survey): &(DeviceAddress, Survey)| GpuRecord {
        address: address.to_string(),
        survey: Some(survey.into()),
    };
    encode(&NodeRecord {
        schema: SCHEMA,
        name: name.to_string(),
        facts: Some(facts.into()),
        agent_version: agent_version.clone(),
        first_seen: Some(convert::timestamp(*first_seen)),
        cordons: cordons.iter().map(Into::into).collect(),
        gpus: gpus.iter().map(gpu).collect(),
        generation: *generation,
    })
}

/// A claim as bytes.
pub fn claim(placement: &PlacementName, uid: &PlacementUid) -> Bytes {
    encode(&ClaimRecord { schema: SCHEMA, placement: placement.to_string(), uid: uid.to_string() })
}

/// Who leads as bytes.
pub fn leader(leader: &Leader) -> Bytes {
    let Leader { term, candidate } = leader;
    encode(&LeaderRecord { schema: SCHEMA, term: *term, candidate: candidate.clone() })
}

/// The term to be above as bytes.
pub fn term(term: u64) -> Bytes {
    encode(&TermRecord { schema: SCHEMA, term })
}

/// Which fleet the store holds as bytes.
pub fn fleet(fleet: &FleetId) -> Bytes {
    encode(&FleetRecord { schema: SCHEMA, fleet: fleet.to_string() })
}

/// Reads which fleet the store holds.
///
/// # Errors
/// [`Error`].
pub fn read_fleet(value: &Bytes) -> Result<FleetId, Error> {
    let FleetRecord { schema: _, fleet } = decode(key::FLEET, value)?;
    read(key::FLEET, "fleet", fleet.parse())
}

/// Reads the term to be above.
///
/// # Errors
/// [`Error`].
pub fn read_term(value: &Bytes) -> Result<u64, Error> {
    let TermRecord { schema: _, term } = decode(key::TERM, value)?;
    Ok(term)
}

/// Reads a placement; its version is the store's.
///
/// # Errors
/// [`Error`]; also when the record stands under another placement's key.
pub fn read_placement(item: &KeyValue) -> Result<Placement, Error> {
    let PlacementRecord { schema: _, placement } = decode(&item.key, &item.value)?;
    let wire = present(&item.key, "placement", placement)?;
    let mut placement = read(&item.key, "placement", Placement::try_from(wire))?;
    placement.version = item.version;
    stands_under(&item.key, &Key::Placement(placement.name().clone()))?;
    Ok(placement)
}

/// Reads a node; its version is the store's.
///
/// # Errors
/// [`Error`]; also when the record stands under another node's key.
pub fn read_node(item: &KeyValue) -> Result<StoredNode, Error> {
    let KeyValue { key, value, version, .. } = item;
    let NodeRecord { schema: _, name, facts, agent_version, first_seen, cordons, gpus, generation } =
        decode(key, value)?;
    let name = read(key, "name", name.parse())?;
    stands_under(key, &Key::Node(Clone::clone(&name)))?;
    let facts = read(key, "facts", HostFacts::try_from(present(key, "facts", facts)?))?;
    let first_seen = read(key, "first_seen", convert::read_timestamp(present(key, "first_seen", first_seen)?))?;
    let cordons = cordons.into_iter().map(|cordon| read(key, "cordons", Cordon::try_from(cordon)));
    let cordons = cordons.collect::<Result<Vec<_>, _>>()?;
    let gpu = |GpuRecord { address, survey }| {
        let survey = read(key, &address, Survey::try_from(present(key, "survey", survey)?))?;
        Ok((read::<DeviceAddress, _>(key, "address", address.parse())?, survey))
    };
    let gpus = gpus.into_iter().map(gpu).collect::<Result<Vec<_>, _>>()?;
    if gpus.iter().map(|(address, _)| address).collect::<BTreeSet<_>>().len() < gpus.len() {
        return Err(Error::damaged(key, "a GPU is listed twice"));
    }
    Ok(StoredNode { name, facts, agent_version, first_seen, cordons, gpus, generation, version: *version })
}

/// Reads a claim.
///
/// # Errors
/// [`Error`].
pub fn read_claim(item: &KeyValue) -> Result<Claim, Error> {
    let KeyValue { key, value, .. } = item;
    let ClaimRecord { schema: _, placement, uid } = decode(key, value)?;
    Ok(Claim { placement: read(key, "placement", placement.parse())?, uid: read(key, "uid", uid.parse())? })
}

/// Reads who leads.
///
/// # Errors
/// [`Error`].
pub fn read_leader(value: &Bytes) -> Result<Leader, Error> {
    let LeaderRecord { schema: _, term, candidate } = decode(key::LEADER, value)?;
    Ok(Leader { term, candidate })
}

fn encode(record: &impl Message) -> Bytes {
    record.encode_to_vec().into()
}

/// A record says its schema in a field that no schema moves.
trait Record: Message + Default {
    fn schema(&self) -> u32;
}

macro_rules! records {
    ($($record:ty),+) => {$(
        impl Record for $record {
            fn schema(&self) -> u32 {
                self.schema
            }
        }
    )+};
}
records!(PlacementRecord, NodeRecord, ClaimRecord, LeaderRecord, TermRecord, FleetRecord);

/// Only the schema of a record: a newer one may have changed the meaning of everything else.
#[derive(Clone, PartialEq, prost::Message)]
struct Schema {
    #[prost(uint32, tag = "1")]
    schema: u32,
}

fn decode<R: Record>(key: &str, value: &Bytes) -> Result<R, Error> {
    let Schema { schema } = Schema::decode(value.clone()).map_err(|error| Error::damaged(key, error))?;
    if schema > SCHEMA {
        return Err(Error::Newer { key: key.to_owned(), found: schema });
    }
    let record = R::decode(value.clone()).map_err(|error| Error::damaged(key, error))?;
    if record.schema() == 0 {
        return Err(Error::damaged(key, "it does not say its schema"));
    }
    Ok(record)
}

fn present<T>(key: &str, field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::damaged(key, format_args!("{field} is missing")))
}

fn read<T, E: Display>(key: &str, field: &str, value: Result<T, E>) -> Result<T, Error> {
    value.map_err(|error| Error::damaged(key, format_args!("{field}: {error}")))
}

/// A record under a wrong key would be found under one name and act under another.
fn stands_under(key: &str, expected: &Key) -> Result<(), Error> {
    if expected.to_string() == key {
        Ok(())
    } else {
        Err(Error::damaged(key, format_args!("it belongs under {expected}")))
    }
}

#[cfg(test)]
mod tests;
