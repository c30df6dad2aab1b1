//! The operations and the module next to burn's own, on random shapes, strides, data and parameters.

use batchnorm_burn::{Activation, BatchNorm, BatchNormConfig, Renorm, batch_norm, batch_norm_train};
use burn::backend::Flex;
use burn::config::Config;
use burn::module::{Module, Param, RunningState};
use burn::tensor::{DType, Device, Tensor, TensorData, activation, module};
use half::{bf16, f16};
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
        let leaf = random::<D>(rng, range, &dims, self.dtype, device).cast(dtype);
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
    let dy = random::<D>(rng, (-1., 1.), &case.dims, case.dtype, &device).cast(dtype);
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

/// A case with what follows the normalization.
#[derive(Debug, Clone)]
struct Fused {
    case: Case,
    activation: Activation,
    /// The residual's strides, and whether it wants a gradient.
    residual: Option<(Strides, bool)>,
    train: bool,
}

impl Arbitrary for Fused {
    fn arbitrary(g: &mut Gen) -> Self {
        let slope = *g.choose(&[0.01, -0.3, 2.]).unwrap();
        let (lo, hi) = *g.choose(&[(0., 6.), (-0.5, 0.25), (f64::NEG_INFINITY, 1.)]).unwrap();
        let activations = [
            Activation::Identity,
            Activation::Relu,
            Activation::LeakyRelu { slope },
            Activation::Clip { lo, hi },
            Activation::HardSwish,
            Activation::Silu,
        ];
        let strides = [Strides::Contiguous, Strides::ChannelsLast, Strides::Offset, Strides::Swapped];
        let residual = (*g.choose(&strides).unwrap(), bool::arbitrary(g));
        Self {
            case: Case::arbitrary(g),
            activation: *g.choose(&activations).unwrap(),
            residual: *g.choose(&[Some(residual), Some(residual), None]).unwrap(),
            train: bool::arbitrary(g),
        }
    }
}

/// An activation by burn's operations, with the derivatives at its kinks that the kernels have.
fn activate<const D: usize>(activation: Activation, u: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::Identity => u,
        Activation::Relu => activation::relu(u),
        Activation::LeakyRelu { slope } => {
            u.clone().mask_where(u.clone().lower_equal_elem(0.), u.mul_scalar(slope))
        }
        Activation::Clip { lo, hi } => {
            let (low, high) = (u.clone().lower_equal_elem(lo), u.clone().greater_equal_elem(hi));
            u.mask_fill(low, lo).mask_fill(high, hi)
        }
        Activation::HardSwish => {
            let (low, high) = (u.clone().lower_equal_elem(-3.), u.clone().greater_equal_elem(3.));
            let between = u.clone().add_scalar(3.).div_scalar(6.).mul(u.clone());
            between.mask_fill(low, 0.).mask_where(high, u)
        }
        Activation::Silu => activation::silu(u),
        other => panic!("{other} is not tested"),
    }
}

/// The type of the parameters beside an input of this one.
fn parameters_dtype(input: DType) -> DType {
    if matches!(input, DType::BF16 | DType::F16) { DType::F32 } else { input }
}

