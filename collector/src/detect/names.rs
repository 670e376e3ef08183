//! Who and what facts are about: nodes (services and the peers that they call) and texts (operations, metrics, patterns of log lines),
//! each under a small number.

use super::facts::Sender;
use firstfall_store::Service;
use firstfall_store::value::{Scope, Stored};
use hashbrown::HashMap;

pub use firstfall_store::node::{Node, NodeKind};

pub type NodeId = u32;
pub type TextId = u32;

/// Nodes beyond this many are one, `(other)`: a client that puts an id into a host name must not fill the memory.
const NODES_MAX: usize = 10_000;
/// The same for texts. Operations and log patterns make most of them.
const TEXTS_MAX: usize = 200_000;
const OTHER: &str = "(other)";

/// Longer texts are cut: a name is for people, and the memory has an end.
const TEXT_BYTES_MAX: usize = 512;

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Resources, and scopes, that are remembered with what they say, each below so many bytes; when they are more, all are read anew.
const SENDERS_MAX: usize = 1000;
const SENDER_BYTES_MAX: usize = 4096;

/// Keeps what was read of some bytes, and gives it back.
fn remember<T: Clone>(known: &mut HashMap<Box<[u8]>, T>, bytes: &[u8], read: T) -> T {
    if bytes.len() <= SENDER_BYTES_MAX {
        if known.len() >= SENDERS_MAX {
            known.clear();
        }
        known.insert(bytes.into(), read.clone());
    }
    read
}

pub struct Names {
    senders: HashMap<Box<[u8]>, Sender>,
    scopes: HashMap<Box<[u8]>, TextId>,
    nodes: Vec<Node>,
    node_ids: HashMap<Node, NodeId>,
    /// Services by name alone, in the order in which they came.
    services: HashMap<Box<str>, Vec<NodeId>>,
    texts: Vec<Box<str>>,
    text_ids: HashMap<Box<str>, TextId>,
}

impl Default for Names {
    fn default() -> Names {
        let mut names = Names {
            senders: HashMap::new(),
            scopes: HashMap::new(),
            nodes: Vec::new(),
            node_ids: HashMap::new(),
            services: HashMap::new(),
            texts: Vec::new(),
            text_ids: HashMap::new(),
        };
        names.text(OTHER);
        names
    }
}

impl Names {
    pub fn node_id(&mut self, mut node: Node) -> NodeId {
        for text in [&mut node.service.name, &mut node.service.namespace, &mut node.service.environment] {
            text.truncate(cut(text).len());
        }
        if let Some(id) = self.node_ids.get(&node) {
            return *id;
        }
        let other = Node { kind: NodeKind::External, service: Service::named(OTHER) };
        if self.nodes.len() >= NODES_MAX && node != other {
            return self.node_id(other);
        }
        let id = self.nodes.len() as NodeId;
        if node.kind == NodeKind::Service {
            self.services.entry(node.service.name.as_str().into()).or_default().push(id);
        }
        self.nodes.push(node.clone());
        self.node_ids.insert(node, id);
        id
    }

    pub fn find(&self, node: &Node) -> Option<NodeId> {
        self.node_ids.get(node).copied()
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The first service of a name in an environment, whatever its namespace.
    pub fn service_named(&self, name: &str, environment: &str) -> Option<NodeId> {
        let ids = self.services.get(cut(name))?;
        ids.iter().copied().find(|id| self.node(*id).service.environment == environment)
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(id, node)| (id as NodeId, node))
    }

    pub fn text(&mut self, text: &str) -> TextId {
        let text = cut(text);
        if let Some(id) = self.text_ids.get(text) {
            return *id;
        }
        if self.texts.len() >= TEXTS_MAX {
            return 0;
        }
        let id = self.texts.len() as TextId;
        self.texts.push(text.into());
        self.text_ids.insert(text.into(), id);
        id
    }

    /// What a resource says of who sends. The same few come with every batch.
    pub fn sender(&mut self, resource: &[u8]) -> Sender {
        if let Some(known) = self.senders.get(resource) {
            return known.clone();
        }
        let sender = Sender::of(resource, self);
        remember(&mut self.senders, resource, sender)
    }

    /// The name of a scope, as the store keeps it.
    pub fn scope(&mut self, scope: &[u8]) -> TextId {
        if let Some(known) = self.scopes.get(scope) {
            return *known;
        }
        let name = Scope::from_bytes(scope).map_or(0, |scope| self.text(&scope.name));
        remember(&mut self.scopes, scope, name)
    }

    pub fn find_text(&self, text: &str) -> Option<TextId> {
        self.text_ids.get(cut(text)).copied()
    }

    pub fn text_of(&self, id: TextId) -> &str {
        &self.texts[id as usize]
    }
}
