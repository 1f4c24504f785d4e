//! Step 1, nodes: whole subtrees against a cap, by the triangle inequality.
//!
//! Reads the centers of nodes and, of each, the largest angle to its rows ([`crate::caps::NodeAngle`]). Decides that
//! all rows of a node lie inside a cap, or all outside; otherwise the node crosses the cap. Costs one float32 dot
//! product of all dimensions per cap and node. A scan asks the roots of its subtrees only, which have thousands of
//! rows: in many dimensions nearly all smaller nodes cross, too, and a tile costs less to ask.

use std::ops::Range;

use crate::caps::{Caps, Lengths, Relation};
use crate::distance::{Kernels, f32_error};
use crate::error::Result;
use crate::tree::Segment;

/// Calls `each(i, node, relation)` for every cap `active[i]` and every node of a range.
pub(crate) fn relations(
    segment: &Segment,
    centers: &[f32],
    caps: &Caps<'_>,
    active: &[usize],
    nodes: Range<usize>,
    mut each: impl FnMut(usize, usize, Relation) -> Result<()>,
) -> Result<()> {
    let d = segment.dim;
    let centers: Vec<&[f32]> = centers[nodes.start * d..nodes.end * d].chunks_exact(d).collect();
    let queries: Vec<&[f32]> = active.iter().map(|c| caps.center(*c)).collect();
    let mut dots = vec![0.0f32; centers.len() * queries.len()];
    Kernels::get().dots(&centers, &queries, &mut dots);
    let norms = &segment.norms;
    for (i, (cap, dots)) in active.iter().zip(dots.chunks_exact(nodes.len())).enumerate() {
        let lengths = Lengths { query: caps.norm(*cap), centers: norms.centers, rows: norms.rows, error: f32_error(d) };
        for (node, dot) in nodes.clone().zip(dots) {
            let angle = &segment.angles[node];
            each(i, node, angle.relation(f64::from(*dot), &lengths, caps.bound(*cap)))?;
        }
    }
    Ok(())
}
