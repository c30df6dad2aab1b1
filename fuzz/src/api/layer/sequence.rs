//! What a fuzzer's bytes say: a layer, and calls of it. `Debug` says what they stand for.

use std::fmt;

use arbitrary::Arbitrary;
use batchnorm::{Layout, Level, Mode, RunningUpdate, RunningVariance, UpdateRule};

use crate::operations::fused::AnyActivation;
use crate::shared::bounds::Contract;
use crate::shared::data::{Elements, Parameter, Shown};
use crate::shared::problem::ElementType;
use crate::with_element;

/// A layer, and what is called on it.
#[derive(Clone, Arbitrary)]
pub struct Sequence {
    /// The element type.
    pub element: ElementType,
    channels: u8,
    nhwc: bool,
    pub(super) eps: Scalar,
    pub(super) rule: Rule,
    pub(super) unbiased: bool,
    pub(super) gamma: Parameter,
    pub(super) beta: Parameter,
    pub(super) activation: AnyActivation,
    pub(super) calls: [Option<Call>; 6],
}

impl Sequence {
    pub(super) fn channels(&self) -> usize {
        usize::from(self.channels % 20)
    }

    pub(super) fn layout(&self) -> Layout {
        if self.nhwc { Layout::Nhwc } else { Layout::Nchw }
    }
}

/// The layer, the calls, and where they run.
impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_element!(self.element, describe, self, f)
    }
}

fn describe<T: Contract>(sequence: &Sequence, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (channels, layout) = (sequence.channels(), sequence.layout());
    let (level, threads) = (Level::active(), rayon::current_num_threads());
    writeln!(f, "{} layer of {channels} channels, {layout:?}, level {level}, {threads} threads", T::NAME)?;
    let update = sequence.rule.update(sequence.unbiased);
    writeln!(f, "    eps {:?}, {update:?}, {:?}", sequence.eps, sequence.activation)?;
    for (name, parameter) in [("gamma", sequence.gamma), ("beta", sequence.beta)] {
        writeln!(f, "    {name} {:?}", parameter.vector::<T>(channels).as_deref().map(Shown))?;
    }
    let mut calls = sequence.calls.iter().flatten().enumerate();
    calls.try_for_each(|(i, call)| writeln!(f, "    call {i}: {call:?}"))
}

/// A number that is mostly a sensible one.
#[derive(Clone, Copy, Arbitrary)]
pub(in crate::api) enum Scalar {
    Share(u8),
    Small(u8),
    One,
    Any(f64),
}

impl Scalar {
    pub(in crate::api) fn value(self) -> f64 {
        match self {
            Scalar::Share(share) => f64::from(share) / 256.0,
            Scalar::Small(share) => f64::from(share) * 1e-6,
            Scalar::One => 1.0,
            Scalar::Any(value) => value,
        }
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e}", self.value())
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(in crate::api) enum Rule {
    Decay(Scalar),
    Momentum(Scalar),
    Cumulative,
}

impl Rule {
    pub(in crate::api) fn update(self, unbiased: bool) -> RunningUpdate {
        let rule = match self {
            Rule::Decay(decay) => UpdateRule::Decay(decay.value()),
            Rule::Momentum(momentum) => UpdateRule::Momentum(momentum.value()),
            Rule::Cumulative => UpdateRule::Cumulative,
        };
        let variance = if unbiased { RunningVariance::Unbiased } else { RunningVariance::Biased };
        RunningUpdate { rule, variance }
    }
}

/// How a forward pass is called.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(in crate::api) enum Pass {
    Training,
    TrainingKeepRunning,
    Frozen,
    Inference,
    ShortTraining,
    ShortInference,
}

impl Pass {
    pub(in crate::api) fn mode(self) -> Mode {
        match self {
            Pass::Training | Pass::ShortTraining => Mode::Training,
            Pass::TrainingKeepRunning => Mode::TrainingKeepRunning,
            Pass::Frozen => Mode::Frozen,
            Pass::Inference | Pass::ShortInference => Mode::Inference,
        }
    }
}

/// What backward is given for x.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Given {
    /// That of the last forward pass.
    Same,
    /// With one element changed.
    Changed(u16),
    /// With its positions as one axis.
    Folded,
    /// Zeros of another size.
    Zeros(Size),
}

#[derive(Debug, Clone, Arbitrary)]
pub(super) enum Call {
    Forward {
        pass: Pass,
        size: Size,
        x: Elements,
        residual: Option<Elements>,
        off: Off,
    },
    Backward {
        x: Given,
        dy: Elements,
        with_residual: bool,
        off: Off,
    },
    Step {
        lr: Scalar,
    },
    SetRunning {
        mean: Elements,
        var: Elements,
    },
    SetParameters {
        gamma: Elements,
        beta: Elements,
    },
    SetBatches(u64),
    SetUpdate {
        rule: Rule,
        unbiased: bool,
    },
    SetEps(Scalar),
    SetActivation(AnyActivation),
    /// Taken apart and made of its parts again.
    Restore,
}

/// Samples and positions.
#[derive(Clone, Copy, Arbitrary)]
pub(in crate::api) struct Size(pub(super) u8, pub(super) u8);

impl Size {
    pub(in crate::api) fn batch(self) -> usize {
        (self.0 % 7).into()
    }

    pub(in crate::api) fn spatial(self) -> usize {
        (self.1 % 40).into()
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "N {}, S {}", self.batch(), self.spatial())
    }
}

/// By what channels and lengths are wrong; mostly by nothing.
#[derive(Clone, Copy, Arbitrary)]
pub(super) struct Off {
    pub(super) channels: u8,
    pub(super) x: u8,
    pub(super) dy: u8,
    pub(super) output: u8,
}

/// What a length of 10 becomes, where it is wrong.
impl fmt::Debug for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { channels, x, dy, output } = *self;
        let all = [("channels", channels), ("x", x), ("dy", dy), ("output", output)];
        let wrong = all.into_iter().map(|(name, by)| (name, off(10, by))).filter(|(_, len)| *len != 10);
        f.debug_map().entries(wrong).finish()
    }
}

/// A length, or a wrong one.
pub(super) fn off(len: usize, by: u8) -> usize {
    match by {
        255 => 0,
        240.. => len.saturating_sub(1),
        225.. => len + 1,
        _ => len,
    }
}
