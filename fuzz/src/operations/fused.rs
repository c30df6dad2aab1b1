//! What is fused with the operations, beside the composition of the separate ones.

use std::fmt;

use arbitrary::Arbitrary;
use batchnorm::Activation;

use crate::common::fused::{Form, Share, run_fused};
use crate::shared::bounds::Contract;
use crate::shared::problem::{Problem, Run};

/// An activation, mostly of numbers that it can have.
#[derive(Clone, Copy, Arbitrary)]
pub enum AnyActivation {
    /// u itself.
    Identity,
    /// ReLU.
    Relu,
    /// With a slope in 64ths.
    Leaky(i8),
    /// With any slope.
    AnyLeaky(f64),
    /// Between two bounds in quarters, of which the least number stands for none.
    Clip(i8, i8),
    /// Between any.
    AnyClip(f64, f64),
    /// Hard swish.
    HardSwish,
    /// SiLU.
    Silu,
}

impl AnyActivation {
    /// The activation that it stands for.
    pub fn get(self) -> Activation {
        let bound = |quarters: i8, none: f64| match quarters {
            i8::MIN => none,
            quarters => f64::from(quarters) / 4.0,
        };
        match self {
            Self::Identity => Activation::Identity,
            Self::Relu => Activation::Relu,
            Self::Leaky(slope) => Activation::LeakyRelu { slope: f64::from(slope) / 64.0 },
            Self::AnyLeaky(slope) => Activation::LeakyRelu { slope },
            Self::Clip(lo, hi) => {
                let (lo, hi) = (bound(lo, f64::NEG_INFINITY), bound(hi, f64::INFINITY));
                Activation::Clip { lo: lo.min(hi), hi: lo.max(hi) }
            }
            Self::AnyClip(lo, hi) => Activation::Clip { lo, hi },
            Self::HardSwish => Activation::HardSwish,
            Self::Silu => Activation::Silu,
        }
    }

    /// Whether its numbers are such as it can have.
    pub fn is_good(self) -> bool {
        match self.get() {
            Activation::LeakyRelu { slope } => slope.is_finite(),
            Activation::Clip { lo, hi } => lo <= hi && lo < f64::INFINITY && hi > f64::NEG_INFINITY,
            _ => true,
        }
    }
}

impl fmt::Debug for AnyActivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// What comes after a normalization, and some of the ways to call it.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct After {
    activation: AnyActivation,
    residual: bool,
    way: u8,
}

impl After {
    /// What there is to run, unless the activation's numbers are none that it can have: then it says so.
    pub fn form(&self) -> Option<(Form, Share)> {
        let activation = self.activation.get();
        let good = activation.apply::<f32>(&mut []).is_ok();
        assert_eq!(good, self.activation.is_good(), "{activation}");
        let form = Form { activation, residual: self.residual && activation.is_piecewise_linear() };
        good.then_some((form, Share { from: self.way.into(), of: 4 }))
    }
}

/// Forward and backward of training and inference, with masks that the library wrote and any others, in place and apart: the bits
/// of the separate operations.
pub fn composition<T: Contract>(problem: &Problem, run: Run, after: After) {
    let Some((form, share)) = after.form() else { return };
    let problem = problem.make::<T>();
    let (layout, at) = (run.layout(), run.placement());
    run.configuration().run(|| run_fused(&problem, layout, at, form, share));
}
