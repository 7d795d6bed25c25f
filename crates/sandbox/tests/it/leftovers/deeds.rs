//! What sandboxes of a driver go through until they end, in every way that there is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use karta_sandbox::limits::Machines;
use karta_sandbox::{Driver, Error, ParkKey, Sandbox, Spec, namespace};
use karta_types::Rng;
use rustix::process::{Pid, Signal};

use crate::support::{clock, line, rng, script, session};

/// Which driver a server or a counter is to try.
pub(super) const KIND: &str = "KARTA_TEST_DRIVER";
/// How many sandboxes are made; a longer test has more.
const CYCLES: &str = "KARTA_TEST_CYCLES";
/// How many there may be at once.
pub(super) const PLACES: u32 = 6;

/// What everything is parked with here.
static KEY: ParkKey = ParkKey::new([7; 32]);

pub(super) fn random(rng: &dyn Rng, below: u64) -> u64 {
    let mut bytes = [0; 8];
    rng.fill(&mut bytes);
    u64::from_le_bytes(bytes) % below
}

/// The children of a process, those that nobody has waited for among them.
pub(super) fn children(of: u32) -> Vec<u32> {
    let parent = |stat: &str| -> Option<u32> {
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| parent(&stat) == Some(of))
    })
    .collect()
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// The drivers whose sandboxes end with their server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Namespace,
    Microvm,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Microvm => "microvm",
        }
    }

    /// Which one this server or counter was told to try; none if it is none.
    pub(super) fn told() -> Option<Self> {
        let name = std::env::var(KIND).ok()?;
        [Self::Namespace, Self::Microvm].into_iter().find(|kind| kind.name() == name)
    }

    /// One of this kind with its things below this folder; so many machines wait.
    pub(super) async fn driver(self, folder: &Path, warm: u32) -> Box<dyn Driver> {
        let limits = Machines {
            memory_bytes: 128 << 20,
            disk_bytes: 32 << 20,
            sandboxes: PLACES,
            ..Machines::new(folder.join("machines"))
        };
        match self {
            Self::Namespace => Box::new(
                namespace::Driver::new(limits, std::collections::HashMap::new(), clock(), rng()).unwrap(),
            ),
            Self::Microvm => {
                let limits = Machines {
                    image: Some(crate::machines::image().await),
                    memory_bytes: 256 << 20,
                    temp_bytes: 16 << 20,
                    warm,
                    ..limits
                };
                Box::new(crate::machines::driver(limits))
            }
        }
    }

    /// How many sandboxes are made where nobody says.
    pub(super) fn cycles(self) -> u64 {
        let usual = match self {
            Self::Namespace => 40,
            Self::Microvm => 18,
        };
        std::env::var(CYCLES).map_or(usual, |cycles| cycles.parse().unwrap())
    }

    /// A moment while a sandbox is made, used or ended, in microseconds.
    pub(super) fn moment(self, rng: &dyn Rng) -> Duration {
        Duration::from_micros(random(
            rng,
            match self {
                Self::Namespace => 70_000,
                Self::Microvm => 500_000,
            },
        ))
    }

    /// Whether a name below the machines' folder may be there when nothing runs: what sandboxes begin from.
    pub(super) fn stays(self, name: &str) -> bool {
        let (folder, rest) = name.split_once('/').unwrap_or((name, ""));
        !name.contains(".part-")
            && match self {
                Self::Namespace => folder == "templates",
                Self::Microvm => match folder {
                    "accelerator.json" => true,
                    "disks" => {
                        rest.is_empty() || rest.starts_with("session-") || rest.starts_with("release-")
                    }
                    "snapshots" => {
                        let (key, file) = rest.split_once('/').unwrap_or((rest, "state"));
                        key.bytes().all(|byte| byte.is_ascii_hexdigit())
                            && ["memory", "state", "snapshot.json"].contains(&file)
                    }
                    _ => false,
                },
            }
    }
}

