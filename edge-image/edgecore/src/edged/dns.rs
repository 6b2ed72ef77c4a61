//! Names inside pods: the node's resolv.conf, the cluster's DNS where there is one, and the pod's own wishes.

use super::{cri::messages::DnsConfig, pod::Pod};

/// The resolver bounds: more are ignored by libc.
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolver {
    pub host: DnsConfig,
    /// Empty: there is no cluster DNS, `ClusterFirst` then means the node's.
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
}

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
        let policy = match pod.spec.dns_policy.as_str() {
            "ClusterFirst" | "" if pod.spec.host_network => "Default",
            "ClusterFirstWithHostNet" | "" => "ClusterFirst",
            other => other,
        };
        let mut config = match policy {
            "None" => DnsConfig::default(),
            "ClusterFirst" if !self.cluster_dns.is_empty() => self.cluster(&pod.metadata.namespace),
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
        config.servers.truncate(SERVERS_MAX);
        config.searches.truncate(SEARCHES_MAX);
        config
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
