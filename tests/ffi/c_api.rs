//! The C interface: from Rust with arguments that it must refuse, and from C11 and C++17 programs, linked against the
//! shared and the static library, with results that are compared to the bit.

use std::ffi::{OsStr, c_void};
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use batchnorm::ffi::*;
use batchnorm::{
    Activation, Backward, Element, Gradients, Inference, Layout, Params, Renorm, RunningUpdate,
    RunningVariance, Shape, Training, UpdateRule, WeightShape, Welford, backward, backward_frozen, fold_into,
    forward_inference, forward_training, statistics, step, update_running,
};

/// Runs a command that must succeed; what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// The directory with both libraries, built by the plain cargo command.
fn libraries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        run(Command::new(env!("CARGO"))
            .args(["rustc", "--release", "--lib", "--features", "capi", "--crate-type", "cdylib,staticlib"])
            .arg("--manifest-path")
            .arg(root().join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTFLAGS"));
        target.join("release")
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compiles `source` with warnings as errors, and returns the program.
fn compile(compiler: &str, standard: &str, source: &str, name: &str, link: &[&OsStr]) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    run(Command::new(compiler)
        .args([standard, "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(if standard.contains("c++") { &["-x", "c++"][..] } else { &[] })
        .arg(root().join(source))
        .args(["-x", "none", "-I"])
        .arg(root().join("include"))
        .arg("-o")
        .arg(&program)
        .args(link)
        .args(["-lm", "-lpthread", "-ldl"]));
    program
}

const N: usize = 3;
const C: usize = 37;
const SPATIAL: [usize; 2] = [9, 11];
const LEN: usize = N * C * 99;

fn hash(hash: u64, bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn bytes<T: Element>(values: &[T]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| {
            let all = value.to_f64();
            if size_of::<T>() == 4 { (all as f32).to_ne_bytes().to_vec() } else { all.to_ne_bytes().to_vec() }
        })
        .collect()
}

fn word_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The fields that C sees.
fn state_bytes(states: &[Welford]) -> Vec<u8> {
    // SAFETY: the interface says that a `State` is a `Welford` under another name, which has no padding.
    let fields = unsafe { std::slice::from_raw_parts(states.as_ptr().cast::<u8>(), size_of_val(states)) };
    fields.to_vec()
}

fn values<T: Element>(len: usize, start: usize) -> Vec<T> {
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 8) & 0xffff) as f64 / 256.0 - 100.0;
    (start..start + len).map(|i| T::from_f64(value(i))).collect()
}

/// All activations, in the order of their numbers, with slope, lo and hi of tests/c/element.h.
fn activations() -> [Activation; 6] {
    let (clip, leaky) = (Activation::Clip { lo: -20.0, hi: 60.0 }, Activation::LeakyRelu { slope: 0.01 });
    [Activation::Identity, Activation::Relu, leaky, clip, Activation::HardSwish, Activation::Silu]
}

/// What `fused` in tests/c/element.h does, by the Rust builders.
fn expected_fused<T: Element>(shape: &Shape, [x, dy, z]: [&[T]; 3], mut all: u64) -> u64 {
    let (gamma, beta, mean) = (values::<T>(C, 5), values::<T>(C, 66), values::<T>(C, 777));
    let var: Vec<T> = (0..C).map(|c| T::from_f64(100.0 * (c as f64 + 1.0))).collect();
    let zeros = |len| vec![T::default(); len];
    let (mut y, mut dx, mut dz) = (zeros(LEN), zeros(LEN), zeros(LEN));
    let (mut dgamma, mut dbeta) = (zeros(C), zeros(C));
    let mut states = vec![Welford::new(); C];
    let [mut mask, mut inference_mask] = [vec![0; shape.mask_len()], vec![0; shape.mask_len()]];
    for activation in activations() {
        let params = Params::new(1e-5).gamma(&gamma).beta(&beta).activation(activation);
        Training::new(shape, params).x(x).y(&mut y).states(&mut states).run().unwrap();
        all = hash(hash(all, bytes(&y)), state_bytes(&states));
        for frozen in [false, true] {
            if frozen {
                Inference::new(shape, params).x(x).frozen(&mean, &var).y(&mut y).run().unwrap();
                all = hash(all, bytes(&y));
            }
            let call = Backward::new(shape, params).x(x).dy(dy);
            let call = if frozen { call.frozen(&mean, &var) } else { call.states(&states) };
            let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
            call.gradients(gradients).run().unwrap();
            for values in [&dx, &dgamma, &dbeta] {
                all = hash(all, bytes(values));
            }
        }
        if !activation.is_piecewise_linear() {
            continue;
        }
        let inference = Inference::new(shape, params).x(x).residual(z).mask(&mut inference_mask);
        inference.frozen(&mean, &var).y(&mut y).run().unwrap();
        all = hash(hash(all, bytes(&y)), word_bytes(&inference_mask));
        let training = Training::new(shape, params).x(x).residual(z).mask(&mut mask);
        training.y(&mut y).states(&mut states).run().unwrap();
        all = hash(hash(all, bytes(&y)), word_bytes(&mask));
        for frozen in [true, false] {
            let call = Backward::new(shape, params).x(x).dy(dy).mask(&mask);
            let call = if frozen { call.frozen(&mean, &var) } else { call.states(&states) };
            let gradients = Gradients::new().dx(&mut dx).dz(&mut dz).dgamma(&mut dgamma).dbeta(&mut dbeta);
            call.gradients(gradients).run().unwrap();
            all = hash(all, bytes(&dx));
        }
        for values in [&dz, &dgamma, &dbeta] {
            all = hash(all, bytes(values));
        }
    }
    all
}

/// What tests/c/element.h does, by the Rust functions.
fn expected<T: Element>(layout: Layout, mut all: u64) -> u64 {
    let shape = Shape::new(layout, N, C, &SPATIAL).unwrap();
    let (mut x, dy) = (values::<T>(LEN, 0), values::<T>(LEN, 1_000_003));
    let (mut gamma, beta, mut mean) = (values::<T>(C, 11), values::<T>(C, 222), values::<T>(C, 3333));
    let mut var: Vec<T> = (0..C).map(|c| T::from_f64(c as f64 + 1.0)).collect();
    let zeros = |len| vec![T::default(); len];
    let (mut y, mut dx) = (zeros(LEN), zeros(LEN));
    let (mut dgamma, mut dbeta, mut dmean, mut dvar) = (zeros(C), zeros(C), zeros(C), zeros(C));
    let mut states = vec![Welford::new(); C];

    statistics(&shape, &x, &mut states).unwrap();
    let merged: Vec<Welford> = states
        .iter()
        .map(|state| {
            let mut merged = *state;
            merged.merge(state);
            merged
        })
        .collect();
    all = hash(all, state_bytes(&merged));
    let params = Params::new(1e-5).gamma(&gamma).beta(&beta);
    forward_training(&shape, &x, &params, &mut y, &mut states).unwrap();
    all = hash(hash(all, bytes(&y)), state_bytes(&states));
    let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma).dbeta(&mut dbeta);
    backward(&shape, &x, &dy, &states, &params, gradients.dmean(&mut dmean).dvar(&mut dvar)).unwrap();
    for values in [&dx, &dgamma, &dbeta, &dmean, &dvar] {
        all = hash(all, bytes(values));
    }
    let gradients = Gradients::new().dbeta(&mut dbeta).dmean(&mut dmean).dvar(&mut dvar);
    backward_frozen(&shape, &x, &dy, &mean, &var, &params, gradients).unwrap();
    for values in [&dbeta, &dmean, &dvar] {
        all = hash(all, bytes(values));
    }
    let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
    backward_frozen(&shape, &x, &dy, &mean, &var, &Params::new(1e-5), gradients).unwrap();
    all = hash(hash(all, bytes(&dx)), bytes(&dgamma));
    for rule in [UpdateRule::Decay(0.9), UpdateRule::Momentum(0.1), UpdateRule::Cumulative] {
        for variance in [RunningVariance::Biased, RunningVariance::Unbiased] {
            update_running(RunningUpdate { rule, variance }, 3, &states, &mut mean, &mut var).unwrap();
            all = hash(hash(all, bytes(&mean)), bytes(&var));
        }
    }
    step(0.5, &dgamma, &mut gamma).unwrap();
    all = hash(all, bytes(&gamma));
    let renorm = Renorm { r_max: 1.5, d_max: 0.25 };
    let params = Params::new(1e-5).gamma(&gamma).beta(&beta);
    let renormalized = renorm.renormalize(&states, &mean, &var, &params).unwrap();
    all = hash(hash(all, bytes(renormalized.r())), bytes(renormalized.d()));
    all = hash(hash(all, bytes(renormalized.gamma())), bytes(renormalized.beta()));
    let mut weight = values::<T>(LEN, 41);
    let params = Params::new(1e-5).beta(&beta);
    let rest = LEN / C;
    for (dims, axis, groups, params) in [
        ([C, rest, 1], 0, 1, params),
        ([rest, C, 1], 1, 1, params),
        ([N * C, 1, 99], 1, C, params.gamma(&gamma)),
    ] {
        let shape = WeightShape::grouped(&dims, axis, groups).unwrap();
        fold_into(&shape, &mean, &var, &params, &mut weight, &mut dbeta).unwrap();
        all = hash(hash(all, bytes(&weight)), bytes(&dbeta));
    }
    forward_inference(&shape, &x, &mean, &var, &Params::new(0.0).beta(&beta), &mut y).unwrap();
    all = hash(all, bytes(&y));
    all = expected_fused(&shape, [&x, &dy, &values::<T>(LEN, 31337)], all);
    Training::new(&shape, Params::new(1e-5)).x_in_place(&mut x).states(&mut states).run().unwrap();
    hash(all, bytes(&x))
}

