//! Views of ndarray give the shape and the slice that the same tensor has without it, or an error that says what to do.

use batchnorm::ndarray::{slice, slice_like, slice_mut, slice_mut_like};
use batchnorm::{
    Activation, Backward, Error, Gradients, Layout, Params, Shape, Training, Welford, forward_training,
    reference,
};
use ndarray::{Array, Array1, Array2, Array3, Array4, ArrayD, Axis, IxDyn, s};
use quickcheck::{Arbitrary, Gen, QuickCheck};

fn numbered(dims: &[usize]) -> ArrayD<f32> {
    let mut i = 0.0;
    ArrayD::from_shape_simple_fn(IxDyn(dims), || {
        i += 1.0;
        f32::sin(i)
    })
}

/// Dimensions, the channel axis, and the order of the axes in memory: the channels anywhere among the others.
#[derive(Debug, Clone)]
struct Case {
    dims: Vec<usize>,
    axis: usize,
    place: usize,
}

impl Arbitrary for Case {
    fn arbitrary(g: &mut Gen) -> Self {
        let below = |g: &mut Gen, n: usize| usize::arbitrary(g) % n;
        let rank = 2 + below(g, 4);
        let dims = (0..rank).map(|_| 1 + below(g, 6)).collect();
        Self { dims, axis: below(g, rank), place: below(g, rank) }
    }
}

impl Case {
    fn array(&self) -> ArrayD<f32> {
        let mut order: Vec<usize> = (0..self.dims.len()).filter(|&axis| axis != self.axis).collect();
        order.insert(self.place, self.axis);
        let memory: Vec<usize> = order.iter().map(|&axis| self.dims[axis]).collect();
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
        numbered(&memory).permuted_axes(back)
    }
}

#[test]
fn every_channel_is_found() {
    fn holds(case: Case) -> bool {
        let array = case.array();
        let (shape, x) = slice(array.view(), Axis(case.axis)).unwrap();
        let mut states = vec![Welford::new(); shape.channels()];
        batchnorm::statistics(&shape, x, &mut states).unwrap();
        // Each channel by itself, as ndarray sees it, against the same elements in a tensor of one channel.
        let one = Shape::nchw(&[shape.per_channel(), 1]).unwrap();
        shape.len() == array.len()
            && array.axis_iter(Axis(case.axis)).zip(&states).all(|(channel, state)| {
                let elements: Vec<f32> = channel.iter().copied().collect();
                let expected = &reference::statistics(&one, &elements)[0];
                (state.mean() - expected.mean).abs() < 1e-9 && (state.variance() - expected.var).abs() < 1e-9
            })
    }
    QuickCheck::new().tests(2000).quickcheck(holds as fn(Case) -> bool);
}

#[test]
fn layouts_read_off_the_strides() {
    let shape = |array: &ArrayD<f32>, axis| slice(array.view(), Axis(axis)).unwrap().0;
    let standard = numbered(&[4, 3, 5, 2]);
    assert_eq!(shape(&standard, 1), Shape::nchw(&[4, 3, 5, 2]).unwrap());
    assert_eq!(shape(&standard, 3), Shape::nhwc(&[4, 3, 5, 2]).unwrap());
    // The axes before the channels are all batch.
    assert_eq!(shape(&standard, 2), Shape::nchw(&[12, 5, 2]).unwrap());
    assert_eq!(shape(&standard, 0), Shape::nchw(&[1, 4, 3, 5, 2]).unwrap());
    let permuted = standard.permuted_axes([0, 3, 1, 2].to_vec());
    assert_eq!(shape(&permuted, 1), Shape::nhwc(&[4, 3, 5, 2]).unwrap());
    assert_eq!(shape(&numbered(&[7, 3]), 1), Shape::nchw(&[7, 3]).unwrap());
    // Whatever the axes of one element: the standard order comes first.
    assert_eq!(shape(&numbered(&[4, 1, 3, 1]).permuted_axes(vec![0, 2, 1, 3]), 1).layout(), Layout::Nchw);
}

#[test]
fn a_part_of_an_array_is_a_slice_of_it() {
    let mut array = numbered(&[6, 3, 5]).into_dimensionality::<ndarray::Ix3>().unwrap();
    let expected = array.slice(s![2..4, .., ..]).iter().copied().collect::<Vec<_>>();
    let (shape, x) = slice(array.slice(s![2..4, .., ..]), Axis(1)).unwrap();
    assert_eq!((shape, x), (Shape::nchw(&[2, 3, 5]).unwrap(), &expected[..]));
    let (shape, x) = slice_mut(array.slice_mut(s![2..4, .., ..]), Axis(1)).unwrap();
    assert_eq!((shape, &*x), (Shape::nchw(&[2, 3, 5]).unwrap(), &expected[..]));
}

