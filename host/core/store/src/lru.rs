// SPDX-License-Identifier: Apache-2.0
//! Least-recently-put order of the pages of one ephemeral pool: a doubly linked list in a slab.

/// A node's number; [`NIL`] for none.
pub(crate) type NodeId = u32;
pub(crate) const NIL: NodeId = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    slot: u64,
    stamp: u64,
    newer: NodeId,
    older: NodeId,
}

/// Oldest first. All operations are O(1).
pub(crate) struct Lru {
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    newest: NodeId,
    oldest: NodeId,
}

impl Lru {
    pub fn new() -> Self {
        Self { nodes: Vec::new(), unused: Vec::new(), newest: NIL, oldest: NIL }
    }

    /// Adds a page as the newest.
    pub fn push(&mut self, slot: u64, stamp: u64) -> NodeId {
        let node = Node { slot, stamp, newer: NIL, older: self.newest };
        let id = match self.unused.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as NodeId
            }
        };
        match self.newest {
            NIL => self.oldest = id,
            old => self.nodes[old as usize].newer = id,
        }
        self.newest = id;
        id
    }

    pub fn remove(&mut self, id: NodeId) {
        let Node { newer, older, .. } = self.nodes[id as usize];
        match newer {
            NIL => self.newest = older,
            n => self.nodes[n as usize].older = older,
        }
        match older {
            NIL => self.oldest = newer,
            n => self.nodes[n as usize].newer = newer,
        }
        self.unused.push(id);
    }

    /// The page moved to another slot.
    pub fn moved(&mut self, id: NodeId, slot: u64) {
        self.nodes[id as usize].slot = slot;
    }

    /// Makes a page the newest again (a hit in a shared ephemeral pool, as Xen does).
    pub fn refresh(&mut self, id: NodeId, stamp: u64) {
        let slot = self.nodes[id as usize].slot;
        self.remove(id);
        // `push` takes the number that `remove` gave up, so the page keeps it.
        let again = self.push(slot, stamp);
        debug_assert_eq!(again, id);
    }

    /// The page to go next: node, slot and the stamp it was put with.
    pub fn oldest(&self) -> Option<(NodeId, u64, u64)> {
        let n = self.nodes.get(self.oldest as usize)?;
        Some((self.oldest, n.slot, n.stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(l: &mut Lru) -> Vec<u64> {
        std::iter::from_fn(|| {
            let (id, slot, _) = l.oldest()?;
            l.remove(id);
            Some(slot)
        })
        .collect()
    }

    #[test]
    fn order() {
        let mut l = Lru::new();
        let ids: Vec<_> = (0..5).map(|i| l.push(i, i)).collect();
        l.remove(ids[0]);
        l.remove(ids[4]);
        l.refresh(ids[1], 7);
        l.push(9, 9);
        assert_eq!(drain(&mut l), [2, 3, 1, 9]);
        assert!(l.oldest().is_none());
        l.push(1, 1);
        l.refresh(l.oldest().unwrap().0, 2);
        assert_eq!(drain(&mut l), [1]);
    }
}
