//! The operations and the module next to burn's own, on random shapes, strides, data and parameters.

use batchnorm_burn::{BatchNorm, BatchNormConfig, batch_norm, batch_norm_train};
use burn::backend::Flex;
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData, module};
use quickcheck::{Arbitrary, Gen, QuickCheck};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// How the input lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strides {
    Contiguous,
    ChannelsLast,
    /// The second half of a contiguous tensor: dense, at an offset.
    Offset,
    /// The last two axes are swapped: neither of the kernels' layouts, but for rank 3.
    Swapped,
}

#[derive(Debug, Clone)]
struct Case {
    dims: Vec<usize>,
    strides: Strides,
    dtype: DType,
    epsilon: f64,
    mean: f64,
    /// Which of x, gamma, beta, mean and variance want a gradient.
    wanted: [bool; 5],
    seed: u64,
}

impl Arbitrary for Case {
    fn arbitrary(g: &mut Gen) -> Self {
        let below = |g: &mut Gen, n: u64| (u64::arbitrary(g) % n) as usize;
        let mut dims = vec![2 + below(g, 6), 1 + below(g, 20)];
        dims.extend((0..below(g, 4)).map(|_| 1 + below(g, 9)).collect::<Vec<_>>());
        let strides = [Strides::Contiguous, Strides::ChannelsLast, Strides::Offset, Strides::Swapped];
        Self {
            dims,
            strides: *g.choose(&strides).unwrap(),
            dtype: *g.choose(&[DType::F32, DType::F64]).unwrap(),
            epsilon: *g.choose(&[1e-5, 1e-3, 0.1]).unwrap(),
            mean: *g.choose(&[0., 1., -10.]).unwrap(),
            wanted: [0; 5].map(|_| below(g, 4) != 0),
            seed: u64::arbitrary(g),
        }
    }
}

fn random<const D: usize>(
    rng: &mut Xoshiro256PlusPlus,
    (low, high): (f64, f64),
    dims: &[usize],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    // The same numbers in f64 as in f32.
    let values = (0..dims.iter().product()).map(|_| f64::from(rng.random_range(low..high) as f32));
    let values: Vec<f64> = values.collect();
    Tensor::from_data(TensorData::new(values, dims), (device, dtype))
}