/// Output, running statistics and gradients of this crate's module and what follows it, fused or apart, on the tensors of the case
/// as they are in a type.
fn fused_results<const D: usize>(fused: &Fused, together: bool, dtype: DType) -> Results {
    let Fused { case, activation, residual, train } = fused.clone();
    let device = Device::default().autodiff();
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(case.seed);
    let (leaf, x) = case.x::<D>(rng, dtype, &device);
    let vector =
        |rng: &mut _, range| random::<1>(rng, range, &case.dims[1..2], parameters_dtype(dtype), &device);
    let mut norm = BatchNormConfig::new(case.dims[1]).with_epsilon(case.epsilon).init(&device);
    norm.gamma = Param::from_tensor(vector(rng, (-2., 2.)));
    norm.beta = Param::from_tensor(vector(rng, (-2., 2.)));
    norm.running_mean = RunningState::new(vector(rng, (-1., 1.)));
    norm.running_var = RunningState::new(vector(rng, (0.5, 2.)));
    norm.training = Param::from_bool(train);
    let dy = random::<D>(rng, (-1., 1.), &case.dims, case.dtype, &device).cast(dtype);
    let z = residual.map(|(strides, wanted)| {
        let wanted = [wanted; 5];
        Case { strides, wanted, ..case.clone() }.x::<D>(rng, dtype, &device)
    });
    let (z_leaf, z) = z.unzip();
    let y = if together {
        let norm = norm.clone().with_activation(activation);
        match z {
            Some(z) => norm.forward_with_residual(x, z),
            None => norm.forward(x),
        }
    } else {
        let u = norm.forward(x);
        activate(activation, if let Some(z) = z { u.add(z) } else { u })
    };
    assert_eq!((&y.dims()[..], y.dtype()), (&case.dims[..], dtype));
    let mut results = vec![
        ("y", values(y.clone())),
        ("running mean", values(norm.running_mean.value_sync())),
        ("running variance", values(norm.running_var.value_sync())),
    ];
    let gradients = (y * dy).sum().backward();
    for (name, parameter) in [("dgamma", &norm.gamma), ("dbeta", &norm.beta)] {
        results.push((name, values(parameter.val().grad(&gradients).unwrap())));
    }
    for (name, leaf) in [("dx", Some(leaf)), ("dz", z_leaf)] {
        results.extend(leaf.and_then(|leaf| leaf.grad(&gradients)).map(|gradient| (name, values(gradient))));
    }
    results
}

fn compare_fused<const D: usize>(fused: &Fused) {
    let [together, apart] =
        [true, false].map(|together| fused_results::<D>(fused, together, fused.case.dtype));
    assert_eq!(together.len(), apart.len());
    // burn's sigmoid, and its derivative of a division by a number, are of f32 for f64 too.
    let tolerance = if fused.activation.is_piecewise_linear() { 0. } else { 1e-5 };
    for ((name, together), (other, apart)) in together.iter().zip(&apart) {
        assert_eq!((name, together.len()), (other, apart.len()));
        let scale = if *name == "dx" { 2. / fused.case.epsilon.sqrt() } else { 1. }
            * (1. + largest(apart.iter().copied()));
        let error = largest(together.iter().zip(apart).map(|(together, apart)| together - apart));
        assert!(error <= tolerance * scale, "{name}: {error:e} of {scale:e}, {fused:?}");
    }
}

/// Fused is apart, to the bit: this crate's normalization, burn's addition, burn's activation, and their gradients. But for hard
/// swish and SiLU, whose roundings are burn's.
#[test]
fn fused_agrees_with_burns_operations() {
    fn holds(fused: Fused) -> bool {
        match fused.case.dims.len() {
            2 => compare_fused::<2>(&fused),
            3 => compare_fused::<3>(&fused),
            4 => compare_fused::<4>(&fused),
            _ => compare_fused::<5>(&fused),
        }
        true
    }
    QuickCheck::new().tests(600).quickcheck(holds as fn(Fused) -> bool);
}

/// A number of f32 rounded to 16 bits.
fn rounded(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => bf16::from_f32(value as f32).to_f64(),
        _ => f16::from_f32(value as f32).to_f64(),
    }
}

/// Of an x of 16-bit numbers, y and the gradients are those of f32, each rounded once; what is per channel is the same.
fn compare_half<const D: usize>(fused: &Fused, dtype: DType) {
    let fused = Fused { case: Case { dtype, ..fused.case.clone() }, ..fused.clone() };
    let (halves, wide) =
        (fused_results::<D>(&fused, true, dtype), fused_results::<D>(&fused, true, DType::F32));
    assert_eq!(halves.len(), wide.len());
    for ((name, half), (_, wide)) in halves.iter().zip(&wide) {
        let of_x = matches!(*name, "y" | "dx" | "dz");
        let round = |value: &f64| if of_x { rounded(*value, dtype) } else { *value }.to_bits();
        let expected: Vec<u64> = wide.iter().map(round).collect();
        let got: Vec<u64> = half.iter().map(|value| value.to_bits()).collect();
        assert!(got == expected, "{name}: {half:?} of {dtype:?}, f32 gives {wide:?}, {fused:?}");
    }
}

