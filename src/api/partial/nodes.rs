//! What has been summed of a batch: some nodes of the tree in which its blocks merge, and fragments of its leaves.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

use super::kind::Kind;
use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::ground::memory::{filled, reserved};
use crate::ground::slices::Output;
use crate::ground::sums::{MergeWeights, Sum};
use crate::schedule::blocks::granularity;
use crate::schedule::tree::{Node as Place, Tree};
use crate::simd::environment;

/// Sums over some samples, of each channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Positions of a sample.
    pub spatial: u64,
    pub samples: Range<u64>,
    /// As numbers, channel by channel.
    pub sums: Vec<u64>,
}

impl Node {
    fn len(&self) -> u64 {
        self.samples.end - self.samples.start
    }

    /// The elements per channel.
    fn count(&self) -> u64 {
        self.len() * self.spatial
    }
}

/// Nodes by the positions of their samples and in the order of these, none of which has samples of another's. Samples of as many
/// positions are one tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Nodes {
    pub kind: Kind,
    pub channels: usize,
    nodes: Vec<Node>,
}

/// The most elements of a channel, so that no count overflows.
const MOST: u64 = u64::MAX >> 1;

/// The samples of a block of samples of so many positions.
fn leaf_of(spatial: u64) -> u64 {
    granularity(usize::try_from(spatial).unwrap_or(usize::MAX)) as u64
}

/// Samples as the nodes that they are: the largest subtrees, and fragments of leaves at their ends.
fn cut(spatial: u64, samples: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let (leaf, mut next) = (leaf_of(spatial), samples.start);
    std::iter::from_fn(move || {
        let (start, left) = (next, samples.end - next);
        if left == 0 {
            return None;
        }
        let len = match start % leaf {
            0 if left < leaf => left,
            0 => {
                let fits = leaf << (left / leaf).ilog2();
                if start == 0 { fits } else { fits.min(1 << start.trailing_zeros()) }
            }
            within => left.min(leaf - within),
        };
        next += len;
        Some(start..next)
    })
}

/// Whether these samples are a node of the tree, or a part of a leaf.
fn is_node(leaf: u64, samples: &Range<u64>) -> bool {
    let len = samples.end - samples.start;
    match len % leaf {
        0 => (len / leaf).is_power_of_two() && samples.start.is_multiple_of(len),
        _ => samples.start / leaf == (samples.end - 1) / leaf,
    }
}

/// Whether so many can be counted.
fn can_be_counted(samples: u64, spatial: u64) -> bool {
    samples.checked_mul(spatial.max(1)).is_some_and(|count| count <= MOST)
}