impl Case {
    /// A leaf, and a view of it with the case's dimensions and strides.
    fn x<const D: usize>(
        &self,
        rng: &mut Xoshiro256PlusPlus,
        dtype: DType,
        device: &Device,
    ) -> (Tensor<D>, Tensor<D>) {
        let mut dims = self.dims.clone();
        let back: [usize; D] = match self.strides {
            Strides::ChannelsLast => {
                dims.remove(1);
                dims.push(self.dims[1]);
                std::array::from_fn(|axis| match axis {
                    0 => 0,
                    1 => D - 1,
                    axis => axis - 1,
                })
            }
            Strides::Swapped => {
                dims.swap(D - 2, D - 1);
                std::array::from_fn(|axis| {
                    if axis == D - 2 {
                        D - 1
                    } else if axis == D - 1 {
                        D - 2
                    } else {
                        axis
                    }
                })
            }
            Strides::Offset => {
                dims[0] *= 2;
                std::array::from_fn(|axis| axis)
            }
            Strides::Contiguous => std::array::from_fn(|axis| axis),
        };
        let range = (self.mean - 2., self.mean + 2.);
        let leaf = random::<D>(rng, range, &dims, dtype, device);
        let leaf = if self.wanted[0] { leaf.require_grad() } else { leaf };
        let view = match self.strides {
            Strides::Contiguous => leaf.clone(),
            Strides::Offset => leaf.clone().narrow(0, self.dims[0], self.dims[0]),
            _ => leaf.clone().permute(back),
        };
        (leaf, view)
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.try_into_vec_as::<f64>().unwrap()
}

/// Output, statistics and gradients by name.
type Results = Vec<(&'static str, Vec<f64>)>;

fn results<const D: usize>(case: &Case, ours: bool, train: bool, dtype: DType) -> Results {
    let device = Device::default().autodiff();
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(case.seed);
    let (leaf, x) = case.x::<D>(rng, dtype, &device);
    let mut parameters = Vec::new();
    for (wanted, range) in case.wanted[1..].iter().zip([(-2., 2.), (-2., 2.), (-1., 1.), (0.5, 2.)]) {
        let parameter = random::<1>(rng, range, &case.dims[1..2], dtype, &device);
        parameters.push(if *wanted { parameter.require_grad() } else { parameter });
    }
    let dy = random::<D>(rng, (-1., 1.), &case.dims, dtype, &device);
    let [gamma, beta, mean, variance] = [0, 1, 2, 3].map(|i| parameters[i].clone());
    let mut results = Vec::new();
    let y = if train {
        let trained = if ours {
            batch_norm_train(x, gamma, beta, case.epsilon)
        } else {
            module::batch_norm_train(x, gamma, beta, case.epsilon)
        };
        results.push(("mean", values(trained.mean)));
        results.push(("variance", values(trained.variance)));
        trained.output
    } else if ours {
        batch_norm(x, gamma, beta, mean, variance, case.epsilon)
    } else {
        module::batch_norm(x, gamma, beta, mean, variance, case.epsilon)
    };
    assert_eq!(y.dims()[..], case.dims);
    results.push(("y", values(y.clone())));
    let tracked = if train { &case.wanted[..3] } else { &case.wanted };
    if tracked.contains(&true) {
        let gradients = (y * dy).sum().backward();
        let of_x = leaf.grad(&gradients).map(values);
        let names = ["dx", "dgamma", "dbeta", "dmean", "dvariance"];
        let of_parameters = parameters.iter().map(|parameter| parameter.grad(&gradients).map(values));
        for (name, gradient) in names.into_iter().zip([of_x].into_iter().chain(of_parameters)) {
            results.extend(gradient.map(|gradient| (name, gradient)));
        }
    }
    results
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    // A NaN is larger than anything.
    values.into_iter().map(f64::abs).fold(0., |most, value| if value <= most { most } else { value })
}

fn compare<const D: usize>(case: &Case, train: bool) {
    let ours = results::<D>(case, true, train, case.dtype);
    let single = case.dtype == DType::F32;
    // burn's in the same type, and, as a closer look at ours, burn's in f64.
    for (dtype, tolerance) in
        [(case.dtype, if single { 1e-3 } else { 1e-9 }), (DType::F64, if single { 5e-6 } else { 1e-9 })]
    {
        let theirs = results::<D>(case, false, train, dtype);
        assert_eq!(ours.len(), theirs.len());
        for ((name, ours), (their_name, theirs)) in ours.iter().zip(&theirs) {
            assert_eq!((name, ours.len()), (their_name, theirs.len()));
            // A difference of nearly equal numbers, as dx is, is as wrong as they are: 1 / sqrt(eps) bounds invstd.
            let scale =
                if *name == "dx" { 2. / case.epsilon.sqrt() } else { 1. + largest(theirs.iter().copied()) };
            let error = largest(ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs));
            assert!(
                error <= tolerance * scale,
                "{name}: {error:e} of {scale:e}, {case:?}, training: {train}"
            );
        }
    }
}

fn agrees(case: Case, train: bool) -> bool {
    match case.dims.len() {
        2 => compare::<2>(&case, train),
        3 => compare::<3>(&case, train),
        4 => compare::<4>(&case, train),
        _ => compare::<5>(&case, train),
    }
    true
}

#[test]
fn training_agrees_with_burn() {
    QuickCheck::new().tests(300).quickcheck((|case| agrees(case, true)) as fn(Case) -> bool);
}

#[test]
fn inference_agrees_with_burn() {
    QuickCheck::new().tests(300).quickcheck((|case| agrees(case, false)) as fn(Case) -> bool);
}

/// Output, gradients and running statistics of the module over some steps, and what it infers then.
#[test]
fn the_module_agrees_with_burns() {
    let run = |ours: bool| -> Vec<Vec<f64>> {
        let device = Device::default().autodiff();
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(1);
        let random = |rng: &mut _, range, dims: &[usize]| random::<4>(rng, range, dims, DType::F32, &device);
        let config = burn::nn::BatchNormConfig::new(5).with_momentum(0.3).with_epsilon(1e-4);
        let mut burns = config.init(&device);
        burns.gamma = Param::from_data([1., -2., 0.5, 3., 1.5], &device);
        burns.beta = Param::from_data([0., 1., -1., 2., 0.25], &device);
        let mine = BatchNorm::from(burns.clone());
        let mut out = Vec::new();
        for _ in 0..3 {
            let x = random(rng, (-1., 5.), &[6, 5, 4, 3]).require_grad();
            let dy = random(rng, (-1., 1.), &[6, 5, 4, 3]);
            let y = if ours { mine.forward(x.clone()) } else { burns.forward(x.clone()) };
            let gradients = (y.clone() * dy).sum().backward();
            let norm = if ours { burn::nn::BatchNorm::from(mine.clone()) } else { burns.clone() };
            out.extend([values(y), values(x.grad(&gradients).unwrap())]);
            out.extend([&norm.gamma, &norm.beta].map(|param| values(param.val().grad(&gradients).unwrap())));
            out.extend([&norm.running_mean, &norm.running_var].map(|state| values(state.value_sync())));
        }
        let x = random(rng, (-1., 5.), &[6, 5, 4, 3]).inner();
        let y = if ours { mine.valid().forward(x) } else { burns.valid().forward(x) };
        out.push(values(y));
        out
    };
    let (ours, theirs) = (run(true), run(false));
    assert_eq!(ours.len(), theirs.len());
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let error = largest(ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs));
        assert!(error < 1e-4, "{step}: {error:e}");
    }
}

