//! What is summed: a term, and the product of two terms.

#![forbid(unsafe_code)]

use crate::simd::Lanes;

/// What a vector's terms are about, per lane.
#[derive(Clone, Copy)]
pub struct About<W> {
    /// The center times -`Lanes::SCALE`.
    pub center: W,
    /// A power of two that x is multiplied by first.
    pub unit: W,
    /// 1, which the compiler does not know (`Terms::BY_ONE`).
    pub one: W,
}

/// What is summed of `IN` tensors: a term, and its product with another.
pub trait Terms<const IN: usize>: Copy + Default {
    /// Whether the terms are about a center per channel.
    const CENTERED: bool;
    /// Whether x has a unit per channel.
    const SCALED: bool = false;
    /// Whether there are kernels for sums of 16-bit numbers as they are, which take code; others are taken in tiles.
    const OF_HALVES: bool = false;
    /// Whether each sum is two: the sum, and that of what its roundings left.
    const PAIRS: bool = false;
    /// Whether additions take a 1 (`Lanes::add_by`, `Lanes::sub_by`).
    const BY_ONE: bool = Self::PAIRS;
    /// By which powers of `Lanes::SCALE` the sums are too large.
    const POWERS: [i32; 2] = [0, 0];
    /// The sums of a vector.
    type Sums<W: Copy>: Copy + AsRef<[W]> + AsMut<[W]>;

    /// Sums that are all the same.
    fn sums<W: Copy>(all: W) -> Self::Sums<W>;
    /// Adds in one vector.
    fn add<T, S: Lanes<T>>(
        s: S,
        sums: Self::Sums<S::Wide>,
        x: [S::Wide; IN],
        about: About<S::Wide>,
    ) -> Self::Sums<S::Wide>;
}

/// x and x * x.
#[derive(Clone, Copy, Default)]
pub struct Plain;

impl Terms<1> for Plain {
    const CENTERED: bool = false;
    const OF_HALVES: bool = true;
    const BY_ONE: bool = true;
    type Sums<W: Copy> = [W; 2];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 2] {
        [all; 2]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        [a, b]: [S::Wide; 2],
        [x]: [S::Wide; 1],
        about: About<S::Wide>,
    ) -> [S::Wide; 2] {
        [s.add_by(about.one, a, x), s.add_element_product(b, x, x)]
    }
}

/// d = x - pivot and d * d. Where a block of f32 has a pivot other than zero, d is an f32 too (`Element::CONDITION_LIMIT`).
#[derive(Clone, Copy, Default)]
pub struct Pivoted;

impl Terms<1> for Pivoted {
    const CENTERED: bool = true;
    const POWERS: [i32; 2] = [1, 2];
    type Sums<W: Copy> = [W; 2];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 2] {
        [all; 2]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        [a, b]: [S::Wide; 2],
        [x]: [S::Wide; 1],
        about: About<S::Wide>,
    ) -> [S::Wide; 2] {
        let d = s.add_scaled(about.center, x);
        [s.add_wide(a, d), s.add_element_product(b, d, d)]
    }
}

/// dy and dy * (x - mean), the latter in f64: rounded to f32, its errors would outlast the cancellation of a sum over
/// gradients of both signs.
#[derive(Clone, Copy, Default)]
pub struct GradientTerms;

impl Terms<2> for GradientTerms {
    const CENTERED: bool = true;
    const POWERS: [i32; 2] = [1, 1];
    const OF_HALVES: bool = true;
    type Sums<W: Copy> = [W; 2];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 2] {
        [all; 2]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        [a, b]: [S::Wide; 2],
        [x, dy]: [S::Wide; 2],
        about: About<S::Wide>,
    ) -> [S::Wide; 2] {
        [s.add_scaled(a, dy), s.add_product(b, dy, s.add_scaled(about.center, x))]
    }
}

// The same of f64, whose sums and products no type holds: in pairs of f64 (T. Ogita, S. M. Rump and S. Oishi, "Accurate sum
// and dot product", 2005), as if in twice the precision. Tensors of f64 are twice the bytes, which leaves time for it.

/// a + b exactly: the sum, and what its rounding left (Knuth).
#[inline(always)]
fn two_sum<T, S: Lanes<T>>(s: S, one: S::Wide, a: S::Wide, b: S::Wide) -> [S::Wide; 2] {
    let sum = s.add_wide(a, b);
    let part = s.sub_by(one, sum, a);
    [sum, s.add_wide(s.sub_by(one, a, s.sub_wide(sum, part)), s.sub_by(one, b, part))]
}

