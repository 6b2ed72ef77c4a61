//! The keys of an `edgecore.yaml`: which have an effect, and which are accepted without one and why.

pub use ::keys::Unknown;

/// `modules.edged` is open: KubeletConfiguration has more than a hundred keys and grows with every release.
pub const TABLE: ::keys::Table = ::keys::Table {
    honoured: HONOURED,
    accepted: ACCEPTED,
    open: "modules.edged.",
    help: "remove it, or look at docs/config.md for the known keys",
};

/// Paths with an effect. A path that ends in `.*` is a map with free keys.
const HONOURED: &[&str] = &[
    "database.dataSource",
    "kinglet.certificateCheckSeconds",
    "kinglet.cloudID",
    "kinglet.compactLane",
    "kinglet.devices.historyBytes",
    "kinglet.devices.historyDurable",
    "kinglet.devices.historyLen",
    "kinglet.devices.pushCAFile",
    "kinglet.devices.pushQueueBytes",
    "kinglet.devices.pushTokenFile",
    "kinglet.devices.reportEveryMs",
    "kinglet.importDirs",
    "kinglet.linkStreams",
    "kinglet.mqtt.aclFile",
    "kinglet.mqtt.aclLocal",
    "kinglet.mqtt.durableLazy",
    "kinglet.mqtt.durableSync",
    "kinglet.mqtt.listen",
    "kinglet.mqtt.maxConnections",
    "kinglet.mqtt.maxKeepAliveSeconds",
    "kinglet.mqtt.maxPacketBytes",
    "kinglet.mqtt.maxQueueBytes",
    "kinglet.mqtt.maxQueuesBytes",
    "kinglet.mqtt.maxRetained",
    "kinglet.mqtt.maxRetainedBytes",
    "kinglet.mqtt.maxSessionExpirySeconds",
    "kinglet.mqtt.maxSessionExpirySecondsV3",
    "kinglet.mqtt.maxSessions",
    "kinglet.mqtt.passwordFile",
    "kinglet.mqtt.persistence",
    "kinglet.mqtt.tlsCertFile",
    "kinglet.mqtt.tlsClientCAFile",
    "kinglet.mqtt.tlsPrivateKeyFile",
    "kinglet.mqtt.waitForSessions",
    "kinglet.preloadDir",
    "kinglet.runDir",
    "modules.deviceTwin.deviceFolder",
    "modules.deviceTwin.discoveryPrefix",
    "modules.deviceTwin.dmiSockPath",
    "modules.deviceTwin.enable",
    "modules.edgeHub.enable",
    "modules.edgeHub.heartbeat",
    "modules.edgeHub.httpServer",
    "modules.edgeHub.projectID",
    "modules.edgeHub.rotateCertificates",
    "modules.edgeHub.tlsCaFile",
    "modules.edgeHub.tlsCertFile",
    "modules.edgeHub.tlsPrivateKeyFile",
    "modules.edgeHub.websocket.enable",
    "modules.edgeHub.websocket.handshakeTimeout",
    "modules.edgeHub.websocket.server",
    "modules.edgeHub.websocket.writeDeadline",
    "modules.edged.enable",
    "modules.edged.hostnameOverride",
    "modules.edged.nodeIP",
    "modules.edged.nodeLabels.*",
    "modules.edged.podSandboxImage",
    "modules.edged.registerSchedulable",
    "modules.edged.reportEvent",
    "modules.edged.rootDirectory",
    "modules.edged.tailoredKubeletConfig.address",
    "modules.edged.tailoredKubeletConfig.allowedUnsafeSysctls",
    "modules.edged.tailoredKubeletConfig.cgroupDriver",
    "modules.edged.tailoredKubeletConfig.cgroupRoot",
    "modules.edged.tailoredKubeletConfig.cgroupsPerQOS",
    "modules.edged.tailoredKubeletConfig.clusterDNS",
    "modules.edged.tailoredKubeletConfig.clusterDomain",
    "modules.edged.tailoredKubeletConfig.containerLogMaxFiles",
    "modules.edged.tailoredKubeletConfig.containerLogMaxSize",
    "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
    "modules.edged.tailoredKubeletConfig.cpuCFSQuota",
    "modules.edged.tailoredKubeletConfig.enforceNodeAllocatable",
    "modules.edged.tailoredKubeletConfig.evictionHard.*",
    "modules.edged.tailoredKubeletConfig.evictionMaxPodGracePeriod",
    "modules.edged.tailoredKubeletConfig.evictionMinimumReclaim.*",
    "modules.edged.tailoredKubeletConfig.evictionPressureTransitionPeriod",
    "modules.edged.tailoredKubeletConfig.evictionSoft.*",
    "modules.edged.tailoredKubeletConfig.evictionSoftGracePeriod.*",
    "modules.edged.tailoredKubeletConfig.imageGCHighThresholdPercent",
    "modules.edged.tailoredKubeletConfig.imageGCLowThresholdPercent",
    "modules.edged.tailoredKubeletConfig.imageMaximumGCAge",
    "modules.edged.tailoredKubeletConfig.imageMinimumGCAge",
    "modules.edged.tailoredKubeletConfig.kubeReserved.*",
    "modules.edged.tailoredKubeletConfig.maxParallelImagePulls",
    "modules.edged.tailoredKubeletConfig.maxPods",
    "modules.edged.tailoredKubeletConfig.nodeLeaseDurationSeconds",
    "modules.edged.tailoredKubeletConfig.nodeStatusMaxImages",
    "modules.edged.tailoredKubeletConfig.nodeStatusReportFrequency",
    "modules.edged.tailoredKubeletConfig.nodeStatusUpdateFrequency",
    "modules.edged.tailoredKubeletConfig.podLogsDir",
    "modules.edged.tailoredKubeletConfig.podPidsLimit",
    "modules.edged.tailoredKubeletConfig.readOnlyPort",
    "modules.edged.tailoredKubeletConfig.registerNode",
    "modules.edged.tailoredKubeletConfig.resolvConf",
    "modules.edged.tailoredKubeletConfig.runtimeRequestTimeout",
    "modules.edged.tailoredKubeletConfig.seccompDefault",
    "modules.edged.tailoredKubeletConfig.serializeImagePulls",
    "modules.edged.tailoredKubeletConfig.staticPodPath",
    "modules.edged.tailoredKubeletConfig.systemReserved.*",
    "modules.edgeStream.enable",
    "modules.edgeStream.handshakeTimeout",
    "modules.edgeStream.readDeadline",
    "modules.edgeStream.server",
    "modules.edgeStream.writeDeadline",
    "modules.eventBus.bridge",
    "modules.eventBus.enable",
    "modules.eventBus.eventBusTLS.enable",
    "modules.eventBus.eventBusTLS.tlsMqttCAFile",
    "modules.eventBus.eventBusTLS.tlsMqttCertFile",
    "modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile",
    "modules.eventBus.mqttMode",
    "modules.eventBus.mqttPassword",
    "modules.eventBus.mqttPubClientID",
    "modules.eventBus.mqttQOS",
    "modules.eventBus.mqttRetain",
    "modules.eventBus.mqttServerExternal",
    "modules.eventBus.mqttServerInternal",
    "modules.eventBus.mqttSessionQueueSize",
    "modules.eventBus.mqttSubClientID",
    "modules.eventBus.mqttUsername",
];

