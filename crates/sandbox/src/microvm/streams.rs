//! What a machine is, on its way into sealed files and out of them: its state through a pipe, its disk without what is empty.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

use crate::sealed::{Opening, Sealing};

/// How much is moved at once.
const PIECE: usize = 1 << 20;
/// Pieces that may wait for the slower side.
const AHEAD: usize = 4;
/// The place of a piece of a disk that says that no more come.
const END: u64 = u64::MAX;

/// A pipe from somebody else to us.
pub(super) fn incoming() -> io::Result<(Receiver, OwnedFd)> {
    let (ours, theirs) = io::pipe()?;
    widen(&theirs);
    Ok((Receiver::from_owned_fd(ours.into())?, theirs.into()))
}

/// A pipe from us to somebody else.
pub(super) fn outgoing() -> io::Result<(io::PipeWriter, OwnedFd)> {
    let (theirs, ours) = io::pipe()?;
    widen(&ours);
    Ok((ours, theirs.into()))
}

fn widen(pipe: &io::PipeWriter) {
    // A narrow one is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIECE);
}

/// Seals what comes out of a pipe up to its end, at most so many bytes. What was sealed to is answered, not yet finished.
pub(super) async fn drain<W: Write + Send + 'static>(
    mut from: Receiver,
    mut to: Sealing<W>,
    most: u64,
) -> io::Result<Sealing<W>> {
    let (pieces, mut taken) = mpsc::channel::<Vec<u8>>(AHEAD);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = taken.blocking_recv() {
            to.write_all(&piece)?;
        }
        Ok(to)
    });
    let mut left = most;
    let read = async {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            while piece.len() < PIECE && from.read_buf(&mut piece).await? > 0 {}
            let whole = piece.len() >= PIECE;
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| io::Error::other("it is too much"))?;
            // If it is taken no more, writing says why.
            if pieces.send(piece).await.is_err() || !whole {
                return Ok(());
            }
        }
    };
    let read: io::Result<()> = read.await;
    drop((pieces, from));
    let written = writing.await.map_err(io::Error::other)?;
    read.and(written)
}

/// Gives what a sealed file holds into a pipe. Its end is given only when all of it was found to be as it was written; where the other side
/// wants no more of it before, the rest is looked at all the same. Blocks as long as the other side has the pipe and does not read.
pub(super) fn feed<R: Read>(mut from: Opening<R>, mut to: io::PipeWriter) -> io::Result<()> {
    let mut wanted = true;
    loop {
        let piece = from.fill()?;
        let length = piece.len();
        if length == 0 {
            return Ok(());
        }
        match to.write_all(if wanted { piece } else { &[] }) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => wanted = false,
            other => other?,
        }
        from.consume(length);
    }
}

/// Writes a disk: its length, then what is not empty, each piece with its place and its length. Ends with an error soon after it is
/// called off.
pub(super) fn write_disk(disk: &File, to: &mut impl Write, off: &AtomicBool) -> io::Result<()> {
    let length = disk.metadata()?.len();
    to.write_all(&length.to_le_bytes())?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(disk, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(disk, rustix::fs::SeekFrom::Hole(start))?.min(length);
        at = start;
        while at < end {
            if off.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let size = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let piece = &mut buffer[..size];
            disk.read_exact_at(piece, at)?;
            // Where a file system knows no holes, everything seems to be there.
            if piece.iter().any(|byte| *byte != 0) {
                to.write_all(&at.to_le_bytes())?;
                to.write_all(&(size as u64).to_le_bytes())?;
                to.write_all(piece)?;
            }
            at += size as u64;
        }
    }
    to.write_all(&END.to_le_bytes())
}

