//! Node records, and the checks that make a record from disk safe to follow.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::store::{Dtype, Element};

/// One node. Nodes are numbered breadth first, so the children of a node stand together.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct NodeRecord {
    /// The parent's number; -1 for the root.
    pub parent: i64,
    /// The first child's number; -1 for a leaf.
    pub first_child: i64,
    /// Tree position of the first row.
    pub start: i64,
    /// Number of rows below.
    pub rows: i64,
    /// Every row below has a real cosine distance of at most this to the center.
    pub max_cos_distance: f64,
    /// Number of children; 0 for a leaf.
    pub children: i32,
    /// 0 for the root.
    pub depth: i32,
}

impl Element for NodeRecord {
    const DTYPE: Dtype = Dtype::Record(&[
        ("parent", "<i8"),
        ("first_child", "<i8"),
        ("start", "<i8"),
        ("rows", "<i8"),
        ("max_cos_distance", "<f8"),
        ("children", "<i4"),
        ("depth", "<i4"),
    ]);
}

impl NodeRecord {
    pub(crate) fn new(parent: i64, depth: i32, start: usize, rows: usize, max_cos_distance: f64) -> Self {
        NodeRecord {
            parent,
            first_child: -1,
            start: start as i64,
            rows: rows as i64,
            max_cos_distance,
            children: 0,
            depth,
        }
    }

    /// Tree positions of the rows below.
    pub fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.rows) as usize
    }

    /// Numbers of the children.
    pub fn child_range(&self) -> Range<usize> {
        if self.children == 0 {
            0..0
        } else {
            self.first_child as usize..self.first_child as usize + self.children as usize
        }
    }

    /// The node behind so many other nodes and rows.
    pub(crate) fn moved(&self, nodes: i64, rows: i64) -> Self {
        let link = |number: i64| if number < 0 { number } else { number + nodes };
        NodeRecord { parent: link(self.parent), first_child: link(self.first_child), start: self.start + rows, ..*self }
    }

    /// Whether the node has no children.
    pub fn is_leaf(&self) -> bool {
        self.children == 0
    }
}

/// Says what is wrong with the shape of a tree of `n` rows, if anything: links, depths, and that the children of every
/// node cut its rows into consecutive stretches. Linear in the nodes; whoever passes it may follow links blindly.
pub(crate) fn fault(nodes: &[NodeRecord], n: usize) -> Option<String> {
    let root = nodes.first()?;
    if root.parent != -1 || root.depth != 0 || root.start != 0 || root.rows != n as i64 {
        return Some(format!("expected a root of {n} rows, found {root:?}"));
    }
    let mut next = 1i64;
    for (i, node) in nodes.iter().enumerate() {
        let wrong = |what: &str| Some(format!("node {i}: {what}: {node:?}"));
        if !node.max_cos_distance.is_finite() || node.max_cos_distance < 0.0 {
            return wrong("expected a finite bound of at least 0");
        }
        if node.children == 0 {
            if node.first_child != -1 {
                return wrong("expected no first child in a leaf");
            }
            continue;
        }
        // Breadth-first numbering leaves one possible first child, which also rules out cycles.
        let end = next + i64::from(node.children);
        if node.children < 0 || node.first_child != next || next <= i as i64 || end > nodes.len() as i64 {
            return wrong("expected its children to follow in breadth-first order");
        }
        let mut start = node.start;
        for child in &nodes[next as usize..end as usize] {
            if child.parent != i as i64 || child.depth != node.depth + 1 || child.start != start || child.rows < 1 {
                return wrong("expected children that cut its rows into consecutive stretches");
            }
            // Rows are checked to be positive, and the sum against the parent's: no overflow below n.
            start = match start.checked_add(child.rows) {
                Some(s) if s <= n as i64 => s,
                _ => return wrong("expected children within its rows"),
            };
        }
        if start != node.start + node.rows {
            return wrong("expected children that hold all its rows");
        }
        next = end;
    }
    if next != nodes.len() as i64 {
        return Some(format!("expected every node to be reached, found {} of {}", next, nodes.len()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Vec<NodeRecord> {
        let mut nodes = vec![NodeRecord::new(-1, 0, 0, 10, 1.0)];
        nodes[0].first_child = 1;
        nodes[0].children = 2;
        nodes.push(NodeRecord::new(0, 1, 0, 4, 0.5));
        nodes.push(NodeRecord::new(0, 1, 4, 6, 0.5));
        nodes
    }

    #[test]
    fn every_broken_link_is_found() {
        assert_eq!(fault(&tree(), 10), None);
        assert!(fault(&tree(), 11).is_some());
        let breaks: [fn(&mut Vec<NodeRecord>); 12] = [
            |t| t[0].parent = 0,
            |t| t[0].children = 3,
            |t| t[0].children = -1,
            |t| t[0].first_child = 0,
            |t| t[1].parent = 1,
            |t| t[1].depth = 2,
            |t| t[1].start = 1,
            |t| t[1].rows = 5,
            |t| t[2].rows = i64::MAX,
            |t| t[2].first_child = 1,
            |t| t[1].max_cos_distance = f64::NAN,
            |t| t.push(NodeRecord::new(0, 1, 0, 1, 0.0)),
        ];
        for (i, break_it) in breaks.iter().enumerate() {
            let mut nodes = tree();
            break_it(&mut nodes);
            assert!(fault(&nodes, 10).is_some(), "break {i}");
        }
    }
}
