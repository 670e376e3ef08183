//! Whom a span calls, by the words of its attributes: old and new semantic conventions of HTTP, RPC, databases and queues.
//!
//! Words are looked up once for all spans of a batch that say the same: a batch holds each text once, so what is compared are numbers, not texts.

use super::names::{Names, Node, NodeId, NodeKind};
use firstfall_store::Service;
use firstfall_store::batch::{Batch, Column, Field, Kind, ValueRef};
use hashbrown::HashMap;

/// What an attribute says about the callee.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Nothing,
    PeerService,
    Address,
    Port,
    Url,
    DbSystem,
    DbNamespace,
    MessagingSystem,
    Destination,
    RpcService,
    HttpStatus,
    GrpcStatus,
    ResendCount,
}

fn says(key: &str) -> Says {
    match key {
        "peer.service" | "service.peer.name" => Says::PeerService,
        "server.address" | "net.peer.name" | "net.sock.peer.addr" | "http.host" | "network.peer.address" => Says::Address,
        "server.port" | "net.peer.port" | "network.peer.port" => Says::Port,
        "url.full" | "http.url" => Says::Url,
        "db.system" | "db.system.name" => Says::DbSystem,
        "db.name" | "db.namespace" => Says::DbNamespace,
        "messaging.system" => Says::MessagingSystem,
        "messaging.destination.name" | "messaging.destination" => Says::Destination,
        "rpc.service" => Says::RpcService,
        "http.response.status_code" | "http.status_code" => Says::HttpStatus,
        "http.request.resend_count" | "http.resend_count" => Says::ResendCount,
        "rpc.response.status_code" | "rpc.grpc.status_code" => Says::GrpcStatus,
        _ => Says::Nothing,
    }
}

/// The words of a span about its callee: the numbers of texts in its batch, from 1; 0 for what is not said.
#[derive(Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Callee {
    peer_service: u32,
    /// Of the address, or of a URL's host: these are counted from `HOSTS`.
    address: u32,
    port: u32,
    pub db_system: u32,
    db_namespace: u32,
    messaging_system: u32,
    destination: u32,
    rpc_service: u32,
}

/// Hosts of URLs are numbered from here: past the texts of any batch.
const HOSTS: u32 = 1 << 31;

/// What a span says of its call in numbers; 0 for what it does not say.
#[derive(Default, Clone, Copy)]
pub struct Numbers {
    pub http_status: i64,
    pub grpc_status: i64,
    pub resend_count: i64,
}

/// The words about callees in a batch.
pub struct Words<'a> {
    batch: &'a Batch,
    /// Of each shape: where in its rows such words stand, what they tell, and their kind.
    told: Vec<Vec<(usize, Says, Kind)>>,
    hosts: Vec<&'a str>,
    host_numbers: HashMap<&'a str, u32>,
}

impl<'a> Words<'a> {
    pub fn of(batch: &'a Batch) -> Words<'a> {
        // Each column is asked once, as there may be as many shapes as rows.
        let tells = |column: &Column| {
            let says = if column.field == Field::Attribute { says(batch.strings.str(column.key)) } else { Says::Nothing };
            (says, column.kind)
        };
        let columns: Vec<(Says, Kind)> = batch.columns.iter().map(tells).collect();
        let told_by = |shape: usize| {
            let columns = batch.shape_columns_of(shape as u32).iter().map(|column| columns[*column as usize]).enumerate();
            columns.filter(|(_, (says, _))| *says != Says::Nothing).map(|(place, (says, kind))| (place, says, kind)).collect()
        };
        let told = (0..batch.shape_ends.len()).map(told_by).collect();
        Words { batch, told, hosts: Vec::new(), host_numbers: HashMap::new() }
    }

    /// Whether any span of the batch may say such a thing.
    pub fn tell(&self, wanted: Says) -> bool {
        self.told.iter().flatten().any(|(_, says, _)| *says == wanted)
    }

    pub fn read(&mut self, row: usize) -> (Callee, Numbers) {
        let batch = self.batch;
        let words = &batch.values[batch.values_start[row] as usize..];
        let (mut callee, mut numbers, mut url) = (Callee::default(), Numbers::default(), 0);
        for (place, says, kind) in &self.told[batch.shape[row] as usize] {
            let word = words[*place];
            let slot = match says {
                Says::Nothing => continue,
                Says::Port => {
                    // What is no port is none.
                    callee.port = u16::try_from(number(batch.value_of(*kind, word))).unwrap_or(0).into();
                    continue;
                }
                Says::HttpStatus => {
                    numbers.http_status = number(batch.value_of(*kind, word));
                    continue;
                }
                Says::GrpcStatus => {
                    numbers.grpc_status = number(batch.value_of(*kind, word));
                    continue;
                }
                Says::ResendCount => {
                    numbers.resend_count = number(batch.value_of(*kind, word));
                    continue;
                }
                Says::PeerService => &mut callee.peer_service,
                Says::Address => &mut callee.address,
                Says::Url => &mut url,
                Says::DbSystem => &mut callee.db_system,
                Says::DbNamespace => &mut callee.db_namespace,
                Says::MessagingSystem => &mut callee.messaging_system,
                Says::Destination => &mut callee.destination,
                Says::RpcService => &mut callee.rpc_service,
            };
            // The first that says it, in words.
            if *slot == 0 && *kind == Kind::Str && !batch.strings.get(word).is_empty() {
                *slot = word + 1;
            }
        }
        if callee.address == 0 && url != 0 {
            // Of a URL only the host: its path is another one with each call.
            let host = host_of(batch.strings.str(url - 1));
            if !host.is_empty() {
                let hosts = &mut self.hosts;
                callee.address = *self.host_numbers.entry(host).or_insert_with(|| {
                    hosts.push(host);
                    HOSTS + hosts.len() as u32 - 1
                });
            }
        }
        (callee, numbers)
    }

    fn text(&self, number: u32) -> &'a str {
        match number {
            0 => "",
            HOSTS.. => self.hosts[(number - HOSTS) as usize],
            _ => self.batch.strings.str(number - 1),
        }
    }

