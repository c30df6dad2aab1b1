//! States of parts of a channel: merged in any order and grouping, they are the whole's.

use std::fmt;

use arbitrary::Arbitrary;
use batchnorm::{Layout, Shape, StreamingStatistics, Welford, statistics};

use crate::common::exact::Statistics;
use crate::shared::bounds::{Contract, assert_state};
use crate::shared::data::{Elements, Shown};
use crate::shared::problem::{ElementType, Run};
use crate::with_element;

/// A channel, where to cut it, and in which order to put it together.
#[derive(Clone, Arbitrary)]
pub struct Split {
    /// The element type.
    pub element: ElementType,
    elements: Elements,
    len: u16,
    /// Where parts end, as shares of the length; one by one in between if so short that they can be.
    cuts: Vec<u8>,
    /// Pairs of states to merge next.
    order: Vec<(u8, u8)>,
}

impl Split {
    fn elements<T: Contract>(&self) -> Vec<T> {
        self.elements.vector(usize::from(self.len % 3000) + 1)
    }

    /// Where parts of `len` elements end.
    fn cuts(&self, len: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| usize::from(*cut) * len / 255).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts
    }
}

/// The numbers that an input stands for.
impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_element!(self.element, describe, self, f)
    }
}

fn describe<T: Contract>(split: &Split, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let x = split.elements::<T>();
    writeln!(f, "{} of {}, cut at {:?}", x.len(), T::NAME, split.cuts(x.len()))?;
    writeln!(f, "    x {:?}", Shown(&x))?;
    writeln!(f, "      made as {:?}", split.elements)?;
    write!(f, "    pairs merged first {:?}", split.order)
}

/// A state's bounds; and that a part without elements changes nothing.
pub fn merge<T: Contract>(split: &Split, run: Run) {
    let x: Vec<T> = split.elements();
    let cuts = split.cuts(x.len());
    let parts: Vec<&[T]> = cuts.windows(2).map(|cut| &x[cut[0]..cut[1]]).collect();
    let states: Vec<Welford> =
        run.configuration().run(|| parts.iter().map(|part| state(part, run.layout())).collect());

    let mut streaming = StreamingStatistics::new(1);
    for part in &parts {
        streaming.update(&Shape::new(run.layout(), part.len(), 1, &[]).unwrap(), part).unwrap();
    }
    let orders = [
        ("in the order given", in_order(states.clone(), &split.order)),
        ("backwards", states.iter().rev().fold(Welford::new(), |left, right| merged(left, *right))),
        ("of pushed elements", x.iter().map(|x| x.to_f64()).collect()),
        ("of a stream of batches", streaming.states()[0]),
    ];
    for (order, state) in orders {
        let what =
            format_args!("state of {} {}, merged {order} from parts at {cuts:?}; {run:?}", x.len(), T::NAME);
        if x.iter().all(|x| x.to_f64().is_finite()) {
            assert_state(what, &state, &x, &Statistics::of(&x));
        } else {
            let bits = [state.mean(), state.variance()].map(f64::to_bits);
            assert_eq!(bits, [f64::NAN.to_bits(); 2], "{what}: not NaN");
        }
    }
    for state in states.iter().filter(|state| !state.m2().is_nan()) {
        assert_eq!(merged(*state, Welford::new()), *state);
        assert_eq!(merged(Welford::new(), *state), *state);
    }
}

fn state<T: Contract>(part: &[T], layout: Layout) -> Welford {
    let mut state = [Welford::new()];
    statistics(&Shape::new(layout, 1, 1, &[part.len()]).unwrap(), part, &mut state).unwrap();
    state[0]
}

fn merged(mut left: Welford, right: Welford) -> Welford {
    left.merge(&right);
    left
}

/// Merges a pair at a time, then the rest.
fn in_order(mut states: Vec<Welford>, order: &[(u8, u8)]) -> Welford {
    for &(left, right) in order {
        if states.len() > 1 {
            let right = states.swap_remove(usize::from(right) % states.len());
            let left = usize::from(left) % states.len();
            states[left].merge(&right);
        }
    }
    states.into_iter().reduce(merged).unwrap_or_default()
}
