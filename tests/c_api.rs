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
    forward_inference(&shape, &x, &mean, &var, &Params::new(0.0).beta(&beta), &mut y).unwrap();
    all = hash(all, bytes(&y));
    batchnorm::forward_training_in_place(&shape, &mut x, &Params::new(1e-5), &mut states).unwrap();
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
        let message = last_message();
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

/// An argument of a function that is a pointer: its name, how it is used, the size and number of what it points to.
#[derive(Clone, Copy)]
struct Argument {
    name: &'static str,
    written: bool,
    optional: bool,
    size: usize,
    len: usize,
}

/// A function as the table of all has it, called with its pointers, `channels` or `len`, and eps or lr.
struct Function {
    name: &'static str,
    arguments: Vec<Argument>,
    takes_problem: bool,
    call: fn(&[*mut u8], usize, f64) -> Status,
}

const TABLE_C: usize = 6;
const TABLE_LEN: usize = 4 * TABLE_C * 2;
const TABLE_PROBLEM: Problem =
    Problem { layout: BATCHNORM_NHWC, serial: 0, batch: 4, channels: TABLE_C, spatial: [1, 1, 2] };
const TABLE_UPDATE: Update = Update { rule: BATCHNORM_MOMENTUM, unbiased: 1, factor: 0.1 };
const TABLE_STATE: State = State { count: 8, mean: 1.0, mean_low: 0.0, m2: 4.0 };

/// Pointers in the order of the functions' parameters: `>` before those that are written, `?` after those that may be null.
fn arguments<T>(names: &'static str) -> Vec<Argument> {
    let argument = |name: &'static str| {
        let (written, optional) = (name.starts_with('>'), name.ends_with('?'));
        let name = name.trim_matches(['>', '?']);
        let (size, len) = match name {
            "problem" => (size_of::<Problem>(), 1),
            "update" => (size_of::<Update>(), 1),
            "states" | "into" | "from" => (size_of::<State>(), TABLE_C),
            "x" | "y" | "dy" | "dx" => (size_of::<T>(), TABLE_LEN),
            _ => (size_of::<T>(), TABLE_C),
        };
        Argument { name, written, optional, size, len }
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
}

macro_rules! table {
    ($element:ty: $($function:ident($names:literal) = |$p:ident, $len:ident, $factor:ident| ($($argument:expr),*);)*) => {
        vec![$(Function {
            name: stringify!($function),
            arguments: arguments::<$element>($names),
            takes_problem: $names.starts_with("problem"),
            // SAFETY: pointers to what the table says, or to be refused before they are looked at.
            call: |$p, $len, $factor| unsafe {
                let _ = ($len, $factor);
                $function($($argument),*)
            },
        }),*]
    };
}

macro_rules! functions {
    ($element:ty, $statistics:ident, $training:ident, $inference:ident, $backward:ident, $frozen:ident, $update:ident,
     $step:ident) => {
        table! { $element:
            $statistics("problem x >states") = |p, len, factor| (p[0].cast(), p[1].cast(), p[2].cast());
            $training("problem x gamma? beta? >y >states") = |p, len, factor| (
                p[0].cast(), p[1].cast(), p[2].cast(), p[3].cast(), factor, p[4].cast(), p[5].cast()
            );
            $inference("problem x mean var gamma? beta? >y") = |p, len, factor| (
                p[0].cast(), p[1].cast(), p[2].cast(), p[3].cast(), p[4].cast(), p[5].cast(), factor, p[6].cast()
            );
            $backward("problem x dy states gamma? >dx? >dgamma? >dbeta? >dmean? >dvar?") = |p, len, factor| (
                p[0].cast(), p[1].cast(), p[2].cast(), p[3].cast(), p[4].cast(), factor, p[5].cast(), p[6].cast(),
                p[7].cast(), p[8].cast(), p[9].cast()
            );
            $frozen("problem x dy mean var gamma? >dx? >dgamma? >dbeta? >dmean? >dvar?") = |p, len, factor| (
                p[0].cast(), p[1].cast(), p[2].cast(), p[3].cast(), p[4].cast(), p[5].cast(), factor, p[6].cast(),
                p[7].cast(), p[8].cast(), p[9].cast(), p[10].cast()
            );
            $update("update states >mean >var") = |p, len, factor| (
                len, p[0].cast(), 7, p[1].cast(), p[2].cast(), p[3].cast()
            );
            $step("gradient >parameter") = |p, len, factor| (len, factor, p[0].cast(), p[1].cast());
            batchnorm_merge(">into from") = |p, len, factor| (len, p[0].cast(), p[1].cast());
        }
    };
}

