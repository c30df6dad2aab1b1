//! The digits: 1,797 images of 8 x 8 pixels, shuffled and split into a training and a held-out set.

use std::io::{Error, ErrorKind, Read, Result};

use flate2::read::GzDecoder;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

/// Pixels of an image.
pub const PIXELS: usize = 64;
/// Classes.
pub const CLASSES: usize = 10;

/// An image and its class.
pub struct Digit {
    /// Pixels in row order, 0 to 1.
    pub pixels: [f32; PIXELS],
    /// 0 to 9.
    pub class: usize,
}

/// All digits, in an order that follows from `seed`: the training set and the held-out fifth.
pub fn load(seed: u64) -> Result<(Vec<Digit>, Vec<Digit>)> {
    let mut text = String::new();
    GzDecoder::new(&include_bytes!("digits.csv.gz")[..]).read_to_string(&mut text)?;
    let mut digits: Vec<Digit> = text.lines().map(parse).collect::<Result<_>>()?;
    digits.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    let held_out = digits.split_off(digits.len() * 4 / 5);
    Ok((digits, held_out))
}

fn parse(line: &str) -> Result<Digit> {
    let bad = || Error::new(ErrorKind::InvalidData, format!("not 64 pixels and a class: {line:?}"));
    let fields: Vec<u8> =
        line.split(',').map(|field| field.parse().map_err(|_| bad())).collect::<Result<_>>()?;
    let (class, pixels) = fields.split_last().ok_or_else(bad)?;
    let mut digit = Digit { pixels: [0.0; PIXELS], class: usize::from(*class) };
    if pixels.len() != PIXELS || digit.class >= CLASSES {
        return Err(bad());
    }
    digit.pixels.iter_mut().zip(pixels).for_each(|(to, from)| *to = f32::from(*from) / 16.0);
    Ok(digit)
}
