//! The container runtime: whether it is there, speaks CRI, and is set up as edgecore.yaml says.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Finding, Host,
    host::{RuntimeFault, RuntimeView},
};

const CONFIG: &str = "/etc/containerd/config.toml";
const RESTART: &str = "systemctl restart containerd";
const CAP_SYS_RESOURCE: u32 = 24;

fn socket_path(host: &Host) -> &str {
    let endpoint = &host.cfg.modules.edged.tailored_kubelet_config.container_runtime_endpoint;
    endpoint.strip_prefix("unix://").unwrap_or(endpoint)
}

fn view(host: &Host) -> Option<&RuntimeView> {
    host.asked.runtime.as_ref()?.as_ref().ok()
}

fn fault(host: &Host) -> Option<&RuntimeFault> {
    host.asked.runtime.as_ref()?.as_ref().err()
}

pub fn socket(host: &Host) -> Vec<Finding> {
    const CHECK: &str = "runtime-socket";
    let (path, why) = (socket_path(host), "without a container runtime no pod runs");
    let finding = match (&host.asked.runtime, fault(host)) {
        (None, _) => {
            let installed =
                ["/usr/bin/containerd", "/usr/local/bin/containerd"].iter().any(|p| host.exists(p));
            let install =
                if installed { "" } else { "apt install containerd containernetworking-plugins && " };
            Finding::error(CHECK, format!("the container runtime's socket {path} does not exist")).remedy(format!(
                "{install}systemctl enable --now containerd (or name another socket: edgecore join --remote-runtime-endpoint)"
            ))
        }
        (_, Some(fault)) if !fault.no_cri => Finding::error(
            CHECK,
            format!("the container runtime at {path} does not answer: {}", fault.message),
        )
        .remedy(format!("systemctl status containerd, then {RESTART}")),
        _ => return Vec::new(),
    };
    vec![finding.why(why)]
}

pub fn cri(host: &Host) -> Vec<Finding> {
    let Some(fault) = fault(host).filter(|fault| fault.no_cri) else { return Vec::new() };
    let disabled = host.read(CONFIG).lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("disabled_plugins") && line.contains("cri")
    });
    let remedy = match disabled {
        true => format!("take \"cri\" out of disabled_plugins in {CONFIG}, then {RESTART}"),
        false => format!(
            "look for \"cri\" in: journalctl -u containerd; a fresh configuration: containerd config default > {CONFIG}, then {RESTART}"
        ),
    };
    let what = format!("containerd at {} has its CRI plugin off ({})", socket_path(host), fault.message);
    vec![
        Finding::error("runtime-cri", what)
            .why("edgecore runs pods through CRI; Docker's package switches it off")
            .remedy(remedy),
    ]
}

/// The driver that the runtime uses: told by it, else as its file says.
fn driver(host: &Host) -> Option<&'static str> {
    let told = view(host).and_then(|view| view.cgroup_driver.as_deref());
    if let Some(told) = told {
        return Some(if told == "systemd" { "systemd" } else { "cgroupfs" });
    }
    let file = host.read(CONFIG);
    let line = file.lines().map(str::trim).find(|line| line.starts_with("SystemdCgroup"))?;
    let value = line.split_once('=')?.1.trim();
    Some(if value.starts_with("true") { "systemd" } else { "cgroupfs" })
}

pub fn cgroup_driver(host: &Host) -> Vec<Finding> {
    let wanted = host.cfg.modules.edged.tailored_kubelet_config.cgroup_driver.as_str();
    let Some(driver) = driver(host).filter(|driver| *driver != wanted) else { return Vec::new() };
    let what = format!("containerd uses the cgroup driver {driver}, edgecore.yaml says {wanted}");
    let finding = Finding::error("cgroup-driver", what)
        .why("sandboxes fail, or pods run outside of the groups that limit them")
        .remedy(format!(
            "set modules.edged.tailoredKubeletConfig.cgroupDriver: {driver} (edgecore join --cgroupdriver {driver}), or SystemdCgroup = {} in {CONFIG}",
            wanted == "systemd"
        ));
    vec![finding]
}

