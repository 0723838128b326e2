//! The `stackward` binary: everything is in the library beside it, where tests can drive it.

/// Chunks are allocated by one thread and freed by another, a quarter of a megabyte at a time. The C library's allocator
/// gives such memory back to the system each time and takes it again: a tenth of a restore, and most of a backup's memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    stackward::main()
}
