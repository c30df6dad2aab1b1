//! Memory that cannot be had is an error before anything is written, and never the end of the process: an allocator that
//! fails at will, and a child process with little address space.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use batchnorm::threads::{Pool, limit, with};
use batchnorm::{
    Activation, Backward, BatchNorm, Error, Gradients, Mode, Params, PartialStatistics, Renorm, Renormalized,
    Shape, StreamingStatistics, Training, Welford, backward, forward_inference, forward_training,
};

/// Memory from the system, less of it than the system has.
struct Scarce;

/// The bytes that all threads may still have; `UNLIMITED` while no one counts.
static LEFT: AtomicUsize = AtomicUsize::new(UNLIMITED);
const UNLIMITED: usize = usize::MAX;

thread_local! {
    /// How many more of this thread's allocations succeed before one fails; those after it succeed.
    static FAILS_AFTER: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether all fail.
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

/// Whether there is memory.
fn granted(bytes: usize) -> bool {
    let after = FAILS_AFTER.get();
    FAILS_AFTER.set(after.and_then(|after| after.checked_sub(1)));
    after != Some(0)
        && !FAILS.get()
        && LEFT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                UNLIMITED => Some(UNLIMITED),
                left => left.checked_sub(bytes),
            })
            .is_ok()
}

// SAFETY: `System` does it all, or nothing is done.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        if granted(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left != UNLIMITED).then(|| left + layout.size())
        });
        // SAFETY: the caller's memory.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Scarce = Scarce;

/// Calls `f` with this thread's allocation number `k` failing; returns whether it came to that.
fn failing<R>(k: usize, f: impl FnOnce() -> R) -> (R, bool) {
    FAILS_AFTER.set(Some(k));
    let result = f();
    (result, FAILS_AFTER.take().is_none())
}

/// One after the other on the calling thread.
struct Serial;

impl Pool for Serial {
    fn threads(&self) -> usize {
        3
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// The first on the calling thread, the others on threads without memory.
struct Poor;

impl Pool for Poor {
    fn threads(&self) -> usize {
        3
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for number in 1..tasks {
                scope.spawn(move || {
                    FAILS.set(true);
                    task(number);
                    FAILS.set(false);
                });
            }
        });
        task(0);
    }
}

/// Nothing, or which operation failed, and why.
type Outcome = Result<(), (usize, Error)>;

/// A problem, its outputs, and what they have to be.
struct Case {
    shape: Shape,
    x: Vec<f32>,
    /// y of training and of inference, dx, dgamma, dbeta; y, dx and dz of what is fused.
    outputs: [Vec<f32>; 8],
    mask: Vec<u64>,
    states: Vec<Welford>,
    expected: Option<Expected>,
}

/// Outputs, mask and states.
type Expected = ([Vec<f32>; 8], Vec<u64>, Vec<Welford>);

const CANARY: f32 = -77.0;
const MASK_CANARY: u64 = 0x7777_0000_7777_0000;

impl Case {
    fn new(shape: Shape) -> Self {
        let (len, c) = (shape.len(), shape.channels());
        let x = (0..len).map(|i| (i * 7919 % 10_007) as f32 / 100.0).collect();
        let outputs = [len, len, len, c, c, len, len, len].map(|len| vec![CANARY; len]);
        let mask = vec![MASK_CANARY; shape.mask_len()];
        let mut case = Self { shape, x, outputs, mask, states: vec![Welford::new(); c], expected: None };
        // On a thread that ends, and its scratch memory with it.
        std::thread::scope(|scope| scope.spawn(|| limit(1, || case.run()).unwrap()).join().unwrap());
        case.expected = Some((case.outputs.clone(), case.mask.clone(), case.states.clone()));
        case.clear();
        case
    }

    fn clear(&mut self) {
        self.outputs.iter_mut().for_each(|output| output.fill(CANARY));
        self.mask.fill(MASK_CANARY);
    }

    /// Every operation, as far as the first that fails.
    fn run(&mut self) -> Outcome {
        let Self { shape, x, outputs, mask, states, .. } = self;
        let [y, inferred, dx, dgamma, dbeta, fused, fused_dx, dz] = outputs;
        let params = Params::new(1e-5);
        forward_training(shape, x, &params, y, states).map_err(|error| (0, error))?;
        // As given statistics, any will do.
        let given = &x[..shape.channels()];
        forward_inference(shape, x, given, given, &params, inferred).map_err(|error| (1, error))?;
        let gradients = Gradients::new().dx(dx).dgamma(dgamma).dbeta(dbeta);
        backward(shape, x, y, states, &params, gradients).map_err(|error| (2, error))?;
        let params = params.activation(Activation::Relu);
        let training = Training::new(shape, params).x(x).residual(dx).y(fused).mask(mask).states(states);
        training.run().map_err(|error| (5, error))?;
        let through = Backward::new(shape, params).x(x).dy(y).mask(mask).states(states);
        through.gradients(Gradients::new().dx(fused_dx).dz(dz)).run().map_err(|error| (6, error))
    }

