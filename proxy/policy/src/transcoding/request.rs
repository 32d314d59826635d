//! The body of a request on its way to a gRPC service.
//!
//! Owns which messages a body becomes, and when. Never waits for anything.

use std::sync::Arc;

use outrigger_config::http::filters::transcoder::{HttpBodyPath, TranscodedMethod, Transcoder};

use super::json::{Json, JsonParser, Wanted};
use super::paths::{Call, Captured};
use super::weave::Bindings;
use super::{encode, frame, http_body};

/// Why a body cannot become messages.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// It says something that it cannot.
    #[error("{0}")]
    Bad(String),
    /// What has to be held of it is more than the limit.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
}

/// Turns a body into frames of gRPC.
#[derive(Debug)]
pub struct RequestTranslator {
    transcoder: Arc<Transcoder>,
    method: Arc<TranscodedMethod>,
    place: usize,
    limit: usize,
    /// What waits for the rest of a message, in bytes of the body.
    waiting: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Json { parser: JsonParser, bindings: Bindings, begun: bool },
    Raw(Raw),
}

/// A body whose bytes are a field.
#[derive(Debug)]
struct Raw {
    path: HttpBodyPath,
    /// The rest of the first message.
    first: Vec<u8>,
    content_type: Vec<u8>,
    captured: Captured,
    held: Vec<u8>,
    sent: bool,
}

impl RequestTranslator {
    /// A translator for what `call` has found. What cannot be held in `limit` bytes is refused.
    pub fn new(
        transcoder: &Arc<Transcoder>,
        call: Call<'_>,
        content_type: &[u8],
        limit: usize,
    ) -> Result<Self, RequestError> {
        let method = Arc::clone(&call.rule.method);
        let form = match &method.raw_input {
            Some(path) => {
                let fields = call.bindings.weave(wrapped(&call.rule.body, Json::Object(Vec::new())), &mut |_| {});
                let encoded = encode::encode(&transcoder.schema, transcoder.ignores_enum_case, method.input, fields);
                Form::Raw(Raw {
                    path: path.clone(),
                    first: encoded.map_err(RequestError::Bad)?,
                    content_type: content_type.to_vec(),
                    captured: call.captured,
                    held: Vec::new(),
                    sent: false,
                })
            }
            None => {
                let wanted = if method.client_streaming { Wanted::Elements } else { Wanted::One };
                Form::Json { parser: JsonParser::new(wanted), bindings: call.bindings, begun: false }
            }
        };
        Ok(Self { transcoder: Arc::clone(transcoder), method, place: call.place, limit, waiting: 0, form })
    }

    /// Bytes of the body that wait for the rest of a message.
    pub fn held(&self) -> usize {
        self.waiting
    }

    /// Takes a piece of the body; gives the frames that it completes.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<u8>, RequestError> {
        self.waiting += piece.len();
        let streams = self.method.client_streaming;
        let frames = match &mut self.form {
            Form::Raw(raw) if streams => raw.pieces(piece),
            _ if self.waiting > self.limit => return Err(RequestError::TooLarge { limit: self.limit }),
            Form::Raw(raw) => {
                raw.held.extend_from_slice(piece);
                Vec::new()
            }
            Form::Json { parser, begun, .. } => {
                *begun = true;
                let values = parser.push(piece).map_err(RequestError::Bad)?;
                self.messages(values)?
            }
        };
        if streams && !frames.is_empty() {
            self.waiting = 0;
        }
        Ok(frames)
    }

    /// The body has ended; gives the last frames.
    pub fn finish(&mut self) -> Result<Vec<u8>, RequestError> {
        let values = match &mut self.form {
            Form::Raw(raw) if raw.sent && raw.held.is_empty() => return Ok(Vec::new()),
            Form::Raw(raw) => {
                let held = std::mem::take(&mut raw.held);
                return Ok(raw.message(&held));
            }
            Form::Json { parser, begun, .. } => {
                // No body says as much as an empty object.
                let mut values = if *begun { Vec::new() } else { parser.push(b"{}").map_err(RequestError::Bad)? };
                values.extend(parser.finish().map_err(RequestError::Bad)?);
                values
            }
        };
        self.messages(values)
    }

    fn messages(&mut self, values: Vec<Json>) -> Result<Vec<u8>, RequestError> {
        let Form::Json { bindings, .. } = &mut self.form else { return Ok(Vec::new()) };
        let schema = &self.transcoder.schema;
        let body = self.transcoder.rules.get(self.place).map(|rule| &*rule.body).unwrap_or_default();
        let mut frames = Vec::new();
        for value in values {
            let mut collision = None;
            // In a stream they belong to the first message.
            let woven = std::mem::take(bindings).weave(wrapped(body, value), &mut |reason| collision = Some(reason));
            let encoded = encode::encode(schema, self.transcoder.ignores_enum_case, self.method.input, woven);
            let message = encoded.map_err(RequestError::Bad)?;
            if let Some(reason) = collision.filter(|_| self.transcoder.rejects_collisions) {
                return Err(RequestError::Bad(reason));
            }
            frame(&mut frames, &message);
        }
        Ok(frames)
    }
}

/// A value as the field at the end of a path.
fn wrapped(path: &[Box<str>], value: Json) -> Json {
    path.iter().rev().fold(value, |value, name| Json::Object(vec![(name.to_string(), value)]))
}

impl Raw {
    fn message(&mut self, data: &[u8]) -> Vec<u8> {
        let mut message = std::mem::take(&mut self.first);
        http_body::envelop(&mut message, &self.path, &std::mem::take(&mut self.content_type), &self.captured, data);
        self.sent = true;
        let mut framed = Vec::with_capacity(message.len() + 5);
        frame(&mut framed, &message);
        framed
    }

    /// Each piece is a message, unless servers would find it too large.
    fn pieces(&mut self, data: &[u8]) -> Vec<u8> {
        data.chunks(MAX_PIECE).flat_map(|piece| self.message(piece)).collect()
    }
}

/// gRPC servers refuse messages of 4 MiB; source: `JsonTranscoderConfig::MaxStreamedPieceSize` of Envoy.
const MAX_PIECE: usize = 1 << 20;
