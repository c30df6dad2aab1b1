//! Sums of a channel: how they merge, and that they are numbers, to be stored and sent.

#![forbid(unsafe_code)]

use super::double::Double;

/// The factors of a merge, which follow from the two counts alone and so are the same for all channels of a tile.
#[derive(Clone, Copy)]
pub struct MergeWeights {
    /// Whether right takes in left: then they are by `new(right, left)`.
    pub swapped: bool,
    pub share: f64,
    pub weight: f64,
    pub fine_share: Double,
    pub fine_weight: Double,
}

impl MergeWeights {
    /// To merge moments of `right` elements, or of so much weight, into those of `left`; not both 0.
    pub fn new(left: f64, right: f64) -> Self {
        if left == right {
            // What follows from there, without divisions: most nodes of a tree are of equal halves.
            let exact = |high| Double { high, low: 0.0 };
            let weight = left * 0.5;
            return Self {
                swapped: false,
                share: 0.5,
                weight,
                fine_share: exact(0.5),
                fine_weight: exact(weight),
            };
        }
        let total = left + right;
        let share = right / total;
        let fine_share = Double { high: right, low: 0.0 }.over(total);
        let fine_weight = fine_share.times(Double { high: left, low: 0.0 });
        Self { swapped: false, share, weight: left * share, fine_share, fine_weight }
    }

    /// The same of weights, whose sum may be rounded: the mean is that of the heavier side, corrected by a small share. One near 1
    /// would be off by as much as the lighter side weighs.
    pub fn of_weights(left: f64, right: f64) -> Self {
        if right > left { Self { swapped: true, ..Self::new(right, left) } } else { Self::new(left, right) }
    }
}

/// Sums of a channel over some elements, which are some numbers of 64 bits.
pub trait Sum: Copy + Default + Send + Sync + 'static {
    /// Those of others, too; by the elements that each are over.
    fn with(self, others: Self, weights: MergeWeights) -> Self;
    /// Those of elements that count as often as this weight says; a mean is what it was.
    fn weighed(self, weight: f64) -> Self;

    /// How many numbers they are.
    const COUNT: usize;

    /// Writes them to `COUNT` places.
    fn put(self, to: &mut [u64]);
    /// What `COUNT` numbers are the sums of.
    fn of_numbers(from: &[u64]) -> Self;
    /// Whether they are those of any elements.
    fn are_possible(&self) -> bool {
        true
    }
}

/// The number of these bits, a NaN as the canonical one: which one it was depends on the CPU that made it.
pub fn number(bits: u64) -> f64 {
    let value = f64::from_bits(bits);
    if value.is_nan() { f64::NAN } else { value }
}
