//! The module next to candle's own, on random shapes, strides, data and parameters.

use batchnorm::reference;
use batchnorm_candle::{
    Activation, BatchNorm, BatchNormConfig, Renorm, batch_norm, batch_norm_with_domains, forward_inference,
    forward_training,
};
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Linear, ModuleT, Optimizer, SGD, VarBuilder, VarMap};
use quickcheck::{Arbitrary, Gen, QuickCheck};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// How the input lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strides {
    Contiguous,
    ChannelsLast,
    /// A part of a contiguous tensor, from the middle of its batch axis on: dense, at an offset.
    Offset,
    /// The last two axes are swapped, and a part is taken: neither of the kernels' layouts.
    Other,
}

#[derive(Debug, Clone)]
struct Case {
    dims: Vec<usize>,
    strides: Strides,
    dtype: DType,
    config: BatchNormConfig,
    mean: f64,
    seed: u64,
}

impl Arbitrary for Case {
    fn arbitrary(g: &mut Gen) -> Self {
        let below = |g: &mut Gen, n: u64| (u64::arbitrary(g) % n) as usize;
        let mut dims = vec![2 + below(g, 6), 1 + below(g, 20)];
        dims.extend((0..below(g, 4)).map(|_| 1 + below(g, 9)).collect::<Vec<_>>());
        let strides = [Strides::Contiguous, Strides::ChannelsLast, Strides::Offset, Strides::Other];
        Self {
            dims,
            strides: *g.choose(&strides).unwrap(),
            dtype: *g.choose(&[DType::F32, DType::F64]).unwrap(),
            config: BatchNormConfig {
                eps: *g.choose(&[1e-5, 1e-3, 0.1]).unwrap(),
                remove_mean: true,
                affine: bool::arbitrary(g),
                momentum: *g.choose(&[0., 0.1, 0.9, 1.]).unwrap(),
            },
            mean: *g.choose(&[0., 1., -10.]).unwrap(),
            seed: u64::arbitrary(g),
        }
    }
}

fn random(
    rng: &mut Xoshiro256PlusPlus,
    (low, high): (f64, f64),
    dims: &[usize],
    dtype: DType,
) -> Result<Tensor> {
    let values = (0..dims.iter().product()).map(|_| rng.random_range(low..high)).collect::<Vec<f64>>();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}

/// The type of the variables beside an input of this one.
fn variables_dtype(input: DType) -> DType {
    if matches!(input, DType::BF16 | DType::F16) { DType::F32 } else { input }
}

impl Case {
    fn x(&self, rng: &mut Xoshiro256PlusPlus) -> Result<Tensor> {
        let rank = self.dims.len();
        let range = (self.mean - 2., self.mean + 2.);
        let mut dims = self.dims.clone();
        match self.strides {
            Strides::Contiguous => random(rng, range, &dims, self.dtype),
            Strides::ChannelsLast => {
                dims.remove(1);
                dims.push(self.dims[1]);
                let back: Vec<usize> = (0..1).chain(rank - 1..rank).chain(1..rank - 1).collect();
                random(rng, range, &dims, self.dtype)?.permute(back)
            }
            Strides::Offset => {
                dims[0] *= 2;
                random(rng, range, &dims, self.dtype)?.narrow(0, self.dims[0], self.dims[0])
            }
            Strides::Other => {
                dims.swap(rank - 2, rank - 1);
                dims[rank - 1] += 1;
                let last = dims[rank - 1] - 1;
                random(rng, range, &dims, self.dtype)?
                    .narrow(rank - 1, 1, last)?
                    .transpose(rank - 2, rank - 1)
            }
        }
    }

    /// Each parameter by its name in a checkpoint.
    fn parameters(&self, rng: &mut Xoshiro256PlusPlus) -> Result<Vec<(&'static str, Tensor)>> {
        let mut parameters = Vec::new();
        for (name, range) in [
            ("running_mean", (-1., 1.)),
            ("running_var", (0.5, 2.)),
            ("weight", (-2., 2.)),
            ("bias", (-2., 2.)),
        ] {
            parameters.push((name, random(rng, range, &self.dims[1..2], variables_dtype(self.dtype))?));
        }
        if !self.config.affine {
            parameters.truncate(2);
        }
        Ok(parameters)
    }
}

/// A view of a variable that has these strides: `Var` makes contiguous copies.
fn view(root: &Var, strides: Strides) -> Result<Tensor> {
    let rank = root.rank();
    match strides {
        Strides::ChannelsLast => {
            let to: Vec<usize> = (0..1).chain(2..rank).chain(1..2).collect();
            let back: Vec<usize> = (0..1).chain(rank - 1..rank).chain(1..rank - 1).collect();
            root.permute(to)?.contiguous()?.permute(back)
        }
        Strides::Other => root.t()?.contiguous()?.t(),
        _ => Ok(root.as_tensor().clone()),
    }
}

/// What goes from x to y.
type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// A module's forward pass.
fn forward(module: impl ModuleT + 'static, train: bool) -> Result<Forward> {
    Ok(Box::new(move |x| module.forward_t(x, train)))
}