/// Reads what [`write_disk`] wrote into an empty file, which is to be of this length.
pub(super) fn read_disk(from: &mut impl Read, disk: &File, length: u64) -> io::Result<()> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it holds another disk");
    let mut number = [0; 8];
    let mut next = |from: &mut dyn Read| {
        from.read_exact(&mut number)?;
        io::Result::Ok(u64::from_le_bytes(number))
    };
    if next(from)? != length {
        return Err(damaged());
    }
    disk.set_len(length)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let at = next(from)?;
        if at == END {
            break;
        }
        let size = usize::try_from(next(from)?).map_err(|_| damaged())?;
        let fits = at.checked_add(size as u64).is_some_and(|end| end <= length);
        let piece = buffer.get_mut(..size).filter(|_| fits).ok_or_else(damaged)?;
        from.read_exact(piece)?;
        disk.write_all_at(piece, at)?;
    }
    // What follows is sealed too: only its end says that nothing is missing.
    if from.read(&mut [0])? == 0 { Ok(()) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::ParkKey;

    const KEY: ParkKey = ParkKey::new([7; 32]);

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_comes_by_a_pipe_goes_by_a_pipe() {
        for length in [0, 1, PIECE, 3 * PIECE + 5] {
            let (ours, theirs) = incoming().unwrap();
            let plain = text(length);
            let writing = plain.clone();
            let writing = tokio::task::spawn_blocking(move || File::from(theirs).write_all(&writing));
            let sealing = Sealing::begin(Vec::new(), &KEY, "state").unwrap();
            let sealed = drain(ours, sealing, length as u64).await.unwrap().finish().unwrap();
            writing.await.unwrap().unwrap();

            let (ours, theirs) = outgoing().unwrap();
            let opening = Opening::begin(io::Cursor::new(sealed.clone()), sealed.len() as u64, &KEY, "state");
            let reading = tokio::task::spawn_blocking(move || {
                let mut got = Vec::new();
                File::from(theirs).read_to_end(&mut got).map(|_| got)
            });
            tokio::task::spawn_blocking(|| feed(opening.unwrap(), ours)).await.unwrap().unwrap();
            assert!(reading.await.unwrap().unwrap() == plain, "{length}");
        }
    }

    #[tokio::test]
    async fn what_is_too_much_or_finds_no_room_is_an_error_and_the_pipe_breaks() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                // The head finds room.
                if bytes.len() < 64 { Ok(bytes.len()) } else { Err(io::ErrorKind::StorageFull.into()) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let endless = |theirs: OwnedFd| {
            tokio::task::spawn_blocking(move || {
                let mut theirs = File::from(theirs);
                while theirs.write_all(&[1; 4096]).is_ok() {}
            })
        };
        let (ours, theirs) = incoming().unwrap();
        let writing = endless(theirs);
        let sealing = Sealing::begin(io::sink(), &KEY, "state").unwrap();
        assert!(drain(ours, sealing, 5 << 20).await.unwrap_err().to_string().contains("too much"));
        writing.await.unwrap();

        let (ours, theirs) = incoming().unwrap();
        let writing = endless(theirs);
        let sealing = Sealing::begin(Full, &KEY, "state").unwrap();
        let full = drain(ours, sealing, u64::MAX).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        writing.await.unwrap();
    }

    #[test]
    fn who_wants_no_more_is_no_fault_but_damage_is() {
        let sealed = |length| {
            let mut sealing = Sealing::begin(Vec::new(), &KEY, "state").unwrap();
            sealing.write_all(&text(length)).unwrap();
            sealing.finish().unwrap()
        };
        let whole = sealed(5 * PIECE);
        let opening = |sealed: &Vec<u8>| {
            let length = sealed.len() as u64;
            Opening::begin(io::Cursor::new(sealed.clone()), length, &KEY, "state").unwrap()
        };
        let (ours, theirs) = outgoing().unwrap();
        drop(theirs);
        feed(opening(&whole), ours).unwrap();
        let mut changed = whole;
        *changed.last_mut().unwrap() ^= 1;
        let (ours, theirs) = outgoing().unwrap();
        drop(theirs);
        assert!(feed(opening(&changed), ours).is_err());
    }

    #[test]
    fn a_disk_comes_back_and_what_is_empty_takes_nothing() {
        let off = AtomicBool::new(false);
        let disk = tempfile::tempfile().unwrap();
        let length = (1 << 30) + 512;
        disk.set_len(length).unwrap();
        let places = [(0, 1), ((5 << 20) - 3, 70_000), (700 << 20, 3 << 20), (length - 512, 512)];
        for (at, size) in places {
            disk.write_all_at(&text(size), at).unwrap();
        }
        // There, but empty.
        disk.write_all_at(&vec![0; 4 << 20], 100 << 20).unwrap();
        let mut packed = Vec::new();
        write_disk(&disk, &mut packed, &off).unwrap();
        assert!(packed.len() < 8 << 20, "{}", packed.len());
        let other = tempfile::tempfile().unwrap();
        read_disk(&mut &packed[..], &other, length).unwrap();
        assert_eq!(other.metadata().unwrap().len(), length);
        assert!(other.metadata().unwrap().blocks() * 512 < 16 << 20);
        for (at, size) in places {
            let mut got = vec![0; size];
            other.read_exact_at(&mut got, at).unwrap();
            assert!(got == text(size), "{at}");
        }
        let empty = || tempfile::tempfile().unwrap();
        assert!(read_disk(&mut &packed[..], &empty(), length + 1).is_err(), "another length");
        for more in [&[0][..], &packed] {
            assert!(read_disk(&mut &[&packed, more].concat()[..], &empty(), length).is_err(), "more");
        }
        for cut in [0, 7, 8, 30, packed.len() - 8, packed.len() - 1] {
            assert!(read_disk(&mut &packed[..cut], &empty(), length).is_err(), "cut at {cut}");
        }
        for (at, size) in
            [(length, 1), (length - 1, 2), (u64::MAX - 1, 2), (0, PIECE as u64 + 1), (0, u64::MAX)]
        {
            let mut wrong = length.to_le_bytes().to_vec();
            wrong.extend_from_slice(&at.to_le_bytes());
            wrong.extend_from_slice(&size.to_le_bytes());
            wrong.extend_from_slice(&vec![1; 2 * PIECE]);
            assert!(read_disk(&mut &wrong[..], &empty(), length).is_err(), "{at} {size}");
        }
        off.store(true, Ordering::Relaxed);
        let late = write_disk(&disk, &mut Vec::new(), &off);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
