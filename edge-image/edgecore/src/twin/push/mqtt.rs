//! Values to another MQTT broker: one connection for each batch, which ends when the broker has acknowledged it.

use std::{
    io,
    time::{Duration, Instant},
};

use ::mqtt::{
    Qos,
    client::{Client, ClientError, Event, Options, PublishError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{encode, queue::Item, target::Form};

#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    #[error("cannot be reached: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("did not take the values within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// `client_id` must differ between places.
pub async fn send(
    address: &str,
    client_id: &str,
    items: &[Item],
    timeout: Duration,
) -> Result<(), MqttError> {
    tokio::time::timeout(timeout, exchange(address, client_id, items))
        .await
        .map_err(|_| MqttError::Timeout(timeout))?
}

async fn exchange(address: &str, client_id: &str, items: &[Item]) -> Result<(), MqttError> {
    let started = Instant::now();
    let now_ms = || started.elapsed().as_millis() as u64;
    let mut stream = TcpStream::connect(address).await?;
    let mut client = Client::new(Options {
        client_id: client_id.into(),
        username: None,
        password: None,
        clean_session: true,
        will: None,
        keep_alive_s: 60,
        packet_bytes_max: ::mqtt::limits::PACKET_BYTES_MAX,
    });
    client.opened(now_ms());
    let mut unsent = items.iter();
    let mut next = unsent.next();
    let mut unacknowledged = 0_usize;
    loop {
        while let Some(item) = next.filter(|_| client.is_up()) {
            let Form::Mqtt { topic, qos, retain } = item.form() else {
                next = unsent.next();
                continue;
            };
            let qos = if *qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
            match client.publish(topic, encode::message(item).as_bytes(), qos, *retain) {
                Err(PublishError::Full | PublishError::Down) => break,
                // Checked when the Device was read; one value less.
                Err(PublishError::TooLarge(_) | PublishError::Topic(_)) => {}
                Ok(0) => {}
                Ok(_) => unacknowledged += 1,
            }
            next = unsent.next();
        }
        let is_done = client.is_up() && next.is_none() && unacknowledged == 0;
        if is_done {
            client.disconnect();
        }
        let output = std::mem::take(client.output());
        stream.write_all(&output).await?;
        client.wrote(now_ms());
        if is_done {
            stream.shutdown().await?;
            return Ok(());
        }
        if next.is_some() && client.is_up() && unacknowledged == 0 {
            // Room was made by writing.
            continue;
        }
        let mut buffer = [0; 2048];
        match stream.read(&mut buffer).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            len => client.receive(&buffer[..len]),
        }
        while let Some(event) = client.next_event()? {
            if matches!(event, Event::Acknowledged(_)) {
                unacknowledged = unacknowledged.saturating_sub(1);
            }
        }
    }
}