/// What `large` in tests/c/conformance.c does, by the Rust functions.
fn expected_large(all: u64) -> u64 {
    let shape = Shape::new(Layout::Nchw, 8, 16, &[48, 48]).unwrap();
    let (x, dy) = (values::<f32>(shape.len(), 5), values::<f32>(shape.len(), 77));
    let (mut y, mut dx, mut dgamma) = (vec![0.0; shape.len()], vec![0.0; shape.len()], [0.0; 16]);
    let (mut states, params) = ([Welford::new(); 16], Params::new(1e-5));
    forward_training(&shape, &x, &params, &mut y, &mut states).unwrap();
    let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
    backward(&shape, &x, &dy, &states, &params, gradients).unwrap();
    let all = hash(hash(all, bytes(&y)), state_bytes(&states));
    hash(hash(all, bytes(&dx)), bytes(&dgamma))
}

/// C11 and C++17, shared and static, each under valgrind too.
#[test]
fn c_and_cpp_programs_get_the_bits_of_rust() {
    let start = expected_large(0xcbf2_9ce4_8422_2325);
    let expected = [Layout::Nchw, Layout::Nhwc].into_iter().fold(start, |mut all, layout| {
        for _threads in [0, 1] {
            all = expected::<f64>(layout, expected::<f32>(layout, all));
        }
        all
    });
    let shared = [OsStr::new("-L"), libraries().as_os_str(), OsStr::new("-lbatchnorm")];
    let archive = libraries().join("libbatchnorm.a");
    for (compiler, standard) in [("cc", "-std=c11"), ("c++", "-std=c++17")] {
        for (kind, link) in [("shared", &shared[..]), ("static", &[archive.as_os_str()][..])] {
            // A static program does not look for the shared library that lies beside the archive.
            let program =
                compile(compiler, standard, "tests/c/conformance.c", &format!("{compiler}-{kind}"), link);
            let path = |command: &mut Command| run(command.env("LD_LIBRARY_PATH", libraries()));
            assert_eq!(path(&mut Command::new(&program)).trim(), format!("{expected:016x}"), "{program:?}");
            let mut valgrind = Command::new("valgrind");
            valgrind.args(["--quiet", "--error-exitcode=9"]).arg(&program);
            assert_eq!(path(&mut valgrind).trim(), format!("{expected:016x}"), "{program:?} under valgrind");
        }
    }
}

#[test]
#[cfg(all(target_os = "linux", feature = "rayon"))]
fn without_threads_calls_stay_on_their_own() {
    let shared = [OsStr::new("-L"), libraries().as_os_str(), OsStr::new("-lbatchnorm")];
    let program = compile("cc", "-std=c11", "tests/c/no_threads.c", "no-threads", &shared);
    let mut program = Command::new(program);
    let printed = run(program.env("LD_LIBRARY_PATH", libraries()).env("RAYON_NUM_THREADS", "4096"));
    assert_eq!(printed, "on the calling thread\n");
}

/// With calls under way elsewhere: tests/c/fork.c.
#[test]
#[cfg(all(target_os = "linux", feature = "rayon"))]
fn children_of_fork_finish_their_calls() {
    let shared = [OsStr::new("-L"), libraries().as_os_str(), OsStr::new("-lbatchnorm")];
    let program = compile("cc", "-std=c11", "tests/c/fork.c", "fork", &shared);
    let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
    assert_eq!(printed, "400 children finished\n");
}

/// OpenMP's and others: tests/c/openmp.c.
#[test]
fn the_programs_own_threads_get_the_same_bits() {
    let link = ["-fopenmp", "-L"].map(OsStr::new).into_iter();
    let link: Vec<_> = link.chain([libraries().as_os_str(), OsStr::new("-lbatchnorm")]).collect();
    let program = compile("cc", "-std=c11", "tests/c/openmp.c", "openmp", &link);
    let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libraries()).env("OMP_NUM_THREADS", "3"));
    assert_eq!(printed, "openmp\nawake\nserial\nlate\n");
}

/// In processes of their own too: tests/c/parts.c.
#[test]
#[cfg(target_os = "linux")]
fn parts_of_a_batch_have_the_bits_of_the_whole() {
    let shared = [OsStr::new("-L"), libraries().as_os_str(), OsStr::new("-lbatchnorm")];
    for standard in ["-std=c11", "-std=c17"] {
        let program = compile("cc", standard, "tests/c/parts.c", &format!("parts{standard}"), &shared);
        let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
        assert_eq!(printed, "3 parts have the bits of the whole\n");
    }
}

/// batchnorm.hpp: tests/c/layer.cpp.
#[test]
fn the_cpp_layer_has_the_types_and_throws() {
    let shared = [OsStr::new("-L"), libraries().as_os_str(), OsStr::new("-lbatchnorm")];
    for standard in ["-std=c++17", "-std=c++20", "-std=c++23"] {
        let program = compile("c++", standard, "tests/c/layer.cpp", &format!("layer{standard}"), &shared);
        let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
        // The standard's own 16-bit numbers come behind, where there are any.
        assert!(printed.starts_with("float\ndouble\nbfloat16\nfloat16\nanother\n"), "{printed}");
    }
}

/// The shared library exports the header's functions and nothing else.
#[test]
fn exported_symbols() {
    let listed =
        run(Command::new("nm").args(["-D", "--defined-only"]).arg(libraries().join("libbatchnorm.so")));
    let mut exported: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let header = std::fs::read_to_string(root().join("include/batchnorm.h")).unwrap();
    let mut declared: Vec<&str> = header
        .split(['(', ')', ' ', '*', '\n'])
        .filter(|word| word.starts_with("batchnorm_") && header.contains(&format!("{word}(")))
        .collect();
    exported.sort_unstable();
    declared.sort_unstable();
    declared.dedup();
    assert_eq!(declared.len(), 23, "{declared:?}");
    assert_eq!(exported, declared);
}

/// Those of examples/c and examples/cpp.
#[test]
fn the_examples_compile_and_run() {
    let shared = [OsStr::new("-L"), libraries().as_os_str(), OsStr::new("-lbatchnorm")];
    let program = compile("cc", "-std=c11", "examples/c/normalize.c", "normalize", &shared);
    let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
    assert!(printed.contains("channel 1: mean 10.000, variance 4.000"), "{printed}");
    let program = compile("c++", "-std=c++17", "examples/cpp/normalize.cpp", "normalize-cpp", &shared);
    let printed = run(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
    assert!(printed.contains("running mean 2, variance 1; y 0, 0.999995"), "{printed}");
}

/// What C leaves 0.
fn zeroed<T>() -> T {
    // SAFETY: used for structs of numbers and pointers, of which zeros are a value.
    unsafe { std::mem::zeroed() }
}

/// A struct of C's with its size, these fields, and all else 0.
macro_rules! sized {
    ($name:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut value: $name = zeroed();
        value.size = size_of::<$name>();
        $(value.$field = $value;)*
        value
    }};
}

/// A call of training that must be refused: nothing that it was given may change.
struct Call {
    problem: Problem,
    x: Vec<f32>,
    per_channel: Vec<f32>,
    y: Vec<f32>,
    states: Vec<State>,
}

const UNTOUCHED: f32 = -7.25;

fn no_state() -> State {
    State { count: 77, mean: 1.0, m2: 3.0, ..State::default() }
}

impl Call {
    fn new() -> Self {
        Self {
            problem: sized!(Problem { batch: 4, channels: 2, spatial: [3, 0, 0] }),
            x: vec![1.5; 24],
            per_channel: vec![1.0; 2],
            y: vec![UNTOUCHED; 25],
            states: vec![no_state(); 2],
        }
    }

    #[track_caller]
    fn refused(&mut self, status: Status, expected: Status, words: &str) {
        let message = last_message();
        assert_eq!(status, expected, "{message}");
        assert!(message.contains(words), "{message:?} does not say {words:?}");
        let states_are = self.states.iter().all(|state| *state == no_state());
        assert!(self.y.iter().all(|y| *y == UNTOUCHED) && states_are);
        assert!(self.x.iter().all(|x| *x == 1.5) && self.per_channel.iter().all(|value| *value == 1.0));
    }

    /// The arguments that would be right.
    fn args(&mut self) -> TrainingArgs {
        let (x, y) = (self.x.as_ptr().cast(), self.y.as_mut_ptr().cast());
        sized!(TrainingArgs { x: x, eps: 1e-5, y: y, states: self.states.as_mut_ptr() })
    }

    /// Trains with these arguments, and this problem.
    fn training(&self, args: &TrainingArgs) -> Status {
        // SAFETY: as long as the problem says, or refused before they are looked at.
        unsafe { batchnorm_training(&self.problem, args) }
    }
}

#[test]
fn null_pointers_of_no_elements_are_none() {
    let call = &mut Call::new();
    let args = sized!(TrainingArgs { eps: 1e-5 });
    for (batch, channels) in [(4, 0), (0, 0)] {
        call.problem = Problem { batch, channels, ..call.problem };
        assert_eq!(call.training(&args), Status::Ok);
    }
    // SAFETY: nothing is looked at.
    unsafe {
        assert_eq!(batchnorm_step(&call.problem, &sized!(StepArgs { lr: 0.1 })), Status::Ok);
        assert_eq!(batchnorm_merge(0, null_mut(), null()), Status::Ok);
        assert_eq!(batchnorm_backward(&call.problem, &sized!(BackwardArgs { eps: 0.0 })), Status::Ok);
    }
    // Without samples there still is a state for each channel.
    call.problem = Problem { batch: 0, channels: 2, ..call.problem };
    assert_eq!(call.training(&args), Status::NullPointer);
    let args = TrainingArgs { x: null(), y: null_mut(), ..call.args() };
    assert_eq!(call.training(&args), Status::Ok);
    assert_eq!(call.states, [State::default(); 2]);
}

