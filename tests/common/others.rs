//! Processes that share a batch, as threads.

use std::sync::{Arc, Barrier, Mutex};

use batchnorm::{BatchNorm, Error, Gather, Mode, Shape};

/// Threads that tell each other bytes.
#[derive(Clone)]
pub struct Others {
    pub number: usize,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
    barrier: Arc<Barrier>,
}

impl Others {
    fn group(count: usize) -> impl Iterator<Item = Self> {
        let (said, barrier) = (Arc::new(Mutex::new(vec![Vec::new(); count])), Arc::new(Barrier::new(count)));
        (0..count).map(move |number| Self { number, said: said.clone(), barrier: barrier.clone() })
    }
}

impl Gather for Others {
    fn gather(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        self.said.lock().unwrap()[self.number] = bytes.to_vec();
        self.barrier.wait();
        let mut said = self.said.lock().unwrap().clone();
        said.rotate_left(self.number);
        said.iter().for_each(|bytes| each(bytes));
        self.barrier.wait();
        Ok(())
    }
}

/// A training pass and its backward pass over a part of a batch, from this sample of it on: y and dx.
pub fn pass_among(
    layer: &mut BatchNorm<f32>,
    shape: &Shape,
    (x, dy): (&[f32], &[f32]),
    (first, others): (usize, &mut Others),
) -> [Vec<f32>; 2] {
    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; x.len()]);
    layer.forward_among(Mode::Training, shape, (x, None), &mut y, (first as u64, &mut *others)).unwrap();
    layer.backward_among(shape, (x, dy), (&mut dx, None), (first as u64, others)).unwrap();
    [y, dx]
}

/// Runs a part of a batch in a thread each, with where it begins and ends.
pub fn in_threads<R: Send>(cuts: &[usize], part: impl Fn(usize, usize, Others) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let part = &part;
        let run = |(pair, others): (&[usize], Others)| {
            let (first, end) = (pair[0], pair[1]);
            scope.spawn(move || part(first, end, others))
        };
        let threads: Vec<_> = cuts.windows(2).zip(Others::group(cuts.len() - 1)).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
