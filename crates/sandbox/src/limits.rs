//! What one isolated sandbox may use of its host, and where the drivers that isolate keep their things.

use std::path::PathBuf;

/// The limits of each isolated sandbox and the places of the drivers that make them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machines {
    /// Where what belongs to running sandboxes is kept on the host: `<data>/machines`. Nothing in it outlives its sandbox.
    pub root: PathBuf,
    /// The image that sandboxes start from: the folder of a built one. If none, virtual machines take the newest there is, and
    /// namespaces show the host's own programs.
    pub image: Option<PathBuf>,
    /// Where built images are: `<data>/images`.
    pub images: PathBuf,
    /// Memory in bytes, swap included. 4 GiB unless said otherwise.
    pub memory_bytes: u64,
    /// Processes and threads at once. 1,024 unless said otherwise.
    pub processes: u32,
    /// What a session may keep on its disk, in bytes: its home and its changes of the workspace. 10 GiB unless said otherwise.
    pub disk_bytes: u64,
    /// Processors in hundredths: 150 is one and a half. 200 unless said otherwise.
    pub cpu_hundredths: u32,
    /// Open files of one process. 8,192 unless said otherwise.
    pub open_files: u64,
    /// What `/tmp` holds, in bytes; it counts as memory. 1 GiB unless said otherwise.
    pub temp_bytes: u64,
    /// The first user and group id of the host that sandboxes use, where the server runs as root. Each takes [`SPAN`] ids, and no
    /// two sandboxes on a host have one in common: servers that share a host each need their own range. 1,879,048,192 unless said
    /// otherwise.
    pub first_id: u32,
    /// How many sandboxes there may be at once, each with its ids. 4,000 unless said otherwise.
    pub sandboxes: u32,
    /// How many virtual machines of each kind in use wait for their session, restored and running. 1 unless said otherwise.
    pub warm: u32,
    /// How many may wait altogether. 8 unless said otherwise.
    pub warm_ceiling: u32,
}

/// How many ids a sandbox takes.
pub const SPAN: u32 = 65_536;

/// A limit that a list of them can be made of: one gibibyte.
const GIB: u64 = 1 << 30;

impl Machines {
    /// The tree of the image; a folder that is no built image is a tree itself.
    pub fn tree(&self) -> Option<PathBuf> {
        let image = self.image.as_ref()?;
        let built = image.join(crate::image::MANIFEST).exists();
        Some(if built { image.join(crate::image::ROOT) } else { image.clone() })
    }

    /// The defaults, with everything under this folder.
    pub fn new(root: PathBuf) -> Self {
        Self {
            images: root.with_file_name("images"),
            root,
            image: None,
            memory_bytes: 4 * GIB,
            processes: 1024,
            disk_bytes: 10 * GIB,
            cpu_hundredths: 200,
            open_files: 8192,
            temp_bytes: GIB,
            first_id: 0x7000_0000,
            sandboxes: 4000,
            warm: 1,
            warm_ceiling: 8,
        }
    }
}