    /// Asserts that what a run returned is true. No message, as long as memory is short.
    fn is_right(&self, result: &Outcome) -> bool {
        let Some((expected, mask, states)) = &self.expected else { return false };
        let done = match result {
            Ok(()) => 8,
            Err((done, Error::OutOfMemory { bytes: 1.. })) => *done,
            Err(_) => return false,
        };
        let outputs = self.outputs.iter().zip(expected).enumerate();
        let mask_is_right =
            if done > 5 { *mask == self.mask } else { self.mask.iter().all(|word| *word == MASK_CANARY) };
        (done == 0 || *states == self.states)
            && mask_is_right
            && outputs.into_iter().all(|(i, (output, expected))| {
                if i < done { output == expected } else { output.iter().all(|value| *value == CANARY) }
            })
    }
}

fn cases() -> Vec<Case> {
    let shapes = [
        Shape::nhwc(&[4096, 64]),
        Shape::nchw(&[8, 64, 14, 14]),
        Shape::nhwc(&[150, 20, 20, 5]),
        Shape::nchw(&[2, 3, 50_000]),
        Shape::nchw(&[1, 1, 5]),
    ];
    shapes.map(|shape| Case::new(shape.unwrap())).into()
}

/// For each allocation of a call: where it fails, the call says so and has written nothing.
#[test]
fn each_allocation_may_fail() {
    let ways: [fn(&mut Case) -> Outcome; 2] =
        [|case| limit(1, || case.run()), |case| with(&Serial, || case.run())];
    for mut case in cases() {
        for (k, way) in ways.into_iter().flat_map(|way| (0..).map(move |k| (k, way))) {
            // A new thread has no scratch memory yet.
            let call = || {
                let (result, failed) = failing(k, || way(&mut case));
                assert!(case.is_right(&result), "{:?} {k}: {result:?}", case.shape);
                assert_eq!(failed, result.is_err(), "{:?} {k}: {result:?}", case.shape);
                failed
            };
            let failed = std::thread::scope(|scope| scope.spawn(call).join().unwrap());
            case.clear();
            if !failed {
                assert!(k >= 2, "{:?}: there are allocations", case.shape);
                break;
            }
        }
    }
}

/// Parts of a batch: what cannot be had is an error, and nothing has been taken in.
#[test]
fn parts_without_memory_are_errors() {
    let part = Shape::nchw(&[35, 5, 7, 7]).unwrap();
    let x: Vec<f32> = (0..part.len()).map(|i| (i * 7919 % 10_007) as f32 / 100.0).collect();
    let other = PartialStatistics::of(&part, 3, &x).unwrap();
    let bytes = other.to_bytes().unwrap();
    let mut streaming = StreamingStatistics::new(5);
    streaming.update(&part, &x).unwrap();
    let before = streaming.clone();
    let mut all = PartialStatistics::<f32>::of(&part, 38, &x).unwrap();
    let kept = all.clone();
    let states = all.states().unwrap();
    let backward = || Backward::new(&part, Params::new(1e-5)).x(&x).dy(&x).states(&states);
    for k in 0.. {
        let mut call = || {
            let mut failures = 0;
            let mut outcome = |(result, failed): (Result<(), Error>, bool)| {
                assert_eq!(failed, matches!(result, Err(Error::OutOfMemory { .. })), "{k}: {result:?}");
                failures += usize::from(failed);
            };
            outcome(failing(k, || streaming.update(&part, &x)));
            outcome(failing(k, || all.join(&other)));
            outcome(failing(k, || all.states().map(drop)));
            outcome(failing(k, || all.to_bytes().map(drop)));
            outcome(failing(k, || PartialStatistics::<f32>::from_bytes(&bytes).map(drop)));
            outcome(failing(k, || limit(1, || PartialStatistics::of(&part, 3, &x).map(drop))));
            outcome(failing(k, || limit(1, || backward().part(3).map(drop))));
            failures
        };
        let failures = std::thread::scope(|scope| scope.spawn(&mut call).join().unwrap());
        if failures == 0 {
            assert!(k >= 2, "there are allocations");
            break;
        }
        // Of those that did not fail.
        if all.samples() == 35 {
            assert_eq!((&all, &streaming), (&kept, &before));
        }
        (all, streaming) = (kept.clone(), before.clone());
    }
}

