// SPDX-License-Identifier: LGPL-2.1-only
//! The protocol's frames over a stream, whatever is below it.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use super::protocol::{HEADER, Header, Kind, PIECE};

/// Frames over a stream.
pub struct Frames<S> {
    stream: S,
    payload: Vec<u8>,
}

impl<S: Read + Write> Frames<S> {
    /// Over a stream at which a frame begins.
    pub(super) fn over(stream: S) -> Self {
        Self { stream, payload: Vec::new() }
    }

    /// The stream below.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn send(&mut self, kind: Kind, offset: u64, payload: &[u8]) -> io::Result<()> {
        debug_assert!(payload.len() <= PIECE);
        let header = Header { kind, len: payload.len() as u32, offset }.bytes();
        write_both(&mut self.stream, &header, payload)
    }

    /// Receives a frame; its payload is in [`Frames::payload`] until the next.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for what is no frame.
    pub fn receive(&mut self) -> io::Result<Header> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header)?;
        let header = Header::read(&header)?;
        let len = header.len as usize;
        if self.payload.len() < len {
            self.payload.resize(len, 0);
        }
        self.stream.read_exact(&mut self.payload[..len])?;
        Ok(header)
    }

    /// The payload of the frame that [`Frames::receive`] has just given.
    pub fn payload(&self, header: &Header) -> &[u8] {
        &self.payload[..header.len as usize]
    }

    /// The buffer that begins with the payload that [`Frames::receive`] has just given.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.payload
    }
}

/// One system call for a header and its payload, where the stream takes both.
fn write_both(stream: &mut impl Write, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let both = [IoSlice::new(header), IoSlice::new(payload)];
    let mut done = loop {
        match stream.write_vectored(&both) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => break n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    };
    if done < header.len() {
        stream.write_all(&header[done..])?;
        done = header.len();
    }
    stream.write_all(&payload[done - header.len()..])
}