/// Output, running statistics and gradients of x, weight and bias (as far as there are any) and of a residual, in f64.
fn results(
    case: &Case,
    make: impl Fn(VarBuilder) -> Result<Forward>,
    residual: Option<&Var>,
    dtype: DType,
) -> Result<Vec<(&'static str, Tensor)>> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(case.seed);
    let root = Var::from_tensor(&case.x(rng)?.to_dtype(dtype)?)?;
    let x = view(&root, case.strides)?;
    let mut variables = VarMap::new();
    let of_variables = variables_dtype(dtype);
    let forward = make(VarBuilder::from_varmap(&variables, of_variables, &Device::Cpu))?;
    let parameters = case.parameters(rng)?;
    for (name, value) in &parameters {
        variables.set_one(name, value.to_dtype(of_variables)?)?;
    }
    let dy = random(rng, (-1., 1.), &case.dims, case.dtype)?.to_dtype(dtype)?;
    let y = forward(&x)?;
    assert_eq!((y.dims(), y.dtype()), (&case.dims[..], dtype));
    let gradients = (&y * dy)?.sum_all()?.backward()?;
    let variables = variables.data().lock().unwrap().clone();
    assert_eq!(variables.len(), parameters.len());
    let mut results = vec![
        ("y", y),
        ("running_mean", variables["running_mean"].as_tensor().clone()),
        ("running_var", variables["running_var"].as_tensor().clone()),
        ("dx", gradients.get(&root).unwrap().clone()),
    ];
    if case.config.affine {
        results.push(("dweight", gradients.get(&variables["weight"]).unwrap().clone()));
        results.push(("dbias", gradients.get(&variables["bias"]).unwrap().clone()));
    }
    if let Some(residual) = residual {
        results.push(("dz", gradients.get(residual).unwrap().clone()));
    }
    results.iter().map(|(name, value)| Ok((*name, value.to_dtype(DType::F64)?))).collect()
}

/// The largest magnitude.
fn largest(tensor: &Tensor) -> Result<f64> {
    tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()
}

fn agrees(case: &Case, train: bool) -> Result<()> {
    let (channels, config) = (case.dims[1], case.config);
    // A channel of one element is an error when training; `errors` looks at it.
    if train && case.dims.iter().product::<usize>() == channels {
        return Ok(());
    }
    let ours = results(case, |vb| forward(batch_norm(channels, config, vb)?, train), None, case.dtype)?;
    let theirs =
        |dtype| results(case, |vb| forward(candle_nn::batch_norm(channels, config, vb)?, train), None, dtype);
    // candle's in the same type, and, as a closer look at ours, candle's in f64.
    for (theirs, tolerance) in [
        (theirs(case.dtype)?, if case.dtype == DType::F32 { 1e-3 } else { 1e-9 }),
        (theirs(DType::F64)?, if case.dtype == DType::F32 { 5e-6 } else { 1e-9 }),
    ] {
        assert_eq!(ours.len(), theirs.len());
        for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            // A difference of nearly equal numbers, as dx is, is as wrong as they are: 1 / sqrt(eps) bounds invstd.
            let scale = if *name == "dx" { 2. / config.eps.sqrt() } else { 1. + largest(theirs)? };
            let error = largest(&(ours - theirs)?)?;
            assert!(
                error <= tolerance * scale,
                "{name}: {error:e} of {scale:e}, {case:?}, training: {train}"
            );
        }
    }
    Ok(())
}

#[test]
fn training_agrees_with_candle() {
    QuickCheck::new().tests(300).quickcheck((|case| agrees(&case, true).is_ok()) as fn(Case) -> bool);
}

#[test]
fn evaluation_agrees_with_candle() {
    QuickCheck::new().tests(300).quickcheck((|case| agrees(&case, false).is_ok()) as fn(Case) -> bool);
}

/// A case with what follows the normalization.
#[derive(Debug, Clone)]
struct Fused {
    case: Case,
    activation: Activation,
    /// The residual's strides, if there is one.
    residual: Option<Strides>,
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
        let strides = [Strides::Contiguous, Strides::ChannelsLast, Strides::Other].map(Some);
        Self {
            case: Case::arbitrary(g),
            activation: *g.choose(&activations).unwrap(),
            residual: *g.choose(&[&strides[..], &[None]].concat()).unwrap(),
            train: bool::arbitrary(g),
        }
    }
}

/// An activation by candle's operations, with the derivatives at its kinks that the kernels have.
fn activate(activation: Activation, u: &Tensor) -> Result<Tensor> {
    let constant = |value: f64| Tensor::full(value, u.dims(), &Device::Cpu)?.to_dtype(u.dtype());
    match activation {
        Activation::Identity => Ok(u.clone()),
        Activation::Relu => {
            let y = u.gt(0.)?.where_cond(u, &constant(0.)?)?;
            assert_eq!(largest(&(&y - u.relu()?)?.to_dtype(DType::F64)?)?, 0.);
            Ok(y)
        }
        Activation::LeakyRelu { slope } => u.gt(0.)?.where_cond(u, &(u * slope)?),
        Activation::Clip { lo, hi } => {
            u.le(lo)?.where_cond(&constant(lo)?, &u.ge(hi)?.where_cond(&constant(hi)?, u)?)
        }
        Activation::HardSwish => {
            let between = (u * ((u + 3.)? / 6.)?)?;
            u.ge(3.)?.where_cond(u, &u.gt(-3.)?.where_cond(&between, &constant(0.)?)?)
        }
        Activation::Silu => u.silu(),
        other => candle_core::bail!("{other} is not tested"),
    }
}

/// Fused is apart, to the bit: this crate's normalization, candle's addition, candle's activation, and their gradients. But for
/// hard swish and SiLU, whose roundings are candle's.
fn fused_is_apart(fused: &Fused) -> Result<()> {
    let Fused { case, activation, residual, train } = fused.clone();
    let (channels, config) = (case.dims[1], case.config);
    if train && case.dims.iter().product::<usize>() == channels {
        return Ok(());
    }
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(!case.seed);
    let root = Var::from_tensor(&random(rng, (-2., 2.), &case.dims, case.dtype)?)?;
    let z = residual.map(|strides| view(&root, strides)).transpose()?;
    let residual = z.as_ref().map(|_| &root);
    let together = |vb: VarBuilder| -> Result<Forward> {
        let (norm, z) = (batch_norm(channels, config, vb)?.with_activation(activation), z.clone());
        Ok(Box::new(move |x| match &z {
            Some(z) => norm.forward_t_with_residual(x, z, train),
            None => norm.forward_t(x, train),
        }))
    };
    let apart = |vb: VarBuilder| -> Result<Forward> {
        let (norm, z) = (batch_norm(channels, config, vb)?, z.clone());
        Ok(Box::new(move |x| {
            let u = norm.forward_t(x, train)?;
            activate(activation, &z.as_ref().map_or(Ok(u.clone()), |z| u + z)?)
        }))
    };
    let together = results(&case, together, residual, case.dtype)?;
    let apart = results(&case, apart, residual, case.dtype)?;
    assert_eq!(together.len(), apart.len());
    let tolerance = match (activation.is_piecewise_linear(), case.dtype) {
        (true, _) => 0.,
        (false, DType::F32) => 1e-5,
        (false, _) => 1e-13,
    };
    for ((name, together), (_, apart)) in together.iter().zip(&apart) {
        let scale = if *name == "dx" { 2. / config.eps.sqrt() } else { 1. } * (1. + largest(apart)?);
        let error = largest(&(together - apart)?)?;
        assert!(error <= tolerance * scale, "{name}: {error:e} of {scale:e}, {fused:?}");
    }
    Ok(())
}

