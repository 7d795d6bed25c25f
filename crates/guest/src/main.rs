//! `karta-guest`: the first process inside a sandbox (`init` in a virtual machine, `serve` in namespaces), and the maker of
//! confinement on the host (`jail`).

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("jail") => karta_guest::jail::launch::main(),
        Some("version") => ExitCode::SUCCESS,
        _ => ExitCode::from(64),
    }
}
