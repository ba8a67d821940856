//! Names the shared library for the dynamic linker. The number changes when a program built against an older header could no
//! longer run with it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpostanalytics_client.so.0");
}
