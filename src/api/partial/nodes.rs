//! What has been summed of a batch: some nodes of the tree in which its blocks merge, and fragments of its leaves.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

use super::kind::Kind;
use crate::api::builders::operands::check_sample_weights;
use crate::api::shape::Shape;
use crate::ground::error::{Error, LARGEST_WEIGHT};
use crate::ground::memory::{filled, reserved};
use crate::ground::slices::Output;
use crate::ground::sums::{MergeWeights, Sum};
use crate::schedule::blocks::{Samples, granularity};
use crate::schedule::tree::{Node as Place, Tree};
use crate::simd::environment;

/// Sums over some samples, of each channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Positions of a sample.
    pub spatial: u64,
    pub samples: Range<u64>,
    /// Elements per channel, each as often as its sample's weight says, if samples have any.
    pub weight: Option<f64>,
    /// As numbers, channel by channel.
    pub sums: Vec<u64>,
}

impl Node {
    fn len(&self) -> u64 {
        self.samples.end - self.samples.start
    }

    /// The elements per channel.
    fn elements(&self) -> u64 {
        self.len() * self.spatial
    }

    /// As often as they count.
    fn count(&self) -> f64 {
        self.weight.unwrap_or(self.elements() as f64)
    }

    /// Takes in its neighbour.
    fn append(&mut self, kind: Kind, right: &Self) {
        let counts = (self.count(), right.count());
        merge(kind, self.weight.is_some(), (&mut self.sums, counts.0), (&right.sums, counts.1));
        self.samples.end = right.samples.end;
        self.weight = self.weight.map(|weight| weight + counts.1);
    }
}

/// Nodes by the positions of their samples and in the order of these, none of which has samples of another's. Samples of as many
/// positions are one tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Nodes {
    pub kind: Kind,
    pub channels: usize,
    /// Whether samples have weights; each is a block of its own then. None have where there are no samples.
    pub weighted: bool,
    nodes: Vec<Node>,
}

/// The most elements of a channel, so that no count overflows.
const MOST: u64 = u64::MAX >> 1;

/// Nodes that are put in between the others one by one; to sort more of them with these takes less than to move these for each.
const FEW: usize = 16;

/// The samples of a block of samples of so many positions.
fn leaf_of(weighted: bool, spatial: u64) -> u64 {
    if weighted { 1 } else { granularity(usize::try_from(spatial).unwrap_or(usize::MAX)) as u64 }
}

