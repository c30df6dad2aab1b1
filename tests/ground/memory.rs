//! Where memory ends: pages that must not be touched right before and after every slice, and tensors of more than 2^31
//! elements.

#![cfg(target_os = "linux")]

use std::ptr::null_mut;
use std::slice;

use batchnorm::{
    Gradients, Params, Shape, Welford, backward, backward_frozen, forward_inference, forward_training,
    statistics,
};

use crate::common::matrix::{Bits, LAYOUTS, Problem, levels};

/// Some pages of our own, unmapped at the end.
struct Pages {
    at: *mut u8,
    len: usize,
}

impl Pages {
    /// Address space of `len` bytes that may not be touched.
    fn reserve(len: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at no fixed address.
        let at = unsafe { libc::mmap(null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { at: at.cast(), len }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and all slices into it have ended.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// The size of a page, or a multiple of it.
const PAGE: usize = 1 << 16;

/// A slice that ends, or begins, where memory does.
struct Fenced<T> {
    pages: Pages,
    offset: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Copy> Fenced<T> {
    fn new(values: &[T], at_end: bool) -> Self {
        let bytes = size_of_val(values);
        let usable = bytes.next_multiple_of(PAGE);
        let pages = Pages::reserve(usable + 2 * PAGE);
        // SAFETY: the pages between the first and the last of our own mapping.
        let status =
            unsafe { libc::mprotect(pages.at.add(PAGE).cast(), usable, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        let offset = PAGE + if at_end { usable - bytes } else { 0 };
        let mut fenced = Self { pages, offset, len: values.len(), element: std::marker::PhantomData };
        fenced.get_mut().copy_from_slice(values);
        fenced
    }

    fn get(&self) -> &[T] {
        // SAFETY: within the usable pages, which hold zeros or what was copied there.
        unsafe { slice::from_raw_parts(self.pages.at.add(self.offset).cast(), self.len) }
    }

    fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; nothing else refers to them.
        unsafe { slice::from_raw_parts_mut(self.pages.at.add(self.offset).cast(), self.len) }
    }
}

/// Every operation with every slice at a fence. A stray access ends the test with a signal.
fn at_fences<T: Bits>(dims: &[usize], at_end: bool) {
    let problem = Problem::<T>::new(dims, 1);
    let c = problem.channels();
    let zero = T::from_f64(0.0);
    let fence = |values: &[T]| Fenced::new(values, at_end);
    let per_channel = || fence(&vec![zero; c]);
    let [gamma, beta] = [&problem.gamma, &problem.beta].map(|values| fence(values.as_deref().unwrap()));
    let (mean, var) = (fence(&problem.mean), fence(&problem.var));
    let params = Params::new(1e-5).gamma(gamma.get()).beta(beta.get());
    for layout in LAYOUTS {
        let shape = problem.shape(layout);
        let [x, dy] = [&problem.x, &problem.dy].map(|tensor| fence(&problem.lay_out(layout, tensor)));
        let mut y = fence(&vec![zero; shape.len()]);
        let mut states = Fenced::new(&vec![Welford::new(); c], at_end);
        let (mut dgamma, mut dbeta, mut dmean, mut dvar) =
            (per_channel(), per_channel(), per_channel(), per_channel());

        statistics(&shape, x.get(), states.get_mut()).unwrap();
        forward_training(&shape, x.get(), &params, y.get_mut(), states.get_mut()).unwrap();
        let trained = y.get().to_vec();
        forward_inference(&shape, x.get(), mean.get(), var.get(), &params, y.get_mut()).unwrap();
        for frozen in [false, true] {
            let gradients = Gradients::new()
                .dx(y.get_mut())
                .dgamma(dgamma.get_mut())
                .dbeta(dbeta.get_mut())
                .dmean(dmean.get_mut())
                .dvar(dvar.get_mut());
            let (x, dy) = (x.get(), dy.get());
            if frozen {
                backward_frozen(&shape, x, dy, mean.get(), var.get(), &params, gradients).unwrap();
            } else {
                backward(&shape, x, dy, states.get(), &params, gradients).unwrap();
            }
        }

        // The fences changed nothing.
        let mut expected = vec![zero; shape.len()];
        let mut states = vec![Welford::new(); c];
        forward_training(&shape, x.get(), &params, &mut expected, &mut states).unwrap();
        assert!(trained.iter().zip(&expected).all(|(a, b)| a.bits() == b.bits()), "{dims:?} {layout:?}");
    }
}

#[test]
fn nothing_beside_a_slice_is_touched() {
    for level in levels() {
        batchnorm::Level::with(level, || {
            for at_end in [false, true] {
                for len in (1..=35).chain([63, 64, 65, 127, 128, 129, 4095, 4097]) {
                    at_fences::<f32>(&[1, 1, len], at_end);
                    at_fences::<f32>(&[3, len, 1], at_end);
                    at_fences::<f64>(&[2, 3, len], at_end);
                }
                for dims in [&[5, 17, 7, 7][..], &[3, 70, 7, 7], &[2, 65, 9, 9], &[600, 66], &[40, 3, 11, 5]]
                {
                    at_fences::<f32>(dims, at_end);
                    at_fences::<f64>(dims, at_end);
                }
            }
        })
        .unwrap();
    }
}

/// `times` times the same `len` elements in a row, in memory for one: a view for reading or writing of a file that is
/// mapped again and again.
struct Repeated {
    pages: Pages,
    file: libc::c_int,
}

impl Repeated {
    fn new(bytes: usize, times: usize) -> Self {
        let pages = Pages::reserve(bytes * times);
        // SAFETY: a new file without a name, mapped over address space of our own only.
        unsafe {
            let file = libc::memfd_create(c"batchnorm".as_ptr(), 0);
            assert!(file >= 0 && libc::ftruncate(file, bytes as libc::off_t) == 0);
            for i in 0..times {
                let (to, access) = (pages.at.add(i * bytes).cast(), libc::PROT_READ | libc::PROT_WRITE);
                let at = libc::mmap(to, bytes, access, libc::MAP_SHARED | libc::MAP_FIXED, file, 0);
                assert_eq!(at, to, "{}", std::io::Error::last_os_error());
            }
            Self { pages, file }
        }
    }

    /// The elements. Through a `&mut [f32]` over all of it a write shows up in several places; the library's tasks write
    /// the same values there, and only raw pointers tell the test.
    fn elements(&self) -> *mut f32 {
        self.pages.at.cast()
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        // SAFETY: the file is ours.
        unsafe { libc::close(self.file) };
    }
}

/// A batch that is the same sample again and again has the sample's statistics, and every sample its output.
#[test]
fn more_than_two_to_the_31_elements() {
    const SAMPLES: usize = 130;
    const CHANNELS: usize = 16;
    const PLANE: usize = 1 << 20;
    const SAMPLE: usize = CHANNELS * PLANE;
    const { assert!(SAMPLES * SAMPLE > 1 << 31) };
    let (x, y) = (Repeated::new(SAMPLE * 4, SAMPLES), Repeated::new(SAMPLE * 4, SAMPLES));
    // SAFETY: all of the mappings; x is written before it is read, y only by the library, sample for sample alike.
    let (sample, all, out) = unsafe {
        let sample = slice::from_raw_parts_mut(x.elements(), SAMPLE);
        for (i, value) in sample.iter_mut().enumerate() {
            *value = ((i * 7919) % 10_007) as f32 / 100.0;
        }
        let all = slice::from_raw_parts(x.elements(), SAMPLES * SAMPLE);
        (&all[..SAMPLE], all, slice::from_raw_parts_mut(y.elements(), SAMPLES * SAMPLE))
    };
    for layout in LAYOUTS {
        let [one, shape] = [1, SAMPLES].map(|n| Shape::new(layout, n, CHANNELS, &[PLANE]).unwrap());
        let (mut expected, mut states) = ([Welford::new(); CHANNELS], [Welford::new(); CHANNELS]);
        statistics(&one, sample, &mut expected).unwrap();
        statistics(&shape, all, &mut states).unwrap();
        for (state, expected) in states.iter().zip(&expected) {
            assert_eq!(state.count(), (SAMPLES * PLANE) as u64);
            assert!((state.mean() / expected.mean() - 1.0).abs() < 1e-14);
            assert!((state.variance() / expected.variance() - 1.0).abs() < 1e-13);
        }
        let (mean, var) = ([50.0; CHANNELS], [833.0; CHANNELS]);
        let params = Params::default();
        let mut once = vec![0.0; SAMPLE];
        forward_inference(&one, sample, &mean, &var, &params, &mut once).unwrap();
        forward_inference(&shape, all, &mean, &var, &params, out).unwrap();
        // The last of them, which all others share their memory with.
        assert!(out[(SAMPLES - 1) * SAMPLE..] == once[..], "{layout:?}");
        out[..SAMPLE].fill(0.0);
    }
}
