//! Data sets: those that the accuracy contract names, and others made to break a summation scheme.
//!
//! The same seed gives the same elements on every machine.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// The library's largest block, whose sums are taken at once; here to put trouble at the seams.
const BLOCK: usize = 4096;

/// A portable generator.
pub fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A standard normal variate.
pub fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// `len` elements of N(mean, std).
pub fn normals(len: usize, seed: u64, mean: f64, std: f64) -> Vec<f32> {
    let rng = &mut rng(seed);
    (0..len).map(|_| finite(mean + std * normal(rng))).collect()
}

/// The nearest f32 that is not infinite.
fn finite(x: f64) -> f32 {
    (x as f32).clamp(f32::MIN, f32::MAX)
}

/// Makes element `i` of `len`.
type Make<T> = fn(rng: &mut Xoshiro256PlusPlus, i: usize, len: usize) -> T;

/// A kind of data, of any length.
#[derive(Debug, Clone, Copy)]
pub struct DataSet<T = f32> {
    /// What it is.
    pub name: &'static str,
    make: Make<T>,
    sorted: bool,
}

impl<T: Copy + PartialOrd> DataSet<T> {
    const fn new(name: &'static str, make: Make<T>) -> Self {
        Self { name, make, sorted: false }
    }

    const fn sorted(self) -> Self {
        Self { sorted: true, ..self }
    }

    /// `len` elements of it.
    pub fn generate(&self, len: usize, seed: u64) -> Vec<T> {
        let rng = &mut rng(seed);
        let mut x: Vec<T> = (0..len).map(|i| (self.make)(rng, i, len)).collect();
        if self.sorted {
            x.sort_by(|a, b| a.partial_cmp(b).unwrap());
        }
        x
    }
}

/// The contract's.
pub const NAMED: [DataSet; 15] = [
    DataSet::new("N(0,1)", |r, _, _| finite(normal(r))),
    DataSet::new("N(1e3,1)", |r, _, _| finite(1e3 + normal(r))),
    DataSet::new("N(1e4,1)", |r, _, _| finite(1e4 + normal(r))),
    DataSet::new("N(1e5,0.1)", |r, _, _| finite(1e5 + 0.1 * normal(r))),
    DataSet::new("N(1e6,1)", |r, _, _| finite(1e6 + normal(r))),
    DataSet::new("N(1e6,0.01)", |r, _, _| finite(1e6 + 0.01 * normal(r))),
    DataSet::new("constant 0.1", |_, _, _| 0.1),
    DataSet::new("constant 1e4/3", |_, _, _| 1e4 / 3.0),
    DataSet::new("constant 1e10", |_, _, _| 1e10),
    DataSet::new("+-1.7e38", |_, i, _| if i % 2 == 0 { 1.7e38 } else { -1.7e38 }),
    DataSet::new("1e38*N(0,1)", |r, _, _| finite(1e38 * normal(r))),
    DataSet::new("1e-40*N(0,1)", |r, _, _| finite(1e-40 * normal(r))),
    DataSet::new("outlier 1e30", |r, i, len| if i == len / 3 { 1e30 } else { finite(normal(r)) }),
    DataSet::new("sorted N(0,1)", |r, _, _| finite(normal(r))).sorted(),
    DataSet::new("1e8, 1e8+8", |_, i, _| if i % 2 == 0 { 1e8 } else { 1e8 + 8.0 }),
];

