use std::sync::Arc;

use wire::Resource;

use super::*;
use crate::contract::{
    BoxFuture, Conditions, DeviceCount, NodeImage, Report, Uplink,
    testing::{Bench, FakeUplink},
};

fn config() -> NodeConfig {
    let mut cfg = crate::config::Config::default();
    cfg.modules.edged.node_labels.insert("site".into(), "hall-3".into());
    cfg.modules.edged.tailored_kubelet_config.system_reserved.insert("memory".into(), "64Mi".into());
    cfg.modules.edged.tailored_kubelet_config.system_reserved.insert("cpu".into(), "100m".into());
    NodeConfig::new(&cfg)
}

fn facts() -> Facts {
    Facts {
        cpus: 4,
        memory_total_kib: 436_216,
        memory_available_kib: 300_000,
        disk_total_bytes: 16 << 30,
        disk_available_bytes: 8 << 30,
        pids_max: 4_194_304,
        pids: 100,
        address: Some("192.0.2.7".into()),
        machine_id: "m".into(),
        system_uuid: "m".into(),
        boot_id: "b".into(),
        kernel: "6.12.0-arm64".into(),
        os_image: "Kinglet".into(),
        architecture: "arm64",
        huge: [("hugepages-2Mi".to_string(), 8 << 20)].into(),
    }
}

fn ready() -> RuntimeStatus {
    RuntimeStatus::Ready { version: "containerd://1.7.24".into() }
}

fn measured(runtime: &RuntimeStatus, facts: &Facts) -> Status {
    let mut status = Status::new("edge-1");
    status.measure(&config(), facts, runtime, &[], &Has::default(), jiff::Timestamp::UNIX_EPOCH);
    status
}

fn condition<'a>(object: &'a Value, name: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().unwrap();
    all.iter().find(|condition| condition["type"] == name).unwrap()
}

/// The paths that a stock node's object has and this one must have too (reference: a captured registration).
const STOCK_PATHS: [&str; 21] = [
    "/metadata/name",
    "/metadata/labels/kubernetes.io~1arch",
    "/metadata/labels/kubernetes.io~1hostname",
    "/metadata/labels/kubernetes.io~1os",
    "/metadata/labels/beta.kubernetes.io~1arch",
    "/metadata/labels/node-role.kubernetes.io~1edge",
    "/metadata/labels/node-role.kubernetes.io~1agent",
    "/metadata/annotations/volumes.kubernetes.io~1controller-managed-attach-detach",
    "/status/capacity/cpu",
    "/status/capacity/memory",
    "/status/capacity/ephemeral-storage",
    "/status/capacity/pods",
    "/status/allocatable/memory",
    "/status/conditions/3/lastHeartbeatTime",
    "/status/conditions/3/lastTransitionTime",
    "/status/addresses/1/address",
    "/status/nodeInfo/bootID",
    "/status/nodeInfo/kernelVersion",
    "/status/nodeInfo/containerRuntimeVersion",
    "/status/nodeInfo/kubeletVersion",
    "/status/nodeInfo/operatingSystem",
];

#[test]
fn the_object_has_what_a_stock_node_has_and_true_numbers() {
    let object = measured(&ready(), &facts()).object(&config(), &facts());
    for path in STOCK_PATHS {
        assert!(object.pointer(path).is_some(), "{path} is missing in {object:#}");
    }
    assert_eq!(object["status"]["capacity"]["memory"], "436216Ki");
    let memory = &object["status"]["allocatable"]["memory"];
    assert_eq!(
        memory, "307961Ki",
        "less the reserved 64Mi, an eighth at which pods are evicted, and huge pages"
    );
    assert_eq!(object["status"]["allocatable"]["cpu"], "3900m");
    assert_eq!(object["status"]["capacity"]["cpu"], "4");
    assert_eq!(object["metadata"]["labels"]["site"], "hall-3");
    assert_eq!(object["metadata"]["labels"]["kubernetes.io/arch"], "arm64");
    let version = object["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap();
    assert!(version.starts_with("v1.32.10-kinglet-v"), "{version}");
    assert_eq!(condition(&object, "Ready")["status"], "True");
    let last = object["status"]["conditions"].as_array().unwrap().last().unwrap();
    assert_eq!(last["type"], "Ready");
}

#[test]
fn devices_and_huge_pages_are_shown_with_what_of_them_is_usable() {
    let mut status = Status::new("edge-1");
    let devices = [("example.com/gpu".to_string(), DeviceCount { capacity: 3, allocatable: 2 })].into();
    let images = vec![NodeImage { names: vec!["i:1".into()], size_bytes: 7 }];
    let has = Has { devices, images };
    status.measure(&config(), &facts(), &ready(), &[], &has, jiff::Timestamp::UNIX_EPOCH);
    let object = status.object(&config(), &facts());
    assert_eq!(object["status"]["capacity"]["example.com/gpu"], "3");
    assert_eq!(object["status"]["allocatable"]["example.com/gpu"], "2");
    assert_eq!(object["status"]["images"], json!([{"names": ["i:1"], "sizeBytes": 7}]));
    assert_eq!(object["status"]["allocatable"]["hugepages-2Mi"], "8192Ki");
    let without: u64 = 316_153 - 8192;
    assert_eq!(object["status"]["allocatable"]["memory"], format!("{without}Ki"));
}

#[test]
fn ready_needs_a_container_runtime() {
    let down = RuntimeStatus::Down { message: "no /run/containerd/containerd.sock; start containerd".into() };
    for (runtime, reason) in
        [(down, "ContainerRuntimeUnavailable"), (RuntimeStatus::Unknown, "ContainerRuntimeUnknown")]
    {
        let object = measured(&runtime, &facts()).object(&config(), &facts());
        let ready = condition(&object, "Ready");
        assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!(reason)));
    }
}

