//! The connection to one mapper's socket: carries out orders, and notices when the mapper goes.

use std::time::Duration;

use dmi::{
    MAPPER,
    grpc::{CallError, Channel},
    messages::{DeviceRequest, Empty, ModelRequest},
};
use tokio::{net::UnixStream, sync::mpsc};

use super::book::{Order, Outcome};
use crate::limits::DMI_CALL_TIMEOUT;

pub(super) enum News {
    Done(Outcome),
    /// The mapper closed the connection.
    Lost,
}

pub(super) struct Courier {
    pub protocol: String,
    pub generation: u64,
    pub address: String,
    pub orders: mpsc::Receiver<Order>,
    pub news: mpsc::Sender<(String, u64, News)>,
}

impl Courier {
    /// Until the book has another one for this mapper.
    pub async fn run(mut self) {
        let mut channel: Option<Channel<UnixStream>> = None;
        loop {
            let order = match &mut channel {
                Some(open) => tokio::select! {
                    order = self.orders.recv() => order,
                    () = open.closed() => {
                        channel = None;
                        self.tell(News::Lost).await;
                        continue;
                    }
                },
                None => self.orders.recv().await,
            };
            let Some(order) = order else { return };
            let outcome = within(DMI_CALL_TIMEOUT, carry_out(&mut channel, &self.address, &order)).await;
            if matches!(outcome, Outcome::Broken(_)) {
                channel = None;
            }
            self.tell(News::Done(outcome)).await;
        }
    }

    async fn tell(&self, news: News) {
        // The book outlives us.
        let _ = self.news.send((self.protocol.clone(), self.generation, news)).await;
    }
}

async fn within(limit: Duration, call: impl Future<Output = Result<(), CallError>>) -> Outcome {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(())) => Outcome::Done,
        Ok(Err(CallError::Refused(refusal))) => Outcome::Refused(refusal.message),
        Ok(Err(CallError::Broken(error))) => Outcome::Broken(error),
        Err(_) => Outcome::Broken(format!("no answer within {} s", limit.as_secs())),
    }
}

async fn carry_out(
    channel: &mut Option<Channel<UnixStream>>,
    address: &str,
    order: &Order,
) -> Result<(), CallError> {
    if channel.is_none() {
        let stream = UnixStream::connect(address).await;
        let stream = stream.map_err(|error| CallError::Broken(error.to_string()))?;
        *channel = Some(Channel::open(stream).await?);
    }
    let Some(open) = channel else { return Ok(()) };
    let path = |method: &str| format!("{MAPPER}{method}");
    let Empty {} = match order {
        Order::Connect => Empty {},
        Order::Model { new, model } => {
            let method = if *new { "CreateDeviceModel" } else { "UpdateDeviceModel" };
            open.call(&path(method), &ModelRequest { model: Some(model.as_ref().clone()) }).await?
        }
        Order::Device { new, device } => {
            let method = if *new { "RegisterDevice" } else { "UpdateDevice" };
            open.call(&path(method), &DeviceRequest { device: Some(device.as_ref().clone()) }).await?
        }
        Order::RemoveDevice(named) => open.call(&path("RemoveDevice"), named).await?,
        Order::RemoveModel(named) => open.call(&path("RemoveDeviceModel"), named).await?,
    };
    Ok(())
}