/// The most natural initializer does the natural thing.
#[test]
fn an_axis_of_0_is_one_that_is_not_there() {
    for spatial in [[4, 3, 0], [12, 0, 0], [0, 12, 0], [0, 0, 12], [4, 0, 3], [1, 4, 3], [2, 2, 3]] {
        let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut states = [State::default(); 2];
        let problem = sized!(Problem { batch: 1, channels: 2, spatial: spatial });
        let args = sized!(StatisticsArgs { x: x.as_ptr().cast(), states: states.as_mut_ptr() });
        // SAFETY: as long as the problem says.
        assert_eq!(unsafe { batchnorm_statistics(&problem, &args) }, Status::Ok);
        assert_eq!(states.map(|state| (state.count, mean(&state))), [(12, 5.5), (12, 17.5)], "{spatial:?}");
    }
    let mut states = [State::default(); 2];
    let problem = sized!(Problem { batch: 3, channels: 2 });
    let x = [1.0f32, 10.0, 2.0, 20.0, 3.0, 30.0];
    let args = sized!(StatisticsArgs { x: x.as_ptr().cast(), states: states.as_mut_ptr() });
    // SAFETY: as long as the problem says.
    assert_eq!(unsafe { batchnorm_statistics(&problem, &args) }, Status::Ok);
    assert_eq!(states.map(|state| mean(&state)), [2.0, 20.0]);
}

fn mean(state: &State) -> f64 {
    // SAFETY: a state.
    unsafe { batchnorm_mean(state) }
}

#[test]
fn what_states_say_is_what_welford_says() {
    let welford: Welford = [1e9 + 0.1, 1e9 + 0.7, 1e9 + 0.4].into_iter().collect();
    let state = (&raw const welford).cast::<State>();
    // SAFETY: the interface says that a `State` is a `Welford`; null and what is not aligned are refused.
    unsafe {
        assert_eq!(batchnorm_mean(state), welford.mean());
        assert_eq!(batchnorm_variance(state), welford.variance());
        assert_eq!(batchnorm_variance_unbiased(state), welford.variance_unbiased());
        for state in [null(), state.wrapping_byte_add(4)] {
            assert!(batchnorm_mean(state).is_nan() && batchnorm_variance(state).is_nan());
            assert!(batchnorm_variance_unbiased(state).is_nan());
        }
        assert_eq!((batchnorm_mean(&State::default()), batchnorm_variance(&State::default())), (0.0, 0.0));
        assert!(batchnorm_variance_unbiased(&State::default()).is_nan());
    }
}

#[test]
fn neighbours_do_not_overlap_and_inputs_may() {
    let mut memory = vec![1.0f32; 24 + 2 + 24];
    let problem =
        sized!(Problem { layout: BATCHNORM_NHWC, batch: 4, channels: 2, spatial: [3, 0, 0], threads: 1 });
    let at = memory.as_mut_ptr();
    // x, then a mean that is the variance too, then y.
    let (mean, y) = (at.wrapping_add(24).cast::<c_void>(), at.wrapping_add(26).cast());
    let args = sized!(InferenceArgs { x: at.cast(), mean: mean, var: mean, y: y });
    // SAFETY: as long as the problem says.
    let status = unsafe { batchnorm_inference(&problem, &args) };
    assert_eq!((status, memory[49]), (Status::Ok, 0.0));
}

/// An argument of a function that is a pointer: its name, how it is used, the size and number of what it points to.
#[derive(Clone, Copy)]
struct Argument {
    name: &'static str,
    written: bool,
    optional: bool,
    /// What a tensor's elements are.
    element: Option<u32>,
    size: usize,
    len: usize,
}

/// What x's elements are, and what the problem says of y's.
type Elements = (u32, u64);

const ELEMENTS: [Elements; 7] = [
    (BATCHNORM_F32, BATCHNORM_Y_SAME),
    (BATCHNORM_F64, BATCHNORM_Y_SAME),
    (BATCHNORM_BF16, BATCHNORM_Y_SAME),
    (BATCHNORM_F16, BATCHNORM_Y_F16),
    (BATCHNORM_BF16, BATCHNORM_Y_F32),
    (BATCHNORM_F32, BATCHNORM_Y_F16),
    (BATCHNORM_F16, BATCHNORM_Y_BF16),
];

/// A function as the table of all has it, called with its pointers, a problem first, and eps or lr.
struct Function {
    name: &'static str,
    elements: Elements,
    arguments: Vec<Argument>,
    call: fn(&[*mut u8], f64) -> Status,
}

const TABLE_C: usize = 6;
const TABLE_LEN: usize = 4 * TABLE_C * 2;

fn table_problem((element, y_element): Elements) -> Problem {
    sized!(Problem {
        element: element,
        layout: BATCHNORM_NHWC,
        batch: 4,
        channels: TABLE_C,
        spatial: [0, 2, 0],
        y_element: y_element
    })
}

fn table_state() -> State {
    State { count: 8, mean: 1.0, m2: 4.0, ..State::default() }
}

/// Pointers in the order of the functions' parameters: `>` before those that are written, `?` after those that may be null.
fn arguments(names: &'static str, (x, y): Elements) -> Vec<Argument> {
    let y = if y == BATCHNORM_Y_SAME { x } else { (y - BATCHNORM_Y_F32) as u32 };
    let bytes = |element| match element {
        BATCHNORM_F64 => 8,
        BATCHNORM_F32 => 4,
        _ => 2,
    };
    let argument = |name: &'static str| {
        let (written, optional) = (name.starts_with('>'), name.ends_with('?'));
        let name = name.trim_matches(['>', '?']);
        let element = match name {
            "x" | "dx" | "weight" => Some(x),
            "y" | "residual" | "dy" | "dz" | "bias" => Some(y),
            _ => None,
        };
        let (size, len) = match name {
            "mask" => (8, TABLE_LEN.div_ceil(64)),
            "words" => (size_of::<usize>(), 1),
            "problem" => (size_of::<Problem>(), 1),
            "states" | "into" | "from" => (size_of::<State>(), TABLE_C),
            "r" | "d" => (8, TABLE_C),
            _ => match element {
                Some(element) if name == "bias" => (bytes(element), TABLE_C),
                Some(element) => (bytes(element), TABLE_LEN),
                None => (bytes(x).max(4), TABLE_C),
            },
        };
        Argument { name, written, optional, element, size, len }
    };
    names.split_whitespace().map(argument).collect()
}

impl Argument {
    fn bytes(&self) -> usize {
        self.size * self.len
    }

    fn align(&self) -> usize {
        self.size.min(8)
    }

    /// Whether `other`, which is read, may be written over by this one.
    fn may_be(&self, other: &Self) -> bool {
        let pair =
            matches!((self.name, other.name), ("y", "x" | "residual") | ("dx", "x" | "dy") | ("dz", "dy"));
        pair && self.element == other.element
    }
}

/// Functions by name, pointers, and the struct of arguments that these become.
macro_rules! table {
    ($($name:literal: $function:ident($pointers:literal) = |$p:ident, $factor:ident| $args:expr;)*) => {
        ELEMENTS.into_iter().flat_map(|elements| [$(Function {
            name: $name,
            elements,
            arguments: arguments($pointers, elements),
            call: |$p, $factor| {
                let _ = $factor;
                let args = $args;
                // SAFETY: pointers to what the table says, or to be refused before they are looked at.
                unsafe { $function($p[0].cast(), &args) }
            },
        }),*]).collect()
    };
}

/// All functions that take a problem and pointers to data.
fn all_functions() -> Vec<Function> {
    table! {
        "statistics": batchnorm_statistics("problem x >states") = |p, factor| sized!(StatisticsArgs {
            x: p[1].cast(), states: p[2].cast()
        });
        "training": batchnorm_training("problem x gamma? beta? >y >states") = |p, factor| sized!(TrainingArgs {
            x: p[1].cast(), gamma: p[2].cast(), beta: p[3].cast(), eps: factor, y: p[4].cast(), states: p[5].cast()
        });
        "inference": batchnorm_inference("problem x mean var gamma? beta? >y") = |p, factor| sized!(InferenceArgs {
            x: p[1].cast(), mean: p[2].cast(), var: p[3].cast(), gamma: p[4].cast(), beta: p[5].cast(), eps: factor,
            y: p[6].cast()
        });
        "backward": batchnorm_backward("problem x dy states gamma? >dx? >dgamma? >dbeta? >dmean? >dvar?")
            = |p, factor| sized!(BackwardArgs {
                x: p[1].cast(), dy: p[2].cast(), states: p[3].cast(), gamma: p[4].cast(), eps: factor, dx: p[5].cast(),
                dgamma: p[6].cast(), dbeta: p[7].cast(), dmean: p[8].cast(), dvar: p[9].cast()
            });
        "frozen": batchnorm_backward("problem x dy mean var gamma? >dx? >dgamma? >dbeta? >dmean? >dvar?")
            = |p, factor| sized!(BackwardArgs {
                x: p[1].cast(), dy: p[2].cast(), mean: p[3].cast(), var: p[4].cast(), gamma: p[5].cast(), eps: factor,
                dx: p[6].cast(), dgamma: p[7].cast(), dbeta: p[8].cast(), dmean: p[9].cast(), dvar: p[10].cast()
            });
        "fused training": batchnorm_training("problem x gamma? beta? residual? >y >states >mask?")
            = |p, factor| sized!(TrainingArgs {
                x: p[1].cast(), gamma: p[2].cast(), beta: p[3].cast(), eps: factor, y: p[5].cast(), states: p[6].cast(),
                activation: BATCHNORM_CLIP, lo: 1.25, hi: 2.0, residual: p[4].cast(), mask: p[7].cast()
            });
        "fused inference": batchnorm_inference("problem x mean var gamma? beta? residual? >y >mask?")
            = |p, factor| sized!(InferenceArgs {
                x: p[1].cast(), mean: p[2].cast(), var: p[3].cast(), gamma: p[4].cast(), beta: p[5].cast(), eps: factor,
                y: p[7].cast(), activation: BATCHNORM_RELU, residual: p[6].cast(), mask: p[8].cast()
            });
        "fused backward": batchnorm_backward("problem x dy states gamma? beta? mask >dx? >dz? >dgamma? >dbeta?")
            = |p, factor| sized!(BackwardArgs {
                x: p[1].cast(), dy: p[2].cast(), states: p[3].cast(), gamma: p[4].cast(), eps: factor, dx: p[7].cast(),
                dgamma: p[9].cast(), dbeta: p[10].cast(), activation: BATCHNORM_LEAKY_RELU, slope: 0.5,
                beta: p[5].cast(), mask: p[6].cast(), dz: p[8].cast()
            });
        "fused frozen": batchnorm_backward("problem x dy mean var gamma? beta? mask? >dx? >dgamma? >dbeta?")
            = |p, factor| sized!(BackwardArgs {
                x: p[1].cast(), dy: p[2].cast(), mean: p[3].cast(), var: p[4].cast(), gamma: p[5].cast(), eps: factor,
                dx: p[8].cast(), dgamma: p[9].cast(), dbeta: p[10].cast(), activation: BATCHNORM_RELU,
                beta: p[6].cast(), mask: p[7].cast()
            });
        "mask_len": mask_len("problem >words") = |p, factor| p[1].cast();
        "update_running": batchnorm_update_running("problem states >mean >var")
            = |p, factor| sized!(UpdateRunningArgs {
                rule: BATCHNORM_MOMENTUM, unbiased: 1, factor: factor, batches: 7, states: p[1].cast(),
                mean: p[2].cast(), var: p[3].cast()
            });
        "step": batchnorm_step("problem gradient >parameter") = |p, factor| sized!(StepArgs {
            lr: factor, gradient: p[1].cast(), parameter: p[2].cast()
        });
        "renorm": batchnorm_renorm(
            "problem states mean var gamma? beta? >r? >d? >renorm_gamma? >renorm_beta?"
        ) = |p, factor| sized!(RenormArgs {
            states: p[1].cast(), mean: p[2].cast(), var: p[3].cast(), gamma: p[4].cast(), beta: p[5].cast(), eps: factor,
            r_max: 3.0, d_max: 5.0, r: p[6].cast(), d: p[7].cast(), renorm_gamma: p[8].cast(), renorm_beta: p[9].cast()
        });
        "fold": batchnorm_fold("problem mean var gamma? beta? >weight >bias") = |p, factor| sized!(FoldArgs {
            outer: 4, inner: 2, mean: p[1].cast(), var: p[2].cast(), gamma: p[3].cast(), beta: p[4].cast(), eps: factor,
            weight: p[5].cast(), bias: p[6].cast()
        });
        "merge": merge("problem >into from") = |p, factor| (p[1].cast(), p[2].cast_const().cast());
    }
}

