//! HTTP: engines, the seam between them and the pipeline, the connection manager and its filters.

pub mod compression;
pub mod filter;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod manager;
pub mod message;
pub mod original_names;
pub mod router;
pub mod seam;
pub mod token;
