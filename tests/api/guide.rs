//! The pages for users: snippets of docs/linking.md that no documentation test compiles are parts of files that are
//! compiled, and links lead somewhere. README.md's program is a documentation test (`src/guide.rs`).

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
        "tests/c/half.h",
        "tests/c/layer.cpp",
        "tests/c/openmp.c",
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
    assert_eq!(checked, 11);
}

/// The pages of a repository's address.
const TREE: &str = "https://github.com/batchnorm-rs/batchnorm/tree/main/";

/// What the published package does not hold: Cargo.toml's `exclude`, and packages of their own.
const NOT_PUBLISHED: [&str; 5] =
    ["benches/record", "benches/peers", "fuzz", "integrations", "CONTRIBUTING.md"];

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    for page in ["README.md", "docs/accuracy.md", "docs/linking.md", "docs/scope.md"] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for link in text.split("](").skip(1) {
            let link = &link[..link.find(')').unwrap()];
            if let Some(path) = link.strip_prefix(TREE) {
                assert!(root.join(path).exists(), "{page}: {link} is not in the repository");
            } else if !link.starts_with("https://") && !link.starts_with('#') {
                let path = root.join(page).parent().unwrap().join(link);
                assert!(path.exists(), "{page}: there is no {link}");
                let published = !NOT_PUBLISHED.iter().any(|name| path.starts_with(root.join(name)));
                assert!(published, "{page}: the package does not hold {link}");
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked} links");
}
