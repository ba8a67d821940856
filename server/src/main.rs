//! The `postanalytics` binary: everything is in the library, so that tests can run the same server with another allocator.

fn main() -> std::process::ExitCode {
    postanalytics_server::run(std::env::args_os())
}