#[test]
fn bf16_and_f16_are_f32_rounded_once() {
    fn holds(fused: Fused) -> bool {
        // Hard swish and SiLU behind a residual are burn's operations.
        if fused.residual.is_some() && !fused.activation.is_piecewise_linear() {
            return true;
        }
        for dtype in [DType::BF16, DType::F16] {
            match fused.case.dims.len() {
                2 => compare_half::<2>(&fused, dtype),
                3 => compare_half::<3>(&fused, dtype),
                4 => compare_half::<4>(&fused, dtype),
                _ => compare_half::<5>(&fused, dtype),
            }
        }
        true
    }
    QuickCheck::new().tests(400).quickcheck(holds as fn(Fused) -> bool);
}

/// Gradients of every parameter of the functions are f32; numbers out of range, none at all, and tensors written over.
#[test]
fn bf16_and_f16_by_the_functions() {
    let device = Device::default().autodiff();
    let vector = |value: f32| Tensor::<1>::full([1], value, &device).require_grad();
    for dtype in [DType::BF16, DType::F16] {
        let x = Tensor::<2>::from_floats([[1.], [-3.], [f32::INFINITY], [f32::NAN]], &device).cast(dtype);
        let parameters = [65_504., 0., 0., 1.].map(vector);
        let [gamma, beta, mean, variance] = parameters.clone();
        let y = batch_norm(x.clone(), gamma, beta, mean, variance, 0.);
        let gradients = y.clone().slice([0..2, 0..1]).sum().backward();
        let y = values(y);
        let expected = [65_504., -196_512.].map(|value| rounded(value, dtype));
        assert_eq!((&y[..2], y[2]), (&expected[..], f64::INFINITY), "{dtype:?}");
        assert!(y[3].is_nan());
        for (parameter, finite) in parameters.into_iter().zip([false, true, true, false]) {
            let gradient = parameter.grad(&gradients).unwrap();
            // The infinity and the NaN of x are in the sums over it, though y's gradient is 0 there.
            assert_eq!((gradient.dtype(), values(gradient)[0].is_finite()), (DType::F32, finite));
        }
        let empty = batch_norm_train(x.slice([0..0, 0..1]), vector(1.), vector(0.), 1e-5);
        assert_eq!(
            (empty.output.dims(), empty.output.dtype(), empty.mean.dtype()),
            ([0, 1], dtype, DType::F32)
        );

        let device = Device::default();
        let make = || Tensor::<2>::from_floats([[1., 4.], [3., 8.]], &device).cast(dtype);
        let address =
            |x: &Tensor<2>| x.clone().try_into_primitive::<Flex>().unwrap().bytes().as_ptr() as usize;
        let norm = BatchNormConfig::new(2).init(&device).with_activation(Activation::Relu);
        let (x, z) = (make(), make());
        let kept = x.clone();
        let place = address(&z);
        let over_z = norm.forward_with_residual(x, z);
        assert_eq!(address(&over_z), place);
        assert_eq!(values(kept), [1., 4., 3., 8.]);
        let x = make();
        let place = address(&x);
        let over_x = norm.forward_with_residual(x, make());
        assert_eq!(address(&over_x), place);
        assert_eq!(values(over_x), values(over_z));
    }
}

