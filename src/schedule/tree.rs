//! The order in which blocks' states merge: that of a binary tree over their numbers, with memory for one state a level.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ground::error::Error;
use crate::ground::memory::{filled, reserved};
use crate::simd::environment;

/// The most levels of a tree.
const LEVELS: usize = usize::BITS as usize + 1;

/// A state that waits for others: of a whole subtree, or of as much of it as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Node {
    /// Its first leaf.
    pub leaf: usize,
    /// Elements per channel, each as often as its sample's weight says.
    pub count: f64,
    /// Where it is kept.
    pub place: usize,
}

/// The nodes that are complete to the left of the next one, none of which is a part of another.
#[derive(Debug)]
pub struct Tree {
    nodes: [Node; LEVELS],
    len: usize,
}

impl Tree {
    pub const EMPTY: Self = Self { nodes: [Node { leaf: 0, count: 0.0, place: 0 }; LEVELS], len: 0 };

    /// How many nodes wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Merges all that is complete before this leaf: calls `merge` with pairs of nodes, the latter's state goes into that of the
    /// former. There may be leaves that no one has.
    pub fn complete(&mut self, leaf: usize, merge: &mut dyn FnMut(Node, Node)) {
        let Some(last) = self.len.checked_sub(1).map(|last| self.nodes[last].leaf) else { return };
        // Of the subtrees that the last node is in and that end before this leaf, the largest one's first leaf.
        let level = (last ^ leaf).checked_ilog2().unwrap_or(0);
        self.merge_from(last >> level << level, merge);
    }

    /// The next node, in order; what is before it is complete.
    pub fn push(&mut self, node: Node) {
        self.nodes[self.len] = node;
        self.len += 1;
    }

    /// Merges all there is into the first node, whose count is returned.
    pub fn finish(&mut self, merge: &mut dyn FnMut(Node, Node)) -> f64 {
        self.merge_from(0, merge);
        self.nodes[0].count
    }

    /// Merges the last nodes, those from leaf `first` on.
    fn merge_from(&mut self, first: usize, merge: &mut dyn FnMut(Node, Node)) {
        while self.len >= 2 && self.nodes[self.len - 2].leaf >= first {
            let [left, right] = [self.nodes[self.len - 2], self.nodes[self.len - 1]];
            merge(left, right);
            self.nodes[self.len - 2].count += right.count;
            self.len -= 1;
        }
    }
}

/// The merges of some nodes, in whatever order threads come by them: of two nodes that merge, the thread that brings the second
/// one sees to it, so that none waits (a combining tree: P.-C. Yew, N.-F. Tzeng and D. H. Lawrie, 1987).
#[derive(Debug)]
pub struct Merges {
    merges: Vec<Merge>,
    /// Of each node, the merge that takes it.
    taken_by: Vec<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Merge {
    left: Node,
    right: Node,
    /// The merge that takes the outcome.
    taken_by: usize,
}

/// In place of the merge that takes all there is.
const NONE: usize = usize::MAX;

impl Merges {
    /// Of all nodes of a tree, in order, each kept at its index.
    pub fn of(nodes: &[Node]) -> Result<Self, Error> {
        let count = nodes.len().saturating_sub(1);
        let mut of = Self { merges: filled(0, Merge::default())?, taken_by: filled(nodes.len(), NONE)? };
        reserved(&mut of.merges, count)?;
        // Of each place, the last merge into it.
        let mut last = filled(nodes.len(), NONE)?;
        let mut merge = |left: Node, right: Node| {
            let merge = of.merges.len();
            for place in [left.place, right.place] {
                let taken_by = match last[place] {
                    NONE => &mut of.taken_by[place],
                    before => &mut of.merges[before].taken_by,
                };
                *taken_by = merge;
            }
            last[left.place] = merge;
            of.merges.push(Merge { left, right, taken_by: NONE });
        };
        // Counts add up.
        environment::in_default(|| {
            let mut tree = Tree::EMPTY;
            for node in nodes {
                tree.complete(node.leaf, &mut merge);
                tree.push(*node);
            }
            tree.finish(&mut merge);
        });
        Ok(of)
    }

    /// What `arrive` notes for `groups` sets of such nodes: for each merge of each whether one of its nodes is there.
    pub fn notes(&self, groups: usize) -> Result<Vec<AtomicBool>, Error> {
        let mut notes = Vec::new();
        let count = self.merges.len().saturating_mul(groups);
        reserved(&mut notes, count)?;
        notes.extend((0..count).map(|_| AtomicBool::new(false)));
        Ok(notes)
    }

