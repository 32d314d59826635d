//! The body of a response on its way from a gRPC service.
//!
//! Owns how frames become JSON, or the bytes of a body. Never waits for anything.

use std::sync::Arc;

use outrigger_config::http::filters::transcoder::{StreamStyle, TranscodedMethod, Transcoder};

use super::http_body::{self, HttpBody};
use super::print;

/// Why a response cannot become JSON.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResponseError {
    /// A message is not what its type says.
    #[error("{0}")]
    Bad(String),
    /// It ended within a frame.
    #[error("{0}")]
    Cut(String),
}

/// Turns frames of gRPC into JSON.
#[derive(Debug)]
pub struct ResponseTranslator {
    transcoder: Arc<Transcoder>,
    method: Arc<TranscodedMethod>,
    held: Vec<u8>,
    messages: usize,
    /// Of the first body that is not JSON.
    content_type: Option<Vec<u8>>,
}

impl ResponseTranslator {
    /// A translator for responses of `method`.
    pub fn new(transcoder: &Arc<Transcoder>, method: &Arc<TranscodedMethod>) -> Self {
        Self {
            transcoder: Arc::clone(transcoder),
            method: Arc::clone(method),
            held: Vec::new(),
            messages: 0,
            content_type: None,
        }
    }

    /// Bytes that wait for the rest of a frame.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// There may be any number of messages.
    pub fn streams(&self) -> bool {
        self.method.server_streaming
    }

    /// The type of what comes out, if it is not JSON; known with the first message.
    pub fn content_type(&self) -> Option<&[u8]> {
        self.content_type.as_deref()
    }

    /// Takes a piece of the body; gives what the messages in it become.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<u8>, ResponseError> {
        if self.is_full() {
            return Ok(Vec::new());
        }
        self.held.extend_from_slice(piece);
        let mut out = Vec::new();
        let mut held = std::mem::take(&mut self.held);
        let mut taken = 0;
        while let Some(message) = first_frame(&held[taken..]) {
            taken += HEAD + message.len();
            self.message(message, &mut out)?;
            if self.is_full() {
                return Ok(out);
            }
        }
        held.drain(..taken);
        self.held = held;
        Ok(out)
    }

    /// The body has ended; gives what ends it.
    pub fn finish(&mut self) -> Result<Vec<u8>, ResponseError> {
        if self.is_full() || self.method.raw_output.is_some() {
            return Ok(Vec::new());
        }
        match self.held.get(1..HEAD) {
            _ if self.held.is_empty() => {}
            None => return Err(ResponseError::Cut("Incomplete gRPC frame header received".to_owned())),
            Some(length) => {
                let expected = length.iter().fold(0, |length, byte| length << 8 | u32::from(*byte));
                let actual = self.held.len() - HEAD;
                return Err(ResponseError::Cut(format!(
                    "Incomplete gRPC frame expected size: {expected} actual size: {actual}"
                )));
            }
        }
        let is_array = self.method.server_streaming && self.transcoder.printing.stream == StreamStyle::Array;
        Ok(match (is_array, self.messages) {
            (false, _) => Vec::new(),
            (true, 0) => b"[]".to_vec(),
            (true, _) => b"]".to_vec(),
        })
    }

    /// One message is all that is wanted, and it was there.
    fn is_full(&self) -> bool {
        !self.method.server_streaming && self.messages > 0
    }

    fn message(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), ResponseError> {
        if let Some(path) = &self.method.raw_output {
            if message.is_empty() {
                return Ok(());
            }
            let found = http_body::find(message, &path.0);
            let HttpBody { content_type, mut data } = found.map_err(|error| ResponseError::Bad(error.to_string()))?;
            self.messages += 1;
            self.content_type.get_or_insert(content_type);
            out.append(&mut data);
            return Ok(());
        }
        let printing = self.transcoder.printing;
        let text = print::print(&self.transcoder.schema, printing, self.method.output, message)
            .map_err(|error| ResponseError::Bad(error.to_string()))?;
        let (before, after): (&[u8], &[u8]) = match (self.method.server_streaming, printing.stream) {
            (false, _) => (b"", b""),
            (true, StreamStyle::Events) => (b"data: ", b"\n\n"),
            (true, StreamStyle::Lines) => (b"", b"\n"),
            (true, StreamStyle::Array) if self.messages == 0 => (b"[", b""),
            (true, StreamStyle::Array) => (b",", b""),
        };
        self.messages += 1;
        out.extend_from_slice(before);
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(after);
        Ok(())
    }
}

/// The message of the first frame.
fn first_frame(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    // Whether it is compressed nobody looks at: such a message is none.
    let [_, length @ ..] = *head;
    rest.get(..u32::from_be_bytes(length) as usize)
}

/// A flag and four bytes of length.
const HEAD: usize = 5;
