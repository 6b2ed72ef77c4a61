//! Where the groups of pods are: kubelet's places, so that tools find pods where they look for them.

use std::path::PathBuf;

use super::Driver;
use crate::edged::{pod::Pod, status::qos_class};

/// The top group of all pods.
pub const KUBEPODS: &str = "kubepods";

/// A class of service that has a group of its own; guaranteed pods lie directly below `kubepods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub const ALL: [Class; 3] = [Class::Guaranteed, Class::Burstable, Class::BestEffort];

    pub fn of(pod: &Pod) -> Class {
        match qos_class(pod) {
            "Guaranteed" => Class::Guaranteed,
            "BestEffort" => Class::BestEffort,
            _ => Class::Burstable,
        }
    }

    fn part(self) -> Option<&'static str> {
        match self {
            Class::Guaranteed => None,
            Class::Burstable => Some("burstable"),
            Class::BestEffort => Some("besteffort"),
        }
    }
}

/// A group by the names on the way to it, without the driver's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(Vec<String>);

impl Name {
    /// `root` is kubelet's `cgroupRoot`; empty or `/` means the top.
    pub fn kubepods(root: &str) -> Name {
        let above = root.split('/').filter(|part| !part.is_empty() && *part != "..").map(str::to_string);
        Name(above.chain([KUBEPODS.to_string()]).collect())
    }

    pub fn class(root: &str, class: Class) -> Name {
        let mut name = Name::kubepods(root);
        name.0.extend(class.part().map(str::to_string));
        name
    }

    pub fn pod(root: &str, class: Class, incarnation: &str) -> Name {
        let mut name = Name::class(root, class);
        name.0.push(format!("pod{incarnation}"));
        name
    }

    /// The folder below a hierarchy's mount point.
    pub fn path(&self, driver: Driver) -> PathBuf {
        match driver {
            Driver::Cgroupfs => self.0.iter().collect(),
            Driver::Systemd => (1..=self.0.len()).map(|depth| slice(&self.0[..depth])).collect(),
        }
    }

    /// The unit that is this group under systemd.
    pub fn slice(&self) -> String {
        slice(&self.0)
    }

    /// How the runtime is told: a path for cgroupfs, the last slice for systemd.
    pub fn parent(&self, driver: Driver) -> String {
        match driver {
            Driver::Cgroupfs => format!("/{}", self.0.join("/")),
            Driver::Systemd => self.slice(),
        }
    }

    /// The folders on the way, from the top.
    pub fn ancestors(&self, driver: Driver) -> impl Iterator<Item = PathBuf> {
        (1..=self.0.len()).map(move |depth| Name(self.0[..depth].to_vec()).path(driver))
    }
}

/// A dash divides slices from their parents, so one inside a name becomes `_`, as kubelet writes it.
fn slice(parts: &[String]) -> String {
    let parts: Vec<String> = parts.iter().map(|part| part.replace('-', "_")).collect();
    format!("{}.slice", parts.join("-"))
}

/// The incarnation in a group's folder name, if the group is a pod's. Under systemd the dashes were lost.
pub fn pod_in(folder: &str, driver: Driver) -> Option<&str> {
    match driver {
        Driver::Cgroupfs => folder.strip_prefix("pod"),
        Driver::Systemd => folder.strip_suffix(".slice")?.rsplit_once("-pod").map(|(_, id)| id),
    }
    .filter(|id| !id.is_empty())
}
