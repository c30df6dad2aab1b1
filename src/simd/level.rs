//! Which instruction set the kernels run on: found at run time, and lowered by force for tests and comparisons.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::ground::error::Error;

/// An instruction set that kernels are compiled for. All give the same bits; they differ in speed.
///
/// The best that the CPU has is used, unless a lower one is forced: for the whole program by the environment variable
/// `BATCHNORM_LEVEL` (`portable`, `avx2`, `avx512`) or [`Level::force`], for a stretch of code by [`Level::with`].
///
/// ```
/// use batchnorm::Level;
/// println!("running on {}, could run on {:?}", Level::active(), Level::available());
/// let forced = Level::with(Level::Portable, Level::active)?;
/// assert_eq!(forced, Level::Portable);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// What the build's target has everywhere: SSE2 on x86-64, NEON on aarch64, more with `-C target-cpu`.
    Portable = 1,
    /// AVX2, FMA and F16C.
    Avx2 = 2,
    /// AVX-512F and BW, which all but the first CPUs with the former have.
    Avx512 = 3,
}

/// The level forced for the program; 0 for none.
static FORCED: AtomicU8 = AtomicU8::new(0);

thread_local! {
    /// The level forced for this thread by `Level::with`.
    static SCOPED: Cell<Option<Level>> = const { Cell::new(None) };
}

impl Level {
    const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// Whether kernels that interleave two loops are compiled for it: with 32 registers of whole vectors.
    pub(crate) fn interleaves(self) -> bool {
        self == Level::Avx512
    }

    /// The levels of this CPU and build, lowest first.
    pub fn available() -> &'static [Level] {
        static AVAILABLE: OnceLock<([Level; Level::ALL.len()], usize)> = OnceLock::new();
        let (levels, count) = AVAILABLE.get_or_init(|| {
            let (mut levels, mut count) = (Self::ALL, 0);
            for level in Self::ALL.into_iter().filter(|level| level.detected()) {
                levels[count] = level;
                count += 1;
            }
            (levels, count)
        });
        &levels[..*count]
    }

    fn detected(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The level that an operation called now on this thread runs on.
    pub fn active() -> Level {
        let forced = FORCED.load(Ordering::Relaxed);
        SCOPED
            .get()
            .or_else(|| Self::ALL.into_iter().find(|level| *level as u8 == forced))
            .unwrap_or_else(Self::default_level)
    }

    /// The best level there is, or the one that the environment asks for.
    fn default_level() -> Level {
        static DEFAULT: OnceLock<Level> = OnceLock::new();
        *DEFAULT.get_or_init(|| {
            let best = Self::available().iter().copied().max().unwrap_or(Level::Portable);
            let Ok(wanted) = std::env::var("BATCHNORM_LEVEL") else { return best };
            match wanted.parse::<Level>().and_then(Level::checked) {
                Ok(level) => level,
                // There is no caller to return this to, and staying silent would hide a misspelt test run.
                Err(_) => {
                    eprintln!(
                        "batchnorm: BATCHNORM_LEVEL is {wanted:?}, must be one of {:?}; using {best}",
                        { Self::available().iter().map(Level::to_string).collect::<Vec<_>>() }
                    );
                    best
                }
            }
        })
    }

    fn checked(self) -> Result<Level, Error> {
        if Self::available().contains(&self) {
            return Ok(self);
        }
        let available = Self::available().iter().map(Level::to_string).collect();
        Err(Error::Level { level: self.to_string(), available })
    }

    /// Forces a level for all threads of the program, `None` to end that.
    ///
    /// # Errors
    /// [`Error::Level`] if the CPU does not have it; then nothing has changed.
    pub fn force(level: Option<Level>) -> Result<(), Error> {
        let level = level.map(Level::checked).transpose()?;
        FORCED.store(level.map_or(0, |level| level as u8), Ordering::Relaxed);
        Ok(())
    }

    /// Runs `f` with a level forced for the operations that it calls on this thread (the threads that those spread
    /// over follow).
    ///
    /// # Errors
    /// [`Error::Level`] if the CPU does not have it; then `f` has not run.
    pub fn with<R>(level: Level, f: impl FnOnce() -> R) -> Result<R, Error> {
        /// Puts the former level back, on unwinding too.
        struct Restore(Option<Level>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SCOPED.set(self.0);
            }
        }
        let level = level.checked()?;
        let _restore = Restore(SCOPED.replace(Some(level)));
        Ok(f())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        })
    }
}

impl FromStr for Level {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|level| level.to_string() == name)
            .ok_or_else(|| Error::UnknownLevel { name: name.to_owned() })
    }
}
