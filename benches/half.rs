//! bf16 and f16 next to f32: `cargo bench --bench half --features half`, some three minutes.
//!
//! From the main thread, on the twelve shapes of shapes/table.txt in both layouts. An operation on f32, bf16 and f16 takes turns in one
//! process. Prints the median on f32 in microseconds, those of the others over it, at the end geometric means, and the shape that is
//! worst for the number. Then the same of a tensor that is in L1, in nanoseconds per 16 elements: what conversions alone cost, and the
//! call, where no memory is waited for.
//!
//! `-- --only backward` takes the operations whose name holds this, `--shapes 7x7` the shapes, `--layout nhwc` one layout,
//! `--seconds 2` is for how long a shape's numbers take turns, `--csv` prints lines for benches/record.

mod options;
#[expect(dead_code, reason = "shared with the other benches, which compare with the loops themselves")]
mod plain_loops;
mod shapes;

use batchnorm::{
    Activation, Backward, Gradients, Inference, Params, Shape, Statistics, Storage, Training, Welford,
};
use half::{bf16, f16};
use options::{Options, noise};
use plain_loops::times;

const TABLE: &str = include_str!("shapes/table.txt");

/// For how long the numbers of a shape take turns in an operation, in seconds.
const SECONDS: &str = "0.6";

const OPERATIONS: [&str; 8] = [
    "statistics",
    "training",
    "training + relu",
    "training + add + relu",
    "inference",
    "inference + add + relu",
    "backward",
    "backward + add + relu",
];

/// A tensor that stays in L1 with its output, of f32 too: four planes of 32 x 32.
const IN_L1: [usize; 4] = [1, 4, 32, 32];

/// The tensors of a number, of which all shapes are the first elements.
struct Tensors<S> {
    x: Vec<S>,
    dy: Vec<S>,
    z: Vec<S>,
    out: Vec<S>,
    dz: Vec<S>,
}

impl<S: Storage<Arithmetic = f32>> Tensors<S> {
    fn new(len: usize, of: impl Fn(f32) -> S) -> Self {
        let numbers = |seed| (0..len).map(noise(seed)).map(&of).collect::<Vec<S>>();
        // Outputs are written once, so that no page of them is new in a measurement.
        let [x, dy, z, out, dz] = [0, 1 << 31, 1 << 30, 7, 9].map(numbers);
        Self { x, dy, z, out, dz }
    }

    fn run(&mut self, operation: &str, shape: &Shape, of: &mut Channels) {
        let len = shape.len();
        let Self { x, dy, z, out, dz } = self;
        let (x, dy, z, out, dz) = (&x[..len], &dy[..len], &z[..len], &mut out[..len], &mut dz[..len]);
        let mut params = Params::default().gamma(&of.gamma).beta(&of.beta);
        if operation.ends_with("relu") {
            params = params.activation(Activation::Relu);
        }
        let add = operation.contains("add");
        let result = match operation.split(' ').next() {
            Some("statistics") => Statistics::new(shape).x(x).states(&mut of.states).run(),
            Some("training") => {
                let call = Training::new(shape, params).x(x).y(out).states(&mut of.states);
                if add { call.residual(z).mask(&mut of.mask).run() } else { call.run() }
            }
            Some("inference") => {
                let call = Inference::new(shape, params).x(x).y(out).frozen(&of.mean, &of.var);
                if add { call.residual(z).run() } else { call.run() }
            }
            _ => {
                let gradients = Gradients::new().dx(out).dgamma(&mut of.dgamma).dbeta(&mut of.dbeta);
                let gradients = if add { gradients.dz(dz) } else { gradients };
                let call = Backward::new(shape, params).x(x).dy(dy).states(&of.states).gradients(gradients);
                if add { call.mask(&of.mask).run() } else { call.run() }
            }
        };
        result.expect("arguments of the shape");
    }
}

/// What is per channel, and the mask.
struct Channels {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    states: Vec<Welford>,
    mask: Vec<u64>,
}