/// A pair with one more term.
#[inline(always)]
fn add_to_pair<T, S: Lanes<T>>(s: S, one: S::Wide, [sum, low]: [S::Wide; 2], term: S::Wide) -> [S::Wide; 2] {
    let [sum, rest] = two_sum(s, one, sum, term);
    [sum, s.add_wide(low, rest)]
}

/// A pair with a * (b, b_low) more: as pairs are added that hold one such term each (`reduce::lanes`).
#[inline(always)]
fn add_product_to_pair<T, S: Lanes<T>>(
    s: S,
    one: S::Wide,
    [sum, low]: [S::Wide; 2],
    a: S::Wide,
    (b, b_low): (S::Wide, Option<S::Wide>),
) -> [S::Wide; 2] {
    let product = s.mul_wide(a, b);
    let [sum, rest] = two_sum(s, one, sum, product);
    let product_low = s.product_rest(a, b, product);
    let product_low = b_low.map_or(product_low, |b_low| s.add_product(product_low, a, b_low));
    [sum, s.add_wide(s.add_wide(low, product_low), rest)]
}

/// x and x * x.
#[derive(Clone, Copy, Default)]
pub struct PlainPairs;

impl Terms<1> for PlainPairs {
    const CENTERED: bool = false;
    const PAIRS: bool = true;
    type Sums<W: Copy> = [W; 4];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 4] {
        [all; 4]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        [a, a_low, b, b_low]: [S::Wide; 4],
        [x]: [S::Wide; 1],
        about: About<S::Wide>,
    ) -> [S::Wide; 4] {
        let [a, a_low] = add_to_pair(s, about.one, [a, a_low], x);
        let [b, b_low] = add_product_to_pair(s, about.one, [b, b_low], x, (x, None));
        [a, a_low, b, b_low]
    }
}

/// d = x * unit - pivot and d * d. Where a block has a pivot other than zero, d is exact (`Element::CONDITION_LIMIT`).
#[derive(Clone, Copy, Default)]
pub struct PivotedPairs;

impl Terms<1> for PivotedPairs {
    const CENTERED: bool = true;
    const SCALED: bool = true;
    const PAIRS: bool = true;
    type Sums<W: Copy> = [W; 4];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 4] {
        [all; 4]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        sums: [S::Wide; 4],
        [x]: [S::Wide; 1],
        about: About<S::Wide>,
    ) -> [S::Wide; 4] {
        let d = s.add_wide(s.mul_wide(x, about.unit), about.center);
        PlainPairs::add(s, sums, [d], about)
    }
}

/// dy and dy * x, products that are right to the last bit: what the mean has in their sum can be taken off after.
#[derive(Clone, Copy, Default)]
pub struct GradientPairs;

impl Terms<2> for GradientPairs {
    const CENTERED: bool = false;
    const PAIRS: bool = true;
    type Sums<W: Copy> = [W; 4];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 4] {
        [all; 4]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        [a, a_low, b, b_low]: [S::Wide; 4],
        [x, dy]: [S::Wide; 2],
        about: About<S::Wide>,
    ) -> [S::Wide; 4] {
        let [a, a_low] = add_to_pair(s, about.one, [a, a_low], dy);
        let [b, b_low] = add_product_to_pair(s, about.one, [b, b_low], dy, (x, None));
        [a, a_low, b, b_low]
    }
}

/// dy and dy * (x * unit - center), where the difference is a pair too. Without unit and center, the bits are as without.
#[derive(Clone, Copy, Default)]
pub struct CenteredGradientPairs;

impl Terms<2> for CenteredGradientPairs {
    const CENTERED: bool = true;
    const SCALED: bool = true;
    const PAIRS: bool = true;
    type Sums<W: Copy> = [W; 4];

    #[inline(always)]
    fn sums<W: Copy>(all: W) -> [W; 4] {
        [all; 4]
    }

    #[inline(always)]
    fn add<T, S: Lanes<T>>(
        s: S,
        [a, a_low, b, b_low]: [S::Wide; 4],
        [x, dy]: [S::Wide; 2],
        about: About<S::Wide>,
    ) -> [S::Wide; 4] {
        let [d, d_low] = two_sum(s, about.one, s.mul_wide(x, about.unit), about.center);
        let [a, a_low] = add_to_pair(s, about.one, [a, a_low], dy);
        let [b, b_low] = add_product_to_pair(s, about.one, [b, b_low], dy, (d, Some(d_low)));
        [a, a_low, b, b_low]
    }
}
