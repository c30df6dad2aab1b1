//! include/batchnorm.h is what cbindgen makes of src/ffi/mod.rs. `UPDATE_HEADER=1 cargo test --features capi --test header`
//! writes it anew.

use std::path::Path;

/// The source with the macro `functions!` written out, which cbindgen cannot do without nightly Rust: the body once for
/// each call, with the arguments for the names.
fn expanded(source: &str) -> String {
    let (before, rest) = source.split_once("macro_rules! functions {").unwrap();
    let (signature, rest) = rest.split_once("=> {").unwrap();
    let (body, calls) = rest.split_once("\n    };\n}").unwrap();
    let names: Vec<&str> = signature
        .split(['(', ',', ')'])
        .filter_map(|name| name.trim().strip_prefix('$')?.split(':').next())
        .collect();
    // The macro's own comment would become the first function's.
    let mut out = before.replace("/// Writes out the functions of one element.\n", "");
    for call in calls.split("functions!(").skip(1) {
        let (arguments, _) = call.split_once(");").unwrap();
        let arguments: Vec<&str> = arguments.split(',').map(str::trim).collect();
        assert_eq!(names.len(), arguments.len());
        let filled = names.iter().zip(arguments).fold(body.to_owned(), |body, (name, argument)| {
            body.replace(&format!("${name}("), &format!("{argument}("))
                .replace(&format!("${name},"), &format!("{argument},"))
        });
        out += &filled;
    }
    out
}

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("src/ffi/mod.rs")).unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ffi.rs");
    std::fs::write(&file, expanded(&source)).unwrap();
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_src(&file).with_config(config).generate().unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    let header = String::from_utf8(header).unwrap();
    let path = root.join("include/batchnorm.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == header,
        "include/batchnorm.h is not current"
    );
}
