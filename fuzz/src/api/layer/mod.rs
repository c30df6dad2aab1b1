//! Sequences of calls of [`BatchNorm`], compared with a model: the operations on slices, and running statistics worked
//! out from the exact oracle's. A call that returns an error has changed nothing.

pub(super) mod sequence;

pub use sequence::Sequence;

use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gradients, Inference, Layout, Mode, Params, RunningUpdate,
    RunningVariance, Shape, Training, UpdateRule, Welford,
};

use crate::common::exact::{Statistics, Value, channel};
use crate::common::matrix::{Guarded, assert_same, params};
use crate::operations::fused::AnyActivation;
use crate::shared::bounds::{Bound, Contract, assert_value};
use crate::shared::data::Elements;
use sequence::{Call, Given, Off, Pass, Size, off};

/// A tensor of another length: cut off, or continued by its first element.
fn resized<T: Contract>(mut tensor: Vec<T>, len: usize) -> Vec<T> {
    let filler = tensor.first().copied().unwrap_or_default();
    tensor.resize(len, filler);
    tensor
}

fn rule_is_good(update: RunningUpdate) -> bool {
    match update.rule {
        UpdateRule::Decay(factor) | UpdateRule::Momentum(factor) => (0.0..=1.0).contains(&factor),
        UpdateRule::Cumulative => true,
    }
}

/// What a layer should hold.
struct Model<T> {
    layout: Layout,
    eps: f64,
    update: RunningUpdate,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    activation: AnyActivation,
    dgamma: Vec<T>,
    dbeta: Vec<T>,
    mean: Vec<T>,
    var: Vec<T>,
    batches: u64,
    states: Vec<Welford>,
    forward: Option<LastForward<T>>,
}

/// The forward pass that backward belongs to, with what it computed by.
#[derive(Clone)]
struct LastForward<T> {
    frozen: bool,
    shape: Shape,
    x: Vec<T>,
    gamma: Option<Vec<T>>,
    beta: Option<Vec<T>>,
    activation: Activation,
    /// If there was a residual.
    mask: Option<Vec<u64>>,
    eps: f64,
    mean: Vec<T>,
    var: Vec<T>,
}

