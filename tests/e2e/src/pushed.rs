//! Where a node in QEMU sends the values of its devices (`pushMethod`): the one way out of a release image that needs no cloud.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::steps::wait_until;

/// Longest request that is read, and how long somebody may take to make it.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
const REQUEST_WITHIN: Duration = Duration::from_secs(20);

pub struct Pushed {
    port: u16,
    /// Path and form of each request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Pushed {
    pub fn listen() -> Result<Pushed> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for values")?;
        let port = listener.local_addr()?.port();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let to = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let to = to.clone();
                thread::spawn(move || {
                    while let Ok(text) = request(&stream) {
                        to.lock().expect("nobody panics with it").push(text);
                    }
                });
            }
        });
        Ok(Pushed { port, seen })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for a value that was sent to `/path`, such as `lit=true`, with good quality.
    pub fn wait_for(&self, within: Duration, path: &str, value: &str) -> Result<()> {
        wait_until(within, &format!("{value} of {path}"), || {
            let seen = self.seen.lock().expect("nobody panics with it");
            let is_it = |text: &String| {
                text.starts_with(&format!("/{path} {value}&")) && text.contains("quality=good")
            };
            Ok(seen.iter().any(is_it).then_some(()))
        })
        .with_context(|| {
            let seen = self.seen.lock().expect("nobody panics with it");
            format!("last came {:?}", &seen[seen.len().saturating_sub(5)..])
        })
    }
}

/// Reads one request and answers it.
fn request(stream: &TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(REQUEST_WITHIN))?;
    let mut reader = BufReader::new(stream.take(REQUEST_BYTES_MAX as u64));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let path = first.split(' ').nth(1).context("no request")?.to_owned();
    let mut len = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the request ends early");
        if line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            len = value.trim().parse::<usize>()?;
        }
    }
    ensure!(len <= REQUEST_BYTES_MAX, "a request of {len} bytes");
    let mut body = vec![0; len];
    reader.read_exact(&mut body)?;
    (&*stream).write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    Ok(format!("{path} {}", String::from_utf8_lossy(&body)))
}