#[test]
fn fused_agrees_with_candles_operations() {
    QuickCheck::new().tests(600).quickcheck((|fused| fused_is_apart(&fused).is_ok()) as fn(Fused) -> bool);
}

/// y and the gradient of a residual where the activations' formulas end, as the reference has them: fused, by candle's operations
/// behind the kernels (hard swish behind a residual), and behind candle's own normalization (without its mean).
#[test]
fn derivatives_where_formulas_end() -> Result<()> {
    let ends = [-3.0f64, -0.5, 0., 0.25, 3., 6.];
    let beside =
        |u: f64| [u.next_down(), u, u.next_up(), (u as f32).next_down() as f64, (u as f32).next_up() as f64];
    let u = [f64::NEG_INFINITY, -1.5, -0., f64::INFINITY, f64::NAN]
        .into_iter()
        .chain(ends.into_iter().flat_map(beside));
    let u = u.collect::<Vec<f64>>();
    let activations = [
        Activation::Identity,
        Activation::Relu,
        Activation::LeakyRelu { slope: -0.3 },
        Activation::Clip { lo: -0.5, hi: 0.25 },
        Activation::Clip { lo: f64::NEG_INFINITY, hi: 6. },
        Activation::Clip { lo: 0., hi: f64::INFINITY },
        Activation::HardSwish,
    ];
    for (activation, remove_mean) in activations.into_iter().flat_map(|of| [(of, true), (of, false)]) {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
            let config = BatchNormConfig { remove_mean, ..BatchNormConfig::default() };
            let variables = VarMap::new();
            let norm = batch_norm(1, config, VarBuilder::from_varmap(&variables, dtype, &Device::Cpu))?;
            let norm = norm.with_activation(activation);
            let z = Var::from_tensor(
                &Tensor::new(&u[..], &Device::Cpu)?.reshape((u.len(), 1))?.to_dtype(dtype)?,
            )?;
            let y = norm.forward_t_with_residual(&z.zeros_like()?, &z, true)?;
            let dz = y.sum_all()?.backward()?.get(&z).unwrap().clone();
            let [u, y, dz] = [&z.as_tensor().clone(), &y, &dz]
                .map(|of| elements(&of.to_dtype(DType::F64).unwrap()).unwrap());
            for (i, &u) in u.iter().enumerate() {
                let expected =
                    [reference::activate(activation, u), reference::activation_gradient(activation, u, 1.)];
                for (name, got, expected) in [("y", y[i], expected[0]), ("dz", dz[i], expected[1])] {
                    // Of a NaN, what is behind it is any number.
                    let near = got == expected || (got - expected).abs() <= tolerance * (1. + expected.abs());
                    assert!(
                        near || u.is_nan() && (name == "dz" || got.is_nan()),
                        "{name} of {u:e}: {got:e}, expected {expected:e}, {activation} of {dtype:?}, remove_mean: {remove_mean}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// A tensor of f64 that holds the numbers of f32, each rounded to another type.
fn rounded(wide: &Tensor, dtype: DType) -> Result<Tensor> {
    wide.to_dtype(DType::F32)?.to_dtype(dtype)?.to_dtype(DType::F64)
}

fn elements(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.flatten_all()?.to_vec1()
}

/// Of an x of 16-bit numbers, y and the gradients are those of f32, each rounded once; what is per channel is the same.
fn half_is_rounded_once(fused: &Fused, dtype: DType) -> Result<()> {
    let Fused { case, activation, residual, train } = fused.clone();
    let (case, channels, config) = (Case { dtype, ..case.clone() }, case.dims[1], case.config);
    let single = train && case.dims.iter().product::<usize>() == channels;
    // Hard swish and SiLU behind a residual are candle's operations.
    if single || (residual.is_some() && !activation.is_piecewise_linear()) {
        return Ok(());
    }
    let run = |dtype| {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(!case.seed);
        let root = Var::from_tensor(&random(rng, (-2., 2.), &case.dims, case.dtype)?.to_dtype(dtype)?)?;
        let z = residual.map(|strides| view(&root, strides)).transpose()?;
        let residual = z.as_ref().map(|_| &root);
        let make = |vb: VarBuilder| -> Result<Forward> {
            let (norm, z) = (batch_norm(channels, config, vb)?.with_activation(activation), z.clone());
            Ok(Box::new(move |x| match &z {
                Some(z) => norm.forward_t_with_residual(x, z, train),
                None => norm.forward_t(x, train),
            }))
        };
        results(&case, make, residual, dtype)
    };
    let (halves, wide) = (run(dtype)?, run(DType::F32)?);
    assert_eq!(halves.len(), wide.len());
    for ((name, half), (_, wide)) in halves.iter().zip(&wide) {
        let of_x = matches!(*name, "y" | "dx" | "dz");
        let expected = if of_x { rounded(wide, dtype)? } else { wide.clone() };
        let (got, expected) = (elements(half)?, elements(&expected)?);
        assert_eq!(got, expected, "{name} of {dtype:?}, {fused:?}");
        if *name == "y" {
            // candle adds gradients to zeros, in which the sign of a zero is lost; that of y is not.
            let signs = |values: &[f64]| values.iter().map(|y| y.is_sign_negative()).collect::<Vec<_>>();
            assert_eq!(signs(&got), signs(&expected), "{dtype:?}, {fused:?}");
        }
    }
    Ok(())
}

#[test]
fn bf16_and_f16_are_f32_rounded_once() {
    fn holds(fused: Fused) -> bool {
        [DType::BF16, DType::F16].into_iter().all(|dtype| half_is_rounded_once(&fused, dtype).is_ok())
    }
    QuickCheck::new().tests(400).quickcheck(holds as fn(Fused) -> bool);
}

/// By the operations without a module: numbers that leave the range, that are none, and a large tensor that several tasks share.
#[test]
fn bf16_and_f16_out_of_range() -> Result<()> {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let vector = |value: f32| Tensor::new(&[value], &Device::Cpu);
    let x = Tensor::new(&[[1f32], [-3.], [1e-7], [-0.], [inf], [nan]], &Device::Cpu)?;
    let gamma = vector(65_504.)?;
    for (dtype, expected) in [
        // 3 * 65504 is beyond f16; of bf16 all is in range, rounded to 8 bits.
        (DType::F16, [65_504., -inf, 65_504. * 2f32.powi(-23), -0., inf, nan]),
        (DType::BF16, [65_536., -196_608., 0.006_561_28, -0., inf, nan]),
    ] {
        let x = x.to_dtype(dtype)?;
        let beta = vector(-0.)?;
        let y = forward_inference(&x, &vector(0.)?, &vector(1.)?, Some((&gamma, &beta)), 0.)?;
        assert_eq!(y.dtype(), dtype);
        let y = y.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        for (y, expected) in y.iter().zip(expected) {
            let expected = Tensor::new(expected, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)?;
            let expected = expected.to_scalar::<f32>()?;
            let same = y == &expected && y.is_sign_negative() == expected.is_sign_negative();
            assert!(same || y.is_nan() && expected.is_nan(), "{dtype:?}: {y}, expected {expected}");
        }
        // Both the batch's NaN and no elements at all.
        let (y, states) = forward_training(&x, None, 1e-5)?;
        assert!(y.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.iter().all(|y| y.is_nan()));
        assert!(states[0].mean().is_nan());
        let (y, states) = forward_training(&x.narrow(0, 0, 0)?, None, 1e-5)?;
        assert_eq!((y.dims(), y.dtype(), states[0].count()), (&[0, 1][..], dtype, 0));
    }
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(8);
    for dtype in [DType::BF16, DType::F16] {
        let x = random(rng, (-1., 3.), &[16, 40, 30, 30], dtype)?;
        let wide = x.to_dtype(DType::F32)?;
        let ((y, states), (wide, of_wide)) =
            (forward_training(&x, None, 1e-5)?, forward_training(&wide, None, 1e-5)?);
        assert_eq!(states, of_wide);
        let expected = rounded(&wide.to_dtype(DType::F64)?, dtype)?;
        assert!(elements(&y.to_dtype(DType::F64)?)? == elements(&expected)?);
    }
    Ok(())
}

/// Which types go together is told before anything is computed.
#[test]
fn variables_of_another_type_are_named() -> Result<()> {
    use DType::{BF16, F16, F32, F64};
    let tensor = |dims: &[usize], dtype| Tensor::ones(dims, dtype, &Device::Cpu);
    for (input, variables, other) in [
        (BF16, F32, BF16),
        (F16, F32, F16),
        (BF16, F32, F16),
        (F16, F32, F64),
        (F32, F32, F16),
        (F64, F64, F32),
    ] {
        let x = (tensor(&[4, 3, 2], input)? * 2.)?;
        let text =
            |name| format!("{name} is of {other:?}, must be of {variables:?} for an input of {input:?}");
        for (wrong, name) in ["running_mean", "running_var", "weight", "bias"].into_iter().enumerate() {
            let of = |place| tensor(&[3], if place == wrong { other } else { variables });
            let norm = BatchNorm::new(3, of(0)?, of(1)?, of(2)?, of(3)?, 1e-5)?;
            for train in [true, false] {
                let error = norm.forward_t(&x, train).unwrap_err().to_string();
                assert!(error.contains(&text(name)), "{error}");
                let error = norm.forward_t_with_residual(&x, &x, train).unwrap_err().to_string();
                assert!(error.contains(&text(name)), "{error}");
            }
            let running = norm.running_mean().to_dtype(F32)?.to_vec1::<f32>()?;
            assert_eq!(running, [1.; 3], "{name}");
        }
        let (wrong, right) = (tensor(&[3], other)?, tensor(&[3], variables)?);
        for (gamma, beta, name) in [(&wrong, &right, "gamma"), (&right, &wrong, "beta")] {
            let error = forward_training(&x, Some((gamma, beta)), 1e-5).unwrap_err().to_string();
            assert!(error.contains(&text(name)), "{error}");
            let error = forward_inference(&x, &right, &right, Some((gamma, beta)), 1e-5).unwrap_err();
            assert!(error.to_string().contains(&text(name)), "{error}");
        }
        for (mean, var, name) in [(&wrong, &right, "mean"), (&right, &wrong, "var")] {
            let error = forward_inference(&x, mean, var, None, 1e-5).unwrap_err().to_string();
            assert!(error.contains(&text(name)), "{error}");
        }
        let norm = BatchNorm::new_no_bias(3, right.clone(), right.clone(), 1e-5)?;
        if other != input {
            let error = norm.forward_t_with_residual(&x, &x.to_dtype(other)?, true).unwrap_err().to_string();
            assert!(error.contains("must be as the input"), "{error}");
        }
    }
    Ok(())
}

/// A bf16 model's checkpoint is read as f32; a step trains weights of f32 below a loss of f32.
#[test]
fn a_bf16_model_trains_variables_of_f32() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(9);
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::BF16, &Device::Cpu);
    let norm = batch_norm(5, 1e-5, vb.to_dtype(DType::F32))?.with_activation(Activation::Relu);
    assert!(variables.all_vars().iter().all(|variable| variable.dtype() == DType::F32));
    let x = random(rng, (-1., 3.), &[8, 5, 6], DType::BF16)?;
    let mut optimizer = SGD::new(variables.all_vars(), 0.1)?;
    let mut losses = Vec::new();
    for _ in 0..20 {
        let y = norm.forward_t_with_residual(&x, &x, true)?.to_dtype(DType::F32)?;
        let loss = (y - 1.)?.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
    }
    assert!(losses[19] < 0.9 * losses[0], "{losses:?}");
    Ok(())
}

/// The whole chain by candle alone: what a residual block of a model was before.
#[test]
fn a_residual_block_agrees_with_candles() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(6);
    let [x, z] = [(); 2].map(|()| random(rng, (-1., 3.), &[6, 5, 4, 3], DType::F64));
    let (x, z) = (x?, z?);
    let vb = || VarBuilder::from_varmap(&VarMap::new(), DType::F64, &Device::Cpu);
    let ours = batch_norm(5, 1e-5, vb())?.with_activation(Activation::Relu);
    let theirs = candle_nn::batch_norm(5, 1e-5, vb())?;
    for train in [true, false] {
        let y = ours.forward_t_with_residual(&x, &z, train)?;
        let expected = (theirs.forward_t(&x, train)? + &z)?.relu()?;
        assert!(largest(&(y - expected)?)? < 1e-12, "training: {train}");
    }
    Ok(())
}

#[test]
fn channels_last_stays_channels_last() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(1);
    let nhwc = random(rng, (-1., 3.), &[4, 6, 7, 5], DType::F32)?;
    let view = nhwc.permute((0, 3, 1, 2))?;
    let (y, states) = forward_training(&view, None, 1e-5)?;
    let (expected, expected_states) = forward_training(&view.contiguous()?, None, 1e-5)?;
    assert!(y.permute((0, 2, 3, 1))?.is_contiguous());
    assert!(expected.is_contiguous());
    // The same bits in both layouts.
    assert_eq!(states, expected_states);
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);

    // And with a residual of the other layout.
    let zeros = || Tensor::zeros(5, DType::F32, &Device::Cpu);
    let norm = BatchNorm::new_no_bias(5, zeros()?, zeros()?, 1e-5)?.with_activation(Activation::Relu);
    let y = norm.forward_t_with_residual(&view, &view.contiguous()?, true)?;
    let expected = norm.forward_t_with_residual(&view.contiguous()?, &view, true)?;
    assert!(y.permute((0, 2, 3, 1))?.is_contiguous());
    assert!(expected.is_contiguous());
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

/// candle's module writes a checkpoint, ours reads it, and the other way round.
#[test]
fn checkpoints_are_candles() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(2);
    let config = BatchNormConfig { momentum: 0.3, ..Default::default() };
    let x = random(rng, (-1., 3.), &[8, 5, 3], DType::F32)?;
    let file = std::env::temp_dir().join(format!("batchnorm-candle-{}.safetensors", std::process::id()));
    let make = |ours: bool, vb: VarBuilder| -> Result<Box<dyn ModuleT>> {
        Ok(if ours {
            Box::new(batch_norm(5, config, vb.pp("layers.0"))?)
        } else {
            Box::new(candle_nn::batch_norm(5, config, vb.pp("layers.0"))?)
        })
    };
    for writer in [true, false] {
        let written = VarMap::new();
        let first = make(writer, VarBuilder::from_varmap(&written, DType::F32, &Device::Cpu))?;
        // So that no value is the one that a module starts with.
        for _ in 0..3 {
            let y = first.forward_t(&x, true)?;
            SGD::new(written.all_vars(), 0.01)?.backward_step(&y.sqr()?.sum_all()?)?;
        }
        written.save(&file)?;
        let mut read = VarMap::new();
        let second = make(!writer, VarBuilder::from_varmap(&read, DType::F32, &Device::Cpu))?;
        read.load(&file)?;
        let names = |variables: &VarMap| {
            let mut names: Vec<String> = variables.data().lock().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(names(&written), names(&read));
        assert_eq!(
            names(&read),
            ["bias", "running_mean", "running_var", "weight"].map(|name| format!("layers.0.{name}"))
        );
        let difference = (first.forward_t(&x, false)? - second.forward_t(&x, false)?)?;
        assert!(largest(&difference.to_dtype(DType::F64)?)? < 1e-5);
    }
    std::fs::remove_file(file)?;
    Ok(())
}

/// Twenty steps of two networks of equal weights come to the same losses.
#[test]
fn a_model_trains_alike() -> Result<()> {
    let train = |ours: bool| -> Result<Vec<f64>> {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(3);
        let variable = |value: Tensor| Var::from_tensor(&value);
        let weights = [
            variable(random(rng, (-0.5, 0.5), &[24, 12], DType::F64)?)?,
            variable(random(rng, (-0.5, 0.5), &[3, 24], DType::F64)?)?,
        ];
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F64, &Device::Cpu);
        let norm: Box<dyn ModuleT> = if ours {
            Box::new(batch_norm(24, 1e-5, vb)?)
        } else {
            Box::new(candle_nn::batch_norm(24, 1e-5, vb)?)
        };
        let [first, second] = weights.clone().map(|weights| Linear::new(weights.as_tensor().clone(), None));
        let mut optimizer = SGD::new([&weights[..], &variables.all_vars()].concat(), 0.1)?;
        let (x, goal) =
            (random(rng, (-1., 1.), &[40, 12], DType::F64)?, random(rng, (-1., 1.), &[40, 3], DType::F64)?);
        let mut losses = Vec::new();
        for _ in 0..20 {
            let y = norm.forward_t(&x.apply(&first)?, true)?.relu()?.apply(&second)?;
            let loss = (y - &goal)?.sqr()?.mean_all()?;
            optimizer.backward_step(&loss)?;
            losses.push(loss.to_scalar::<f64>()?);
        }
        Ok(losses)
    };
    let (ours, theirs) = (train(true)?, train(false)?);
    assert!(ours[19] < 0.6 * ours[0], "{ours:?}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() < 1e-9, "{ours} {theirs}");
    }
    Ok(())
}

