//! Sequences of calls of [`BatchNorm`], compared with a model: the operations on slices, and running statistics worked
//! out from the exact oracle's. A call that returns an error has changed nothing.

use arbitrary::Arbitrary;
use batchnorm::{
    BatchNorm, Error, Gradients, Layout, Params, RunningUpdate, RunningVariance, Shape, UpdateRule, Welford,
    backward, forward_inference, forward_training,
};

use crate::bounds::{Bound, Contract, assert_value};
use crate::common::exact::{Statistics, Value, channel};
use crate::common::matrix::{Guarded, assert_same, params};
use crate::data::{Elements, Parameter};
use crate::problem::ElementType;

/// A layer, and what is called on it.
#[derive(Debug, Clone, Arbitrary)]
pub struct Sequence {
    /// The element type.
    pub element: ElementType,
    channels: u8,
    nhwc: bool,
    eps: Scalar,
    rule: Rule,
    unbiased: bool,
    gamma: Parameter,
    beta: Parameter,
    calls: [Option<Call>; 6],
}

/// A number that is mostly a sensible one.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Scalar {
    Share(u8),
    Small(u8),
    One,
    Any(f64),
}

impl Scalar {
    fn value(self) -> f64 {
        match self {
            Scalar::Share(share) => f64::from(share) / 256.0,
            Scalar::Small(share) => f64::from(share) * 1e-6,
            Scalar::One => 1.0,
            Scalar::Any(value) => value,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Rule {
    Decay(Scalar),
    Momentum(Scalar),
    Cumulative,
}

#[derive(Debug, Clone, Arbitrary)]
enum Call {
    Training { size: Size, x: Elements, off: Off },
    Inference { size: Size, x: Elements, off: Off },
    Backward { size: Option<Size>, dy: Elements, off: Off },
    Step { lr: Scalar },
    SetRunning { mean: Elements, var: Elements },
}

/// Samples and positions.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Size(u8, u8);

/// By what channels and lengths are wrong; mostly by nothing.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Off {
    channels: u8,
    x: u8,
    dy: u8,
    output: u8,
}

fn off(len: usize, by: u8) -> usize {
    match by {
        255 => 0,
        240.. => len.saturating_sub(1),
        225.. => len + 1,
        _ => len,
    }
}

/// A tensor of another length: cut off, or continued by its first element.
fn resized<T: Contract>(mut tensor: Vec<T>, len: usize) -> Vec<T> {
    let filler = tensor.first().copied().unwrap_or_default();
    tensor.resize(len, filler);
    tensor
}

/// What a layer should hold.
struct Model<T> {
    layout: Layout,
    eps: f64,
    update: RunningUpdate,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    mean: Vec<T>,
    var: Vec<T>,
    batches: u64,
    states: Vec<Welford>,
    /// The last batch in training.
    batch: Option<(Shape, Vec<T>)>,
}

/// Makes the calls.
pub fn run<T: Contract>(sequence: &Sequence) {
    let channels = usize::from(sequence.channels % 20);
    let mut model = Model::<T>::new(sequence, channels);
    let mut layer = BatchNorm::new(channels).with_eps(model.eps).with_update(model.update);
    if let (Some(values), Some(gamma)) = (&model.gamma, layer.gamma_mut()) {
        gamma.copy_from_slice(values);
    } else {
        layer = layer.without_gamma();
    }
    if let (Some(values), Some(beta)) = (&model.beta, layer.beta_mut()) {
        beta.copy_from_slice(values);
    } else {
        layer = layer.without_beta();
    }
    for (i, call) in sequence.calls.iter().flatten().enumerate() {
        // The state as text, in which NaN is NaN and the zeros differ.
        let before = format!("{layer:?}");
        if let Err(error) = model.call(&mut layer, call) {
            assert_eq!(format!("{layer:?}"), before, "call {i} changed the layer and returned: {error}");
        }
        model.assert_is(&layer, i);
    }
}

impl<T: Contract> Model<T> {
    fn new(sequence: &Sequence, channels: usize) -> Self {
        let rule = match sequence.rule {
            Rule::Decay(decay) => UpdateRule::Decay(decay.value()),
            Rule::Momentum(momentum) => UpdateRule::Momentum(momentum.value()),
            Rule::Cumulative => UpdateRule::Cumulative,
        };
        let variance = if sequence.unbiased { RunningVariance::Unbiased } else { RunningVariance::Biased };
        let all = |value| vec![T::from_f64(value); channels];
        Self {
            layout: if sequence.nhwc { Layout::Nhwc } else { Layout::Nchw },
            eps: sequence.eps.value(),
            update: RunningUpdate { rule, variance },
            gamma: sequence.gamma.vector(channels),
            beta: sequence.beta.vector(channels),
            dgamma: all(0.0),
            dbeta: all(0.0),
            mean: all(0.0),
            var: all(1.0),
            batches: 0,
            states: vec![Welford::new(); channels],
            batch: None,
        }
    }

    fn params(&self) -> Params<'_, T> {
        params(self.gamma.as_deref(), self.beta.as_deref(), self.eps)
    }

    fn shape(&self, Size(batch, spatial): Size, channels: usize) -> Shape {
        Shape::new(self.layout, (batch % 7).into(), channels, &[(spatial % 40).into()]).unwrap()
    }

    fn tensor(&self, shape: &Shape, elements: &Elements, len: usize) -> Vec<T> {
        // The elements of a channel are the same in both layouts; here that is of no interest.
        resized(elements.tensor(&[shape.batch(), shape.channels(), shape.spatial()]), len)
    }

    fn eps_is_good(&self) -> bool {
        self.eps.is_finite() && self.eps >= 0.0
    }

    /// Calls the layer, asserts what it wrote, and follows.
    fn call(&mut self, layer: &mut BatchNorm<T>, call: &Call) -> Result<(), Error> {
        let channels = self.states.len();
        match call {
            Call::Training { size, x, off: by } => {
                let shape = self.shape(*size, off(channels, by.channels));
                let x = self.tensor(&shape, x, off(shape.len(), by.x));
                let mut y = Guarded::<T>::new(off(shape.len(), by.output), 0);
                let good = shape.channels() == channels
                    && self.eps_is_good()
                    && self.rule_is_good(shape.per_channel())
                    && [x.len(), y.get().len()] == [shape.len(); 2];
                let result = layer.forward_training(&shape, &x, y.get_mut());
                assert_eq!(result.is_ok(), good, "forward_training of {shape:?}: {result:?}");
                if good {
                    self.training(layer, shape, x, y);
                } else {
                    y.assert_untouched("y of an error");
                }
                result
            }
            Call::Inference { size, x, off: by } => {
                let shape = self.shape(*size, off(channels, by.channels));
                let x = self.tensor(&shape, x, off(shape.len(), by.x));
                let mut y = Guarded::<T>::new(off(shape.len(), by.output), 0);
                let good = shape.channels() == channels
                    && self.eps_is_good()
                    && [x.len(), y.get().len()] == [shape.len(); 2];
                let result = layer.forward_inference(&shape, &x, y.get_mut());
                assert_eq!(result.is_ok(), good, "forward_inference of {shape:?}: {result:?}");
                if good {
                    let mut expected = vec![T::canary(); shape.len()];
                    forward_inference(&shape, &x, &self.mean, &self.var, &self.params(), &mut expected)
                        .unwrap();
                    assert_same("y of inference", &y.take("y"), &expected);
                } else {
                    y.assert_untouched("y of an error");
                }
                result
            }
            Call::Backward { size, dy, off: by } => self.backward(layer, *size, dy, *by),
            Call::Step { lr } => {
                let lr = lr.value();
                let result = layer.step(lr);
                let finite = lr.is_finite() || (self.gamma.is_none() && self.beta.is_none());
                assert_eq!(result.is_ok(), finite, "step by {lr}: {result:?}");
                if result.is_ok() {
                    let pairs = [(&mut self.gamma, &self.dgamma), (&mut self.beta, &self.dbeta)];
                    for (parameter, gradient) in pairs {
                        for (value, gradient) in parameter.iter_mut().flatten().zip(gradient) {
                            *value = T::from_f64(value.to_f64() - lr * gradient.to_f64());
                        }
                    }
                }
                result
            }
            Call::SetRunning { mean, var } => {
                (self.mean, self.var) = (mean.vector(channels), var.vector(channels));
                layer.running_mean_mut().copy_from_slice(&self.mean);
                layer.running_var_mut().copy_from_slice(&self.var);
                Ok(())
            }
        }
    }

    fn rule_is_good(&self, m: usize) -> bool {
        let finite = match self.update.rule {
            UpdateRule::Decay(factor) | UpdateRule::Momentum(factor) => factor.is_finite(),
            UpdateRule::Cumulative => true,
        };
        finite && !(m == 1 && self.update.variance == RunningVariance::Unbiased)
    }

    /// After a good forward pass.
    fn training(&mut self, layer: &BatchNorm<T>, shape: Shape, x: Vec<T>, y: Guarded<T>) {
        let mut expected = vec![T::canary(); shape.len()];
        let mut states = vec![Welford::new(); shape.channels()];
        forward_training(&shape, &x, &self.params(), &mut expected, &mut states).unwrap();
        assert_same("y of training", &y.take("y"), &expected);
        self.states = states;
        let m = shape.per_channel();
        if m != 0 {
            for c in 0..shape.channels() {
                self.check_running(layer, c, &channel(&shape, &x, c));
            }
            self.batches += 1;
            // Within their bounds; from here on these.
            self.mean.copy_from_slice(layer.running_mean());
            self.var.copy_from_slice(layer.running_var());
        }
        self.batch = Some((shape, x));
    }

    /// Asserts that a channel's running statistics have taken in the elements `x`.
    fn check_running(&self, layer: &BatchNorm<T>, c: usize, x: &[T]) {
        let got = [layer.running_mean()[c], layer.running_var()[c]];
        let what = |name| format!("running {name} of channel {c} by {:?}", self.update);
        if !x.iter().all(|x| x.to_f64().is_finite()) {
            assert!(got.iter().all(|got| got.to_f64().is_nan()), "{}: {got:?}", what("statistics"));
            return;
        }
        let before = self.batches as f64;
        let (old, new) = match self.update.rule {
            UpdateRule::Decay(decay) => (decay, 1.0 - decay),
            UpdateRule::Momentum(momentum) => (1.0 - momentum, momentum),
            UpdateRule::Cumulative => (before / (before + 1.0), 1.0 / (before + 1.0)),
        };
        let exact = Statistics::of(x);
        let (mean, biased) = (exact.mean(), exact.var());
        let correction = match self.update.variance {
            RunningVariance::Unbiased => exact.count / (exact.count - 1.0),
            RunningVariance::Biased => 1.0,
        };
        let batch = [
            ("mean", mean, T::mean_bound(mean, biased.sqrt()), self.mean[c]),
            ("variance", biased * correction, T::var_bound(biased) * correction, self.var[c]),
        ];
        for ((name, batch, bound, running), got) in batch.into_iter().zip(got) {
            let (old, added) = (old * running.to_f64(), new * batch);
            if (old + added).is_finite() {
                let exact = Value { value: old + added, low: 0.0, scale: old.abs() + added.abs() };
                let bound = Bound { absolute: new.abs() * bound, ..Bound::of_scale(T::OF_SUMS) };
                assert_value(what(name), got, exact, bound);
            } else {
                assert!(!got.to_f64().is_finite(), "{}: {got:?}", what(name));
            }
        }
    }

    fn backward(
        &mut self,
        layer: &mut BatchNorm<T>,
        size: Option<Size>,
        dy: &Elements,
        by: Off,
    ) -> Result<(), Error> {
        let (shape, x) = match (size, &self.batch) {
            (None, Some((shape, x))) => (*shape, x.clone()),
            (size, _) => {
                let shape = self.shape(size.unwrap_or(Size(2, 3)), off(self.states.len(), by.channels));
                (shape, vec![T::default(); shape.len()])
            }
        };
        let x = resized(x, off(shape.len(), by.x));
        let dy = self.tensor(&shape, dy, off(shape.len(), by.dy));
        let mut dx = Guarded::<T>::new(off(shape.len(), by.output), 0);
        let forward = self.batch.as_ref().map(|(shape, _)| *shape);
        let good = forward == Some(shape) && [x.len(), dy.len(), dx.get().len()] == [shape.len(); 3];
        let result = layer.backward(&shape, &x, &dy, dx.get_mut());
        assert_eq!(result.is_ok(), good, "backward of {shape:?} after {forward:?}: {result:?}");
        if !good {
            dx.assert_untouched("dx of an error");
            return result;
        }
        let mut expected = vec![T::canary(); shape.len()];
        let (mut dgamma, mut dbeta) = (self.dgamma.clone(), self.dbeta.clone());
        let gradients = Gradients::new().dx(&mut expected).dgamma(&mut dgamma).dbeta(&mut dbeta);
        backward(&shape, &x, &dy, &self.states, &self.params(), gradients).unwrap();
        assert_same("dx", &dx.take("dx"), &expected);
        (self.dgamma, self.dbeta) = (dgamma, dbeta);
        result
    }

    fn assert_is(&self, layer: &BatchNorm<T>, call: usize) {
        let vectors = [
            ("gamma", layer.gamma(), self.gamma.as_deref()),
            ("beta", layer.beta(), self.beta.as_deref()),
            ("dgamma", Some(layer.dgamma()), Some(&self.dgamma[..])),
            ("dbeta", Some(layer.dbeta()), Some(&self.dbeta)),
            ("running mean", Some(layer.running_mean()), Some(&self.mean)),
            ("running variance", Some(layer.running_var()), Some(&self.var)),
        ];
        for (name, got, expected) in vectors {
            let what = format!("{name} after call {call}");
            assert_eq!(got.is_some(), expected.is_some(), "{what}");
            assert_same(what, got.unwrap_or_default(), expected.unwrap_or_default());
        }
        assert_same(format!("states after call {call}"), layer.states(), &self.states);
        assert_eq!(layer.batches(), self.batches, "batches after call {call}");
    }
}