/// As the others, though it has no struct of arguments.
unsafe fn mask_len(problem: *const Problem, words: &*mut usize) -> Status {
    // SAFETY: says the caller.
    unsafe { batchnorm_mask_len(problem, *words) }
}

/// As the others, though it needs no more of a problem than the channels.
unsafe fn merge(problem: *const Problem, args: &(*mut State, *const State)) -> Status {
    if problem.is_null() || !problem.is_aligned() {
        // SAFETY: refused.
        return unsafe { batchnorm_step(problem, &sized!(StepArgs { lr: 0.0 })) };
    }
    // SAFETY: says the caller.
    unsafe { batchnorm_merge((*problem).channels, args.0, args.1) }
}

/// Memory with all arguments of a function, right ones, and nothing between them that may be written.
struct Arena {
    memory: Vec<u64>,
    /// Of each argument, in bytes.
    starts: Vec<usize>,
}

/// Bytes around each argument, more than any argument has.
const GAP: usize = 1024;

impl Arena {
    fn new(function: &Function) -> Self {
        let mut starts = Vec::new();
        let mut end = GAP;
        for argument in &function.arguments {
            starts.push(end);
            end = (end + argument.bytes() + GAP).next_multiple_of(64);
        }
        // Numbers between 1 and 2, seen as f32 and as f64.
        let word =
            |i: u64| 0x3ff0_0000_3f80_0000 | (i * 0x9e37_79b9) & 0xf_ffff | ((i * 40503) & 0xffff) << 32;
        let mut arena = Self { memory: (0..end as u64 / 8).map(word).collect(), starts };
        let pointers = arena.pointers();
        for (argument, &at) in function.arguments.iter().zip(&pointers) {
            assert!(argument.bytes() < GAP);
            // SAFETY: within the memory, aligned to 8.
            unsafe {
                match argument.name {
                    "problem" => at.cast::<Problem>().write(table_problem(function.elements)),
                    "states" | "into" | "from" => {
                        (0..TABLE_C).for_each(|c| at.cast::<State>().add(c).write(table_state()));
                    }
                    // Of 16 bits, likewise between 1 and 2.
                    _ => match argument.element {
                        Some(BATCHNORM_BF16) => (0..argument.len)
                            .for_each(|i| at.cast::<u16>().add(i).write(0x3f80 | (i * 37) as u16 & 0x7f)),
                        Some(BATCHNORM_F16) => (0..argument.len)
                            .for_each(|i| at.cast::<u16>().add(i).write(0x3c00 | (i * 401) as u16 & 0x3ff)),
                        _ => (),
                    },
                }
            }
        }
        arena
    }

    fn pointers(&mut self) -> Vec<*mut u8> {
        let start = self.memory.as_mut_ptr().cast::<u8>();
        self.starts.iter().map(|at| start.wrapping_add(*at)).collect()
    }
}

fn last_message() -> String {
    let mut message = [0u8; 300];
    // SAFETY: 300 bytes.
    let len = unsafe { batchnorm_last_message(message.as_mut_ptr().cast(), message.len()) };
    std::str::from_utf8(&message[..len - 1]).unwrap().to_owned()
}

/// Calls the function on right arguments changed by `change`: it must be refused, with a message that has all `words`,
/// and leave all memory as it was.
#[track_caller]
fn refused(
    function: &Function,
    expected: Status,
    words: &[&str],
    change: impl FnOnce(&mut Vec<*mut u8>, &mut f64),
) {
    let mut arena = Arena::new(function);
    let (mut pointers, mut factor) = (arena.pointers(), 0.5);
    change(&mut pointers, &mut factor);
    let before = arena.memory.clone();
    let status = (function.call)(&pointers, factor);
    let message = last_message();
    assert_eq!(status, expected, "{} {words:?}: {message}", function.name);
    assert!(words.iter().all(|word| message.contains(word)), "{}: {message} {words:?}", function.name);
    assert!(arena.memory == before, "{} {words:?}: refused, but has written", function.name);
}

#[test]
fn right_arguments_are_accepted_and_only_outputs_written() {
    for function in all_functions() {
        let mut arena = Arena::new(&function);
        let pointers = arena.pointers();
        let before = arena.memory.clone();
        assert_eq!((function.call)(&pointers, 0.5), Status::Ok, "{}", function.name);
        let bytes =
            |memory: &[u64]| -> Vec<u8> { memory.iter().flat_map(|word| word.to_ne_bytes()).collect() };
        let (mut after, before) = (bytes(&arena.memory), bytes(&before));
        for (argument, &at) in function.arguments.iter().zip(&arena.starts).filter(|(a, _)| a.written) {
            let range = at..at + argument.bytes();
            assert_ne!(after[range.clone()], before[range.clone()], "{} {}", function.name, argument.name);
            after[range.clone()].copy_from_slice(&before[range]);
        }
        assert!(after == before, "{} has written beside its outputs", function.name);
    }
}

#[test]
fn null_pointers_are_errors_unless_they_may_be_null() {
    for function in all_functions() {
        for (i, argument) in function.arguments.iter().enumerate() {
            if argument.optional {
                let mut arena = Arena::new(&function);
                let mut pointers = arena.pointers();
                pointers[i] = null_mut();
                assert_eq!((function.call)(&pointers, 0.5), Status::Ok, "{}", argument.name);
            } else {
                let words = format!("{} is null", argument.name);
                refused(&function, Status::NullPointer, &[&words], |p, _| p[i] = null_mut());
            }
        }
    }
}

#[test]
fn misaligned_pointers_are_errors() {
    for function in all_functions() {
        for (i, argument) in function.arguments.iter().enumerate() {
            let words = format!("{} is 0x", argument.name);
            for by in (1..argument.align()).filter(|by| by.is_power_of_two() || *by == argument.align() - 1) {
                refused(&function, Status::Misaligned, &[&words], |p, _| p[i] = p[i].wrapping_add(by));
            }
        }
    }
}

/// Every argument that is written against every other, by the first and by the last of its elements.
#[test]
fn overlapping_pointers_are_errors() {
    let mut pairs = 0;
    for function in all_functions() {
        for (i, moved) in function.arguments.iter().enumerate() {
            // What is read before overlaps are known must stay what it is; others are moved onto it.
            if moved.name == "problem" {
                continue;
            }
            for (j, other) in function.arguments.iter().enumerate() {
                // `merge` looks at no problem.
                let unseen = function.name == "merge" && other.name == "problem";
                if i == j || unseen || !(moved.written || other.written) {
                    continue;
                }
                let last = (other.bytes() - 1) / moved.align() * moved.align();
                let before = (moved.bytes() - 1) / moved.align() * moved.align();
                let words = [moved.name, other.name, "overlaps"];
                if !moved.may_be(other) && !other.may_be(moved) {
                    refused(&function, Status::Overlap, &words, |p, _| p[i] = p[j]);
                }
                refused(&function, Status::Overlap, &words, |p, _| p[i] = p[j].wrapping_add(last));
                refused(&function, Status::Overlap, &words, |p, _| p[i] = p[j].wrapping_sub(before));
                pairs += 1;
            }
        }
    }
    assert!(pairs > 200, "{pairs}");
}