pub fn oom_score(host: &Host) -> Vec<Finding> {
    let status = host.read("proc/self/status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    let allowed = effective & (1 << CAP_SYS_RESOURCE) != 0;
    let restricted =
        view(host).and_then(|view| view.config.get("restrictOOMScoreAdj")).and_then(Value::as_bool);
    let restricted = restricted.unwrap_or_else(|| {
        let file = host.read(CONFIG);
        file.lines().any(|line| line.trim().replace(' ', "").starts_with("restrict_oom_score_adj=true"))
    });
    if allowed || restricted || effective == 0 {
        return Vec::new();
    }
    let finding = Finding::error("oom-score", "this machine gives no CAP_SYS_RESOURCE (it is a container itself?)")
        .why("no sandbox can be made: lowering an OOM score is not allowed (\"can't get final child's PID from pipe: EOF\")")
        .remedy(format!(
            "restrict_oom_score_adj = true below [plugins.\"io.containerd.grpc.v1.cri\"] in {CONFIG}, then {RESTART}"
        ));
    vec![finding]
}

/// What each pod begins with is on no registry's way here, unless somebody brought it.
pub fn sandbox_image(host: &Host) -> Vec<Finding> {
    let absent = view(host).and_then(|view| view.sandbox_image_absent.as_deref());
    let ours = &host.cfg.modules.edged.pod_sandbox_image;
    // Ours is imported at the start of the agent.
    let Some(absent) = absent.filter(|image| image != ours) else { return Vec::new() };
    let finding = Finding::warning("sandbox-image", format!("containerd starts each pod with {absent}, which is not here"))
        .why("without a way to its registry no pod starts")
        .remedy(format!(
            "sandbox_image = \"{ours}\" below [plugins.\"io.containerd.grpc.v1.cri\"] in {CONFIG} (edgecore brings that one), then {RESTART}"
        ));
    vec![finding]
}

/// A network configuration, and the programs that it names.
pub fn cni(host: &Host) -> Vec<Finding> {
    const CHECK: &str = "cni";
    const WHY: &str = "pods that are not on the host's network cannot start, and the node is not Ready";
    let told = |pointer: &str| view(host)?.config.pointer(pointer)?.as_str().map(str::to_owned);
    let conf_dir = told("/cni/confDir").unwrap_or_else(|| "/etc/cni/net.d".into());
    let bin_dir = told("/cni/binDir").unwrap_or_else(|| "/opt/cni/bin".into());
    let is_conf = |name: &&String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let names = host.names(&conf_dir);
    let problem = view(host).and_then(|view| view.network_problem.clone());
    let Some(file) = names.iter().find(is_conf) else {
        // A runtime that says that its network works knows of another place.
        if view(host).is_some() && problem.is_none() {
            return Vec::new();
        }
        let finding = Finding::error(CHECK, format!("{conf_dir} has no network configuration"))
            .why(WHY)
            .remedy(format!(
                "cp /usr/share/kinglet/cni/10-kinglet.conflist {conf_dir}/ (docs/install.md has its text)"
            ));
        return vec![finding];
    };
    let plugins = plugin_names(&host.read(&format!("{conf_dir}/{file}")));
    let missing: Vec<String> =
        plugins.into_iter().filter(|plugin| !host.exists(&format!("{bin_dir}/{plugin}"))).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let what = format!("{conf_dir}/{file} uses {missing}, not in {bin_dir}");
        let remedy = format!(
            "apt install containernetworking-plugins, and bin_dir = \"/usr/lib/cni\" below [plugins.\"io.containerd.grpc.v1.cri\".cni] in {CONFIG}, then {RESTART}"
        );
        return vec![Finding::error(CHECK, what).why(WHY).remedy(remedy)];
    }
    match problem {
        Some(problem) => {
            let what = format!("containerd cannot use {conf_dir}/{file}: {problem}");
            vec![Finding::error(CHECK, what).why(WHY).remedy(format!("correct it, then {RESTART}"))]
        }
        None => Vec::new(),
    }
}

/// The programs that a configuration (one plugin or a list) names, IPAM's too.
fn plugin_names(text: &str) -> BTreeSet<String> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let single = [value.clone()];
    let plugins = value.get("plugins").and_then(Value::as_array).map_or(&single[..], Vec::as_slice);
    let types = |plugin: &Value| {
        let names = [plugin.get("type"), plugin.pointer("/ipam/type")];
        names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    plugins.iter().flat_map(types).filter(|name| !name.is_empty() && !name.contains('/')).collect()
}