/// What a call panics with.
fn panics(call: impl FnOnce()) -> String {
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_err();
    payload.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// Which types go together is told before anything is computed, in builds of any kind.
#[test]
fn parameters_of_another_type_are_named() {
    use DType::{BF16, F16, F32, F64};
    for device in [Device::default(), Device::default().autodiff()] {
        for (input, parameters, other) in [
            (BF16, F32, BF16),
            (F16, F32, F16),
            (BF16, F32, F16),
            (F16, F32, F64),
            (F32, F32, F16),
            (F64, F64, F32),
        ] {
            let x = || Tensor::<3>::ones([4, 2, 5], (&device, input));
            let vector = |dtype| Tensor::<1>::ones([2], (&device, dtype));
            let text = |name| {
                format!(
                    "batch norm: {name} is of {other:?}, must be of {parameters:?} for an input of {input:?}"
                )
            };
            for (wrong, name) in ["gamma", "beta", "mean", "variance"].into_iter().enumerate() {
                let of = |place| vector(if place == wrong { other } else { parameters });
                let [gamma, beta, mean, variance] = [0, 1, 2, 3].map(of);
                let error = panics(|| {
                    batch_norm(x(), gamma.clone(), beta.clone(), mean, variance, 1e-5);
                });
                assert_eq!(error, text(name));
                if wrong < 2 {
                    let error = panics(|| {
                        batch_norm_train(x(), gamma.clone(), beta.clone(), 1e-5);
                    });
                    assert_eq!(error, text(name));
                    let mut norm = BatchNormConfig::new(2).init(&device);
                    (norm.gamma, norm.beta) = (Param::from_tensor(gamma), Param::from_tensor(beta));
                    norm.running_mean = RunningState::new(vector(parameters));
                    norm.running_var = RunningState::new(vector(parameters));
                    let error = panics(|| {
                        norm.forward_with_residual(x(), x());
                    });
                    assert_eq!(error, text(name));
                    assert_eq!(values(norm.running_mean.value_sync()), [1.; 2]);
                }
            }
            let mut norm = BatchNormConfig::new(2).init(&device);
            let ones = || vector(parameters);
            (norm.gamma, norm.beta) = (Param::from_tensor(ones()), Param::from_tensor(ones()));
            (norm.running_mean, norm.running_var) = (RunningState::new(ones()), RunningState::new(ones()));
            let z = x().cast(other);
            if other != input {
                let error = panics(|| {
                    norm.forward_with_residual(x(), z);
                });
                let text =
                    format!("batch norm: the residual is of {other:?}, must be of {input:?} as the input is");
                assert_eq!(error, text);
            }
        }
    }
}

/// The whole chain by burn alone: what a residual block of a model was before.
#[test]
fn a_residual_block_agrees_with_burns() {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(4);
    for device in [Device::default(), Device::default().autodiff()] {
        let [x, z] = [(); 2].map(|()| random::<4>(rng, (-1., 3.), &[6, 5, 4, 3], DType::F32, &device));
        let theirs = burn::nn::BatchNormConfig::new(5).init(&device);
        let ours = BatchNorm::from(theirs.clone()).with_activation(Activation::Relu);
        let y = values(ours.forward_with_residual(x.clone(), z.clone()));
        let expected = values(activation::relu(theirs.forward(x).add(z)));
        let error = largest(y.iter().zip(expected).map(|(y, expected)| y - expected));
        assert!(error < 1e-5, "{error:e}");
    }
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

    // Over the residual if somebody holds x only.
    let norm = BatchNormConfig::new(2).init(&device).with_activation(Activation::Relu);
    let (x, z) = (make(), make());
    let (of_x, of_z, kept) = (address(&x), address(&z), [x.clone(), z.clone()]);
    let y = norm.forward_with_residual(x, z);
    assert!(![of_x, of_z].contains(&address(&y)));
    let [x, z] = kept;
    assert_eq!([&x, &z].map(|tensor| values(tensor.clone())), [[1., 4., 3., 8.]; 2]);
    let over_z = norm.forward_with_residual(x.clone(), z);
    assert_eq!(address(&over_z), of_z);
    let over_x = norm.forward_with_residual(x, make());
    assert_eq!(address(&over_x), of_x);
    assert_eq!([values(over_z), values(over_x)], [values(y.clone()), values(y)]);
}

/// What the kernels do not do is burn's: hard swish and SiLU behind a residual.
#[test]
fn the_rest_is_burns() {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(3);
    let device = Device::default();
    for (activation, dtype) in [
        (Activation::HardSwish, DType::F32),
        (Activation::Silu, DType::F32),
        (Activation::HardSwish, DType::BF16),
        (Activation::Silu, DType::F16),
    ] {
        let [x, z] = [(); 2].map(|()| random::<3>(rng, (-1., 3.), &[4, 2, 5], dtype, &device));
        let bare = BatchNormConfig::new(2).init(&device);
        let y = bare.clone().with_activation(activation).forward_with_residual(x.clone(), z.clone());
        let expected = activate(activation, bare.forward(x).add(z));
        assert_eq!(y.dtype(), dtype);
        let error = largest(values(y).iter().zip(values(expected)).map(|(y, expected)| y - expected));
        assert!(error < if dtype == DType::F32 { 1e-6 } else { 1e-2 }, "{activation}: {error:e}");
    }
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

/// A module's activation is printed, and comes through a record of burn's.
#[test]
fn the_activation_stays_with_the_module() {
    let device = Device::default();
    let norm = BatchNormConfig::new(3).init(&device);
    assert!(!format!("{norm}").contains("activation"));
    let norm = norm.with_activation(Activation::Clip { lo: 0., hi: 6. });
    assert!(format!("{norm}").contains("activation: clip(0.0, 6.0)"), "{norm}");
    let burns = burn::nn::BatchNormConfig::new(3).init(&device);
    let loaded = norm.load_record(burns.into_record());
    assert_eq!(loaded.activation, Activation::Clip { lo: 0., hi: 6. });
}

#[test]
#[should_panic(expected = "the residual's shape must be the input's")]
fn a_residual_of_another_shape() {
    let device = Device::default();
    let zeros = |dims| Tensor::<3>::zeros(dims, &device);
    BatchNormConfig::new(3).init(&device).forward_with_residual(zeros([4, 3, 2]), zeros([4, 3, 1]));
}

#[test]
#[should_panic(expected = "slope")]
fn an_activation_of_numbers_that_are_none() {
    let device = Device::default();
    let norm = BatchNormConfig::new(3).init(&device);
    norm.with_activation(Activation::LeakyRelu { slope: f64::NAN })
        .forward(Tensor::<2>::zeros([4, 3], &device));
}

#[test]
#[should_panic(expected = "gamma")]
fn parameters_of_another_length() {
    let device = Device::default();
    let vector = |len: usize| Tensor::<1>::ones([len], &device);
    batch_norm_train(Tensor::<2>::zeros([4, 3], &device), vector(2), vector(3), 1e-5);
}

const LIMITS: Renorm = Renorm { r_max: 1.25, d_max: 0.5 };

/// Output, dx, dgamma and dbeta of a training step on running statistics that are not the batch's, then these.
fn step(norm: &BatchNorm, x: &Tensor<3>, dy: &Tensor<3>) -> Vec<Vec<f64>> {
    let x = x.clone().detach().require_grad();
    let y = norm.forward(x.clone());
    let gradients = (y.clone() * dy.clone()).sum().backward();
    let of_parameters = [&norm.gamma, &norm.beta].map(|parameter| parameter.val().grad(&gradients));
    let running = [&norm.running_mean, &norm.running_var].map(|state| values(state.value_sync()));
    let mut all = vec![values(y), values(x.grad(&gradients).unwrap())];
    all.extend(of_parameters.into_iter().flatten().map(values));
    all.extend(running);
    all
}

/// A module over three channels, with parameters and running statistics that are not those of the beginning.
fn started(device: &Device) -> BatchNorm {
    let mut norm = BatchNormConfig::new(3).init(device);
    norm.gamma = Param::from_data([1.5, -0.5, 2.], device);
    norm.beta = Param::from_data([0., 1., -1.], device);
    norm.running_mean.update(Tensor::from_floats([0.5, -1., 0.], device));
    norm.running_var.update(Tensor::from_floats([2., 0.5, 1.], device));
    norm
}

/// Within limits: to the bit what the layer of the library gives; limits that leave no choice are batch norm.
#[test]
fn renorm_is_that_of_the_library() {
    let (rng, device) = (&mut Xoshiro256PlusPlus::seed_from_u64(4), Device::default().autodiff());
    let dims = [5, 3, 7];
    let [x, dy] = [(); 2].map(|()| random::<3>(rng, (-1., 3.), &dims, DType::F32, &device));
    let numbers =
        |tensor: &Tensor<3>| values(tensor.clone()).into_iter().map(|value| value as f32).collect::<Vec<_>>();
    let (shape, mut layer) = (batchnorm::Shape::nchw(&dims).unwrap(), batchnorm::BatchNorm::<f32>::new(3));
    layer.gamma_mut().unwrap().copy_from_slice(&[1.5, -0.5, 2.]);
    layer.beta_mut().unwrap().copy_from_slice(&[0., 1., -1.]);
    layer.running_mean_mut().copy_from_slice(&[0.5, -1., 0.]);
    layer.running_var_mut().copy_from_slice(&[2., 0.5, 1.]);
    layer.set_renorm(Some(LIMITS)).unwrap();
    let [mut y, mut dx] = [(); 2].map(|()| numbers(&x));
    layer.forward(batchnorm::Mode::TrainingKeepRunning, &shape, &numbers(&x), &mut y).unwrap();
    layer.backward(&shape, &numbers(&x), &numbers(&dy), &mut dx).unwrap();
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let expected = [&y, &dx, layer.dgamma(), layer.dbeta()].map(wide);
    let plain = step(&started(&device), &x, &dy);
    let got = step(&started(&device).with_renorm(LIMITS), &x, &dy);
    assert_eq!(got[..4], expected);
    assert!(got[0] != plain[0] && got[4..] == plain[4..]);
    let none = Renorm { r_max: 1., d_max: 0. };
    assert_eq!(step(&started(&device).with_renorm(none), &x, &dy), plain);

    // dgamma where beta has no gradient, which is a part of it.
    let mut norm = started(&device).with_renorm(LIMITS);
    norm.beta = norm.beta.set_require_grad(false);
    let without = step(&norm, &x, &dy);
    assert_eq!((without.len(), &without[2]), (5, &got[2]));
    // Elsewhere than in training there is nothing to correct.
    let inference = |norm: BatchNorm| values(norm.valid().forward(x.clone().inner()));
    assert_eq!(inference(started(&device).with_renorm(LIMITS)), inference(started(&device)));
}

/// A channels-last view, an activation and a residual: as apart.
#[test]
fn renorm_with_what_follows() {
    let (rng, device) = (&mut Xoshiro256PlusPlus::seed_from_u64(5), Device::default().autodiff());
    let [x, z] = [(); 2].map(|()| random::<4>(rng, (-1., 3.), &[4, 2, 5, 3], DType::F32, &device));
    let [x, z] = [x, z].map(|tensor| tensor.permute([0, 3, 1, 2]));
    let run = |together: bool| {
        let (norm, z) = (started(&device).with_renorm(LIMITS), z.clone().detach().require_grad());
        let x = x.clone().detach().require_grad();
        let y = match together {
            true => norm.with_activation(Activation::Relu).forward_with_residual(x.clone(), z.clone()),
            false => activation::relu(norm.forward(x.clone()).add(z.clone())),
        };
        let gradients = y.clone().powi_scalar(2).sum().backward();
        [values(y), values(x.grad(&gradients).unwrap()), values(z.grad(&gradients).unwrap())]
    };
    assert_eq!(run(true), run(false));
}

/// A module with domains is a module for each, with one gamma and beta; records hold all of them.
#[test]
fn domains_are_modules_with_shared_parameters() {
    let (rng, device) = (&mut Xoshiro256PlusPlus::seed_from_u64(6), Device::default().autodiff());
    let config = BatchNormConfig::new(3).with_renorm(Some(LIMITS)).with_domains(Some(3));
    let norm = config.init(&device);
    let alone = [(); 3].map(|()| {
        let mut alone = BatchNormConfig::new(3).with_renorm(Some(LIMITS)).init(&device);
        (alone.gamma, alone.beta) = (norm.gamma.clone(), norm.beta.clone());
        alone
    });
    for domain in [1, 0, 2, 1, 1, 0] {
        let range = (-1., 1. + domain as f64);
        let [x, dy] = [(); 2].map(|()| random::<3>(rng, range, &[4, 3, 5], DType::F32, &device));
        let (got, expected) = (step(&norm.domain(domain), &x, &dy), step(&alone[domain], &x, &dy));
        assert_eq!((got.len(), got), (6, expected));
        let running =
            |norm: &BatchNorm| [&norm.running_mean, &norm.running_var].map(|s| values(s.value_sync()));
        for (domain, alone) in alone.iter().enumerate() {
            assert_eq!(running(&norm.domain(domain)), running(alone), "domain {domain}");
        }
    }
    assert!(format!("{norm}").contains("domains: 3"), "{norm}");

    // Records, evaluation, and what burn's module has of it: the first domain.
    let loaded = config.init(&device).load_record(norm.clone().into_record());
    let x = random::<3>(rng, (-1., 3.), &[4, 3, 5], DType::F32, &device).inner();
    for (domain, alone) in alone.iter().enumerate() {
        let expected = values(alone.valid().forward(x.clone()));
        for norm in [&norm, &loaded] {
            assert_eq!(values(norm.valid().domain(domain).forward(x.clone())), expected);
        }
    }
    let burns = burn::nn::BatchNorm::from(norm.valid());
    let error = values(burns.forward(x.clone())).into_iter().zip(values(alone[0].valid().forward(x)));
    assert!(largest(error.map(|(got, expected)| got - expected)) < 1e-5);
    let fewer = norm.with_domains(2);
    assert_eq!((fewer.domains.len(), fewer.clone().with_domains(0).domains.len()), (1, 0));
    // A new domain begins as the first is.
    assert_eq!(
        values(fewer.clone().with_domains(3).domain(2).running_mean.value()),
        values(fewer.running_mean.value_sync())
    );
}

/// A file of before says neither limits nor domains.
#[test]
fn a_configuration_of_burns_fields() {
    let old = br#"{"num_features":3,"epsilon":1e-5,"momentum":0.1}"#;
    let config = BatchNormConfig::load_binary(old).unwrap();
    assert_eq!((config.renorm, config.domains), (None, None));
    let config = config.with_renorm(Some(LIMITS)).with_domains(Some(2));
    let again = BatchNormConfig::load_binary(config.to_string().as_bytes()).unwrap();
    assert_eq!((again.renorm, again.domains), (Some(LIMITS), Some(2)));
    let norm = again.init(&Device::default());
    assert_eq!((norm.renorm, norm.domains.len()), (Some(LIMITS), 1));
}

#[test]
#[should_panic(expected = "r_max is 0.5")]
fn limits_that_are_none() {
    let device = Device::default().autodiff();
    let norm = BatchNormConfig::new(1).init(&device).with_renorm(Renorm { r_max: 0.5, d_max: 0. });
    norm.forward(Tensor::<2>::zeros([4, 1], &device));
}

#[test]
#[should_panic(expected = "domain is 2, must be below 2")]
fn a_domain_that_there_is_not() {
    BatchNormConfig::new(1).init(&Device::default()).with_domains(2).domain(2);
}