/// All functions that take pointers to data.
fn all_functions() -> Vec<Function> {
    let mut all = functions!(
        f32,
        batchnorm_statistics_f32,
        batchnorm_forward_training_f32,
        batchnorm_forward_inference_f32,
        batchnorm_backward_f32,
        batchnorm_backward_frozen_f32,
        batchnorm_update_running_f32,
        batchnorm_step_f32
    );
    all.extend(functions!(
        f64,
        batchnorm_statistics_f64,
        batchnorm_forward_training_f64,
        batchnorm_forward_inference_f64,
        batchnorm_backward_f64,
        batchnorm_backward_frozen_f64,
        batchnorm_update_running_f64,
        batchnorm_step_f64
    ));
    all
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
                    "problem" => at.cast::<Problem>().write(TABLE_PROBLEM),
                    "update" => at.cast::<Update>().write(TABLE_UPDATE),
                    "states" | "into" | "from" => {
                        (0..TABLE_C).for_each(|c| at.cast::<State>().add(c).write(TABLE_STATE));
                    }
                    _ => (),
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
    change: impl FnOnce(&mut Vec<*mut u8>, &mut usize, &mut f64),
) {
    let mut arena = Arena::new(function);
    let (mut pointers, mut len, mut factor) = (arena.pointers(), TABLE_C, 0.5);
    change(&mut pointers, &mut len, &mut factor);
    let before = arena.memory.clone();
    let status = (function.call)(&pointers, len, factor);
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
        assert_eq!((function.call)(&pointers, TABLE_C, 0.5), Status::Ok, "{}", function.name);
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
                assert_eq!((function.call)(&pointers, TABLE_C, 0.5), Status::Ok, "{}", argument.name);
            } else {
                let words = format!("{} is null", argument.name);
                refused(&function, Status::NullPointer, &[&words], |p, _, _| p[i] = null_mut());
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
                refused(&function, Status::Misaligned, &[&words], |p, _, _| p[i] = p[i].wrapping_add(by));
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
            if ["problem", "update"].contains(&moved.name) {
                continue;
            }
            for (j, other) in function.arguments.iter().enumerate() {
                if i == j || !(moved.written || other.written) {
                    continue;
                }
                let last = (other.bytes() - 1) / moved.align() * moved.align();
                let before = (moved.bytes() - 1) / moved.align() * moved.align();
                let words = [moved.name, other.name, "overlaps"];
                let in_place = [moved.name, other.name].iter().all(|name| ["x", "y"].contains(name));
                if !in_place {
                    refused(&function, Status::Overlap, &words, |p, _, _| p[i] = p[j]);
                }
                refused(&function, Status::Overlap, &words, |p, _, _| p[i] = p[j].wrapping_add(last));
                refused(&function, Status::Overlap, &words, |p, _, _| p[i] = p[j].wrapping_sub(before));
                pairs += 1;
            }
        }
    }
    assert!(pairs > 200, "{pairs}");
}

#[test]
fn the_same_buffer_as_x_and_y_is_the_form_in_place() {
    let mut forms = 0;
    for function in all_functions() {
        let find = |name| function.arguments.iter().position(|argument| argument.name == name);
        let (Some(x), Some(y)) = (find("x"), find("y")) else { continue };
        let (mut apart, mut together) = (Arena::new(&function), Arena::new(&function));
        let mut pointers = together.pointers();
        pointers[y] = pointers[x];
        assert_eq!((function.call)(&apart.pointers(), TABLE_C, 0.5), Status::Ok);
        assert_eq!((function.call)(&pointers, TABLE_C, 0.5), Status::Ok);
        let words = function.arguments[y].bytes() / 8;
        let at = |arena: &Arena, i: usize| arena.memory[arena.starts[i] / 8..][..words].to_vec();
        assert_eq!(at(&apart, y), at(&together, x), "{}", function.name);
        forms += 1;
    }
    assert_eq!(forms, 4);
}

#[test]
fn sizes_that_overflow_are_errors() {
    for function in all_functions() {
        for large in [usize::MAX, usize::MAX / 2, isize::MAX as usize / 4 + 1] {
            refused(&function, Status::Overflow, &[], |p, len, _| {
                *len = large;
                if function.takes_problem {
                    // SAFETY: the problem, which is aligned.
                    unsafe { (*p[0].cast::<Problem>()).batch = large };
                }
            });
        }
    }
    // Zero times that is no excuse.
    let call = &mut Call::new();
    call.problem = Problem { batch: 0, channels: usize::MAX, ..call.problem };
    let status = training(call.right());
    call.refused(status, Status::Overflow, "");
}

#[test]
fn factors_that_are_no_numbers_are_errors() {
    let mut refusals = 0;
    for function in all_functions() {
        let (status, word) = match function.name {
            name if name.contains("_step_") => (Status::NotFinite, "lr"),
            name if name.contains("_forward_") || name.contains("_backward_") => (Status::Epsilon, "eps"),
            _ => continue,
        };
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(&function, status, &[word], |_, _, factor| *factor = value);
            refusals += 1;
        }
    }
    assert_eq!(refusals, 2 * 5 * 3);
}

/// The states of a program's own making, whose counts leave u64 together.
#[test]
fn counts_that_overflow_are_errors() {
    let states = |counts: [u64; 2]| counts.map(|count| State { count, ..TABLE_STATE });
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
    let problem = Problem { layout: BATCHNORM_NCHW, serial: 0, batch: 3, channels: 1, spatial: [1; 3] };
    let mut states = [State { count: 0, mean: 0.0, mean_low: 0.0, m2: 0.0 }; 3];
    // SAFETY: three samples of one channel; then one state each.
    unsafe {
        let at = states.as_mut_ptr();
        for (i, x) in x.iter().enumerate() {
            let one = Problem { batch: 1, ..problem };
            assert_eq!(batchnorm_statistics_f64(&one, x, at.add(i)), Status::Ok);
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
        let status = match name {
            "x" => training(Pointers { x: null(), ..call.right() }),
            _ => training(Pointers { y: null_mut(), ..call.right() }),
        };
        assert_eq!(status, Status::NullPointer);
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
    assert_eq!(training(Call::new().right()), Status::Ok);
    assert!(last_message().starts_with("x is null"));
}

#[test]
fn every_status_has_its_message() {
    let message = |status| {
        // SAFETY: a static string.
        unsafe { std::ffi::CStr::from_ptr(batchnorm_status_message(status)) }.to_str().unwrap()
    };
    let unknown = message(-1);
    let mut messages: Vec<&str> = (0..=Status::Internal as i32).map(message).collect();
    assert!(messages.iter().all(|text| *text != unknown && !text.is_empty()));
    messages.sort_unstable();
    messages.dedup();
    assert_eq!(messages.len(), Status::Internal as usize + 1);
    for status in [Status::Internal as i32 + 1, i32::MIN, i32::MAX] {
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
