//! The layer whose batch processes have parts of.

use batchnorm::{BatchNorm, Element, Error, Mode, Shape, Storage};
use mpi::topology::Communicator;

use crate::part::Part;
use crate::ranks::Ranks;

/// A [`BatchNorm`] whose batch is that of all ranks together: each has its samples, y and gradients are those of the whole batch, and
/// so are gamma, beta and running statistics, the same on all ranks.
///
/// Tensors are those of the rank's part: of `shape`, which has its samples in the batch, none perhaps, and the channels that it has
/// on all ranks; positions may be others on each, images of several sizes. Every rank calls in the same order, with layers of the same parameters.
///
/// ```no_run
/// use batchnorm::{Mode, Shape};
/// use batchnorm_mpi::{Part, Ranks, SyncBatchNorm};
///
/// let universe = mpi::initialize().ok_or("MPI is initialized already")?;
/// let world = universe.world();
/// let mut ranks = Ranks::new(&world)?;
/// let mut norm = SyncBatchNorm::<f32>::new(1);
///
/// // Rank 0 has samples 0 and 1, rank 1 has 2 and 3, ...
/// let (shape, mut y) = (Shape::nchw(&[2, 1])?, [0.0; 2]);
/// let part = Part::of(&mut ranks, 2);
/// let x = [part.first() as f32, part.first() as f32 + 1.0];
/// norm.forward(Mode::Training, &shape, &x, &mut y, (part, &mut ranks))?;
/// assert_eq!(norm.layer().states()[0].mean(), f64::from(ranks.size()) - 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SyncBatchNorm<T> {
    layer: BatchNorm<T>,
}

impl<T: Element> From<BatchNorm<T>> for SyncBatchNorm<T> {
    /// A layer with its parameters, settings and statistics.
    fn from(layer: BatchNorm<T>) -> Self {
        Self { layer }
    }
}

impl<T: Element> SyncBatchNorm<T> {
    /// [`BatchNorm::new`] of so many channels; of other settings by `from`.
    pub fn new(channels: usize) -> Self {
        BatchNorm::new(channels).into()
    }

    /// The layer of one process: its parameters, gradients and statistics.
    pub fn layer(&self) -> &BatchNorm<T> {
        &self.layer
    }

    /// The same, to be changed as on the other ranks. A forward pass of its own is of this process's samples alone.
    pub fn layer_mut(&mut self) -> &mut BatchNorm<T> {
        &mut self.layer
    }

    /// The layer of one process, for good: inference, a checkpoint.
    pub fn into_layer(self) -> BatchNorm<T> {
        self.layer
    }

    /// [`BatchNorm::step`]: dgamma and dbeta are those of the whole batch.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for the learning rate.
    pub fn step(&mut self, lr: f64) -> Result<(), Error> {
        self.layer.step(lr)
    }

    /// A forward pass in some mode: y of x, both of the shape's length. In training modes one all-gather; in the others no one is
    /// heard of, and ranks need not call alike.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`]; [`Error::Partial`] if the part has another number of samples than the shape, or parts do not go
    /// together; [`Error::Gather`] if another rank has an error, [`Error::Bytes`] if one has another type. Nothing has been written
    /// then, and in training modes every rank gets an error.
    pub fn forward<S: Storage<Arithmetic = T>, C: Communicator>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        x: &[S],
        y: &mut [S],
        (part, ranks): (Part, &mut Ranks<'_, C>),
    ) -> Result<(), Error> {
        self.forward_by(mode, shape, (x, None), y, (part, ranks))
    }

