//! The C interface with right and wrong arguments. All that it is given lies in one piece of memory: a call that is
//! refused leaves every byte of it alone, any other those that are not its outputs; and it is refused just when
//! something is wrong.

#![allow(unsafe_code, reason = "C's pointers")]

use std::ops::Range;

use arbitrary::Arbitrary;
use batchnorm::ffi::{self, State, Status};
use batchnorm::{Welford, WelfordParts};

/// A call.
#[derive(Debug, Clone, Arbitrary)]
pub struct Call {
    /// What x and dx hold; y, dy, the residual and dz, if the problem says so.
    x: Number,
    y: Option<Number>,
    operation: Operation,
    in_place: Option<bool>,
    /// N, C, spatial axes, of which 0 is none.
    sizes: [u8; 5],
    /// Up to two arguments that are somewhere else.
    faults: [Option<(u8, Place)>; 2],
    /// Whether states are of as many elements as there are.
    counts: bool,
    element: Choice,
    y_element: Choice,
    layout: Choice,
    threads: u8,
    /// Bytes that the structs are said to be longer, or shorter: mostly none.
    sizes_off: Option<(bool, i16)>,
    rule: Choice,
    unbiased: Choice,
    scalar: Scalar,
    huge: u8,
    fused: Option<Fused>,
}

/// What follows the normalization.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Fused {
    activation: Choice,
    /// slope, lo, hi.
    numbers: [Scalar; 3],
    /// Which of the arguments behind [`Operation::first_fused`] there are.
    given: [bool; 3],
    in_place: bool,
}

impl Call {
    /// Whether the product of the sizes overflows.
    fn is_huge(&self) -> bool {
        self.huge >= 240
    }

    /// eps, a factor, a learning rate.
    fn scalar(&self) -> f64 {
        self.scalar.value()
    }

    /// The activation's number, slope, lo and hi.
    fn activation(&self) -> (u64, [f64; 3]) {
        self.fused.map_or((0, [0.0; 3]), |fused| {
            (fused.activation.value(6).into(), fused.numbers.map(Scalar::value))
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Operation {
    Statistics,
    Training,
    Inference,
    Backward,
    Frozen,
    Update,
    Step,
    Merge,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Place {
    Null,
    /// Some bytes on.
    Bytes(u8),
    /// In another argument, some of its elements on.
    In(u8, i8),
}

/// A number that stands for something: mostly one that does.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Choice {
    Of(u8),
    Any(u32),
}

impl Choice {
    fn value(self, of: u32) -> u32 {
        match self {
            Choice::Of(value) => u32::from(value) % of,
            Choice::Any(value) => value,
        }
    }
}

/// eps, a factor, a learning rate, a number of an activation.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Scalar {
    Usual,
    Zero,
    Any(f64),
}

impl Scalar {
    fn value(self) -> f64 {
        match self {
            Scalar::Usual => 1e-5,
            Scalar::Zero => 0.0,
            Scalar::Any(value) => value,
        }
    }
}

/// What tensors hold, in the order of the elements' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Number {
    F32,
    F64,
    Bf16,
    F16,
}

impl Number {
    fn size(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::F64 => 8,
            Number::Bf16 | Number::F16 => 2,
        }
    }
}

/// What an argument is of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A tensor as x.
    Tensor,
    /// A tensor as y.
    Output,
    Vector,
    States,
    Mask,
}
use Kind::{Mask, Output, States, Tensor, Vector};

/// An argument: what, whether it is written, whether it may be null.
type Argument = (Kind, bool, bool);

const fn read(kind: Kind) -> Argument {
    (kind, false, false)
}
const fn write(kind: Kind) -> Argument {
    (kind, true, false)
}
const PARAMETER: Argument = (Vector, false, true);
const GRADIENT: Argument = (Vector, true, true);
const DX: Argument = (Tensor, true, true);
const DZ: Argument = (Output, true, true);
const RESIDUAL: Argument = (Output, false, true);
const MASK: Argument = (Mask, false, true);
const NEW_MASK: Argument = (Mask, true, true);

