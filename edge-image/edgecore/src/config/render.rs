//! The file that `join` writes: KubeEdge's keys, with what a person may want to change.

use std::fmt::Write as _;

use super::Config;

/// YAML text of a whole configuration. Reading it back gives the same values.
pub fn render(cfg: &Config) -> String {
    let (edged, hub, bus) = (&cfg.modules.edged, &cfg.modules.edge_hub, &cfg.modules.event_bus);
    let kubelet = &edged.tailored_kubelet_config;
    let mut labels = String::new();
    for (key, value) in &edged.node_labels {
        let _ = write!(labels, "\n      {}: {}", quote(key), quote(value));
    }
    let labels = if labels.is_empty() { " {}".to_string() } else { labels };
    format!(
        "# Written by `edgecore join`. Check changes with `edgecore config check`.
apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database:
  dataSource: {data_source}
modules:
  edged:
    enable: {edged_enable}
    hostnameOverride: {node_name}
    nodeIP: {node_ip}
    nodeLabels:{labels}
    podSandboxImage: {pause}
    rootDirectory: {root_directory}
    reportEvent: {report_event}
    tailoredKubeletConfig:
      containerRuntimeEndpoint: {runtime}
      cgroupDriver: {cgroup_driver}
      clusterDomain: {cluster_domain}
      maxPods: {max_pods}
      podLogsDir: {pod_logs_dir}
      # pods that run without a cloud: one file each
      staticPodPath: {static_pod_path}
      # health, metrics, stats and pods on the loopback, for what collects them on this node; 0: off
      readOnlyPort: {read_only_port}
  edgeHub:
    enable: {hub_enable}
    heartbeat: {heartbeat}
    projectID: {project_id}
    httpServer: {http_server}
    rotateCertificates: {rotate}
    tlsCaFile: {ca}
    tlsCertFile: {cert}
    tlsPrivateKeyFile: {key}
    websocket:
      enable: {ws_enable}
      server: {server}
  # logs and exec for a stock KubeEdge cloud; dialled only when the link itself carries no streams
  edgeStream: {{ enable: {stream_enable}, server: {stream_server} }}
  eventBus:
    enable: {bus_enable}
    # 0: the broker inside edgecore, 1: both, 2: an external broker
    mqttMode: {mqtt_mode}
    mqttServerInternal: {mqtt_internal}
    mqttServerExternal: {mqtt_external}
  deviceTwin:
    enable: {twin_enable}
    dmiSockPath: {dmi}
    # Device and DeviceModel files that work with no cloud
    deviceFolder: {device_folder}
    # Home Assistant's discovery prefix (homeassistant); empty: no discovery
    discoveryPrefix: {discovery_prefix}
kinglet:
  preloadDir: {preload}
  runDir: {run_dir}
  cloudID: {cloud_id}
  # how often the node looks whether its certificate is due
  certificateCheckSeconds: {certificate_check}
",
        data_source = path(&cfg.database.data_source),
        edged_enable = edged.enable,
        node_name = quote(&edged.hostname_override),
        node_ip = quote(&edged.node_ip),
        pause = quote(&edged.pod_sandbox_image),
        root_directory = path(&edged.root_directory),
        report_event = edged.report_event,
        runtime = quote(&kubelet.container_runtime_endpoint),
        cgroup_driver = quote(&kubelet.cgroup_driver),
        cluster_domain = quote(&kubelet.cluster_domain),
        max_pods = kubelet.max_pods,
        pod_logs_dir = path(&kubelet.pod_logs_dir),
        static_pod_path = path(&kubelet.static_pod_path),
        read_only_port = kubelet.read_only_port,
        hub_enable = hub.enable,
        heartbeat = hub.heartbeat,
        project_id = quote(&hub.project_id),
        http_server = quote(&hub.http_server),
        rotate = hub.rotate_certificates,
        ca = path(&hub.tls_ca_file),
        cert = path(&hub.tls_cert_file),
        key = path(&hub.tls_private_key_file),
        ws_enable = hub.websocket.enable,
        server = quote(&hub.websocket.server),
        stream_enable = cfg.modules.edge_stream.enable,
        stream_server = quote(&cfg.modules.edge_stream.server),
        bus_enable = bus.enable,
        mqtt_mode = bus.mqtt_mode,
        mqtt_internal = quote(&bus.mqtt_server_internal),
        mqtt_external = quote(&bus.mqtt_server_external),
        twin_enable = cfg.modules.device_twin.enable,
        dmi = path(&cfg.modules.device_twin.dmi_sock_path),
        discovery_prefix = quote(&cfg.modules.device_twin.discovery_prefix),
        device_folder = path(&cfg.modules.device_twin.device_folder),
        preload = path(&cfg.kinglet.preload_dir),
        run_dir = path(&cfg.kinglet.run_dir),
        cloud_id = quote(&cfg.kinglet.cloud_id),
        certificate_check = cfg.kinglet.certificate_check_seconds,
    )
}

/// JSON's double-quoted string is a YAML string with the same value.
fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("text serialises without error")
}

fn path(path: &std::path::Path) -> String {
    quote(&path.to_string_lossy())
}
