//! The mapper's end of the line-holder's protocol. Waits for an answer at most [`HOLDER_ANSWER_MS_MAX`].

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use super::Outputs;
use crate::limits::{HOLDER_ANSWER_BYTES_MAX, HOLDER_ANSWER_MS_MAX, HOLDER_REQUEST_BYTES_MAX};

pub struct SocketOutputs {
    path: PathBuf,
    stream: Option<UnixStream>,
}

impl SocketOutputs {
    pub fn new(path: impl Into<PathBuf>) -> SocketOutputs {
        SocketOutputs { path: path.into(), stream: None }
    }

    /// One request, one line of answer.
    fn answer_to(&mut self, request: &str) -> Result<String, String> {
        if request.len() >= HOLDER_REQUEST_BYTES_MAX {
            return Err("the names of device and property are too long together; shorten them".into());
        }
        // A connection from before the line-holder's restart fails once; the second attempt is a new one.
        let had_stream = self.stream.is_some();
        match self.exchange(request) {
            Ok(answer) => Ok(answer),
            Err(_) if had_stream => self.exchange(request).map_err(|error| self.unreachable(&error)),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> String {
        format!(
            "the line-holder at {} does not answer: {error}; start `mapper hold-lines --socket {}`",
            self.path.display(),
            self.path.display()
        )
    }

    fn exchange(&mut self, request: &str) -> io::Result<String> {
        let result = self.try_exchange(request);
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    fn try_exchange(&mut self, request: &str) -> io::Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = UnixStream::connect(&self.path)?;
                let timeout = Some(Duration::from_millis(HOLDER_ANSWER_MS_MAX));
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                none.insert(stream)
            }
        };
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut byte = [0; 1];
        while answer.len() < HOLDER_ANSWER_BYTES_MAX {
            stream.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            answer.push(byte[0]);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"))
    }

    /// All lines of the answer to `list`.
    pub fn list(&mut self) -> Result<Vec<String>, String> {
        let first = self.answer_to("list")?;
        let count: usize = first.strip_prefix("ok ").and_then(|count| count.parse().ok()).ok_or(first)?;
        (0..count).map(|_| self.line().map_err(|error| self.unreachable(&error))).collect()
    }

    fn line(&mut self) -> io::Result<String> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut line = Vec::new();
        let mut byte = [0; 1];
        loop {
            stream.read_exact(&mut byte)?;
            if byte[0] == b'\n' || line.len() > HOLDER_ANSWER_BYTES_MAX {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
    }
}

impl Outputs for SocketOutputs {
    fn ask(&mut self, request: &str) -> Result<String, String> {
        self.answer_to(request)
    }
}
