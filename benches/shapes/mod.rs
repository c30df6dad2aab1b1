//! Files of shapes, one problem per line: see README.md beside this file.

use std::fmt;

use batchnorm::{Error, Layout, Shape};

/// What follows a normalization in the same call, and on the way back precedes its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing: the bare operation.
    Nothing,
    /// ReLU.
    Relu,
    /// A residual is added, then ReLU; on the way back the residual's gradient is written too.
    AddRelu,
}

impl fmt::Display for Epilogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "",
            Self::Relu => "+ ReLU",
            Self::AddRelu => "+ add + ReLU",
        })
    }
}

/// A line of a file: dimensions N, C, spatial..., how many layers of a network have them, and what follows these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// N, C, spatial... in this order, whatever the layout.
    pub dims: Vec<usize>,
    /// Layers; 1 if the line does not say.
    pub layers: usize,
    /// Nothing if the line does not say.
    pub epilogue: Epilogue,
}

impl Problem {
    /// The shape in a layout.
    pub fn shape(&self, layout: Layout) -> Result<Shape, Error> {
        match self.dims[..] {
            [batch, channels, ref spatial @ ..] => Shape::new(layout, batch, channels, spatial),
            _ => Err(Error::Rank { rank: self.dims.len() }),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x"))
    }
}

/// The problems of a file's text; the error names the line.
pub fn parse(text: &str) -> Result<Vec<Problem>, String> {
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut fields: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        if fields.is_empty() {
            continue;
        }
        let wrong = |what: String| format!("line {}: {what}", number + 1);
        let count = |field: &str| {
            let count = field.parse().ok().filter(|&count: &usize| count > 0);
            count.ok_or_else(|| wrong(format!("{field:?} is no number from 1 on")))
        };
        let epilogue = match fields.last() {
            Some(&"relu") => Epilogue::Relu,
            Some(&"add_relu") => Epilogue::AddRelu,
            _ => Epilogue::Nothing,
        };
        if epilogue != Epilogue::Nothing {
            fields.pop();
        }
        let layers = match fields.last().and_then(|field| field.strip_prefix('x')) {
            Some(layers) => {
                fields.pop();
                count(layers)?
            }
            None => 1,
        };
        let dims = fields.into_iter().map(count).collect::<Result<Vec<_>, _>>()?;
        let problem = Problem { dims, layers, epilogue };
        problem.shape(Layout::Nchw).map_err(|error| wrong(error.to_string()))?;
        problems.push(problem);
    }
    if problems.is_empty() { Err("no shapes in it".to_owned()) } else { Ok(problems) }
}
