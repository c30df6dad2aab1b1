//! An operation in two halves, as of a batch that several processes have parts of, next to the whole call: `cargo bench --bench parts`,
//! some two minutes.
//!
//! f32, from the main thread, on the twelve shapes of shapes/table.txt in both layouts, all of the batch in one process: sums of the batch
//! as one part, or as two that are joined, then the map by them. The ways take turns.
//! Prints the whole call's microseconds and each way's time over it; at the end geometric means, the worst shape, and the bytes
//! that a part's sums are, for the widest shape.
//!
//! `-- --only backward` takes the operations, `--shapes 7x7` the shapes whose name holds this, `--layout nhwc` one layout,
//! `--seconds 2` is for how long the ways of a shape take turns, `--csv` prints lines for benches/record.

mod options;
#[expect(dead_code, reason = "shared with the benches that compare with plain loops")]
mod plain_loops;
#[expect(dead_code, reason = "shared with the benches of what follows batch norm")]
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
}

impl Tensors {
    fn run(&mut self, operation: &str, shape: &Shape, of: &mut Channels, parts: usize) -> Result<(), Error> {
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
                return Training::new(shape, params).x(x).y(out).states(&mut of.states).run();
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
            return backward.run();
        }
        let mut sums = PartialGradients::new(shape.channels());
        for (first, range, shape) in (0..parts).map(part).collect::<Result<Vec<_>, _>>()? {
            let backward = Backward::new(&shape, params).x(&x[range.clone()]).dy(&dy[range]);
            sums.join(&backward.states(&of.states).part(first)?)?;
        }
        backward.sums(&sums).run()
    }
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
        println!(
            "operation,shape,layout,threads,whole_microseconds,one_part_microseconds,two_parts_microseconds"
        );
    } else {
        println!("{threads} threads. Microseconds of the whole call; over it: as one part, as two");
    }
    let mut lines: Vec<(String, Vec<(String, [f64; 2])>)> = Vec::new();
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
                let mut channels = Channels { gamma: all(1.5), dgamma: all(0.0), dbeta: all(0.0), states };
                let right = "arguments of the shape";
                // What backward takes.
                tensors.run("training", &shape, &mut channels, 0).expect(right);
                let times = times(options.budget, 3, |parts| {
                    tensors.run(operation, &shape, &mut channels, parts).expect(right);
                });
                let medians: Vec<f64> = times.iter().map(|Times { median, .. }| median * 1e6).collect();
                let [whole, one, two] = [medians[0], medians[1], medians[2]];
                if options.csv {
                    println!("{operation},{problem},{name},{threads},{whole:.3},{one:.3},{two:.3}");
                } else {
                    println!("{:<16}{whole:10.1}{:7.2}{:7.2}", problem.to_string(), one / whole, two / whole);
                }
                ratios.push((problem.to_string(), [one / whole, two / whole]));
            }
            lines.push((format!("{operation}, {name}"), ratios));
        }
    }
    if options.csv {
        return;
    }
    println!("\nGeometric means over the whole call, and the worst");
    for (name, ratios) in lines.iter().filter(|(_, ratios)| !ratios.is_empty()) {
        print!("{name:<20}");
        for (way, parts) in ["one part", "two parts"].into_iter().enumerate() {
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