/// burn's module writes a record, ours reads it, and the other way round.
#[test]
fn records_are_burns() {
    let device = Device::default();
    let mut burns = burn::nn::BatchNormConfig::new(3).init(&device);
    burns.gamma = Param::from_data([1., -2., 0.5], &device);
    burns.beta = Param::from_data([0., 1., -1.], &device);
    burns.running_mean.update(Tensor::from_floats([4., 5., 6.], &device));
    burns.running_var.update(Tensor::from_floats([7., 8., 9.], &device));
    let ours = BatchNormConfig::new(3).init(&device).load_record(burns.clone().into_record());
    let again = burn::nn::BatchNormConfig::new(3).init(&device).load_record(ours.clone().into_record());
    let x = Tensor::<2>::from_floats([[1., 2., 3.], [-4., 5., 6.]], &device);
    let expected = values(burns.forward(x.clone()));
    for y in [ours.forward(x.clone()), again.forward(x)] {
        assert!(largest(values(y).iter().zip(&expected).map(|(y, expected)| y - expected)) < 1e-6);
    }
}

#[test]
fn channels_last_stays_channels_last() {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(2);
    let device = Device::default();
    let nhwc = random::<4>(rng, (-1., 3.), &[4, 6, 7, 5], DType::F32, &device);
    let vector = |value: f32| Tensor::<1>::full([5], value, &device);
    let view = nhwc.permute([0, 3, 1, 2]);
    let contiguous = Tensor::<4>::from_data(view.clone().into_data(), &device);
    let last = batch_norm_train(view, vector(2.), vector(1.), 1e-5);
    let first = batch_norm_train(contiguous, vector(2.), vector(1.), 1e-5);
    let primitive = last.output.clone().try_into_primitive::<Flex>().unwrap();
    assert!(!primitive.is_contiguous() && primitive.layout().permute(&[0, 2, 3, 1]).is_contiguous());
    // The same bits in both layouts.
    assert_eq!(values(last.output), values(first.output));
    assert_eq!(values(last.variance), values(first.variance));
}

/// A tensor that nobody else holds is written over, one that somebody holds is not.
#[test]
fn in_place_only_where_nobody_sees() {
    let device = Device::default();
    let vector = |value: f32| Tensor::<1>::full([2], value, &device);
    let infer = |x| batch_norm(x, vector(1.), vector(0.), vector(1.), vector(1.), 0.);
    let train = |x| batch_norm_train(x, vector(1.), vector(0.), 0.).output;
    let numbers = [[1., 4.], [3., 8.]];
    let make = || Tensor::<2>::from_data(TensorData::from(numbers), &device);
    let address = |x: &Tensor<2>| x.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr() as usize;
    for run in [&infer as &dyn Fn(_) -> _, &train] {
        let x = make();
        let (before, kept) = (address(&x), x.clone());
        let y = run(x);
        assert_ne!(before, address(&y));
        assert_eq!(values(kept), [1., 4., 3., 8.]);

        let x = make();
        let before = address(&x);
        let in_place = run(x);
        assert_eq!(before, address(&in_place));
        assert_eq!(values(in_place), values(y));
    }
}

/// What the kernels do not do is burn's.
#[test]
fn the_rest_is_burns() {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(3);
    let device = Device::default();
    let x = random::<3>(rng, (-1., 3.), &[4, 2, 5], DType::F16, &device);
    let vector = |value: f64| Tensor::<1>::full([2], value, (&device, DType::F16));
    let ours = batch_norm_train(x.clone(), vector(2.), vector(1.), 1e-3);
    let theirs = module::batch_norm_train(x, vector(2.), vector(1.), 1e-3);
    assert_eq!(values(ours.output), values(theirs.output));
}

#[test]
fn no_elements_leave_the_running_statistics() {
    let device = Device::default().autodiff();
    let norm = BatchNormConfig::new(3).init(&device);
    let y = norm.forward(Tensor::<3>::zeros([0, 3, 2], &device));
    assert_eq!(y.dims(), [0, 3, 2]);
    assert_eq!(values(norm.running_mean.value_sync()), [0.; 3]);
    assert_eq!(values(norm.running_var.value_sync()), [1.; 3]);
}

#[test]
#[should_panic(expected = "gamma")]
fn parameters_of_another_length() {
    let device = Device::default();
    let vector = |len: usize| Tensor::<1>::ones([len], &device);
    batch_norm_train(Tensor::<2>::zeros([4, 3], &device), vector(2), vector(3), 1e-5);
}
