//! oneDNN's batch normalization, in its three orders of memory, on the tensors that all share.

mod ffi;
mod handle;

use std::ffi::c_int;
use std::ptr;

use ffi::{Argument, Engine, Enum, Memory, MemoryDesc, Primitive, PrimitiveDesc, Stream};
use handle::{Handle, check};
// Named so that it is linked.
use onednn_src as _;

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::plain_loops::Operation;
use crate::problem::{EPS, Layer, Order, Tensors};

/// Sets the number of threads of the calling thread's OpenMP, which oneDNN runs on.
pub fn set_threads(threads: usize) -> Result<()> {
    let threads = c_int::try_from(threads)?;
    // SAFETY: it takes any number from 1 on, and sets a variable of this thread.
    unsafe { ffi::omp_set_num_threads(threads) };
    Ok(())
}

/// oneDNN in every order that there are tensors in.
pub fn contenders<'a>(
    operation: Operation,
    layer: &Layer,
    tensors: &[Tensors],
) -> Result<Vec<Contender<'a>>> {
    if operation == Operation::Statistics {
        return Ok(Vec::new());
    }
    let contender = |tensors: &Tensors| {
        let order = tensors.order;
        let place = Place::Here(Box::new(BatchNorm::new(operation, layer, order)?));
        Ok(Contender { role: Role::Peer, name: "oneDNN", order, place })
    };
    tensors.iter().map(contender).collect()
}

/// A primitive and its memory. Fields are freed in their order, the engine that all others are of last.
struct BatchNorm {
    primitive: Handle<Primitive>,
    arguments: Vec<Argument>,
    /// What the arguments point to: x, dy and out, without data of their own ...
    tensors: [Handle<Memory>; 3],
    /// ... and what is one value per channel, with it.
    _vectors: Vec<(Handle<Memory>, Vec<f32>)>,
    /// The tensors' data as of the last run.
    data: [*mut f32; 3],
    /// The number of elements of a tensor.
    len: usize,
    stream: Handle<Stream>,
    _engine: Handle<Engine>,
}

impl BatchNorm {
    fn new(operation: Operation, layer: &Layer, order: Order) -> Result<Self> {
        // SAFETY: a new engine; so in what follows: each call creates one object from others that are alive.
        let engine: Handle<Engine> =
            unsafe { Handle::new("engine", |engine| ffi::dnnl_engine_create(engine, ffi::CPU, 0)) }?;
        // SAFETY: as above.
        let stream = unsafe {
            Handle::new("stream", |stream| ffi::dnnl_stream_create(stream, engine.get(), ffi::IN_ORDER))
        }?;
        let tag = match order {
            Order::Nchw => ffi::TAG_NCHW,
            Order::Nhwc => ffi::TAG_NHWC,
            Order::Blocked => ffi::TAG_NCHW16C,
        };
        // Two spatial axes as they are; of any other number, the product.
        let tensor = match layer.dims[..] {
            [batch, channels, height, width] => describe(&[batch, channels, height, width], tag),
            _ => describe(&[layer.dims[0], layer.channels(), layer.positions(), 1], tag),
        }?;
        let vector = describe(&[layer.channels()], ffi::TAG_A)?;
        let primitive = primitive(operation, &engine, &tensor)?;

        let memory = |desc: &Handle<MemoryDesc>, data: *mut f32| {
            // SAFETY: as above; the data, if any, live as long as the memory: see the field `_vectors`.
            unsafe {
                Handle::new("memory", |memory| {
                    ffi::dnnl_memory_create(memory, desc.get(), engine.get(), data.cast())
                })
            }
        };
        let without = || memory(&tensor, ptr::null_mut());
        let tensors = [without()?, without()?, without()?];
        let [x, dy, out] = [0, 1, 2].map(|index| tensors[index].get());
        let mut vectors = Vec::new();
        let mut of_channels = |arg, values: &[f32]| -> Result<Argument> {
            let mut values = values.to_vec();
            let memory = memory(&vector, values.as_mut_ptr())?;
            let argument = Argument { arg, memory: memory.get() };
            vectors.push((memory, values));
            Ok(argument)
        };
        let mut arguments = vec![
            Argument { arg: ffi::ARG_SRC, memory: x },
            of_channels(ffi::ARG_MEAN, &layer.mean)?,
            of_channels(ffi::ARG_VARIANCE, &layer.var)?,
            of_channels(ffi::ARG_SCALE, &layer.gamma)?,
        ];
        if operation == Operation::Backward {
            let zeros = vec![0.0; layer.channels()];
            arguments.extend([
                Argument { arg: ffi::ARG_DIFF_DST, memory: dy },
                Argument { arg: ffi::ARG_DIFF_SRC, memory: out },
                of_channels(ffi::ARG_DIFF_SCALE, &zeros)?,
                of_channels(ffi::ARG_DIFF_SHIFT, &zeros)?,
            ]);
        } else {
            arguments.extend([
                of_channels(ffi::ARG_SHIFT, &layer.beta)?,
                Argument { arg: ffi::ARG_DST, memory: out },
            ]);
        }
        let len = layer.dims.iter().product();
        let data = [ptr::null_mut(); 3];
        Ok(Self { primitive, arguments, tensors, _vectors: vectors, data, len, stream, _engine: engine })
    }
}