#[test]
fn results_may_be_written_over_inputs_where_the_header_says_so() {
    let mut forms = Vec::new();
    for function in all_functions() {
        for (i, output) in function.arguments.iter().enumerate() {
            for (j, input) in function.arguments.iter().enumerate().filter(|(_, input)| output.may_be(input))
            {
                let (mut apart, mut together) = (Arena::new(&function), Arena::new(&function));
                let mut pointers = together.pointers();
                pointers[i] = pointers[j];
                assert_eq!((function.call)(&apart.pointers(), 0.5), Status::Ok);
                assert_eq!((function.call)(&pointers, 0.5), Status::Ok, "{}", last_message());
                let words = output.bytes() / 8;
                let at = |arena: &Arena, i: usize| arena.memory[arena.starts[i] / 8..][..words].to_vec();
                assert_eq!(at(&apart, i), at(&together, j), "{} {}", function.name, input.name);
                forms.push((function.name, output.name, input.name));
            }
        }
        // Not over two at once, nor two over one.
        let place = |name| function.arguments.iter().position(|argument| argument.name == name);
        if let Some(dx) = place("dx") {
            refused(&function, Status::Overlap, &["dy overlaps dx"], |p, _| {
                (p[2], p[dx]) = (p[1], p[1]);
            });
            if let Some(dz) = place("dz") {
                refused(&function, Status::Overlap, &["dz overlaps dx"], |p, _| {
                    (p[dx], p[dz]) = (p[2], p[2]);
                });
            }
        }
        if let (Some(y), Some(residual)) = (place("y"), place("residual")) {
            refused(&function, Status::Overlap, &["overlaps y"], |p, _| {
                (p[y], p[residual]) = (p[1], p[1]);
            });
        }
    }
    forms.sort_unstable();
    forms.dedup();
    let expected = [
        ("backward", "dx", "dy"),
        ("backward", "dx", "x"),
        ("frozen", "dx", "dy"),
        ("frozen", "dx", "x"),
        ("fused backward", "dx", "dy"),
        ("fused backward", "dx", "x"),
        ("fused backward", "dz", "dy"),
        ("fused frozen", "dx", "dy"),
        ("fused frozen", "dx", "x"),
        ("fused inference", "y", "residual"),
        ("fused inference", "y", "x"),
        ("fused training", "y", "residual"),
        ("fused training", "y", "x"),
        ("inference", "y", "x"),
        ("training", "y", "x"),
    ];
    assert_eq!(forms, expected);
}

#[test]
fn sizes_that_overflow_are_errors() {
    for function in all_functions() {
        for large in [usize::MAX, usize::MAX / 2, isize::MAX as usize / 4 + 1] {
            refused(&function, Status::Overflow, &[], |p, _| {
                // SAFETY: the problem, which is aligned.
                let problem = unsafe { &mut *p[0].cast::<Problem>() };
                (problem.batch, problem.channels) = (1, large);
            });
        }
        if function.name == "merge" {
            continue;
        }
        for field in 0..3 {
            refused(&function, Status::Overflow, &["shape ["], |p, _| {
                // SAFETY: the problem, which is aligned.
                unsafe { (*p[0].cast::<Problem>()).spatial[field] = usize::MAX / 4 };
            });
        }
    }
    // Zero times that is no excuse.
    let call = &mut Call::new();
    call.problem = Problem { batch: 0, channels: usize::MAX, ..call.problem };
    let args = call.args();
    let status = call.training(&args);
    call.refused(status, Status::Overflow, "");
}

#[test]
fn factors_that_are_no_numbers_are_errors() {
    let mut refusals = 0;
    for function in all_functions() {
        let (status, word) = match function.name {
            "step" => (Status::NotFinite, "lr"),
            "update_running" => (Status::NotFinite, "momentum"),
            "statistics" | "mask_len" | "merge" => continue,
            _ => (Status::Epsilon, "eps"),
        };
        // What running statistics would grow by without bound.
        let beyond = if word == "momentum" { &[5.0, -1.0][..] } else { &[] };
        for &value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].iter().chain(beyond) {
            refused(&function, status, &[word], |_, factor| *factor = value);
            refusals += 1;
        }
    }
    assert_eq!(refusals, ELEMENTS.len() * (12 * 3 + 2));
}

/// Every field of the problem by every function: what is none of its values is refused, and all of its values are taken.
#[test]
fn fields_of_the_problem_that_mean_nothing_are_errors() {
    fn problem<'a>(p: &[*mut u8]) -> &'a mut Problem {
        // SAFETY: the problem, which is aligned, of an arena that lives as long as the closure that this is used in.
        unsafe { &mut *p[0].cast::<Problem>() }
    }
    for function in all_functions().iter().filter(|function| function.name != "merge") {
        let known = size_of::<Problem>();
        for size in [0, 1, 8, known - 9, 4097, usize::MAX] {
            let words = [&format!("problem->size is {size}, must be set to sizeof(batchnorm_problem)")[..]];
            refused(function, Status::Size, &words, |p, _| problem(p).size = size);
        }
        // What lies behind it in the arena is not 0.
        let words = [&format!("problem->size is {}, and byte {known} is set", known + 8)[..]];
        refused(function, Status::Size, &words, |p, _| problem(p).size = known + 8);
        for element in [4, u32::MAX] {
            let words = [&format!("element is {element}, must be 0 (f32), 1 (f64), 2 (bf16) or 3 (f16)")[..]];
            refused(function, Status::UnknownValue, &words, |p, _| problem(p).element = element);
        }
        // The elements' own numbers among them, f32's aside.
        for y_element in [1, 2, 3, 15, 17, 20, 1 << 32, u64::MAX] {
            let words = [&format!("y_element is {y_element}, must be 0 (the same)")[..]];
            refused(function, Status::UnknownValue, &words, |p, _| problem(p).y_element = y_element);
        }
        for y_element in [BATCHNORM_Y_F32, BATCHNORM_Y_BF16, BATCHNORM_Y_F16] {
            let words =
                [&format!("y_element is {y_element}, must be 0 (the same) where element is 1 (f64)")[..]];
            refused(function, Status::UnknownValue, &words, |p, _| {
                (problem(p).element, problem(p).y_element) = (BATCHNORM_F64, y_element);
            });
        }
        for layout in [2, u32::MAX] {
            let words = [&format!("layout is {layout}")[..]];
            refused(function, Status::UnknownValue, &words, |p, _| problem(p).layout = layout);
        }
        for threads in [0, 1, 2, 1000, usize::MAX] {
            let (mut arena, mut default) = (Arena::new(function), Arena::new(function));
            let (pointers, default_pointers) = (arena.pointers(), default.pointers());
            problem(&pointers).threads = threads;
            assert_eq!((function.call)(&pointers, 0.5), Status::Ok, "{} {threads}", function.name);
            assert_eq!((function.call)(&default_pointers, 0.5), Status::Ok);
            problem(&pointers).threads = 0;
            assert!(arena.memory == default.memory, "{} has other bits on {threads}", function.name);
        }
        // Older callers' problems, which have no threads, none of their own, or no other y: whatever lies there is not
        // looked at.
        for size in
            [offset_of!(Problem, threads), offset_of!(Problem, threadpool), offset_of!(Problem, y_element)]
        {
            let mut arena = Arena::new(function);
            let pointers = arena.pointers();
            problem(&pointers).size = size;
            problem(&pointers).threads = 1;
            if size < offset_of!(Problem, y_element) {
                problem(&pointers).threadpool = null::<HostPool>().wrapping_byte_add(1);
            }
            problem(&pointers).y_element = u64::MAX;
            assert_eq!((function.call)(&pointers, 0.5), Status::Ok, "{}", last_message());
        }
        let set =
            |pool: *const HostPool| move |p: &mut Vec<*mut u8>, _: &mut f64| problem(p).threadpool = pool;
        let right = host_pool();
        for size in [0, 8, size_of::<HostPool>() - 8, size_of::<HostPool>() - 1, 4097] {
            let words =
                [&format!("threadpool->size is {size}, must be set to sizeof(batchnorm_threadpool)")[..]];
            refused(function, Status::Size, &words, set(&HostPool { size, ..right }));
        }
        let later = Longer(HostPool { size: size_of::<Longer<HostPool>>(), ..right }, [0, 1]);
        refused(function, Status::Size, &["threadpool->size is", "is set"], set(&later.0));
        let misaligned = (&raw const right).wrapping_byte_add(4);
        refused(function, Status::Misaligned, &["threadpool is 0x"], set(misaligned));
        let missing = HostPool { threads: None, ..right };
        refused(function, Status::NullPointer, &["threadpool->threads is null"], set(&missing));
        let missing = HostPool { run: None, ..right };
        refused(function, Status::NullPointer, &["threadpool->run is null"], set(&missing));
        // Those that may be missing are: the same bits. What is written may not be the pool.
        let (mut arena, mut default) = (Arena::new(function), Arena::new(function));
        let (pointers, default_pointers) = (arena.pointers(), default.pointers());
        problem(&pointers).threadpool = &right;
        assert_eq!((function.call)(&pointers, 0.5), Status::Ok, "{}", last_message());
        assert_eq!((function.call)(&default_pointers, 0.5), Status::Ok);
        problem(&pointers).threadpool = null();
        assert!(arena.memory == default.memory, "{} has other bits on a host's threads", function.name);
        let written = function.arguments.iter().position(|argument| argument.written).unwrap();
        refused(function, Status::Overlap, &["overlaps threadpool"], |p, _| {
            problem(p).threadpool = &right;
            p[written] = (&raw const right).cast_mut().cast();
        });
    }
}

/// A host's pool that is right, of one thread.
fn host_pool() -> HostPool {
    unsafe extern "C" fn threads(_: *mut c_void) -> usize {
        1
    }
    unsafe extern "C" fn run(_: *mut c_void, tasks: usize, task: HostTask, argument: *mut c_void) {
        // SAFETY: the argument that came with it, and each number.
        (0..tasks).for_each(|number| unsafe { task(argument, number) });
    }
    sized!(HostPool { threads: Some(threads), run: Some(run) })
}

/// A struct of arguments with 16 bytes behind it, as a later version might have it.
#[repr(C)]
struct Longer<A>(A, [u64; 2]);

