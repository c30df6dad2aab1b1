//! What a fuzzer's bytes say: a layer, and calls of it.

use arbitrary::Arbitrary;
use batchnorm::{Mode, RunningUpdate, RunningVariance, UpdateRule};

use crate::data::{Elements, Parameter};
use crate::problem::ElementType;

/// A layer, and what is called on it.
#[derive(Debug, Clone, Arbitrary)]
pub struct Sequence {
    /// The element type.
    pub element: ElementType,
    pub(super) channels: u8,
    pub(super) nhwc: bool,
    pub(super) eps: Scalar,
    pub(super) rule: Rule,
    pub(super) unbiased: bool,
    pub(super) gamma: Parameter,
    pub(super) beta: Parameter,
    pub(super) calls: [Option<Call>; 6],
}

/// A number that is mostly a sensible one.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Scalar {
    Share(u8),
    Small(u8),
    One,
    Any(f64),
}

impl Scalar {
    pub(super) fn value(self) -> f64 {
        match self {
            Scalar::Share(share) => f64::from(share) / 256.0,
            Scalar::Small(share) => f64::from(share) * 1e-6,
            Scalar::One => 1.0,
            Scalar::Any(value) => value,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Rule {
    Decay(Scalar),
    Momentum(Scalar),
    Cumulative,
}

impl Rule {
    pub(super) fn update(self, unbiased: bool) -> RunningUpdate {
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
pub(super) enum Pass {
    Training,
    TrainingKeepRunning,
    Frozen,
    Inference,
    ShortTraining,
    ShortInference,
}

impl Pass {
    pub(super) fn mode(self) -> Mode {
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
        off: Off,
    },
    Backward {
        x: Given,
        dy: Elements,
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
    /// Taken apart and made of its parts again.
    Restore,
}

/// Samples and positions.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) struct Size(pub(super) u8, pub(super) u8);

/// By what channels and lengths are wrong; mostly by nothing.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) struct Off {
    pub(super) channels: u8,
    pub(super) x: u8,
    pub(super) dy: u8,
    pub(super) output: u8,
}
