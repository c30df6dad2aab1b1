//! The order in which blocks' states merge: that of a binary tree over their numbers, with memory for one state a level.

#![forbid(unsafe_code)]

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

    /// The count of leaves of these numbers and counts, added up as their states merge: a sum of weights is rounded.
    pub fn count(leaves: impl Iterator<Item = (usize, f64)>) -> f64 {
        let mut tree = Self::EMPTY;
        for (leaf, count) in leaves {
            tree.complete(leaf, &mut |_, _| ());
            tree.push(Node { leaf, count, place: 0 });
        }
        tree.finish(&mut |_, _| ())
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut some = 1usize;
        for _ in 0..200 {
            some = some.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
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
