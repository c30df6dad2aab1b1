//! An operation in two halves, as of a batch that several processes have parts of, next to the whole call: `cargo bench --bench parts`,
//! some two minutes.
//!
//! f32, from the main thread, on the twelve shapes of shapes/table.txt in both layouts, all of the batch in one process: sums of the batch
//! as one part, or as two that are joined, then the map by them; and the whole call with a weight for each sample. The ways take turns.
//! Prints the whole call's microseconds and each way's time over it; at the end geometric means, the worst shape, and the bytes
//! that a part's sums are, for the widest shape.
//!
//! `-- --only backward` takes the operations, `--shapes 7x7` the shapes whose name holds this, `--layout nhwc` one layout,
//! `--seconds 2` is for how long the ways of a shape take turns, `--csv` prints lines for benches/record.

mod options;
#[expect(dead_code, reason = "shared with the benches that compare with plain loops")]
mod plain_loops;
mod shapes;

use batchnorm::{
    Backward, Error, Gradients, Inference, Params, PartialGradients, PartialStatistics, Shape, Tensor,
    Training, Welford,
};
use options::{Options, noise};
use plain_loops::{Times, times};

const TABLE: &str = include_str!("shapes/table.txt");

/// For how long the ways of an operation on a shape take turns, in seconds.
const SECONDS: &str = "0.8";

const OPERATIONS: [&str; 2] = ["training", "backward"];

/// How to do it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Whole,
    Parts(usize),
    Weights,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Whole, "whole"),
    (Way::Parts(1), "one_part"),
    (Way::Parts(2), "two_parts"),
    (Way::Weights, "weights"),
];

/// The tensors that all shapes are the first elements of.
struct Tensors {
    x: Tensor<f32>,
    dy: Tensor<f32>,
    out: Tensor<f32>,
}

/// What is per channel.
struct Channels {
    gamma: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    states: Vec<Welford>,
    /// Of samples.
    weights: Vec<f64>,
}

impl Tensors {
    fn run(&mut self, operation: &str, shape: &Shape, of: &mut Channels, way: Way) -> Result<(), Error> {
        let parts = if let Way::Parts(parts) = way { parts } else { 0 };
        let weights = (way == Way::Weights).then_some(&of.weights[..]);
        let Self { x, dy, out } = self;
        let (x, dy, out) = (&x[..shape.len()], &dy[..shape.len()], &mut out[..shape.len()]);
        let params = Params::default().gamma(&of.gamma);
        // The parts' first samples: multiples of the granularity.
        let (n, each) = (shape.batch(), shape.len() / shape.batch());
        let cut = |part: usize| match part {
            part if part == parts => n,
            part => part * n / parts / shape.granularity() * shape.granularity(),
        };
        let part = |part: usize| {
            let (first, end) = (cut(part), cut(part + 1));
            let shape = Shape::new(shape.layout(), end - first, shape.channels(), shape.spatial_dims())?;
            Ok::<_, Error>((first as u64, first * each..end * each, shape))
        };
        if operation == "training" {
            if parts == 0 {
                let training = Training::new(shape, params).x(x).y(out).states(&mut of.states);
                return weights.into_iter().fold(training, Training::weights).run();
            }
            let mut statistics = PartialStatistics::new(shape.channels());
            for (first, range, shape) in (0..parts).map(part).collect::<Result<Vec<_>, _>>()? {
                statistics.join(&PartialStatistics::of(&shape, first, &x[range])?)?;
            }
            return Inference::new(shape, params).x(x).y(out).states(&statistics.states()?).run();
        }
        let gradients = Gradients::new().dx(out).dgamma(&mut of.dgamma).dbeta(&mut of.dbeta);
        let backward = Backward::new(shape, params).x(x).dy(dy).states(&of.states).gradients(gradients);
        if parts == 0 {
            return weights.into_iter().fold(backward, Backward::weights).run();
        }
        let mut sums = PartialGradients::new(shape.channels());
        for (first, range, shape) in (0..parts).map(part).collect::<Result<Vec<_>, _>>()? {
            let backward = Backward::new(&shape, params).x(&x[range.clone()]).dy(&dy[range]);
            sums.join(&backward.states(&of.states).part(first)?)?;
        }
        backward.sums(&sums).run()
    }
}