#[test]
fn pressures_are_what_edged_raises() {
    let easy = measured(&ready(), &facts()).object(&config(), &facts());
    for name in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(condition(&easy, name)["status"], "False", "{name}");
    }
    let raised = [Condition {
        condition_type: "DiskPressure".into(),
        status: true,
        reason: "KubeletHasDiskPressure".into(),
        message: "kubelet has disk pressure".into(),
    }];
    let mut status = Status::new("edge-1");
    let times = ["2026-11-21T10:00:00Z", "2026-11-21T10:05:00Z"];
    for time in times {
        status.measure(&config(), &facts(), &ready(), &raised, &Has::default(), time.parse().unwrap());
    }
    let tight = status.object(&config(), &facts());
    let disk = condition(&tight, "DiskPressure");
    assert_eq!((&disk["status"], &disk["reason"]), (&json!("True"), &json!("KubeletHasDiskPressure")));
    assert_eq!(disk["lastTransitionTime"], times[0], "said once, not at every look");
    assert_eq!(condition(&tight, "MemoryPressure")["status"], "False");
}

#[test]
fn a_patch_goes_out_on_change_and_after_the_report_interval_and_not_otherwise() {
    let every = Duration::from_secs(300);
    let start = Instant::now();
    let mut status = measured(&ready(), &facts());
    let patch = status.patch(start, every).unwrap();
    let addresses = patch.text["status"]["addresses"].as_array().unwrap();
    assert_eq!(addresses.last().unwrap(), &json!({"$patch": "replace"}));
    status.accepted(patch, start);
    let later = start + Duration::from_secs(299);
    let busier = Facts { memory_available_kib: 200_000, pids: 150, ..facts() };
    status.measure(&config(), &busier, &ready(), &[], &Has::default(), jiff::Timestamp::MAX);
    assert!(status.patch(later, every).is_none(), "what moves all the time is not a change");
    assert!(status.patch(start + every, every).is_some(), "a heartbeat");

    let raised = [Condition {
        condition_type: "StoreUnwritable".into(),
        status: true,
        reason: "WriteFailed".into(),
        message: "full".into(),
    }];
    status.measure(&config(), &facts(), &ready(), &raised, &Has::default(), jiff::Timestamp::UNIX_EPOCH);
    let patch = status.patch(later, every).unwrap();
    assert_eq!(condition(&patch.text, "StoreUnwritable")["status"], "True");
    status.accepted(patch, later);
    status.link_lost();
    assert!(status.patch(later, every).is_some(), "a new link is told everything");
}

#[test]
fn transition_times_move_only_with_the_status() {
    let mut status = measured(&ready(), &facts());
    let later: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    status.measure(&config(), &facts(), &ready(), &[], &Has::default(), later);
    let object = status.object(&config(), &facts());
    assert_eq!(condition(&object, "Ready")["lastTransitionTime"], "1970-01-01T00:00:00Z");
    status.measure(&config(), &facts(), &RuntimeStatus::Unknown, &[], &Has::default(), later);
    let object = status.object(&config(), &facts());
    assert_eq!(condition(&object, "Ready")["lastTransitionTime"], "2026-01-02T03:04:05Z");
}