/// Makes the calls.
pub fn run<T: Contract>(sequence: &Sequence) {
    let channels = sequence.channels();
    let mut model = Model::<T>::new(sequence, channels);
    let mut layer = BatchNorm::new(channels).with_eps(model.eps).with_update(model.update);
    layer = layer.with_activation(model.activation.get());
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
        let all = |value| vec![T::from_f64(value); channels];
        Self {
            layout: sequence.layout(),
            eps: sequence.eps.value(),
            update: sequence.rule.update(sequence.unbiased),
            gamma: sequence.gamma.vector(channels),
            beta: sequence.beta.vector(channels),
            activation: sequence.activation,
            dgamma: all(0.0),
            dbeta: all(0.0),
            mean: all(0.0),
            var: all(1.0),
            batches: 0,
            states: vec![Welford::new(); channels],
            forward: None,
        }
    }

    fn params(&self) -> Params<'_, T> {
        params(self.gamma.as_deref(), self.beta.as_deref(), self.eps).activation(self.activation.get())
    }

    fn shape(&self, size: Size, channels: usize) -> Shape {
        let (batch, spatial) = (size.batch(), size.spatial());
        // Two axes where they make the same number.
        let axes = if spatial.is_multiple_of(2) { [2, spatial / 2] } else { [1, spatial] };
        Shape::new(self.layout, batch, channels, &axes).unwrap()
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
            Call::Forward { pass, size, x, residual, off: by } => {
                self.forward(layer, *pass, *size, (x, residual.as_ref()), *by)
            }
            Call::Backward { x, dy, with_residual, off: by } => {
                self.backward(layer, *x, (dy, *with_residual), *by)
            }
            Call::SetActivation(activation) => {
                let result = layer.set_activation(activation.get());
                assert_eq!(result.is_ok(), activation.is_good(), "{activation:?}: {result:?}");
                if result.is_ok() {
                    self.activation = *activation;
                }
                result
            }
            Call::Step { lr } => {
                let lr = lr.value();
                let result = layer.step(lr);
                assert_eq!(result.is_ok(), lr.is_finite(), "step by {lr}: {result:?}");
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
            Call::SetParameters { gamma, beta } => {
                let mine = [(&mut self.gamma, gamma), (&mut self.beta, beta)];
                let pairs = mine.into_iter().filter_map(|(mine, new)| Some((mine.as_mut()?, new)));
                for ((mine, new), (parameter, _)) in pairs.zip(layer.parameters_mut()) {
                    *mine = new.vector(channels);
                    parameter.copy_from_slice(mine);
                }
                Ok(())
            }
            Call::SetBatches(batches) => {
                self.batches = *batches;
                layer.set_batches(*batches);
                Ok(())
            }
            Call::SetUpdate { rule, unbiased } => {
                let update = rule.update(*unbiased);
                let result = layer.set_update(update);
                assert_eq!(result.is_ok(), rule_is_good(update), "{update:?}: {result:?}");
                if result.is_ok() {
                    self.update = update;
                }
                result
            }
            Call::SetEps(eps) => {
                let (before, eps) = (self.eps, eps.value());
                self.eps = eps;
                let result = layer.set_eps(eps);
                assert_eq!(result.is_ok(), self.eps_is_good(), "eps {eps}: {result:?}");
                if result.is_err() {
                    self.eps = before;
                }
                result
            }
            Call::Restore => self.restore(layer),
        }
    }

    /// A forward pass in some mode.
    fn forward(
        &mut self,
        layer: &mut BatchNorm<T>,
        pass: Pass,
        size: Size,
        (x, z): (&Elements, Option<&Elements>),
        by: Off,
    ) -> Result<(), Error> {
        let (channels, mode) = (self.states.len(), pass.mode());
        let shape = self.shape(size, off(channels, by.channels));
        let x = self.tensor(&shape, x, off(shape.len(), by.x));
        // The short form of training has none.
        let z = z.filter(|_| !matches!(pass, Pass::ShortTraining));
        let z = z.map(|z| self.tensor(&shape, z, off(shape.len(), by.dy)));
        let activation = self.activation.get();
        let mut y = Guarded::<T>::new(off(shape.len(), by.output), 0);
        let m = shape.per_channel();
        let single = m == 1 && self.update.variance == RunningVariance::Unbiased;
        let good = shape.channels() == channels
            && self.eps_is_good()
            && self.activation.is_good()
            && z.as_ref().is_none_or(|z| z.len() == shape.len() && activation.is_piecewise_linear())
            && (mode != Mode::Training || (rule_is_good(self.update) && !single))
            && [x.len(), y.get().len()] == [shape.len(); 2];
        let result = match (pass, &z) {
            (Pass::ShortTraining, _) => layer.forward_training(&shape, &x, y.get_mut()),
            (Pass::ShortInference, None) => layer.forward_inference(&shape, &x, y.get_mut()),
            (Pass::ShortInference, Some(z)) => {
                layer.forward_inference_with_residual(&shape, &x, z, y.get_mut())
            }
            (_, None) => layer.forward(mode, &shape, &x, y.get_mut()),
            (_, Some(z)) => layer.forward_with_residual(mode, &shape, &x, z, y.get_mut()),
        };
        assert_eq!(result.is_ok(), good, "{mode:?} of {shape}: {result:?}");
        if !good {
            y.assert_untouched("y of an error");
            return result;
        }
        let mut expected = vec![T::canary(); shape.len()];
        let frozen = matches!(mode, Mode::Frozen | Mode::Inference);
        let mut mask = z.as_ref().map(|_| vec![0; shape.mask_len()]);
        macro_rules! operands {
            ($call:expr) => {{
                let call = $call.x(&x).y(&mut expected);
                let call = if let Some(z) = &z { call.residual(z) } else { call };
                if let Some(mask) = &mut mask { call.mask(mask) } else { call }
            }};
        }
        if frozen {
            operands!(Inference::new(&shape, self.params())).frozen(&self.mean, &self.var).run().unwrap();
        } else {
            let mut states = vec![Welford::new(); channels];
            operands!(Training::new(&shape, self.params())).states(&mut states).run().unwrap();
            self.states = states;
        }
        assert_same("y", &y.take("y"), &expected);
        if mode == Mode::Training && m != 0 {
            for c in 0..channels {
                self.check_running(layer, c, &channel(&shape, &x, c));
            }
            self.batches = self.batches.saturating_add(1);
            // Within their bounds; from here on these.
            self.mean.copy_from_slice(layer.running_mean());
            self.var.copy_from_slice(layer.running_var());
        }
        if mode != Mode::Inference {
            let (gamma, beta, eps) = (self.gamma.clone(), self.beta.clone(), self.eps);
            let (mean, var) = (self.mean.clone(), self.var.clone());
            self.forward =
                Some(LastForward { frozen, shape, x, gamma, beta, activation, mask, eps, mean, var });
        }
        result
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
        given: Given,
        (dy, with_residual): (&Elements, bool),
        by: Off,
    ) -> Result<(), Error> {
        let (shape, mut x) = match (given, &self.forward) {
            (Given::Zeros(size), _) => {
                let shape = self.shape(size, off(self.states.len(), by.channels));
                (shape, vec![T::default(); shape.len()])
            }
            (_, None) => {
                let shape = self.shape(Size(2, 3), self.states.len());
                (shape, vec![T::default(); shape.len()])
            }
            (Given::Folded, Some(last)) => {
                let (n, c, s) = (last.shape.batch(), last.shape.channels(), last.shape.spatial());
                (Shape::new(self.layout, n, c, &[s]).unwrap(), last.x.clone())
            }
            (_, Some(last)) => (last.shape, last.x.clone()),
        };
        if let (Given::Changed(at), false) = (given, x.is_empty()) {
            let at = usize::from(at) % x.len();
            x[at] = T::from_f64(if x[at].to_f64() == 1.0 { 2.0 } else { 1.0 });
        }
        let x = resized(x, off(shape.len(), by.x));
        let dy = self.tensor(&shape, dy, off(shape.len(), by.dy));
        let [mut dx, mut dz] = [(); 2].map(|()| Guarded::<T>::new(off(shape.len(), by.output), 0));
        let lengths = [x.len(), dy.len(), dx.get().len()] == [shape.len(); 3];
        let last = self.forward.clone().filter(|last| {
            lengths && last.shape.lies_like(&shape) && (!with_residual || last.mask.is_some())
        });
        let result = if with_residual {
            layer.backward_with_residual(&shape, &x, &dy, dx.get_mut(), dz.get_mut())
        } else {
            layer.backward(&shape, &x, &dy, dx.get_mut())
        };
        let same = |(a, b): (&T, &T)| a == b || (a.to_f64().is_nan() && b.to_f64().is_nan());
        match &last {
            None => assert!(result.is_err(), "backward of {shape} that is not the forward pass's"),
            Some(last) if x.iter().zip(&last.x).all(same) => {
                assert_eq!(result, Ok(()), "backward of {shape}")
            }
            // Of a large tensor only samples are looked at.
            Some(_) if x.len() <= 64 => {
                assert!(matches!(result, Err(Error::ForwardInput { .. })), "another x: {result:?}");
            }
            Some(_) => {}
        }
        let Some(last) = last.filter(|_| result.is_ok()) else {
            dx.assert_untouched("dx of an error");
            dz.assert_untouched("dz of an error");
            return result;
        };
        let [mut expected, mut expected_dz] = [(); 2].map(|()| vec![T::canary(); shape.len()]);
        let (mut dgamma, mut dbeta) = (self.dgamma.clone(), self.dbeta.clone());
        let mut gradients = Gradients::new().dx(&mut expected).dgamma(&mut dgamma).dbeta(&mut dbeta);
        if with_residual {
            gradients = gradients.dz(&mut expected_dz);
        }
        let params = params(last.gamma.as_deref(), last.beta.as_deref(), last.eps);
        let mut call = Backward::new(&shape, params.activation(last.activation)).x(&x).dy(&dy);
        if let Some(mask) = &last.mask {
            call = call.mask(mask);
        }
        call = if last.frozen { call.frozen(&last.mean, &last.var) } else { call.states(&self.states) };
        call.gradients(gradients).run().unwrap();
        assert_same("dx", &dx.take("dx"), &expected);
        assert_same("dz", &dz.take("dz"), &expected_dz);
        (self.dgamma, self.dbeta) = (dgamma, dbeta);
        result
    }

    /// Takes the layer apart and makes it of its parts, which hold all but gradients and the last forward pass.
    fn restore(&mut self, layer: &mut BatchNorm<T>) -> Result<(), Error> {
        let restored = BatchNorm::from_parts(layer.clone().into_parts());
        let good = self.eps_is_good() && rule_is_good(self.update) && self.activation.is_good();
        assert_eq!(restored.is_ok(), good, "{restored:?}");
        *layer = restored?;
        let channels = self.states.len();
        self.states = vec![Welford::new(); channels];
        self.dgamma.fill(T::default());
        self.dbeta.fill(T::default());
        self.forward = None;
        Ok(())
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