impl Run for BatchNorm {
    fn run(&mut self, tensors: &mut Tensors) -> Result<()> {
        assert!([&tensors.x, &tensors.dy, &tensors.out].iter().all(|tensor| tensor.len() == self.len));
        let data = [tensors.x.as_ptr().cast_mut(), tensors.dy.as_ptr().cast_mut(), tensors.out.as_mut_ptr()];
        for ((memory, old), new) in self.tensors.iter().zip(&mut self.data).zip(data) {
            if *old != new {
                // SAFETY: memory that is alive, and data of its size; nothing is done with them yet.
                let status = unsafe { ffi::dnnl_memory_set_data_handle(memory.get(), new.cast()) };
                check("data of a memory", status)?;
                *old = new;
            }
        }
        // SAFETY: primitive, stream and arguments are alive. The tensors' data are those of `tensors`, borrowed until the
        // stream has done its work; x and dy are only read. The vectors' are our own.
        let status = unsafe {
            let count = self.arguments.len() as c_int;
            ffi::dnnl_primitive_execute(
                self.primitive.get(),
                self.stream.get(),
                count,
                self.arguments.as_ptr(),
            )
        };
        check("execution", status)?;
        // SAFETY: a stream that is alive.
        check("wait", unsafe { ffi::dnnl_stream_wait(self.stream.get()) })
    }
}

/// A tensor of f32.
fn describe(sizes: &[usize], tag: Enum) -> Result<Handle<MemoryDesc>> {
    let mut dims: ffi::Dims = [0; 12];
    for (dim, &size) in dims.iter_mut().zip(sizes) {
        *dim = i64::try_from(size)?;
    }
    let rank = sizes.len() as c_int;
    // SAFETY: a new object; `dims` has more than `rank` sizes.
    unsafe {
        Handle::new("memory descriptor", |desc| {
            ffi::dnnl_memory_desc_create_with_tag(desc, rank, dims.as_ptr(), ffi::F32, tag)
        })
    }
}

/// The operation on a tensor of this form, with scale and shift.
fn primitive(
    operation: Operation,
    engine: &Handle<Engine>,
    tensor: &Handle<MemoryDesc>,
) -> Result<Handle<Primitive>> {
    let (kind, statistics) = match operation {
        Operation::Inference => (ffi::FORWARD_INFERENCE, ffi::USE_GLOBAL_STATS),
        _ => (ffi::FORWARD_TRAINING, 0),
    };
    let flags = ffi::USE_SCALE | ffi::USE_SHIFT | statistics;
    let (engine, tensor) = (engine.get(), tensor.get());
    let eps = EPS as f32;
    // SAFETY: a new object, from others that are alive.
    let forward: Handle<PrimitiveDesc> = unsafe {
        Handle::new("forward primitive", |desc| {
            ffi::dnnl_batch_normalization_forward_primitive_desc_create(
                desc,
                engine,
                kind,
                tensor,
                tensor,
                eps,
                flags,
                ptr::null(),
            )
        })
    }?;
    let desc = if operation == Operation::Backward {
        // SAFETY: as above.
        unsafe {
            Handle::new("backward primitive", |desc| {
                ffi::dnnl_batch_normalization_backward_primitive_desc_create(
                    desc,
                    engine,
                    ffi::BACKWARD,
                    tensor,
                    tensor,
                    tensor,
                    eps,
                    flags,
                    forward.get(),
                    ptr::null(),
                )
            })
        }?
    } else {
        forward
    };
    // SAFETY: as above.
    unsafe { Handle::new("primitive", |primitive| ffi::dnnl_primitive_create(primitive, desc.get())) }
}
