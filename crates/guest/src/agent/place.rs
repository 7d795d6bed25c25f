//! Where things are.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use karta_guest::proto::message::{Base, Failure, Prepare};

use super::core::failure;
use super::mounts;

/// What this process is the first of.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// A virtual machine, with the numbers of its disks by name.
    Machine { disks: HashMap<String, u64> },
    /// Namespaces.
    Namespace,
    /// Nothing: it is an ordinary process.
    Plain { root: PathBuf, address: Ipv4Addr },
}

/// The place.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) kind: Kind,
    /// Whether the workspace is an overlay.
    pub(super) overlay: bool,
}

impl Place {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, overlay: false }
    }

    /// Whether this is a virtual machine.
    pub(super) fn machine(&self) -> bool {
        matches!(self.kind, Kind::Machine { .. })
    }

    /// Whether the root is this sandbox's own.
    pub(super) fn own(&self) -> bool {
        !matches!(self.kind, Kind::Plain { .. })
    }

    fn at(&self, path: &str) -> PathBuf {
        match &self.kind {
            Kind::Plain { root, .. } => root.join(path.trim_start_matches('/')),
            _ => PathBuf::from(path),
        }
    }

    pub(super) fn base(&self, base: Base) -> PathBuf {
        self.at(match base {
            Base::Home => "/home/agent",
            Base::Temp => "/tmp",
            Base::Work => "/workspace",
        })
    }

    pub(super) fn release(&self) -> PathBuf {
        self.at("/release")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.at("/state")
    }

    /// What the overlay has of the session's own.
    pub(super) fn upper(&self) -> PathBuf {
        self.at("/state/work/up")
    }

    /// Where the session may write.
    pub(super) fn writable(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> =
            [Base::Home, Base::Temp, Base::Work].map(|base| self.base(base)).into();
        folders.extend(["/dev", "/proc"].map(PathBuf::from));
        folders
    }

    /// The address of the services.
    pub(super) fn address(&self) -> Ipv4Addr {
        match self.kind {
            Kind::Plain { address, .. } => address,
            _ => Ipv4Addr::LOCALHOST,
        }
    }

    /// Mounts the system of a virtual machine.
    pub(super) fn prepare(&self, prepare: &Prepare) -> Result<(), Failure> {
        let Kind::Machine { disks } = &self.kind else {
            let text = "only a virtual machine mounts its system".to_owned();
            return Err(Failure { errno: 0, text });
        };
        mounts::system(disks, &prepare.base, prepare.harness.as_deref())
    }
}

/// Makes a folder with these rights, whatever the mask says; one that is there gets them.
pub(super) fn folder(path: &Path, mode: u32, owner: Option<u32>) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let done = || -> io::Result<()> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(owner) = owner {
            std::os::unix::fs::chown(path, Some(owner), Some(owner))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    done().map_err(|error| failure(&error, &format!("making the folder `{}`", path.display())))
}
