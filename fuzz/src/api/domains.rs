//! Domains: a layer with several sets of running statistics is a layer for each, with the same gamma and beta.

use arbitrary::Arbitrary;
use batchnorm::{BatchNorm, Error, Layout, Mode, Shape, WeightShape};

use crate::api::layer::sequence::{Pass, Rule, Size};
use crate::api::renorm::Limits;
use crate::common::matrix::assert_same;
use crate::shared::bounds::Contract;
use crate::shared::data::{Elements, Parameter};
use crate::shared::problem::{ElementType, Run};

/// A layer, and the steps that it makes.
#[derive(Debug, Clone, Arbitrary)]
pub struct Domains {
    /// The element type.
    pub element: ElementType,
    channels: u8,
    count: u8,
    rule: Rule,
    unbiased: bool,
    gamma: Parameter,
    beta: Parameter,
    renorm: Option<Limits>,
    steps: [Option<Step>; 8],
}

#[derive(Debug, Clone, Arbitrary)]
struct Step {
    before: Change,
    domain: u8,
    pass: Pass,
    size: Size,
    x: Elements,
    /// The domain of an inference between the forward and the backward pass.
    between: Option<u8>,
    dy: Elements,
    learns: bool,
}

/// What is done to the layer before a step.
#[derive(Debug, Clone, Arbitrary)]
enum Change {
    Nothing,
    SetRenorm(Option<Limits>),
    /// So many domains.
    Count(u8),
    SetRunning(Box<[Elements; 2]>),
    SetBatches(u64),
    /// Taken apart and made of its parts again.
    Restore,
}

/// The layer, and what it has to be.
struct Pair<T> {
    layer: BatchNorm<T>,
    /// The layer of each domain.
    alone: Vec<BatchNorm<T>>,
    /// The one that the last forward pass was of, as it was then, and its input.
    last: Option<(BatchNorm<T>, Shape, Vec<T>)>,
}

/// Makes the steps.
pub fn run<T: Contract>(domains: &Domains, how: Run) {
    how.configuration().run(|| {
        let channels = usize::from(domains.channels % 12);
        let mut one = BatchNorm::<T>::new(channels).with_update(domains.rule.update(domains.unbiased));
        let pairs = one.parameters_mut().zip([domains.gamma, domains.beta]);
        for ((parameter, _), values) in pairs {
            if let Some(values) = values.vector(channels) {
                parameter.copy_from_slice(&values);
            }
        }
        if let Some(limits) = domains.renorm {
            assert_eq!(one.set_renorm(Some(limits.get())).is_ok(), limits.are_good());
        }
        let count = usize::from(domains.count % 5);
        let layer = one.clone().with_domains(count);
        let mut pair = Pair { layer, alone: vec![one; count.max(1)], last: None };
        for step in domains.steps.iter().flatten() {
            pair.change(&step.before);
            pair.step(step, how.layout());
            pair.assert_same();
        }
    });
}

impl<T: Contract> Pair<T> {
    fn all(&mut self) -> impl Iterator<Item = &mut BatchNorm<T>> {
        self.alone.iter_mut().chain([&mut self.layer])
    }

    fn change(&mut self, change: &Change) {
        let (channels, domain) = (self.layer.channels(), self.layer.domain());
        match change {
            Change::Nothing => {}
            Change::SetRenorm(limits) => {
                let good = limits.is_none_or(Limits::are_good);
                for layer in self.all() {
                    assert_eq!(layer.set_renorm(limits.map(Limits::get)).is_ok(), good, "{limits:?}");
                }
            }
            Change::Count(count) => {
                let count = usize::from(count % 5);
                self.layer = self.layer.clone().with_domains(count);
                let first = self.alone[0].clone();
                self.alone.resize(count.max(1), first);
                let expected = if domain < count.max(1) { domain } else { 0 };
                assert_eq!((self.layer.domains(), self.layer.domain()), (count.max(1), expected));
            }
            Change::SetRunning(vectors) => {
                let [mean, var] = vectors.each_ref().map(|vector| vector.vector::<T>(channels));
                for layer in [&mut self.layer, &mut self.alone[domain]] {
                    layer.running_mean_mut().copy_from_slice(&mean);
                    layer.running_var_mut().copy_from_slice(&var);
                }
            }
            Change::SetBatches(batches) => {
                self.layer.set_batches(*batches);
                self.alone[domain].set_batches(*batches);
            }
            Change::Restore => {
                let restored = BatchNorm::from_parts(self.layer.clone().into_parts());
                let expected = BatchNorm::from_parts(self.alone[0].clone().into_parts());
                assert_eq!(restored.is_ok(), expected.is_ok());
                if let Ok(restored) = restored {
                    (self.layer, self.last) = (restored, None);
                    assert_eq!(self.layer.domain(), 0);
                }
            }
        }
    }

