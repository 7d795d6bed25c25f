//! How a harness is installed: an npm package, pinned by version and integrity.

/// An npm package that carries a harness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// The version that is used when nobody says another.
    pub default_version: &'static str,
    /// The pinned tarballs of the default version, for each machine it can run on.
    pub pinned: &'static [Pinned],
    /// The licence people accept by installing it.
    pub licence: &'static str,
}

/// The tarball for one kind of machine: it holds the binary itself, so nothing of the package's scripts has to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// Rust's name of the architecture: `x86_64`.
    pub arch: &'static str,
    /// The package's name.
    pub name: &'static str,
    /// The program inside the package.
    pub program: &'static str,
    /// The package's integrity in npm's form: `sha512-…`.
    pub integrity: &'static str,
}

impl Package {
    /// The tarball for this machine.
    pub fn here(&self) -> Option<&'static Pinned> {
        self.pinned.iter().find(|pinned| pinned.arch == std::env::consts::ARCH)
    }
}
