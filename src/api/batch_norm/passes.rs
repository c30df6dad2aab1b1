//! The layer's forward and backward passes.

#![forbid(unsafe_code)]

use crate::api::batch_norm::parts::Parts;
use crate::api::batch_norm::record::{Normalized, Record, Statistics};
use crate::api::batch_norm::{BatchNorm, Kept, Mode};
use crate::api::builders::operands::check_sample_weights;
use crate::api::builders::{Backward, Inference, Training};
use crate::api::fold::{WeightShape, fold_into};
use crate::api::gather::{Among, Gather};
use crate::api::params::{Gradients, Params};
use crate::api::partial::nodes::count_of_batch;
use crate::api::renorm::Renormalized;
use crate::api::running::{RunningUpdate, update_running};
use crate::api::shape::Shape;
use crate::ground::error::{Error, check_eps};
use crate::ground::memory::filled;
use crate::operations::Element;
use crate::operations::storage::Storage;

impl<T: Element> BatchNorm<T> {
    /// A forward pass in some mode: y of x.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Channels`], [`Error::Epsilon`], [`Error::NotFinite`] or [`Error::Clip`] for the activation's
    /// numbers; in training [`Error::Limit`] for those of renormalization, [`Error::NoSampleWeight`]; in [`Mode::Training`] also [`Error::Weight`] for the update
    /// rule's factor, [`Error::SingleElement`] for the unbiased variance of one element per channel. Nothing has been written then, and the last forward pass is still the one
    /// before.
    pub fn forward<S: Storage<Arithmetic = T>>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        x: &[S],
        y: &mut [S],
    ) -> Result<(), Error> {
        self.forward_by(mode, shape, (x, None), y, None)
    }

    /// The same with a residual, which is added to the normalized x before the activation: y = act(batch norm of x + z). Keeps a
    /// bit an element for [`backward_with_residual`](Self::backward_with_residual), unless the mode is inference.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Activation`] for hard swish and SiLU, [`Error::OutOfMemory`].
    pub fn forward_with_residual<S: Storage<Arithmetic = T>>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        x: &[S],
        z: &[S],
        y: &mut [S],
    ) -> Result<(), Error> {
        self.forward_by(mode, shape, (x, Some(z)), y, None)
    }

    /// The same of a part of a batch, samples `first` to `first + N` of it, whose other parts other processes have, who call as well
    /// with layers of the same parameters, in the same domain: in training y, and what the running statistics take in, are those of the whole
    /// ([`Training::run_among`]). In frozen mode and inference no one has to be heard of. A part may be empty.
    ///
    /// # Errors
    /// As [`forward_with_residual`](Self::forward_with_residual); [`Error::Gather`], [`Error::Partial`] and [`Error::Bytes`] for what could
    /// not be had of the others, or does not go together.
    pub fn forward_among<S: Storage<Arithmetic = T>>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        (x, z): (&[S], Option<&[S]>),
        y: &mut [S],
        (first, gather): (u64, &mut dyn Gather),
    ) -> Result<(), Error> {
        let trains = matches!(mode, Mode::Training | Mode::TrainingKeepRunning);
        self.forward_by(mode, shape, (x, z), y, trains.then_some(Among { first, gather }))
    }

    fn forward_by<S: Storage<Arithmetic = T>>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        (x, z): (&[S], Option<&[S]>),
        y: &mut [S],
        among: Option<Among<'_>>,
    ) -> Result<(), Error> {
        let weights = self.kept.weights.as_deref().filter(|_| mode != Mode::Inference);
        if let Err(error) = check_sample_weights(shape, weights) {
            return Err(refused(among, error));
        }
        let keeps = mode != Mode::Inference && z.is_some();
        let reuses = self.kept.forward.as_ref().is_some_and(|record| record.has_mask_of(shape));
        let mut mask = match keeps.then(|| self.mask_for(shape)).transpose() {
            Ok(mask) => mask,
            Err(error) => return Err(refused(among, error)),
        };
        let written = mask.as_deref_mut();
        let normalized = match mode {
            Mode::Training | Mode::TrainingKeepRunning => {
                let update = (mode == Mode::Training).then_some(self.parts.update);
                self.normalize_by_batch(update, shape, (x, z), (y, written), among)
                    .map(|renormalized| (Statistics::Batch, renormalized))
            }
            Mode::Frozen => {
                self.normalize_by_running(shape, (x, z), y, written).map(|()| (Statistics::Running, None))
            }
            Mode::Inference => return self.normalize_by_running(shape, (x, z), y, None),
        };
        match normalized {
            Ok((statistics, renormalized)) => {
                let (of, Kept { forward, weights, .. }) = ((&self.parts, self.domain), &mut *self.kept);
                let normalized = Normalized { statistics, renormalized, weights: weights.as_deref() };
                Record::write(forward, normalized, shape, (x, mask), of);
            }
            // Nothing has been written: what was kept is still so.
            Err(error) => {
                if let (Some(record), Some(mask), true) = (&mut self.kept.forward, mask, reuses) {
                    record.mask = mask;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The last forward pass's mask, if it is of this shape's length, or a new one.
    fn mask_for(&mut self, shape: &Shape) -> Result<Vec<u64>, Error> {
        match &mut self.kept.forward {
            Some(record) if record.has_mask_of(shape) => Ok(std::mem::take(&mut record.mask)),
            _ => filled(shape.mask_len(), 0),
        }
    }

    /// Normalizes a batch by its own statistics, which the running statistics take in: [`Mode::Training`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_training<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        x: &[S],
        y: &mut [S],
    ) -> Result<(), Error> {
        self.forward(Mode::Training, shape, x, y)
    }

    /// Normalizes by the running statistics and keeps nothing: [`Mode::Inference`], for a layer that is shared.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Channels`], [`Error::Epsilon`], [`Error::NotFinite`] or [`Error::Clip`] for the activation's
    /// numbers. Nothing has been written then.
    pub fn forward_inference<S: Storage<Arithmetic = T>>(
        &self,
        shape: &Shape,
        x: &[S],
        y: &mut [S],
    ) -> Result<(), Error> {
        self.normalize_by_running(shape, (x, None), y, None)
    }

    /// The same with a residual: y = act(batch norm of x + z).
    ///
    /// # Errors
    /// As [`forward_inference`](Self::forward_inference); [`Error::Activation`] for hard swish and SiLU.
    pub fn forward_inference_with_residual<S: Storage<Arithmetic = T>>(
        &self,
        shape: &Shape,
        x: &[S],
        z: &[S],
        y: &mut [S],
    ) -> Result<(), Error> {
        self.normalize_by_running(shape, (x, Some(z)), y, None)
    }

    /// Folds the layer's inference into the weights and the bias of the layer before it, which then gives what both gave: see
    /// [`fold_into`](crate::fold_into). This layer is left as it is, and goes from the network; its activation has to stay.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Parts, WeightShape};
    /// let parts = Parts { running_mean: vec![1.0f32, 2.0], running_var: vec![4.0, 16.0], eps: 0.0, ..Parts::new(0) };
    /// let layer = BatchNorm::from_parts(Parts { gamma: None, beta: None, ..parts })?;
    /// // A convolution of 1 input channel and 2 output channels, as PyTorch has it, without a bias.
    /// let (mut weight, mut bias) = ([2.0f32, 4.0, 6.0, 8.0], [0.0f32; 2]);
    /// layer.fold_into(&WeightShape::new(&[2, 1, 1, 2], 0)?, &mut weight, &mut bias)?;
    /// assert_eq!((weight, bias), ([1.0, 2.0, 1.5, 2.0], [-0.5, -0.5]));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Channels`], [`Error::Length`], [`Error::Epsilon`], [`Error::NotFinite`] or [`Error::Clip`] for the activation's
    /// numbers. Nothing has been written then.
    pub fn fold_into<S: Storage<Arithmetic = T>, B: Storage<Arithmetic = T>>(
        &self,
        shape: &WeightShape,
        weight: &mut [S],
        bias: &mut [B],
    ) -> Result<(), Error> {
        shape.check_channels("layer", self.channels())?;
        let (running_mean, running_var, _) = self.parts.running(self.domain);
        fold_into(shape, running_mean, running_var, &params(&self.parts), weight, bias)
    }

    /// By the running statistics.
    fn normalize_by_running<S: Storage<Arithmetic = T>>(
        &self,
        shape: &Shape,
        (x, z): (&[S], Option<&[S]>),
        y: &mut [S],
        mask: Option<&mut [u64]>,
    ) -> Result<(), Error> {
        self.check_channels(shape)?;
        let (running_mean, running_var, _) = self.parts.running(self.domain);
        let mut inference =
            Inference::new(shape, params(&self.parts)).x(x).y(y).frozen(running_mean, running_var);
        if let Some(z) = z {
            inference = inference.residual(z);
        }
        match mask {
            Some(mask) => inference.mask(mask).run(),
            None => inference.run(),
        }
    }

    /// Training, with the running statistics by a rule or left alone; what renormalization made of them, if there is one.
    fn normalize_by_batch<S: Storage<Arithmetic = T>>(
        &mut self,
        update: Option<RunningUpdate>,
        shape: &Shape,
        (x, z): (&[S], Option<&[S]>),
        (y, mask): (&mut [S], Option<&mut [u64]>),
        among: Option<Among<'_>>,
    ) -> Result<Option<Renormalized<T>>, Error> {
        // What is wrong here is told to the others, who would go on without it.
        let rule = update.map_or(Ok(()), RunningUpdate::check_rule);
        if let Err(error) = self.check_channels(shape).and(rule) {
            return Err(refused(among, error));
        }
        let Kept { states, weights, .. } = &mut *self.kept;
        let weights = weights.as_deref();
        let mut training = Training::new(shape, params(&self.parts)).x(x).y(y).states(states);
        if let Some(weights) = weights {
            training = training.weights(weights);
        }
        let (running_mean, running_var, _) = self.parts.running(self.domain);
        let mut renormalized = self.parts.renorm.map(|limits| (limits, Renormalized::new()));
        if let Some((limits, to)) = &mut renormalized {
            training = training.renorm(*limits, running_mean, running_var, to);
        }
        if let Some(z) = z {
            training = training.residual(z);
        }
        if let Some(mask) = mask {
            training = training.mask(mask);
        }
        let check = |count| update.map_or(Ok(()), |update| update.check(count));
        match among {
            Some(among) => training.run_among_if(among, check)?,
            None => {
                check(count_of_batch(shape, weights))?;
                training.run()?;
            }
        }
        let any = self.kept.states.first().map_or(shape.per_channel() != 0, |state| state.count() != 0);
        if let Some(update) = update.filter(|_| any) {
            let (running_mean, running_var, batches) = self.parts.running_mut(self.domain);
            update_running(update, *batches, &self.kept.states, running_mean, running_var)?;
            *batches = batches.saturating_add(1);
        }
        Ok(renormalized.map(|(_, renormalized)| renormalized))
    }

    /// The gradients of the last forward pass, whose `x` this is: dx to the slice, dgamma and dbeta kept for
    /// [`parameters_mut`](Self::parameters_mut) and [`step`](Self::step).
    ///
    /// The last forward pass is that of [`forward`](Self::forward) or [`forward_training`](Self::forward_training) in any
    /// mode but inference, which comes and goes unnoticed. Gradients are of what it computed: gamma, eps and running
    /// statistics that have been changed since are taken as they were. Backward may be called more than once.
    ///
    /// Another batch's x is told by 64 of its elements, spread over the tensor, whose values the forward pass kept: a
    /// mistake in a program's order of calls is found out in this way, while tensors that differ elsewhere only are not.
    /// A copy of x is as good as x.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Error, Shape};
    /// let shape = Shape::nchw(&[2, 1])?;
    /// let (mut layer, mut y, mut dx) = (BatchNorm::new(1), [0.0f32; 2], [0.0f32; 2]);
    /// layer.forward_training(&shape, &[1.0, 2.0], &mut y)?;
    /// layer.forward_inference(&shape, &[5.0, 6.0], &mut y)?;
    /// let error = layer.backward(&shape, &[5.0, 6.0], &[1.0, 0.0], &mut dx).unwrap_err();
    /// assert_eq!(error, Error::ForwardInput { index: 0, got: 5.0, expected: 1.0 });
    /// layer.backward(&shape, &[1.0, 2.0], &[1.0, 0.0], &mut dx)?;
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoForward`] without such a forward pass, [`Error::ForwardShape`] if it was of another shape (spatial axes
    /// may be folded: [`Shape::lies_like`]), [`Error::ForwardInput`] if it was of another x, [`Error::Length`]. Nothing has
    /// been written then.
    pub fn backward<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        x: &[S],
        dy: &[S],
        dx: &mut [S],
    ) -> Result<(), Error> {
        self.backward_by(shape, (x, dy), Gradients::new().dx(dx), None)
    }

    /// The same after a forward pass with a residual, whose gradient goes to `dz`.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); [`Error::NoResidual`] if the forward pass had none.
    pub fn backward_with_residual<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        x: &[S],
        dy: &[S],
        dx: &mut [S],
        dz: &mut [S],
    ) -> Result<(), Error> {
        if self.kept.forward.as_ref().is_some_and(|forward| !forward.residual) {
            return Err(Error::NoResidual);
        }
        self.backward_by(shape, (x, dy), Gradients::new().dx(dx).dz(dz), None)
    }

    /// The same after [`forward_among`](Self::forward_among), of the same part of the batch: gradients are those of the whole, dgamma and
    /// dbeta the same in all processes.
    ///
    /// # Errors
    /// As [`backward_with_residual`](Self::backward_with_residual); [`Error::Gather`], [`Error::Partial`] and [`Error::Bytes`] for what could
    /// not be had of the others, or does not go together.
    pub fn backward_among<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        (x, dy): (&[S], &[S]),
        (dx, dz): (&mut [S], Option<&mut [S]>),
        (first, gather): (u64, &mut dyn Gather),
    ) -> Result<(), Error> {
        let among = Among { first, gather };
        if dz.is_some() && self.kept.forward.as_ref().is_some_and(|forward| !forward.residual) {
            return Err(among.refuse(Error::NoResidual));
        }
        let gradients = Gradients::new().dx(dx);
        let gradients = match dz {
            Some(dz) => gradients.dz(dz),
            None => gradients,
        };
        self.backward_by(shape, (x, dy), gradients, Some(among))
    }

    fn backward_by<S: Storage<Arithmetic = T>>(
        &mut self,
        shape: &Shape,
        (x, dy): (&[S], &[S]),
        gradients: Gradients<'_, S>,
        among: Option<Among<'_>>,
    ) -> Result<(), Error> {
        let forward = self.kept.forward.as_ref().ok_or(Error::NoForward);
        let forward = forward.and_then(|forward| forward.check(shape, x).map(|()| forward));
        let forward = match forward {
            Ok(forward) => forward,
            Err(error) => return Err(refused(among, error)),
        };
        let mut params = Params::new(forward.eps).activation(forward.activation);
        (params.gamma, params.beta) = (forward.gamma.as_deref(), forward.beta.as_deref());
        let renormalized = forward.renormalized.as_ref();
        let params = renormalized.map_or(params, |renormalized| renormalized.params(&params));
        let gradients = gradients.dgamma(&mut self.kept.dgamma).dbeta(&mut self.kept.dbeta);
        let mut backward = Backward::new(shape, params).x(x).dy(dy).gradients(gradients);
        if forward.residual {
            backward = backward.mask(&forward.mask);
        }
        if let Some(weights) = &forward.weights {
            backward = backward.weights(weights);
        }
        backward = match forward.statistics {
            Statistics::Batch => backward.states(&self.kept.states),
            Statistics::Running => backward.frozen(&forward.mean, &forward.var),
        };
        match among {
            Some(Among { first, gather }) => backward.run_among(first, gather)?,
            None => backward.run()?,
        }
        // Last, for the lengths are right.
        renormalized.map_or(Ok(()), |renormalized| {
            renormalized.gamma_gradient(&self.kept.dbeta, &mut self.kept.dgamma)
        })
    }

    fn check_channels(&self, shape: &Shape) -> Result<(), Error> {
        shape.check_channels("layer", self.channels())?;
        check_eps(self.parts.eps)?;
        self.parts.activation.check()
    }
}

/// Tells the others, if there are any.
fn refused(among: Option<Among<'_>>, error: Error) -> Error {
    match among {
        Some(among) => among.refuse(error),
        None => error,
    }
}

fn params<T: Element>(parts: &Parts<T>) -> Params<'_, T> {
    let mut params = Params::new(parts.eps).activation(parts.activation);
    (params.gamma, params.beta) = (parts.gamma.as_deref(), parts.beta.as_deref());
    params
}
