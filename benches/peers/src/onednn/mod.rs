//! oneDNN's batch normalization and what follows it, in its three orders of memory, on the tensors that all share.
//!
//! ReLU is part of the primitive (`fuse_norm_relu`, whose workspace training writes and backward reads). An addition is not:
//! behind batch normalization comes a binary primitive with ReLU as its post-op, before its backward ReLU's own.

mod ffi;
mod handle;

use std::error::Error;
use std::ffi::{c_int, c_void};
use std::ptr;

use ffi::{
    Argument, Attributes, Engine, Enum, Memory, MemoryDesc, PostOps, Primitive, PrimitiveDesc, Stream,
};
use handle::{Failure, Handle, check};
// Named so that it is linked.
use onednn_src as _;

use crate::Result;
use crate::contender::{Contender, Place, Role, Run};
use crate::number::{Number, Type};
use crate::plain_loops::{Form, Operation};
use crate::problem::{EPS, Layer, Order, Tensors};
use crate::shapes::Epilogue;

/// Sets the number of threads of the calling thread's OpenMP, which oneDNN runs on.
pub fn set_threads(threads: usize) -> Result<()> {
    let threads = c_int::try_from(threads)?;
    // SAFETY: it takes any number from 1 on, and sets a variable of this thread.
    unsafe { ffi::omp_set_num_threads(threads) };
    Ok(())
}

/// oneDNN in every order that there are tensors in and that it has kernels for: of f16 it may have none on this CPU.
pub fn contenders<'a, S: Number>(
    form: Form,
    layer: &Layer,
    tensors: &mut [Tensors<S>],
) -> Result<Vec<Contender<'a, S>>> {
    if form.operation == Operation::Statistics {
        return Ok(Vec::new());
    }
    let contender = |tensors: &mut Tensors<S>| {
        let chain = match Chain::new(form, layer, tensors) {
            Err(error) if is_unimplemented(&*error) => return None,
            chain => chain,
        };
        let place = chain.map(|chain| Place::Here(Box::new(chain)));
        Some(place.map(|place| Contender { role: Role::Peer, name: "oneDNN", order: tensors.order, place }))
    };
    tensors.iter_mut().filter_map(contender).collect()
}

fn is_unimplemented(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.status == ffi::UNIMPLEMENTED)
}

/// The shared tensors that primitives run on: x, dy, z, y, out and dz.
const TENSORS: usize = 6;

/// A primitive and what it runs on.
type Step = (Handle<Primitive>, Vec<Argument>);

/// Primitives that run one after the other, and their memory. Fields are freed in their order, the engine that all others are
/// of last.
struct Chain {
    steps: Vec<Step>,
    /// What the arguments point to: the shared tensors, without data of their own ...
    tensors: [Handle<Memory>; TENSORS],
    /// ... what is one value per channel, with it ...
    _vectors: Vec<(Handle<Memory>, Vec<f32>)>,
    /// ... and what ReLU let through, with it, where training fuses that.
    _workspace: Option<(Handle<Memory>, Vec<u64>)>,
    /// The tensors' data as of the last run.
    data: [*mut c_void; TENSORS],
    /// The number of elements of a tensor.
    len: usize,
    stream: Handle<Stream>,
    _engine: Handle<Engine>,
}