#[test]
fn training_both_layouts_gives_the_same_array() {
    let nhwc = numbered(&[4, 6, 5, 3]).into_dimensionality::<ndarray::Ix4>().unwrap();
    let last = nhwc.view().permuted_axes([0, 3, 1, 2]);
    let first = last.as_standard_layout();
    let (mut y_first, mut y_last) =
        (Array4::zeros((4, 3, 6, 5)), Array4::zeros((4, 6, 5, 3)).permuted_axes([0, 3, 1, 2]));
    for (x, y) in [(first.view(), &mut y_first), (last, &mut y_last)] {
        let (shape, x) = slice(x, Axis(1)).unwrap();
        let y = slice_mut_like(y.view_mut(), Axis(1), &shape).unwrap();
        forward_training(&shape, x, &Params::default(), y, &mut [Welford::new(); 3]).unwrap();
    }
    assert_eq!(y_first, y_last);
}

/// relu(norm(x) + z) and its gradients, of views of either layout, are what ndarray's own operations make of the bare
/// normalization, to the bit.
#[test]
fn a_residual_lies_as_x_does() {
    let relu = Params::<f32>::default().activation(Activation::Relu);
    let nhwc = numbered(&[4, 6, 5, 3]).into_dimensionality::<ndarray::Ix4>().unwrap();
    let last = |array: &Array4<f32>| array.clone().permuted_axes([0, 3, 1, 2]);
    let [x, z, dy] = [nhwc.clone(), nhwc.mapv(|v| v * 7.0 % 1.0), nhwc.mapv(|v| v * 11.0 % 1.0)];
    for standard in [true, false] {
        let view = |array: &Array4<f32>| match standard {
            true => last(array).as_standard_layout().into_owned(),
            false => last(array),
        };
        let [x, z, dy] = [&x, &z, &dy].map(view);
        let [mut y, mut dx, mut dz, mut bare] = [(); 4].map(|()| view(&Array4::zeros((4, 6, 5, 3))));
        let mut states = [Welford::new(); 3];
        let (shape, x) = slice(x.view(), Axis(1)).unwrap();
        let mut mask = vec![0; shape.mask_len()];
        Training::new(&shape, relu)
            .x(x)
            .residual(slice_like(z.view(), Axis(1), &shape).unwrap())
            .y(slice_mut_like(y.view_mut(), Axis(1), &shape).unwrap())
            .states(&mut states)
            .mask(&mut mask)
            .run()
            .unwrap();
        let out = slice_mut_like(bare.view_mut(), Axis(1), &shape).unwrap();
        forward_training(&shape, x, &Params::default(), out, &mut [Welford::new(); 3]).unwrap();
        assert_eq!(y, (&bare + &z).mapv(|u| u.max(0.0)), "{shape}");

        let mut dbeta = Array1::zeros(3);
        let gradients = Gradients::new()
            .dx(slice_mut_like(dx.view_mut(), Axis(1), &shape).unwrap())
            .dz(slice_mut_like(dz.view_mut(), Axis(1), &shape).unwrap())
            .dbeta(dbeta.as_slice_mut().unwrap());
        let dy_elements = slice_like(dy.view(), Axis(1), &shape).unwrap();
        Backward::new(&shape, relu)
            .x(x)
            .dy(dy_elements)
            .states(&states)
            .mask(&mask)
            .gradients(gradients)
            .run()
            .unwrap();
        let open = y.mapv(|y| f32::from(u8::from(y > 0.0)));
        assert!(open.iter().any(|&open| open == 0.0));
        assert_eq!(dz, &dy * &open, "{shape}");
        let mut expected = view(&Array4::zeros((4, 6, 5, 3)));
        let mut expected_dbeta = [0.0; 3];
        let gradients = Gradients::new()
            .dx(slice_mut_like(expected.view_mut(), Axis(1), &shape).unwrap())
            .dbeta(&mut expected_dbeta);
        let dz = slice_like(dz.view(), Axis(1), &shape).unwrap();
        batchnorm::backward(&shape, x, dz, &states, &Params::default(), gradients).unwrap();
        assert_eq!((dx, dbeta.to_vec()), (expected, expected_dbeta.to_vec()), "{shape}");
    }
    // In the other layout it would be added in the wrong order.
    let (shape, _) = slice(x.view().permuted_axes([0, 3, 1, 2]), Axis(1)).unwrap();
    let z = last(&z).as_standard_layout().into_owned();
    assert!(matches!(slice_like(z.view(), Axis(1), &shape), Err(Error::View { like: Some(_), .. })));
}

