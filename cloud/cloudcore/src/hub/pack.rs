//! Compression of what goes down on the compact lane: zstd's C library, contexts shared by all links.

use std::sync::{Mutex, PoisonError};

use wire::lane::Compress;
use zstd_safe::{CCtx, CParameter, compress_bound};

/// 64 kB: what a device may have to keep to inflate.
const WINDOW_LOG: u32 = 16;
/// Above it, level 9 saves 2 % more and takes three times as long.
const LEVEL: i32 = 3;
/// Contexts kept, of about 200 kB each; more links that compress at the same moment make their own.
const CONTEXTS_MAX: usize = 4;

#[derive(Default)]
pub struct Packer {
    /// Held to take or to put back, never while compressing.
    contexts: Mutex<Vec<CCtx<'static>>>,
}

impl Compress for Packer {
    fn compress(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let kept = self.contexts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut context = match kept {
            Some(context) => context,
            None => {
                let mut context = CCtx::try_create()?;
                context.set_parameter(CParameter::CompressionLevel(LEVEL)).ok()?;
                context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).ok()?;
                context
            }
        };
        let mut packed = vec![0; compress_bound(bytes.len())];
        let len = context.compress2(&mut packed[..], bytes).ok()?;
        packed.truncate(len);
        packed.shrink_to_fit();
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if contexts.len() < CONTEXTS_MAX {
            contexts.push(context);
        }
        Some(packed)
    }
}

#[cfg(test)]
mod tests {
    use wire::lane::{End, Frames, Lane, Out, Received};

    use super::*;

    /// Small, larger than the window, and what cannot be compressed.
    #[test]
    fn the_nodes_end_inflates_what_is_packed() {
        let packer = std::sync::Arc::new(Packer::default());
        let mut seed = 1_u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8
        };
        let noise: String = (0..3_000).map(|_| char::from(b'a' + noise() % 26)).collect();
        for content in ["pod ".repeat(100), "pod ".repeat(100_000), noise.repeat(60)] {
            let mut cloud = Lane::compact(1, End::Cloud { node: "a".into(), compress: Some(packer.clone()) });
            let mut edge = Lane::compact(1, End::Edge);
            let push = wire::Message::new(1, "edgecontroller", "resource", "insert", "default/pod/web")
                .with_content(&content);
            cloud.push(&push);
            let Some(Out::Binary(bytes)) = cloud.take() else { panic!("frames") };
            assert!(
                bytes.len() < content.len() / 2 + 100 || content.starts_with(&noise[..10]),
                "{}",
                bytes.len()
            );
            let received = edge.receive(Frames::Binary(&bytes)).unwrap();
            let [Received::Message(message)] = &received[..] else { panic!("{received:?}") };
            assert_eq!(message.content_as::<String>().unwrap(), content);
        }
    }
}
