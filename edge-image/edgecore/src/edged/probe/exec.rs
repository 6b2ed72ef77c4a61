//! A command in the container: success is exit code 0.

use std::time::Duration;

use super::{Outcome, check::shown};
use crate::edged::{
    cri::{Cri, CriError},
    limits,
};

pub async fn probe(cri: &Cri, container_id: &str, command: Vec<String>, time: Duration) -> Outcome {
    let line = command.join(" ");
    match cri.exec_sync(container_id, command, time).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success,
        Ok(answer) => {
            // kubelet gives both streams to one writer; which came first is not known here.
            let printed = [answer.stdout, answer.stderr].concat();
            Outcome::Failure(shown(&printed, limits::PROBE_TEXT_BYTES_MAX))
        }
        Err(error) => failed(&error, &line, time),
    }
}

fn failed(error: &CriError, line: &str, time: Duration) -> Outcome {
    match error.code {
        tonic::Code::DeadlineExceeded => {
            Outcome::Failure(format!("command timed out: {line:?} timed out after {}s", time.as_secs()))
        }
        tonic::Code::OutOfRange => Outcome::Failure(format!(
            "the command printed more than {} bytes; print less",
            limits::EXEC_OUTPUT_BYTES_MAX
        )),
        code => Outcome::Errored(format!("rpc error: code = {code:?} desc = {}", error.message)),
    }
}
