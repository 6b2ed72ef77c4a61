//! `kubectl get -w`, read as it comes: when a change was seen, to the millisecond.

use std::{
    io::BufReader,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::kubectl::Kubectl;

/// Objects that wait to be looked at; then kubectl waits.
const QUEUE_LEN: usize = 256;

pub struct Watch {
    child: Child,
    objects: Receiver<(Instant, Value)>,
    what: String,
}

impl Watch {
    /// Watches one object, for example `["devicestatus", "lamp"]`. Its present state comes first.
    pub fn start(kubectl: &Kubectl, object: &[&str]) -> Result<Watch> {
        let args = [&["get"], object, &["-w", "-o", "json"]].concat();
        let mut child = kubectl.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = child.stdout.take().context("stdout is piped")?;
        let (tx, objects) = sync_channel(QUEUE_LEN);
        std::thread::spawn(move || {
            let values = serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>();
            for value in values.map_while(Result::ok) {
                if tx.send((Instant::now(), value)).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { child, objects, what: object.join("/") })
    }

    /// Reads on until `wanted` holds. The moment at which that object arrived.
    pub fn until(&mut self, within: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + within;
        let mut last = Value::Null;
        loop {
            match self.objects.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, object)) if wanted(&object) => return Ok(at),
                Ok((_, object)) => last = object,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: not seen within {} s; last state: {last}", self.what, within.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("kubectl get -w {} ended; last state: {last}", self.what)
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The reported value of a property in a DeviceStatus.
pub fn reported<'a>(status: &'a Value, property: &str) -> Option<&'a str> {
    let twins = status["status"]["twins"].as_array()?;
    twins.iter().find(|twin| twin["propertyName"] == property)?["reported"]["value"].as_str()
}