#[test]
fn leases_are_asked_for_made_and_renewed_with_the_returned_version() {
    let now: jiff::Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
    let at = Instant::now();
    let error = |reason: &str| Err(ApiError { reason: reason.into(), ..ApiError::default() });
    let mut lease = lease::Lease::new("edge-1");
    assert_eq!(lease.request(now, 40), ("query", Value::Null));
    assert!(matches!(lease.answered("query", error("NotFound"), at), lease::Next::Again));
    lease.owner_is(&json!({"metadata": {"uid": "n1"}}));
    let (operation, content) = lease.request(now, 40);
    assert_eq!((operation, &content["spec"]["holderIdentity"]), ("insert", &json!("edge-1")));
    assert_eq!(content["spec"]["renewTime"], "2026-01-02T03:04:05.678901Z");
    assert_eq!(content["metadata"]["ownerReferences"][0]["uid"], "n1");
    let stored =
        json!({"metadata": {"name": "edge-1", "resourceVersion": "7", "managedFields": []}, "spec": {}});
    assert!(matches!(lease.answered("insert", Ok(stored), at), lease::Next::Done));
    assert!(!lease.is_due(at + Duration::from_secs(9), 40) && lease.is_due(at + Duration::from_secs(10), 40));
    let (operation, content) = lease.request(now, 40);
    assert_eq!((operation, &content["metadata"]["resourceVersion"]), ("update", &json!("7")));
    assert!(content["metadata"].get("managedFields").is_none());
    assert!(matches!(lease.answered("update", error("Conflict"), at), lease::Next::Again));
    assert_eq!(lease.request(now, 40).0, "query");
    assert!(matches!(lease.answered("query", error("Forbidden"), at), lease::Next::Failed(_)));
}

#[test]
fn answers_in_every_form() {
    let message = |content: Value| {
        Message::new(1, "edgecontroller", "resource", "response", "x").with_content(&content)
    };
    let object = json!({"metadata": {"name": "edge-1"}});
    assert_eq!(read_answer(&message(json!({"Object": object, "Err": null}))).unwrap(), object);
    assert_eq!(read_answer(&message(object.clone())).unwrap(), object);
    assert!(read_answer(&message(json!("OK"))).is_ok());
    let status = json!({"reason": "AlreadyExists", "code": 409, "message": "there"});
    for failure in [json!({"Object": null, "Err": {"ErrStatus": status}}), json!({"ErrStatus": status})] {
        assert_eq!(read_answer(&message(failure)).unwrap_err().reason, "AlreadyExists");
    }
    for failure in [json!({"Err": {}}), json!("no such node"), json!({"Err": {"ErrStatus": 5}})] {
        assert!(read_answer(&message(failure)).is_err());
    }
}

#[test]
fn conditions_are_kept_by_type_and_bounded() {
    let board = ConditionBoard::default();
    let seen = board.subscribe();
    let set = |name: &str, status: bool| {
        board.set(Condition { condition_type: name.into(), status, reason: "R".into(), message: "m".into() });
    };
    set("B", false);
    assert!(seen.borrow().is_empty(), "what was never so is not shown");
    set("B", true);
    set("A", true);
    set("B", false);
    let shown: Vec<(String, bool)> =
        seen.borrow().iter().map(|c| (c.condition_type.clone(), c.status)).collect();
    assert_eq!(shown, [("A".to_string(), true), ("B".to_string(), false)]);
    for n in 0..100 {
        set(&format!("C{n}"), true);
    }
    assert_eq!(seen.borrow().len(), crate::limits::CONDITIONS_MAX);
}

/// Answers like a cloud with one Node and one Lease.
struct CloudDouble {
    inner: Arc<FakeUplink>,
    node_exists: std::sync::atomic::AtomicBool,
    /// Does not answer an update of the Node, as a stock cloud after a conflict.
    silent: bool,
}

impl Uplink for CloudDouble {
    fn report(&self, report: Report) {
        self.inner.report(report);
    }

    fn send(&self, message: Message) {
        self.inner.send(message);
    }

