//! A round of tasks: the calling thread does them, and helpers do some if they come in time.
//!
//! Scopes and parallel iterators of rayon's wait until every job of theirs has run, if only to find that nothing is left to
//! do, and from outside of the pool they leave all work to its threads, which may sleep. Here the caller waits for nobody
//! who has not begun. So helpers outlive the caller's memory: what they share is their own, and they follow its pointer
//! to the caller only while they hold a task that has not been done. tests/model checks that, in every order of events.

use super::sync::{Arc, AtomicUsize, LOOKS, Ordering, hint, thread};

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What helpers share with the caller, who may be gone when they come.
struct Round {
    /// The caller's [`Task`], there until every task has been done.
    task: *const (),
    tasks: usize,
    helpers: usize,
    /// The next task that no one has taken.
    next: AtomicUsize,
    /// Tasks that have not been done.
    left: AtomicUsize,
    call: fn(Helper),
}

// SAFETY: a `Task` is `Sync`; all else is so by itself.
unsafe impl Send for Round {}
// SAFETY: as above.
unsafe impl Sync for Round {}

/// A thread that takes part, or is called to.
pub struct Helper {
    round: Arc<Round>,
    number: usize,
}

impl Helper {
    /// Calls two more and does tasks until all have been taken.
    pub fn help(self) {
        call_two(&self.round, self.number);
        self.round.do_rest();
        // A thread of the pool looks for work for a while before it sleeps. It begins with that when the round is over, and
        // its caller may begin with the next.
        let mut looks = LOOKS;
        while looks > 0 && self.round.left.load(Ordering::Relaxed) > 0 {
            hint::spin_loop();
            looks -= 1;
        }
    }
}

fn call_two(round: &Arc<Round>, number: usize) {
    for number in [2 * number + 1, 2 * number + 2] {
        if number <= round.helpers {
            (round.call)(Helper { round: Arc::clone(round), number });
        }
    }
}

impl Round {
    fn do_rest(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.tasks {
                return;
            }
            let _done = Done(self);
            // SAFETY: a task has been taken, by no one else, and not been counted as done: the caller waits for it.
            let task = unsafe { *self.task.cast::<Task<'_>>() };
            task(number);
        }
    }
}

/// A task that is under way; counted as done at the end, on unwinding too.
struct Done<'a>(&'a Round);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_sub(1, Ordering::Release);
    }
}

/// At its end, which may be by unwinding, nobody follows the pointer any more.
struct Wait<'a>(&'a Round);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Round { tasks, ref next, ref left, .. } = *self.0;
        let untaken = tasks.saturating_sub(next.fetch_add(tasks, Ordering::Relaxed));
        left.fetch_sub(untaken, Ordering::Relaxed);
        for look in 0.. {
            match left.load(Ordering::Acquire) {
                0 => break,
                _ if look < LOOKS => hint::spin_loop(),
                _ => thread::yield_now(),
            }
        }
    }
}

/// Calls `task` with each number below `tasks`, with 0 on this thread and with others on whichever thread of this one and
/// `helpers` others, for which `call` is to find a thread, comes first: each soon, late or never.
pub fn run(tasks: usize, helpers: usize, task: Task<'_>, call: fn(Helper)) {
    if tasks == 0 {
        return;
    }
    let round = Arc::new(Round {
        task: (&raw const task).cast(),
        tasks,
        helpers,
        next: AtomicUsize::new(1),
        left: AtomicUsize::new(tasks),
        call,
    });
    let _wait = Wait(&round);
    {
        let _done = Done(&round);
        call_two(&round, 0);
        task(0);
    }
    round.do_rest();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Barrier, Mutex};

    /// Runs rounds and looks whether each task has been done once when they return.
    fn every_task_is_done_once(call: fn(Helper)) {
        for tasks in [0, 1, 2, 3, 7, 100] {
            for helpers in [0, 1, 2, 3, 7] {
                let done: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                run(tasks, helpers, &|number| _ = done[number].fetch_add(1, Ordering::Relaxed), call);
                assert!(done.into_iter().all(|times| times.into_inner() == 1), "{tasks} {helpers}");
            }
        }
    }

    fn on_a_thread(helper: Helper) {
        thread::spawn(|| helper.help());
    }

    #[test]
    fn helpers_that_come_share_the_tasks() {
        (0..20).for_each(|_| every_task_is_done_once(on_a_thread));
        // They do come: two tasks that wait for each other.
        let both = Barrier::new(2);
        run(2, 1, &|_| _ = both.wait(), on_a_thread);
    }

    #[test]
    fn helpers_that_never_come_leave_the_tasks_to_the_caller() {
        every_task_is_done_once(drop);
    }

    #[test]
    fn helpers_that_come_too_late_find_nothing_to_do() {
        static LATE: Mutex<Vec<Helper>> = Mutex::new(Vec::new());
        every_task_is_done_once(|helper| LATE.lock().unwrap().push(helper));
        let mut came = 0;
        loop {
            // Those that they call come later still.
            let late = std::mem::take(&mut *LATE.lock().unwrap());
            if late.is_empty() {
                break;
            }
            came += late.len();
            late.into_iter().for_each(Helper::help);
        }
        assert_eq!(came, 5 * (1 + 2 + 3 + 7));
    }

    /// The round's memory is the caller's no more when its unwinding is over.
    #[test]
    fn a_round_that_unwinds_waits_for_its_helpers() {
        for call in [drop, on_a_thread] {
            let (started, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let task = |number| {
                started.fetch_add(1, Ordering::Relaxed);
                assert!(number > 0, "the first");
                thread::sleep(std::time::Duration::from_millis(1));
                ended.fetch_add(1, Ordering::Relaxed);
            };
            catch_unwind(AssertUnwindSafe(|| run(5, 2, &task, call))).unwrap_err();
            let started = started.into_inner();
            assert_eq!(ended.into_inner(), started - 1);
        }
        let panics = |_| panic!("no one");
        catch_unwind(AssertUnwindSafe(|| run(5, 2, &|_| (), panics))).unwrap_err();
    }
}
