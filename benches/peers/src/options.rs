//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::contender::{Caller, Peer};
use crate::number::Type;
use crate::plain_loops::{Form, Operation};
use crate::shapes::{self, Problem};

pub const HELP: &str = "\
Times batchnorm side by side with oneDNN, candle and burn, next to plain loops over the same bytes.

Usage: cargo run --release -- [OPTIONS]

Options:
  --threads N      threads of everyone [default: all cores]
  --seconds S      how long each contender runs at a time [default: 0.05]
  --rounds N       how often each contender's turn comes [default: 5]
  --shapes LIST    only shapes with one of these in their names, such as 32x64x56x56,7x7 [default: all twelve]
  --ops LIST       of training, inference, backward, and each of them with +relu and +add+relu [default: all nine]
  --network        instead the 53 layers of ResNet-50, each with what follows it there, and sums over them; --ops then names
                   operations
  --type NAME      what tensors hold: f32, bf16 or f16, beside parameters of f32 in each case; oneDNN alone is compared with
                   for the latter, where it has kernels on this CPU [default: f32]
  --caller NAME    the thread that calls ours, candle, burn and the plain loops: main, or pool for one of rayon's [default: main]
  --peers LIST     of onednn, candle, burn, or none [default: all that are built in]
  --csv FILE       also writes every median there
  --help           prints this
";

/// The twelve shapes of every throughput table.
const SHAPES: &str = include_str!("../../shapes/table.txt");

/// ResNet-50's layers, with what follows each.
const NETWORK: &str = include_str!("../../shapes/resnet50_fused.txt");

/// The operations that peers have too.
const OPERATIONS: [Operation; 3] = [Operation::Training, Operation::Inference, Operation::Backward];

/// What to measure, and how.
pub struct Options {
    /// Threads of each contender.
    pub threads: usize,
    /// How long each contender runs in one go.
    pub block: Duration,
    /// How often each contender's turn comes.
    pub rounds: usize,
    /// What to measure on.
    pub shapes: Vec<Problem>,
    /// What to measure; of a network's layers with what follows each.
    pub forms: Vec<Form>,
    /// Whether the shapes are a network's layers.
    pub network: bool,
    /// What tensors hold.
    pub number: Type,
    /// From where.
    pub caller: Caller,
    /// Whom to compare with.
    pub peers: Vec<Peer>,
    /// Where to write the medians.
    pub csv: Option<PathBuf>,
}

/// The options of the command line; none if it asks for help.
pub fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        block: Duration::from_millis(50),
        rounds: 5,
        shapes: shapes::parse(SHAPES).expect("a file of this repository"),
        forms: Vec::new(),
        network: false,
        number: Type::F32,
        caller: Caller::Main,
        peers: Vec::new(),
        csv: None,
    };
    let (mut wanted_shapes, mut wanted_forms, mut wanted_peers) = (None, None, None);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("threads") => options.threads = arguments.value()?.parse_with(positive)?,
            Long("seconds") => options.block = arguments.value()?.parse_with(seconds)?,
            Long("rounds") => options.rounds = arguments.value()?.parse_with(positive)?,
            Long("shapes") => wanted_shapes = Some(arguments.value()?.string()?),
            Long("ops") => wanted_forms = Some(arguments.value()?.string()?),
            Long("network") => options.network = true,
            Long("caller") => {
                let known = [("main", Caller::Main), ("pool", Caller::Pool)];
                let name = arguments.value()?.string()?;
                let caller = known.into_iter().find(|(known, _)| *known == name);
                options.caller = caller.ok_or_else(|| format!("{name:?} is none of: main, pool"))?.1;
            }
            Long("type") => {
                options.number = Type::parse(&arguments.value()?.string()?)?;
            }
            Long("peers") => wanted_peers = Some(arguments.value()?.string()?),
            Long("csv") => options.csv = Some(arguments.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    if options.network {
        options.shapes = shapes::parse(NETWORK).expect("a file of this repository");
    }
    if let Some(wanted) = wanted_shapes {
        options.shapes.retain(|shape| wanted.split(',').any(|part| shape.to_string().contains(part)));
        if options.shapes.is_empty() {
            return Err(format!("no shape of the table has {wanted:?} in its name").into());
        }
    }
    let known = Peer::BUILT_IN.iter().filter(|peer| peer.has(options.number));
    let known: Vec<_> = known.map(|&peer| (peer.name(), peer)).collect();
    options.peers = match wanted_peers.as_deref() {
        None => known.into_iter().map(|(_, peer)| peer).collect(),
        Some("none") => Vec::new(),
        Some(wanted) => list(wanted, &known)?,
    };
    let bare = OPERATIONS.into_iter().map(Form::from);
    let fused = Form::FUSED.into_iter().filter(|_| !options.network);
    let known: Vec<_> = bare.chain(fused).map(|form| (key(form), form)).collect();
    let known: Vec<_> = known.iter().map(|(name, form)| (name.as_str(), *form)).collect();
    options.forms = match wanted_forms {
        Some(wanted) => list(&wanted, &known)?,
        None => known.into_iter().map(|(_, form)| form).collect(),
    };
    Ok(Some(options))
}

/// A form's name on the command line, such as `training+add+relu`.
fn key(form: Form) -> String {
    form.name().replace(' ', "").to_lowercase()
}

/// A number from 1 on.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "no number from 1 on".to_owned())
}

/// A time of at most a minute.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().filter(|time| (0.0..=60.0).contains(time));
    time.map(Duration::from_secs_f64).ok_or_else(|| "no number of seconds from 0 to 60".to_owned())
}

/// The things that a list names, in the order of `known`.
fn list<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<Vec<T>, String> {
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    if let Some(name) = names.iter().find(|name| !known.iter().any(|(known, _)| known == *name)) {
        let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        return Err(format!("{name:?} is none of: {}", known.join(", ")));
    }
    Ok(known.iter().filter(|(name, _)| names.contains(name)).map(|&(_, thing)| thing).collect())
}
