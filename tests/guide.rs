//! The snippets of docs/linking.md that no documentation test compiles are parts of files that are compiled.

use std::fs;
use std::path::Path;

#[test]
fn snippets_are_parts_of_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read =
        |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let files: String = [
        "examples/c/normalize.c",
        "examples/cpp/CMakeLists.txt",
        "integrations/candle/README.md",
        "integrations/burn/README.md",
        "src/ndarray.rs",
    ]
    .map(read)
    .concat()
    .replace("//! ", "");
    let page = read("docs/linking.md");
    let mut checked = 0;
    for fence in ["```c\n", "```cmake\n", "```rust,ignore\n"] {
        for snippet in page.split(fence).skip(1) {
            let (snippet, _) = snippet.split_once("```").unwrap();
            assert!(files.contains(snippet), "in no file:\n{snippet}");
            checked += 1;
        }
    }
    assert_eq!(checked, 7);
}