/// Renormalization has states, r, d, gamma and beta of its own before anything is written.
#[test]
fn each_allocation_of_renormalization_may_fail() {
    let shape = Shape::nchw(&[8, 64, 14, 14]).unwrap();
    let x: Vec<f32> = (0..shape.len()).map(|i| (i * 7919 % 10_007) as f32 / 100.0).collect();
    let (limits, mean, var) = (Renorm { r_max: 2.0, d_max: 1.0 }, vec![0.5; 64], vec![2.0; 64]);
    for k in 0.. {
        let call = || {
            let (mut y, mut states) = (vec![CANARY; x.len()], vec![Welford::new(); 64]);
            let mut to = Renormalized::new();
            let training = Training::new(&shape, Params::new(1e-5)).x(&x).y(&mut y).states(&mut states);
            let training = training.renorm(limits, &mean, &var, &mut to);
            let (result, failed) = failing(k, || limit(1, || training.run()));
            assert_eq!(failed, result.is_err(), "{k}: {result:?}");
            let written = y.iter().any(|y| *y != CANARY)
                || states.iter().any(|state| state.count() > 0)
                || to != Renormalized::new();
            assert_eq!((written, matches!(result, Err(Error::OutOfMemory { .. }))), (!failed, failed), "{k}");
            failed
        };
        if !std::thread::scope(|scope| scope.spawn(call).join().unwrap()) {
            assert!(k >= 5, "{k} allocations");
            break;
        }
    }
}

/// A layer's mask is memory too: where it cannot be had, or anything else, the last forward pass is still the one before.
#[test]
fn a_layer_without_memory_for_a_mask() {
    let (shape, other) = (Shape::nchw(&[8, 64, 14, 14]).unwrap(), Shape::nchw(&[2, 64, 14, 14]).unwrap());
    let x: Vec<f32> = (0..shape.len()).map(|i| (i * 7919 % 10_007) as f32 / 100.0).collect();
    let (of_other, zeros) = (&x[..other.len()], vec![0.0; shape.len()]);
    let mut layer = BatchNorm::<f32>::new(64).with_activation(Activation::Relu);
    let (mut y, mut dx, mut dz) = (zeros.clone(), zeros.clone(), zeros.clone());
    layer
        .forward_with_residual(Mode::TrainingKeepRunning, &other, of_other, of_other, &mut y[..other.len()])
        .unwrap();
    let mut of_last = |layer: &mut BatchNorm<f32>| {
        let [dx, dz] = [&mut dx, &mut dz].map(|tensor| &mut tensor[..other.len()]);
        layer.backward_with_residual(&other, of_other, of_other, dx, dz).unwrap();
        format!("{layer:?}")
    };
    let before = of_last(&mut layer);
    for k in 0.. {
        y.fill(CANARY);
        let call = || {
            let way = || layer.forward_with_residual(Mode::TrainingKeepRunning, &shape, &x, &zeros, &mut y);
            failing(k, || limit(1, way))
        };
        let (result, failed) = std::thread::scope(|scope| scope.spawn(call).join().unwrap());
        assert_eq!(failed, result.is_err(), "{k}: {result:?}");
        if !failed {
            assert!(k >= 2, "there are allocations");
            break;
        }
        assert!(matches!(result, Err(Error::OutOfMemory { .. })), "{k}: {result:?}");
        assert!(y.iter().all(|y| *y == CANARY), "{k}");
        assert_eq!(format!("{layer:?}"), before, "{k}");
        assert_eq!(of_last(&mut layer), before, "{k}");
    }
    layer.backward_with_residual(&shape, &x, &x, &mut dx, &mut dz).unwrap();
}

/// A helper without memory takes no tasks.
#[test]
fn threads_without_memory_leave_the_work_to_others() {
    for mut case in cases() {
        let result = with(&Poor, || case.run());
        assert!(result.is_ok() && case.is_right(&result), "{:?}: {result:?}", case.shape);
    }
}

