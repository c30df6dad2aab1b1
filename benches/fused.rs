//! Activation and residual fused with the operation, and batch renormalization, next to the bare operation and to separate ones:
//! `cargo bench --bench fused`, some three minutes.
//!
//! f32, from the main thread, on the twelve shapes of shapes/table.txt in both layouts. All forms of an operation on a shape, the
//! separate operations and plain loops over the bytes of each take turns in one process. Prints each form's median in microseconds,
//! that over the bare operation's, separate operations' over it, and plain loops' over it (for the bare operation too); at the end
//! geometric means, and the shape that is worst for the form.
//!
//! `-- --only backward` takes the operations, `--shapes 7x7` the shapes whose name holds this, `--layout nhwc` one layout,
//! `--seconds 2` is for how long the forms of a shape take turns, `--csv` prints lines for benches/record.

mod options;
#[expect(dead_code, reason = "shared with the examples, which also show how samples scatter")]
mod plain_loops;
mod shapes;

use std::fmt;

use batchnorm::{
    Activation, Backward, Gradients, Inference, Params, Renorm, Renormalized, Shape, Tensor, Training,
    Welford,
};
use options::{Options, noise};
use plain_loops::{Form, Operation, PlainLoops, Times, times};
use rayon::prelude::*;
use shapes::Epilogue;

const TABLE: &str = include_str!("shapes/table.txt");

/// For how long the forms of an operation on a shape take turns, in seconds.
const SECONDS: &str = "1";

/// Elements that a separate operation takes at a time: 16 KiB, so that what it reads again is still in L1.
const CHUNK: usize = 4096;

/// The limits of batch renormalization.
const LIMITS: Renorm = Renorm { r_max: 3.0, d_max: 5.0 };

/// What follows the normalization, and what is kept of it for backward.
#[derive(Debug, Clone, Copy)]
struct Fused {
    activation: Activation,
    /// Whether a residual is added before the activation; in backward, whether its gradient is written.
    add: bool,
    /// Whether the mask is written, or in backward read.
    mask: bool,
    /// Whether it is batch renormalization; apart, by calls for statistics, for r and d, and by states.
    renorm: bool,
}

impl Fused {
    const fn new(activation: Activation) -> Self {
        Self { activation, add: false, mask: false, renorm: false }
    }

    const fn mask(self) -> Self {
        Self { mask: true, ..self }
    }

    const fn add(self) -> Self {
        Self { add: true, ..self }
    }

    /// What moves as many bytes.
    fn traffic(self, operation: Operation) -> Form {
        Form { operation, epilogue: if self.add { Epilogue::AddRelu } else { Epilogue::Nothing } }
    }
}

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.renorm {
            return f.pad("+ renorm");
        }
        let add = if self.add { "+ add " } else { "" };
        let mask = if self.mask { ", mask" } else { "" };
        f.pad(&format!("{add}+ {}{mask}", self.activation))
    }
}

const NOTHING: Fused = Fused::new(Activation::Identity);
const RENORM: Fused = Fused { renorm: true, ..NOTHING };
const RELU: Fused = Fused::new(Activation::Relu);
const SILU: Fused = Fused::new(Activation::Silu);

/// The forms of each operation.
const FORMS: [(Operation, &[Fused]); 3] = [
    (Operation::Training, &[RELU, RELU.mask(), RELU.add().mask(), SILU, RENORM]),
    (Operation::Inference, &[RELU, RELU.add(), SILU]),
    (Operation::Backward, &[RELU, RELU.mask(), RELU.add().mask(), SILU, RENORM]),
];

/// One call, and whether what follows the normalization is part of it.
#[derive(Debug, Clone, Copy)]
enum Way {
    Fused(Fused),
    Apart(Fused),
    /// Plain loops over the bytes of a form.
    Loops(Form, PlainLoops),
}

/// The tensors that all shapes are the first elements of.
struct Buffers {
    x: Tensor<f32>,
    dy: Tensor<f32>,
    z: Tensor<f32>,
    /// What the forward pass gave.
    u: Tensor<f32>,
    /// y, or dx.
    out: Tensor<f32>,
    /// dz, or what stands for dy after the activation's own backward.
    dz: Tensor<f32>,
}