#[test]
fn structs_of_arguments_have_their_size() {
    /// Calls `function` with arguments of every wrong size, and of right ones.
    fn check<A: Copy>(
        args: A,
        name: &str,
        function: unsafe extern "C" fn(*const Problem, *const A) -> Status,
    ) {
        let problem = sized!(Problem { batch: 1 });
        let mut longer = Longer(args, [0, 0]);
        let known = size_of::<A>();
        let mut call = |size: usize, behind: [u64; 2]| {
            longer.1 = behind;
            let at = &raw mut longer;
            // SAFETY: the size comes first; no struct says more than there is, or is refused. There are no channels.
            unsafe {
                at.cast::<usize>().write(size);
                function(&problem, at.cast())
            }
        };
        assert_eq!(call(known, [1, 1]), Status::Ok);
        assert_eq!(call(known + 16, [0, 0]), Status::Ok);
        for size in [0, 1, 8, known - 1, 4097, usize::MAX] {
            assert_eq!(call(size, [0, 0]), Status::Size);
            let words = format!("args->size is {size}, must be set to sizeof({name}), which is {known}");
            assert!(last_message().starts_with(&words), "{}", last_message());
        }
        assert_eq!(call(known + 16, [0, 1]), Status::Size);
        let words = format!("args->size is {}, and byte {} is set", known + 16, known + 8);
        assert!(last_message().starts_with(&words), "{}", last_message());
        // SAFETY: refused.
        unsafe {
            assert_eq!(function(&problem, null()), Status::NullPointer);
            assert_eq!(last_message(), format!("args is null, must be a {name}"));
            let at = (&raw const longer).wrapping_byte_add(4).cast();
            assert_eq!(function(&problem, at), Status::Misaligned);
            assert!(last_message().starts_with("args is 0x"), "{}", last_message());
        }
    }
    check(sized!(StatisticsArgs { x: null() }), "batchnorm_statistics_args", batchnorm_statistics);
    check(sized!(TrainingArgs { x: null() }), "batchnorm_training_args", batchnorm_training);
    check(sized!(InferenceArgs { x: null() }), "batchnorm_inference_args", batchnorm_inference);
    check(sized!(BackwardArgs { x: null() }), "batchnorm_backward_args", batchnorm_backward);
    let update = sized!(UpdateRunningArgs { rule: 0 });
    check(update, "batchnorm_update_running_args", batchnorm_update_running);
    check(sized!(StepArgs { lr: 0.0 }), "batchnorm_step_args", batchnorm_step);
    check(sized!(RenormArgs { eps: 0.0 }), "batchnorm_renorm_args", batchnorm_renorm);
    check(sized!(FoldArgs { eps: 0.0 }), "batchnorm_fold_args", batchnorm_fold);
}

/// What can be wrong with an activation, by each operation that takes one: nothing that it was given may change.
#[test]
fn activations_that_do_not_fit_are_errors() {
    let problem = sized!(Problem { batch: 4, channels: 2, spatial: [3, 0, 0] });
    let right = State { count: 12, mean: 1.0, m2: 3.0, ..State::default() };
    let states = [right; 2];
    // x, dy and residual; mean and var; y and dx, dz; then the words of a mask.
    let mut memory: Vec<f64> = (0..128).map(|i| f64::from(i) / 8.0 + 1.0).collect();
    let mut written_states = states;
    let start = memory.as_mut_ptr();
    let at = |i: usize| start.wrapping_add(i);
    let (tensor, vector, [y, dz]) = (at(0).cast::<c_void>(), at(24).cast::<c_void>(), [at(32), at(64)]);
    let mask = at(96).cast::<u64>();
    let (training, inference, backward) = (
        sized!(TrainingArgs { x: tensor, eps: 1e-5, y: y.cast(), states: written_states.as_mut_ptr() }),
        sized!(InferenceArgs { x: tensor, mean: vector, var: vector, eps: 1e-5, y: y.cast() }),
        sized!(BackwardArgs { x: tensor, dy: tensor, states: states.as_ptr(), eps: 1e-5, dx: y.cast() }),
    );
    let problem = Problem { element: BATCHNORM_F64, ..problem };
    let (before, states_before) = (memory.clone(), written_states);
    let refused = |status: Status, expected: Status, words: &str| {
        let message = last_message();
        assert_eq!(status, expected, "{words:?}: {message}");
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    };
    // SAFETY: as long as the problem says, or refused before they are looked at.
    let by_each = |activation: u64, with: &str, [slope, lo, hi]: [f64; 3], expected: Status, words: &str| unsafe {
        let (residual, mask) = match with {
            "residual" => (tensor.cast_const(), null_mut()),
            "mask" => (null(), mask),
            _ => (null(), null_mut()),
        };
        let args = TrainingArgs { activation, slope, lo, hi, residual, mask, ..training };
        refused(batchnorm_training(&problem, &args), expected, words);
        let args = InferenceArgs { activation, slope, lo, hi, residual, mask, ..inference };
        refused(batchnorm_inference(&problem, &args), expected, words);
        let dz = if with == "residual" { dz.cast() } else { null_mut() };
        let args = BackwardArgs { activation, slope, lo, hi, mask, dz, ..backward };
        refused(batchnorm_backward(&problem, &args), expected, words);
    };
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    for activation in [6, 1 << 32, u64::MAX] {
        let words = format!("activation is {activation}, must be 0 (identity), 1 (ReLU)");
        by_each(activation, "", [0.0; 3], Status::UnknownValue, &words);
    }
    for slope in [nan, infinity, -infinity] {
        by_each(BATCHNORM_LEAKY_RELU, "", [slope, 0.0, 0.0], Status::NotFinite, "slope is");
    }
    for [lo, hi] in [[1.0, 0.0], [nan, 1.0], [0.0, nan], [infinity; 2], [-infinity; 2]] {
        by_each(BATCHNORM_CLIP, "", [0.0, lo, hi], Status::Clip, "clip is from");
    }
    for (activation, name) in [(BATCHNORM_HARD_SWISH, "hard swish"), (BATCHNORM_SILU, "SiLU")] {
        for what in ["residual", "mask"] {
            let words = format!("{name} goes with no {what}");
            by_each(activation, what, [0.0; 3], Status::Activation, &words);
        }
    }
    for (activation, name) in
        [(BATCHNORM_RELU, "ReLU"), (BATCHNORM_LEAKY_RELU, "leaky"), (BATCHNORM_CLIP, "clip")]
    {
        let args = BackwardArgs { activation, dz: dz.cast(), ..backward };
        let words = "mask is null, must have the forward pass's 1 words, since dz is asked for through ";
        // SAFETY: as long as the problem says.
        let status = unsafe { batchnorm_backward(&problem, &args) };
        refused(status, Status::NullPointer, &format!("{words}{name}"));
    }
    assert!(memory == before && written_states == states_before, "refused, but has written");
    // Through none, dz is dy.
    let args = BackwardArgs { dz: dz.cast(), ..backward };
    // SAFETY: as long as the problem says.
    assert_eq!(unsafe { batchnorm_backward(&problem, &args) }, Status::Ok);
    assert_eq!(memory[64..88], before[..24]);
}

/// Normalizes one element a channel by mean 0 and variance 1, which gives y what x is, as this problem says.
fn converted<X, Y: Copy + Default>(x: &[X], problem: Problem) -> Vec<Y> {
    let (mean, var, mut y) = (vec![0.0f32; x.len()], vec![1.0f32; x.len()], vec![Y::default(); x.len()]);
    let args = sized!(InferenceArgs {
        x: x.as_ptr().cast(),
        mean: mean.as_ptr().cast(),
        var: var.as_ptr().cast(),
        y: y.as_mut_ptr().cast()
    });
    let problem = Problem { batch: 1, channels: x.len(), ..problem };
    // SAFETY: as long as the problem says.
    assert_eq!(unsafe { batchnorm_inference(&problem, &args) }, Status::Ok, "{}", last_message());
    y
}

/// By values that are known: halfway ones, subnormal ones, those beyond the largest number, NaN.
#[test]
fn tensors_of_16_bits_are_widened_exactly_and_rounded_once() {
    let (ulp, least) = (f32::EPSILON, 2f32.powi(-24)); // least: f16's smallest subnormal number
    let bf16 = [
        (1.0, 0x3f80),
        (-2.5, 0xc020),
        (1.0 + 2f32.powi(-8), 0x3f80),
        (1.0 + 2f32.powi(-8) + ulp, 0x3f81),
        (1.0 + 3.0 * 2f32.powi(-8), 0x3f82),
        (f32::from_bits(0x1_8000), 2),
        (f32::from_bits(0x8000), 0),
        (f32::from_bits(0x8001), 1),
        (f32::MAX, 0x7f80),
        (f32::NEG_INFINITY, 0xff80),
        (f32::from_bits(0xffff_ffff), 0x7fc0),
    ];
    let f16 = [
        (1.0, 0x3c00),
        (-2.5, 0xc100),
        (1.0 + 2f32.powi(-11), 0x3c00),
        (1.0 + 2f32.powi(-11) + ulp, 0x3c01),
        (1.0 + 3.0 * 2f32.powi(-11), 0x3c02),
        (1.5 * least, 2),
        (0.5 * least, 0),
        (0.500001 * least, 1),
        (65519.996, 0x7bff),
        (65520.0, 0x7c00),
        (-1e30, 0xfc00),
        (f32::from_bits(0xffff_ffff), 0x7e00),
    ];
    for (element, y_element, numbers) in
        [(BATCHNORM_BF16, BATCHNORM_Y_BF16, &bf16[..]), (BATCHNORM_F16, BATCHNORM_Y_F16, &f16[..])]
    {
        let (values, bits): (Vec<f32>, Vec<u16>) = numbers.iter().copied().unzip();
        for layout in [BATCHNORM_NCHW, BATCHNORM_NHWC] {
            let problem = sized!(Problem { layout: layout, y_element: y_element });
            assert_eq!(converted::<f32, u16>(&values, problem), bits, "{element}");
            // What has been rounded stays; a NaN becomes the canonical one.
            let problem = sized!(Problem { layout: layout, element: element });
            assert_eq!(converted::<u16, u16>(&bits, problem), bits, "{element}");
            let nan = bits.last().unwrap();
            assert_eq!(converted::<u16, u16>(&[nan | 0x8001], problem), [*nan], "{element}");
            let older = Problem { size: offset_of!(Problem, y_element), y_element: 99, ..problem };
            assert_eq!(converted::<u16, u16>(&bits, older), bits, "{element}");
        }
    }
    let wide = |element: u32, bits: &[u16]| -> Vec<f32> {
        converted(bits, sized!(Problem { element: element, y_element: BATCHNORM_Y_F32 }))
    };
    let numbers = wide(BATCHNORM_BF16, &[0x3f80, 0xc020, 0x0001, 0x7f7f, 0xff80]);
    let expected = [1.0, -2.5, f32::from_bits(0x1_0000), f32::from_bits(0x7f7f_0000), f32::NEG_INFINITY];
    assert_eq!(numbers, expected);
    let numbers = wide(BATCHNORM_F16, &[0x3c00, 0xc100, 0x0001, 0x83ff, 0x7bff, 0xfc00]);
    assert_eq!(numbers, [1.0, -2.5, least, -1023.0 * least, 65504.0, f32::NEG_INFINITY]);
    assert!(wide(BATCHNORM_BF16, &[0x7f81])[0].is_nan() && wide(BATCHNORM_F16, &[0xfdff])[0].is_nan());
}

