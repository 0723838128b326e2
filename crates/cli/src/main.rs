//! The `stackward` binary: everything is in the library beside it, where tests can drive it.

fn main() -> std::process::ExitCode {
    stackward::main()
}