    fn request<'a>(
        &'a self,
        message: Message,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, UplinkError>> {
        let resource = Resource::parse(&message.route.resource).unwrap();
        let error = |reason: &str| json!({"Object": null, "Err": {"ErrStatus": {"reason": reason}}});
        let existed = self.node_exists.load(std::sync::atomic::Ordering::Relaxed);
        let content = match (resource.kind.as_str(), message.route.operation.as_str()) {
            ("node", "insert") if existed => error("AlreadyExists"),
            ("node", "insert") => {
                self.node_exists.store(true, std::sync::atomic::Ordering::Relaxed);
                json!({"Object": {"metadata": {"uid": "n1"}}, "Err": null})
            }
            ("node", "update") if self.silent => {
                self.inner.requests.lock().unwrap().push(message);
                return Box::pin(async move {
                    tokio::time::sleep(timeout).await;
                    Err(UplinkError::Timeout(timeout))
                });
            }
            ("node", "update") => json!("OK"),
            ("node", "query") => json!({
                "metadata": {"uid": "n1", "resourceVersion": "500"},
                "status": {"nodeInfo": {"kubeletVersion": "v1.30.0"}},
            }),
            ("nodepatch", _) if !existed => error("NotFound"),
            ("nodepatch", _) => json!({"Object": {}, "Err": null}),
            ("lease", "query") => error("NotFound"),
            _ => json!({"Object": {"metadata": {"resourceVersion": "1"}}, "Err": null}),
        };
        self.inner.answer(message.response(1, "edgecontroller", "resource").with_content(&content));
        self.inner.request(message, timeout)
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        self.inner.state()
    }
}

struct TestMachine;

impl Machine for TestMachine {
    async fn facts(&self, _: &NodeConfig) -> Facts {
        facts()
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_registers_renews_and_registers_again_when_it_was_deleted() {
    let mut bench = Bench::new();
    let cloud =
        Arc::new(CloudDouble { inner: bench.uplink.clone(), node_exists: false.into(), silent: false });
    bench.handles.uplink = cloud.clone();
    let handles = bench.handles.clone();
    let board = ConditionBoard::default();
    let asked = |from: usize| -> Vec<String> {
        let all = bench.uplink.requests.lock().unwrap();
        all[from..].iter().map(|m| format!("{} {}", m.route.operation, m.route.resource)).collect()
    };
    let steps = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            asked(0),
            [
                "insert null/node/edge-1",
                "query kube-node-lease/lease/edge-1",
                "insert kube-node-lease/lease/edge-1",
                "patch null/nodepatch/edge-1"
            ]
        );
        {
            let all = bench.uplink.requests.lock().unwrap();
            assert!(all.iter().all(|m| m.route.source == "edged" && m.route.group == "meta"));
            assert!(all[3].content.get().starts_with('"'), "a patch is JSON inside a string");
        }
        tokio::time::sleep(Duration::from_secs(95)).await;
        let renewals = asked(4);
        assert_eq!(
            renewals, ["update kube-node-lease/lease/edge-1"; 9],
            "nothing else in a quiet minute and a half"
        );

        let mark = bench.uplink.requests.lock().unwrap().len();
        cloud.node_exists.store(false, std::sync::atomic::Ordering::Relaxed);
        handles.runtime.send_replace(ready());
        tokio::time::sleep(Duration::from_secs(12)).await;
        let after = asked(mark);
        assert_eq!(after[0], "patch null/nodepatch/edge-1", "the runtime's news go out at once");
        assert!(after.contains(&"insert null/node/edge-1".to_string()), "{after:?}");
    };
    tokio::select! {
        () = run(bench.handles.clone(), config(), TestMachine, board.subscribe()) => panic!("it runs for ever"),
        () = steps => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_stock_cloud_that_does_not_answer_for_labels_costs_no_lease_and_a_new_store_under_an_old_node_is_told()
 {
    let mut bench = Bench::new();
    bench.handles.uplink =
        Arc::new(CloudDouble { inner: bench.uplink.clone(), node_exists: true.into(), silent: true });
    let board = ConditionBoard::default();
    let steps = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let named = |m: &Message| format!("{} {}", m.route.operation, m.route.resource);
        let asked: Vec<String> = bench.uplink.requests.lock().unwrap().iter().map(named).collect();
        assert_eq!(
            asked[..5],
            [
                "insert null/node/edge-1",
                "query null/node/edge-1",
                "query kube-node-lease/lease/edge-1",
                "insert kube-node-lease/lease/edge-1",
                "patch null/nodepatch/edge-1"
            ]
        );
        assert!(asked[5..].contains(&"update null/node/edge-1".to_string()), "{asked:?}");
        let told = bench.conditions.message(reimaged::CONDITION);
        assert!(told.contains("kubectl patch objectsync"), "{told}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let all = bench.uplink.requests.lock().unwrap();
        let renewals =
            all.iter().filter(|m| m.route.resource.contains("lease") && m.route.operation == "update");
        assert!(renewals.count() >= 5, "the lease does not wait for the labels");
    };
    tokio::select! {
        () = run(bench.handles.clone(), config(), TestMachine, board.subscribe()) => panic!("it runs for ever"),
        () = steps => {}
    }
}
