//! Tensors of 16-bit numbers, beside the operation on the widened ones.

use arbitrary::Arbitrary;

use crate::common::half::{Halves, Number, Places, Right};
use crate::operations::fused::After;
use crate::shared::problem::{Problem, Run};

/// Which numbers, what they are made of, and where results go.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Numbers {
    /// f16, or else bf16.
    pub f16: bool,
    /// The low bits of the elements' own as they are, or else the elements rounded.
    raw: bool,
    places: u8,
}

/// The bits of the operation on the widened tensors, each result rounded once.
pub fn rounding<H: Number>(problem: &Problem, run: Run, after: After, numbers: Numbers) {
    let Some((form, _)) = after.form() else { return };
    let wide = problem.make::<f32>();
    let number = |x: f32| if numbers.raw { H::of_bits(x.to_bits() as u16) } else { H::rounded(x) };
    let tensors = [&wide.x, &wide.dy, &wide.z].map(|tensor| tensor.iter().map(|x| number(*x)).collect());
    let problem = Halves::<H>::of(wide, tensors);
    let places = [Places::Apart, Places::OverFirst, Places::OverSecond][usize::from(numbers.places % 3)];
    let way = (run.layout(), run.placement(), places);
    Right::of(&problem, form, run.layout()).check(&problem, form, run.configuration(), way);
}
