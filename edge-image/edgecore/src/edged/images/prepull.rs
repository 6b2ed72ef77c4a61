//! Images that somebody wants on the node before a pod does.

use wire::Resource;

use super::{
    PULLING,
    credentials::Keyring,
    name::{Policy, Reference},
    sync,
};
use crate::{
    contract::{BoxFuture, Handles, ImagePuller},
    edged::{
        Settings,
        cri::{self, Cri},
    },
};

/// Pulls through the runtime, with a connection of its own. Opens nothing before it is first asked.
pub struct Prepuller {
    handles: Handles,
    cri: Cri,
}

impl Prepuller {
    pub fn new(handles: Handles, settings: &Settings) -> Prepuller {
        Prepuller { handles, cri: Cri::new(cri::channel(&settings.endpoint)) }
    }

    async fn fetch(&self, image: &str, secret: Option<&Resource>) -> Result<(), String> {
        let name = Reference::parse(image).map_err(|error| format!("{image:?} is no image: {error}"))?;
        // As for a pod without a pull policy: what is there and has a fixed name is not asked for again.
        let present = matches!(self.cri.image_status(image).await, Ok(Some(_)));
        if present && Policy::of("", &name) == Policy::IfNotPresent {
            return Ok(());
        }
        let mut ring = Keyring::default();
        if let Some(secret) = secret {
            let object = self.handles.meta.fetch(secret).await.map_err(|error| rt::error_chain(&error))?;
            ring.add(&object.body).map_err(|problem| format!("{secret}: {problem}"))?;
        }
        // See `Images::ensure`: a power cut before the sync leaves layers with holes, and this record says so.
        let record = super::pull_record(image);
        let meta = &self.handles.meta;
        if let Err(error) = meta.put_local(PULLING, &record, image.to_owned().into(), true).await {
            tracing::warn!("image {image}: {}", rt::error_chain(&error));
        }
        let mut last = None;
        let passwords = ring.lookup(&name).into_iter().map(Some);
        let tries: Vec<_> = passwords.collect();
        for auth in if tries.is_empty() { vec![None] } else { tries } {
            match self.cri.pull_image(image, auth).await {
                Ok(_) => {
                    sync(None).await;
                    let _ = meta.delete_local(PULLING, &record).await;
                    return Ok(());
                }
                Err(error) => last = Some(error.to_string()),
            }
        }
        Err(last.unwrap_or_default())
    }
}

impl ImagePuller for Prepuller {
    fn pull<'a>(&'a self, image: &'a str, secret: Option<&'a Resource>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.fetch(image, secret))
    }
}
