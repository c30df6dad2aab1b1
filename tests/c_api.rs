//! The C interface: from Rust with arguments that it must refuse, and from C11 and C++17 programs, linked against the
//! shared and the static library, with results that are compared to the bit.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use batchnorm::ffi::*;
use batchnorm::{
    Element, Gradients, Layout, Params, RunningUpdate, RunningVariance, Shape, UpdateRule, Welford, backward,
    backward_frozen, forward_inference, forward_training, statistics, step, update_running,
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
const SPATIAL: [usize; 3] = [1, 9, 11];
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
    let gradients = Gradients::new().dx(&mut dx).dgamma(&mut dgamma);
    backward_frozen(&shape, &x, &dy, &mean, &var, &Params::new(1e-5), gradients).unwrap();
    all = hash(hash(all, bytes(&dx)), bytes(&dgamma));
    let update = RunningUpdate { rule: UpdateRule::Momentum(0.1), variance: RunningVariance::Unbiased };
    update_running(update, 0, &states, &mut mean, &mut var).unwrap();
    step(0.5, &dgamma, &mut gamma).unwrap();
    for values in [&mean, &var, &gamma] {
        all = hash(all, bytes(values));
    }
    forward_inference(&shape, &x, &mean, &var, &Params::new(0.0).beta(&beta), &mut y).unwrap();
    all = hash(all, bytes(&y));
    batchnorm::forward_training_in_place(&shape, &mut x, &Params::new(1e-5), &mut states).unwrap();
    hash(all, bytes(&x))
}

