//! The `daoserver` binary: everything is in the library, so that other programs can embed it.

fn main() -> std::process::ExitCode {
    daoserver::cli::main()
}
