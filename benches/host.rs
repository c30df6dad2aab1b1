//! A program with threads of its own: `cargo bench --bench host --features capi`, with `cc` and its OpenMP.
//!
//! benches/host/host.c plays an engine whose OpenMP regions alternate with the library's calls, which run on the library's
//! pool and on OpenMP's threads, in turns. Three times: OpenMP's threads spin for a while after a region (its default), spin
//! on, or sleep at once. Prints how many times as fast the calls are on OpenMP's threads; above 1, naming them gains.

use std::path::Path;
use std::process::{Command, exit};

/// Runs a command; ends the program if it fails.
fn run(command: &mut Command) {
    match command.status() {
        Ok(status) if status.success() => (),
        Ok(status) => fail(&format!("{command:?}: {status}")),
        Err(error) => fail(&format!("{command:?}: {error}")),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // As the tests of the C interface build it.
    run(Command::new(env!("CARGO"))
        .args(["rustc", "--release", "--lib", "--features", "capi", "--crate-type", "cdylib,staticlib"])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", target.join("capi"))
        .env_remove("RUSTFLAGS"));
    let program = target.join("host");
    run(Command::new("cc")
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-fopenmp", "-I"])
        .arg(root.join("include"))
        .arg("-o")
        .arg(&program)
        .arg(root.join("benches/host/host.c"))
        .arg(target.join("capi/release/libbatchnorm.a"))
        .args(["-lm", "-lpthread", "-ldl"]));

    // `cargo bench -- --test`: a turn or two.
    let seconds = if std::env::args().any(|argument| argument == "--test") { "0" } else { "1.5" };
    for (policy, awake) in [(None, "1"), (Some("active"), "1"), (Some("passive"), "0")] {
        let mut host = Command::new(&program);
        host.args([seconds, awake]).env_remove("OMP_WAIT_POLICY");
        if let Some(policy) = policy {
            host.env("OMP_WAIT_POLICY", policy);
        }
        println!("OMP_WAIT_POLICY={}", policy.unwrap_or("(default)"));
        run(&mut host);
    }
}
