//! The guest kernel: taken out of a library that carries one, and put into the form that virtual machines start.
//!
//! The library is a plain ELF file with one symbol that is the kernel's memory, ready to run, as it lies at its load address. The
//! kernel says itself where it is entered when it is started by a virtual machine (the note of type 18 of "Xen", which the PVH
//! boot protocol uses). So a file header, that note and the memory make a kernel that QEMU and others start directly.

use std::path::Path;
use std::time::Duration;

use super::tool::{Need, Tool};
use super::{Error, at, digest};

/// The package that has it.
const PACKAGE: &str = "microsandbox==0.7.11";
/// The SHA-256 of its file for x86-64.
const SHA256: &str = "65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0";
/// Where in the package the library is.
const FOLDER: &str = "microsandbox/_bundled/lib";
/// What its name begins with; the version follows.
const LIBRARY: &str = "libkrunfw.so";
/// The symbol that is the kernel.
const SYMBOL: &[u8] = b"KERNEL_BUNDLE";
/// Where a kernel for x86-64 lies that was built with the default physical start.
const LOAD: u64 = 0x100_0000;
/// No kernel is longer, nor a library that has one.
const LONGEST: u64 = 256 << 20;
/// 48 MB on a slow line.
const PATIENCE: Duration = Duration::from_mins(15);
/// What fetches the package.
const PYTHON: Need =
    Need { program: "python3", purpose: "the guest kernel is fetched by pip", package: "python3-pip" };

/// What the kernel is taken from, for the manifest.
pub(super) fn source(own: Option<&Path>) -> Result<String, Error> {
    match own {
        Some(path) => Ok(format!("sha256:{}", digest::hex(&digest::file(path)?))),
        None => Ok(format!("{PACKAGE} sha256:{SHA256}")),
    }
}

/// Fetches the package into `work` and writes the kernel to `kernel`.
pub(super) async fn fetch(work: &Path, kernel: &Path) -> Result<(), Error> {
    let wanted = work.join("requirements.txt");
    let line = format!("{PACKAGE} --hash=sha256:{SHA256}\n");
    tokio::fs::write(&wanted, line).await.map_err(at("writing", &wanted))?;
    let target = work.join("package");
    let pip = Tool::new(PYTHON)?
        .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--no-deps", "--no-compile", "--only-binary", ":all:", "--require-hashes"])
        .args(["--platform", "manylinux_2_28_x86_64", "--python-version", "3.12"])
        .args(["--implementation", "cp", "--abi", "abi3", "--root-user-action", "ignore"])
        .arg("--target")
        .arg(&target)
        .arg("--requirement")
        .arg(&wanted)
        .folder(work);
    pip.run("fetching the guest kernel by pip", PATIENCE).await.map_err(|error| match error {
        Error::Tool { doing, said } if said.contains("No module named pip") => Error::Tool {
            doing,
            said: "pip is missing; install it: `apt-get install python3-pip`".to_owned(),
        },
        other => other,
    })?;
    let kernel = kernel.to_owned();
    super::build::blocking(move || {
        let folder = target.join(FOLDER);
        let mut libraries: Vec<_> = std::fs::read_dir(&folder)
            .map_err(at("reading", &folder))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LIBRARY)))
            .collect();
        libraries.sort();
        let library = libraries.pop().ok_or_else(|| Error::Kernel {
            path: folder.clone(),
            why: "the package has no such library any more",
        })?;
        let bytes = read(&library)?;
        let wrapped = symbol(&bytes).and_then(wrap).map_err(|why| Error::Kernel { path: library, why })?;
        std::fs::write(&kernel, wrapped).map_err(at("writing", &kernel))
    })
    .await
}

/// Puts a kernel of the caller's own in place, if it is one that can be started directly.
pub(super) fn take(own: &Path, kernel: &Path) -> Result<(), Error> {
    let bytes = read(own)?;
    startable(&bytes).map_err(|why| Error::Kernel { path: own.to_owned(), why })?;
    std::fs::write(kernel, bytes).map_err(at("writing", kernel))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let length = std::fs::metadata(path).map_err(at("reading", path))?.len();
    if length > LONGEST {
        return Err(Error::Kernel { path: path.to_owned(), why: "it is longer than 256 MiB" });
    }
    std::fs::read(path).map_err(at("reading", path))
}