    /// The node of this place of a group is there: calls `merge` with all pairs that it completes. Whether that was all of
    /// the group.
    pub fn arrive(
        &self,
        place: usize,
        (group, notes): (usize, &[AtomicBool]),
        merge: &mut dyn FnMut(Node, Node),
    ) -> bool {
        let notes = &notes[group * self.merges.len()..][..self.merges.len()];
        let mut next = self.taken_by.get(place).copied().unwrap_or(NONE);
        while next != NONE {
            let Merge { left, right, taken_by } = self.merges[next];
            // What came first was written before, and is read after.
            if !notes[next].swap(true, Ordering::AcqRel) {
                return false;
            }
            merge(left, right);
            next = taken_by;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that looks like any other (D. E. Knuth's MMIX).
    fn next(some: &mut usize) -> usize {
        *some = some.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *some
    }

    /// Whatever the order in which nodes arrive, of one group beside another.
    #[test]
    fn merges_do_not_depend_on_arrivals() {
        let mut some = 1;
        for (count, segments) in (0..40).flat_map(|count| [1, 3, 4].map(|segments| (count, segments))) {
            let sample = usize::next_power_of_two(segments);
            let leaf = |i: usize| i / segments * sample + i % segments;
            let nodes: Vec<_> = (0..count).map(|i| Node { leaf: leaf(i), count: 1.0, place: i }).collect();
            let merges = Merges::of(&nodes).expect("memory");
            let notes = merges.notes(2).expect("memory");
            let mut texts: Vec<_> =
                (0..2).map(|_| (0..count).map(|i| leaf(i).to_string()).collect::<Vec<_>>()).collect();
            let mut arrivals: Vec<_> = (0..2 * count).collect();
            (1..arrivals.len()).for_each(|i| arrivals.swap(i, (next(&mut some) >> 33) % (i + 1)));
            let mut complete = [0; 2];
            for arrival in arrivals {
                let (group, place) = (arrival % 2, arrival / 2);
                let texts = &mut texts[group];
                let all = merges.arrive(place, (group, &notes), &mut |left, right| {
                    texts[left.place] = format!("({}+{})", texts[left.place], texts[right.place]);
                });
                complete[group] += usize::from(all);
            }
            if count > 0 {
                let wanted = merged((0..count).map(leaf));
                assert_eq!(complete, [1, 1]);
                assert!(texts.iter().all(|texts| texts[0] == wanted), "{texts:?} {wanted}");
            }
        }
        // A single node, of which no one made a list.
        let none = Merges::of(&[]).expect("memory");
        assert!(none.arrive(0, (3, &[]), &mut |_, _| panic!("nothing to merge")));
    }

    /// What a tree makes of some leaves, as text: pairs of what merged.
    fn merged(leaves: impl Iterator<Item = usize>) -> String {
        let (mut tree, mut texts) = (Tree::EMPTY, Vec::<String>::new());
        let mut most = 0;
        for (place, leaf) in leaves.enumerate() {
            texts.push(leaf.to_string());
            tree.complete(leaf, &mut |left, right| {
                texts[left.place] = format!("({}+{})", texts[left.place], texts[right.place]);
            });
            tree.push(Node { leaf, count: 1.0, place });
            most = most.max(tree.len());
        }
        let count = texts.len();
        tree.finish(&mut |left, right| {
            texts[left.place] = format!("({}+{})", texts[left.place], texts[right.place]);
        });
        assert_eq!((tree.len(), tree.nodes[0].count), (1, count as f64));
        assert!(most <= LEVELS, "{most} nodes of {count}");
        texts.swap_remove(0)
    }

    /// The tree by its definition: halves merge, what has no right half is its left half.
    fn by_definition(leaves: &[usize], (first, level): (usize, u32)) -> Option<String> {
        if level == 0 {
            return leaves.contains(&first).then(|| first.to_string());
        }
        let half = 1 << (level - 1);
        let [left, right] = [first, first + half].map(|first| by_definition(leaves, (first, level - 1)));
        match (left, right) {
            (Some(left), Some(right)) => Some(format!("({left}+{right})")),
            (left, right) => left.or(right),
        }
    }

    /// Those of a batch whose other samples are elsewhere.
    #[test]
    fn leaves_may_be_left_out() {
        for (step, first) in [(2, 1), (3, 0), (5, 1), (2, 0), (7, 3)] {
            let leaves: Vec<_> = (0..400).map(|i| first + step * i).collect();
            assert_eq!(Some(merged(leaves.iter().copied())), by_definition(&leaves, (0, 12)));
        }
        let mut some = 1;
        for _ in 0..200 {
            next(&mut some);
            let leaves: Vec<_> = (0..60).filter(|i| some >> i & 1 == 1).collect();
            if !leaves.is_empty() {
                assert_eq!(Some(merged(leaves.iter().copied())), by_definition(&leaves, (0, 6)));
            }
        }
    }

    #[test]
    fn leaves_merge_as_the_tree_has_them() {
        assert_eq!(merged(0..7), "(((0+1)+(2+3))+((4+5)+6))");
        // All numbers of leaves, and segments of samples, which leave out some.
        for (count, segments) in (1..70).flat_map(|count| (1..10).map(move |segments| (count, segments))) {
            let sample = usize::next_power_of_two(segments);
            let leaves: Vec<_> =
                (0..count).flat_map(|i| (0..segments).map(move |j| i * sample + j)).collect();
            assert_eq!(Some(merged(leaves.iter().copied())), by_definition(&leaves, (0, 11)));
        }
    }
}