/// What the kernels do not do is candle's.
#[test]
fn the_rest_is_candles() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(4);
    let config = BatchNormConfig { remove_mean: false, ..Default::default() };
    let bare = BatchNormConfig { affine: false, ..config };
    for (config, dtype) in
        [(config, DType::F32), (config, DType::F64), (bare, DType::BF16), (config, DType::BF16)]
    {
        let x = random(rng, (-1., 3.), &[6, 4, 5], dtype)?;
        let vb = || VarBuilder::zeros(variables_dtype(dtype), &Device::Cpu);
        let (ours, theirs) = (batch_norm(4, config, vb()), candle_nn::batch_norm(4, config, vb()));
        let (ours, theirs) = (ours?.forward_t(&x, true), theirs?.forward_t(&x, true));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                assert_eq!(largest(&(ours - theirs)?.to_dtype(DType::F64)?)?, 0.);
            }
            // candle multiplies bf16 by a weight of f32: an error of its own.
            (ours, theirs) => assert_eq!(ours.is_err(), theirs.is_err()),
        }
    }

    // What follows is, too, and hard swish and SiLU behind a residual in any case.
    let clip = Activation::Clip { lo: -0.5, hi: 0.75 };
    let all = [Activation::Relu, Activation::LeakyRelu { slope: 0.1 }, clip];
    let cases = all.map(|activation| (activation, config, DType::F32)).into_iter();
    let bf16 = all.map(|activation| (activation, bare, DType::BF16)).into_iter();
    let smooth = [DType::F32, DType::BF16].into_iter().flat_map(|dtype| {
        [Activation::HardSwish, Activation::Silu].map(|a| (a, BatchNormConfig::default(), dtype))
    });
    for (activation, config, dtype) in cases.chain(bf16).chain(smooth) {
        let [x, z] = [(); 2].map(|()| random(rng, (-1., 3.), &[6, 4, 5], dtype));
        let (x, z) = (x?, z?);
        let bare = batch_norm(4, config, VarBuilder::zeros(variables_dtype(dtype), &Device::Cpu))?;
        let norm = bare.clone().with_activation(activation);
        let y = norm.forward_t_with_residual(&x, &z, true)?;
        let expected = activate(activation, &(bare.forward_t(&x, true)? + z)?)?;
        let tolerance = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
        assert!(largest(&(y - expected)?.to_dtype(DType::F64)?)? <= tolerance, "{activation} {dtype:?}");
    }
    Ok(())
}

