//! Names inside pods: the node's resolv.conf, the cluster's DNS where there is one, and the pod's own wishes.
//!
//! Rules, bounds and words are kubelet's (pkg/kubelet/network/dns; documented as "DNS for Services and Pods").

use super::{cri::messages::DnsConfig, pod::Pod};

/// The resolver bounds: more are ignored by libc.
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolver {
    pub host: DnsConfig,
    /// Empty: there is no cluster DNS, `ClusterFirst` then means the node's.
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
}

/// What kubelet warns of, as reason and text of an event.
pub type Warnings = Vec<(&'static str, String)>;

/// Reads resolv.conf; unknown lines are skipped.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_string)),
            Some("search") => config.searches = words.map(str::to_string).collect(),
            Some("options") => config.options = words.map(str::to_string).collect(),
            _ => {}
        }
    }
    config
}

impl Resolver {
    pub fn of_pod(&self, pod: &Pod) -> DnsConfig {
        self.with_warnings(pod).0
    }

    pub fn with_warnings(&self, pod: &Pod) -> (DnsConfig, Warnings) {
        let mut warnings = Warnings::new();
        let policy = match pod.spec.dns_policy.as_str() {
            "ClusterFirst" | "" if pod.spec.host_network => "Default",
            "ClusterFirstWithHostNet" | "" => "ClusterFirst",
            other => other,
        };
        let mut config = match policy {
            "None" => DnsConfig::default(),
            "ClusterFirst" if !self.cluster_dns.is_empty() => self.cluster(&pod.metadata.namespace),
            // Without a cluster DNS this is how every pod of the node is, not news about one: kubelet's `MissingClusterDNS`
            // would stand at each.
            _ => self.host.clone(),
        };
        if let Some(own) = &pod.spec.dns_config {
            config.servers.extend(own.nameservers.clone());
            config.searches.extend(own.searches.clone());
            for option in &own.options {
                config.options.retain(|known| known.split(':').next() != Some(option.name.as_str()));
                config.options.push(match &option.value {
                    Some(value) => format!("{}:{value}", option.name),
                    None => option.name.clone(),
                });
            }
        }
        without_duplicates(&mut config.servers);
        without_duplicates(&mut config.searches);
        if config.servers.len() > SERVERS_MAX {
            config.servers.truncate(SERVERS_MAX);
            warnings.push((
                "DNSConfigForming",
                format!(
                    "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                    config.servers.join(" ")
                ),
            ));
        }
        if bound_searches(&mut config.searches) {
            warnings.push((
                "DNSConfigForming",
                format!(
                    "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                    config.searches.join(" ")
                ),
            ));
        }
        (config, warnings)
    }

    /// What a pod's hostname is completed with: `<subdomain>.<namespace>.svc.<cluster domain>`; empty without a subdomain.
    pub fn domain_of(&self, pod: &Pod) -> String {
        match (pod.spec.subdomain.as_str(), self.cluster_domain.as_str()) {
            ("", _) => String::new(),
            (subdomain, "") => format!("{subdomain}.{}.svc", pod.metadata.namespace),
            (subdomain, domain) => format!("{subdomain}.{}.svc.{domain}", pod.metadata.namespace),
        }
    }

    fn cluster(&self, namespace: &str) -> DnsConfig {
        let domain = &self.cluster_domain;
        let mut searches = match domain.is_empty() {
            true => Vec::new(),
            false => vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
        };
        searches.extend(self.host.searches.clone());
        DnsConfig { servers: self.cluster_dns.clone(), searches, options: vec!["ndots:5".into()] }
    }
}

fn without_duplicates(list: &mut Vec<String>) {
    let mut seen: Vec<String> = Vec::new();
    list.retain(|entry| {
        let fresh = !seen.contains(entry);
        if fresh {
            seen.push(entry.clone());
        }
        fresh
    });
}

/// Cuts the list to what libc takes. True when something was cut.
fn bound_searches(searches: &mut Vec<String>) -> bool {
    let before = searches.len();
    searches.truncate(SEARCHES_MAX);
    while !searches.is_empty() && searches.iter().map(|s| s.len() + 1).sum::<usize>() - 1 > SEARCH_CHARS_MAX {
        searches.pop();
    }
    searches.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut all = json!({ "containers": [{ "name": "c", "image": "i" }] });
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        let metadata = json!({ "name": "web", "namespace": "prod", "uid": "u" });
        Pod::parse(json!({ "metadata": metadata, "spec": all }).to_string().as_bytes()).unwrap()
    }

    fn resolver() -> Resolver {
        Resolver {
            host: parse_resolv_conf("nameserver 192.0.2.1\nsearch lan\noptions rotate\n# x\n"),
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
        }
    }

    /// Policy, what of the pod, and the resolv.conf that comes out.
    #[test]
    fn policies() {
        let cluster = "10.96.0.10 | prod.svc.cluster.local svc.cluster.local cluster.local lan | ndots:5";
        let host = "192.0.2.1 | lan | rotate";
        let own = json!({ "nameservers": ["192.0.2.9"], "searches": ["my.dns"], "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }] });
        for (spec, expected) in [
            (json!({}), cluster),
            (json!({ "dnsPolicy": "ClusterFirst" }), cluster),
            (json!({ "dnsPolicy": "ClusterFirst", "hostNetwork": true }), host),
            (json!({ "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true }), cluster),
            (json!({ "dnsPolicy": "Default" }), host),
            (json!({ "dnsPolicy": "None", "dnsConfig": own }), "192.0.2.9 | my.dns | ndots:2 edns0"),
            (
                json!({ "dnsConfig": own }),
                "10.96.0.10 192.0.2.9 | prod.svc.cluster.local svc.cluster.local cluster.local lan my.dns | ndots:2 edns0",
            ),
            (json!({ "dnsPolicy": "Default", "dnsConfig": { "nameservers": ["192.0.2.1"] } }), host),
        ] {
            let config = resolver().of_pod(&pod(spec.clone()));
            let text =
                [config.servers.join(" "), config.searches.join(" "), config.options.join(" ")].join(" | ");
            assert_eq!(text, expected, "{spec}");
        }
        let alone = Resolver { cluster_dns: Vec::new(), ..resolver() };
        assert_eq!(alone.of_pod(&pod(json!({}))), alone.host, "no cluster DNS: the node's");
    }

    #[test]
    fn what_is_over_the_bounds_is_left_out_and_told() {
        let servers: Vec<String> = (1..=4).map(|n| format!("192.0.2.{n}")).collect();
        let searches: Vec<String> = (0..40).map(|n| format!("domain-{n}.test")).collect();
        let own = json!({ "nameservers": servers, "searches": searches });
        let (config, warnings) =
            resolver().with_warnings(&pod(json!({ "dnsPolicy": "None", "dnsConfig": own })));
        assert_eq!((config.servers.len(), config.searches.len()), (3, 32));
        assert!(warnings[0].1.ends_with("the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3"));
        assert!(warnings[1].1.starts_with("Search Line limits were exceeded"));
        let long: Vec<String> = (0..20).map(|n| format!("{n:0200}")).collect();
        let own = json!({ "nameservers": ["192.0.2.1"], "searches": long });
        let (config, _) = resolver().with_warnings(&pod(json!({ "dnsPolicy": "None", "dnsConfig": own })));
        assert_eq!(config.searches.len(), 10);
    }

    #[test]
    fn a_subdomain_makes_a_full_name() {
        let spec = json!({ "hostname": "db-0", "subdomain": "db" });
        assert_eq!(resolver().domain_of(&pod(spec)), "db.prod.svc.cluster.local");
    }
}