impl Operation {
    fn arguments(self) -> &'static [Argument] {
        match self {
            Operation::Statistics => &const { [read(Tensor), write(States)] },
            Operation::Training => {
                &const {
                    let [x, y] = [read(Tensor), write(Output)];
                    [x, PARAMETER, PARAMETER, y, write(States), RESIDUAL, NEW_MASK]
                }
            }
            Operation::Inference => {
                &const {
                    let [x, given, y] = [read(Tensor), read(Vector), write(Output)];
                    [x, given, given, PARAMETER, PARAMETER, y, RESIDUAL, NEW_MASK]
                }
            }
            Operation::Backward => {
                &const {
                    let [x, dy, states] = [read(Tensor), read(Output), read(States)];
                    let [gradient, beta, dz] = [GRADIENT, PARAMETER, DZ];
                    [x, dy, states, PARAMETER, DX, gradient, gradient, gradient, gradient, beta, MASK, dz]
                }
            }
            Operation::Frozen => {
                &const {
                    let [x, dy, given] = [read(Tensor), read(Output), read(Vector)];
                    let [gradient, beta, dz] = [GRADIENT, PARAMETER, DZ];
                    [
                        x, dy, given, given, PARAMETER, DX, gradient, gradient, gradient, gradient, beta,
                        MASK, dz,
                    ]
                }
            }
            Operation::Update => &const { [read(States), write(Vector), write(Vector)] },
            Operation::Step => &const { [read(Vector), write(Vector)] },
            Operation::Merge => &const { [write(States), read(States)] },
        }
    }

    /// The arguments that may be the same memory, where they hold the same: one that is read and one that is written. The last
    /// one is that of what follows the normalization.
    fn in_place(self) -> &'static [(usize, usize)] {
        match self {
            Operation::Training => &[(0, 3), (5, 3)],
            Operation::Inference => &[(0, 5), (6, 5)],
            Operation::Backward => &[(0, 4), (1, 4), (1, 11)],
            Operation::Frozen => &[(0, 5), (1, 5), (1, 12)],
            _ => &[],
        }
    }

    /// The first of the arguments that came with what follows the normalization; the mask is the second.
    fn first_fused(self) -> usize {
        match self {
            Operation::Training => 5,
            Operation::Inference => 6,
            Operation::Backward => 9,
            Operation::Frozen => 10,
            _ => self.arguments().len(),
        }
    }

    /// How many fields came with it: number, slope, lo and hi, then those arguments.
    fn fused_fields(self) -> usize {
        match self.arguments().len() - self.first_fused() {
            0 => 0,
            arguments => 4 + arguments,
        }
    }
}

/// Bytes around an argument: more than two shifts.
const MARGIN: usize = 4096;

