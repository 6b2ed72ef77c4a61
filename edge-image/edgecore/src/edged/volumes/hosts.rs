//! /etc/hosts of a pod, as kubelet writes it.

use crate::edged::pod::Pod;

const OWN_NETWORK: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
     fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
const HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";

/// `host_file`: the node's own, for pods on its network. `domain`: `<subdomain>.<namespace>.svc.<cluster domain>` or empty.
pub fn render(pod: &Pod, domain: &str, ips: &[String], host_file: &str) -> String {
    let mut text = match pod.spec.host_network {
        true => format!("{HOST_NETWORK}{host_file}"),
        false => OWN_NETWORK.to_string(),
    };
    if !pod.spec.host_network {
        let name = pod.hostname();
        for ip in ips {
            match domain {
                "" => text.push_str(&format!("{ip}\t{name}\n")),
                domain => text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
            }
        }
    }
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    text
}
