//! A SPDY connection to a node's streaming server: opened streams, and their events as they come.

use std::collections::VecDeque;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

use crate::limits::{EARLY_EVENTS_MAX, PIPE_BYTES};
use crate::spdy::{Decoder, Encoder, Event, SpdyError, data_head, finish, pong};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the connection to the node broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the node's streaming server does not speak as it should: {0}")]
    Spdy(#[from] SpdyError),
    #[error("the node refused a stream (SPDY status {0}); see the node's log")]
    Refused(u32),
    #[error("the node closed the connection before all streams were open")]
    Closed,
    #[error("the node sent more than {EARLY_EVENTS_MAX} pieces before all streams were open")]
    Early,
}

pub(crate) struct Receiver<T> {
    io: ReadHalf<T>,
    decoder: Decoder,
    input: BytesMut,
    early: VecDeque<Event>,
}

pub(crate) struct Sender<T> {
    io: WriteHalf<T>,
}

/// Opens one stream per entry and waits until the node has taken all. Their numbers, in order.
pub(crate) async fn open<T: AsyncRead + AsyncWrite>(
    io: T,
    streams: &[Vec<(&str, &str)>],
) -> Result<(Sender<T>, Receiver<T>, Vec<u32>), SessionError> {
    let (read, mut write) = split(io);
    let mut encoder = Encoder::default();
    let mut numbers = Vec::new();
    for headers in streams {
        let (number, frame) = encoder.open(headers);
        write.write_all(&frame).await?;
        numbers.push(number);
    }
    write.flush().await?;
    let mut sender = Sender { io: write };
    let mut receiver =
        Receiver { io: read, decoder: Decoder::default(), input: BytesMut::new(), early: VecDeque::new() };
    let mut waiting = numbers.clone();
    let mut early = VecDeque::new();
    while !waiting.is_empty() {
        match receiver.next().await?.ok_or(SessionError::Closed)? {
            Event::Accepted(number) => waiting.retain(|waiting| *waiting != number),
            Event::Reset { stream, status } if waiting.contains(&stream) => {
                return Err(SessionError::Refused(status));
            }
            Event::Ping(id) => sender.pong(id).await?,
            // A command may have said its last word before we know that all its streams are there.
            _ if early.len() == EARLY_EVENTS_MAX => return Err(SessionError::Early),
            other => early.push_back(other),
        }
    }
    receiver.early = early;
    Ok((sender, receiver, numbers))
}

impl<T: AsyncRead> Receiver<T> {
    /// `None`: the node closed the connection. Not to be dropped while it waits.
    pub async fn next(&mut self) -> Result<Option<Event>, SessionError> {
        if let Some(event) = self.early.pop_front() {
            return Ok(Some(event));
        }
        loop {
            if let Some(event) = self.decoder.next(&mut self.input)? {
                return Ok(Some(event));
            }
            self.input.reserve(PIPE_BYTES);
            if (&mut self.io).take(PIPE_BYTES as u64).read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl<T: AsyncWrite> Sender<T> {
    /// In frames of a size that a small node takes well.
    pub async fn data(&mut self, stream: u32, bytes: &[u8]) -> Result<(), std::io::Error> {
        for piece in bytes.chunks(PIPE_BYTES) {
            self.io.write_all(&data_head(stream, piece.len())).await?;
            self.io.write_all(piece).await?;
        }
        self.io.flush().await
    }

    pub async fn finish(&mut self, stream: u32) -> Result<(), std::io::Error> {
        self.io.write_all(&finish(stream)).await?;
        self.io.flush().await
    }

    pub async fn pong(&mut self, id: u32) -> Result<(), std::io::Error> {
        self.io.write_all(&pong(id)).await?;
        self.io.flush().await
    }

    pub async fn close(&mut self) {
        let _ = self.io.shutdown().await;
    }
}
