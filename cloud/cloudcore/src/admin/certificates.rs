//! `revoke`, `unrevoke` and `ca`.

use std::time::Duration;

use anyhow::bail;

use super::place::{Place, block_on};
use crate::authority::{self, Material, Source};
use crate::cli::{Ca, DataDir, Revoke};
use crate::join::now_s;
use crate::records::{RecordError, is_node_name};
use crate::revoke::{Entry, Revocations};

pub fn revoke(options: &Revoke) -> anyhow::Result<()> {
    block_on(async {
        let place = Place::find(&options.data_dir).await?;
        let Some(name) = options.name.as_deref() else { return list(&place.revocations().await?).await };
        check_name(name)?;
        let keys = place.records()?.node(name).await?.keys;
        let entry = place.revocations().await?.set(&Entry::new(name, &options.reason, keys)).await?;
        println!(
            "node {name} is revoked: its session ends, and no certificate of it is accepted ({} key(s) of it are known)",
            entry.keys.len()
        );
        println!(
            "back: cloudcore unrevoke {name}; another device under this name: cloudcore token --node {name}"
        );
        Ok(())
    })
}

pub fn unrevoke(options: &DataDir, name: &str) -> anyhow::Result<()> {
    check_name(name)?;
    block_on(async {
        match Place::find(options).await?.revocations().await?.remove(name).await? {
            true => {
                println!("node {name} is not revoked any more: its certificate is accepted while it is valid")
            }
            false => println!("node {name} was not revoked"),
        }
        Ok(())
    })
}

async fn list(revocations: &Revocations) -> anyhow::Result<()> {
    let entries = revocations.list().await?;
    if entries.is_empty() {
        println!("no node is revoked");
    }
    for entry in entries.values() {
        let how = if entry.open { "reset" } else { "revoked" };
        let again = match entry.admitted.len() {
            0 => String::new(),
            keys => format!(", joined again since ({keys} key(s))"),
        };
        let reason = if entry.reason.is_empty() { String::new() } else { format!(": {}", entry.reason) };
        println!("{}  {how} {}, {} key(s) refused{again}{reason}", entry.node, entry.since, entry.keys.len());
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), RecordError> {
    if is_node_name(name) { Ok(()) } else { Err(RecordError::Name(name.into())) }
}

pub fn ca(command: &Ca) -> anyhow::Result<()> {
    let (Ca::Rotate { data_dir } | Ca::Status { data_dir } | Ca::Finish { data_dir, .. }) = command;
    block_on(async {
        let place = Place::find(data_dir).await?;
        match command {
            Ca::Rotate { .. } => rotate(&place.authority()).await,
            Ca::Status { .. } => status(&place).await,
            Ca::Finish { force, .. } => finish(&place, *force).await,
        }
    })
}

async fn status(place: &Place) -> anyhow::Result<()> {
    let material = place.authority().load_or_make(now_s()).await?;
    println!("{}", material.describe());
    if material.rotation.is_some() {
        left(place, &material).await?.print();
    }
    Ok(())
}

async fn rotate(source: &Source) -> anyhow::Result<()> {
    let announced = authority::begin(source, now_s()).await?;
    println!("{}", announced.describe());
    // A certificate of the new CA must not meet a cloudcore that does not know it yet.
    tokio::time::sleep(source.look_every() * 2 + Duration::from_secs(1)).await;
    println!("{}", authority::switch(source, now_s()).await?.describe());
    println!(
        "nodes take the new CA and a certificate of it within hours, those that are away when they are back; new join tokens are \
         for it. Look with `cloudcore ca status`, end it with `cloudcore ca finish`. A stock KubeEdge edgecore does not learn a \
         CA: it goes on until `finish`, and joins again then."
    );
    Ok(())
}

async fn finish(place: &Place, force: bool) -> anyhow::Result<()> {
    let source = place.authority();
    let left = left(place, &source.load_or_make(now_s()).await?).await?;
    let count = left.without.len() + left.unaware.len();
    if count > 0 && !force {
        left.print();
        bail!("{count} node(s) would have to join again; see to them, or say --force");
    }
    println!("{}", authority::finish(&source, now_s()).await?.describe());
    Ok(())
}

/// Nodes that the end of a change would shut out.
struct Left {
    /// Their newest certificate is not of the CA that signs.
    without: Vec<String>,
    /// They have one, and know only the CA before it.
    unaware: Vec<String>,
}

async fn left(place: &Place, material: &Material) -> anyhow::Result<Left> {
    let active = material.active.hash();
    let mut left = Left { without: Vec::new(), unaware: Vec::new() };
    for (name, record) in place.records()?.nodes().await? {
        if record.has_certificate() && record.signed_by != active {
            left.without.push(name);
        } else if record.trusts_another(&active) {
            left.unaware.push(name);
        }
    }
    Ok(left)
}

impl Left {
    fn print(&self) {
        match &self.without[..] {
            [] => println!("every node that joined here has a certificate of the CA that signs now"),
            names => println!("without a certificate of the CA that signs now: {}", names.join(", ")),
        }
        if !self.unaware.is_empty() {
            println!(
                "stock edgecores, which know the CA that they joined under and no other: {}. Put the new CA (`curl -k \
                 https://CLOUD:10002/ca.crt`, DER) as PEM beside the old one in their rootCA.crt, then `cloudcore ca finish \
                 --force`; or let them join again after it",
                self.unaware.join(", ")
            );
        }
    }
}
