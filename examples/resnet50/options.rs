//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use batchnorm::{Layout, Level};

use crate::number::Type;
use crate::shapes::{self, Epilogue, Problem};

/// The shapes of ResNet-50's batch-norm layers.
const RESNET50: &str = include_str!("../../benches/shapes/resnet50.txt");

/// The same, with what follows each in the network.
const RESNET50_FUSED: &str = include_str!("../../benches/shapes/resnet50_fused.txt");

pub const HELP: &str = "\
Batch normalization of all 53 layers of ResNet-50: training, inference and backward, each shape next to plain read,
copy and triad loops over the same bytes on the same threads, and checked against the scalar reference.

Usage: cargo run --release --example resnet50 -- [OPTIONS]

Options:
  --batch N          samples per batch [default: what the shape file says; 32 for ResNet-50]
  --layout NAME      nchw or nhwc [default: nchw]
  --type NAME        what tensors hold: f32, or with the feature half (cargo run --release --features half --example ...)
                     bf16 or f16, next to f32's loops over as many bytes; an error is what is beyond one rounding to the type.
                     Parameters are f32 [default: f32]
  --threads N        threads to run on [default: all cores]
  --level NAME       instruction set of the kernels: portable, avx2 or avx512 [default: the best that the CPU has]
  --fused            each layer with the ReLU, or the residual and the ReLU, that follow it in the network, in one call and
                     apart: same bits (of 16-bit types those of f32, rounded once), how many times as long. Backward of ReLU by
                     the faster of two ways, the mask or u anew
  --shapes FILE      other shapes, a line of `N C spatial... [xLAYERS] [relu | add_relu]` each; what follows counts with
                     --fused alone [default: ResNet-50]
  --time SECONDS     time per measurement, of an operation and its plain loops together [default: 1]
  --csv FILE         writes the table there too, as comma-separated values
  --picture FILE     where the picture goes [default: resnet50-LAYOUT.svg; with --fused resnet50-fused-LAYOUT.svg, of
                     16-bit types resnet50-bf16-LAYOUT.svg and so on]
  --help             prints this

Exit codes: 0 all well, 1 a result is not as exact as promised or a file cannot be written, 2 wrong options.
";

/// What the user asks for.
#[derive(Debug)]
pub struct Options {
    /// The network's name for titles.
    pub network: String,
    /// Its layers, with the batch asked for.
    pub problems: Vec<Problem>,
    pub layout: Layout,
    /// What tensors hold.
    pub number: Type,
    /// 0 for all cores.
    pub threads: usize,
    pub level: Level,
    /// Whether layers run with what follows them.
    pub fused: bool,
    pub time: Duration,
    pub csv: Option<PathBuf>,
    pub picture: PathBuf,
}

/// The name of a layout, as options have it.
pub fn layout_name(layout: Layout) -> &'static str {
    match layout {
        Layout::Nchw => "nchw",
        Layout::Nhwc => "nhwc",
    }
}

/// The options of a command line, `None` if it asks for help; the error says what is wrong with it.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Options>, String> {
    let mut arguments = arguments.into_iter();
    let (mut batch, mut file, mut picture) = (None, None, None);
    let mut options = Options {
        network: "ResNet-50".to_owned(),
        problems: Vec::new(),
        layout: Layout::Nchw,
        number: Type::F32,
        threads: 0,
        level: Level::active(),
        fused: false,
        time: Duration::from_secs(1),
        csv: None,
        picture: PathBuf::new(),
    };
    while let Some(argument) = arguments.next() {
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value = || inline.clone().or_else(|| arguments.next()).ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--batch" => batch = Some(count(&name, &value()?)?),
            "--threads" => options.threads = count(&name, &value()?)?,
            "--layout" => {
                options.layout = match value()?.as_str() {
                    "nchw" => Layout::Nchw,
                    "nhwc" => Layout::Nhwc,
                    other => return Err(format!("--layout is {other:?}, must be nchw or nhwc")),
                }
            }
            "--type" => options.number = Type::parse(&value()?)?,
            "--level" => {
                let level = value()?.parse::<Level>().map_err(|error| format!("--level: {error}"))?;
                Level::force(Some(level)).map_err(|error| format!("--level: {error}"))?;
                options.level = level;
            }
            "--time" => {
                let text = value()?;
                let seconds = text.parse().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
                let wrong = || format!("--time is {text:?}, must be seconds from 0 to 3600");
                options.time = Duration::from_secs_f64(seconds.ok_or_else(wrong)?);
            }
            "--fused" if inline.is_none() => options.fused = true,
            "--shapes" => file = Some(PathBuf::from(value()?)),
            "--csv" => options.csv = Some(value()?.into()),
            "--picture" => picture = Some(PathBuf::from(value()?)),
            _ => return Err(format!("unknown option {name:?}")),
        }
    }

    options.problems = match &file {
        None => shapes::parse(if options.fused { RESNET50_FUSED } else { RESNET50 })?,
        Some(file) => {
            options.network = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let wrong = |error: String| format!("--shapes {}: {error}", file.display());
            let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            shapes::parse(&text).map_err(wrong)?
        }
    };
    if !options.fused {
        options.problems.iter_mut().for_each(|problem| problem.epilogue = Epilogue::Nothing);
    }
    if let Some(batch) = batch {
        for problem in &mut options.problems {
            problem.dims[0] = batch;
            problem.shape(options.layout).map_err(|error| format!("--batch: {error}"))?;
        }
    }
    let name = options.network.to_lowercase().replace("resnet-50", "resnet50");
    let fused = if options.fused { "fused-" } else { "" };
    let number =
        if options.number == Type::F32 { String::new() } else { format!("{}-", options.number.name()) };
    options.picture = picture
        .unwrap_or_else(|| format!("{name}-{fused}{number}{}.svg", layout_name(options.layout)).into());
    Ok(Some(options))
}

fn count(name: &str, text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|&count| count > 0);
    count.ok_or_else(|| format!("{name} is {text:?}, must be a number from 1 on"))
}
