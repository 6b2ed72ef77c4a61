//! A TCP connection to the container: success is that it opens.

use std::time::Duration;

use super::{Outcome, check::connect};

pub async fn probe(host: &str, port: u16, time: Duration) -> Outcome {
    match connect(host, port, time).await {
        Ok(_) => Outcome::Success,
        Err(text) => Outcome::Failure(text),
    }
}
