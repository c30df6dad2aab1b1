//! What the operations have a task do: sums, scales, coefficients, maps.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ground::geometry::{Block, Geometry, Pattern, Run};
use crate::ground::sizes::GROUP;
use crate::ground::slices::{Input, Output};
use crate::kernel::Vectorized;
use crate::kernel::channels::*;
use crate::kernel::columns::Columns;
use crate::kernel::fused::{AsRead, Bare, Fused, Masked, Read, ReadMasked, ReadRecomputed, Recomputed};
use crate::kernel::map::Map;
use crate::kernel::map::formulas::{Formula, Normalize};
use crate::kernel::map::pipelined::Pipelined;
use crate::kernel::reduce::interleave::{Interleave, NoInterleave};
use crate::kernel::reduce::{Piece, Reduce};
use crate::kernel::scales::ORDINARY_SCALE;
use crate::kernel::scratch::{Scratch, Sums};
use crate::kernel::terms::Terms;
use crate::operations::given::{After, Kind};
use crate::schedule::engine::Task;
use crate::schedule::ranges::pieces;
use crate::simd::Level;

impl<T: Vectorized> Task<'_, T> {
    /// As [`Given::scales`], of the batch's own moments.
    pub fn batch_scales(
        &mut self,
        channels: &Range<usize>,
        (moments, count): (&[T::Moments], f64),
        (gamma, eps): (Option<&[T]>, f64),
        (normalize, sums): (bool, &[T::Gradients]),
    ) {
        let gamma = gamma.map(|gamma| &gamma[channels.clone()]);
        let scratch = &mut *self.scratch;
        T::dispatch(self.level, BatchScales { moments, count, gamma, eps, normalize, sums, scratch });
    }

    /// What follows from states, group by group of channels that are derived at once: `of_group` takes the group, its states
    /// and the column from which on to write coefficients, which are then laid out: `rows` of them, the first `ordinary` where no
    /// channel needs the others.
    pub fn follow<S>(
        &mut self,
        channels: &Range<usize>,
        states: &[S],
        coefficients: Option<usize>,
        (rows, ordinary): (&[usize], usize),
        of_group: impl Fn(&mut Self, &Range<usize>, &[S], Option<usize>),
    ) {
        if coefficients.is_some() {
            self.scratch.ordinary = true;
        }
        for group in pieces(channels.clone(), GROUP) {
            let offset = group.start - channels.start;
            let states = states.get(offset..offset + group.len()).unwrap_or(&[]);
            of_group(self, &group, states, coefficients.map(|at| at + offset));
        }
        if coefficients.is_some() {
            let rows = if self.scratch.ordinary { &rows[..ordinary] } else { rows };
            let geometry = self.layout(channels);
            let columns = Columns::of_map(&geometry, channels, self.access.planes_as_rows);
            let whole_rows = geometry.pattern == Pattern::Across && channels.len() == geometry.c;
            if columns != Columns::CHANNELS || whole_rows {
                self.lay_out_rows(channels, rows, columns);
            }
        }
    }

    /// Whether coefficients of these channels are laid out for maps of tensors as they lie, too.
    pub fn is_laid_out(&self, channels: &Range<usize>) -> bool {
        let of = |geometry: &Geometry| Columns::of_map(geometry, channels, self.access.planes_as_rows);
        of(&self.layout(channels)) == of(self.geometry)
    }

    /// The same of sums.
    pub fn is_laid_out_for_sums(&self, channels: &Range<usize>) -> bool {
        self.columns_of_sums(channels) == Columns::of_sums(self.geometry, channels)
    }

    /// The problem that coefficients of these channels are laid out for.
    fn layout(&self, channels: &Range<usize>) -> Geometry {
        let Geometry { n, s, .. } = *self.geometry;
        if self.tiled { self.geometry.tile(n, channels.len(), s) } else { *self.geometry }
    }

    /// What the columns of sums over these channels are.
    pub fn columns_of_sums(&self, channels: &Range<usize>) -> Columns {
        Columns::of_sums(&self.layout(channels), channels)
    }

    /// Lays out some coefficients of these channels, which have been written from column 0 on, for the loops over them.
    pub fn lay_out_rows(&mut self, channels: &Range<usize>, rows: &[usize], columns: Columns) {
        let kernel = LayOut { scratch: self.scratch, rows, channels: channels.len(), columns };
        T::dispatch(self.level, kernel);
    }

    /// Lays out centers for the loops over these channels.
    pub fn lay_out_centers(&mut self, channels: &Range<usize>) {
        let columns = self.columns_of_sums(channels);
        if columns != Columns::CHANNELS {
            let sums = &mut self.scratch.sums;
            let scaled = sums.scaled;
            let kernel = LayOutCenters { sums, scaled, channels: channels.len(), columns };
            T::dispatch(self.level, kernel);
        }
    }

    /// Calls `body` with the task of 16-bit numbers, as lanes over them take them.
    pub fn of_halves(&mut self, half: T::Half, body: impl FnOnce(&mut Self)) {
        self.half = Some(half);
        body(self);
        self.half = None;
    }

    /// Sums over each block of a run, to the scratch.
    pub fn sums<O: Terms<IN>, const IN: usize>(
        &mut self,
        terms: O,
        inputs: [Input<'_, T>; IN],
        part: (&Range<usize>, &Run),
    ) {
        let sums = &mut self.scratch.sums;
        let how = (self.level, self.half);
        sum_up(how, self.geometry, terms, inputs, part, sums, (AsRead, NoInterleave));
    }

    /// The same of x and g, for which u is found anew: its coefficients are in the scratch.
    pub fn sums_recomputed<O: Terms<2>>(
        &mut self,
        terms: O,
        inputs: [Input<'_, T>; 2],
        recomputed: Recomputed<T>,
        part: (&Range<usize>, &Run),
    ) {
        let Scratch { sums, coefficients, .. } = &mut *self.scratch;
        let read = ReadRecomputed { recomputed, coefficients };
        let how = (self.level, self.half);
        sum_up(how, self.geometry, terms, inputs, part, sums, (read, NoInterleave));
    }

    /// The same of x and g by what the forward pass kept.
    pub fn sums_masked<O: Terms<2>>(
        &mut self,
        terms: O,
        inputs: [Input<'_, T>; 2],
        masked: Masked<'_, T>,
        part: (&Range<usize>, &Run),
    ) {
        let read = ReadMasked { masked, x: inputs[0] };
        let sums = &mut self.scratch.sums;
        let how = (self.level, self.half);
        sum_up(how, self.geometry, terms, inputs, part, sums, (read, NoInterleave));
    }

    /// The same while the pending group is mapped.
    pub fn sums_and_map<O, F, E, const IN: usize, const K: usize>(
        &mut self,
        terms: O,
        (formula, fused): (F, E),
        inputs: [Input<'_, T>; IN],
        output: Output<'_, T>,
        part: (&Range<usize>, &Run),
        pending: &Range<usize>,
    ) where
        O: Terms<IN>,
        F: Formula<IN, K>,
        E: Fused<T, F, IN, K>,
    {
        let (level, geometry) = (self.level, self.geometry);
        let whole = Block { samples: 0..geometry.n, positions: 0..geometry.s };
        let (map, sums) = self.map_of((formula, fused), inputs, output, (pending, 0, &whole));
        sum_up((level, None), geometry, terms, inputs, part, sums, (AsRead, Pipelined(map)));
    }

    /// Normalizes a part, by a formula of its own if all channels are ordinary, with what comes after.
    pub fn normalize(
        &mut self,
        ordinary: impl Formula<1, ORDINARY_SCALE>,
        x: Input<'_, T>,
        y: Output<'_, T>,
        after: &After<'_, T>,
        part: (&Range<usize>, usize, &Block),
    ) {
        match (self.scratch.ordinary, after.kind()) {
            (true, Kind::Nothing) => self.apply((ordinary, Bare), [x], y, part),
            (false, Kind::Nothing) => self.apply::<_, _, 1, 5>((Normalize, Bare), [x], y, part),
            (true, Kind::Activation(activated)) => self.apply((ordinary, activated), [x], y, part),
            (true, Kind::More) => after.fuse(|epilogue| {
                self.apply::<_, _, 1, ORDINARY_SCALE>((Normalize, epilogue), [x], y, part);
            }),
            (false, Kind::Activation(_) | Kind::More) => {
                after.fuse(|epilogue| self.apply::<_, _, 1, 5>((Normalize, epilogue), [x], y, part));
            }
        }
    }

    /// Maps a part.
    pub fn apply<O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize>(
        &mut self,
        formula: (O, E),
        inputs: [Input<'_, T>; IN],
        output: Output<'_, T>,
        part: (&Range<usize>, usize, &Block),
    ) {
        let (level, half) = (self.level, self.half);
        let (map, _) = self.map_of(formula, inputs, output, part);
        T::dispatch_tensors(level, half, map);
    }

    /// The map of a part, and what can be summed in beside it.
    pub fn map_of<'b, O: Formula<IN, K>, E: Fused<T, O, IN, K>, const IN: usize, const K: usize>(
        &'b mut self,
        (_, fused): (O, E),
        inputs: [Input<'b, T>; IN],
        output: Output<'b, T>,
        (channels, column, part): (&Range<usize>, usize, &Block),
    ) -> (Map<'b, T, O, E, IN, K>, &'b mut Sums) {
        let (channels, part) = (channels.clone(), part.clone());
        let Scratch { sums, coefficients, .. } = &mut *self.scratch;
        let map = Map {
            geometry: self.geometry,
            inputs,
            output,
            channels,
            column,
            part,
            access: self.access,
            coefficients,
            formula: PhantomData,
            fused,
        };
        (map, sums)
    }
}

/// Sums over each block of a run, to `sums`, of what is read, with something else interleaved.
fn sum_up<T: Vectorized, O: Terms<IN>, R: Read<T, IN>, M: Interleave<T>, const IN: usize>(
    (level, half): (Level, Option<T::Half>),
    geometry: &Geometry,
    _: O,
    inputs: [Input<'_, T>; IN],
    (channels, run): (&Range<usize>, &Run),
    sums: &mut Sums,
    (read, interleave): (R, M),
) {
    let (channels, run, terms) = (channels.clone(), run.clone(), PhantomData::<O>);
    let (block, piece) = (run.first.clone(), Piece::whole(geometry, &run.first));
    let reduce = Reduce { geometry, inputs, channels, run, block, piece, sums, read, interleave, terms };
    T::dispatch_tensors(level, half, reduce);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::activations::{Activation, ActivationOf};
    use crate::kernel::bits::words;
    use crate::kernel::fused::Activated;
    use crate::kernel::map::formulas::{InputGradient, NormalizeBatch};
    use crate::kernel::map::{Access, Prefetch, Store};
    use crate::kernel::room::Room;
    use crate::kernel::scales::ORDINARY_GRADIENT;
    use crate::schedule::blocks::Blocks;

    const CANARY: f64 = 12345.0;

    /// A group that is mapped while the next is summed gets the bits that it gets by itself, and so do the sums; no one else's
    /// change. By the kernels alone: the engine's part in it is the fuzz targets', which pipeline on any machine.
    #[test]
    fn overlap_changes_no_bit() {
        for level in Level::available().iter().filter(|level| level.interleaves()) {
            overlap_changes_no_bit_of::<f32>(*level);
            overlap_changes_no_bit_of::<f64>(*level);
        }
    }

    fn overlap_changes_no_bit_of<T: Vectorized>(level: Level) {
        for (n, group, s) in
            [(3, 2, 100), (2, 3, 196), (1, 4, 66), (1, 2, 65), (4, 3, 784), (33, 2, 81), (2, 1, 9000)]
        {
            let geometry = Geometry::new(n, 2 * group, s, Pattern::Along);
            let tensor = |seed: usize| {
                let noise = |i: usize| ((i * 2 + seed).wrapping_mul(0x9E37_79B9) >> 7 & 0xFFFF) as f64;
                (0..geometry.len()).map(|i| T::from_f64(noise(i) / 65536.0 - 0.5)).collect::<Vec<T>>()
            };
            let tensors = [tensor(1), tensor(2)];
            for offset in [0, 1, 15, 16] {
                let of = |overlap| outcome(level, &geometry, &tensors, (offset, overlap));
                assert_eq!(of(false), of(true), "{level} {geometry:?}, offset {offset}");
            }
        }
    }

    /// What is mapped, while what it takes is summed.
    enum Form {
        Bare,
        Silu,
        AddRelu,
        Gradient,
    }

    /// The bits of outputs, masks and sums, where the first half of the channels is mapped and the second summed: normalization, with
    /// what comes after too, and statistics; the input's gradient and sums of gradients.
    fn outcome<T: Vectorized>(
        level: Level,
        geometry: &Geometry,
        [x, dy]: &[Vec<T>; 2],
        (offset, overlap): (usize, bool),
    ) -> Vec<u64> {
        let (half, blocks) = (geometry.c / 2, Blocks::of(geometry));
        let (mapped, summed, whole) = (0..half, half..geometry.c, blocks.whole());
        let mut room = T::take_scratch().expect("memory");
        let Room { scratch, .. } = &mut *room;
        let Sums { centers, units, besides, pivots, scaled, .. } = &mut scratch.sums;
        centers.fill(0.25);
        units.fill(1.0);
        besides.fill(0.0);
        pivots.fill(0.0);
        (*scaled, scratch.ordinary) = (false, true);
        for (row, coefficients) in scratch.coefficients.iter_mut().enumerate() {
            let value = |column| T::from_f64((row * 7 + column) as f64);
            coefficients.iter_mut().enumerate().for_each(|(column, k)| *k = value(column));
        }
        let access =
            Access { store: Store::NonTemporal, prefetch: Prefetch::Own, l1_ways: 8, planes_as_rows: false };
        let (tiles, tiled, half_type, pending) = (None, false, None, None);
        let mut task = Task { level, geometry, access, scratch, tiles, tiled, half: half_type, pending };

        let mut bits = Vec::new();
        let (x, dy, len) = (Input::new(x), Input::new(dy), geometry.len());
        for form in [Form::Bare, Form::Silu, Form::AddRelu, Form::Gradient] {
            let (mut output, mut mask) = (vec![T::from_f64(CANARY); len + 40], vec![0; words(len)]);
            let y = Output::new(&mut output[offset + 4..][..len]);
            let silu = Activated(ActivationOf::new(Activation::Silu));
            let mask_and_len = Some((Output::new(&mut mask), len));
            let after = After::<T> { activation: Activation::Relu, residual: Some(dy), mask: mask_and_len };
            let part = (&mapped, 0, &whole);
            match form {
                _ if overlap => (),
                Form::Bare => task.apply((NormalizeBatch, Bare), [x], y, part),
                Form::Silu => task.apply((NormalizeBatch, silu), [x], y, part),
                Form::AddRelu => after.fuse(|epilogue| {
                    task.apply::<_, _, 1, ORDINARY_SCALE>((Normalize, epilogue), [x], y, part);
                }),
                Form::Gradient => {
                    task.apply::<_, _, 2, ORDINARY_GRADIENT>((InputGradient, Bare), [x, dy], y, part);
                }
            }
            for block in (0..blocks.len()).map(|index| Run::of(blocks.get(index))) {
                let (part, plain, gradient) =
                    ((&summed, &block), T::Plain::default(), T::Gradient::default());
                match form {
                    Form::Gradient if overlap => task.sums_and_map::<_, _, _, 2, ORDINARY_GRADIENT>(
                        gradient,
                        (InputGradient, Bare),
                        [x, dy],
                        y,
                        part,
                        &mapped,
                    ),
                    Form::Gradient => task.sums(gradient, [x, dy], part),
                    _ if !overlap => task.sums(plain, [x], part),
                    Form::Bare => task.sums_and_map(plain, (NormalizeBatch, Bare), [x], y, part, &mapped),
                    Form::Silu => task.sums_and_map(plain, (NormalizeBatch, silu), [x], y, part, &mapped),
                    Form::AddRelu => after.fuse(|epilogue| {
                        let formula = (Normalize, epilogue);
                        task.sums_and_map::<_, _, _, 1, ORDINARY_SCALE>(
                            plain,
                            formula,
                            [x],
                            y,
                            part,
                            &mapped,
                        );
                    }),
                }
                let totals = task.scratch.sums.totals.iter().flat_map(|totals| &totals[..half]);
                bits.extend(totals.map(|total| total.to_bits()));
            }
            assert!(output[..offset + 4].iter().all(|value| value.to_f64() == CANARY));
            bits.extend(output.iter().map(|value| value.to_f64().to_bits()));
            bits.extend(mask);
        }
        T::keep_scratch(room);
        bits
    }
}
