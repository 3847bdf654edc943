// SPDX-License-Identifier: Apache-2.0
//! Any stream, in any pieces: what comes out does not depend on the pieces, and memory is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tmem_abi::frame::{FRAME_MAX, FRAME_SIZE, header};
use tmem_abi::{BadFrame, FrameReader, Kind, Side};

fn read(
    side: Side,
    stream: &[u8],
    pieces: impl Iterator<Item = usize>,
) -> (Vec<(Kind, Vec<u8>)>, Option<BadFrame>) {
    let mut reader = FrameReader::new(side);
    let (mut found, mut rest) = (Vec::new(), stream);
    for piece in pieces {
        let (mut now, later) = rest.split_at(piece.min(rest.len()));
        rest = later;
        loop {
            match reader.next(&mut now) {
                Ok(Some(frame)) => {
                    assert!(frame.body.len() <= FRAME_MAX);
                    found.push((frame.kind, frame.body.to_vec()));
                }
                Ok(None) => break,
                Err(bad) => return (found, Some(bad)),
            }
        }
        assert!(now.is_empty());
        assert!(reader.held() < FRAME_SIZE + FRAME_MAX);
        if rest.is_empty() {
            break;
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[mode, size], rest)) = data.split_first_chunk() else { return };
    let side = if mode & 1 == 0 { Side::Host(*b"sixteen bytes..!") } else { Side::Guest };
    let mut stream = Vec::new();
    if mode & 2 != 0 {
        stream.extend_from_slice(&header(Kind::Sync, 16));
        stream.extend_from_slice(b"sixteen bytes..!");
    }
    // Pieces of the input, some of them made frames.
    let mut rest = rest;
    while let Some((&[kind, length], behind)) = rest.split_first_chunk() {
        let (body, later) = behind.split_at(usize::from(length).min(behind.len()));
        rest = later;
        if let Some(&kind) = Kind::ALL.get(usize::from(kind)) {
            stream.extend_from_slice(&header(kind, body.len() as u32));
        }
        stream.extend_from_slice(body);
    }
    let whole = read(side, &stream, std::iter::once(stream.len()));
    assert_eq!(whole, read(side, &stream, std::iter::repeat(1)));
    assert_eq!(whole, read(side, &stream, std::iter::repeat(usize::from(size) + 2)));
});
