//! The little of oneDNN's C interface that batch normalization and what follows it need, as in oneapi/dnnl/dnnl_types.h of oneDNN 3.14.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// What every function returns; 0 is success.
pub type Status = c_int;
/// What it has no kernel for, on this CPU.
pub const UNIMPLEMENTED: Status = 3;
/// The constants below are of C enumerations, which are `int` or `unsigned` wherever oneDNN runs.
pub type Enum = c_int;

pub const CPU: Enum = 1;
pub const IN_ORDER: c_uint = 1;
pub const F16: Enum = 1;
pub const BF16: Enum = 2;
pub const F32: Enum = 3;
pub const FORWARD_TRAINING: Enum = 64;
pub const FORWARD_INFERENCE: Enum = 96;
pub const BACKWARD: Enum = 128;
pub const USE_GLOBAL_STATS: c_uint = 1;
pub const USE_SCALE: c_uint = 2;
pub const USE_SHIFT: c_uint = 4;
pub const FUSE_NORM_RELU: c_uint = 8;

/// Algorithms; ReLU's backward from the result of its forward.
pub const ELTWISE_RELU: Enum = 0x20;
pub const ELTWISE_RELU_USE_DST_FOR_BWD: Enum = 0x100;
pub const BINARY_ADD: Enum = 0x1fff0;

/// What to ask a primitive's descriptor for.
pub const QUERY_WORKSPACE_MD: Enum = 135;

/// Format tags: axes in their order in memory, a capital for the one that is split into blocks.
pub const TAG_A: Enum = 2;
pub const TAG_NCHW: Enum = 5;
pub const TAG_NHWC: Enum = 22;
pub const TAG_NCHW16C: Enum = 78;

/// What a memory is to a primitive.
pub const ARG_SRC: c_int = 1;
pub const ARG_SRC_1: c_int = 2;
pub const ARG_DST: c_int = 17;
pub const ARG_MEAN: c_int = 49;
pub const ARG_VARIANCE: c_int = 50;
pub const ARG_SCALE: c_int = 51;
pub const ARG_SHIFT: c_int = 52;
pub const ARG_WORKSPACE: c_int = 64;
pub const ARG_DIFF_SRC: c_int = 129;
pub const ARG_DIFF_DST: c_int = 145;
pub const ARG_DIFF_SCALE: c_int = 255;
pub const ARG_DIFF_SHIFT: c_int = 256;

/// Sizes of a tensor's axes; only the first few are looked at.
pub type Dims = [i64; 12];

/// Types that are only ever pointed to.
macro_rules! opaque {
    ($($name:ident, $destroy:ident;)*) => {$(
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
        }

        impl Object for $name {
            const DESTROY: unsafe extern "C" fn(*mut Self) -> Status = $destroy;
        }
    )*};
}

/// Something that oneDNN allocates.
pub trait Object {
    /// Frees it.
    const DESTROY: unsafe extern "C" fn(*mut Self) -> Status;
}

opaque! {
    Engine, dnnl_engine_destroy;
    Stream, dnnl_stream_destroy;
    MemoryDesc, dnnl_memory_desc_destroy;
    Memory, dnnl_memory_destroy;
    PrimitiveDesc, dnnl_primitive_desc_destroy;
    Primitive, dnnl_primitive_destroy;
    PostOps, dnnl_post_ops_destroy;
    Attributes, dnnl_primitive_attr_destroy;
}

/// `dnnl_exec_arg_t`.
#[repr(C)]
pub struct Argument {
    pub arg: c_int,
    pub memory: *mut Memory,
}

