//! The largest error of y on data that other libraries get wrong: the same elements as benches/accuracy.py gives PyTorch.
//!
//! `cargo run --release --example errors`

#[path = "output/mod.rs"]
#[expect(dead_code, reason = "shared with the examples that write files")]
mod output;

use std::process::ExitCode;

use batchnorm::{Error, Layout, Params, Shape, Welford, forward_training};

const HELP: &str = "\
The largest error of y on data that other libraries get wrong: forward training of f32 over 32x8x56x56, gamma 1, beta 0,
in NCHW and NHWC. benches/accuracy.py gives PyTorch the same elements.

Usage: cargo run --release --example errors
";

const BATCH: usize = 32;
const CHANNELS: usize = 8;
const SIDE: usize = 56;

/// Element `index` of a sequence with mean 0 and variance 1, by integer arithmetic that is the same everywhere.
fn variate(index: u64) -> f64 {
    // SplitMix64 (G. Steele, D. Lea, C. Flood, 2014).
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let sum: u64 = (0..4).map(|part| (z >> (16 * part)) & 0xffff).sum();
    (sum as f64 / 65536.0 - 2.0) * 3f64.sqrt()
}

/// A channel's mean and variance, by two passes about a center that leaves f64 nothing to lose.
fn exact(elements: &[f64]) -> (f64, f64) {
    let (m, center) = (elements.len() as f64, elements[0]);
    let offset = elements.iter().map(|x| x - center).sum::<f64>() / m;
    let var = elements.iter().map(|x| (x - center - offset).powi(2)).sum::<f64>() / m;
    (offset, var)
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => match table() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        Some("--help" | "-h") => {
            output::print(format_args!("{HELP}"));
            ExitCode::SUCCESS
        }
        Some(argument) => {
            eprintln!("error: there is no option {argument:?}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Prints the errors of all data in both layouts.
fn table() -> Result<(), Error> {
    outln!("{:<16}{:>12}{:>12}", "largest |y error|", "NCHW", "NHWC");
    for (name, mean, std) in [
        ("N(0, 1)", 0.0, 1.0),
        ("N(1e4, 1)", 1e4, 1.0),
        ("N(1e5, 0.1)", 1e5, 0.1),
        ("N(1e6, 1)", 1e6, 1.0),
        ("constant 1e4/3", 1e4 / 3.0, 0.0),
    ] {
        let mut errors = Vec::new();
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let shape = Shape::new(layout, BATCH, CHANNELS, &[SIDE, SIDE])?;
            let (mut x, mut y) = (vec![0.0f32; shape.len()], vec![0.0f32; shape.len()]);
            let plane = SIDE * SIDE;
            let places = |c| (0..BATCH).flat_map(move |n| (0..plane).map(move |s| (n, c, s)));
            for (n, c, s) in (0..CHANNELS).flat_map(places) {
                let index = ((n * CHANNELS + c) * plane + s) as u64;
                x[shape.offset(n, c, s)] = (mean + std * variate(index)) as f32;
            }
            forward_training(&shape, &x, &Params::new(1e-5), &mut y, &mut [Welford::new(); CHANNELS])?;
            let mut largest = 0.0f64;
            for c in 0..CHANNELS {
                let at = |(n, c, s)| shape.offset(n, c, s);
                let elements: Vec<f64> = places(c).map(|place| f64::from(x[at(place)])).collect();
                let (offset, var) = exact(&elements);
                for (place, element) in places(c).zip(&elements) {
                    let expected = (element - elements[0] - offset) / (var + 1e-5).sqrt();
                    largest = largest.max((f64::from(y[at(place)]) - expected).abs());
                }
            }
            errors.push(largest);
        }
        outln!("{name:<16}{:>13.1e}{:>12.1e}", errors[0], errors[1]);
    }
    Ok(())
}
