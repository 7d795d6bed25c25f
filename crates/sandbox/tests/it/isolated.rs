//! What drivers that isolate hold besides the laws of all drivers.

use karta_sandbox::limits::Machines;
use karta_sandbox::{Driver, namespace};

use crate::support::{World, acquire, clock, rng, run, script};

pub(crate) fn machines(world: &World) -> Machines {
    Machines {
        memory_bytes: 256 << 20,
        processes: 64,
        disk_bytes: 64 << 20,
        temp_bytes: 16 << 20,
        open_files: 256,
        image: std::env::var_os("KARTA_TEST_IMAGE").map(|image| std::path::Path::new(&image).join("root")),
        ..Machines::new(world.folder.path().join("machines"))
    }
}

pub(crate) fn namespace(world: &World) -> namespace::Driver {
    namespace::Driver::new(machines(world), world.programs(), clock(), rng()).unwrap()
}

#[tokio::test]
async fn a_trial_says_that_it_works_here() {
    let world = World::new();
    let driver = namespace(&world);
    driver.check().await.unwrap();
    println!("{:?}", driver.notes().await);
}

#[tokio::test]
async fn a_session_has_its_own_place() {
    let world = World::new();
    let driver = namespace(&world);
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let text = "id; pwd; ls -la . / ~ /state /release; cat CLAUDE.md; echo more >> CLAUDE.md; cat CLAUDE.md; rm agents/one.md; ls agents; \
                mount; ps aux; cat /etc/hosts /etc/machine-id; hostname; env; echo $HOME; df";
    let (output, exit) = run(&*sandbox, &script(&*sandbox, &format!("exec 2>&1; {text}")), "").await;
    println!("{output} {exit:?}");
}
