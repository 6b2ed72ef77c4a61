//! What an adoption would do, from what is there. Reads only.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlite::{Database, SqliteError};

use super::{
    AdoptError, Places,
    runtime::{Binding, Running, bind},
    service::{Services, Stock},
    stock::{self, Contents},
};
use crate::{
    config::Config,
    credentials::Credentials,
    edged::{
        cri::{self, Cri},
        pod::Pod,
        static_pods::{self, StaticPods},
    },
};

/// KubeEdge may be in the middle of a write.
const QUIET_TIME: Duration = Duration::from_secs(5);
const QUIET_POLL: Duration = Duration::from_millis(50);

pub struct Plan {
    pub node: String,
    pub stock: Stock,
    pub contents: Contents,
    pub binding: Binding,
    /// Static pods by file name.
    pub statics: Vec<(String, Value)>,
    pub certificate_ends: String,
}

impl Plan {
    pub async fn make(cfg: &Config, places: &Places, services: &dyn Services) -> Result<Plan, AdoptError> {
        let node = cfg.node_name();
        let bundle = Credentials::new(&cfg.modules.edge_hub).load().map_err(AdoptError::Credentials)?;
        let info =
            pki::CertInfo::parse(&bundle.cert_der).map_err(|error| AdoptError::Store(error.to_string()))?;
        let expected = pki::Identity::node(&node).common_name;
        if info.subject.common_name != expected {
            return Err(AdoptError::OtherNode { found: info.subject.common_name, node });
        }
        let contents = read_database(&places.database).await?;
        let endpoint = &cfg.modules.edged.tailored_kubelet_config.container_runtime_endpoint;
        let client = Cri::new(cri::channel(endpoint));
        let running =
            Running::look(&client).await.map_err(|error| AdoptError::Runtime(endpoint.clone(), error))?;
        let (statics, static_pods) = statics(cfg, &node);
        let pods: Vec<Arc<Pod>> = contents
            .objects
            .iter()
            .filter(|object| object.resource.kind == "pod")
            .filter_map(|object| Pod::parse(object.body.as_bytes()).ok().map(Arc::new))
            .collect();
        let binding = bind(&running, &pods, &static_pods, &node, &cfg.kinglet.cloud_id);
        let stock = services.find(&places.config);
        let certificate_ends = pki::format_utc(info.validity.not_after);
        Ok(Plan { node, stock, contents, binding, statics, certificate_ends })
    }

    pub fn check(&self, force: bool) -> Result<(), AdoptError> {
        match self.binding.unknown.first() {
            Some(pod) if !force => Err(AdoptError::UnknownPod(pod.clone())),
            _ => Ok(()),
        }
    }

    /// For `--dry-run`.
    pub fn lines(&self, places: &Places) -> Vec<String> {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for object in &self.contents.objects {
            *kinds.entry(&object.resource.kind).or_default() += 1;
        }
        let list = |counts: &mut dyn Iterator<Item = (String, usize)>| {
            counts.map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
        };
        let twins: usize = self.contents.devices.values().map(|device| device.twins.len()).sum();
        let runs = match (&*self.stock.unit, self.stock.command.first()) {
            ("", None) => "KubeEdge's edgecore does not run".to_owned(),
            ("", Some(program)) => format!("end {program} (no unit of systemd)"),
            (unit, _) => format!("stop and disable {unit}"),
        };
        let mut lines = vec![
            format!("node {}, certificate until {}", self.node, self.certificate_ends),
            format!("1. copy configuration, certificates and database to {}", places.backup.display()),
            format!("2. {runs}"),
            format!(
                "3. take over {}, and {} devices with {twins} twins, into {}",
                list(&mut kinds.into_iter().map(|(kind, count)| (kind.to_owned(), count))),
                self.contents.devices.len(),
                places.store.display()
            ),
        ];
        for bound in &self.binding.bound {
            lines.push(format!(
                "   {}: {} running containers go on",
                bound.record.full_name(),
                bound.containers_running
            ));
        }
        for unknown in &self.binding.unknown {
            lines.push(format!("   {unknown}: runs and is in no database; left alone"));
        }
        if !self.contents.left.is_empty() {
            let left = list(&mut self.contents.left.clone().into_iter());
            lines.push(format!("   not taken, because it is asked for again or over: {left}"));
        }
        for key in &self.contents.damaged {
            lines.push(format!("   not taken, because it is no object: {key}"));
        }
        lines.push(format!(
            "4. write {} and point edgeHub's tls keys in {} to it",
            places.bundle.display(),
            places.config.display()
        ));
        lines.push(format!("5. start our edgecore ({})", super::service::OUR_UNIT));
        lines.push("nothing was changed (--dry-run)".into());
        lines
    }
}

async fn read_database(path: &std::path::Path) -> Result<Contents, AdoptError> {
    let failed = |source| AdoptError::Database { path: path.to_owned(), source };
    let begun = Instant::now();
    let database = loop {
        match Database::open(path) {
            Err(SqliteError::HotJournal { .. }) if begun.elapsed() < QUIET_TIME => {
                tokio::time::sleep(QUIET_POLL).await;
            }
            opened => break opened.map_err(failed)?,
        }
    };
    stock::read(&database).map_err(failed)
}

fn statics(cfg: &Config, node: &str) -> (Vec<(String, Value)>, Vec<Arc<Pod>>) {
    let folder: PathBuf = cfg.modules.edged.tailored_kubelet_config.static_pod_path.clone();
    if folder.as_os_str().is_empty() || !folder.is_dir() {
        return (Vec::new(), Vec::new());
    }
    let mut pods = StaticPods::new(node, []);
    let changes = pods.take(&folder, static_pods::read(&folder, &BTreeMap::new()));
    (changes.store, pods.pods().map(|pod| pod.pod.clone()).collect())
}
