//! Partial sums as bytes, to be stored and sent.
//!
//! Little-endian, version 1: the tag `bnpartsN` with N the version; a byte for what is summed (1: statistics, 2: gradients), one for the
//! arithmetic (4: f32, 8: f64), six of 0; then numbers of 64 bits: channels, positions per sample, nodes; of each node its
//! first sample, the sample behind its last, and for each channel the numbers of its sums; at the end a checksum (FNV-1a of 64
//! bits, over all before). Nothing in them is trusted.

#![forbid(unsafe_code)]

use super::kind::Kind;
use super::nodes::{Node, Nodes};
use crate::ground::error::Error;
use crate::ground::sums::Sum;

pub const TAG: [u8; 8] = *b"bnparts1";
const HEADER: usize = 40;
const NODE: usize = 16;
const CHECKSUM: usize = 8;

/// The bytes of so many nodes.
pub fn len<V: Sum>(channels: usize, nodes: usize) -> Option<usize> {
    let node = channels.checked_mul(V::COUNT * 8)?.checked_add(NODE)?;
    node.checked_mul(nodes)?.checked_add(HEADER + CHECKSUM)
}

pub fn write<V: Sum>(kind: Kind, nodes: &Nodes<V>) -> Result<Vec<u8>, Error> {
    let all = len::<V>(nodes.channels, nodes.len()).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(all).map_err(|_| Error::OutOfMemory { bytes: all })?;
    bytes.extend(TAG);
    bytes.extend(kind.tag());
    bytes.extend([0; 6]);
    let mut put = |numbers: &[u64]| numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    put(&[nodes.channels as u64, nodes.spatial, nodes.len() as u64]);
    for Node { samples, sums } in nodes.iter() {
        put(&[samples.start, samples.end]);
        for sums in sums {
            let mut numbers = [0; 8];
            let numbers = &mut numbers[..V::COUNT];
            sums.put(numbers);
            put(numbers);
        }
    }
    let checksum = checksum(&bytes);
    bytes.extend(checksum.to_le_bytes());
    Ok(bytes)
}

pub fn read<V: Sum>(kind: Kind, bytes: &[u8]) -> Result<Nodes<V>, Error> {
    let wrong = |reason| Error::Bytes { reason };
    let Some((head, _)) = bytes.split_at_checked(HEADER) else {
        return Err(wrong("are too few"));
    };
    if head[..8] != TAG {
        return Err(wrong("do not begin with the tag of version 1"));
    }
    if head[8..10] != kind.tag() || head[10..16] != [0; 6] {
        return Err(wrong("are of other sums, or of another element"));
    }
    let number = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let [channels, spatial, count] = [16, 24, 32].map(number);
    let sizes = usize::try_from(channels).ok().zip(usize::try_from(count).ok());
    let all = sizes.and_then(|(channels, count)| Some((channels, count, len::<V>(channels, count)?)));
    let Some((channels, count, _)) = all.filter(|(_, _, all)| *all == bytes.len()) else {
        return Err(wrong("are too few or too many"));
    };
    let behind = bytes.len() - CHECKSUM;
    if number(behind) != checksum(&bytes[..behind]) {
        return Err(wrong("have another checksum than what they say"));
    }
    let mut nodes = Vec::new();
    let room = |bytes| Error::OutOfMemory { bytes };
    nodes.try_reserve_exact(count).map_err(|_| room(count.saturating_mul(size_of::<Node<V>>())))?;
    let mut at = HEADER;
    for _ in 0..count {
        let samples = number(at)..number(at + 8);
        at += NODE;
        let mut sums = Vec::new();
        sums.try_reserve_exact(channels).map_err(|_| room(channels.saturating_mul(size_of::<V>())))?;
        for _ in 0..channels {
            let mut numbers = [0; 8];
            let numbers = &mut numbers[..V::COUNT];
            for value in numbers.iter_mut() {
                *value = number(at);
                at += 8;
            }
            sums.push(V::take(numbers).ok_or(wrong("have numbers that no elements give"))?);
        }
        nodes.push(Node { samples, sums });
    }
    Nodes::checked(channels, spatial, nodes).ok_or(wrong("are of samples that are no parts of a batch"))
}

/// Fowler's, Noll's and Vo's hash, which tells what was damaged on the way, not what was forged.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
