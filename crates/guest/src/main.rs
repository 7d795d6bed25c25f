//! `karta-guest`: the first process inside a sandbox (`init` in a virtual machine, `serve` in namespaces), and the maker of
//! confinement on the host (`jail`).

mod agent;

use std::ffi::OsString;
use std::process::ExitCode;

/// The exit status of a command line that says nothing this program knows.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // The kernel starts the first process of a machine without arguments.
    let first = rustix::process::getpid() == rustix::process::Pid::INIT;
    match arguments.split_first().and_then(|(verb, rest)| Some((verb.to_str()?, rest))) {
        Some(("jail", [])) => karta_guest::jail::launch::main(),
        Some(("serve", rest)) => agent::serve(rest),
        Some(("init", [])) | None if first => agent::init(),
        Some(("version", [])) => ExitCode::SUCCESS,
        _ => ExitCode::from(USAGE),
    }
}