impl Chain {
    /// The primitives of a form. Backward of a fused ReLU runs its forward once, whose workspace it reads.
    fn new<S: Number>(form: Form, layer: &Layer, shared: &mut Tensors<S>) -> Result<Self> {
        // SAFETY: a new engine; so in what follows: each call creates one object from others that are alive.
        let engine: Handle<Engine> =
            unsafe { Handle::new("engine", |engine| ffi::dnnl_engine_create(engine, ffi::CPU, 0)) }?;
        // SAFETY: as above.
        let stream = unsafe {
            Handle::new("stream", |stream| ffi::dnnl_stream_create(stream, engine.get(), ffi::IN_ORDER))
        }?;
        let tag = match shared.order {
            Order::Nchw => ffi::TAG_NCHW,
            Order::Nhwc => ffi::TAG_NHWC,
            Order::Blocked => ffi::TAG_NCHW16C,
        };
        // Two spatial axes as they are; of any other number, the product.
        let number = match S::TYPE {
            Type::F32 => ffi::F32,
            #[cfg(feature = "half")]
            Type::Bf16 => ffi::BF16,
            #[cfg(feature = "half")]
            Type::F16 => ffi::F16,
        };
        let tensor = match layer.dims[..] {
            [batch, channels, height, width] => describe(&[batch, channels, height, width], number, tag),
            _ => describe(&[layer.dims[0], layer.channels(), layer.positions(), 1], number, tag),
        }?;
        let vector = describe(&[layer.channels()], ffi::F32, ffi::TAG_A)?;

        let of = engine.get();
        let memory = |desc: *const MemoryDesc, data: *mut c_void| {
            // SAFETY: as above; the data, if any, live as long as the memory: see the fields that hold both.
            unsafe { Handle::new("memory", |memory| ffi::dnnl_memory_create(memory, desc, of, data)) }
        };
        let without = || memory(tensor.get(), ptr::null_mut());
        let tensors = [without()?, without()?, without()?, without()?, without()?, without()?];
        let [x, dy, z, y, out, dz] = [0, 1, 2, 3, 4, 5].map(|index: usize| tensors[index].get());
        let mut vectors = Vec::new();
        let mut of_channels = |arg, values: &[f32]| -> Result<Argument> {
            let mut values = values.to_vec();
            let memory = memory(vector.get(), values.as_mut_ptr().cast())?;
            let argument = Argument { arg, memory: memory.get() };
            vectors.push((memory, values));
            Ok(argument)
        };

        let fuses = form.epilogue == Epilogue::Relu;
        let forward = forward(form.operation, fuses, &engine, &tensor)?;
        let workspace = workspace(&forward)
            .map(|(desc, bytes)| {
                let mut words = vec![0u64; bytes.div_ceil(size_of::<u64>())];
                memory(desc, words.as_mut_ptr().cast()).map(|memory| (memory, words))
            })
            .transpose()?;
        let of_workspace = || workspace.iter().map(|(memory, _)| argument(ffi::ARG_WORKSPACE, memory.get()));
        let mut forward_arguments = vec![
            argument(ffi::ARG_SRC, x),
            of_channels(ffi::ARG_MEAN, &layer.mean)?,
            of_channels(ffi::ARG_VARIANCE, &layer.var)?,
            of_channels(ffi::ARG_SCALE, &layer.gamma)?,
            of_channels(ffi::ARG_SHIFT, &layer.beta)?,
            argument(ffi::ARG_DST, out),
        ];
        forward_arguments.extend(of_workspace());
        let mut steps = vec![(create(&forward)?, forward_arguments)];
        if form.operation != Operation::Backward && form.adds() {
            let add = add_relu(&engine, &tensor)?;
            let arguments = [(ffi::ARG_SRC, out), (ffi::ARG_SRC_1, z), (ffi::ARG_DST, out)]
                .map(|(arg, of)| argument(arg, of));
            steps.push((create(&add)?, arguments.into()));
        }
        let len = layer.dims.iter().product();
        let data = [ptr::null_mut(); TENSORS];
        let mut chain = Self {
            steps,
            tensors,
            _vectors: Vec::new(),
            _workspace: None,
            data,
            len,
            stream,
            _engine: engine,
        };
        if form.operation == Operation::Backward {
            if fuses {
                chain.run(shared)?;
            }
            chain.steps.clear();
            let engine = &chain._engine;
            let mut g = dy;
            if form.adds() {
                let arguments = [(ffi::ARG_DST, y), (ffi::ARG_DIFF_DST, dy), (ffi::ARG_DIFF_SRC, dz)]
                    .map(|(arg, of)| argument(arg, of));
                chain.steps.push((create(&relu_backward(engine, &tensor)?)?, arguments.into()));
                g = dz;
            }
            let zeros = vec![0.0; layer.channels()];
            let mut arguments = vec![
                argument(ffi::ARG_SRC, x),
                of_channels(ffi::ARG_MEAN, &layer.mean)?,
                of_channels(ffi::ARG_VARIANCE, &layer.var)?,
                of_channels(ffi::ARG_SCALE, &layer.gamma)?,
                argument(ffi::ARG_DIFF_DST, g),
                argument(ffi::ARG_DIFF_SRC, out),
                of_channels(ffi::ARG_DIFF_SCALE, &zeros)?,
                of_channels(ffi::ARG_DIFF_SHIFT, &zeros)?,
            ];
            arguments.extend(of_workspace());
            chain.steps.push((create(&backward(fuses, engine, &tensor, &forward)?)?, arguments));
        }
        chain._vectors = vectors;
        chain._workspace = workspace;
        Ok(chain)
    }
}