/// As their callers know them: whatever lies behind is not looked at, and stands for no activation, residual and mask.
#[test]
fn structs_of_older_callers_mean_no_activation() {
    let call = &mut Call::new();
    call.x.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 7 % 11) as f32);
    let (x, given) = (call.x.as_ptr().cast::<c_void>(), call.per_channel.as_ptr().cast::<c_void>());
    let unknown = (null::<c_void>().wrapping_byte_add(1), null_mut::<u64>().wrapping_byte_add(1));
    let mut outputs = Vec::new();
    for later in [false, true] {
        let (mut y, mut states) = (vec![0.0f32; 24 * 3], vec![State::default(); 2]);
        let at = |i: usize, y: &mut Vec<f32>| y[24 * i..].as_mut_ptr().cast::<c_void>();
        let mut training =
            sized!(TrainingArgs { x: x, eps: 1e-5, y: at(0, &mut y), states: states.as_mut_ptr() });
        let mut inference =
            sized!(InferenceArgs { x: x, mean: given, var: given, eps: 1e-5, y: at(1, &mut y) });
        let mut backward =
            sized!(BackwardArgs { x: x, dy: x, mean: given, var: given, eps: 1e-5, dx: at(2, &mut y) });
        if !later {
            (training.activation, training.residual, training.mask) = (99, unknown.0, unknown.1);
            (inference.activation, inference.residual, inference.mask) = (99, unknown.0, unknown.1);
            (backward.activation, backward.beta, backward.dz) = (99, unknown.0, unknown.0.cast_mut());
            training.size = offset_of!(TrainingArgs, activation);
            inference.size = offset_of!(InferenceArgs, activation);
            backward.size = offset_of!(BackwardArgs, activation);
        }
        // SAFETY: as long as the problem says; what is not is not looked at.
        unsafe {
            assert_eq!(batchnorm_training(&call.problem, &training), Status::Ok, "{}", last_message());
            assert_eq!(batchnorm_inference(&call.problem, &inference), Status::Ok, "{}", last_message());
            assert_eq!(batchnorm_backward(&call.problem, &backward), Status::Ok, "{}", last_message());
            // What every version has had is the least.
            if !later {
                training.size -= 8;
                assert_eq!(batchnorm_training(&call.problem, &training), Status::Size);
                inference.size -= 8;
                assert_eq!(batchnorm_inference(&call.problem, &inference), Status::Size);
                backward.size -= 8;
                assert_eq!(batchnorm_backward(&call.problem, &backward), Status::Size);
            }
        }
        assert!(y.iter().any(|y| *y < 0.0));
        outputs.push((y, states));
    }
    assert!(outputs[0] == outputs[1]);
}

/// What goes with another activation may hold anything.
#[test]
fn numbers_of_other_activations_are_not_looked_at() {
    let call = &mut Call::new();
    call.x.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 7 % 11) as f32);
    let mut results = |activation: u64, slope: f64, lo: f64, hi: f64| {
        let args = TrainingArgs { activation, slope, lo, hi, ..call.args() };
        assert_eq!(call.training(&args), Status::Ok, "{}", last_message());
        let (x, states, mut dx) = (call.x.as_ptr().cast(), call.states.as_ptr(), vec![0.0f32; 24]);
        let args = sized!(BackwardArgs {
            x: x,
            dy: x,
            states: states,
            eps: 1e-5,
            dx: dx.as_mut_ptr().cast(),
            activation: activation,
            slope: slope,
            lo: lo,
            hi: hi
        });
        // SAFETY: as long as the problem says.
        assert_eq!(unsafe { batchnorm_backward(&call.problem, &args) }, Status::Ok, "{}", last_message());
        (call.y.clone(), dx)
    };
    let nan = f64::NAN;
    for activation in [BATCHNORM_IDENTITY, BATCHNORM_RELU, BATCHNORM_HARD_SWISH, BATCHNORM_SILU] {
        assert!(results(activation, nan, nan, nan) == results(activation, 0.0, 0.0, 0.0), "{activation}");
    }
    let leaky = results(BATCHNORM_LEAKY_RELU, 0.25, 2.0, 1.0);
    assert!(leaky == results(BATCHNORM_LEAKY_RELU, 0.25, 0.0, 0.0));
    assert!(leaky != results(BATCHNORM_LEAKY_RELU, 0.5, 0.0, 0.0));
    let clip = results(BATCHNORM_CLIP, f64::INFINITY, -0.5, 0.5);
    assert!(clip == results(BATCHNORM_CLIP, 0.0, -0.5, 0.5));
    assert!(clip != results(BATCHNORM_CLIP, 0.0, -0.5, 1.0));
}

/// Where there are no elements there are no words, and null stands for them.
#[test]
fn masks_of_no_elements_are_none() {
    let mut words = 77;
    for (batch, channels, elements) in [(4, 2, 24), (0, 2, 0), (4, 0, 0), (64, 1, 192), (65, 1, 195)] {
        let problem = sized!(Problem { batch: batch, channels: channels, spatial: [3, 0, 0] });
        // SAFETY: one number.
        assert_eq!(unsafe { batchnorm_mask_len(&problem, &mut words) }, Status::Ok);
        assert_eq!(words, usize::div_ceil(elements, 64));
        let shape = Shape::nchw(&[batch, channels, 3]).unwrap();
        assert_eq!(words, shape.mask_len());
    }
    let problem = sized!(Problem { batch: 0, channels: 2 });
    let (mut states, mut nothing) = ([no_state(); 2], 1.0f32);
    let training = sized!(TrainingArgs {
        eps: 1e-5,
        states: states.as_mut_ptr(),
        activation: BATCHNORM_RELU,
        residual: (&raw const nothing).cast()
    });
    // SAFETY: nothing is looked at but the states.
    assert_eq!(unsafe { batchnorm_training(&problem, &training) }, Status::Ok, "{}", last_message());
    assert_eq!(states, [State::default(); 2]);
    let dz = (&raw mut nothing).cast();
    let args =
        sized!(BackwardArgs { states: states.as_ptr(), eps: 1e-5, activation: BATCHNORM_RELU, dz: dz });
    // SAFETY: likewise.
    assert_eq!(unsafe { batchnorm_backward(&problem, &args) }, Status::Ok, "{}", last_message());
    assert_eq!(nothing, 1.0);
}

/// Results over the structs that say where they go.
#[test]
fn what_is_written_overlaps_no_struct() {
    let call = &mut Call::new();
    let mut args = call.args();
    args.states = (&raw mut args).cast();
    let status = call.training(&args);
    call.refused(status, Status::Overlap, "states overlaps args");
    let args = TrainingArgs { y: (&raw mut call.problem).cast(), ..call.args() };
    let status = call.training(&args);
    call.refused(status, Status::Overlap, "y overlaps problem");
}

#[test]
fn statistics_of_training_exclude_given_ones() {
    let call = &mut Call::new();
    let given = call.per_channel.as_ptr().cast::<c_void>();
    let x = call.x.as_ptr().cast();
    let dx = call.y.as_mut_ptr().cast();
    let right = sized!(BackwardArgs { x: x, dy: x, states: call.states.as_ptr(), eps: 1e-5, dx: dx });
    for (args, expected, words) in [
        (BackwardArgs { mean: given, ..right }, Status::Exclusive, "mean is given, must be null"),
        (BackwardArgs { var: given, ..right }, Status::Exclusive, "var is given, must be null"),
        (
            BackwardArgs { states: null(), ..right },
            Status::NullPointer,
            "states is null, must have 2 elements, or mean",
        ),
        (BackwardArgs { states: null(), mean: given, ..right }, Status::NullPointer, "var is null"),
        (BackwardArgs { states: null(), var: given, ..right }, Status::NullPointer, "mean is null"),
    ] {
        // SAFETY: as long as the problem says.
        let status = unsafe { batchnorm_backward(&call.problem, &args) };
        call.refused(status, expected, words);
    }
}

/// The states of a program's own making, whose counts leave u64 together.
#[test]
fn counts_that_overflow_are_errors() {
    let states = |counts: [u64; 2]| counts.map(|count| State { count, ..table_state() });
    let mut into = states([3, u64::MAX - 4]);
    let from = states([1, 5]);
    // SAFETY: two states each.
    let status = unsafe { batchnorm_merge(2, into.as_mut_ptr(), from.as_ptr()) };
    assert_eq!((status, into), (Status::Overflow, states([3, u64::MAX - 4])), "{}", last_message());
    assert!(last_message().contains("into[1] counts 18446744073709551611"), "{}", last_message());
    let from = states([1, 4]);
    // SAFETY: two states each.
    let status = unsafe { batchnorm_merge(2, into.as_mut_ptr(), from.as_ptr()) };
    assert_eq!((status, into[1].count), (Status::Ok, u64::MAX));
}

/// The fields that C sees are those that Rust's functions give.
#[test]
fn a_state_has_the_fields_of_a_welford() {
    let x = [1e9 + 0.1, 1e9 + 0.7, 1e9 + 0.4];
    let expected: Welford = x.into_iter().collect();
    let mut states = [State::default(); 3];
    // SAFETY: one sample of one channel each; then one state each.
    unsafe {
        let at = states.as_mut_ptr();
        for (i, x) in x.iter().enumerate() {
            let one = sized!(Problem { element: BATCHNORM_F64, batch: 1, channels: 1 });
            let x = (&raw const *x).cast();
            let args = sized!(StatisticsArgs { x: x, states: at.add(i) });
            assert_eq!(batchnorm_statistics(&one, &args), Status::Ok);
        }
        assert_eq!(batchnorm_merge(1, at, at.add(1)), Status::Ok);
        assert_eq!(batchnorm_merge(1, at, at.add(2)), Status::Ok);
    }
    let state = states[0];
    assert_eq!((state.count, state.mean + state.mean_low), (expected.count(), expected.mean()));
    assert!(state.mean_low != 0.0);
    assert_eq!(state.m2, expected.m2());
}

