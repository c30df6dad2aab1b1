//! Writes src/threads/round.rs as a module, and once more for each mistake.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// A name, what is right, and what is wrong.
const MISTAKES: [(&str, &str, &str); 9] = [
    ("right", "", ""),
    ("counted_before_it_is_done", "let _done = Done(self);", "drop(Done(self));"),
    ("done_without_release", "fetch_sub(1, Ordering::Release)", "fetch_sub(1, Ordering::Relaxed)"),
    ("waited_without_acquire", "match left.load(Ordering::Acquire)", "match left.load(Ordering::Relaxed)"),
    ("not_waited", "let _wait = Wait(&round);", ""),
    (
        "taken_in_two_steps",
        "let number = self.next.fetch_add(1, Ordering::Relaxed);",
        "let number = self.next.load(Ordering::Relaxed); self.next.store(number + 1, Ordering::Relaxed);",
    ),
    ("the_callers_task_twice", "next: AtomicUsize::new(1)", "next: AtomicUsize::new(0)"),
    ("one_not_counted", "left: AtomicUsize::new(tasks)", "left: AtomicUsize::new(tasks - 1)"),
    ("one_past_the_end", "if number >= self.tasks", "if number > self.tasks"),
];

fn main() {
    let out = env::var("OUT_DIR").unwrap();
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../src/threads/round.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    let source = fs::read_to_string(source).unwrap();
    let source = source.split("#[cfg(test)]").next().unwrap();
    let (mut modules, mut names) = (String::new(), String::new());
    for (name, right, wrong) in MISTAKES {
        assert!(right.is_empty() || source.matches(right).count() == 1, "{name}: {right} is not there once");
        let text = if right.is_empty() { source.to_owned() } else { source.replace(right, wrong) };
        // A function with the module's own types.
        let text = text + "\nsuper::model!();\n";
        let file = Path::new(&out).join(format!("{name}.rs"));
        fs::write(&file, text).unwrap();
        let unused =
            "#[allow(dead_code, clippy::absurd_extreme_comparisons, reason = \"not the library's text\")]";
        writeln!(modules, "{unused} #[path = {file:?}] mod {name};").unwrap();
        writeln!(names, "({name:?}, {name}::run_model as Model),").unwrap();
    }
    fs::write(
        Path::new(&out).join("all.rs"),
        format!("{modules}\nconst ALL: &[(&str, Model)] = &[{names}];"),
    )
    .unwrap();
}
