//! Where the programs of others are.

use std::path::{Path, PathBuf};

/// A program that we did not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Apiserver,
    ControllerManager,
    Etcd,
    Kubectl,
    /// KubeEdge's, v1.23.
    Cloudcore,
    /// KubeEdge's, v1.22.
    Cloudcore122,
    /// KubeEdge's, v1.21.
    Cloudcore121,
    /// KubeEdge's, v1.20.
    Cloudcore120,
    /// KubeEdge's, v1.23.
    Edgecore,
    /// KubeEdge's, v1.22.
    Edgecore122,
    /// Made with KubeEdge's mapper framework (docs/dmi.md).
    FrameworkMapper,
    K3s,
    /// An interpreter with PyPI's opentelemetry-proto and line-protocol-parser; the suite fetches it.
    Python,
}

impl Peer {
    pub fn file_name(self) -> &'static str {
        match self {
            Peer::Apiserver => "kube-apiserver",
            Peer::ControllerManager => "kube-controller-manager",
            Peer::Etcd => "etcd",
            Peer::Kubectl => "kubectl",
            Peer::Cloudcore => "cloudcore",
            Peer::Cloudcore122 => "cloudcore-1.22",
            Peer::Cloudcore121 => "cloudcore-1.21",
            Peer::Cloudcore120 => "cloudcore-1.20",
            Peer::Edgecore => "edgecore",
            Peer::Edgecore122 => "edgecore-1.22",
            Peer::FrameworkMapper => "framework-mapper",
            Peer::K3s => "k3s",
            Peer::Python => "python",
        }
    }

    /// Where it is looked for after the peers' folder. KubeEdge's programs have the names of ours, so they are not.
    fn is_on_the_system(self) -> bool {
        !matches!(
            self,
            Peer::Cloudcore
                | Peer::Cloudcore122
                | Peer::Cloudcore121
                | Peer::Cloudcore120
                | Peer::Edgecore
                | Peer::Edgecore122
        )
    }
}

/// The folder that `KINGLET_PEERS` names.
#[derive(Clone, Debug)]
pub struct Peers {
    dir: PathBuf,
}

impl Peers {
    /// The program's path, if it is here.
    pub fn find(&self, peer: Peer) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = std::env::split_paths(&path).filter(|_| peer.is_on_the_system());
        std::iter::once(self.dir.clone())
            .chain(system)
            .map(|folder| folder.join(peer.file_name()))
            .find(|file| file.is_file())
    }

    /// The program's path, for a flow that said it needs it.
    pub fn get(&self, peer: Peer) -> anyhow::Result<PathBuf> {
        self.find(peer).ok_or_else(|| anyhow::anyhow!(absent(peer, &self.dir)))
    }
}

/// The peers of this run; `None` when `KINGLET_PEERS` is not set, which is said once.
pub fn peers() -> Option<Peers> {
    let dir = std::env::var_os("KINGLET_PEERS").filter(|dir| !dir.is_empty());
    if dir.is_none() {
        println!("skipped: no peers (KINGLET_PEERS is not set; docs/interop.md says what it names)");
    }
    dir.map(|dir| Peers { dir: dir.into() })
}

/// Why a flow that needs this peer cannot run.
pub fn missing(peers: Option<&Peers>, peer: Peer) -> Option<String> {
    let Some(peers) = peers else { return Some("skipped: no peers".into()) };
    peers.find(peer).is_none().then(|| absent(peer, &peers.dir))
}

fn absent(peer: Peer, dir: &Path) -> String {
    format!("skipped: no {} in {} (KINGLET_PEERS)", peer.file_name(), dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_peers_nothing_that_needs_one_runs() {
        assert_eq!(missing(None, Peer::Etcd).as_deref(), Some("skipped: no peers"));
        let none = Peers { dir: "/nonexistent".into() };
        // Ours have the same names: they must not be taken for KubeEdge's, wherever they are installed.
        assert!(missing(Some(&none), Peer::Cloudcore).is_some_and(|why| why.contains("no cloudcore")));
        assert!(none.get(Peer::Edgecore).is_err());
    }
}
