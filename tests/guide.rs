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
        "examples/cpp/normalize.cpp",
        "integrations/candle/README.md",
        "integrations/burn/README.md",
        "src/api/ndarray.rs",
    ]
    .map(read)
    .concat()
    .replace("//! ", "");
    let page = read("docs/linking.md");
    let mut checked = 0;
    for fence in ["```c\n", "```cpp\n", "```cmake\n", "```rust,ignore\n"] {
        let snippets = page.split(fence).skip(1).map(|snippet| snippet.split_once("```").unwrap().0);
        // Of crates that are not here.
        for snippet in snippets.filter(|snippet| !snippet.contains("other::")) {
            assert!(files.contains(snippet), "in no file:\n{snippet}");
            checked += 1;
        }
    }
    assert_eq!(checked, 8);
}