impl Channels {
    fn new(shape: &Shape) -> Self {
        let all = |value: f32| vec![value; shape.channels()];
        Self {
            gamma: all(1.5),
            beta: all(0.25),
            mean: all(0.01),
            var: all(0.3),
            dgamma: all(0.0),
            dbeta: all(0.0),
            states: vec![Welford::new(); shape.channels()],
            mask: vec![0; shape.mask_len()],
        }
    }
}

/// A number's times over those of f32, by shape.
struct Line {
    name: String,
    ratios: Vec<(String, f64)>,
}

fn main() {
    let options = Options::of(TABLE, SECONDS);
    let len = options.largest().max(IN_L1.iter().product());
    let mut singles = Tensors::<f32>::new(len, |x| x);
    let mut bfloats = Tensors::<bf16>::new(len, bf16::from_f32);
    let mut floats = Tensors::<f16>::new(len, f16::from_f32);
    // The medians of an operation on f32, bf16 and f16, in seconds.
    let mut measure = |operation: &str, shape: &Shape| {
        let mut channels = Channels::new(shape);
        // What backward reads: of a forward pass.
        singles.run("training + add + relu", shape, &mut channels);
        let all = times(options.budget, 3, |number| match number {
            0 => singles.run(operation, shape, &mut channels),
            1 => bfloats.run(operation, shape, &mut channels),
            _ => floats.run(operation, shape, &mut channels),
        });
        [all[0].median, all[1].median, all[2].median]
    };
    let operations = || OPERATIONS.into_iter().filter(|operation| operation.contains(&options.only));
    let threads = rayon::current_num_threads();
    if options.csv {
        println!("operation,shape,layout,threads,f32_microseconds,bf16_microseconds,f16_microseconds");
    }
    let mut lines: Vec<Line> = Vec::new();
    for (operation, (layout, name)) in
        operations().flat_map(|operation| options.layouts().map(move |layout| (operation, layout)))
    {
        if !options.csv {
            println!("\n{:<34}{:>9}  bf16   f16, over f32", format!("{operation}, {name}"), "f32");
        }
        let line = |number| Line { name: format!("{operation}, {name}, {number}"), ratios: Vec::new() };
        let mut both = ["bf16", "f16"].map(line);
        for problem in &options.problems {
            let shape = problem.shape(layout).expect("a shape of the table");
            let [single, bfloat, float] = measure(operation, &shape).map(|seconds| seconds * 1e6);
            let ratios = [bfloat / single, float / single];
            if options.csv {
                println!("{operation},{problem},{name},{threads},{single:.3},{bfloat:.3},{float:.3}");
            } else {
                println!("{:<34}{single:9.1} {:6.3} {:6.3}", problem.to_string(), ratios[0], ratios[1]);
            }
            for (line, ratio) in both.iter_mut().zip(ratios) {
                line.ratios.push((problem.to_string(), ratio));
            }
        }
        lines.extend(both);
    }
    if options.csv {
        return;
    }
    println!("\nGeometric means over f32, {threads} threads, and the worst");
    for Line { name, ratios } in lines.iter().filter(|line| !line.ratios.is_empty()) {
        let sum: f64 = ratios.iter().map(|(_, ratio)| ratio.ln()).sum();
        let worst = ratios.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("a shape at least");
        println!("{name:<40}{:.3}, {:.2} {}", (sum / ratios.len() as f64).exp(), worst.1, worst.0);
    }
    println!("\nIn L1, nanoseconds per 16 elements{:<6}f32   bf16    f16", "");
    let shape = Shape::nchw(&IN_L1).expect("a shape that fits");
    for operation in operations() {
        print!("{operation:<36}");
        let vectors = shape.len() as f64 / 16.0;
        measure(operation, &shape).iter().for_each(|seconds| print!("{:7.2}", seconds * 1e9 / vectors));
        println!();
    }
}