/// Views of half's numbers, of both layouts, give the bits that the slices of f32 give, rounded once.
#[cfg(feature = "half")]
#[test]
fn arrays_of_halfs_numbers() {
    use half::{bf16, f16};

    fn check<H: batchnorm::Storage<Arithmetic = f32>>(round: fn(f32) -> H) {
        let nhwc = numbered(&[4, 6, 5, 3]).into_dimensionality::<ndarray::Ix4>().unwrap().mapv(round);
        let last = nhwc.view().permuted_axes([0, 3, 1, 2]);
        let standard = last.as_standard_layout();
        for x in [last, standard.view()] {
            let wide = x.mapv(H::widened);
            let [mut y, mut dx] = [(); 2].map(|()| x.to_owned());
            let [mut wide_y, mut wide_dx, mut y_of_f32] = [(); 3].map(|()| wide.clone());
            let (shape, x) = slice(x, Axis(1)).unwrap();
            let (wide_shape, wide) = slice(wide.view(), Axis(1)).unwrap();
            assert_eq!((shape, x.len()), (wide_shape, 360));

            let mut states = [Welford::new(); 3];
            let out = slice_mut_like(y.view_mut(), Axis(1), &shape).unwrap();
            forward_training(&shape, x, &Params::default(), out, &mut states).unwrap();
            let out = slice_mut_like(y_of_f32.view_mut(), Axis(1), &shape).unwrap();
            let training = Training::new(&shape, Params::default()).x(x).y_of(out);
            training.states(&mut [Welford::new(); 3]).run().unwrap();
            let mut of_wide = [Welford::new(); 3];
            let out = slice_mut_like(wide_y.view_mut(), Axis(1), &shape).unwrap();
            forward_training(&shape, wide, &Params::default(), out, &mut of_wide).unwrap();
            assert_eq!((&states, &y, &y_of_f32), (&of_wide, &wide_y.mapv(round), &wide_y), "{shape}");

            let gradients = Gradients::new().dx(slice_mut_like(dx.view_mut(), Axis(1), &shape).unwrap());
            batchnorm::backward(&shape, x, x, &states, &Params::default(), gradients).unwrap();
            let out = slice_mut_like(wide_dx.view_mut(), Axis(1), &shape).unwrap();
            let gradients = Gradients::new().dx(out);
            batchnorm::backward(&shape, wide, wide, &states, &Params::default(), gradients).unwrap();
            assert_eq!(dx, wide_dx.mapv(round), "{shape}");
        }
        let refused = slice(nhwc.slice(s![.., ..;2, .., ..]), Axis(3)).unwrap_err();
        assert!(matches!(refused, Error::View { axis: 3, .. }), "{refused}");
    }
    check(bf16::from_f32);
    check(f16::from_f32);
}

#[test]
fn no_elements() {
    for dims in [[0, 3, 2], [2, 0, 2], [2, 3, 0]] {
        let mut array = Array3::<f32>::zeros((4, 4, 4));
        let view = array.slice_mut(s![..dims[0], ..dims[1], ..dims[2]]);
        let (shape, x) = slice_mut(view, Axis(1)).unwrap();
        assert_eq!((shape.len(), x.len(), shape.channels()), (0, 0, dims[1]));
    }
}

#[test]
fn errors_say_what_to_do() {
    let array = Array4::<f32>::zeros((4, 3, 5, 2));
    let error = |result: Result<(Shape, &[f32]), Error>| result.unwrap_err().to_string();
    assert_eq!(
        error(slice(array.slice(s![.., .., ..;2, ..]), Axis(1))),
        "view of dimensions [4, 3, 3, 2] and strides [30, 10, 4, 1] with channel axis 1 is dense in neither layout, must \
         be made so: as_standard_layout() copies it"
    );
    // Dense, but the spatial axes are not in order; and backwards; and of one row repeated.
    for view in [
        array.view().permuted_axes([0, 1, 3, 2]).into_dyn(),
        array.slice(s![.., .., ..;-1, ..]).into_dyn(),
        array.slice(s![..1, .., .., ..]).broadcast((4, 3, 5, 2)).unwrap().into_dyn(),
    ] {
        let refused = slice(view.clone(), Axis(1)).unwrap_err();
        assert!(matches!(refused, Error::View { axis: 1, like: None, .. }), "{refused}");
        // What it says helps.
        let (shape, x) = (view.as_standard_layout(), Axis(1));
        assert_eq!(
            slice(shape.view(), x).unwrap().0,
            Shape::nchw(&[4, 3, view.shape()[2], view.shape()[3]]).unwrap()
        );
    }
    assert_eq!(error(slice(array.view(), Axis(4))), "channel axis is 4, must be below 4, the number of axes");
    assert_eq!(slice(Array::<f32, _>::zeros(3).view(), Axis(0)).unwrap_err(), Error::Rank { rank: 1 });

    // y in another layout than x would be written in the wrong order.
    let (shape, _) = slice(array.view(), Axis(1)).unwrap();
    let mut last = Array4::<f32>::zeros((4, 5, 2, 3)).permuted_axes([0, 3, 1, 2]);
    let other = slice_mut_like(last.view_mut(), Axis(1), &shape).unwrap_err();
    assert!(
        other.to_string().contains("it goes with, which is NCHW 4x3x5x2: as_standard_layout() copies either"),
        "{other}"
    );
    assert_eq!(slice_like(last.view(), Axis(1), &shape).unwrap_err(), other);
    assert!(slice_like(Array2::<f32>::zeros((4, 3)).view(), Axis(1), &shape).is_err());
    // Of one channel both layouts are the same memory.
    let (shape, _) = slice(array.slice(s![.., ..1, .., 0]).as_standard_layout().view(), Axis(1))
        .map(|(s, x)| (s, x.len()))
        .unwrap();
    assert!(
        slice_like(Array3::<f32>::zeros((4, 5, 1)).permuted_axes([0, 2, 1]).view(), Axis(1), &shape).is_ok()
    );
}
