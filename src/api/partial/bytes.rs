//! Partial sums as bytes, to be stored and sent.
//!
//! Little-endian, version 1: the tag `bnpartsN` with N the version; a byte for what is summed (1: statistics, 2: gradients), one for the
//! arithmetic (4: f32, 8: f64), one for whether samples have weights (0, 1), five of 0; then numbers of 64 bits: channels, nodes; of each
//! node the positions of a sample, its first sample, the sample behind its last, with weights how often its elements count (f64), and for each
//! channel the numbers of its sums; at the end a checksum (FNV-1a of 64 bits, over all before). Nothing in them is trusted.

#![forbid(unsafe_code)]

use super::kind::Kind;
use super::nodes::{Node, Nodes};
#[cfg(feature = "capi")]
use crate::api::shape::Shape;
use crate::ground::error::Error;
use crate::ground::memory::reserved;
use crate::simd::environment;

const TAG: [u8; 8] = *b"bnparts1";
const HEADER: usize = 32;
const NODE: usize = 24;
const WEIGHT: usize = 8;
const CHECKSUM: usize = 8;

/// The bytes of so many nodes.
fn len(kind: Kind, weighted: bool, channels: usize, nodes: usize) -> Option<usize> {
    let node = channels.checked_mul(kind.arithmetic().numbers * 8)?.checked_add(NODE)?;
    let node = if weighted { node.checked_add(WEIGHT)? } else { node };
    node.checked_mul(nodes)?.checked_add(HEADER + CHECKSUM)
}

/// Bytes that are enough for the sums of a part of this shape.
#[cfg(feature = "capi")]
pub fn most(shape: &Shape) -> Option<usize> {
    // Of samples with weights each is a leaf.
    let leaves = shape.batch();
    // Subtrees that become larger and smaller again, and a fragment of a leaf at either end.
    let nodes = 2 * (usize::BITS - leaves.leading_zeros()) as usize + 2;
    len(Kind::statistics::<f64>(), true, shape.channels(), nodes)
}

pub fn write(nodes: &Nodes) -> Result<Vec<u8>, Error> {
    let all = len(nodes.kind, nodes.weighted, nodes.channels, nodes.len()).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    reserved(&mut bytes, all)?;
    bytes.extend(TAG);
    bytes.extend(nodes.kind.tag());
    bytes.push(u8::from(nodes.weighted));
    bytes.extend([0; 5]);
    let mut put = |numbers: &[u64]| numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    put(&[nodes.channels as u64, nodes.len() as u64]);
    for Node { spatial, samples, weight, sums } in nodes.iter() {
        put(&[*spatial, samples.start, samples.end]);
        weight.iter().for_each(|weight| put(&[weight.to_bits()]));
        put(sums);
    }
    let checksum = checksum(&bytes);
    bytes.extend(checksum.to_le_bytes());
    Ok(bytes)
}

/// What the bytes say that they are of; whatever they are.
pub fn read(bytes: &[u8]) -> Result<Nodes, Error> {
    let wrong = |reason| Error::Bytes { reason };
    let Some((head, _)) = bytes.split_at_checked(HEADER) else {
        return Err(wrong("are too few"));
    };
    if head[..8] != TAG {
        return Err(wrong("do not begin with the tag of version 1"));
    }
    let kind = Kind::of_tag([head[8], head[9]]).filter(|_| head[10] <= 1 && head[11..16] == [0; 5]);
    let (Some(kind), weighted) = (kind, head[10] == 1) else {
        return Err(wrong("do not say what they are of"));
    };
    let number = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let [channels, count] = [16, 24].map(number);
    let sizes = usize::try_from(channels).ok().zip(usize::try_from(count).ok());
    let all = sizes.filter(|(channels, count)| len(kind, weighted, *channels, *count) == Some(bytes.len()));
    let Some((channels, count)) = all else {
        return Err(wrong("are too few or too many"));
    };
    let behind = bytes.len() - CHECKSUM;
    if number(behind) != checksum(&bytes[..behind]) {
        return Err(wrong("have another checksum than what they say"));
    }
    let mut nodes = Vec::new();
    reserved(&mut nodes, count)?;
    let (mut at, each) = (HEADER, channels * kind.arithmetic().numbers);
    for _ in 0..count {
        let (spatial, samples) = (number(at), number(at + 8)..number(at + 16));
        at += NODE;
        let weight = weighted.then(|| f64::from_bits(number(at)));
        at += if weighted { WEIGHT } else { 0 };
        let mut sums = Vec::new();
        reserved(&mut sums, each)?;
        sums.extend((0..each).map(|i| number(at + 8 * i)));
        at += 8 * each;
        let mut are_possible = false;
        environment::in_default(|| are_possible = (kind.arithmetic().are_possible)(&sums));
        if !are_possible {
            return Err(wrong("have numbers that no elements give"));
        }
        nodes.push(Node { spatial, samples, weight, sums });
    }
    Nodes::checked(kind, channels, weighted, nodes)?
        .ok_or(wrong("are of samples that are no parts of a batch"))
}

/// Fowler's, Noll's and Vo's hash, which tells what was damaged on the way, not what was forged.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