/// Paths accepted without effect, with the reason. `.**` covers everything below.
pub const ACCEPTED: &[(&str, &str)] = &[
    ("apiVersion", "names the file format"),
    ("kind", "names the file format"),
    ("edgecoreVersion", "written by keadm; the running program knows its own version"),
    ("database.aliasName", "the store is a log of our own, not SQLite"),
    ("database.driverName", "the store is a log of our own, not SQLite"),
    (
        "featureGates.**",
        "requireAuthorization follows the cloud; modules are always restarted; tasks are v1alpha2",
    ),
    ("modules.dbTest.**", "a test module of KubeEdge"),
    ("modules.edgeHub.messageBurst", "reports merge by key, so the link needs no rate limit"),
    ("modules.edgeHub.messageQPS", "reports merge by key, so the link needs no rate limit"),
    (
        "modules.edgeHub.quic.**",
        "KubeEdge's QUIC is a draft that no other library speaks; the WebSocket is used",
    ),
    ("modules.edgeHub.token", "only `join` uses a token, and it is not kept"),
    (
        "modules.edgeHub.websocket.readDeadline",
        "KubeEdge never applies it either; a dead link is found by its own timer",
    ),
    ("modules.edgeStream.tlsTunnelCAFile", "the tunnel uses the certificates of edgeHub"),
    ("modules.edgeStream.tlsTunnelCertFile", "the tunnel uses the certificates of edgeHub"),
    ("modules.edgeStream.tlsTunnelPrivateKeyFile", "the tunnel uses the certificates of edgeHub"),
    ("modules.edged.customInterfaceName", "the address of the default route, or nodeIP, is used"),
    ("modules.edged.maxContainerCount", "containers of a pod are kept one generation deep"),
    ("modules.edged.maxPerPodContainerCount", "containers of a pod are kept one generation deep"),
    ("modules.edged.registerNodeNamespace", "nodes are cluster-scoped"),
    ("modules.edged.tailoredKubeletConfig.**", "a kubelet setting that this agent does not need"),
    ("modules.edged.**", "a kubelet flag that this agent does not need"),
    ("modules.metaManager.**", "the API of the node is not built yet"),
    ("modules.serviceBus.**", "HTTP calls through the router are not built yet"),
    ("modules.taskManager.**", "updates are done by the image's own updater"),
];

