//! Archives as the kernel unpacks them into its first root: cpio in the form `newc`.

/// A file's kind and permissions.
const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const DEVICE: u32 = 0o020_000;

/// An archive that is being written. What is in it depends on nothing but what was added, in that order.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an empty folder.
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Adds a program.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE | 0o755, (0, 0), content);
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, DEVICE | 0o600, (major, minor), &[]);
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        // Kernels read whole sectors.
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        use std::io::Write as _;
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            if mode & FOLDER == FOLDER { 2 } else { 1 },
            0,
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to memory can't fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

/// The initramfs: the guest as `init`, and what it needs before it has mounted anything.
pub(super) fn initramfs(guest: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "base"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.program("init", guest);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_reads_back_field_by_field() {
        let bytes = initramfs(b"program");
        assert_eq!(bytes, initramfs(b"program"));
        assert_eq!(bytes.len() % 512, 0);
        let (mut at, mut seen) = (0, Vec::new());
        loop {
            let number = |index: usize| {
                let start = at + 6 + index * 8;
                usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, length, name) = (number(1), number(6), number(11));
            let path = std::str::from_utf8(&bytes[at + 110..at + 110 + name - 1]).unwrap().to_owned();
            let content = (at + 110 + name).next_multiple_of(4);
            if path == "TRAILER!!!" {
                break;
            }
            if path == "init" {
                assert_eq!(&bytes[content..content + length], b"program");
                assert_eq!(mode, 0o100_755);
            }
            if path == "dev/null" {
                assert_eq!((mode, number(9), number(10)), (0o020_600, 1, 3));
            }
            seen.push(path);
            at = (content + length).next_multiple_of(4);
        }
        assert_eq!(seen, ["dev", "proc", "sys", "run", "base", "dev/console", "dev/null", "init"]);
    }
}