impl Buffers {
    fn new(len: usize) -> Self {
        let shape = Shape::nchw(&[len, 1]).expect("a shape that fits");
        let [x, dy, z] = [0, 1 << 31, 1 << 30].map(|seed| Tensor::from_fn(shape, noise(seed)));
        // Written once, so that no page of them is new in a measurement.
        let [u, out, dz] = [0, 0, 0].map(|_| Tensor::from_fn(shape, |_| 1.0));
        Self { x, dy, z, u, out, dz }
    }
}

/// A shape with all that its operations take.
struct Call<'a> {
    shape: Shape,
    x: &'a [f32],
    dy: &'a [f32],
    z: &'a [f32],
    u: &'a [f32],
    out: &'a mut [f32],
    dz: &'a mut [f32],
    mask: Vec<u64>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    states: Vec<Welford>,
    /// Of `states` and running statistics that differ from them, as a forward pass leaves it.
    renormalized: Renormalized<f32>,
    running: [Vec<f32>; 2],
}

impl<'a> Call<'a> {
    fn new(shape: Shape, buffers: &'a mut Buffers) -> Self {
        let (len, channels) = (shape.len(), shape.channels());
        let per_channel = |value: f32| vec![value; channels];
        let (gamma, beta) = (per_channel(1.5), per_channel(0.25));
        let (x, mut states) = (&buffers.x[..len], vec![Welford::new(); channels]);
        let params = Params::default().gamma(&gamma).beta(&beta);
        batchnorm::forward_training(&shape, x, &params, &mut buffers.u[..len], &mut states)
            .expect("tensors of the shape");
        let running = [per_channel(0.25), per_channel(0.5)];
        let renormalized = LIMITS.renormalize(&states, &running[0], &running[1], &params);
        let renormalized = renormalized.expect("vectors of the shape");
        Self {
            shape,
            x,
            renormalized,
            running,
            dy: &buffers.dy[..len],
            z: &buffers.z[..len],
            u: &buffers.u[..len],
            out: &mut buffers.out[..len],
            dz: &mut buffers.dz[..len],
            mask: vec![0; shape.mask_len()],
            mean: states.iter().map(|state| state.mean() as f32).collect(),
            var: states.iter().map(|state| state.variance() as f32).collect(),
            dgamma: per_channel(0.0),
            dbeta: per_channel(0.0),
            gamma,
            beta,
            states,
        }
    }

    fn run(&mut self, operation: Operation, way: Way) {
        match (operation, way) {
            (_, Way::Fused(fused)) => self.fused(operation, fused),
            (_, Way::Apart(Fused { renorm: true, .. })) => self.renormalize(operation),
            (Operation::Backward, Way::Apart(fused)) => {
                activation_backward(fused.activation, self.u, self.dy, self.dz);
                self.backward_of_dz();
            }
            (_, Way::Apart(fused)) => {
                self.fused(operation, NOTHING);
                if fused.add {
                    add(self.z, self.out);
                }
                activate(fused.activation, self.out);
            }
            (_, Way::Loops(_, loops)) => loops.run([self.x, self.dy], [self.out, self.dz]),
        }
    }

    /// In one call.
    fn fused(&mut self, operation: Operation, fused: Fused) {
        let Fused { activation, add, mask, renorm } = fused;
        let params = Params::default().gamma(&self.gamma).beta(&self.beta).activation(activation);
        let shape = &self.shape;
        match operation {
            Operation::Statistics => batchnorm::statistics(shape, self.x, &mut self.states),
            Operation::Training => {
                let mut call = Training::new(shape, params).x(self.x).y(self.out).states(&mut self.states);
                if add {
                    call = call.residual(self.z);
                }
                if mask {
                    call = call.mask(&mut self.mask);
                }
                if renorm {
                    let [mean, var] = &self.running;
                    call = call.renorm(LIMITS, mean, var, &mut self.renormalized);
                }
                call.run()
            }
            Operation::Inference => {
                let mut call =
                    Inference::new(shape, params).x(self.x).y(self.out).frozen(&self.mean, &self.var);
                if add {
                    call = call.residual(self.z);
                }
                call.run()
            }
            Operation::Backward => {
                let mut gradients =
                    Gradients::new().dx(self.out).dgamma(&mut self.dgamma).dbeta(&mut self.dbeta);
                if add {
                    gradients = gradients.dz(self.dz);
                }
                let params = if renorm { self.renormalized.params(&params) } else { params };
                let mut call = Backward::new(shape, params).x(self.x).dy(self.dy).states(&self.states);
                if mask {
                    call = call.mask(&self.mask);
                }
                let result = call.gradients(gradients).run();
                if renorm {
                    self.renormalized
                        .gamma_gradient(&self.dbeta, &mut self.dgamma)
                        .expect("vectors of the shape");
                }
                result
            }
        }
        .expect("arguments of the shape");
    }