#[cfg(test)]
const IMAGES_AND_PRESSURE: &str = r#"
## Images

Pull secrets of a pod (`dockerconfigjson`, `dockercfg`) go to containerd with the pull. Mirrors and registries without TLS are containerd's own
configuration, read at each pull, without a restart: `config_path = "/etc/containerd/certs.d"` below `plugins."io.containerd.grpc.v1.cri".registry`, and then
for each registry a file such as `/etc/containerd/certs.d/docker.io/hosts.toml`:

    server = "https://registry-1.docker.io"
    [host."http://mirror.lan:5000"]
      capabilities = ["pull", "resolve"]

`kinglet.importDirs` lists folders (a USB stick's mount point, a share) that are looked at every 10 s. Archives in them are imported once they stopped growing: what
`docker save` (any version since 1.10), `podman save`, `ctr`, `nerdctl` and `skopeo` write, as `*.tar`, `*.tar.gz` or `*.tgz`. The event ImageImported or the condition
ImportedImageUnusable says what became of them; other packings (zstd, xz) are refused there with the remedy. An archive in gzip is unpacked as it is read, nothing is written beside
containerd's own content; a plain one costs less processor time on a small board. What came from an archive is never collected, and stands for its registry with policy Always too.

## Pressure

Signals: `memory.available`, `nodefs.available`, `nodefs.inodesFree`, `imagefs.available`, `imagefs.inodesFree`, `pid.available`. Without `evictionHard`:
memory 100Mi but at most an eighth of the memory (64Mi of 512Mi), nodefs 10% but at most 1Gi, imagefs 15% but at most 2Gi, inodes 5%. A key that is set is taken as it stands.
Disk is made free by removing unused images before a pod is evicted. Critical and static pods are never evicted.
"#;

/// docs/config.md.
#[cfg(test)]
pub fn page() -> String {
    let mut page = String::from(
        "# edgecore.yaml\n\nKubeEdge's file of v1.20 to v1.23, and the group `kinglet`. `edgecore config check FILE` names unknown keys; \
         `edgecore join` refuses them; a running agent logs them and raises the condition ConfigurationUnknownKeys.\n\n\
         ## Keys with an effect\n\n",
    );
    for key in HONOURED {
        page.push_str(&format!("- `{key}`\n"));
    }
    page.push_str("\n## Keys accepted without effect\n\n| key | why |\n| --- | --- |\n");
    for (key, why) in ACCEPTED {
        page.push_str(&format!("| `{key}` | {why} |\n"));
    }
    page.push_str(IMAGES_AND_PRESSURE);
    page
}