fn argument(arg: c_int, memory: *mut Memory) -> Argument {
    Argument { arg, memory }
}

impl<S: Number> Run<S> for Chain {
    fn run(&mut self, tensors: &mut Tensors<S>) -> Result<()> {
        let Tensors { x, dy, z, y, out, dz, .. } = tensors;
        assert!([&*x, dy, z, y, out, dz].iter().all(|tensor| tensor.len() == self.len));
        let read = [x, dy, z, y].map(|tensor| tensor.as_ptr().cast_mut().cast());
        let [x, dy, z, y] = read;
        let data: [*mut c_void; TENSORS] = [x, dy, z, y, out.as_mut_ptr().cast(), dz.as_mut_ptr().cast()];
        for ((memory, old), new) in self.tensors.iter().zip(&mut self.data).zip(data) {
            if *old != new {
                // SAFETY: memory that is alive, and data of its size; nothing is done with them yet.
                let status = unsafe { ffi::dnnl_memory_set_data_handle(memory.get(), new) };
                check("data of a memory", status)?;
                *old = new;
            }
        }
        for (primitive, arguments) in &self.steps {
            // SAFETY: primitive, stream and arguments are alive. The tensors' data are those of `tensors`, borrowed until the
            // stream has done its work; x, dy, z and y are only read. Vectors and workspace are our own.
            let status = unsafe {
                let count = arguments.len() as c_int;
                ffi::dnnl_primitive_execute(primitive.get(), self.stream.get(), count, arguments.as_ptr())
            };
            check("execution", status)?;
        }
        // SAFETY: a stream that is alive.
        check("wait", unsafe { ffi::dnnl_stream_wait(self.stream.get()) })
    }
}

/// A tensor of numbers of a type.
fn describe(sizes: &[usize], number: Enum, tag: Enum) -> Result<Handle<MemoryDesc>> {
    let mut dims: ffi::Dims = [0; 12];
    for (dim, &size) in dims.iter_mut().zip(sizes) {
        *dim = i64::try_from(size)?;
    }
    let rank = sizes.len() as c_int;
    // SAFETY: a new object; `dims` has more than `rank` sizes.
    unsafe {
        Handle::new("memory descriptor", |desc| {
            ffi::dnnl_memory_desc_create_with_tag(desc, rank, dims.as_ptr(), number, tag)
        })
    }
}

/// Batch normalization forwards on a tensor of this form, with scale and shift: as the operation has it, or before its backward.
fn forward(
    operation: Operation,
    fuses: bool,
    engine: &Handle<Engine>,
    tensor: &Handle<MemoryDesc>,
) -> Result<Handle<PrimitiveDesc>> {
    let (kind, statistics) = match operation {
        Operation::Inference => (ffi::FORWARD_INFERENCE, ffi::USE_GLOBAL_STATS),
        _ => (ffi::FORWARD_TRAINING, 0),
    };
    let flags = flags(fuses) | statistics;
    let (engine, tensor) = (engine.get(), tensor.get());
    let create = |desc| {
        // SAFETY: a new object, from others that are alive.
        unsafe {
            ffi::dnnl_batch_normalization_forward_primitive_desc_create(
                desc,
                engine,
                kind,
                tensor,
                tensor,
                EPS as f32,
                flags,
                ptr::null(),
            )
        }
    };
    // SAFETY: as above.
    unsafe { Handle::new("forward primitive", create) }
}

/// Its backward.
fn backward(
    fuses: bool,
    engine: &Handle<Engine>,
    tensor: &Handle<MemoryDesc>,
    forward: &Handle<PrimitiveDesc>,
) -> Result<Handle<PrimitiveDesc>> {
    let (engine, tensor) = (engine.get(), tensor.get());
    let create = |desc| {
        // SAFETY: a new object, from others that are alive.
        unsafe {
            ffi::dnnl_batch_normalization_backward_primitive_desc_create(
                desc,
                engine,
                ffi::BACKWARD,
                tensor,
                tensor,
                tensor,
                EPS as f32,
                flags(fuses),
                forward.get(),
                ptr::null(),
            )
        }
    };
    // SAFETY: as above.
    unsafe { Handle::new("backward primitive", create) }
}

