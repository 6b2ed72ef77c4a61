//! The server's half of SPDY/3.1, as a container runtime's streaming server has it: data before SYN_REPLY is lost, one slow stream
//! holds up the connection, a FIN of the client ends one direction.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};

pub struct Stream {
    pub id: u32,
    pub headers: HashMap<String, String>,
    /// Ends with the client's FIN or the connection.
    pub data: mpsc::Receiver<Bytes>,
}

type Io = Box<dyn AsyncWrite + Send + Unpin>;

#[derive(Clone)]
pub struct Writer(Arc<Mutex<Io>>);

impl Writer {
    async fn frame(&self, head: [u8; 8], body: &[u8]) -> bool {
        let mut io = self.0.lock().await;
        io.write_all(&head).await.is_ok() && io.write_all(body).await.is_ok() && io.flush().await.is_ok()
    }

    pub async fn data(&self, id: u32, body: &[u8]) -> bool {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&id.to_be_bytes());
        head[4..].copy_from_slice(&(body.len() as u32).to_be_bytes());
        self.frame(head, body).await
    }

    pub async fn finish(&self, id: u32) {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&id.to_be_bytes());
        head[4] = 1;
        self.frame(head, &[]).await;
    }

    async fn control(&self, kind: u8, body: &[u8]) {
        self.frame([0x80, 3, 0, kind, 0, 0, 0, body.len() as u8], body).await;
    }

    pub async fn reset(&self, id: u32) {
        self.control(3, &[id.to_be_bytes(), 5_u32.to_be_bytes()].concat()).await;
    }

    pub async fn ping(&self, id: u32) {
        self.control(6, &id.to_be_bytes()).await;
    }

    pub async fn close(&self) {
        self.control(7, &[0; 8]).await;
        let _ = self.0.lock().await.shutdown().await;
    }
}

/// Streams as the client opens them.
pub fn serve<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> (Writer, mpsc::Receiver<Stream>) {
    let (mut read, write) = tokio::io::split(io);
    let writer = Writer(Arc::new(Mutex::new(Box::new(write))));
    let (opened, streams) = mpsc::channel(64);
    let replies = writer.clone();
    tokio::spawn(async move {
        let mut inflate = Inflate::new();
        let mut senders: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
        let mut head = [0; 8];
        while read.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            let mut body = vec![0; length];
            if read.read_exact(&mut body).await.is_err() {
                return;
            }
            if head[0] & 0x80 == 0 {
                let id = u32::from_be_bytes(head[..4].try_into().unwrap());
                if let Some(sender) = senders.get(&id).filter(|_| !body.is_empty()) {
                    let _ = sender.send(body.into()).await;
                }
                if head[4] & 1 != 0 {
                    senders.remove(&id);
                }
                continue;
            }
            assert_eq!(head[..2], [0x80, 3], "version 3");
            match head[3] {
                1 => {
                    let id = u32::from_be_bytes(body[..4].try_into().unwrap());
                    assert_eq!(id % 2, 1, "clients open odd streams");
                    let headers = inflate.headers(&body[10..]);
                    let (sender, data) = mpsc::channel(4);
                    senders.insert(id, sender);
                    // An empty header block, stored, with the zlib head only once.
                    let mut reply = id.to_be_bytes().to_vec();
                    if id == 1 {
                        reply.extend([0x78, 0x01]);
                    }
                    reply.extend([0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
                    replies.control(2, &reply).await;
                    if opened.send(Stream { id, headers, data }).await.is_err() {
                        return;
                    }
                }
                6 if body[3] % 2 == 1 => replies.control(6, &body).await,
                _ => {}
            }
        }
    });
    (writer, streams)
}

/// Header blocks of one connection are one zlib stream, with the dictionary of the specification if the client wants it.
struct Inflate {
    raw: flate2::Decompress,
    started: bool,
}

impl Inflate {
    fn new() -> Inflate {
        Inflate { raw: flate2::Decompress::new(false), started: false }
    }

    fn headers(&mut self, mut block: &[u8]) -> HashMap<String, String> {
        if !self.started {
            self.started = true;
            assert_eq!(block[0], 0x78);
            assert_eq!(u16::from_be_bytes([block[0], block[1]]) % 31, 0);
            let preset = block[1] & 0x20 != 0;
            block = &block[2..];
            if preset {
                assert_eq!(block[..4], [0xe3, 0xc6, 0xa7, 0xc2], "Adler-32 of the dictionary");
                block = &block[4..];
                // A stored block with the dictionary puts it into the window.
                let dictionary = dictionary();
                let length = dictionary.len() as u16;
                let mut stored = vec![0];
                stored.extend(length.to_le_bytes());
                stored.extend((!length).to_le_bytes());
                stored.extend(&dictionary);
                assert_eq!(self.inflate(&stored), dictionary);
            }
        }
        let plain = self.inflate(block);
        let mut at = 0;
        let mut number = || {
            at += 4;
            u32::from_be_bytes(plain[at - 4..at].try_into().unwrap()) as usize
        };
        let count = number();
        let mut at = 4;
        let mut text = || {
            let length = u32::from_be_bytes(plain[at..at + 4].try_into().unwrap()) as usize;
            let text = String::from_utf8(plain[at + 4..at + 4 + length].to_vec()).unwrap();
            at += 4 + length;
            text
        };
        (0..count).map(|_| (text(), text())).collect()
    }

    fn inflate(&mut self, input: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * 1024);
        let before = self.raw.total_in();
        self.raw.decompress_vec(input, &mut out, flate2::FlushDecompress::Sync).unwrap();
        assert_eq!(self.raw.total_in() - before, input.len() as u64, "the block is taken whole");
        out
    }
}

/// draft-mbelshe-httpbis-spdy-00, section 2.6.10.1.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
        if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
        proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
        user-agent vary via warning www-authenticate method get status";
    const MORE: &[&str] =
        &["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
        Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
        Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
        Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
        application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
        charset=iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::new();
    for word in WORDS.split(' ').chain(MORE.iter().copied()) {
        out.extend((word.len() as u32).to_be_bytes());
        out.extend(word.as_bytes());
    }
    out.extend(REST.as_bytes());
    assert_eq!(out.len(), 1423);
    out
}