unsafe extern "C" {
    pub fn dnnl_engine_create(engine: *mut *mut Engine, kind: Enum, index: usize) -> Status;
    pub fn dnnl_engine_destroy(engine: *mut Engine) -> Status;
    pub fn dnnl_stream_create(stream: *mut *mut Stream, engine: *mut Engine, flags: c_uint) -> Status;
    pub fn dnnl_stream_wait(stream: *mut Stream) -> Status;
    pub fn dnnl_stream_destroy(stream: *mut Stream) -> Status;
    pub fn dnnl_memory_desc_create_with_tag(
        desc: *mut *mut MemoryDesc,
        rank: c_int,
        dims: *const i64,
        data_type: Enum,
        tag: Enum,
    ) -> Status;
    pub fn dnnl_memory_desc_destroy(desc: *mut MemoryDesc) -> Status;
    pub fn dnnl_memory_desc_get_size(desc: *const MemoryDesc) -> usize;
    pub fn dnnl_memory_create(
        memory: *mut *mut Memory,
        desc: *const MemoryDesc,
        engine: *mut Engine,
        data: *mut c_void,
    ) -> Status;
    pub fn dnnl_memory_set_data_handle(memory: *mut Memory, data: *mut c_void) -> Status;
    pub fn dnnl_memory_destroy(memory: *mut Memory) -> Status;
    pub fn dnnl_batch_normalization_forward_primitive_desc_create(
        desc: *mut *mut PrimitiveDesc,
        engine: *mut Engine,
        kind: Enum,
        src: *const MemoryDesc,
        dst: *const MemoryDesc,
        eps: f32,
        flags: c_uint,
        attributes: *const Attributes,
    ) -> Status;
    pub fn dnnl_batch_normalization_backward_primitive_desc_create(
        desc: *mut *mut PrimitiveDesc,
        engine: *mut Engine,
        kind: Enum,
        diff_src: *const MemoryDesc,
        diff_dst: *const MemoryDesc,
        src: *const MemoryDesc,
        eps: f32,
        flags: c_uint,
        forward: *const PrimitiveDesc,
        attributes: *const Attributes,
    ) -> Status;
    pub fn dnnl_binary_primitive_desc_create(
        desc: *mut *mut PrimitiveDesc,
        engine: *mut Engine,
        algorithm: Enum,
        src_0: *const MemoryDesc,
        src_1: *const MemoryDesc,
        dst: *const MemoryDesc,
        attributes: *const Attributes,
    ) -> Status;
    pub fn dnnl_eltwise_forward_primitive_desc_create(
        desc: *mut *mut PrimitiveDesc,
        engine: *mut Engine,
        kind: Enum,
        algorithm: Enum,
        src: *const MemoryDesc,
        dst: *const MemoryDesc,
        alpha: f32,
        beta: f32,
        attributes: *const Attributes,
    ) -> Status;
    pub fn dnnl_eltwise_backward_primitive_desc_create(
        desc: *mut *mut PrimitiveDesc,
        engine: *mut Engine,
        algorithm: Enum,
        diff_src: *const MemoryDesc,
        diff_dst: *const MemoryDesc,
        data: *const MemoryDesc,
        alpha: f32,
        beta: f32,
        forward: *const PrimitiveDesc,
        attributes: *const Attributes,
    ) -> Status;
    pub fn dnnl_post_ops_create(post_ops: *mut *mut PostOps) -> Status;
    pub fn dnnl_post_ops_append_eltwise(
        post_ops: *mut PostOps,
        algorithm: Enum,
        alpha: f32,
        beta: f32,
    ) -> Status;
    pub fn dnnl_post_ops_destroy(post_ops: *mut PostOps) -> Status;
    pub fn dnnl_primitive_attr_create(attributes: *mut *mut Attributes) -> Status;
    pub fn dnnl_primitive_attr_set_post_ops(attributes: *mut Attributes, post_ops: *const PostOps) -> Status;
    pub fn dnnl_primitive_attr_destroy(attributes: *mut Attributes) -> Status;
    /// Owned by the primitive's descriptor; a descriptor of no bytes, or null, if there is none.
    pub fn dnnl_primitive_desc_query_md(
        desc: *const PrimitiveDesc,
        what: Enum,
        index: c_int,
    ) -> *const MemoryDesc;
    pub fn dnnl_primitive_desc_destroy(desc: *mut PrimitiveDesc) -> Status;
    pub fn dnnl_primitive_create(primitive: *mut *mut Primitive, desc: *const PrimitiveDesc) -> Status;
    pub fn dnnl_primitive_execute(
        primitive: *const Primitive,
        stream: *mut Stream,
        count: c_int,
        arguments: *const Argument,
    ) -> Status;
    pub fn dnnl_primitive_destroy(primitive: *mut Primitive) -> Status;
    pub fn dnnl_status2str(status: Status) -> *const c_char;

    /// Of the OpenMP library.
    pub fn omp_set_num_threads(threads: c_int);
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, c_char};

    use super::*;

    unsafe extern "C" {
        fn dnnl_fmt_tag2str(tag: Enum) -> *const c_char;
        fn dnnl_dt2str(data_type: Enum) -> *const c_char;
        fn dnnl_prop_kind2str(kind: Enum) -> *const c_char;
        fn dnnl_engine_kind2str(kind: Enum) -> *const c_char;
        fn dnnl_alg_kind2str(kind: Enum) -> *const c_char;
    }

    /// The numbers mean what their names say, in the version that is linked.
    #[test]
    fn numbers_are_those_of_the_headers() {
        // SAFETY: these functions take any number and return a constant string.
        let name = |function: unsafe extern "C" fn(Enum) -> *const c_char, number| unsafe {
            CStr::from_ptr(function(number)).to_str().expect("a name in ASCII")
        };
        assert_eq!(name(dnnl_fmt_tag2str, TAG_A), "a");
        assert_eq!(name(dnnl_fmt_tag2str, TAG_NCHW), "abcd");
        assert_eq!(name(dnnl_fmt_tag2str, TAG_NHWC), "acdb");
        assert_eq!(name(dnnl_fmt_tag2str, TAG_NCHW16C), "aBcd16b");
        assert_eq!(name(dnnl_dt2str, F16), "f16");
        assert_eq!(name(dnnl_dt2str, BF16), "bf16");
        assert_eq!(name(dnnl_dt2str, F32), "f32");
        assert_eq!(name(dnnl_prop_kind2str, FORWARD_TRAINING), "forward_training");
        assert_eq!(name(dnnl_prop_kind2str, FORWARD_INFERENCE), "forward_inference");
        assert_eq!(name(dnnl_prop_kind2str, BACKWARD), "backward");
        assert_eq!(name(dnnl_engine_kind2str, CPU), "cpu");
        assert_eq!(name(dnnl_alg_kind2str, ELTWISE_RELU), "eltwise_relu");
        let by_dst = "eltwise_relu_use_dst_for_bwd";
        assert_eq!(name(dnnl_alg_kind2str, ELTWISE_RELU_USE_DST_FOR_BWD), by_dst);
        assert_eq!(name(dnnl_alg_kind2str, BINARY_ADD), "binary_add");
    }
}
