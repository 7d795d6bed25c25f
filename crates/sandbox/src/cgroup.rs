//! Control groups: what a sandbox may use, held by the kernel; and a way to stop and to end everything in it.
//!
//! Both versions are served. Of the first, each controller has its own tree, and the sandboxes are under `karta` at its root. Of
//! the second there is one tree: where the server is alone in its own group (a service or container to which that group was
//! delegated) the sandboxes are under that, else under `karta` at the tree's root.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::Error;

/// The group above all sandboxes.
const PARENT: &str = "karta";

/// The group that the server moves into where it must not stay beside those of the sandboxes.
const SERVER: &str = "karta.server";

/// How long the kernel may take to stop or to let go of what a group holds: so many waits of that long.
const WAITS: u32 = 400;
const WAIT: Duration = Duration::from_millis(5);

/// The accounting period of processor time, in microseconds.
const PERIOD: u64 = 100_000;

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Bytes, swap included.
    pub(crate) memory: u64,
    /// Processes and threads.
    pub(crate) processes: u32,
    /// Hundredths of a processor.
    pub(crate) cpu: u32,
}

/// The host's control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree {
    /// The first version: the roots of the controllers' trees.
    First { memory: PathBuf, pids: PathBuf, cpu: Option<PathBuf>, freezer: Option<PathBuf> },
    /// The second version: the root of the tree, and the server's own group in it.
    Second { root: PathBuf, own: PathBuf },
}

/// One sandbox's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    tree: Tree,
    folders: Vec<PathBuf>,
    freezer: Option<PathBuf>,
}