#[test]
fn errors() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let norm = |momentum| BatchNorm::new_no_bias_with_momentum(3, zeros(&[3])?, zeros(&[3])?, 1e-5, momentum);
    let module = norm(0.1)?;
    for wrong in [zeros(&[3])?, zeros(&[2, 4, 5])?, zeros(&[2, 3])?.to_dtype(DType::F64)?] {
        assert!(module.forward_t(&wrong, true).is_err(), "{:?}", wrong.shape());
        assert!(module.forward_t(&wrong, false).is_err(), "{:?}", wrong.shape());
    }
    assert!(norm(1.5).is_err());
    assert!(BatchNorm::new_no_bias(4, zeros(&[3])?, zeros(&[4])?, 1e-5).is_err());

    // A residual of another shape or type, an activation of numbers that are none.
    let relu = norm(0.1)?.with_activation(Activation::Relu);
    let x = (Tensor::arange(0f32, 24., &Device::Cpu)?.reshape((4, 3, 2)))?;
    for z in [zeros(&[4, 3, 1])?, zeros(&[4, 2, 3])?, x.to_dtype(DType::F64)?] {
        for train in [true, false] {
            let error = relu.forward_t_with_residual(&x, &z, train).unwrap_err().to_string();
            assert!(error.contains("must be as the input"), "{error}");
        }
    }
    let clip = norm(0.1)?.with_activation(Activation::Clip { lo: 1., hi: 0. });
    assert!(clip.forward_t(&x, true).is_err() && clip.forward_t(&x, false).is_err());
    for module in [relu, clip] {
        assert_eq!(module.running_var().to_vec1::<f32>()?, [0.; 3]);
    }

    // One element per channel has no unbiased variance; the running statistics stay.
    assert!(module.forward_t(&(zeros(&[1, 3])? + 1.)?, true).is_err());
    // No elements have no statistics; the running ones stay.
    assert_eq!(module.forward_t(&zeros(&[0, 3, 2])?, true)?.dims(), [0, 3, 2]);
    assert_eq!(module.running_mean().to_vec1::<f32>()?, [0.; 3]);
    assert_eq!(module.running_var().to_vec1::<f32>()?, [0.; 3]);

    let x = zeros(&[2, 3])?;
    let (short, whole) = (zeros(&[2])?, zeros(&[3])?);
    assert!(forward_training(&x, Some((&short, &whole)), 1e-5).is_err());
    assert!(forward_training(&x, None, -1.).is_err());
    assert!(forward_training(&x.to_dtype(DType::U32)?, None, 1e-5).is_err());
    assert!(forward_inference(&x, &short, &whole, None, 1e-5).is_err());
    let doubles = whole.to_dtype(DType::F64)?;
    assert!(forward_inference(&x, &doubles, &whole, None, 1e-5).is_err());
    Ok(())
}