    /// The same with a residual: y = act(batch norm of x + z), all of the shape's length.
    ///
    /// ```no_run
    /// use batchnorm::{Activation, BatchNorm, Mode, Shape};
    /// use batchnorm_mpi::{Part, Ranks, SyncBatchNorm};
    ///
    /// let universe = mpi::initialize().ok_or("MPI is initialized already")?;
    /// let world = universe.world();
    /// let mut ranks = Ranks::new(&world)?;
    /// let mut norm = SyncBatchNorm::from(BatchNorm::new(8).with_activation(Activation::Relu));
    ///
    /// let shape = Shape::nhwc(&[4, 7, 7, 8])?;
    /// let (x, z, dy) = (vec![1.0f32; shape.len()], vec![2.0; shape.len()], vec![3.0; shape.len()]);
    /// let (mut y, mut dx, mut dz) = (x.clone(), x.clone(), x.clone());
    /// let part = Part::of(&mut ranks, 4);
    /// norm.forward_with_residual(Mode::Training, &shape, &x, &z, &mut y, (part, &mut ranks))?;
    /// norm.backward_with_residual(&shape, (&x, &dy), (&mut dx, &mut dz), (part, &mut ranks))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Activation`] for hard swish and SiLU, [`Error::OutOfMemory`].
    pub fn forward_with_residual<S: Storage<Arithmetic = T>, C: Communicator>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        x: &[S],
        z: &[S],
        y: &mut [S],
        (part, ranks): (Part, &mut Ranks<'_, C>),
    ) -> Result<(), Error> {
        self.forward_by(mode, shape, (x, Some(z)), y, (part, ranks))
    }

    /// The gradients of the last forward pass, whose `x` this is: dx of dy, all of the shape's length, dgamma and dbeta kept in the
    /// layer. One all-gather, after frozen forward passes too, where dgamma and dbeta are what it is for.
    ///
    /// # Errors
    /// As [`BatchNorm::backward`], and as [`forward`](Self::forward) for the parts. Nothing has been written then, and every rank gets an
    /// error.
    pub fn backward<S: Storage<Arithmetic = T>, C: Communicator>(
        &mut self,
        shape: &Shape,
        x: &[S],
        dy: &[S],
        dx: &mut [S],
        (part, ranks): (Part, &mut Ranks<'_, C>),
    ) -> Result<(), Error> {
        self.backward_by(shape, (x, dy), (dx, None), (part, ranks))
    }

    /// The same after a forward pass with a residual, whose gradient goes to dz.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); [`Error::NoResidual`] if the forward pass had none.
    pub fn backward_with_residual<S: Storage<Arithmetic = T>, C: Communicator>(
        &mut self,
        shape: &Shape,
        (x, dy): (&[S], &[S]),
        (dx, dz): (&mut [S], &mut [S]),
        (part, ranks): (Part, &mut Ranks<'_, C>),
    ) -> Result<(), Error> {
        self.backward_by(shape, (x, dy), (dx, Some(dz)), (part, ranks))
    }

    fn forward_by<S: Storage<Arithmetic = T>, C: Communicator>(
        &mut self,
        mode: Mode,
        shape: &Shape,
        tensors: (&[S], Option<&[S]>),
        y: &mut [S],
        (part, ranks): (Part, &mut Ranks<'_, C>),
    ) -> Result<(), Error> {
        if let Err(error) = check(part, shape) {
            if matches!(mode, Mode::Training | Mode::TrainingKeepRunning) {
                ranks.refuse();
            }
            return Err(error);
        }
        self.layer.forward_among(mode, shape, tensors, y, (part.first(), ranks))
    }

    fn backward_by<S: Storage<Arithmetic = T>, C: Communicator>(
        &mut self,
        shape: &Shape,
        tensors: (&[S], &[S]),
        gradients: (&mut [S], Option<&mut [S]>),
        (part, ranks): (Part, &mut Ranks<'_, C>),
    ) -> Result<(), Error> {
        if let Err(error) = check(part, shape) {
            ranks.refuse();
            return Err(error);
        }
        self.layer.backward_among(shape, tensors, gradients, (part.first(), ranks))
    }
}

/// That a shape is of the part's samples: else those of the ranks behind would be elsewhere.
fn check(part: Part, shape: &Shape) -> Result<(), Error> {
    match part.batch() == shape.batch() {
        true => Ok(()),
        false => Err(Error::Partial { reason: "are of another number of samples than the part has" }),
    }
}
