//! The keys of a `cloudcore.yaml`: which have an effect, and which are accepted without one and why.

pub use ::keys::Unknown;

pub const TABLE: ::keys::Table = ::keys::Table {
    honoured: HONOURED,
    accepted: ACCEPTED,
    open: "",
    help: "remove it (`cloudcore config keys` prints the known ones)",
};

/// Paths with an effect.
pub const HONOURED: &[&str] = &[
    "kinglet.acceptMissing",
    "kinglet.apiAddress",
    "kinglet.apiPort",
    "kinglet.dataDir",
    "kinglet.deviceWriteEveryMs",
    "kinglet.edgeCertSeconds",
    "kinglet.embeddedApi",
    "kinglet.expiredGraceSeconds",
    "kinglet.kubeletAddress",
    "kinglet.kubeletAddressType",
    "kinglet.leaseGraceSeconds",
    "kubeAPIConfig.kubeConfig",
    "modules.cloudHub.advertiseAddress",
    "modules.cloudHub.dnsNames",
    "modules.cloudHub.edgeCertSigningDuration",
    "modules.cloudHub.https.address",
    "modules.cloudHub.https.port",
    "modules.cloudHub.keepaliveInterval",
    "modules.cloudHub.nodeLimit",
    "modules.cloudHub.tokenRefreshDuration",
    "modules.cloudHub.websocket.address",
    "modules.cloudHub.websocket.port",
    "modules.cloudHub.writeTimeout",
    "modules.cloudStream.enable",
    "modules.cloudStream.streamPort",
    "modules.cloudStream.tlsStreamCAFile",
    "modules.cloudStream.tlsStreamCertFile",
    "modules.cloudStream.tlsStreamPrivateKeyFile",
    "modules.cloudStream.tunnelPort",
];

/// Paths of KubeEdge that are read over, and why. `.**` covers all that lies below.
pub const ACCEPTED: &[(&str, &str)] = &[
    ("apiVersion", "KubeEdge's versions v1alpha1 and v1alpha2 are the same to us"),
    ("kind", "the file is a CloudCore by its place"),
    ("commonConfig.**", "there is no tunnel port to negotiate and no monitor server yet"),
    ("featureGates.**", "node certificates and requests are always checked"),
    ("kubeAPIConfig.burst", "requests are bounded by the number of nodes"),
    ("kubeAPIConfig.contentType", "JSON is used"),
    ("kubeAPIConfig.master", "the address is taken from the kubeconfig"),
    ("kubeAPIConfig.qps", "requests are bounded by the number of nodes"),
    ("modules.cloudHub.authorization.**", "every message is checked against the node's certificate"),
    ("modules.cloudHub.enable", "the hub is what this program is for"),
    ("modules.cloudHub.https.enable", "nodes cannot join without it"),
    (
        "modules.cloudHub.quic.**",
        "KubeEdge's QUIC is a draft that no other library speaks; the WebSocket is used",
    ),
    (
        "modules.cloudHub.tlsCAFile",
        "the data directory or a cluster's casecret holds the certificate authority",
    ),
    (
        "modules.cloudHub.tlsCAKeyFile",
        "the data directory or a cluster's casecret holds the certificate authority",
    ),
    ("modules.cloudHub.tlsCertFile", "the server certificate is made from advertiseAddress and dnsNames"),
    (
        "modules.cloudHub.tlsPrivateKeyFile",
        "the server certificate is made from advertiseAddress and dnsNames",
    ),
    ("modules.cloudHub.unixsocket.**", "CSI calls from the cloud are not built yet"),
    ("modules.cloudHub.websocket.enable", "nodes cannot connect without it"),
    ("modules.cloudStream.tlsTunnelCAFile", "the tunnel port has the hub's certificates"),
    ("modules.cloudStream.tlsTunnelCertFile", "the tunnel port has the hub's certificates"),
    ("modules.cloudStream.tlsTunnelPrivateKeyFile", "the tunnel port has the hub's certificates"),
    ("modules.deviceController.**", "workers and buffers are not needed; devices are always served"),
    ("modules.dynamicController.**", "the API of the nodes is not built yet"),
    ("modules.edgeController.**", "workers and buffers are not needed; nodes and pods are always served"),
    ("modules.iptablesManager.**", "nodes are reached through their links; no address is rewritten"),
    ("modules.router.**", "rules are not built yet"),
    ("modules.syncController.**", "delivery is always tracked"),
    ("modules.taskManager.**", "updates are done by the image's own updater"),
];