impl Nodes {
    /// Of no samples.
    pub fn new(kind: Kind, channels: usize) -> Self {
        Self { kind, channels, nodes: Vec::new() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The samples that have been summed.
    pub fn samples(&self) -> u64 {
        self.nodes.iter().map(Node::len).sum()
    }

    /// The elements per channel that have been summed.
    pub fn count(&self) -> u64 {
        self.nodes.iter().map(Node::count).sum()
    }

    /// Takes in a part of this shape, from sample `first` of the batch on, node by node: `sum` writes the sums of the samples it is
    /// given, counted from the part's first, or says why not.
    pub fn add<V: Sum>(
        &mut self,
        shape: &Shape,
        first: u64,
        mut sum: impl FnMut(Output<'_, V>, (usize, usize)) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (samples, spatial) = (self.part(shape, first)?, shape.spatial() as u64);
        let (mut nodes, mut sums) = (Vec::new(), filled(self.channels, V::default())?);
        for samples in cut(spatial, samples) {
            let part = ((samples.start - first) as usize, (samples.end - first) as usize);
            sum(Output::new(&mut sums), part)?;
            reserved(&mut nodes, 1)?;
            nodes.push(Node { spatial, samples, sums: self.numbers(&sums)? });
        }
        self.take(nodes)
    }

    /// The samples of a part of this shape, from sample `first` of the batch on.
    fn part(&self, shape: &Shape, first: u64) -> Result<Range<u64>, Error> {
        shape.check_channels("partial sums", self.channels)?;
        match first.checked_add(shape.batch() as u64) {
            Some(end) if can_be_counted(end, shape.spatial() as u64) => Ok(first..end),
            _ => Err(Error::Partial { reason: TOO_MANY }),
        }
    }

    /// Sums of one more node.
    fn numbers<V: Sum>(&self, sums: &[V]) -> Result<Vec<u64>, Error> {
        let mut numbers = self.room()?;
        numbers.chunks_exact_mut(V::COUNT).zip(sums).for_each(|(numbers, sums)| sums.put(numbers));
        Ok(numbers)
    }

    /// Room for them.
    fn room(&self) -> Result<Vec<u64>, Error> {
        filled(self.channels.saturating_mul(self.kind.arithmetic().numbers), 0)
    }

    /// Takes in nodes of some other samples, in order.
    fn take(&mut self, others: Vec<Node>) -> Result<(), Error> {
        let mut nodes = Vec::new();
        reserved(&mut nodes, self.nodes.len() + others.len())?;
        // They come back there.
        reserved(&mut self.nodes, others.len())?;
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let twice = |other: &Node| self.nodes.iter().any(|node| overlap(&node.samples, &other.samples));
        if others.iter().any(twice) {
            return Err(Error::Partial { reason: "have samples in common" });
        }
        let counts = self.nodes.iter().chain(&others).map(Node::count);
        if counts.fold(0u64, u64::saturating_add) > MOST {
            return Err(Error::Partial { reason: TOO_MANY });
        }
        nodes.append(&mut self.nodes);
        nodes.extend(others);
        nodes.sort_unstable_by_key(|node: &Node| (node.spatial, node.samples.start));
        environment::in_default(|| self.complete(nodes));
        Ok(())
    }

    /// Takes in another part's.
    pub fn join(&mut self, other: &Self) -> Result<(), Error> {
        if other.channels != self.channels {
            return Err(Error::Partial { reason: "are of another number of channels" });
        }
        if other.kind != self.kind {
            return Err(Error::Partial { reason: "are others, or of another element" });
        }
        let mut nodes = Vec::new();
        reserved(&mut nodes, other.len())?;
        for Node { spatial, samples, sums } in &other.nodes {
            let mut copy = self.room()?;
            copy.copy_from_slice(sums);
            nodes.push(Node { spatial: *spatial, samples: samples.clone(), sums: copy });
        }
        self.take(nodes)
    }

    /// These, if they are of this kind.
    pub fn of_kind(self, kind: Kind) -> Result<Self, Error> {
        match self.kind == kind {
            true => Ok(self),
            false => Err(Error::Bytes { reason: "are of other sums, or of another element" }),
        }
    }

    /// For people: which samples of how many channels.
    pub fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let samples: Vec<_> = self.nodes.iter().map(|node| (&node.samples, node.spatial)).collect();
        f.debug_struct(name).field("channels", &self.channels).field("samples", &samples).finish()
    }

    /// Nodes in order, of which halves become wholes.
    fn complete(&mut self, nodes: Vec<Node>) {
        for node in nodes {
            let leaf = leaf_of(node.spatial);
            self.nodes.push(node);
            self.complete_leaf(leaf);
            while let [.., left, right] = &mut self.nodes[..] {
                let len = right.len();
                let halves = left.spatial == right.spatial
                    && left.samples.end == right.samples.start
                    && left.len() == len
                    && len.is_multiple_of(leaf)
                    && left.samples.start.is_multiple_of(2 * len);
                if !halves {
                    break;
                }
                let counts = (left.count(), right.count());
                merge(self.kind, (&mut left.sums, counts.0), (&right.sums, counts.1));
                left.samples.end = right.samples.end;
                self.nodes.pop();
            }
        }
    }

    /// Merges the fragments of the last leaf, if there are all.
    fn complete_leaf(&mut self, leaf: u64) {
        let Some(last) = self.nodes.last() else { return };
        let (spatial, end) = (last.spatial, last.samples.end);
        if !end.is_multiple_of(leaf) || last.len() >= leaf {
            return;
        }
        let before = |node: &Node| (node.spatial, node.samples.start) < (spatial, end - leaf);
        let first = self.nodes.partition_point(before);
        if self.nodes[first..].iter().map(Node::len).sum::<u64>() == leaf {
            let whole = in_order(self.kind, self.nodes.drain(first..));
            self.nodes.extend(whole);
        }
    }

    /// The sums of all samples that there are.
    pub fn joined<V: Sum>(&self) -> Result<Vec<V>, Error> {
        let (numbers, mut sums) = (self.joined_numbers()?, filled(self.channels, V::default())?);
        let each = numbers.chunks_exact(V::COUNT);
        sums.iter_mut().zip(each).for_each(|(sums, numbers)| *sums = V::of_numbers(numbers));
        Ok(sums)
    }

    fn joined_numbers(&self) -> Result<Vec<u64>, Error> {
        let mut sums: Vec<Vec<u64>> = Vec::new();
        reserved(&mut sums, self.nodes.len())?;
        for node in &self.nodes {
            let mut copy = self.room()?;
            copy.copy_from_slice(&node.sums);
            sums.push(copy);
        }
        environment::in_default(|| {
            // Of samples of as many positions first, then all of these.
            let (mut place, mut seen) = (0, 0);
            for group in self.nodes.chunk_by(|left, right| left.spatial == right.spatial) {
                let count = join_tree(self.kind, group, &mut sums[place..place + group.len()]);
                if place > 0 {
                    let (all, group) = sums.split_at_mut(place);
                    merge(self.kind, (&mut all[0], seen), (&group[0], count));
                }
                (place, seen) = (place + group.len(), seen + count);
            }
        });
        match sums.into_iter().next() {
            Some(sums) => Ok(sums),
            None => self.room(),
        }
    }

    /// Nodes that came from elsewhere, in order, checked; `None` if they are none.
    pub fn checked(kind: Kind, channels: usize, nodes: Vec<Node>) -> Result<Option<Self>, Error> {
        if !Self::are_nodes(kind, channels, &nodes) {
            return Ok(None);
        }
        let mut checked = Self::new(kind, channels);
        reserved(&mut checked.nodes, nodes.len())?;
        environment::in_default(|| checked.complete(nodes));
        Ok(Some(checked))
    }

    fn are_nodes(kind: Kind, channels: usize, nodes: &[Node]) -> bool {
        let mut before = (0, 0);
        for Node { spatial, samples, sums } in nodes {
            let in_order = before <= (*spatial, samples.start) && samples.start < samples.end;
            let len = channels.checked_mul(kind.arithmetic().numbers);
            let fits = in_order && can_be_counted(samples.end, *spatial) && Some(sums.len()) == len;
            if !fits || !is_node(leaf_of(*spatial), samples) {
                return false;
            }
            before = (*spatial, samples.end);
        }
        // Of samples of other numbers of positions, too.
        let apart = |(i, node): (usize, &Node)| {
            nodes[..i].iter().all(|other| {
                other.samples.end <= node.samples.start || node.samples.end <= other.samples.start
            })
        };
        let counted = nodes.iter().map(Node::count).fold(0u64, u64::saturating_add) <= MOST;
        counted && nodes.iter().enumerate().all(apart)
    }
}

const TOO_MANY: &str = "are of samples whose elements are too many to be counted";

/// The sums of nodes of one tree, to the first one's; how many elements they are over.
fn join_tree(kind: Kind, nodes: &[Node], sums: &mut [Vec<u64>]) -> u64 {
    let (leaf, spatial) = nodes.first().map_or((1, 0), |node| (leaf_of(node.spatial), node.spatial));
    let (mut tree, mut i) = (Tree::EMPTY, 0);
    // Counts of the tree's nodes are of samples, which fit where elements do.
    let join = |sums: &mut [Vec<u64>], left: Place, right: Place| {
        let (before, from) = sums.split_at_mut(right.place);
        let counts = [left.count, right.count].map(|count| count as u64 * spatial);
        merge(kind, (&mut before[left.place], counts[0]), (&from[0], counts[1]));
    };
    while let Some(node) = nodes.get(i) {
        // Fragments of one leaf first.
        let (place, number) = (i, node.samples.start / leaf);
        let mut seen = node.len();
        i += 1;
        while let Some(next) = nodes.get(i).filter(|next| next.samples.start / leaf == number) {
            let (before, from) = sums.split_at_mut(i);
            merge(kind, (&mut before[place], seen * spatial), (&from[0], next.count()));
            (seen, i) = (seen + next.len(), i + 1);
        }
        tree.complete(number as usize, &mut |left, right| join(sums, left, right));
        tree.push(Place { leaf: number as usize, count: seen as usize, place });
    }
    tree.finish(&mut |left, right| join(sums, left, right));
    nodes.iter().map(Node::count).sum()
}

/// left := left and right together, by the elements per channel of each.
fn merge(kind: Kind, left: (&mut [u64], u64), right: (&[u64], u64)) {
    // Of tensors without positions there is nothing to merge.
    if right.1 != 0 {
        (kind.arithmetic().merge)(left.0, right.0, MergeWeights::new(left.1, right.1));
    }
}

/// All of some neighbours, one after the other.
fn in_order(kind: Kind, nodes: impl Iterator<Item = Node>) -> Option<Node> {
    nodes.reduce(|mut left, right| {
        let counts = (left.count(), right.count());
        merge(kind, (&mut left.sums, counts.0), (&right.sums, counts.1));
        left.samples.end = right.samples.end;
        left
    })
}