/// Makes a call and looks at the memory.
pub fn call(call: &Call) {
    let [n, c, spatial @ ..] = call.sizes.map(usize::from);
    let spatial = spatial.map(|size| size % 5);
    let (n, c) = (n % 5, c % 20);
    let m = n * spatial.iter().map(|axis| axis.max(&1)).product::<usize>();
    let size = call.x.size();
    let arguments = call.operation.arguments();
    let bytes = |kind| match kind {
        Tensor | Output => m * c * call.size(kind),
        Vector => c * call.size(kind),
        States => c * size_of::<State>(),
        Mask => (m * c).div_ceil(64) * 8,
    };

    // Every argument has a place of its own, where any other fits too, wherever it is shifted.
    let room = bytes(Tensor).max(bytes(Output)).max(bytes(States)).next_multiple_of(8) + 2 * MARGIN;
    let mut memory = vec![0u64; room * arguments.len() / 8];
    fill(&mut memory, call, m, room);
    let base = memory.as_mut_ptr().cast::<u8>();
    let mut at: Vec<Option<usize>> = (0..arguments.len()).map(|i| Some(room * i + MARGIN)).collect();
    let first_fused = call.operation.first_fused();
    for (i, at) in at[first_fused..].iter_mut().enumerate() {
        *at = at.filter(|_| call.fused.is_some_and(|fused| fused.given[i]));
    }
    if let Some(((fused_input, fused_output), forms)) = call.operation.in_place().split_last() {
        if let Some((input, output)) =
            call.in_place.and_then(|last| if last { forms.last() } else { forms.first() })
        {
            at[*output] = at[*input];
        }
        // Whichever of both came later.
        let (from, to) = (fused_input.min(fused_output), fused_input.max(fused_output));
        if call.fused.is_some_and(|fused| fused.in_place) && at[*to].is_some() {
            at[*to] = at[*from];
        }
    }
    for (argument, place) in call.faults.into_iter().flatten() {
        let argument = usize::from(argument) % at.len();
        at[argument] = match place {
            Place::Null => None,
            Place::Bytes(by) => at[argument].map(|at| at + usize::from(by)),
            Place::In(other, by) => at[usize::from(other) % at.len()]
                .map(|at| at.wrapping_add_signed(isize::from(by) * size as isize)),
        };
    }
    let pointer = |at: &Option<usize>| at.map_or(std::ptr::null_mut(), |at| base.wrapping_add(at));
    let pointers: Vec<*mut u8> = at.iter().map(pointer).collect();
    // What is behind the end of the arguments' struct is not given.
    let seen = call.fused_fields_seen();
    at[first_fused..].iter_mut().skip(seen.saturating_sub(4)).for_each(|at| *at = None);
    let spans: Vec<Range<usize>> = at
        .iter()
        .zip(arguments)
        .map(|(at, (kind, ..))| at.map_or(0..0, |at| at..at + bytes(*kind)))
        .collect();
    let wrong = wrong(call, &memory, &at, &spans, m);
    let before = memory.clone();

    let problem = ffi::Problem {
        size: call.size_of::<ffi::Problem>(true),
        element: call.element(),
        layout: call.layout.value(2),
        batch: if call.is_huge() { usize::MAX / 2 } else { n },
        channels: if call.is_huge() { c.max(3) } else { c },
        spatial,
        threads: call.threads.into(),
        threadpool: std::ptr::null(),
        y_element: call.y_element(),
    };
    // Longer than the struct, for sizes that are: what lies behind it is 0.
    let problem = Longer(problem, [0; LONGEST]);
    // SAFETY: every pointer is null, or its argument lies within `memory`, shifted by less than `MARGIN`.
    let status = unsafe { operate(call, (&raw const problem).cast(), &pointers) };

    let mut words = usize::MAX;
    // SAFETY: the same problem, and a number.
    match unsafe { ffi::batchnorm_mask_len((&raw const problem).cast(), &mut words) } {
        Status::Ok => assert_eq!(words, bytes(Mask) / 8),
        refused => assert!(
            words == usize::MAX && (status != Status::Ok || call.operation == Operation::Merge),
            "{refused:?}"
        ),
    }

    match wrong {
        Some(wrong) => assert_ne!(status, Status::Ok, "not refused, though {wrong}"),
        None => assert_eq!(status, Status::Ok, "refused, though nothing is wrong: {call:?}"),
    }
    let written = |byte: usize| {
        let outputs = spans.iter().zip(arguments).filter(|(_, (_, written, _))| *written);
        status == Status::Ok && outputs.into_iter().any(|(span, _)| span.contains(&byte))
    };
    for (i, (before, after)) in
        before.iter().zip(&memory).enumerate().filter(|(_, (before, after))| before != after)
    {
        for (byte, (before, after)) in before.to_ne_bytes().iter().zip(after.to_ne_bytes()).enumerate() {
            let byte = 8 * i + byte;
            assert!(
                *before == after || written(byte),
                "{status:?}, and byte {byte} is written; arguments are {spans:?}"
            );
        }
    }
}

/// Small numbers; in states, the count that is asked for.
fn fill(memory: &mut [u64], call: &Call, m: usize, room: usize) {
    for (i, word) in memory.iter_mut().enumerate() {
        *word = match (call.x, call.y_number()) {
            (Number::F64, _) => (1.0 + i as f64 * 1e-3).to_bits(),
            (Number::F32, Number::F32) => 0x3f80_0000_3f80_1000 + 7 * i as u64,
            // Both halves of an f32 are a 16-bit number.
            _ => 0x3f80_3f80_3f80_3f80 + (i as u64 % 64) * 0x1_0001_0001_0001,
        };
    }
    let states = call.operation.arguments().iter().enumerate().filter(|(_, (kind, ..))| *kind == States);
    for (argument, _) in states {
        let count = if call.counts { m as u64 } else { 3 };
        let state = State { count, mean: 1.0, m2: 2.0, ..State::default() };
        let at = memory[(room * argument + MARGIN) / 8..].as_mut_ptr().cast::<State>();
        // SAFETY: every argument has a margin of more than that behind its start.
        (0..20).for_each(|i| unsafe { at.add(i).write(state) });
    }
}

