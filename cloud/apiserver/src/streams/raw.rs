//! Two byte streams joined.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

use crate::limits::{LINGER_MAX, PIPE_BYTES};

/// Copies both ways until one side ends. What is on its way to the other is still delivered, for a while.
pub(crate) async fn pipe(a: impl AsyncRead + AsyncWrite, b: impl AsyncRead + AsyncWrite) {
    let (mut a_read, mut a_write) = split(a);
    let (mut b_read, mut b_write) = split(b);
    let mut there = std::pin::pin!(copy(&mut a_read, &mut b_write));
    let mut back = std::pin::pin!(copy(&mut b_read, &mut a_write));
    // Neither SPDY nor WebSocket goes on with one direction, so the second one only has what is under way.
    tokio::select! {
        () = &mut there => drop(timeout(LINGER_MAX, back).await),
        () = &mut back => drop(timeout(LINGER_MAX, there).await),
    }
}

/// Until the end or an error, which for the other side are the same.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let mut buffer = vec![0; PIPE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