/// The ways' times over the whole call's, by shape.
struct Line {
    name: String,
    ratios: Vec<(String, [f64; WAYS.len() - 1])>,
}

fn main() {
    let options = Options::of(TABLE, SECONDS);
    let shape = Shape::nchw(&[options.largest(), 1]).expect("a shape that fits");
    let mut tensors = Tensors {
        x: Tensor::from_fn(shape, noise(0)),
        dy: Tensor::from_fn(shape, noise(1 << 31)),
        out: Tensor::from_fn(shape, |_| 1.0),
    };
    let threads = rayon::current_num_threads();
    if options.csv {
        let columns = WAYS.map(|(_, name)| format!("{name}_microseconds")).join(",");
        println!("operation,shape,layout,threads,{columns}");
    } else {
        println!(
            "{threads} threads. Microseconds of the whole call; over it: as one part, as two, with weights"
        );
    }
    let mut lines: Vec<Line> = Vec::new();
    for operation in OPERATIONS.into_iter().filter(|operation| operation.contains(&options.only)) {
        for (layout, name) in options.layouts() {
            if !options.csv {
                println!("\n{operation}, {name}");
            }
            let mut ratios = Vec::new();
            for problem in &options.problems {
                let shape = problem.shape(layout).expect("a shape of the table");
                let all = |value: f32| vec![value; shape.channels()];
                let states = vec![Welford::new(); shape.channels()];
                let weights = (0..shape.batch()).map(|i| 0.5 + (i % 3) as f64).collect();
                let (gamma, dgamma, dbeta) = (all(1.5), all(0.0), all(0.0));
                let mut channels = Channels { gamma, dgamma, dbeta, states, weights };
                let right = "arguments of the shape";
                // What backward takes.
                // Weighted backward is by the states of weighted training.
                let of_whole = |tensors: &mut Tensors, channels: &mut Channels, way| {
                    tensors.run("training", &shape, channels, way).expect(right);
                    channels.states.clone()
                };
                let weighted = of_whole(&mut tensors, &mut channels, Way::Weights);
                let whole = of_whole(&mut tensors, &mut channels, Way::Whole);
                let times = times(options.budget, WAYS.len(), |way| {
                    let (way, _) = WAYS[way];
                    let states = if way == Way::Weights { &weighted } else { &whole };
                    channels.states.copy_from_slice(states);
                    tensors.run(operation, &shape, &mut channels, way).expect(right);
                });
                let medians: Vec<f64> = times.iter().map(|Times { median, .. }| median * 1e6).collect();
                let over: [f64; WAYS.len() - 1] = std::array::from_fn(|i| medians[i + 1] / medians[0]);
                if options.csv {
                    let medians: Vec<_> = medians.iter().map(|median| format!("{median:.3}")).collect();
                    println!("{operation},{problem},{name},{threads},{}", medians.join(","));
                } else {
                    let over: String = over.iter().map(|ratio| format!("{ratio:7.2}")).collect();
                    println!("{:<16}{:10.1}{over}", problem.to_string(), medians[0]);
                }
                ratios.push((problem.to_string(), over));
            }
            lines.push(Line { name: format!("{operation}, {name}"), ratios });
        }
    }
    if options.csv {
        return;
    }
    println!("\nGeometric means over the whole call, and the worst");
    for Line { name, ratios } in lines.iter().filter(|line| !line.ratios.is_empty()) {
        print!("{name:<20}");
        for (way, parts) in ["one part", "two parts", "weights"].into_iter().enumerate() {
            let sum: f64 = ratios.iter().map(|(_, ratios)| ratios[way].ln()).sum();
            let worst = ratios.iter().max_by(|a, b| a.1[way].total_cmp(&b.1[way])).expect("a shape at least");
            print!("{parts}: {:.2}, {:.2} {:<16}", (sum / ratios.len() as f64).exp(), worst.1[way], worst.0);
        }
        println!();
    }
    let shape = Shape::nchw(&[16, 2048, 7, 7]).expect("a shape that fits");
    let part = PartialStatistics::of(&shape, 16, &vec![1f32; shape.len()]);
    let bytes = part.and_then(|part| part.to_bytes()).expect("arguments of the shape").len();
    println!(
        "\nStatistics of a part with 2048 channels: {bytes} bytes, {:.1} a channel",
        bytes as f64 / 2048.0
    );
}