    /// Batch renormalization by the operations under it; of backward r and d, which a forward pass would have kept, too.
    fn renormalize(&mut self, operation: Operation) {
        let params = Params::default().gamma(&self.gamma).beta(&self.beta);
        if operation == Operation::Training {
            batchnorm::statistics(&self.shape, self.x, &mut self.states).expect("tensors of the shape");
        }
        let [mean, var] = &self.running;
        let renormalized = LIMITS.renormalize(&self.states, mean, var, &params);
        self.renormalized = renormalized.expect("vectors of the shape");
        if operation == Operation::Backward {
            return self.fused(operation, RENORM);
        }
        let inference = Inference::new(&self.shape, self.renormalized.params(&params)).x(self.x);
        inference.states(&self.states).y(self.out).run().expect("arguments of the shape");
    }

    /// The bare backward pass from what the activation's own left.
    fn backward_of_dz(&mut self) {
        let params = Params::default().gamma(&self.gamma).beta(&self.beta);
        let gradients = Gradients::new().dx(self.out).dgamma(&mut self.dgamma).dbeta(&mut self.dbeta);
        batchnorm::backward(&self.shape, self.x, self.dz, &self.states, &params, gradients)
            .expect("arguments of the shape");
    }
}

/// y += z, on all threads.
fn add(z: &[f32], y: &mut [f32]) {
    let chunks = y.par_chunks_mut(CHUNK).zip(z.par_chunks(CHUNK));
    chunks.for_each(|(y, z)| y.iter_mut().zip(z).for_each(|(y, z)| *y += z));
}

/// y = act(y), on all threads; ReLU in a loop as a program without the library has it.
fn activate(activation: Activation, y: &mut [f32]) {
    y.par_chunks_mut(CHUNK).for_each(|y| match activation {
        Activation::Relu => y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y }),
        _ => activation.apply(y).expect("a valid activation"),
    });
}

/// g = dy * act'(u), likewise.
fn activation_backward(activation: Activation, u: &[f32], dy: &[f32], g: &mut [f32]) {
    let chunks = g.par_chunks_mut(CHUNK).zip(dy.par_chunks(CHUNK)).zip(u.par_chunks(CHUNK));
    chunks.for_each(|((g, dy), u)| match activation {
        Activation::Relu => {
            let inputs = dy.iter().zip(u);
            g.iter_mut().zip(inputs).for_each(|(g, (&dy, &u))| *g = if u <= 0.0 { 0.0 } else { dy });
        }
        _ => {
            g.copy_from_slice(dy);
            activation.gradient(u, g).expect("a valid activation");
        }
    });
}

/// A form's ratios on a shape.
struct Ratios {
    shape: String,
    /// Its time over the bare operation's.
    to_bare: f64,
    /// Separate operations' time over its.
    apart: f64,
    /// Plain loops' time over its.
    loops: f64,
    /// The same of the bare operation.
    bare_loops: f64,
}

/// A form's ratios on the shapes in a layout.
struct Line {
    form: String,
    layout: &'static str,
    ratios: Vec<Ratios>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = |ratio: fn(&Ratios) -> f64| {
            let sum: f64 = self.ratios.iter().map(|shape| ratio(shape).ln()).sum();
            (sum / self.ratios.len() as f64).exp()
        };
        let cell = |ratio: fn(&Ratios) -> f64, most: bool| {
            let by = |a: &&Ratios, b: &&Ratios| ratio(a).total_cmp(&ratio(b));
            let worst = if most { self.ratios.iter().max_by(by) } else { self.ratios.iter().min_by(by) };
            let worst = worst.expect("a shape at least");
            format!("{:.3}, {:.2} {}", mean(ratio), ratio(worst), worst.shape)
        };
        let (to_bare, apart) = (cell(|shape| shape.to_bare, true), cell(|shape| shape.apart, false));
        let (loops, bare) = (mean(|shape| shape.loops), mean(|shape| shape.bare_loops));
        write!(f, "{:<28}{:<6}{to_bare:<28}{apart:<28}{loops:.3}, {bare:.3}", self.form, self.layout)
    }
}