impl Tree {
    /// Looks for them.
    pub(crate) fn find() -> Result<Self, Error> {
        let read = |path: &'static str| {
            fs::read_to_string(path).map_err(|source| Error::File {
                doing: "reading",
                path: path.into(),
                source,
            })
        };
        Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, &|path| {
            fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
        })
    }

    /// Reads the mounts and the memberships of a process.
    fn parse(mounts: &str, memberships: &str, controllers: &dyn Fn(&Path) -> String) -> Result<Self, Error> {
        let mut trees: Vec<(BTreeSet<String>, PathBuf)> = Vec::new();
        let mut second = None;
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let mut fields = before.split(' ').skip(3);
            let (Some(top), Some(place)) = (fields.next(), fields.next()) else { continue };
            let mut kinds = after.split(' ');
            match kinds.next() {
                Some("cgroup") => {
                    let options = kinds.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
                    trees.push((options, PathBuf::from(place)));
                }
                Some("cgroup2") => second = second.or_else(|| Some((top.to_owned(), PathBuf::from(place)))),
                _ => {}
            }
        }
        let of = |controller: &str| {
            trees.iter().find(|(options, _)| options.contains(controller)).map(|(_, place)| place.clone())
        };
        if let (Some(memory), Some(pids)) = (of("memory"), of("pids")) {
            return Ok(Self::First { memory, pids, cpu: of("cpu"), freezer: of("freezer") });
        }
        if let Some((top, root)) = second {
            let there = controllers(&root);
            let there: BTreeSet<_> = there.split_whitespace().collect();
            if there.contains("memory") && there.contains("pids") {
                let own = memberships.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
                let own = Path::new(own).strip_prefix(&top).unwrap_or_else(|_| Path::new("")).to_owned();
                return Ok(Self::Second { own: root.join(own), root });
            }
        }
        Err(Error::Unavailable(
            "no control groups that limit memory and processes are mounted here; mount them with `mount -t cgroup2 none \
             /sys/fs/cgroup`"
                .to_owned(),
        ))
    }

    /// Whether groups can be made.
    pub(crate) fn probe(&self) -> Result<(), Error> {
        let group = self.group(&format!("probe-{}", std::process::id()))?;
        let made = group.folders.iter().try_for_each(|folder| {
            fs::create_dir_all(folder).map_err(at("making the control group", folder))
        });
        group.remove();
        made
    }

    /// Makes a group with its limits.
    pub(crate) fn create(&self, name: &str, quota: Quota) -> Result<Group, Error> {
        let group = self.group(name)?;
        let made = group.folders.iter().try_for_each(|folder| {
            fs::create_dir_all(folder).map_err(at("making the control group", folder))
        });
        if let Err(error) = made.and_then(|()| group.limit(quota)) {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }

    /// The group of this name, whether or not it is there.
    fn group(&self, name: &str) -> Result<Group, Error> {
        let under = |root: &PathBuf| root.join(PARENT).join(name);
        let (folders, freezer) = match self {
            Self::First { memory, pids, cpu, freezer } => {
                let folders: BTreeSet<_> = [Some(memory), Some(pids), cpu.as_ref(), freezer.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(under)
                    .collect();
                (folders.into_iter().collect(), freezer.as_ref().map(under))
            }
            Self::Second { .. } => {
                let folder = self.delegated()?.join(name);
                (vec![folder.clone()], Some(folder))
            }
        };
        Ok(Group { tree: self.clone(), folders, freezer })
    }

    /// The groups of sandboxes whose names begin so.
    pub(crate) fn found(&self, prefix: &str) -> Vec<(String, Group)> {
        let parents: Vec<PathBuf> = match self {
            Self::First { memory, pids, cpu, freezer } => {
                [Some(memory), Some(pids), cpu.as_ref(), freezer.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(|root| root.join(PARENT))
                    .collect()
            }
            Self::Second { .. } => self.delegated().into_iter().collect(),
        };
        let names: BTreeSet<String> = parents
            .iter()
            .filter_map(|parent| fs::read_dir(parent).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.into_iter().filter_map(|name| self.group(&name).ok().map(|group| (name, group))).collect()
    }

    /// For the second version: the group that holds those of the sandboxes, its limits switched on.
    fn delegated(&self) -> Result<PathBuf, Error> {
        let Self::Second { root, own } = self else {
            return Err(Error::Unavailable("these control groups have no tree of their own".to_owned()));
        };
        // A server that has moved before finds itself in the group it moved to.
        let own = if own.ends_with(SERVER) { own.parent().unwrap_or(own) } else { own };
        let mut failed = None;
        for base in [own, root] {
            let parent = base.join(PARENT);
            if switched_on(&parent) {
                return Ok(parent);
            }
            match prepare(base, &parent, base == root.as_path()) {
                Ok(()) => return Ok(parent),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let why = failed.map_or_else(String::new, |error| format!(" ({error})"));
        Err(Error::Unavailable(format!(
            "no control group was delegated to the server{why}: run it as a service with `Delegate=yes`, or by `systemd-run \
             --user --scope -p Delegate=yes karta serve`, or as root"
        )))
    }
}

/// Whether the groups below this one can be limited.
fn switched_on(parent: &Path) -> bool {
    let on = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
    let on: BTreeSet<_> = on.split_whitespace().collect();
    on.contains("memory") && on.contains("pids")
}

/// Switches limits on below `base`, which may be the root of the tree, and makes `parent` there.
fn prepare(base: &Path, parent: &Path, root: bool) -> io::Result<()> {
    let switch = |folder: &Path| {
        let control = folder.join("cgroup.subtree_control");
        fs::write(&control, "+memory +pids")?;
        // Time of the processors can be shared without it, only not limited.
        let _ = fs::write(&control, "+cpu");
        Ok::<(), io::Error>(())
    };
    if !switched_on(base) {
        let myself = std::process::id().to_string();
        let there = fs::read_to_string(base.join("cgroup.procs"))?;
        let alone = there.split_whitespace().all(|process| process == myself);
        if !root && !alone {
            return Err(io::Error::other("other processes are in the server's own group"));
        }
        // A group with processes of its own can't limit others below it, unless it is the first of all. The server leaves it.
        match switch(base) {
            Err(_) if alone => {
                let server = base.join(SERVER);
                fs::create_dir_all(&server)?;
                fs::write(server.join("cgroup.procs"), &myself)?;
                switch(base)?;
            }
            other => other?,
        }
    }
    fs::create_dir_all(parent)?;
    switch(parent)
}

impl Group {
    /// Its folders, one for each tree: what a process joins.
    pub(crate) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    fn limit(&self, quota: Quota) -> Result<(), Error> {
        let write = |folder: Option<&PathBuf>, file: &str, text: String| {
            let Some(folder) = folder else { return Ok(()) };
            let path = folder.join(file);
            fs::write(&path, text).map_err(at("limiting by", &path))
        };
        let under = |root: Option<&PathBuf>| {
            root.and_then(|root| self.folders.iter().find(|folder| folder.starts_with(root)))
        };
        let time = PERIOD * u64::from(quota.cpu) / 100;
        match &self.tree {
            Tree::First { memory, pids, cpu, .. } => {
                let (memory, cpu) = (under(Some(memory)), under(cpu.as_ref()));
                write(memory, "memory.limit_in_bytes", quota.memory.to_string())?;
                optional(write(memory, "memory.memsw.limit_in_bytes", quota.memory.to_string()))?;
                write(under(Some(pids)), "pids.max", quota.processes.to_string())?;
                optional(write(cpu, "cpu.cfs_period_us", PERIOD.to_string()))?;
                optional(write(cpu, "cpu.cfs_quota_us", time.to_string()))
            }
            Tree::Second { .. } => {
                let folder = self.folders.first();
                write(folder, "memory.max", quota.memory.to_string())?;
                optional(write(folder, "memory.swap.max", "0".to_owned()))?;
                write(folder, "pids.max", quota.processes.to_string())?;
                optional(write(folder, "cpu.max", format!("{time} {PERIOD}")))
            }
        }
    }

    /// Lets every process of the group go on.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        let Some(folder) = &self.freezer else { return Ok(()) };
        let (file, text) = match self.tree {
            Tree::First { .. } => ("freezer.state", "THAWED"),
            Tree::Second { .. } => ("cgroup.freeze", "0"),
        };
        let path = folder.join(file);
        match fs::write(&path, text) {
            // What is gone needs no thawing.
            Err(error) if !folder.exists() || error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(at("waking by", &path)),
        }
    }

    /// The processes in it, as the host counts.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        self.folders
            .iter()
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>())
            .filter(|process| *process > 0)
            .collect()
    }

    /// Ends every process in it and removes it. Answers whether nothing of it is left.
    pub(crate) fn remove(&self) -> bool {
        for _ in 0..WAITS {
            for folder in &self.folders {
                let _ = fs::write(folder.join("cgroup.kill"), "1");
            }
            for process in self.processes() {
                if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                    let _ = rustix::process::kill_process(process, Signal::KILL);
                }
            }
            // The first version can't end what is stopped.
            let _ = self.thaw();
            let left = self.folders.iter().any(|folder| match fs::remove_dir(folder) {
                Ok(()) => false,
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            });
            if !left {
                return true;
            }
            std::thread::sleep(WAIT);
        }
        false
    }
}

/// A limit that not every kernel has.
fn optional(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::File { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
                || source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { memory: 1 << 30, processes: 100, cpu: 150 };
    const FIRST: &str = "\
        30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 30 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        35 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";

    #[test]
    fn the_trees_of_the_first_version_are_found_beside_an_empty_second() {
        let tree = Tree::parse(FIRST, "4:memory:/x\n0::/\n", &|_| String::new()).unwrap();
        let at = |name: &str| Path::new("/sys/fs/cgroup").join(name);
        assert_eq!(
            tree,
            Tree::First {
                memory: at("memory"),
                pids: at("pids"),
                cpu: Some(at("cpu,cpuacct")),
                freezer: None
            }
        );
        let group = tree.group("x").unwrap();
        assert_eq!(group.folders(), [at("cpu,cpuacct/karta/x"), at("memory/karta/x"), at("pids/karta/x")]);
    }

    #[test]
    fn without_any_the_reason_says_what_to_do() {
        for mounts in ["", "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "x - y\n - \n", "garbage"]
        {
            let error = Tree::parse(mounts, "", &|_| "cpu io".to_owned()).unwrap_err().to_string();
            assert!(error.contains("mount -t cgroup2"), "{error}");
        }
    }

    /// A tree of the second version as a folder with what the kernel would have in it.
    struct Fake {
        folder: tempfile::TempDir,
    }

    impl Fake {
        /// With these processes in the server's group.
        fn new(own: &str, processes: &str) -> (Self, Tree) {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            let mounts = format!("31 30 0:27 / {} rw,nosuid - cgroup2 cgroup2 rw\n", root.display());
            fs::write(root.join("cgroup.procs"), "1\n2\n").unwrap();
            let group = root.join(own);
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("cgroup.procs"), processes).unwrap();
            let tree =
                Tree::parse(&mounts, &format!("0::/{own}\n"), &|_| "cpu memory pids".to_owned()).unwrap();
            assert_eq!(tree, Tree::Second { root: root.to_owned(), own: group });
            (Self { folder }, tree)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.folder.path().join(path)).unwrap_or_default()
        }
    }

    #[test]
    fn a_delegated_group_of_the_second_version_gets_those_of_the_sandboxes() {
        // What the kernel would already have switched on for a group that was delegated with its controllers.
        let myself = format!("{}\n", std::process::id());
        let (fake, tree) = Fake::new("system.slice/karta.service", &myself);
        let group = tree.create("one", QUOTA).unwrap();
        let place = "system.slice/karta.service/karta/one";
        assert_eq!(group.folders(), [fake.folder.path().join(place)]);
        assert_eq!(fake.read(&format!("{place}/memory.max")), "1073741824");
        assert_eq!(fake.read(&format!("{place}/memory.swap.max")), "0");
        assert_eq!(fake.read(&format!("{place}/pids.max")), "100");
        assert_eq!(fake.read(&format!("{place}/cpu.max")), "150000 100000");
        let found: Vec<_> = tree.found("o").into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, ["one"]);
        assert!(tree.found("x").is_empty());
    }

    #[test]
    fn a_server_with_company_uses_the_root_of_the_tree() {
        let (fake, tree) = Fake::new("user.slice/session-1.scope", "1\n2\n");
        let group = tree.create("one", QUOTA).unwrap();
        assert_eq!(group.folders(), [fake.folder.path().join("karta/one")]);
        // Nobody else was moved.
        assert!(!fake.folder.path().join("user.slice/session-1.scope").join(SERVER).exists());
    }

    #[test]
    fn freezing_waits_until_everything_stands_still() {
        let (fake, tree) = Fake::new("karta.service", &format!("{}\n", std::process::id()));
        let group = tree.create("one", QUOTA).unwrap();
        let folder = fake.folder.path().join("karta.service/karta/one");
        fs::write(folder.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        group.thaw().unwrap();
        assert_eq!(fs::read_to_string(folder.join("cgroup.freeze")).unwrap(), "0");
        fs::write(folder.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        fs::write(folder.join("cgroup.procs"), "0\nx\n").unwrap();
        assert!(group.processes().is_empty());
    }
}
