//! What the CPU says of its caches: it steers how work is cut and how outputs are written, never the order of arithmetic.

#![forbid(unsafe_code)]

use std::sync::OnceLock;

/// A machine, as far as plans depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Lines of a set of a core's first data cache.
    pub l1_ways: usize,
    /// Bytes of a core's L2.
    pub l2: usize,
    /// Lines of a set of it.
    pub l2_ways: usize,
    /// Whether the last-level cache is so slow that writing past it is faster from where the L2 caches end: the mesh of
    /// Intel's servers, where a line to be written takes as long to come from L3 as from memory.
    pub mesh: bool,
}

impl Machine {
    /// Where there is no one to ask: the smallest L2 of today's servers.
    pub const UNKNOWN: Self = Self { l1_ways: 8, l2: 1 << 20, l2_ways: 8, mesh: false };

    /// This machine's. The CPU is asked once, since a virtual machine's host gives the answer.
    pub fn get() -> Self {
        static MACHINE: OnceLock<Machine> = OnceLock::new();
        *MACHINE.get_or_init(Self::ask)
    }

    #[cfg(all(target_arch = "x86_64", not(fuzzing)))]
    fn ask() -> Self {
        let cpu = raw_cpuid::CpuId::new();
        let intel = cpu.get_vendor_info().is_some_and(|vendor| vendor.as_str() == "GenuineIntel");
        let l1_ways = cpu.get_cache_parameters().and_then(|mut caches| {
            let data = |cache: &raw_cpuid::CacheParameter| {
                cache.level() == 1 && cache.cache_type() == raw_cpuid::CacheType::Data
            };
            caches.find(data).map(|l1| l1.associativity())
        });
        let l2 = cpu.get_cache_parameters().and_then(|mut caches| {
            let l2 = caches.find(|cache| cache.level() == 2)?;
            let line = l2.physical_line_partitions() * l2.coherency_line_size();
            Some((l2.associativity() * line * l2.sets(), l2.associativity()))
        });
        let (bytes, ways) = l2.unwrap_or((Self::UNKNOWN.l2, Self::UNKNOWN.l2_ways));
        Self {
            l1_ways: l1_ways.unwrap_or(Self::UNKNOWN.l1_ways),
            l2: bytes.clamp(256 << 10, 4 << 20),
            l2_ways: ways.max(1),
            mesh: intel && std::arch::is_x86_feature_detected!("avx512f"),
        }
    }

    /// Under fuzzing too, so that inputs take the same paths on every machine.
    #[cfg(not(all(target_arch = "x86_64", not(fuzzing))))]
    fn ask() -> Self {
        Self::UNKNOWN
    }
}