#[test]
fn messages_are_each_threads_own() {
    let fail = |name: &str| {
        let call = &mut Call::new();
        let args = match name {
            "x" => TrainingArgs { x: null(), ..call.args() },
            _ => TrainingArgs { y: null_mut(), ..call.args() },
        };
        assert_eq!(call.training(&args), Status::NullPointer);
    };
    fail("x");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(last_message(), "");
            fail("y");
            assert!(last_message().starts_with("y is null"));
        });
    });
    assert!(last_message().starts_with("x is null"));
    // A call that succeeds leaves it.
    let call = &mut Call::new();
    let args = call.args();
    assert_eq!(call.training(&args), Status::Ok);
    assert!(last_message().starts_with("x is null"));
}

/// Memory of C's may hold anything where states are to be.
#[test]
fn nonsense_in_place_of_states_is_refused() {
    let good = State { count: 4, mean: 1.0, m2: 2.0, ..State::default() };
    let bad = [
        State { m2: -1.0, ..good },
        State { exponent: i64::MAX, ..good },
        State { mean: f64::INFINITY, ..good },
        State { mean_low: f64::NAN, ..good },
        State { count: 0, ..good },
    ];
    let x = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let problem = sized!(Problem { batch: 4, channels: 2 });
    for bad in bad {
        let (states, mut dx) = ([good, bad], [9.0f32; 8]);
        let (from, to) = (x.as_ptr().cast(), dx.as_mut_ptr().cast());
        let args = sized!(BackwardArgs { x: from, dy: from, states: states.as_ptr(), eps: 1e-5, dx: to });
        // SAFETY: pointers to what there has to be.
        assert_eq!(unsafe { batchnorm_backward(&problem, &args) }, Status::State, "{bad:?}");
        assert!(last_message().starts_with("states[1]: "), "{}", last_message());
        assert_eq!(dx, [9.0; 8]);
        for [mut into, from] in [[[good, good], states], [states, [good, good]]] {
            let before = into;
            // SAFETY: two states each.
            let status = unsafe { batchnorm_merge(2, into.as_mut_ptr(), from.as_ptr()) };
            assert_eq!((status, format!("{into:?}")), (Status::State, format!("{before:?}")));
        }
    }
}

#[test]
fn every_status_has_its_message() {
    const LAST: i32 = Status::Weights as i32;
    let message = |status| {
        // SAFETY: a static string.
        unsafe { std::ffi::CStr::from_ptr(batchnorm_status_message(status)) }.to_str().unwrap()
    };
    let unknown = message(-1);
    let mut messages: Vec<&str> = (0..=LAST).map(message).collect();
    assert!(messages.iter().all(|text| *text != unknown && !text.is_empty()));
    messages.sort_unstable();
    messages.dedup();
    assert_eq!(messages.len(), LAST as usize + 1);
    for status in [LAST + 1, i32::MIN, i32::MAX] {
        assert_eq!(message(status), unknown);
    }
}

#[test]
fn levels_can_be_asked_for_and_forced() {
    for level in [BATCHNORM_PORTABLE, BATCHNORM_AVX2, BATCHNORM_AVX512] {
        let available = batchnorm::Level::available().iter().any(|have| *have as u32 == level);
        let status = batchnorm_force_level(level);
        assert_eq!(status, if available { Status::Ok } else { Status::Level });
        if available {
            assert_eq!(batchnorm_active_level(), level);
        }
    }
    let before = batchnorm_active_level();
    assert_eq!((batchnorm_force_level(4), batchnorm_active_level()), (Status::UnknownValue, before));
    assert_eq!(batchnorm_force_level(0), Status::Ok);
}

#[test]
fn what_the_operations_refuse_comes_back_as_a_status() {
    let call = &mut Call::new();
    for eps in [-1e-9, f64::NAN, f64::INFINITY] {
        let args = TrainingArgs { eps, ..call.args() };
        let status = call.training(&args);
        call.refused(status, Status::Epsilon, "eps");
    }
    let (x, y) = (call.x.as_ptr().cast::<c_void>(), call.y.as_mut_ptr());
    let single = [State { count: 1, ..State::default() }; 2];
    let (mean, var) = (y.cast::<c_void>(), y.wrapping_add(2).cast());
    let right =
        sized!(UpdateRunningArgs { unbiased: 1, factor: 0.9, states: single.as_ptr(), mean: mean, var: var });
    // SAFETY: as long as the problem says.
    unsafe {
        let args = sized!(BackwardArgs { x: x, dy: x, states: call.states.as_ptr(), eps: 1e-5, dx: mean });
        let status = batchnorm_backward(&call.problem, &args);
        call.refused(status, Status::Count, "77");
        let status =
            batchnorm_step(&call.problem, &sized!(StepArgs { lr: f64::NAN, gradient: x, parameter: mean }));
        call.refused(status, Status::NotFinite, "lr");
        for (args, expected, words) in [
            (right, Status::SingleElement, "unbiased"),
            (UpdateRunningArgs { rule: 3, ..right }, Status::UnknownValue, "rule is 3"),
            (UpdateRunningArgs { unbiased: 2, ..right }, Status::UnknownValue, "unbiased is 2"),
            (UpdateRunningArgs { factor: f64::NAN, ..right }, Status::NotFinite, "decay is NaN"),
        ] {
            let status = batchnorm_update_running(&call.problem, &args);
            call.refused(status, expected, words);
        }
    }
}

/// Weights are as long as their sizes say, an axis of 0 left out; groups divide rows and channels.
#[test]
fn weights_have_the_sizes_of_their_axes() {
    const C: usize = 4;
    let problem =
        sized!(Problem { element: BATCHNORM_BF16, batch: 1, channels: C, y_element: BATCHNORM_Y_F32 });
    let (mean, var) = ([1.0f32, 2.0, 3.0, 4.0], [1.0f32, 4.0, 16.0, 64.0]);
    // 1 in bf16, and by 1, 1/2, 1/4, 1/8.
    let (one, scaled) = (0x3f80u16, [0x3f80u16, 0x3f00, 0x3e80, 0x3e00]);
    let args = |weight: &mut [u16], bias: &mut [f32]| {
        sized!(FoldArgs {
            mean: mean.as_ptr().cast(),
            var: var.as_ptr().cast(),
            weight: weight.as_mut_ptr().cast(),
            bias: bias.as_mut_ptr().cast()
        })
    };
    for (outer, inner, groups, channel) in [
        (0, 0, 0, (|i| i) as fn(usize) -> usize),
        (1, 3, 1, |i| i / 3),
        (5, 0, 0, |i| i % 4),
        (2, 3, 0, |i| i / 3 % 4),
        // Two rows of two channels of three, for each of two groups.
        (4, 3, 2, |i| i / 12 * 2 + i / 3 % 2),
        (8, 2, 4, |i| i / 4),
    ] {
        let len = usize::max(outer, 1) * C / usize::max(groups, 1) * usize::max(inner, 1);
        let (mut weight, mut bias) = (vec![one; len], [1.0f32; C]);
        let args = FoldArgs { outer, inner, groups, ..args(&mut weight, &mut bias) };
        // SAFETY: as long as the sizes say.
        assert_eq!(unsafe { batchnorm_fold(&problem, &args) }, Status::Ok, "{}", last_message());
        let expected: Vec<u16> = (0..len).map(|i| scaled[channel(i)]).collect();
        assert_eq!((weight, bias), (expected, [0.0, -0.5, -0.5, -0.375]), "{outer} {inner} {groups}");
    }
    let (mut weight, mut bias) = ([one; 24], [1.0f32; C]);
    let (most, right) = (isize::MAX as usize, args(&mut weight, &mut bias));
    for (outer, inner, groups, expected, words) in [
        (4, 3, 3, Status::Groups, "groups is 3, must divide the number of channels, 4"),
        (
            3,
            3,
            2,
            Status::Groups,
            "groups is 2, must divide the number of rows before the output channels, 3",
        ),
        (
            0,
            6,
            2,
            Status::Groups,
            "groups is 2, must divide the number of rows before the output channels, 1",
        ),
        (most, 3, 0, Status::Overflow, "shape ["),
        (0, most, 0, Status::Overflow, "shape ["),
        (4, 3, usize::MAX, Status::Groups, "groups is 18446744073709551615"),
    ] {
        let args = FoldArgs { outer, inner, groups, ..right };
        // SAFETY: refused.
        let status = unsafe { batchnorm_fold(&problem, &args) };
        assert_eq!(status, expected, "{}", last_message());
        assert!(last_message().contains(words), "{}", last_message());
    }
    assert_eq!((weight, bias), ([one; 24], [1.0; C]));
    // Without channels there is nothing to fold, whatever the axes.
    let problem = Problem { channels: 0, ..problem };
    let args = FoldArgs { outer: 1 << 39, inner: 1 << 20, groups: 1 << 39, ..right };
    // SAFETY: no elements.
    assert_eq!(unsafe { batchnorm_fold(&problem, &args) }, Status::Ok, "{}", last_message());
}

#[test]
fn messages_are_cut_to_the_buffer() {
    let call = &mut Call::new();
    let args = TrainingArgs { x: null(), ..call.args() };
    let status = call.training(&args);
    call.refused(status, Status::NullPointer, "x is null");
    let mut short = [1u8; 5];
    // SAFETY: 5 bytes, then none.
    unsafe {
        let len = batchnorm_last_message(short.as_mut_ptr().cast(), 5);
        assert!(len > 5 && &short == b"x is\0");
        assert_eq!(batchnorm_last_message(null_mut(), 0), len);
    }
}