/// Samples as the nodes that they are: the largest subtrees, and fragments of leaves at their ends.
fn cut(leaf: u64, samples: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut next = samples.start;
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
        Self { kind, channels, weighted: false, nodes: Vec::new() }
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

    /// The elements per channel that have been summed, whatever their weights.
    pub fn elements(&self) -> u64 {
        self.nodes.iter().map(Node::elements).sum()
    }

    /// That there are elements that count, if there are any.
    pub fn check_weights(&self) -> Result<(), Error> {
        if self.elements() > 0 && self.count() == 0 { Err(Error::NoSampleWeight) } else { Ok(()) }
    }

    /// How many elements the states of this are of: the weight as a whole number.
    pub fn count(&self) -> u64 {
        if self.weighted { count_of(self.join_by(&mut |_, _| ())) } else { self.elements() }
    }

    /// Takes in a part of this shape, from sample `first` of the batch on, node by node, with a weight for each sample or none: `sum`
    /// writes the sums of the samples it is given, counted from the part's first, or says why not.
    pub fn add<V: Sum>(
        &mut self,
        shape: &Shape,
        part: (u64, Option<&[f64]>),
        mut sum: impl FnMut(Output<'_, V>, Samples<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (kind, channels) = (self.kind, self.channels);
        let mut sums = filled(channels, V::default())?;
        self.add_numbers(shape, part, &mut |samples| {
            sum(Output::new(&mut sums), samples)?;
            let mut numbers = room(kind, channels)?;
            numbers.chunks_exact_mut(V::COUNT).zip(&sums).for_each(|(numbers, sums)| sums.put(numbers));
            Ok(numbers)
        })
    }

    /// The same with sums as numbers: once for all of them.
    fn add_numbers(
        &mut self,
        shape: &Shape,
        (first, weights): (u64, Option<&[f64]>),
        sum: &mut dyn FnMut(Samples<'_>) -> Result<Vec<u64>, Error>,
    ) -> Result<(), Error> {
        let (all, spatial) = (self.part(shape, first)?, shape.spatial() as u64);
        check_sample_weights(shape, weights)?;
        let mut nodes = Vec::new();
        for samples in cut(leaf_of(weights.is_some(), spatial), all) {
            let [from, end] = [samples.start, samples.end].map(|sample| (sample - first) as usize);
            let part = Samples { first: from, end, weights };
            let sums = sum(part)?;
            reserved(&mut nodes, 1)?;
            let weight = weights.map(|_| weight_of(shape, &part));
            nodes.push(Node { spatial, samples, weight, sums });
        }
        self.take(nodes, weights.is_some())
    }

    /// The samples of a part of this shape, from sample `first` of the batch on.
    fn part(&self, shape: &Shape, first: u64) -> Result<Range<u64>, Error> {
        shape.check_channels("partial sums", self.channels)?;
        match first.checked_add(shape.batch() as u64) {
            Some(end) if can_be_counted(end, shape.spatial() as u64) => Ok(first..end),
            _ => Err(Error::Partial { reason: TOO_MANY }),
        }
    }

    /// Takes in nodes of some other samples, in order, none of which has samples of another's.
    fn take(&mut self, mut others: Vec<Node>, weighted: bool) -> Result<(), Error> {
        if others.is_empty() {
            return Ok(());
        }
        if !self.nodes.is_empty() && self.weighted != weighted {
            return Err(Error::Partial { reason: "have weights, and others have none" });
        }
        reserved(&mut self.nodes, others.len())?;
        let few = others.len() <= FEW;
        let apart = match few {
            true => others.iter().all(|node| self.is_apart(node)),
            false => are_apart(self.nodes.iter().chain(&others))?,
        };
        if !apart {
            return Err(Error::Partial { reason: "have samples in common" });
        }
        let counts = self.nodes.iter().chain(&others).map(Node::elements);
        if counts.fold(0u64, u64::saturating_add) > MOST {
            return Err(Error::Partial { reason: TOO_MANY });
        }
        if !few {
            reserved(&mut others, self.nodes.len())?;
            others.append(&mut self.nodes);
            others.sort_unstable_by_key(|node| (node.spatial, node.samples.start));
        }
        self.weighted = weighted;
        environment::in_default(|| others.into_iter().for_each(|node| self.insert(node)));
        Ok(())
    }

    /// Where a node of these samples is, or belongs.
    fn place(&self, spatial: u64, start: u64) -> usize {
        self.nodes.partition_point(|node| (node.spatial, node.samples.start) < (spatial, start))
    }

    /// Whether no node has samples of this one, of whatever positions.
    fn is_apart(&self, other: &Node) -> bool {
        let Range { start, end } = other.samples;
        // Those of as many positions follow each other.
        let mut first = 0;
        while let Some(spatial) = self.nodes.get(first).map(|node| node.spatial) {
            let at = self.place(spatial, start);
            let before = self.nodes[first..at].last().is_none_or(|node| node.samples.end <= start);
            let next = self.nodes.get(at).filter(|node| node.spatial == spatial);
            if !before || next.is_some_and(|node| node.samples.start < end) {
                return false;
            }
            first = at + self.nodes[at..].partition_point(|node| node.spatial == spatial);
        }
        true
    }

    /// One more node, apart from the others; with it, halves become wholes. There is room for it.
    fn insert(&mut self, node: Node) {
        let leaf = leaf_of(self.weighted, node.spatial);
        let at = self.place(node.spatial, node.samples.start);
        self.nodes.insert(at, node);
        let mut at = self.complete_leaf(at, leaf);
        while let Some(left) = self.left_of_halves(at, leaf) {
            self.merge_neighbours(left..left + 2);
            at = left;
        }
    }

    /// The first of two halves of a subtree, of which the node at `at` is one.
    fn left_of_halves(&self, at: usize, leaf: u64) -> Option<usize> {
        let len = self.nodes[at].len();
        let is_right = !self.nodes[at].samples.start.is_multiple_of(len.checked_mul(2)?);
        let left = if is_right { at.checked_sub(1)? } else { at };
        let (left_half, right_half) = (&self.nodes[left], self.nodes.get(left + 1)?);
        let halves = left_half.spatial == right_half.spatial
            && left_half.samples.end == right_half.samples.start
            && left_half.len() == right_half.len()
            && len.is_multiple_of(leaf);
        halves.then_some(left)
    }

    /// Merges the fragments of the leaf that the node at `at` is of, if there are all; where it is then.
    fn complete_leaf(&mut self, at: usize, leaf: u64) -> usize {
        let Node { spatial, ref samples, .. } = self.nodes[at];
        if samples.end - samples.start >= leaf {
            return at;
        }
        let start = samples.start / leaf * leaf;
        let (first, end) = (self.place(spatial, start), self.place(spatial, start.saturating_add(leaf)));
        if self.nodes[first..end].iter().map(Node::len).sum::<u64>() != leaf {
            return at;
        }
        self.merge_neighbours(first..end);
        first
    }

    /// Merges these nodes to the first of them.
    fn merge_neighbours(&mut self, range: Range<usize>) {
        let kind = self.kind;
        let (left, others) = self.nodes[range.clone()].split_at_mut(1);
        others.iter().for_each(|right| left[0].append(kind, right));
        self.nodes.drain(range.start + 1..range.end);
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
        for Node { spatial, samples, weight, sums } in &other.nodes {
            let mut copy = room(self.kind, self.channels)?;
            copy.copy_from_slice(sums);
            nodes.push(Node { spatial: *spatial, samples: samples.clone(), weight: *weight, sums: copy });
        }
        self.take(nodes, other.weighted)
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

    /// The sums of all samples that there are, and how often their elements count.
    pub fn joined<V: Sum>(&self) -> Result<(Vec<V>, f64), Error> {
        let ((numbers, weight), mut sums) = (self.joined_numbers()?, filled(self.channels, V::default())?);
        let each = numbers.chunks_exact(V::COUNT);
        sums.iter_mut().zip(each).for_each(|(sums, numbers)| *sums = V::of_numbers(numbers));
        Ok((sums, weight))
    }

    fn joined_numbers(&self) -> Result<(Vec<u64>, f64), Error> {
        let mut sums: Vec<Vec<u64>> = Vec::new();
        reserved(&mut sums, self.nodes.len())?;
        for node in &self.nodes {
            let mut copy = room(self.kind, self.channels)?;
            copy.copy_from_slice(&node.sums);
            sums.push(copy);
        }
        let weight = self.join_by(&mut |left, right| {
            let (before, from) = sums.split_at_mut(right.place);
            let left = (&mut before[left.place][..], left.count);
            merge(self.kind, self.weighted, left, (&from[0], right.count));
        });
        match sums.into_iter().next() {
            Some(sums) => Ok((sums, weight)),
            None => Ok((room(self.kind, self.channels)?, weight)),
        }
    }

    /// Merges all to the first, by their places: the pairs that merge go to `merge`, a tree's nodes first, then trees. How often their
    /// elements count.
    fn join_by(&self, merge: &mut dyn FnMut(Place, Place)) -> f64 {
        let (mut place, mut seen) = (0, 0.0);
        environment::in_default(|| {
            for group in self.nodes.chunk_by(|left, right| left.spatial == right.spatial) {
                let count = join_tree(self.weighted, (place, group), merge);
                let [all, tree] =
                    [(0, seen), (place, count)].map(|(place, count)| Place { leaf: 0, count, place });
                if place > 0 {
                    merge(all, tree);
                }
                (place, seen) = (place + group.len(), seen + count);
            }
        });
        seen
    }

    /// Nodes that came from elsewhere, in order, checked; `None` if they are none.
    pub fn checked(
        kind: Kind,
        channels: usize,
        weighted: bool,
        nodes: Vec<Node>,
    ) -> Result<Option<Self>, Error> {
        let mut are_nodes = false;
        environment::in_default(|| are_nodes = Self::are_nodes(kind, channels, weighted, &nodes));
        if !are_nodes || !are_apart(nodes.iter())? {
            return Ok(None);
        }
        let mut checked = Self { weighted: weighted && !nodes.is_empty(), ..Self::new(kind, channels) };
        reserved(&mut checked.nodes, nodes.len())?;
        environment::in_default(|| nodes.into_iter().for_each(|node| checked.insert(node)));
        Ok(Some(checked))
    }

    fn are_nodes(kind: Kind, channels: usize, weighted: bool, nodes: &[Node]) -> bool {
        let mut before = (0, 0);
        for Node { spatial, samples, weight, sums } in nodes {
            let in_order = before <= (*spatial, samples.start) && samples.start < samples.end;
            let len = channels.checked_mul(kind.arithmetic().numbers);
            let fits = in_order && can_be_counted(samples.end, *spatial) && Some(sums.len()) == len;
            if !fits || !is_node(leaf_of(weighted, *spatial), samples) {
                return false;
            }
            let elements = ((samples.end - samples.start) * spatial) as f64;
            let weights = *spatial as f64 / LARGEST_WEIGHT..=elements * LARGEST_WEIGHT;
            if weight.is_some_and(|weight| weight != 0.0 && !weights.contains(&weight)) {
                return false;
            }
            before = (*spatial, samples.end);
        }
        nodes.iter().map(Node::elements).fold(0u64, u64::saturating_add) <= MOST
    }
}

/// Whether none has samples of another's, of other numbers of positions, too.
fn are_apart<'a>(nodes: impl Iterator<Item = &'a Node> + Clone) -> Result<bool, Error> {
    let mut all = Vec::new();
    reserved(&mut all, nodes.clone().count())?;
    all.extend(nodes.map(|node| (node.samples.start, node.samples.end)));
    all.sort_unstable();
    Ok(all.windows(2).all(|pair| pair[0].1 <= pair[1].0))
}

/// Room for the numbers of one more node.
fn room(kind: Kind, channels: usize) -> Result<Vec<u64>, Error> {
    filled(channels.saturating_mul(kind.arithmetic().numbers), 0)
}

const TOO_MANY: &str = "are of samples whose elements are too many to be counted";

/// The weight as a whole number, which is one at least of elements that have any.
fn count_of(weight: f64) -> u64 {
    let mut count = 0;
    if weight > 0.0 {
        environment::in_default(|| count = weight.round().clamp(1.0, MOST as f64) as u64);
    }
    count
}

/// Elements per channel of some samples, as often as they count.
fn weight_of(shape: &Shape, samples: &Samples<'_>) -> f64 {
    let mut weight = 0.0;
    // Of one channel, if there is none.
    let single = || Shape::new(shape.layout(), shape.batch(), 1, shape.spatial_dims()).ok()?.geometry();
    if let Some(geometry) = shape.geometry().or_else(single) {
        environment::in_default(|| weight = samples.count_all(&geometry));
    }
    weight
}

/// How many elements the states of a batch of this shape are of, with these weights of its samples.
pub fn count_of_batch(shape: &Shape, weights: Option<&[f64]>) -> u64 {
    match weights {
        Some(_) => count_of(weight_of(shape, &Samples { first: 0, end: shape.batch(), weights })),
        None => shape.per_channel() as u64,
    }
}

/// Merges the nodes of one tree to the first one, whose place this is; how often their elements count.
fn join_tree(weighted: bool, (first, nodes): (usize, &[Node]), merge: &mut dyn FnMut(Place, Place)) -> f64 {
    let leaf = nodes.first().map_or(1, |node| leaf_of(weighted, node.spatial));
    let (mut tree, mut i) = (Tree::EMPTY, 0);
    while let Some(node) = nodes.get(i) {
        // Fragments of one leaf first.
        let number = node.samples.start / leaf;
        let mut fragments = Place { leaf: number as usize, count: node.count(), place: first + i };
        i += 1;
        while let Some(next) = nodes.get(i).filter(|next| next.samples.start / leaf == number) {
            merge(fragments, Place { count: next.count(), place: first + i, ..fragments });
            (fragments.count, i) = (fragments.count + next.count(), i + 1);
        }
        tree.complete(number as usize, merge);
        tree.push(fragments);
    }
    tree.finish(merge)
}

/// left := left and right together, by the elements per channel of each, as often as they count.
fn merge(kind: Kind, weighted: bool, left: (&mut [u64], f64), right: (&[u64], f64)) {
    // Of tensors without positions, and elements without weights, there is nothing to merge.
    if left.1 == 0.0 {
        left.0.copy_from_slice(right.0);
    } else if right.1 != 0.0 {
        let weights = if weighted { MergeWeights::of_weights } else { MergeWeights::new };
        (kind.arithmetic().merge)(left.0, right.0, weights(left.1, right.1));
    }
}