type Wrong = &'static str;

/// A number of so many bytes at a place, if there are as many.
fn number(bytes: &[u8], at: u64, width: usize) -> Result<u64, Wrong> {
    let part = slice(bytes, at, width as u64)?;
    Ok(part.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

fn slice(bytes: &[u8], at: u64, length: u64) -> Result<&[u8], Wrong> {
    let short = "it is cut short";
    let start = usize::try_from(at).map_err(|_| short)?;
    let length = usize::try_from(length).map_err(|_| short)?;
    bytes.get(start..).and_then(|rest| rest.get(..length)).ok_or(short)
}

/// Checks that these bytes are an ELF file of x86-64 with 64 bits.
fn elf(bytes: &[u8]) -> Result<(), Wrong> {
    let ident = slice(bytes, 0, 20)?;
    if ident.get(..6) != Some(b"\x7fELF\x02\x01") || number(bytes, 18, 2)? != 62 {
        return Err("it is no ELF file for x86-64; a compressed kernel (bzImage) can't be started directly");
    }
    Ok(())
}

/// The headers of a table: where each begins.
fn table(bytes: &[u8], at: u64, size: u64, count: u64, least: u64) -> Result<Vec<u64>, Wrong> {
    if size < least || count > 4096 {
        return Err("its tables make no sense");
    }
    (0..count)
        .map(|index| {
            let start =
                index.checked_mul(size).and_then(|offset| at.checked_add(offset)).ok_or("it is cut short")?;
            slice(bytes, start, size).map(|_| start)
        })
        .collect()
}

fn segments(bytes: &[u8]) -> Result<Vec<u64>, Wrong> {
    table(bytes, number(bytes, 32, 8)?, number(bytes, 54, 2)?, number(bytes, 56, 2)?, 56)
}

/// The bytes of the symbol in a library.
fn symbol(bytes: &[u8]) -> Result<&[u8], Wrong> {
    elf(bytes)?;
    let sections = table(bytes, number(bytes, 40, 8)?, number(bytes, 58, 2)?, number(bytes, 60, 2)?, 64)?;
    for section in &sections {
        // The table of symbols that are known to the outside; its link names the section with their names.
        if number(bytes, section + 4, 4)? != 11 {
            continue;
        }
        let (at, size) = (number(bytes, section + 24, 8)?, number(bytes, section + 32, 8)?);
        let link = usize::try_from(number(bytes, section + 40, 4)?).map_err(|_| "it is cut short")?;
        let names = *sections.get(link).ok_or("its tables make no sense")?;
        let names = slice(bytes, number(bytes, names + 24, 8)?, number(bytes, names + 32, 8)?)?;
        for entry in table(bytes, at, 24, size / 24, 24)? {
            let name = slice(names, number(bytes, entry, 4)?, SYMBOL.len() as u64 + 1);
            let ours = name.is_ok_and(|name| name.strip_suffix(&[0]) == Some(SYMBOL));
            if ours {
                return mapped(bytes, number(bytes, entry + 8, 8)?, number(bytes, entry + 16, 8)?);
            }
        }
    }
    Err("it has no symbol `KERNEL_BUNDLE`")
}

/// What a library has at an address once it is loaded.
fn mapped(bytes: &[u8], address: u64, length: u64) -> Result<&[u8], Wrong> {
    for segment in segments(bytes)? {
        let (offset, start, size) = (
            number(bytes, segment + 8, 8)?,
            number(bytes, segment + 16, 8)?,
            number(bytes, segment + 32, 8)?,
        );
        let inside = address
            .checked_sub(start)
            .filter(|inside| inside.checked_add(length).is_some_and(|end| end <= size));
        if let Some(inside) = inside.filter(|_| number(bytes, segment, 4) == Ok(1)) {
            return slice(bytes, offset.checked_add(inside).ok_or("it is cut short")?, length);
        }
    }
    Err("its symbol `KERNEL_BUNDLE` is in no part that is loaded")
}

/// The note that says where a virtual machine enters: sizes of name and content, type, name.
const NOTE: &[u8; 16] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
/// Where the memory begins in the finished file.
const OFFSET: u64 = 0x1000;

/// Makes a kernel's memory a file that is started directly.
fn wrap(memory: &[u8]) -> Result<Vec<u8>, Wrong> {
    let whole = u64::try_from(memory.len()).map_err(|_| "it is too long")? & !0xfff;
    let entry = entry(memory)?;
    if !(LOAD..LOAD + whole).contains(&entry) {
        return Err("it is entered outside its own memory: it was built for another place");
    }
    let mut file = Vec::with_capacity(memory.len() + 0x2000);
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (value, width) in [
        // An executable, for x86-64, version 1.
        (2, 2),
        (62, 2),
        (1, 4),
        (entry, 8),
        // The table of segments follows; there are no sections, no flags.
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (2, 2),
        (64, 2),
        (0, 2),
        (0, 2),
        // What is loaded: all of it, readable, writable, executable.
        (1, 4),
        (7, 4),
        (OFFSET, 8),
        (LOAD, 8),
        (LOAD, 8),
        (whole, 8),
        (whole, 8),
        (0x1000, 8),
        // The note.
        (4, 4),
        (4, 4),
        (176, 8),
        (0, 8),
        (0, 8),
        (24, 8),
        (24, 8),
        (4, 8),
    ] {
        file.extend(u64::to_le_bytes(value).iter().take(width));
    }
    file.extend_from_slice(NOTE);
    file.extend_from_slice(&entry.to_le_bytes());
    file.resize(usize::try_from(OFFSET).unwrap_or(4096), 0);
    file.extend_from_slice(slice(memory, 0, whole)?);
    startable(&file).map(|()| file)
}

/// Where a virtual machine enters, as the kernel's own note says.
fn entry(memory: &[u8]) -> Result<u64, Wrong> {
    let mut found = memory
        .chunks_exact(4)
        .enumerate()
        .map(|(index, _)| index * 4)
        .filter(|at| memory[*at..].starts_with(NOTE));
    match (found.next(), found.next()) {
        (Some(at), None) => number(memory, at as u64 + 16, 8),
        (Some(_), Some(_)) => Err("it has more than one note of where it is entered"),
        (None, _) => Err("it has no note of where a virtual machine enters: it was built without PVH"),
    }
}

/// Whether QEMU can start this file directly.
fn startable(bytes: &[u8]) -> Result<(), Wrong> {
    elf(bytes)?;
    for segment in segments(bytes)? {
        if number(bytes, segment, 4)? != 4 {
            continue;
        }
        let notes = slice(bytes, number(bytes, segment + 8, 8)?, number(bytes, segment + 32, 8)?)?;
        if notes.chunks_exact(4).enumerate().any(|(index, _)| notes[index * 4..].starts_with(NOTE)) {
            return Ok(());
        }
    }
    Err("it has no note of where a virtual machine enters: it was built without PVH")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn memory(entry: u64) -> Vec<u8> {
        let mut memory = vec![0x90; 0x3000];
        memory[0x1204..0x1214].copy_from_slice(NOTE);
        memory[0x1214..0x121c].copy_from_slice(&entry.to_le_bytes());
        memory
    }

    #[test]
    fn memory_becomes_a_kernel_that_starts() {
        let file = wrap(&memory(LOAD + 0x40)).unwrap();
        assert_eq!(startable(&file), Ok(()));
        assert_eq!(number(&file, 24, 8), Ok(LOAD + 0x40));
        assert_eq!(file.len(), 0x4000);
        assert!(wrap(&memory(LOAD - 1)).is_err());
        assert!(wrap(&memory(LOAD + 0x3000)).is_err());
        assert!(wrap(&vec![0; 0x3000]).is_err());
        let mut twice = memory(LOAD);
        twice.extend(memory(LOAD));
        assert!(wrap(&twice).is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_fall(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), header in any::<bool>()) {
            if header && bytes.len() > 20 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
                bytes[18..20].copy_from_slice(&[62, 0]);
            }
            let _ = symbol(&bytes);
            let _ = startable(&bytes);
            let _ = wrap(&bytes);
        }

        #[test]
        fn a_damaged_kernel_makes_it_fall_neither(at in 0usize..0x200, value in any::<u8>()) {
            let mut file = wrap(&memory(LOAD)).unwrap();
            file[at] = value;
            let _ = startable(&file);
            let _ = symbol(&file);
        }
    }
}