/// Others.
pub const HARD: [DataSet; 24] =
    [
        DataSet::new("constant f32::MAX", |_, _, _| f32::MAX),
        DataSet::new("constant 1e-45", |_, _, _| 1e-45),
        DataSet::new("constant, one ulp below 2", |_, _, _| 2f32.next_down()),
        DataSet::new("+-0", |_, i, _| if i % 2 == 0 { 0.0 } else { -0.0 }),
        DataSet::new("+-f32::MAX", |_, i, _| if i % 2 == 0 { f32::MAX } else { f32::MIN }),
        DataSet::new("f32::MAX, one f32::MIN", |_, i, len| if i == len / 2 { f32::MIN } else { f32::MAX }),
        // A block's mean and spread are up to 1e60 times another's.
        DataSet::new("blocks of 10^+-30", |r, i, _| {
            let power = (i / BLOCK * 37 % 61) as i32 - 30;
            finite(10f64.powi(power) * (1.0 + 1e-3 * normal(r)))
        }),
        DataSet::new("blocks led by 1e20", |r, i, _| if i % BLOCK == 0 { 1e20 } else { finite(normal(r)) }),
        DataSet::new("blocks led by -1e4", |r, i, _| {
            if i % BLOCK == 0 { -1e4 } else { finite(1e4 + 1e-2 * normal(r)) }
        }),
        // Blocks on both sides of the condition that makes the library look twice: mean/std from 150 to 400.
        DataSet::new("mean/std around 256", |r, i, len| {
            let std = 0.65 * 1.13f64.powi(((i / BLOCK + len) % 9) as i32);
            finite(256.0 + std * normal(r))
        }),
        DataSet::new("halves +-1e20", |r, i, len| {
            finite(if i < len / 2 { 1e20 } else { -1e20 } + 1e15 * normal(r))
        }),
        DataSet::new("an ulp apart, 1e-3", |r, _, _| {
            if r.random_bool(1e-3) { 1234567f32.next_up() } else { 1234567.0 }
        }),
        DataSet::new(
            "an ulp below 1, 1e-3",
            |r, _, _| if r.random_bool(1e-3) { 1f32.next_down() } else { 1.0 },
        ),
        DataSet::new("an ulp above 2^24, 1/2", |r, _, _| {
            if r.random_bool(0.5) { 16777216f32.next_up() } else { 16777216.0 }
        }),
        DataSet::new("one element differs", |_, i, len| if i + 1 == len { 3e7 + 2.0 } else { 3e7 }),
        DataSet::new("+-2^k", |r, _, _| {
            let (exponent, sign): (i32, bool) = (r.random_range(-126..=127), r.random());
            2f32.powi(exponent) * if sign { 1.0 } else { -1.0 }
        }),
        DataSet::new("around powers of 2", |r, _, _| {
            let power = 2f32.powi(r.random_range(10..=13));
            if r.random() { power.next_down() } else { power }
        }),
        DataSet::new("1e-38 and 1e30", |r, _, _| {
            let size = if r.random() { 1e-38 } else { 1e30 };
            finite(size * normal(r))
        }),
        DataSet::new("bits of any f32", |r, _, _| {
            loop {
                let x = f32::from_bits(r.next_u32());
                if x.is_finite() {
                    return x;
                }
            }
        }),
        DataSet::new("bits of any subnormal", |r, _, _| f32::from_bits(r.next_u32() & 0x807f_ffff)),
        DataSet::new("exp(10 N(0,1))", |r, _, _| finite((10.0 * normal(r)).exp())),
        DataSet::new("relu of N(0,1)", |r, _, _| finite(normal(r).max(0.0))),
        DataSet::new("0, rarely 1", |r, _, _| if r.random_bool(1e-4) { 1.0 } else { 0.0 }),
        DataSet::new("rising to 1e6", |r, i, len| finite(1e6 * i as f64 / len as f64 + normal(r))),
    ];

