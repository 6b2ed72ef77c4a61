//! Another agent that believes the machine's pods to be its own.

use super::{Finding, Host, host::Process};

const CHECK: &str = "other-agent";
const WHY: &str = "two agents on one container runtime stop each other's pods";

/// Agents, by the name of their program, and how each is ended.
const AGENTS: [(&str, &str, &str); 5] = [
    ("kubelet", "a kubelet", "systemctl disable --now kubelet"),
    ("k3s-agent", "a k3s agent", "systemctl disable --now k3s-agent"),
    ("k3s-server", "a k3s server, which has an agent in it", "systemctl disable --now k3s"),
    ("rke2", "an rke2 agent", "systemctl disable --now rke2-agent"),
    ("k0s", "a k0s worker", "k0s stop"),
];

/// Kubelets, k3s and its kin, and a stock KubeEdge edgecore.
pub fn other_agents(host: &Host) -> Vec<Finding> {
    let own = host.own_program();
    host.processes().iter().filter_map(|process| judge(process, &own)).collect()
}

fn judge(process: &Process, own: &std::path::Path) -> Option<Finding> {
    let what = |text: &str| format!("{text} runs here (pid {}, {})", process.pid, process.exe.display());
    let name = program_name(process);
    if name == "edgecore" {
        return edgecore(process, own);
    }
    let (_, text, remedy) = AGENTS.iter().find(|(agent, _, _)| name == *agent)?;
    Some(Finding::error(CHECK, what(text)).why(WHY).remedy(*remedy))
}

fn edgecore(process: &Process, own: &std::path::Path) -> Option<Finding> {
    // A command of ours (join, doctor, adopt) is not an agent.
    let word = process.arguments.get(1).map_or("", String::as_str);
    if process.pid == std::process::id() || ["join", "doctor", "adopt", "config", "runtime"].contains(&word) {
        return None;
    }
    let at = format!("(pid {}, {})", process.pid, process.exe.display());
    Some(if process.exe == own {
        Finding::note(CHECK, format!("this node's agent runs {at}"))
    } else {
        Finding::error(CHECK, format!("another edgecore runs here {at}"))
            .why(WHY)
            .remedy("edgecore adopt (takes over a KubeEdge node, nothing restarts), or: systemctl disable --now edgecore")
    })
}

/// `k3s agent` and `k3s server` are one program.
fn program_name(process: &Process) -> String {
    let word = process.arguments.get(1).map_or("", String::as_str);
    match process.name.as_str() {
        "k3s" => format!("k3s-{word}"),
        name => name.to_owned(),
    }
}