/// Gradients that nobody tracks are not computed, whichever they are.
#[test]
fn gradients_of_what_is_tracked() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(5);
    let tensors = [
        random(rng, (-1., 1.), &[5, 3, 2], DType::F32)?,
        random(rng, (-1., 1.), &[3], DType::F32)?,
        random(rng, (-1., 1.), &[3], DType::F32)?,
    ];
    let dy = random(rng, (-1., 1.), &[5, 3, 2], DType::F32)?;
    let gradients = |tracked: [bool; 3]| -> Result<[Option<Vec<f32>>; 3]> {
        let mut inputs = tensors.clone();
        for (input, tracked) in inputs.iter_mut().zip(tracked) {
            if tracked {
                *input = Var::from_tensor(input)?.into_inner();
            }
        }
        let [x, gamma, beta] = &inputs;
        let (y, _) = forward_training(x, Some((gamma, beta)), 1e-5)?;
        let store = (y * &dy)?.sum_all()?.backward()?;
        Ok(inputs.each_ref().map(|t| store.get(t).map(|g| g.flatten_all().unwrap().to_vec1().unwrap())))
    };
    let all = gradients([true; 3])?;
    for bits in 1..8 {
        let tracked = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
        for ((some, all), tracked) in gradients(tracked)?.into_iter().zip(&all).zip(tracked) {
            assert_eq!(some, all.clone().filter(|_| tracked));
        }
    }
    Ok(())
}

