//! What stands in the map: a service, or a peer that is called and sends nothing itself.

use crate::Service;

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    Service,
    Database,
    Cache,
    Queue,
    External,
}

impl NodeKind {
    pub const ALL: [NodeKind; 5] = [NodeKind::Service, NodeKind::Database, NodeKind::Cache, NodeKind::Queue, NodeKind::External];

    pub fn name(self) -> &'static str {
        match self {
            NodeKind::Service => "service",
            NodeKind::Database => "database",
            NodeKind::Cache => "cache",
            NodeKind::Queue => "queue",
            NodeKind::External => "external",
        }
    }

    pub fn of(name: &str) -> Option<NodeKind> {
        NodeKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A service, or a peer: something that is called and sends nothing itself. A peer carries the environment of its callers.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Node {
    pub kind: NodeKind,
    pub service: Service,
}

impl Node {
    /// Unique among nodes; readable, and fit for an address.
    pub fn id(&self) -> String {
        let Service { name, namespace, environment } = &self.service;
        let mut id = self.kind.name().to_owned();
        for part in [environment, namespace] {
            if !part.is_empty() {
                id.push(':');
                id.push_str(part);
            }
        }
        id.push(':');
        id.push_str(name);
        id
    }
}