    /// Sets a domain, or one that there is not; the one that is set then.
    fn switch(&mut self, domain: u8) -> usize {
        let (before, domain, domains) = (self.layer.domain(), usize::from(domain % 6), self.layer.domains());
        let expected = if domain < domains { Ok(()) } else { Err(Error::Domain { domain, domains }) };
        assert_eq!(self.layer.set_domain(domain), expected);
        assert_eq!(self.layer.domain(), if domain < domains { domain } else { before });
        self.layer.domain()
    }

    fn step(&mut self, step: &Step, layout: Layout) {
        let domain = self.switch(step.domain);
        let (batch, channels, spatial) = (step.size.batch(), self.layer.channels(), step.size.spatial());
        let shape = Shape::new(layout, batch, channels, &[spatial]).unwrap();
        let tensor = |elements: &Elements| elements.tensor::<T>(&[batch, channels, spatial]);
        let x = tensor(&step.x);
        let (mode, zeros) = (step.pass.mode(), || vec![T::default(); x.len()]);
        let [mut y, mut expected] = [zeros(), zeros()];
        let result = self.layer.forward(mode, &shape, &x, &mut y);
        let alone = self.alone[domain].forward(mode, &shape, &x, &mut expected);
        // As text, in which NaN is NaN: a rule's factor.
        assert_eq!(format!("{result:?}"), format!("{alone:?}"), "{mode:?} of {shape}");
        assert_same("y", &y, &expected);
        if result.is_ok() && mode != Mode::Inference {
            self.last = Some((self.alone[domain].clone(), shape, x.clone()));
        }
        if let Some(between) = step.between {
            let other = self.switch(between);
            let [result, alone] = [(&self.layer, &mut y), (&self.alone[other], &mut expected)]
                .map(|(layer, y)| layer.forward_inference(&shape, &x, y));
            assert_eq!(result, alone, "inference of {shape}");
            assert_same("y between", &y, &expected);
        }
        self.backward(&step.dy);
        self.fold();
        if step.learns {
            self.layer.step(0.125).unwrap();
            let Self { layer, alone, .. } = self;
            let [gamma, beta] = [layer.gamma(), layer.beta()].map(Option::unwrap);
            for alone in alone {
                alone.gamma_mut().unwrap().copy_from_slice(gamma);
                alone.beta_mut().unwrap().copy_from_slice(beta);
            }
        }
    }

    /// The backward pass is of the last forward pass, whatever domain that was of, and has been set since.
    fn backward(&mut self, dy: &Elements) {
        let Some((last, shape, x)) = &self.last else { return };
        let dy = dy.tensor::<T>(&[shape.batch(), shape.channels(), shape.spatial()]);
        let [mut dx, mut expected] = [(); 2].map(|()| vec![T::default(); x.len()]);
        let mut last = last.clone();
        last.backward(shape, x, &dy, &mut expected).unwrap();
        self.layer.backward(shape, x, &dy, &mut dx).unwrap();
        assert_same("dx", &dx, &expected);
        assert_same("dgamma", self.layer.dgamma(), last.dgamma());
        assert_same("dbeta", self.layer.dbeta(), last.dbeta());
    }

    fn fold(&self) {
        let (channels, alone) = (self.layer.channels(), &self.alone[self.layer.domain()]);
        let shape = WeightShape::new(&[channels, 2], 0).unwrap();
        let [of_layer, of_alone] = [&self.layer, alone].map(|layer| {
            let (mut weight, mut bias) =
                (vec![T::from_f64(0.75); 2 * channels], vec![T::default(); channels]);
            layer.fold_into(&shape, &mut weight, &mut bias).unwrap();
            [weight, bias]
        });
        assert_same("weight", &of_layer[0], &of_alone[0]);
        assert_same("bias", &of_layer[1], &of_alone[1]);
    }

    /// All domains have what their layers have.
    fn assert_same(&self) {
        let mut layer = self.layer.clone();
        for (domain, alone) in self.alone.iter().enumerate() {
            layer.set_domain(domain).unwrap();
            let what = |name| format!("{name} of domain {domain}");
            assert_same(what("running mean"), layer.running_mean(), alone.running_mean());
            assert_same(what("running variance"), layer.running_var(), alone.running_var());
            assert_eq!(layer.batches(), alone.batches(), "{}", what("batches"));
        }
    }
}