/// Nor behind a residual, where weight and bias are one argument; whoever tracks nothing gets no mask either.
#[test]
fn gradients_of_a_residual_block_that_are_tracked() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(7);
    let tensors =
        [[5, 3, 2].as_slice(), &[5, 3, 2], &[3], &[3]].map(|dims| random(rng, (-1., 1.), dims, DType::F32));
    let dy = random(rng, (-1., 1.), &[5, 3, 2], DType::F32)?;
    let vector = |value: f32| Tensor::full(value, 3, &Device::Cpu);
    let gradients = |activation, tracked: u32| -> Result<Vec<Option<Vec<f32>>>> {
        let mut inputs = Vec::new();
        for (place, tensor) in tensors.iter().enumerate() {
            let tensor = tensor.as_ref().unwrap();
            let tracked = tracked >> place & 1 == 1;
            inputs.push(if tracked { Var::from_tensor(tensor)?.into_inner() } else { tensor.copy()? });
        }
        let [x, z, weight, bias] = &inputs[..] else { unreachable!() };
        let norm = BatchNorm::new(3, vector(0.)?, vector(1.)?, weight.clone(), bias.clone(), 1e-5)?;
        let y = norm.with_activation(activation).forward_t_with_residual(x, z, true)?;
        let store = (y * &dy)?.sum_all()?.backward()?;
        Ok(inputs.iter().map(|t| store.get(t).map(|g| g.flatten_all().unwrap().to_vec1().unwrap())).collect())
    };
    for activation in [Activation::Identity, Activation::Relu] {
        let all = gradients(activation, 0b1111)?;
        assert!(all.iter().all(Option::is_some));
        for bits in 1..16 {
            for (place, some) in gradients(activation, bits)?.into_iter().enumerate() {
                // candle's stack makes a gradient of both if there is one of either.
                let beside = place >= 2 && bits >> 2 != 0;
                let tracked = bits >> place & 1 == 1;
                assert!(some == all[place] && (tracked || beside) || some.is_none() && !tracked, "{bits:b}");
            }
        }
    }
    Ok(())
}

/// Limits that leave no choice are batch norm, to the bit.
fn renorm_without_a_choice(case: &Case) -> Result<()> {
    let (channels, config, none) = (case.dims[1], case.config, Renorm { r_max: 1., d_max: 0. });
    if case.dims.iter().product::<usize>() == channels {
        return Ok(());
    }
    let plain = |vb: VarBuilder| forward(batch_norm(channels, config, vb)?, true);
    let renormalized = |vb: VarBuilder| forward(batch_norm(channels, config, vb)?.with_renorm(none), true);
    let plain = results(case, plain, None, case.dtype)?;
    for ((name, got), (_, expected)) in results(case, renormalized, None, case.dtype)?.iter().zip(&plain) {
        assert_eq!(largest(&(got - expected)?)?, 0., "{name}, {case:?}");
    }
    Ok(())
}

#[test]
fn renorm_of_r_1_and_d_0_is_batch_norm() {
    let check = (|case| renorm_without_a_choice(&case).is_ok()) as fn(Case) -> bool;
    QuickCheck::new().tests(100).quickcheck(check);
}

const LIMITS: Renorm = Renorm { r_max: 1.25, d_max: 0.5 };

/// What [`results`] gives, by the library's layer, on a contiguous x.
fn layer<T: batchnorm::Element + candle_core::WithDType>(case: &Case) -> Result<Vec<Vec<f64>>> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(case.seed);
    let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<T>();
    let x = flat(&case.x(rng)?)?;
    let vectors = case.parameters(rng)?;
    let vectors = vectors.iter().map(|(_, vector)| flat(vector)).collect::<Result<Vec<_>>>()?;
    let dy = flat(&random(rng, (-1., 1.), &case.dims, case.dtype)?)?;
    let rule = batchnorm::UpdateRule::Momentum(case.config.momentum);
    let mut layer = batchnorm::BatchNorm::from_parts(batchnorm::Parts {
        gamma: vectors.get(2).cloned(),
        beta: vectors.get(3).cloned(),
        running_mean: vectors[0].clone(),
        running_var: vectors[1].clone(),
        eps: case.config.eps,
        update: batchnorm::RunningUpdate { rule, variance: batchnorm::RunningVariance::Unbiased },
        renorm: Some(LIMITS),
        ..batchnorm::Parts::new(0)
    })
    .unwrap();
    let shape = batchnorm::Shape::nchw(&case.dims).unwrap();
    let (mut y, mut dx) = (x.clone(), x.clone());
    layer.forward_training(&shape, &x, &mut y).unwrap();
    layer.backward(&shape, &x, &dy, &mut dx).unwrap();
    let mut all = vec![y, layer.running_mean().to_vec(), layer.running_var().to_vec(), dx];
    if case.config.affine {
        all.extend([layer.dgamma().to_vec(), layer.dbeta().to_vec()]);
    }
    let wide = |values: &Vec<T>| values.iter().map(|value| batchnorm::Scalar::to_f64(*value)).collect();
    Ok(all.iter().map(wide).collect())
}

