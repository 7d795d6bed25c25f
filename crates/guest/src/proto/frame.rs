//! Frames: a header of 17 bytes (payload's length, kind, stream, generation) and a payload.

use super::CHUNK;
use super::wire::Malformed;

/// The bytes before a payload.
pub const HEADER: usize = 17;
/// Most bytes of a payload that opens a stream: arguments and environment of a program go there.
pub const OPEN: usize = 1 << 20;
/// Most bytes of an answer: an error's text above all.
pub const ANSWER: usize = 8 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The guest is there: [`super::message::Hello`]. Stream 0.
    Hello,
    /// Opens a stream: [`super::message::Request`] from the host, [`super::message::Accepted`] from the guest.
    Open,
    /// What became of a request.
    Answer,
    /// Bytes of a stream.
    Data,
    /// No more bytes come. The payload, one byte, is 1 if the stream broke.
    Eof,
    /// So many bytes more may be sent: a number of four bytes.
    Credit,
    /// No more bytes are wanted: what comes is thrown away.
    Stop,
    /// A signal for a process: one byte.
    Signal,
    /// A process has ended: [`super::message::Ended`].
    Exit,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Hello,
        Self::Open,
        Self::Answer,
        Self::Data,
        Self::Eof,
        Self::Credit,
        Self::Stop,
        Self::Signal,
        Self::Exit,
    ];

    fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Open => 2,
            Self::Answer => 3,
            Self::Data => 4,
            Self::Eof => 5,
            Self::Credit => 6,
            Self::Stop => 7,
            Self::Signal => 8,
            Self::Exit => 9,
        }
    }

    /// The fewest and the most bytes its payload may have.
    fn room(self) -> (usize, usize) {
        match self {
            Self::Hello => (0, 1024),
            Self::Open => (1, OPEN),
            Self::Answer => (1, ANSWER),
            Self::Data => (1, CHUNK),
            Self::Eof | Self::Signal => (1, 1),
            Self::Credit => (4, 4),
            Self::Stop => (0, 0),
            Self::Exit => (5, 5),
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The stream it belongs to.
    pub stream: u32,
    /// The generation of the machine it belongs to.
    pub generation: u64,
    /// What it says.
    pub payload: Vec<u8>,
}

/// Writes a frame to the end of `out`. A payload that its kind has no room for is a mistake of the caller: nothing is written.
pub fn encode(
    out: &mut Vec<u8>,
    kind: Kind,
    stream: u32,
    generation: u64,
    payload: &[u8],
) -> Result<(), Malformed> {
    let (fewest, most) = kind.room();
    if payload.len() < fewest || payload.len() > most {
        return Err(Malformed("a frame is too long"));
    }
    let length = u32::try_from(payload.len()).map_err(|_| Malformed("a frame is too long"))?;
    out.reserve(HEADER + payload.len());
    out.extend(length.to_le_bytes());
    out.push(kind.code());
    out.extend(stream.to_le_bytes());
    out.extend(generation.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Makes frames of bytes that come in any pieces. Holds at most one frame and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
}

impl Decoder {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame; none if more bytes are needed. After an error the rest means nothing.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some(header) = self.bytes[self.start..].first_chunk::<HEADER>() else { return Ok(None) };
        let [l0, l1, l2, l3, code, s0, s1, s2, s3, generation @ ..] = *header;
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.code() == code)
            .ok_or(Malformed("a frame is of no known kind"))?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let (fewest, most) = kind.room();
        if length < fewest || length > most {
            return Err(Malformed("a frame has a length its kind can't have"));
        }
        let begin = self.start + HEADER;
        let Some(payload) = self.bytes.get(begin..begin + length) else { return Ok(None) };
        let frame = Frame {
            kind,
            stream: u32::from_le_bytes([s0, s1, s2, s3]),
            generation: u64::from_le_bytes(generation),
            payload: payload.to_vec(),
        };
        self.start = begin + length;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            // A long frame is rare: its room is given back.
            self.bytes.shrink_to(4 * CHUNK);
        }
        Ok(Some(frame))
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.bytes.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        (0..Kind::ALL.len(), any::<u32>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(
            |(kind, stream, generation, mut payload)| {
                let kind = Kind::ALL[kind];
                let (fewest, most) = kind.room();
                payload.resize(payload.len().clamp(fewest, most), 7);
                Frame { kind, stream, generation, payload }
            },
        )
    }

    proptest! {
        #[test]
        fn frames_come_back_whatever_the_pieces(
            frames in prop::collection::vec(frames(), 0..12),
            cuts in prop::collection::vec(1usize..900, 1..40),
        ) {
            let mut bytes = Vec::new();
            for frame in &frames {
                encode(&mut bytes, frame.kind, frame.stream, frame.generation, &frame.payload).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut back = Vec::new();
            let mut cuts = cuts.iter().cycle();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = later;
                decoder.push(now);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    back.push(frame);
                }
            }
            prop_assert_eq!(back, frames);
            prop_assert_eq!(decoder.held(), 0);
        }

        #[test]
        fn no_bytes_make_it_panic_or_hold_more_than_a_frame(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40),
        ) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(frame)) => prop_assert!(frame.payload.len() <= OPEN),
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.held() < HEADER + OPEN);
            }
        }
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_are_waited_for() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.push(Kind::Data.code());
        bytes.extend([0; 12]);
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert!(decoder.next_frame().is_err());
    }
}