fn flags(fuses: bool) -> std::ffi::c_uint {
    ffi::USE_SCALE | ffi::USE_SHIFT | if fuses { ffi::FUSE_NORM_RELU } else { 0 }
}

/// The sum of two tensors, then ReLU.
fn add_relu(engine: &Handle<Engine>, tensor: &Handle<MemoryDesc>) -> Result<Handle<PrimitiveDesc>> {
    // SAFETY: a new object; so in what follows: each call creates one object from others that are alive.
    let post_ops: Handle<PostOps> =
        unsafe { Handle::new("post-ops", |post_ops| ffi::dnnl_post_ops_create(post_ops)) }?;
    // SAFETY: as above.
    check("post-op", unsafe {
        ffi::dnnl_post_ops_append_eltwise(post_ops.get(), ffi::ELTWISE_RELU, 0.0, 0.0)
    })?;
    // SAFETY: as above.
    let attributes: Handle<Attributes> =
        unsafe { Handle::new("attributes", |attributes| ffi::dnnl_primitive_attr_create(attributes)) }?;
    // SAFETY: as above; post-ops are copied.
    check("post-ops", unsafe { ffi::dnnl_primitive_attr_set_post_ops(attributes.get(), post_ops.get()) })?;
    let (engine, tensor) = (engine.get(), tensor.get());
    let create = |desc| {
        // SAFETY: as above; attributes are copied.
        unsafe {
            ffi::dnnl_binary_primitive_desc_create(
                desc,
                engine,
                ffi::BINARY_ADD,
                tensor,
                tensor,
                tensor,
                attributes.get(),
            )
        }
    };
    // SAFETY: as above.
    unsafe { Handle::new("binary primitive", create) }
}

/// ReLU's backward, from its result.
fn relu_backward(engine: &Handle<Engine>, tensor: &Handle<MemoryDesc>) -> Result<Handle<PrimitiveDesc>> {
    const RELU: Enum = ffi::ELTWISE_RELU_USE_DST_FOR_BWD;
    let (engine, tensor) = (engine.get(), tensor.get());
    let create = |desc| {
        // SAFETY: a new object, from others that are alive.
        unsafe {
            ffi::dnnl_eltwise_forward_primitive_desc_create(
                desc,
                engine,
                ffi::FORWARD_TRAINING,
                RELU,
                tensor,
                tensor,
                0.0,
                0.0,
                ptr::null(),
            )
        }
    };
    // SAFETY: as above.
    let forward: Handle<PrimitiveDesc> = unsafe { Handle::new("ReLU", create) }?;
    let create = |desc| {
        // SAFETY: as above.
        unsafe {
            ffi::dnnl_eltwise_backward_primitive_desc_create(
                desc,
                engine,
                RELU,
                tensor,
                tensor,
                tensor,
                0.0,
                0.0,
                forward.get(),
                ptr::null(),
            )
        }
    };
    // SAFETY: as above.
    unsafe { Handle::new("ReLU's backward", create) }
}

/// The form and the bytes of what a primitive keeps for its backward, if anything.
fn workspace(desc: &Handle<PrimitiveDesc>) -> Option<(*const MemoryDesc, usize)> {
    // SAFETY: a descriptor that is alive; what is returned lives as long, or is null, of which the size is 0.
    let (desc, bytes) = unsafe {
        let desc = ffi::dnnl_primitive_desc_query_md(desc.get(), ffi::QUERY_WORKSPACE_MD, 0);
        (desc, if desc.is_null() { 0 } else { ffi::dnnl_memory_desc_get_size(desc) })
    };
    (bytes > 0).then_some((desc, bytes))
}

/// The primitive of a descriptor.
fn create(desc: &Handle<PrimitiveDesc>) -> Result<Handle<Primitive>> {
    // SAFETY: a new object, from one that is alive.
    unsafe { Handle::new("primitive", |primitive| ffi::dnnl_primitive_create(primitive, desc.get())) }
}
