use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

use serde_json::json;

use super::{
    mirror::{Action, MIRROR, Mirror, Mirrors},
    *,
};

const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Web\n  labels: {app: web}\nspec:\n  containers:\n  - name: c\n    image: docker.io/kinglet/hello:1\n";

struct Folder {
    dir: tempfile::TempDir,
    pods: StaticPods,
}

impl Folder {
    fn new() -> Folder {
        Folder { dir: tempfile::tempdir().unwrap(), pods: StaticPods::new("edge-1", []) }
    }

    fn write(&self, name: &str, text: &str) {
        // Written beside and moved, as a file's stamp may have the same time and size.
        let hidden = self.dir.path().join(format!(".{name}"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.dir.path().join(name)).unwrap();
    }

    fn look(&mut self) -> Changes {
        let reading = read(self.dir.path(), &self.pods.stamps());
        self.pods.take(self.dir.path(), reading)
    }

    fn names(&self) -> Vec<String> {
        self.pods.pods().map(|pod| pod.pod.full_name()).collect()
    }

    fn problem(&self) -> String {
        self.pods.problems().join("\n").replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn a_file_becomes_a_pod_of_this_node() {
    let mut folder = Folder::new();
    folder.write("web.yaml", WEB);
    let changes = folder.look();
    assert!(changes.pods && changes.store.len() == 1);
    let pod = folder.pods.pods().next().unwrap().clone();
    let metadata = &pod.pod.metadata;
    assert_eq!((metadata.name.as_str(), metadata.namespace.as_str()), ("web-edge-1", "default"));
    assert_eq!(metadata.uid.len(), 32);
    assert_eq!(metadata.annotations["kubernetes.io/config.hash"], metadata.uid);
    assert_eq!(metadata.annotations["kubernetes.io/config.source"], "file");
    assert!(metadata.annotations["kubernetes.io/config.seen"].ends_with('Z'));
    assert_eq!(pod.pod.spec.node_name, "edge-1");
    assert_eq!(pod.pod.spec.tolerations[0].effect, "NoExecute");
    assert!(pod.pod.is_static() && pod.pod.is_critical());
    assert_eq!(folder.look(), Changes::default(), "an unchanged file is not read again");

    // The same content as JSON is the same pod; on another node it is another.
    let value: Value = serde_saphyr::from_str(WEB).unwrap();
    let json = file::parse(value.to_string().as_bytes(), "edge-1", 5).unwrap();
    assert_eq!(json.uid(), pod.uid());
    assert_ne!(file::parse(WEB.as_bytes(), "edge-2", 5).unwrap().uid(), pod.uid());

    folder.write("web.yaml", &WEB.replace("hello:1", "hello:2"));
    assert!(folder.look().pods);
    assert_ne!(folder.pods.pods().next().unwrap().uid(), pod.uid(), "another content is another pod");
    let stored = changes.store.into_iter();
    assert_eq!(
        StaticPods::new("edge-1", stored).pods().next().unwrap().uid(),
        pod.uid(),
        "kept over a restart"
    );

    fs::remove_file(folder.dir.path().join("web.yaml")).unwrap();
    assert_eq!(folder.look(), Changes { pods: true, store: vec![], forget: vec!["web.yaml".into()] });
    assert!(folder.names().is_empty());
}

#[test]
fn a_bad_file_is_named_with_its_line_and_stops_nothing() {
    let mut folder = Folder::new();
    folder.write("web.yaml", WEB);
    for (text, says) in [
        ("kind: Pod\nmetadata: [\n", "line"),
        ("kind: Deployment\n", "bad.yaml: is a Deployment; only a Pod can be static"),
        ("a: b\n", "bad.yaml: has no kind"),
        ("kind: Pod\nspec: {}\n", "bad.yaml: has no metadata.name"),
        ("kind: Pod\nmetadata: {name: x}\n", "bad.yaml: has no spec"),
        ("kind: Pod\nmetadata: {name: x}\nspec: {}\n", "bad.yaml: the pod has no spec.containers"),
        ("kind: Pod\nmetadata: {name: ../x}\nspec: {containers: [{name: c, image: i}]}\n", "metadata.name"),
        ("kind: Pod\nmetadata: {name: x}\nspec: {containers: 5}\n", "cannot be read"),
        ("", "bad.yaml"),
    ] {
        folder.write("bad.yaml", text);
        folder.look();
        assert!(folder.problem().contains(says), "{text:?}: {}", folder.problem());
        assert_eq!(folder.names(), ["default/web-edge-1"]);
    }
    fs::write(folder.dir.path().join("bad.yaml"), [0xff, 0xfe]).unwrap();
    folder.look();
    assert!(folder.problem().contains("is not text"));

    folder.write("web.yaml", &WEB[..60]);
    let changes = folder.look();
    assert!(!changes.pods && changes.forget.is_empty());
    assert!(folder.problem().contains("the pod that it described before goes on"), "{}", folder.problem());
    folder.write("bad.yaml", &WEB.replace("Web", "other"));
    folder.write("web.yaml", WEB);
    folder.look();
    assert_eq!(folder.problem(), "");
    folder.write("twin.yaml", WEB);
    folder.look();
    assert!(folder.problem().contains("web.yaml: pod default/web-edge-1 is in another file already"));
    assert_eq!(folder.names().len(), 2);
    fs::remove_file(folder.dir.path().join("twin.yaml")).unwrap();
    folder.look();
    assert_eq!(
        (folder.problem().as_str(), folder.names().len()),
        ("", 2),
        "the other twin is looked at again"
    );
}

#[test]
fn a_folder_that_cannot_be_read_is_not_an_empty_one() {
    let mut folder = Folder::new();
    folder.write("web.yaml", WEB);
    folder.look();
    let at = Path::new("/etc/kubeedge/manifests");
    for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound] {
        assert_eq!(folder.pods.take(at, Err(io::Error::from(kind))), Changes::default());
        assert_eq!(folder.names(), ["default/web-edge-1"], "{kind:?}");
        assert!(folder.problem().contains("make an empty folder to stop them"), "{}", folder.problem());
    }
    folder.look();
    assert_eq!(folder.problem(), "");

    let mut never = StaticPods::new("edge-1", []);
    never.take(at, Err(io::Error::from(io::ErrorKind::NotFound)));
    assert!(never.is_read() && never.problems().is_empty(), "a folder that was never there has no pods");
    never.take(at, Err(io::Error::from(io::ErrorKind::PermissionDenied)));
    assert_eq!(never.problems().len(), 1);
}

#[test]
fn hidden_foreign_large_and_many_files() {
    let mut folder = Folder::new();
    for name in ["web.yaml~", "readme.txt"] {
        folder.write(name, WEB);
    }
    fs::write(folder.dir.path().join(".hidden.yaml"), WEB).unwrap();
    fs::create_dir(folder.dir.path().join("sub")).unwrap();
    folder.write("large.yaml", &"#".repeat(limits::STATIC_POD_BYTES_MAX as usize + 1));
    folder.look();
    assert!(folder.names().is_empty() && folder.problem().contains("it cannot be a pod"));
    for n in 0..=limits::STATIC_PODS_MAX {
        folder.write(&format!("f{n}.json"), "{}");
    }
    folder.look();
    assert!(folder.problem().contains("more than 64 files"), "{}", folder.problem());
}

fn static_pod() -> StaticPod {
    file::parse(WEB.as_bytes(), "edge-1", 5).unwrap()
}

fn mirror_of(pod: &StaticPod, uid: &str, deleting: bool) -> Mirror {
    Mirror {
        namespace: "default".into(),
        name: "web-edge-1".into(),
        uid: uid.into(),
        hash: pod.uid().into(),
        deleting,
    }
}

#[test]
fn mirrors_are_made_told_made_again_and_removed() {
    let pod = static_pod();
    let mut mirrors = Mirrors::default();
    let mut now = Duration::from_secs(1);
    let node = ("edge-1", "node-uid");
    let pods = || [&pod].into_iter();
    let created = mirrors.follow(now, pods(), true, node);
    let [Action::Create { namespace, name, object }] = &created[..] else { panic!("{created:?}") };
    assert_eq!((namespace.as_str(), name.as_str()), ("default", "web-edge-1"));
    assert_eq!(object["metadata"]["annotations"][MIRROR], pod.uid());
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "node-uid");
    assert_eq!((&object["metadata"]["uid"], &object["spec"]["nodeName"]), (&Value::Null, &json!("edge-1")));
    assert!(mirrors.follow(now, pods(), true, node).is_empty(), "asked once");
    now += limits::MIRROR_RETRY;
    assert_eq!(mirrors.follow(now, pods(), true, node).len(), 1, "and again after a while");

    assert_eq!(mirrors.uid_of(pod.uid()), None);
    mirrors.set([mirror_of(&pod, "m1", false)]);
    let tell = Action::Tell { uid: pod.uid().into() };
    assert_eq!(mirrors.follow(now, pods(), true, node), std::slice::from_ref(&tell));
    assert_eq!(mirrors.uid_of(pod.uid()), Some("m1"));
    assert!(mirrors.follow(now, pods(), true, node).is_empty(), "told once");

    let delete = |uid: &str| Action::Delete {
        namespace: "default".into(),
        name: "web-edge-1".into(),
        uid: uid.into(),
    };
    mirrors.set([mirror_of(&pod, "m1", true)]);
    assert_eq!(mirrors.follow(now, pods(), true, node), [delete("m1")], "somebody deletes it: let it go");
    mirrors.set([]);
    assert!(
        matches!(&mirrors.follow(now, pods(), true, node)[..], [Action::Create { .. }]),
        "and make it again"
    );
    mirrors.set([mirror_of(&pod, "m2", false)]);
    assert_eq!(mirrors.follow(now, pods(), true, node), [tell]);

    let older = Mirror { hash: "older".into(), ..mirror_of(&pod, "m3", false) };
    mirrors.set([older]);
    assert_eq!(mirrors.follow(now, pods(), true, node), [delete("m3")], "of an older content");
    mirrors.set([mirror_of(&pod, "m4", false)]);
    assert!(mirrors.follow(now, std::iter::empty(), false, node).is_empty(), "the folder was not read yet");
    assert_eq!(mirrors.follow(now, std::iter::empty(), true, node), [delete("m4")]);
}

#[test]
fn whatever_bytes_a_file_holds() {
    let mut seed = 3_u64;
    for n in 0..1500 {
        let mut bytes = WEB.as_bytes().to_vec();
        for _ in 0..n % 6 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % bytes.len();
            bytes[at] = b" :\n-{}[]&*!\"'#x\xff"[(seed >> 20) as usize % 16];
        }
        fuzz_static_pod(&bytes);
    }
    let stored: BTreeMap<String, Value> = [("x".to_string(), json!(5))].into();
    assert_eq!(StaticPods::new("n", stored).pods().count(), 0);
}