/// How a sandbox ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Deed {
    Close,
    Drop,
    Erase,
    Reap,
    /// The launchers are killed.
    Launchers,
    /// The first processes in the jails are killed.
    Firsts,
    /// What those have started is killed: programs of a namespace, monitors of machines.
    Programs,
    /// The session kills all that it may, from within.
    Within,
    /// The guest's memory is overwritten: its kernel crashes, or whatever it does then.
    Crash,
    PauseClose,
    PauseLaunchers,
    /// Whoever asks for it goes away while it is made.
    Unwanted,
    /// Put aside, and left there.
    Park,
    /// Put aside, taken up again, and closed.
    Revive,
    /// Whoever asks for it to be put aside goes away meanwhile.
    UnwantedPark,
    /// Whoever asks for it to be taken up goes away meanwhile.
    UnwantedRevive,
    /// Its processes are killed while it is put aside.
    KilledPark,
    /// Its processes are killed while it is taken up.
    KilledRevive,
}

impl Deed {
    /// Those of all drivers.
    const ALL: [Self; 11] = [
        Self::Unwanted,
        Self::Drop,
        Self::Erase,
        Self::Launchers,
        Self::Firsts,
        Self::Programs,
        Self::Reap,
        Self::Close,
        Self::Within,
        Self::PauseClose,
        Self::PauseLaunchers,
    ];
    /// Those of machines alone.
    const MACHINES: [Self; 7] = [
        Self::Crash,
        Self::Park,
        Self::Revive,
        Self::UnwantedPark,
        Self::UnwantedRevive,
        Self::KilledPark,
        Self::KilledRevive,
    ];

    /// One after the other, so that few sandboxes see all of them.
    fn nth(kind: Kind, number: u64) -> Self {
        let more: &[Self] = match kind {
            Kind::Namespace => &[],
            Kind::Microvm => &Self::MACHINES,
        };
        let mut all = Self::ALL.iter().chain(more);
        let number = usize::try_from(number).unwrap() % (Self::ALL.len() + more.len());
        *all.nth(number).unwrap()
    }
}

/// The processes of all sandboxes of this server by how far they are from it: launchers, the first of each jail, what those started.
fn levels() -> [Vec<u32>; 3] {
    let below = |above: &[u32]| above.iter().flat_map(|one| children(*one)).collect::<Vec<u32>>();
    let launchers = children(std::process::id());
    let firsts = below(&launchers);
    let programs = below(&firsts);
    [launchers, firsts, programs]
}

/// Kills some of them: of a random level, all.
fn kill_some(rng: &dyn Rng) {
    let level = usize::try_from(random(rng, 3)).unwrap();
    levels()[level].iter().copied().for_each(kill);
}

/// Overwrites the memory of guests from outside: their kernel and all that it knows.
fn overwrite(monitor: u32) {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string(format!("/proc/{monitor}/maps")).unwrap_or_default();
    let Ok(memory) = fs::File::options().write(true).open(format!("/proc/{monitor}/mem")) else { return };
    for line in maps.lines().filter(|line| line.contains("guest-memory")) {
        let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok()).unwrap();
        // It may end meanwhile.
        let _ = memory.write_all_at(&vec![0; 96 << 20], start);
    }
}