/// Of f64.
pub const F64: [DataSet<f64>; 38] = [
    DataSet::new("N(0,1)", |r, _, _| normal(r)),
    DataSet::new("N(3,1)", |r, _, _| 3.0 + normal(r)),
    DataSet::new("N(1e4,1)", |r, _, _| 1e4 + normal(r)),
    DataSet::new("sorted N(0,1)", |r, _, _| normal(r)).sorted(),
    DataSet::new("N(-0.7,0.2) in halves", |r, i, len| if i < len / 2 { 1.0 } else { -0.7 } + 0.2 * normal(r)),
    DataSet::new("N(1e8,1)", |r, _, _| 1e8 + normal(r)),
    DataSet::new("N(1e12,1)", |r, _, _| 1e12 + normal(r)),
    DataSet::new("N(1e15,1)", |r, _, _| 1e15 + normal(r)),
    DataSet::new("N(1,1e-9)", |r, _, _| 1.0 + 1e-9 * normal(r)),
    DataSet::new("N(1,1e-14)", |r, _, _| 1.0 + 1e-14 * normal(r)),
    // On both sides of the condition that makes the library look twice.
    DataSet::new("mean/std around 4096", |r, i, len| {
        let std = 0.65 * 1.13f64.powi(((i / BLOCK + len) % 9) as i32);
        4096.0 + std * normal(r)
    }),
    DataSet::new("constant 0.1", |_, _, _| 0.1),
    DataSet::new("constant f64::MAX", |_, _, _| f64::MAX),
    DataSet::new("constant 5e-324", |_, _, _| 5e-324),
    DataSet::new("+-0", |_, i, _| if i % 2 == 0 { 0.0 } else { -0.0 }),
    DataSet::new("+-1.7e308", |_, i, _| if i % 2 == 0 { 1.7e308 } else { -1.7e308 }),
    DataSet::new("f64::MAX, one f64::MIN", |_, i, len| if i == len / 2 { f64::MIN } else { f64::MAX }),
    DataSet::new("1e200 + 1e199 N(0,1)", |r, _, _| 1e200 + 1e199 * normal(r)),
    DataSet::new("1e160 N(0,1)", |r, _, _| 1e160 * normal(r)),
    DataSet::new("1e100 N(0,1)", |r, _, _| 1e100 * normal(r)),
    DataSet::new("1e-100 N(0,1)", |r, _, _| 1e-100 * normal(r)),
    DataSet::new("1e-160 N(0,1)", |r, _, _| 1e-160 * normal(r)),
    DataSet::new("1e-200 + 1e-201 N(0,1)", |r, _, _| 1e-200 + 1e-201 * normal(r)),
    DataSet::new("1e-310 N(0,1)", |r, _, _| 1e-310 * normal(r)),
    DataSet::new("bits of any subnormal", |r, _, _| f64::from_bits(r.next_u64() & 0x800f_ffff_ffff_ffff)),
    DataSet::new("outlier 1e300", |r, i, len| if i == len / 3 { 1e300 } else { normal(r) }),
    // A block's mean and spread are up to 1e500 times another's.
    DataSet::new("blocks of 10^+-250", |r, i, _| {
        let power = (i / BLOCK * 37 % 501) as i32 - 250;
        10f64.powi(power) * (1.0 + 1e-3 * normal(r))
    }),
    DataSet::new("blocks led by 1e180", |r, i, _| if i % BLOCK == 0 { 1e180 } else { normal(r) }),
    DataSet::new("halves +-1e160", |r, i, len| if i < len / 2 { 1e160 } else { -1e160 } + 1e150 * normal(r)),
    DataSet::new("an ulp apart, 1/7", |_, i, _| if i % 7 == 0 { 3.7f64.next_up() } else { 3.7 }),
    DataSet::new("an ulp apart, 1e-3", |r, _, _| if r.random_bool(1e-3) { 1f64.next_down() } else { 1.0 }),
    DataSet::new("two values", |_, i, _| if i % 3 == 0 { 0.1 } else { 0.7 }),
    DataSet::new("+-2^k", |r, _, _| {
        let (exponent, sign): (i32, bool) = (r.random_range(-1022..=1023), r.random());
        2f64.powi(exponent) * if sign { 1.0 } else { -1.0 }
    }),
    DataSet::new("bits of any f64", |r, _, _| {
        loop {
            let x = f64::from_bits(r.next_u64());
            if x.is_finite() {
                return x;
            }
        }
    }),
    DataSet::new("exp(10 N(0,1))", |r, _, _| (10.0 * normal(r)).exp()),
    DataSet::new("relu of N(0,1)", |r, _, _| normal(r).max(0.0)),
    DataSet::new("0, rarely 1e-170", |r, _, _| if r.random_bool(1e-4) { 1e-170 } else { 0.0 }),
    DataSet::new("rising to 1e6", |r, i, len| 1e6 * i as f64 / len as f64 + normal(r)),
];
