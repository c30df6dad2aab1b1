//! What has been summed of a batch: some nodes of the tree in which its blocks merge, and fragments of its leaves.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::ground::memory::filled;
use crate::ground::sums::{MergeWeights, Sum};
use crate::schedule::blocks::granularity;
use crate::schedule::tree::{Node as Place, Tree};
use crate::simd::environment;

/// Sums over some samples, of each channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<V> {
    pub samples: Range<u64>,
    pub sums: Vec<V>,
}

/// Nodes in the order of their samples, none of which has samples of another's.
#[derive(Debug, Clone, PartialEq)]
pub struct Nodes<V> {
    pub channels: usize,
    /// Positions of a sample.
    pub spatial: u64,
    nodes: Vec<Node<V>>,
}

/// The most elements of a channel, so that no count overflows.
const MOST: u64 = u64::MAX >> 1;

impl<V: Sum> Nodes<V> {
    /// Of no samples.
    pub fn new(channels: usize, spatial: u64) -> Self {
        Self { channels, spatial, nodes: Vec::new() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Node<V>> {
        self.nodes.iter()
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The samples of a block.
    fn granularity(&self) -> u64 {
        granularity(usize::try_from(self.spatial).unwrap_or(usize::MAX)) as u64
    }

    /// The samples that have been summed.
    pub fn samples(&self) -> u64 {
        self.nodes.iter().map(|node| node.samples.end - node.samples.start).sum()
    }

    /// The elements per channel that have been summed.
    pub fn count(&self) -> u64 {
        self.samples() * self.spatial
    }

    /// The samples of a part of this shape, from sample `first` of the batch on.
    pub fn part(&self, shape: &Shape, first: u64) -> Result<Range<u64>, Error> {
        shape.check_channels("partial sums", self.channels)?;
        if shape.spatial() as u64 != self.spatial {
            return Err(Error::Partial {
                reason: "have another number of positions per sample than the shape",
            });
        }
        let end = first.checked_add(shape.batch() as u64);
        let fits = end.filter(|end| end.checked_mul(self.spatial.max(1)).is_some_and(|count| count <= MOST));
        match fits {
            Some(end) => Ok(first..end),
            None => {
                Err(Error::Partial { reason: "are of samples whose elements are too many to be counted" })
            }
        }
    }

    /// Samples as the nodes that they are: the largest subtrees, and fragments of leaves at their ends.
    pub fn cut(&self, samples: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<V> {
        let (leaf, mut next) = (self.granularity(), samples.start);
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
    fn is_node(&self, samples: &Range<u64>) -> bool {
        let (leaf, len) = (self.granularity(), samples.end - samples.start);
        match len % leaf {
            0 => (len / leaf).is_power_of_two() && samples.start % len == 0,
            _ => samples.start / leaf == (samples.end - 1) / leaf,
        }
    }

    /// Room for one more node.
    pub fn room(&self) -> Result<Vec<V>, Error> {
        filled(self.channels, V::default())
    }

    /// Takes in nodes of some other samples, in order.
    pub fn take(&mut self, others: Vec<Node<V>>) -> Result<(), Error> {
        let mut nodes = Vec::new();
        let most = self.nodes.len() + others.len();
        if nodes.try_reserve_exact(most).is_err() {
            return Err(Error::OutOfMemory { bytes: most.saturating_mul(size_of::<Node<V>>()) });
        }
        if let Some(reason) = self.why_not(&others) {
            return Err(Error::Partial { reason });
        }
        nodes.append(&mut self.nodes);
        nodes.extend(others);
        nodes.sort_by_key(|node: &Node<V>| node.samples.start);
        environment::in_default(|| self.complete(std::mem::take(&mut nodes)));
        Ok(())
    }

    /// Takes in another part's.
    pub fn join(&mut self, other: &Self) -> Result<(), Error> {
        if other.channels != self.channels || other.spatial != self.spatial {
            return Err(Error::Partial { reason: "are of other channels or positions" });
        }
        let mut nodes = Vec::new();
        let bytes = other.len().saturating_mul(size_of::<Node<V>>());
        nodes.try_reserve_exact(other.len()).map_err(|_| Error::OutOfMemory { bytes })?;
        for Node { samples, sums } in &other.nodes {
            let mut copy = self.room()?;
            copy.copy_from_slice(sums);
            nodes.push(Node { samples: samples.clone(), sums: copy });
        }
        self.take(nodes)
    }

    /// For people: which samples of how many channels.
    pub fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let samples: Vec<_> = self.nodes.iter().map(|node| &node.samples).collect();
        f.debug_struct(name)
            .field("channels", &self.channels)
            .field("spatial", &self.spatial)
            .field("samples", &samples)
            .finish()
    }

    /// What is wrong with nodes to be taken in.
    fn why_not(&self, others: &[Node<V>]) -> Option<&'static str> {
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let twice = |other: &Node<V>| self.nodes.iter().any(|node| overlap(&node.samples, &other.samples));
        others.iter().any(twice).then_some("have samples in common")
    }

    /// Nodes in order, of which halves become wholes.
    fn complete(&mut self, nodes: Vec<Node<V>>) {
        let leaf = self.granularity();
        for node in nodes {
            self.nodes.push(node);
            self.complete_leaf(leaf);
            while let [.., left, right] = &mut self.nodes[..] {
                let len = right.samples.end - right.samples.start;
                let halves = left.samples.end == right.samples.start
                    && left.samples.end - left.samples.start == len
                    && len % leaf == 0
                    && left.samples.start % (2 * len) == 0;
                if !halves {
                    break;
                }
                merge(&mut left.sums, len * self.spatial, &right.sums, len * self.spatial);
                left.samples.end = right.samples.end;
                self.nodes.pop();
            }
        }
    }

    /// Merges the fragments of the last leaf, if there are all.
    fn complete_leaf(&mut self, leaf: u64) {
        let Some(last) = self.nodes.last() else { return };
        let end = last.samples.end;
        if end % leaf != 0 || end - last.samples.start >= leaf {
            return;
        }
        let first = self.nodes.partition_point(|node| node.samples.start < end - leaf);
        let fragments: u64 =
            self.nodes[first..].iter().map(|node| node.samples.end - node.samples.start).sum();
        if fragments == leaf {
            let whole = in_order(self.nodes.drain(first..), self.spatial);
            self.nodes.extend(whole);
        }
    }

    /// The sums of all samples that there are.
    pub fn joined(&self) -> Result<Vec<V>, Error> {
        let leaf = self.granularity();
        let mut sums: Vec<Vec<V>> = Vec::new();
        let (most, channels) = (self.nodes.len(), self.channels);
        if sums.try_reserve_exact(most).is_err() {
            return Err(Error::OutOfMemory { bytes: most.saturating_mul(size_of::<Vec<V>>()) });
        }
        for node in &self.nodes {
            let mut copy = self.room()?;
            copy.copy_from_slice(&node.sums);
            sums.push(copy);
        }
        environment::in_default(|| {
            let (mut tree, mut i) = (Tree::EMPTY, 0);
            let spatial = self.spatial;
            while let Some(node) = self.nodes.get(i) {
                // Fragments of one leaf first.
                let (place, number) = (i, node.samples.start / leaf);
                let mut seen = node.samples.end - node.samples.start;
                i += 1;
                while let Some(next) = self.nodes.get(i).filter(|next| next.samples.start / leaf == number) {
                    let len = next.samples.end - next.samples.start;
                    let (before, from) = sums.split_at_mut(i);
                    merge(&mut before[place], seen * spatial, &from[0], len * spatial);
                    (seen, i) = (seen + len, i + 1);
                }
                let mut join = |left: Place, right: Place| {
                    let (before, from) = sums.split_at_mut(right.place);
                    let to = &mut before[left.place];
                    merge(to, left.count as u64 * spatial, &from[0], right.count as u64 * spatial);
                };
                tree.complete(number as usize, &mut join);
                tree.push(Place { leaf: number as usize, count: seen as usize, place });
            }
            tree.finish(|left: Place, right: Place| {
                let (before, from) = sums.split_at_mut(right.place);
                let to = &mut before[left.place];
                merge(to, left.count as u64 * spatial, &from[0], right.count as u64 * spatial);
            });
        });
        match sums.into_iter().next() {
            Some(sums) => Ok(sums),
            None => filled(channels, V::default()),
        }
    }

    /// Nodes that came from elsewhere, in order, checked; `None` if they are none.
    pub fn checked(channels: usize, spatial: u64, nodes: Vec<Node<V>>) -> Option<Self> {
        let mut checked = Self::new(channels, spatial);
        let mut before = 0;
        for Node { samples, sums } in &nodes {
            let fits = samples.end.checked_mul(spatial.max(1)).is_some_and(|count| count <= MOST);
            let in_order = before <= samples.start && samples.start < samples.end;
            if !fits || !in_order || sums.len() != channels || !checked.is_node(samples) {
                return None;
            }
            before = samples.end;
        }
        environment::in_default(|| checked.complete(nodes));
        Some(checked)
    }
}

/// left := left and right together, by the elements per channel of each.
fn merge<V: Sum>(left: &mut [V], left_count: u64, right: &[V], right_count: u64) {
    // Of tensors without positions there is nothing to merge.
    if right_count == 0 {
        return;
    }
    let weights = MergeWeights::new(left_count, right_count);
    left.iter_mut().zip(right).for_each(|(left, right)| *left = left.with(*right, weights));
}

/// All of some neighbours, one after the other.
fn in_order<V: Sum>(nodes: impl Iterator<Item = Node<V>>, spatial: u64) -> Option<Node<V>> {
    nodes.reduce(|mut left, right| {
        let counts = [&left, &right].map(|node| (node.samples.end - node.samples.start) * spatial);
        merge(&mut left.sums, counts[0], &right.sums, counts[1]);
        left.samples.end = right.samples.end;
        left
    })
}
