//! The header that lies in the repository is the one that cbindgen makes of the code.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("the configuration can be read");
    config.parse.parse_deps = false;
    let sources = ["src/errors.rs", "src/types.rs", "src/lib.rs"];
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = sources.iter().fold(builder, |builder, source| builder.with_src(folder.join(source)));
    let mut made = Vec::new();
    builder.generate().expect("the code can be read").write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    let path = folder.join("include/postanalytics.h");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let header = std::fs::read_to_string(&path).expect("the header is there");
    assert!(
        header == made,
        "{} is not what cbindgen makes: UPDATE=1 cargo test -p postanalytics-client-c --test header",
        path.display()
    );
}
