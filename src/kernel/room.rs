//! The memory that each thread keeps.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::Cell;

use super::precision::Precision;
use super::scratch::{Scratch, Tiles};
use crate::ground::memory;
use crate::ground::scalar::for_elements;
use crate::ground::sizes::{BAND, GROUP};

/// States that wait until others merge with them: of a group of channels for every level of a tree, of a band for the levels of a
/// chunk.
pub const WAITING: usize = BAND * 8;
const _: () = assert!(GROUP * usize::BITS as usize <= WAITING);

/// The states of one operation or another.
pub struct Waiting<T: Precision> {
    pub(crate) moments: [T::Moments; WAITING],
    pub(crate) gradients: [T::Gradients; WAITING],
}

/// A thread's memory.
pub struct Room<T: Precision> {
    pub(crate) scratch: Scratch<T>,
    pub(crate) tiles: Tiles<T>,
    pub(crate) waiting: Waiting<T>,
}

/// An element type that has scratch memory.
pub trait WithScratch: Precision {
    /// This thread's scratch memory, or a new one; `None` if there is no memory for it. It holds anything.
    fn take_scratch() -> Option<Box<Room<Self>>>;
    /// Keeps it for this thread's next call, or gives it back where the thread is past keeping anything.
    fn keep_scratch(room: Box<Room<Self>>) -> Option<Box<Room<Self>>>;
}

macro_rules! with_scratch {
    ($($element:ty),*) => {$(
        const _: () = {
            thread_local! {
                static SCRATCH: Cell<Option<Box<Room<$element>>>> = const { Cell::new(None) };
                /// Whether this thread is known to drop it in the end, which takes memory to note.
                static NOTED: Cell<bool> = const { Cell::new(false) };
            }

            /// Never on the stack, which it is too large for.
            fn new() -> Option<Box<Room<$element>>> {
                const LAYOUT: Layout = Layout::new::<Room<$element>>();
                // SAFETY: its size is not 0. Zeros are a value of it: it is made of numbers and a `bool`. The box has the
                // memory from the global allocator, with the layout that it gives it back with.
                let mut room = unsafe {
                    let at = alloc_zeroed(LAYOUT).cast::<Room<$element>>();
                    if at.is_null() { None } else { Some(Box::from_raw(at)) }
                }?;
                // Units are 1 until one is set.
                let scratch = &mut room.scratch;
                scratch.sums.one = 1.0;
                scratch.sums.units.fill(1.0);
                scratch.sums.channel_units.fill(1.0);
                scratch.scales.unit.fill(1.0);
                Some(room)
            }

            impl WithScratch for $element {
                fn take_scratch() -> Option<Box<Room<Self>>> {
                    if !NOTED.get() && !memory::is_there(1 << 10) {
                        return None;
                    }
                    NOTED.set(true);
                    SCRATCH.try_with(Cell::take).ok().flatten().or_else(new)
                }

                fn keep_scratch(room: Box<Room<Self>>) -> Option<Box<Room<Self>>> {
                    let mut room = Some(room);
                    let _ = SCRATCH.try_with(|cell| cell.set(room.take()));
                    room
                }
            }
        };
    )*};
}
for_elements!(with_scratch);