fn main() {
    let options = Options::of(TABLE, SECONDS);
    let Options { csv, budget, .. } = options;
    let mut buffers = Buffers::new(options.largest());
    let threads = rayon::current_num_threads();
    if csv {
        println!(
            "form,shape,layout,threads,microseconds,bare_microseconds,apart_microseconds,loops_microseconds,bare_loops_microseconds"
        );
    } else {
        println!("{threads} threads. Microseconds; over bare, apart over it, plain loops over it");
    }
    let mut lines: Vec<Line> = Vec::new();
    for (operation, forms) in FORMS.iter().filter(|(operation, _)| operation.name().contains(&options.only)) {
        for (layout, name) in options.layouts() {
            if !csv {
                print!("\n{:<16}{:>8}  loops", format!("{}, {}", operation.name(), name), "bare");
                forms.iter().for_each(|form| print!("{:>30}", form.to_string()));
                println!();
            }
            let first = lines.len();
            let line = |form: &Fused| Line {
                form: format!("{} {form}", operation.name()),
                layout: name,
                ratios: Vec::new(),
            };
            lines.extend(forms.iter().map(line));
            for problem in &options.problems {
                let shape = problem.shape(layout).expect("a shape of the table");
                let mut call = Call::new(shape, &mut buffers);
                // What backward reads: of a forward pass.
                call.fused(Operation::Training, RELU.add().mask());
                let mut ways = vec![Way::Fused(NOTHING)];
                ways.extend(forms.iter().map(|&form| Way::Fused(form)));
                ways.extend(forms.iter().map(|&form| Way::Apart(form)));
                for add in [false, true] {
                    let form = Fused { add, ..RELU }.traffic(*operation);
                    let loops = PlainLoops::ways::<f32>(form, &shape);
                    ways.extend(loops.into_iter().map(|loops| Way::Loops(form, loops)));
                }
                let all = times(budget, ways.len(), |way| call.run(*operation, ways[way]));
                let medians: Vec<f64> = all.iter().map(|Times { median, .. }| median * 1e6).collect();
                let loops_of = |form: Form| {
                    let of = ways.iter().zip(&medians);
                    let of = of.filter(|(way, _)| matches!(way, Way::Loops(other, _) if *other == form));
                    of.map(|(_, &median)| median).fold(f64::INFINITY, f64::min)
                };
                let (bare, bare_loops) = (medians[0], loops_of(NOTHING.traffic(*operation)));
                if !csv {
                    print!("{:<16}{bare:8.1}{:7.2}", problem.to_string(), bare_loops / bare);
                }
                for (index, form) in forms.iter().enumerate() {
                    let (time, apart) = (medians[1 + index], medians[1 + forms.len() + index]);
                    let loops = loops_of(form.traffic(*operation));
                    let line = &mut lines[first + index];
                    line.ratios.push(Ratios {
                        shape: problem.to_string(),
                        to_bare: time / bare,
                        apart: apart / time,
                        loops: loops / time,
                        bare_loops: bare_loops / bare,
                    });
                    if csv {
                        let form = &line.form;
                        println!(
                            "\"{form}\",{problem},{name},{threads},{time:.3},{bare:.3},{apart:.3},{loops:.3},{bare_loops:.3}"
                        );
                    } else {
                        print!("{time:11.1} {:6.3} {:5.2} {:5.2}", time / bare, apart / time, loops / time);
                    }
                }
                if !csv {
                    println!();
                }
            }
        }
    }
    if !csv {
        println!("\nGeometric means, and the worst");
        println!("{:<34}{:<28}{:<28}loops / fused, loops / bare", "", "fused / bare", "apart / fused");
        lines.iter().filter(|line| !line.ratios.is_empty()).for_each(|line| println!("{line}"));
    }
}