/// What is wrong with a call.
fn wrong(
    call: &Call,
    memory: &[u64],
    at: &[Option<usize>],
    spans: &[Range<usize>],
    m: usize,
) -> Option<String> {
    use Operation::{Backward, Frozen, Inference, Merge, Step, Training, Update};
    let arguments = call.operation.arguments();
    let scalar = call.scalar();
    if call.operation != Merge {
        if call.is_huge() {
            return Some("the sizes overflow".into());
        }
        if call.layout.value(2) > 1 || call.element() > 3 {
            return Some("layout or element is no such number".into());
        }
        let y_element = call.y_element();
        if call.sees_y() && (![0, 16, 18, 19].contains(&y_element) || call.x == Number::F64 && y_element != 0)
        {
            return Some(format!("y_element is {y_element}"));
        }
        if call.sizes_are_wrong() {
            return Some("a struct is shorter than any".into());
        }
    }
    let eps = matches!(call.operation, Training | Inference | Backward | Frozen);
    if eps && !(scalar.is_finite() && scalar >= 0.0) {
        return Some(format!("eps is {scalar}"));
    }
    if let Some(wrong) = eps.then(|| wrong_activation(call, at, m)).flatten() {
        return Some(wrong);
    }
    if call.operation == Step && !scalar.is_finite() {
        return Some(format!("lr is {scalar}"));
    }
    let channels = usize::from(call.sizes[1]) % 20;
    for (i, (_, written, optional)) in arguments.iter().enumerate() {
        let (kind, len) = (arguments[i].0, spans[i].len());
        let missing = at[i].is_none();
        let tensor = matches!(kind, Tensor | Output);
        let empty = if missing { channels == 0 || tensor && m == 0 } else { len == 0 };
        if missing && !optional && !empty {
            return Some(format!("argument {i} is null"));
        }
        if !missing && !empty && !spans[i].start.is_multiple_of(call.size(kind)) {
            return Some(format!("argument {i} is not aligned"));
        }
        for (j, (_, other_written, _)) in arguments.iter().enumerate().take(i) {
            let overlap = spans[i].start < spans[j].end && spans[j].start < spans[i].end;
            // Over one input, unless another is the same memory.
            let forms = call.operation.in_place();
            let number =
                |argument: usize| if arguments[argument].0 == Tensor { call.x } else { call.y_number() };
            let over = |(input, output): (usize, usize)| {
                at[input] == at[output] && at[input].is_some() && number(input) == number(output)
            };
            let in_place = forms.iter().any(|form| {
                let first = forms.iter().find(|other| other.1 == form.1 && over(**other));
                (*form == (i, j) || *form == (j, i)) && first == Some(form)
            });
            if overlap
                && !spans[i].is_empty()
                && !spans[j].is_empty()
                && (*written || *other_written)
                && !in_place
            {
                return Some(format!("arguments {j} and {i} overlap"));
            }
        }
    }
    let mut states = arguments.iter().zip(spans).filter(|((kind, ..), _)| *kind == States);
    let read = matches!(call.operation, Backward | Update | Merge);
    if read && states.any(|(_, span)| nonsense(memory, span)) {
        return Some("a state's numbers are no state's".into());
    }
    match call.operation {
        Backward => counts(memory, &spans[2])
            .any(|count| count != m as u64)
            .then(|| "a state's count is another".into()),
        Update => {
            let (rule, unbiased) = (call.rule.value(3), call.unbiased.value(2));
            if rule > 2 || unbiased > 1 {
                return Some("rule or unbiased is no such number".into());
            }
            if rule < 2 && !(0.0..=1.0).contains(&scalar) {
                return Some(format!("the factor is {scalar}"));
            }
            let one = unbiased == 1 && counts(memory, &spans[0]).any(|count| count == 1);
            one.then(|| "the unbiased variance is of one element".into())
        }
        _ => None,
    }
}

