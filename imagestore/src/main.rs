//! The `imagestore` command.

mod cli;

fn main() {
    // Without unwinding the runtime: a thread may be stuck in a read of standard input that never ends.
    std::process::exit(cli::main());
}