    /// The address that these words name, with its port where that is said.
    fn address(&self, callee: &Callee) -> String {
        let host = self.text(callee.address);
        if host.is_empty() || callee.port == 0 || host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            host.to_owned()
        } else {
            format!("{host}:{}", callee.port)
        }
    }

    /// The node that these words name, in the environment of the caller.
    pub fn node(&self, callee: &Callee, environment: &str, names: &mut Names) -> Option<NodeId> {
        let [db_system, db_namespace] = [callee.db_system, callee.db_namespace].map(|number| self.text(number));
        let [messaging_system, destination] = [callee.messaging_system, callee.destination].map(|number| self.text(number));
        let [peer_service, rpc_service] = [callee.peer_service, callee.rpc_service].map(|number| self.text(number));
        let address = self.address(callee);
        let (kind, name) = if !db_system.is_empty() {
            let kind = match db_system {
                "redis" | "memcached" | "valkey" => NodeKind::Cache,
                _ => NodeKind::Database,
            };
            let mut name = db_system.to_owned();
            if !db_namespace.is_empty() && kind == NodeKind::Database {
                name = format!("{name} {db_namespace}");
            }
            if !address.is_empty() {
                name = format!("{name} {address}");
            }
            (kind, name)
        } else if !messaging_system.is_empty() || !destination.is_empty() {
            (NodeKind::Queue, if destination.is_empty() { messaging_system } else { destination }.to_owned())
        } else if !peer_service.is_empty() {
            // A service that sends telemetry itself goes by the same name.
            if let Some(known) = names.service_named(peer_service, environment) {
                return Some(known);
            }
            (NodeKind::External, peer_service.to_owned())
        } else if !address.is_empty() {
            (NodeKind::External, address)
        } else if !rpc_service.is_empty() {
            (NodeKind::External, rpc_service.to_owned())
        } else {
            return None;
        };
        let service = Service { name, namespace: String::new(), environment: environment.to_owned() };
        Some(names.node_id(Node { kind, service }))
    }
}

fn number(value: ValueRef<'_>) -> i64 {
    match value {
        ValueRef::Int(number) => number,
        // Later conventions write gRPC's codes as words.
        ValueRef::Str("PERMISSION_DENIED") => 7,
        ValueRef::Str("RESOURCE_EXHAUSTED") => 8,
        ValueRef::Str("UNAUTHENTICATED") => 16,
        ValueRef::Str(text) => text.parse().unwrap_or(0),
        _ => 0,
    }
}

/// Host and port of a URL.
fn host_of(url: &str) -> &str {
    let Some((_, rest)) = url.split_once("://") else { return "" };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_keeps_its_port_and_drops_credentials() {
        assert_eq!(host_of("http://user:pw@cart.shop:8080/x?y"), "cart.shop:8080");
        assert_eq!(host_of("/v1/commit/1"), "");
    }
}
