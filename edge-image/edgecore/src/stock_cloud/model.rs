//! A stock cloud's delivery as a model: ObjectSyncs, one message at a time, and a SyncController that sends what is newer or gone.
//!
//! Source: KubeEdge v1.23.1, `cloud/pkg/cloudhub/dispatcher` and `cloud/pkg/synccontroller`. There is no resync on connect: what was
//! lost with a link comes as `update`, also when the edge never saw an `insert`.

use std::collections::BTreeMap;

use serde_json::json;
use wire::Message;

use super::{edge::Edge, hang_up};
use crate::{
    contract::Meta,
    hub::tests::cloud::{Cloud, Session},
};

const STEPS: u32 = 60;
const NAMES: u64 = 4;
/// Each costs a wait, and the next a longer one.
const CUTS: u32 = 2;

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

#[derive(Default)]
struct Model {
    /// Name -> uid and version.
    objects: BTreeMap<String, (String, u64)>,
    /// Uid -> name and delivered version.
    syncs: BTreeMap<String, (String, u64)>,
    version: u64,
    uids: u64,
}

impl Model {
    /// The next message that SyncController or an informer would send.
    fn due(&self) -> Option<(&'static str, String, String, u64)> {
        for (uid, (name, delivered)) in &self.syncs {
            match self.objects.get(name) {
                Some((now, version)) if now == uid && version > delivered => {
                    return Some(("update", name.clone(), uid.clone(), *version));
                }
                Some((now, _)) if now == uid => {}
                _ => return Some(("delete", name.clone(), uid.clone(), 0)),
            }
        }
        let new = self.objects.iter().find(|(_, (uid, _))| !self.syncs.contains_key(uid));
        new.map(|(name, (uid, version))| ("insert", name.clone(), uid.clone(), *version))
    }

    fn change(&mut self, random: &mut Random) {
        let name = format!("pod-{}", random.next(NAMES));
        self.version += 1;
        match (self.objects.contains_key(&name), random.next(3)) {
            (true, 0) => drop(self.objects.remove(&name)),
            (true, 1) => self.objects.get_mut(&name).unwrap().1 = self.version,
            _ => {
                self.uids += 1;
                self.objects.insert(name, (format!("u{}", self.uids), self.version));
            }
        }
    }

    fn acknowledged(&mut self, operation: &str, name: String, uid: String, version: u64) {
        match operation {
            "delete" => drop(self.syncs.remove(&uid)),
            _ => drop(self.syncs.insert(uid, (name, version))),
        }
    }
}

pub async fn run(seed: u64) {
    let again = format!("again: STOCK_SEED={seed} cargo test -p edgecore seeds_of_changes");
    let mut random = Random(seed);
    let cloud = Cloud::new().await;
    let edge = Edge::start(&cloud);
    let mut session = cloud.accept().await;
    let mut model = Model::default();
    let mut cuts = 0;
    for step in 0..STEPS {
        for _ in 0..=random.next(2) {
            model.change(&mut random);
        }
        let Some((operation, name, uid, version)) = model.due() else { continue };
        // At the first enqueueing the record is made, with version 0: after that it is SyncController's.
        if operation == "insert" {
            model.syncs.insert(uid.clone(), (name.clone(), 0));
        }
        let cut = random.next(8);
        if cut == 0 && cuts < CUTS {
            // Lost before it was sent.
            session = relink(&cloud, session).await;
            cuts += 1;
            continue;
        }
        let push = message(operation, &name, &uid, version);
        let copies = if random.next(5) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            session.send(&push).await;
        }
        if cut == 1 && cuts < CUTS {
            // Sent, and the acknowledgement lost.
            session = relink(&cloud, session).await;
            cuts += 1;
            continue;
        }
        for _ in 0..copies {
            acked(&mut session, &push).await;
        }
        model.acknowledged(operation, name, uid, version);
        assert!(step < STEPS, "{again}");
    }
    while let Some((operation, name, uid, version)) = model.due() {
        let push = message(operation, &name, &uid, version);
        session.send(&push).await;
        acked(&mut session, &push).await;
        model.acknowledged(operation, name, uid, version);
    }
    let pods = edge.meta.list("pod");
    let seen: BTreeMap<String, (String, u64)> = pods
        .into_iter()
        .map(|pod| (pod.resource.name.clone(), (pod.uid.clone(), pod.resource_version.parse().unwrap())))
        .collect();
    assert_eq!(seen, model.objects, "{again}");
    edge.stop().await;
}

fn message(operation: &str, name: &str, uid: &str, version: u64) -> Message {
    let mut content = json!({"metadata": {"name": name, "namespace": "default", "uid": uid}});
    let resource = format!("default/pod/{name}");
    let message = Message::new(1, "edgecontroller", "resource", operation, &resource);
    if operation == "delete" {
        return message.with_content(&content);
    }
    content["metadata"]["resourceVersion"] = version.to_string().into();
    message.with_content(&content).with_resource_version(&version.to_string())
}

async fn acked(session: &mut Session, push: &Message) {
    loop {
        let next = session.receive().await;
        if next.header.parent_msg_id == push.header.msg_id {
            assert!(next.content_is_ok(), "{}", next.encode());
            return;
        }
    }
}

async fn relink(cloud: &Cloud, session: Session) -> Session {
    hang_up(session).await;
    cloud.accept().await
}