/// Parks a sandbox. It is refused while something is on its way, and goes on then.
async fn put_aside(sandbox: &dyn Sandbox, parked: &Path) {
    let mut tries = 0;
    while let Err(error) = sandbox.park(parked, &KEY).await {
        tries += 1;
        assert!(tries < 200, "it could not be put aside: {error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a sandbox, and ends it in one of many ways, which it answers.
pub(super) async fn cycle(
    kind: Kind,
    driver: &dyn Driver,
    folder: &Path,
    number: u64,
    rng: &dyn Rng,
) -> Result<String, Error> {
    let spec = spec(folder, number % 3);
    let deed = Deed::nth(kind, number);
    if matches!(deed, Deed::Unwanted) {
        drop(tokio::time::timeout(kind.moment(rng), driver.acquire(&spec)).await);
        return Ok(format!("{deed:?}"));
    }
    let sandbox = driver.acquire(&spec).await?;
    let text =
        "(setsid sh -c 'trap \"\" TERM; sleep 1000' &); echo x > /home/agent/x; echo up; exec sleep 1000";
    let mut process = sandbox.spawn(&script(&*sandbox, text)).await?;
    assert_eq!(line(&mut process).await, "up");
    // Groups are frozen by root alone.
    let pauses = kind == Kind::Microvm || rustix::process::geteuid().is_root();
    let parked = folder.join("parked").join(format!("{}-{number}", number % 3));
    match deed {
        Deed::Unwanted | Deed::Drop => drop(sandbox),
        Deed::Close => sandbox.close().await.unwrap(),
        Deed::Erase => driver.erase(spec.session).await.unwrap(),
        Deed::Reap => drop(driver.reap(&|_| false).await.unwrap()),
        Deed::Launchers => levels()[0].iter().copied().for_each(kill),
        Deed::Firsts => levels()[1].iter().copied().for_each(kill),
        Deed::Programs => levels()[2].iter().copied().for_each(kill),
        Deed::Within => {
            // It is held until then: a process that nobody has any more is killed itself.
            let _killer = sandbox.spawn(&script(&*sandbox, "kill -9 1; kill -9 -1")).await?;
            process.control.wait().await;
        }
        Deed::Crash => {
            levels()[2].iter().copied().for_each(overwrite);
            // It ends by itself, or hangs: then it is ended as any other.
            let ended = tokio::time::timeout(Duration::from_secs(2), process.control.wait()).await;
            return Ok(if ended.is_ok() { "Crash (ended)" } else { "Crash (hung)" }.to_owned());
        }
        Deed::PauseClose | Deed::PauseLaunchers => {
            if pauses {
                sandbox.pause().await.unwrap();
            }
            match deed {
                Deed::PauseClose => sandbox.close().await.unwrap(),
                _ => levels()[0].iter().copied().for_each(kill),
            }
        }
        Deed::Park => put_aside(&*sandbox, &parked).await,
        // Given up, or over before that: both are meant.
        Deed::UnwantedPark => drop(tokio::time::timeout(kind.moment(rng), sandbox.park(&parked, &KEY)).await),
        Deed::KilledPark => {
            let killed = async {
                tokio::time::sleep(kind.moment(rng)).await;
                kill_some(rng);
            };
            // What was killed decides whether it was saved.
            drop(tokio::join!(sandbox.park(&parked, &KEY), killed));
        }
        Deed::Revive | Deed::UnwantedRevive | Deed::KilledRevive => {
            put_aside(&*sandbox, &parked).await;
            drop((process, sandbox));
            let revive = driver.revive(&spec, &parked, &KEY);
            match deed {
                Deed::Revive => revive.await.unwrap().sandbox.close().await.unwrap(),
                // Given up, or over before that: both are meant.
                Deed::UnwantedRevive => drop(tokio::time::timeout(kind.moment(rng), revive).await),
                _ => {
                    let killed = async {
                        tokio::time::sleep(kind.moment(rng)).await;
                        kill_some(rng);
                    };
                    // What was killed decides whether it went on.
                    drop(tokio::join!(revive, killed));
                    assert!(!parked.exists(), "what went on, or could not, is used up");
                }
            }
        }
    }
    Ok(format!("{deed:?}"))
}

/// What a session by this number has.
pub(super) fn spec(folder: &Path, number: u64) -> Spec {
    Spec::new(session(u128::from(number)), folder.join("release"), "a".to_owned())
}

/// What a killed server had put aside goes on, or is refused; either way it is used up. Answers how many went on.
pub(super) async fn take_up(driver: &dyn Driver, folder: &Path) -> usize {
    let mut well = 0;
    for entry in fs::read_dir(folder.join("parked")).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let number = name.split('-').next().and_then(|number| number.parse().ok()).unwrap();
        if let Ok(revived) = driver.revive(&spec(folder, number), &entry.path(), &KEY).await {
            assert_eq!(revived.processes.len(), 1, "what was put aside runs on");
            revived.sandbox.close().await.unwrap();
            well += 1;
        }
        assert!(!entry.path().exists(), "`{name}` is used up");
    }
    well
}
