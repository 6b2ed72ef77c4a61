//! As much MQTT as a sensor needs to say one thing to its broker and to know that it was heard (MQTT 3.1.1, QoS 1).

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH_QOS_1: u8 = 0x32;
const PUBACK: u8 = 0x40;

pub fn publish(port: u16, topic: &str, payload: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the broker is not there")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // Protocol name and level, clean session, 60 s of keepalive, client id.
    let hello = [text("MQTT")?, vec![4, 2, 0, 60], text("sensor")?].concat();
    stream.write_all(&packet(CONNECT, &hello)?)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("the broker does not answer")?;
    ensure!(answer[0] == CONNACK && answer[3] == 0, "the broker refuses: {answer:?}");
    let message = [text(topic)?, vec![0, 1], payload.to_vec()].concat();
    stream.write_all(&packet(PUBLISH_QOS_1, &message)?)?;
    stream.read_exact(&mut answer).context("the broker did not take the message")?;
    ensure!(answer == [PUBACK, 2, 0, 1], "the broker answers {answer:?}");
    Ok(())
}

fn text(text: &str) -> Result<Vec<u8>> {
    let len = u16::try_from(text.len()).context("text of at most 64 KiB")?;
    Ok([&len.to_be_bytes()[..], text.as_bytes()].concat())
}

fn packet(kind: u8, body: &[u8]) -> Result<Vec<u8>> {
    // Two bytes of length are enough for a sensor.
    ensure!(body.len() < 128 * 128, "too long a message");
    let low = (body.len() % 128) as u8;
    let length = match body.len() / 128 {
        0 => vec![low],
        high => vec![low | 0x80, high as u8],
    };
    Ok([&[kind][..], &length, body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_one_byte_or_two() {
        assert_eq!(packet(0x32, &[7; 5]).unwrap()[..2], [0x32, 5]);
        assert_eq!(packet(0x32, &[7; 321]).unwrap()[..3], [0x32, 0xc1, 2]);
        assert!(packet(0x32, &vec![7; 1 << 14]).is_err());
    }
}