/// Within limits: to the bit what the library's layer gives, output, gradients and running statistics.
fn renorm_is_the_layers(case: &Case) -> Result<()> {
    let (channels, config) = (case.dims[1], case.config);
    if case.dims.iter().product::<usize>() == channels {
        return Ok(());
    }
    let expected = match case.dtype {
        DType::F64 => layer::<f64>(case)?,
        _ => layer::<f32>(case)?,
    };
    let make = |vb: VarBuilder| forward(batch_norm(channels, config, vb)?.with_renorm(LIMITS), true);
    let got = results(case, make, None, case.dtype)?;
    assert_eq!(got.len(), expected.len());
    for ((name, got), expected) in got.iter().zip(&expected) {
        assert_eq!(got.flatten_all()?.to_vec1::<f64>()?, *expected, "{name}, {case:?}");
    }
    Ok(())
}

#[test]
fn renorm_is_that_of_the_library() {
    let check = (|case| renorm_is_the_layers(&case).is_ok()) as fn(Case) -> bool;
    QuickCheck::new().tests(100).quickcheck(check);
}

/// The weight's gradient, a part of which is the bias's, is right where the bias has none.
#[test]
fn renorm_with_a_bias_that_is_no_variable() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(1);
    let [x, dy] = [(), ()].map(|()| random(rng, (-1., 3.), &[6, 2, 4], DType::F32).unwrap());
    let vector = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu);
    let (weight, bias) = (Var::from_tensor(&vector([1.5, -0.5])?)?, Var::from_tensor(&vector([0.5, 1.])?)?);
    let gradient = |bias: &Tensor| -> Result<Vec<f32>> {
        let (mean, var) = (vector([0.5, -1.])?, vector([2., 0.5])?);
        let norm = BatchNorm::new(2, mean, var, weight.as_tensor().clone(), bias.clone(), 1e-5)?;
        let norm = norm.with_renorm(Renorm { r_max: 1.5, d_max: 0.5 });
        let gradients = (norm.forward_t(&x, true)? * &dy)?.sum_all()?.backward()?;
        assert_eq!(gradients.get(bias).is_some(), bias.is_variable());
        gradients.get(&weight).unwrap().to_vec1()
    };
    assert_eq!(gradient(&bias.as_detached_tensor())?, gradient(bias.as_tensor())?);
    Ok(())
}

/// A module with domains is a module for each, with one weight and bias.
#[test]
fn domains_are_modules_with_shared_variables() -> Result<()> {
    let rng = &mut Xoshiro256PlusPlus::seed_from_u64(2);
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let limits = Renorm { r_max: 1.5, d_max: 0.5 };
    let norm = batch_norm_with_domains(3, 1e-5, 3, vb)?.with_renorm(limits);
    let copied = norm.clone().with_domains(1)?.with_domains(3)?;
    assert_eq!((norm.domains(), copied.domains(), norm.domain(2)?.domains()), (3, 3, 1));
    let (weight, bias) = norm.weight_and_bias().unwrap();
    let vector = |value: f32| Tensor::full(value, 3, &Device::Cpu);
    let alone = [(); 3].map(|()| {
        let (mean, var) = (vector(0.).unwrap(), vector(1.).unwrap());
        BatchNorm::new(3, mean, var, weight.clone(), bias.clone(), 1e-5).unwrap().with_renorm(limits)
    });
    for domain in [1, 0, 2, 1, 1, 0] {
        let x = random(rng, (-1., 1. + domain as f64), &[4, 3, 5], DType::F32)?;
        for train in [true, false] {
            let [y, expected] = [norm.domain(domain)?, alone[domain].clone()].map(|module| {
                let y = module.forward_t(&x, train).unwrap();
                let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let of_weight = gradients.get(weight).unwrap();
                [y.flatten_all().unwrap(), of_weight.clone()].map(|t| t.to_vec1::<f32>().unwrap())
            });
            assert_eq!(y, expected);
        }
        // Domain 0 of the copy is the module's own.
        if domain != 0 {
            copied.domain(domain)?.forward_t(&x, true)?;
        }
        for (domain, alone) in alone.iter().enumerate() {
            for module in [&norm, &copied] {
                let module = module.domain(domain)?;
                for (got, expected) in [
                    (module.running_mean(), alone.running_mean()),
                    (module.running_var(), alone.running_var()),
                ] {
                    assert_eq!(got.to_vec1::<f32>()?, expected.to_vec1::<f32>()?, "domain {domain}");
                }
            }
        }
    }
    let names = variables.data().lock().unwrap();
    assert_eq!(names.len(), 8);
    assert!(names.contains_key("domains.2.running_var"));
    Ok(())
}

/// Limits that are none, domains that there are not, and what candle's module does: errors, and nothing has changed.
#[test]
fn errors_of_renorm_and_domains() -> Result<()> {
    let vector = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
    let x = Tensor::new(&[[1f32], [3.]], &Device::Cpu)?;
    let norm = || BatchNorm::new_no_bias(1, vector(0.), vector(1.), 1e-5).unwrap();
    for (r_max, d_max, text) in
        [(0.5, 0., "r_max is 0.5"), (1., -1., "d_max is -1"), (1., f64::NAN, "d_max is NaN")]
    {
        let norm = norm().with_renorm(Renorm { r_max, d_max });
        let error = norm.forward_t(&x, true).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert_eq!(norm.running_mean().to_vec1::<f32>()?, [0.]);
        norm.forward_t(&x, false)?;
    }
    let error = norm().with_domains(2)?.domain(2).unwrap_err().to_string();
    assert!(error.contains("domain is 2, must be below 2"), "{error}");
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let config = BatchNormConfig { remove_mean: false, ..BatchNormConfig::default() };
    let module = batch_norm(1, config, vb.clone())?;
    assert!(module.clone().with_domains(2).is_err() && batch_norm_with_domains(1, config, 2, vb).is_err());
    module.forward_t(&x, true)?;
    let error = module.with_renorm(Renorm { r_max: 1., d_max: 0. }).forward_t(&x, true).unwrap_err();
    assert!(error.to_string().contains("remove_mean"), "{error}");
    Ok(())
}
