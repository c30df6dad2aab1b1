//! The same bits of every output, whatever it is computed on and in whatever order the axes lie.

use batchnorm::{Layout, Level};

use crate::common::fused::run_fused;
use crate::common::matrix::{Configuration, LAYOUTS, Placement, run};
use crate::operations::fused::After;
use crate::shared::bounds::Contract;
use crate::shared::problem::{Problem, Run};

/// Every level, on any threads and at any alignment, gives the bits of portable code on one thread.
pub fn levels<T: Contract>(problem: &Problem, how: Run, after: After) {
    let problem = problem.make::<T>();
    let go = |configuration: Configuration, at| {
        configuration.run(|| run(&problem, how.layout(), at, std::iter::empty()))
    };
    let expected = go(Configuration { level: Level::Portable, threads: 1 }, Placement::default());
    let configuration = how.configuration();
    let what = format!("{} {:?}, {how:?}", T::NAME, problem.dims);
    go(configuration, how.placement()).assert_same(&expected, &what);
    let Some((form, share)) = after.form() else { return };
    let go = |configuration: Configuration, at| {
        configuration.run(|| run_fused(&problem, how.layout(), at, form, share))
    };
    let expected = go(Configuration { level: Level::Portable, threads: 1 }, Placement::default());
    go(configuration, how.placement()).assert_same(&expected, &what);
}

/// NHWC gives the bits of NCHW.
pub fn layouts<T: Contract>(problem: &Problem, how: Run, after: After) {
    let problem = problem.make::<T>();
    let configuration = how.configuration();
    let go = |layout: Layout, at| configuration.run(|| run(&problem, layout, at, std::iter::empty()));
    let [nchw, nhwc] = LAYOUTS;
    let expected = go(nchw, Placement::default());
    let what = format!("{} {:?}, {how:?}", T::NAME, problem.dims);
    go(nhwc, how.placement()).assert_same(&expected, &what);
    let Some((form, share)) = after.form() else { return };
    let go = |layout: Layout, at| configuration.run(|| run_fused(&problem, layout, at, form, share));
    let expected = go(nchw, Placement::default());
    go(nhwc, how.placement()).assert_same(&expected, &what);
}