/// What is wrong with a call's activation, and with what it is to go with.
fn wrong_activation(call: &Call, at: &[Option<usize>], m: usize) -> Option<String> {
    let ((activation, numbers), seen) = (call.activation(), call.fused_fields_seen());
    let activation = if seen > 0 { activation } else { 0 };
    let [slope, lo, hi] = std::array::from_fn(|i| if seen > i + 1 { numbers[i] } else { 0.0 });
    if activation > 5 {
        return Some(format!("activation is {activation}"));
    }
    if activation == ffi::BATCHNORM_LEAKY_RELU && !slope.is_finite() {
        return Some(format!("slope is {slope}"));
    }
    if activation == ffi::BATCHNORM_CLIP && !(lo <= hi && lo != f64::INFINITY && hi != f64::NEG_INFINITY) {
        return Some(format!("clip is from {lo} to {hi}"));
    }
    let backward = matches!(call.operation, Operation::Backward | Operation::Frozen);
    let first = call.operation.first_fused();
    let residual = at[if backward { first + 2 } else { first }].is_some();
    let mask = at[first + 1].is_some();
    if activation >= ffi::BATCHNORM_HARD_SWISH && (residual || mask) {
        return Some("the activation goes with neither a residual nor a mask".into());
    }
    let empty = m == 0 || usize::from(call.sizes[1]) % 20 == 0;
    let missing = backward && residual && !mask && !empty && activation != ffi::BATCHNORM_IDENTITY;
    missing.then(|| "dz takes a mask".into())
}

/// The counts of the states that lie there.
fn counts<'a>(memory: &'a [u64], states: &Range<usize>) -> impl Iterator<Item = u64> + use<'a> {
    memory[states.start / 8..states.end / 8].iter().step_by(size_of::<State>() / 8).copied()
}

/// Whether numbers that lie there are no state's.
fn nonsense(memory: &[u64], states: &Range<usize>) -> bool {
    let words = &memory[states.start / 8..states.end / 8];
    words.chunks_exact(size_of::<State>() / 8).any(|words| {
        let [mean, mean_low, m2, m2_low] = [1, 2, 3, 4].map(|i| f64::from_bits(words[i]));
        let exponent = words[5] as i64;
        Welford::from_parts(WelfordParts { count: words[0], mean, mean_low, m2, m2_low, exponent }).is_err()
    })
}

/// How many bytes more than a struct has are in memory.
const LONGEST: usize = 64;

/// A struct with zeros behind it.
#[repr(C)]
struct Longer<A>(A, [u8; LONGEST]);

impl Call {
    /// That of x, or of none.
    fn element(&self) -> u32 {
        match self.element {
            Choice::Any(value) if value > 3 => value,
            _ => self.x as u32,
        }
    }

    /// That of y, or of none.
    fn y_element(&self) -> u64 {
        match self.y_element {
            Choice::Any(value) if value != 0 && !(16..20).contains(&value) => value.into(),
            _ => self.y.map_or(0, |y| y as u64 + ffi::BATCHNORM_Y_F32),
        }
    }

    /// Whether the problem is said to be so long that the last of its fields is seen.
    fn sees_y(&self) -> bool {
        !self.sizes_off.is_some_and(|(of_problem, by)| of_problem && by < 0)
    }

    /// What y holds.
    fn y_number(&self) -> Number {
        self.y.filter(|_| self.sees_y()).unwrap_or(self.x)
    }

    /// Bytes of an element, which it is aligned to, too.
    fn size(&self, kind: Kind) -> usize {
        match kind {
            Tensor => self.x.size(),
            Output => self.y_number().size(),
            Vector => self.x.size().max(4),
            States | Mask => 8,
        }
    }

    /// What a struct says of its size, the problem or the arguments.
    fn size_of<A>(&self, problem: bool) -> usize {
        match self.sizes_off {
            Some((of_problem, by)) if of_problem == problem => {
                size_of::<A>().wrapping_add_signed(isize::from(by.clamp(i16::MIN, LONGEST as i16)))
            }
            _ => size_of::<A>(),
        }
    }

    /// Whether a struct is said to be shorter than the first version's, which the problem's threads, thread pool and other y and
    /// what follows a normalization are not part of, or to end inside a field.
    fn sizes_are_wrong(&self) -> bool {
        let word = size_of::<usize>() as i16;
        let spare = |of_problem| if of_problem { 3 } else { self.operation.fused_fields() as i16 };
        self.sizes_off.is_some_and(|(of_problem, by)| {
            by < -spare(of_problem) * word || by.clamp(i16::MIN, LONGEST as i16) % word != 0
        })
    }

