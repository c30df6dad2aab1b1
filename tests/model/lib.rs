//! src/threads/round.rs in every order of events that memory allows, with loom's atomics in place of std's.
#![cfg(test)]

/// What src/threads/sync.rs is to the library.
mod sync {
    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicUsize, Ordering};
    pub use loom::{hint, thread};

    /// To look once more is no other order of events.
    pub const LOOKS: usize = 0;
}

/// The caller's memory: one cell a task, and one for all of it.
struct Memory {
    tasks: Vec<loom::cell::UnsafeCell<usize>>,
    all: loom::cell::UnsafeCell<()>,
}

// SAFETY: that no one uses it at the same time is what the model is to show.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(tasks: usize) -> Self {
        let cell = |_| loom::cell::UnsafeCell::new(0);
        Self { tasks: (0..tasks).map(cell).collect(), all: loom::cell::UnsafeCell::new(()) }
    }

    /// What a task does with it.
    fn use_for(&self, number: usize) {
        self.all.with(|_| ());
        // SAFETY: the cell is alive; the model looks whether someone else has it.
        self.tasks[number].with_mut(|times| unsafe { *times += 1 });
        self.all.with(|_| ());
    }

    /// What the caller does with it, who has it alone.
    fn end(&self) {
        self.all.with_mut(|_| ());
        for times in &self.tasks {
            // SAFETY: as above.
            assert_eq!(times.with(|times| unsafe { *times }), 1, "how often a task was done");
        }
    }
}

macro_rules! model {
    () => {
        /// Runs a round with helpers that come at any time, in every order.
        pub fn run_model(tasks: usize, helpers: usize) {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(3);
            builder.check(move || {
                let memory = super::Memory::new(tasks);
                let call = |helper: Helper| _ = loom::thread::spawn(move || helper.help());
                run(tasks, helpers, &|number| memory.use_for(number), call);
                memory.end();
            });
        }
    };
}
use model;

/// Of so many tasks and helpers.
type Model = fn(usize, usize);

include!(concat!(env!("OUT_DIR"), "/all.rs"));

const ROUNDS: [(usize, usize); 4] = [(1, 1), (2, 1), (3, 1), (2, 2)];

#[test]
fn rounds_are_right_in_every_order() {
    let (name, model) = ALL[0];
    assert_eq!(name, "right");
    for (tasks, helpers) in ROUNDS {
        model(tasks, helpers);
    }
}

/// The other side of the next test: a mistake may follow a pointer to nowhere, which is the end of a process.
#[test]
fn child() {
    let Ok(wanted) = std::env::var("BATCHNORM_MISTAKE") else { return };
    let (_, model) = ALL.iter().find(|(name, _)| *name == wanted).unwrap();
    for (tasks, helpers) in ROUNDS {
        model(tasks, helpers);
    }
}

#[test]
fn mistakes_are_caught() {
    for (name, _) in &ALL[1..] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", "child"]).env("BATCHNORM_MISTAKE", name).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let why = said.lines().find(|line| {
            ["Causality", "deadlock", "how often", "out of bounds", "overflow", "exceeded"]
                .iter()
                .any(|why| line.contains(why))
        });
        println!("{name}: {}, {}", output.status, why.unwrap_or("no word").trim());
        assert!(!output.status.success(), "{name} is not caught");
    }
}