/// C11 and C++17, shared and static, and under valgrind.
#[test]
fn c_and_cpp_programs_get_the_bits_of_rust() {
    let expected = [Layout::Nchw, Layout::Nhwc].into_iter().fold(0xcbf2_9ce4_8422_2325, |mut all, layout| {
        for _serial in [false, true] {
            all = crate::expected::<f64>(layout, crate::expected::<f32>(layout, all));
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
            if standard.ends_with("11") {
                let mut valgrind = Command::new("valgrind");
                valgrind.args(["--quiet", "--error-exitcode=9"]).arg(&program);
                assert_eq!(path(&mut valgrind).trim(), format!("{expected:016x}"), "{program:?}");
            }
        }
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
        .split(['(', ' ', '*', '\n'])
        .filter(|word| word.starts_with("batchnorm_") && header.contains(&format!("{word}(")))
        .collect();
    exported.sort_unstable();
    declared.sort_unstable();
    declared.dedup();
    assert_eq!(declared.len(), 21, "{declared:?}");
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
    assert!(printed.contains("running mean 2, variance 1"), "{printed}");
}

/// A call that must be refused: nothing that it was given may change.
struct Call {
    problem: Problem,
    x: Vec<f32>,
    per_channel: Vec<f32>,
    y: Vec<f32>,
    states: Vec<State>,
}

const UNTOUCHED: f32 = -7.25;
const NO_STATE: State = State { count: 77, mean: 1.0, mean_low: 2.0, m2: 3.0 };

impl Call {
    fn new() -> Self {
        Self {
            problem: Problem { layout: BATCHNORM_NCHW, serial: 0, batch: 4, channels: 2, spatial: [1, 1, 3] },
            x: vec![1.5; 24],
            per_channel: vec![1.0; 2],
            y: vec![UNTOUCHED; 25],
            states: vec![NO_STATE; 2],
        }
    }

    #[track_caller]
    fn refused(&mut self, status: Status, expected: Status, words: &str) {
        let mut message = [0u8; 300];
        // SAFETY: 300 bytes.
        let len = unsafe { batchnorm_last_message(message.as_mut_ptr().cast(), message.len()) };
        let message = std::str::from_utf8(&message[..len - 1]).unwrap();
        assert_eq!(status, expected, "{message}");
        assert!(message.contains(words), "{message:?} does not say {words:?}");
        assert!(self.y.iter().all(|y| *y == UNTOUCHED) && self.states.iter().all(|state| *state == NO_STATE));
        assert!(self.x.iter().all(|x| *x == 1.5) && self.per_channel.iter().all(|value| *value == 1.0));
    }
}

/// The arguments of forward training.
struct Pointers {
    problem: *const Problem,
    x: *const f32,
    gamma: *const f32,
    eps: f64,
    y: *mut f32,
    states: *mut State,
}

impl Call {
    /// Those that would be right.
    fn right(&mut self) -> Pointers {
        let (y, states) = (self.y.as_mut_ptr(), self.states.as_mut_ptr());
        Pointers { problem: &raw const self.problem, x: self.x.as_ptr(), gamma: null(), eps: 1e-5, y, states }
    }
}

fn training(Pointers { problem, x, gamma, eps, y, states }: Pointers) -> Status {
    // SAFETY: as long as the problem says, or refused before they are looked at.
    unsafe { batchnorm_forward_training_f32(problem, x, gamma, null(), eps, y, states) }
}

#[test]
fn null_pointers_are_errors() {
    let call = &mut Call::new();
    let status = training(Pointers { problem: null(), ..call.right() });
    call.refused(status, Status::NullPointer, "problem is null");
    let status = training(Pointers { x: null(), ..call.right() });
    call.refused(status, Status::NullPointer, "x is null");
    let status = training(Pointers { y: null_mut(), ..call.right() });
    call.refused(status, Status::NullPointer, "y is null");
    let status = training(Pointers { states: null_mut(), ..call.right() });
    call.refused(status, Status::NullPointer, "states is null");
}

#[test]
fn null_pointers_of_no_elements_are_none() {
    let call = &mut Call::new();
    call.problem.channels = 0;
    let status = training(Pointers { x: null(), y: null_mut(), states: null_mut(), ..call.right() });
    assert_eq!(status, Status::Ok);
    // SAFETY: nothing is looked at.
    unsafe {
        assert_eq!(batchnorm_step_f64(0, 0.1, null(), null_mut()), Status::Ok);
        assert_eq!(batchnorm_merge(0, null_mut(), null()), Status::Ok);
    }
}

#[test]
fn misaligned_pointers_are_errors() {
    let call = &mut Call::new();
    let status = training(Pointers { x: call.x.as_ptr().wrapping_byte_add(1), ..call.right() });
    call.refused(status, Status::Misaligned, "x is");
    let status = training(Pointers { y: call.y.as_mut_ptr().wrapping_byte_add(2), ..call.right() });
    call.refused(status, Status::Misaligned, "y is");
    let status = training(Pointers { states: call.states.as_mut_ptr().wrapping_byte_add(4), ..call.right() });
    call.refused(status, Status::Misaligned, "states is");
}

#[test]
fn overlapping_pointers_are_errors() {
    let call = &mut Call::new();
    // One element of it, at either end.
    let status = training(Pointers { x: call.y.as_ptr().wrapping_add(1), ..call.right() });
    call.refused(status, Status::Overlap, "x overlaps y");
    let status = training(Pointers { gamma: call.y.as_ptr().wrapping_add(23), ..call.right() });
    call.refused(status, Status::Overlap, "y overlaps gamma");
    let status = training(Pointers { states: call.y.as_mut_ptr().cast(), ..call.right() });
    assert!(matches!(status, Status::Overlap | Status::Misaligned));
    let mut call = Call::new();
    let (x, out) = (call.x.as_ptr(), call.y.as_mut_ptr());
    // SAFETY: refused.
    let status = unsafe {
        batchnorm_backward_frozen_f32(
            &call.problem,
            x,
            x,
            x,
            x,
            null(),
            0.0,
            out,
            out.add(23),
            null_mut(),
            null_mut(),
            null_mut(),
        )
    };
    call.refused(status, Status::Overlap, "dgamma overlaps dx");
    // SAFETY: refused.
    let status = unsafe { batchnorm_merge(2, call.states.as_mut_ptr(), call.states.as_ptr()) };
    call.refused(status, Status::Overlap, "from overlaps into");
}

#[test]
fn neighbours_do_not_overlap_and_inputs_may() {
    let mut memory = vec![1.0f32; 24 + 2 + 24];
    let problem = Problem { layout: BATCHNORM_NHWC, serial: 1, batch: 4, channels: 2, spatial: [3, 1, 1] };
    let at = memory.as_mut_ptr();
    // SAFETY: x, then a mean that is the variance too, then y.
    let status = unsafe {
        batchnorm_forward_inference_f32(&problem, at, at.add(24), at.add(24), null(), null(), 0.0, at.add(26))
    };
    assert_eq!((status, memory[49]), (Status::Ok, 0.0));
}

#[test]
fn sizes_that_overflow_are_errors() {
    let call = &mut Call::new();
    call.problem.batch = usize::MAX;
    let status = training(call.right());
    call.refused(status, Status::Overflow, "");
    call.problem.batch = isize::MAX as usize / 24;
    let status = training(call.right());
    call.refused(status, Status::Overflow, "");
    let states = call.states.as_mut_ptr();
    // SAFETY: refused.
    let status = unsafe { batchnorm_merge(usize::MAX / 2, states, states.wrapping_add(1)) };
    call.refused(status, Status::Overflow, "into");
}

#[test]
fn values_that_mean_nothing_are_errors() {
    let call = &mut Call::new();
    call.problem.layout = 2;
    let status = training(call.right());
    call.refused(status, Status::UnknownValue, "layout is 2");
    call.problem = Problem { layout: 1, serial: 9, ..call.problem };
    let status = training(call.right());
    call.refused(status, Status::UnknownValue, "serial is 9");
    for (update, words) in [
        (Update { rule: 3, unbiased: 0, factor: 0.1 }, "rule is 3"),
        (Update { rule: 1, unbiased: 2, factor: 0.1 }, "unbiased is 2"),
    ] {
        let (mean, var) = (call.y.as_mut_ptr(), call.y.as_mut_ptr().wrapping_add(2));
        // SAFETY: two states and two elements each.
        let status = unsafe { batchnorm_update_running_f32(2, &update, 0, call.states.as_ptr(), mean, var) };
        call.refused(status, Status::UnknownValue, words);
    }
}

#[test]
fn what_the_operations_refuse_comes_back_as_a_status() {
    let call = &mut Call::new();
    for eps in [-1e-9, f64::NAN, f64::INFINITY] {
        let status = training(Pointers { eps, ..call.right() });
        call.refused(status, Status::Epsilon, "eps");
    }
    let (x, y) = (call.x.as_ptr(), call.y.as_mut_ptr());
    // SAFETY: as long as the problem says.
    unsafe {
        let status = batchnorm_backward_f32(
            &call.problem,
            x,
            x,
            call.states.as_ptr(),
            null(),
            1e-5,
            y,
            null_mut(),
            null_mut(),
            null_mut(),
            null_mut(),
        );
        call.refused(status, Status::Count, "77");
        let status = batchnorm_step_f32(2, f64::NAN, x, y);
        call.refused(status, Status::NotFinite, "lr");
        let single = [State { count: 1, mean: 0.0, mean_low: 0.0, m2: 0.0 }; 2];
        let update = Update { rule: BATCHNORM_DECAY, unbiased: 1, factor: 0.9 };
        let status = batchnorm_update_running_f32(2, &update, 0, single.as_ptr(), y, y.add(2));
        call.refused(status, Status::SingleElement, "");
    }
}

#[test]
fn messages_are_cut_to_the_buffer() {
    let call = &mut Call::new();
    let status = training(Pointers { x: null(), ..call.right() });
    call.refused(status, Status::NullPointer, "x is null");
    let mut short = [1u8; 5];
    // SAFETY: 5 bytes, then none.
    unsafe {
        let len = batchnorm_last_message(short.as_mut_ptr().cast(), 5);
        assert!(len > 5 && &short == b"x is\0");
        assert_eq!(batchnorm_last_message(null_mut(), 0), len);
    }
}