    /// How many of the fields of what follows a normalization the arguments' struct has, as long as it is said to be.
    fn fused_fields_seen(&self) -> usize {
        let short = match self.sizes_off {
            Some((false, by)) => usize::from(by.min(0).unsigned_abs()).div_ceil(size_of::<usize>()),
            _ => 0,
        };
        self.operation.fused_fields().saturating_sub(short)
    }
}

/// The arguments' struct, with its size, these fields, and all else 0; and zeros behind it.
macro_rules! args {
    ($call:ident, $name:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        // Numbers and pointers, of which zeros are a value.
        let mut args: Longer<ffi::$name> = std::mem::zeroed();
        args.0.size = $call.size_of::<ffi::$name>(false);
        $(args.0.$field = $value;)*
        args
    }};
}

/// # Safety
/// As of the functions.
unsafe fn operate(call: &Call, problem: *const ffi::Problem, pointers: &[*mut u8]) -> Status {
    let p = |i: usize| pointers[i].cast();
    let state = |i: usize| pointers[i].cast::<State>();
    let eps = call.scalar();
    let (activation, [slope, lo, hi]) = call.activation();
    // SAFETY: says the caller.
    unsafe {
        match call.operation {
            Operation::Statistics => {
                let args = args!(call, StatisticsArgs { x: p(0), states: state(1) });
                ffi::batchnorm_statistics(problem, (&raw const args).cast())
            }
            Operation::Training => {
                let args = args!(
                    call,
                    TrainingArgs {
                        x: p(0),
                        gamma: p(1),
                        beta: p(2),
                        eps: eps,
                        y: p(3),
                        states: state(4),
                        activation: activation,
                        slope: slope,
                        lo: lo,
                        hi: hi,
                        residual: p(5),
                        mask: pointers[6].cast()
                    }
                );
                ffi::batchnorm_training(problem, (&raw const args).cast())
            }
            Operation::Inference => {
                let args = args!(
                    call,
                    InferenceArgs {
                        x: p(0),
                        mean: p(1),
                        var: p(2),
                        gamma: p(3),
                        beta: p(4),
                        eps: eps,
                        y: p(5),
                        activation: activation,
                        slope: slope,
                        lo: lo,
                        hi: hi,
                        residual: p(6),
                        mask: pointers[7].cast()
                    }
                );
                ffi::batchnorm_inference(problem, (&raw const args).cast())
            }
            Operation::Backward => {
                let args = args!(
                    call,
                    BackwardArgs {
                        x: p(0),
                        dy: p(1),
                        states: state(2),
                        gamma: p(3),
                        eps: eps,
                        dx: p(4),
                        dgamma: p(5),
                        dbeta: p(6),
                        dmean: p(7),
                        dvar: p(8),
                        activation: activation,
                        slope: slope,
                        lo: lo,
                        hi: hi,
                        beta: p(9),
                        mask: pointers[10].cast(),
                        dz: p(11)
                    }
                );
                ffi::batchnorm_backward(problem, (&raw const args).cast())
            }
            Operation::Frozen => {
                let args = args!(
                    call,
                    BackwardArgs {
                        x: p(0),
                        dy: p(1),
                        mean: p(2),
                        var: p(3),
                        gamma: p(4),
                        eps: eps,
                        dx: p(5),
                        dgamma: p(6),
                        dbeta: p(7),
                        dmean: p(8),
                        dvar: p(9),
                        activation: activation,
                        slope: slope,
                        lo: lo,
                        hi: hi,
                        beta: p(10),
                        mask: pointers[11].cast(),
                        dz: p(12)
                    }
                );
                ffi::batchnorm_backward(problem, (&raw const args).cast())
            }
            Operation::Update => {
                let (rule, unbiased) = (call.rule.value(3), call.unbiased.value(2));
                let args = args!(
                    call,
                    UpdateRunningArgs {
                        rule: rule,
                        unbiased: unbiased,
                        factor: eps,
                        batches: 3,
                        states: state(0),
                        mean: p(1),
                        var: p(2)
                    }
                );
                ffi::batchnorm_update_running(problem, (&raw const args).cast())
            }
            Operation::Step => {
                let args = args!(call, StepArgs { lr: eps, gradient: p(0), parameter: p(1) });
                ffi::batchnorm_step(problem, (&raw const args).cast())
            }
            Operation::Merge => ffi::batchnorm_merge(usize::from(call.sizes[1]) % 20, state(0), state(1)),
        }
    }
}
