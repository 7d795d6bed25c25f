//! What a hostile session tries, and that it is held. One test for each attack and driver.
//!
//! An attack is a script that a session runs: of the shell, or of Perl, which can make any system call and is a part of every image.

mod files;
mod kernel;
mod limits;
mod reach;

use karta_sandbox::{Driver, Exit, Sandbox};

pub(crate) use limits::fleeing;

use crate::isolated::namespace;
use crate::machines::microvm;
use crate::support::{World, acquire, run, script};

/// One test for each attack and driver.
macro_rules! attacks {
    ($($group:ident::$attack:ident)*) => {
        mod namespaces {
            $(#[tokio::test]
            async fn $attack() {
                let world = super::World::new();
                super::$group::$attack(&super::namespace(&world), &world).await;
            })*
        }
        mod machines {
            $(#[tokio::test]
            #[ignore = "needs an image and QEMU"]
            async fn $attack() {
                let world = super::World::new();
                super::$group::$attack(&super::microvm(&world).await, &world).await;
            })*
        }
    };
}

attacks! {
    reach::read_the_hosts_files
    reach::see_other_sessions
    reach::look_into_the_server
    reach::reach_a_service_of_the_host
    reach::reach_another_sandbox
    reach::reach_the_network
    reach::open_raw_sockets
    kernel::look_into_the_first_process
    kernel::look_into_what_keeps_the_programs
    kernel::end_the_first_process
    kernel::load_a_kernel_or_a_module
    kernel::mount_something
    kernel::become_root_in_a_user_namespace
    kernel::join_a_namespace_of_the_host
    kernel::use_rarely_needed_parts_of_the_kernel
    kernel::use_the_calls_of_another_architecture
    kernel::change_the_kernels_settings
    kernel::gain_powers_by_a_program
    kernel::make_device_nodes
    limits::start_processes_without_end
    limits::flee_from_a_pause_and_from_the_end
    limits::use_memory_without_end
    limits::fill_the_temporary_folders
    limits::fill_the_disk
    limits::open_files_without_end
    limits::write_without_end
    limits::use_all_processors
    files::lead_a_put_elsewhere
    files::lead_a_find_elsewhere
    files::lead_an_export_elsewhere
    files::reach_under_the_workspace
    files::change_the_release
}

/// Whether a session's processes are another user than what keeps them, and have a disk of their own: not in namespaces that are made
/// without root's powers, which `SECURITY.md` and the driver's notes say.
fn apart(driver: &dyn Driver) -> bool {
    driver.id() != "namespace" || rustix::process::geteuid().is_root()
}

/// Runs a shell's script in a session of its own. Answers what it says, on its standard error too.
async fn attack(driver: &dyn Driver, world: &World, text: &str) -> String {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    said(&*sandbox, text).await.0
}

async fn said(sandbox: &dyn Sandbox, text: &str) -> (String, Exit) {
    run(sandbox, &script(sandbox, &format!("exec 2>&1\n{text}")), "").await
}

/// A Perl program as a line of a script. It must not hold a single quote.
fn perl(text: &str) -> String {
    assert!(!text.contains('\''), "{text}");
    format!("perl -e '$| = 1; {text}'\n")
}

/// A system call that is tried by its number, with arguments as Perl takes them.
fn call(name: &str, number: i64, arguments: &str) -> String {
    // Perl gives texts to the kernel only if they could be changed.
    perl(&format!(
        "my @with = ({arguments}); my $answer = syscall({number}, @with); \
         print \"{name} \", $answer == -1 ? \"refused: $!\" : \"DONE: $answer\", \"\\n\";"
    ))
}

/// Tries calls, each of which must be refused by the filter or for want of powers.
async fn refused(driver: &dyn Driver, world: &World, calls: &[(&str, i64, &str)]) {
    let text: String = calls.iter().map(|(name, number, arguments)| call(name, *number, arguments)).collect();
    let output = attack(driver, world, &text).await;
    for (name, ..) in calls {
        let line = output.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.expect(&output);
        let why = ["Operation not permitted", "Function not implemented", "Permission denied"];
        assert!(why.iter().any(|why| line.ends_with(&format!("refused: {why}"))), "{line}");
    }
}