/// The same through the C interface, whose messages take memory too.
#[cfg(feature = "capi")]
#[test]
fn c_gets_a_status() {
    use batchnorm::ffi::{BATCHNORM_NHWC, Problem, State, Status, TrainingArgs, batchnorm_training};

    let x = vec![1.0f32; 4096 * 64];
    let mut statuses = Vec::new();
    for k in 0.. {
        let (mut y, mut states) = (vec![CANARY; x.len()], vec![State::default(); 64]);
        let call = || {
            // SAFETY: zeros are the default of every field.
            let (mut problem, mut args): (Problem, TrainingArgs) = unsafe { std::mem::zeroed() };
            (problem.size, args.size) = (size_of::<Problem>(), size_of::<TrainingArgs>());
            (problem.layout, problem.batch, problem.channels, problem.threads) =
                (BATCHNORM_NHWC, 4096, 64, 1);
            (args.x, args.y, args.states) = (x.as_ptr().cast(), y.as_mut_ptr().cast(), states.as_mut_ptr());
            args.eps = 1e-5;
            // SAFETY: the lengths are the problem's.
            failing(k, || unsafe { batchnorm_training(&problem, &args) })
        };
        let (status, failed) = std::thread::scope(|scope| scope.spawn(call).join().unwrap());
        statuses.push(status);
        if !failed {
            assert!(y.iter().all(|y| *y == 0.0));
            break;
        }
        assert!(y.iter().all(|y| *y == CANARY) && states.iter().all(|state| state.count == 0));
    }
    let last = statuses.pop();
    assert!(last == Some(Status::Ok) && statuses.len() >= 3, "{statuses:?}");
    assert!(statuses.iter().all(|status| *status == Status::OutOfMemory), "{statuses:?}");
}

/// What a child process is to do: so many bytes of memory, or of address space, beyond what it has.
const CHILD: &str = "BATCHNORM_OUT_OF_MEMORY";

/// Every case under a limit, where the first call that is large enough starts rayon's pool.
#[cfg(target_os = "linux")]
#[test]
fn child() {
    let Ok(wanted) = std::env::var(CHILD) else { return };
    let [kind, started, bytes] = wanted.split(' ').collect::<Vec<_>>()[..] else { panic!("{wanted}") };
    let bytes: usize = bytes.parse().unwrap();
    let mut cases = cases();
    let mut results = Vec::with_capacity(100);
    #[cfg(feature = "rayon")]
    if started == "started" {
        rayon::broadcast(|_| ());
    }
    match kind {
        "memory" => LEFT.store(bytes, Ordering::Relaxed),
        "space" => limit_space(bytes),
        _ => panic!("{kind} {started}"),
    }
    for _ in 0..3 {
        for case in &mut cases {
            let result = case.run();
            if !case.is_right(&result) {
                // SAFETY: nothing is to be cleaned up.
                unsafe { libc::_exit(3) };
            }
            results.push(result.is_ok());
            case.clear();
        }
    }
    let code = match results.iter().filter(|ok| **ok).count() {
        0 => 10,
        count if count == results.len() => 12,
        _ => 11,
    };
    // SAFETY: as above.
    unsafe { libc::_exit(code) };
}

/// Of what the process has now, and so many bytes more.
#[cfg(target_os = "linux")]
fn limit_space(more: usize) {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').next().unwrap().parse().unwrap();
    let space = (pages * 4096 + more) as libc::rlim_t;
    // SAFETY: a system call with a value of its own.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_AS, &libc::rlimit { rlim_cur: space, rlim_max: space }) };
    assert_eq!(set, 0);
}

/// The program never ends for want of memory, and says nothing: with rayon's threads, and with those that cannot start.
#[cfg(target_os = "linux")]
#[test]
fn no_limit_ends_the_process() {
    let mut seen = [0; 3];
    let limits = (0..48).map(|i| i << 14).chain((0..=10).map(|i| i << 21));
    for bytes in limits.chain([80 << 20, 1 << 30]) {
        for kind in ["memory started", "memory unstarted", "space started", "space unstarted"] {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "child", "--test-threads=1"]).env(CHILD, format!("{kind} {bytes}"));
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(said, "", "{kind} {bytes}");
            match output.status.code() {
                Some(code @ 10..=12) => seen[code as usize - 10] += 1,
                _ => panic!("{kind} {bytes}: {}", output.status),
            }
        }
    }
    println!("none, some, all of the calls had memory: {seen:?}");
    // Whether a limit lies between two calls' needs is the allocator's affair.
    assert!(seen[0] > 0 && seen[2] > 0, "none, some, all of the calls had memory: {seen:?}");
}
