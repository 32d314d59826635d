//! What is asked of workers when somebody looks.
//!
//! Owns the questions and how long an answer may take. A worker that does not answer is named, not waited for.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::worker::{Command, Workers};

/// A worker that does not answer within this time is stuck.
const PATIENCE: Duration = Duration::from_secs(1);

/// The answers of all workers.
pub(super) struct Answers<T> {
    /// By worker, of those that have answered.
    pub answers: Vec<(usize, T)>,
    /// The others.
    pub silent: Vec<usize>,
}

impl<T> Answers<T> {
    /// Says which workers are missing.
    pub(super) fn warning(&self) -> Option<String> {
        let silent: Vec<String> = self.silent.iter().map(ToString::to_string).collect();
        let names = silent.join(", ");
        (!silent.is_empty()).then(|| format!("workers that have not answered within {PATIENCE:?}: {names}"))
    }
}

/// Asks all workers at the same time.
pub(super) async fn all<T>(workers: &Workers, command: impl Fn(oneshot::Sender<T>) -> Command) -> Answers<T> {
    let asked: Vec<_> = (0..workers.count()).map(|worker| ask(workers, worker, &command)).collect();
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut answers = Answers { answers: Vec::new(), silent: Vec::new() };
    for (worker, answer) in asked.into_iter().enumerate() {
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(answer)) => answers.answers.push((worker, answer)),
            Ok(Err(_)) | Err(_) => answers.silent.push(worker),
        }
    }
    answers
}

/// Asks one worker; `None` if it does not answer.
pub(super) async fn one<T>(
    workers: &Workers,
    worker: usize,
    command: impl Fn(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    tokio::time::timeout(PATIENCE, ask(workers, worker, &command)).await.ok()?.ok()
}

fn ask<T>(workers: &Workers, worker: usize, command: &impl Fn(oneshot::Sender<T>) -> Command) -> oneshot::Receiver<T> {
    let (answer, receiver) = oneshot::channel();
    workers.send(worker, command(answer));
    receiver
}
