//! Tests are programs without an NGINX around them: what NGINX would give them is left open there, as it is in the module.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,--unresolved-symbols=ignore-all");
}
