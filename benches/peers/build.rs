//! Links what the static library of oneDNN needs: GCC's OpenMP and the C++ standard library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_ONEDNN").is_some() {
        // As arguments, which come after all libraries: linkers that look back only once find everything.
        println!("cargo::rustc-link-arg=-lgomp");
        println!("cargo::rustc-link-arg=-lstdc++");
    }
}
