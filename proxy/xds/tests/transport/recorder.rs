//! A handler that tells the test what it hears, and refuses resources named `refused`.

use std::time::Duration;

use outrigger_xds::{Handler, Rejection, ResourceKind, SourceKey, Update, XdsClient};
use tokio::sync::mpsc;

#[derive(Debug)]
pub enum Heard {
    Update(Update),
    FetchTimeout(ResourceKind, Option<String>),
    Connected(bool),
}

pub struct Recorder(mpsc::UnboundedReceiver<Heard>);

struct Recording<F> {
    sender: mpsc::UnboundedSender<Heard>,
    client: XdsClient,
    then: F,
}

pub fn new(client: XdsClient, then: impl FnMut(&XdsClient, &Update) + Send) -> (impl Handler + Send, Recorder) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Recording { sender, client, then }, Recorder(receiver))
}

impl<F: FnMut(&XdsClient, &Update)> Handler for Recording<F> {
    fn on_update(&mut self, _: &SourceKey, update: Update) -> Vec<Rejection> {
        (self.then)(&self.client, &update);
        let refused = update.added.iter().filter(|resource| resource.name == "refused");
        let rejections =
            refused.map(|resource| Rejection { name: resource.name.clone(), message: "by its name".into() }).collect();
        drop(self.sender.send(Heard::Update(update)));
        rejections
    }

    fn on_fetch_timeout(&mut self, _: &SourceKey, kind: ResourceKind, name: Option<&str>) {
        drop(self.sender.send(Heard::FetchTimeout(kind, name.map(str::to_owned))));
    }

    fn on_connected(&mut self, _: &SourceKey, connected: bool) {
        drop(self.sender.send(Heard::Connected(connected)));
    }
}

impl Recorder {
    pub async fn next(&mut self) -> Heard {
        tokio::time::timeout(Duration::from_secs(60), self.0.recv()).await.expect("nothing heard").expect("client gone")
    }

    pub async fn update(&mut self) -> Update {
        loop {
            if let Heard::Update(update) = self.next().await {
                return update;
            }
        }
    }

    /// The next update that changes something.
    pub async fn change(&mut self) -> Update {
        loop {
            let update = self.update().await;
            if !update.added.is_empty() {
                return update;
            }
        }
    }

    pub async fn connected(&mut self, expected: bool) {
        while !matches!(self.next().await, Heard::Connected(connected) if connected == expected) {}
    }

    /// Whether nothing heard so far removes a resource.
    pub fn no_removal(&mut self) -> bool {
        std::iter::from_fn(|| self.0.try_recv().ok())
            .all(|heard| !matches!(heard, Heard::Update(update) if !update.removed.is_empty()))
    }
}
