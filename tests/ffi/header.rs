//! include/batchnorm.h is what cbindgen makes of src/ffi and of C's threads, a section of each file.
//! `UPDATE_HEADER=1 cargo test --features capi --test ffi header::` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

/// The files, in the order of the header, and what it says of each.
const SECTIONS: [(&str, &str); 11] = [
    ("ffi/status", "What became of a call."),
    ("threads/host", "Threads of the program's own."),
    ("ffi/problem", "The problem: element, layout, sizes, threads."),
    ("ffi/state", "The statistics of a channel."),
    ("ffi/activation", "What follows a normalization: activations, and masks of what they let through."),
    ("ffi/partial", "Parts of a batch, over calls, processes or machines."),
    ("ffi/operations", "The operations."),
    ("ffi/running", "Running statistics and parameters."),
    ("ffi/renorm", "Batch renormalization."),
    ("ffi/fold", "Folding into the layer before."),
    ("ffi/library", "Errors in words, threads, instruction sets, version."),
];

/// The declarations of a file.
fn section(root: &Path, file: &str, config: &cbindgen::Config) -> String {
    let source = root.join(format!("src/{file}.rs"));
    // Types of other files are named, and declared in their sections.
    let mut config = cbindgen::Config { header: None, ..config.clone() };
    config.export.include = config.export.rename.keys().cloned().collect();
    let bindings = cbindgen::Builder::new().with_src(source).with_config(config).generate().unwrap();
    let mut declarations = Vec::new();
    bindings.write(&mut declarations);
    by_hand(&String::from_utf8(declarations).unwrap())
}

/// As one would write it by hand: comments of one line are one, constants stand together, types go by their names, and what
/// Rust calls safety is said once, at the top.
fn by_hand(declarations: &str) -> String {
    let mut lines = Vec::<String>::new();
    let mut safety = false;
    for line in declarations.lines() {
        if line.trim() == "* # Safety" {
            // With the empty line before it.
            lines.pop();
            safety = true;
        }
        safety &= line.trim() != "*/";
        if safety {
            continue;
        }
        let is_type = line.starts_with("typedef");
        lines.push(if is_type { line.to_owned() } else { line.replace("struct batchnorm_", "batchnorm_") });
        if let [.., start, words, end] = &lines[..]
            && start.trim() == "/**"
            && end.trim() == "*/"
        {
            let comment = format!("{start} {} */", words.trim().trim_start_matches("* "));
            lines.truncate(lines.len() - 3);
            lines.push(comment);
        }
    }
    let is_constant = |line: Option<&String>| line.is_some_and(|line| line.starts_with("#define"));
    let mut kept = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let between = i > 0 && is_constant(lines.get(i - 1)) && is_constant(lines.get(i + 2));
        if !(line.is_empty() && between) {
            kept.push(line.as_str());
        }
    }
    kept.join("\n").trim().to_owned()
}

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut header = config.header.clone().unwrap();
    header += "\n\n#ifndef BATCHNORM_H\n#define BATCHNORM_H\n\n#include <stddef.h>\n#include <stdint.h>\n";
    header += "\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n";
    for (file, about) in SECTIONS {
        write!(header, "\n/* {about} */\n\n{}\n", section(root, file, &config)).unwrap();
    }
    header += "\n#ifdef __cplusplus\n}\n#endif\n\n#endif /* BATCHNORM_H */\n";
    let path = root.join("include/batchnorm.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == header,
        "include/batchnorm.h is not current"
    );
}
