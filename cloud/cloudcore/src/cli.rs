//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  cloudcore --advertise-address 192.0.2.7          run, with the embedded Kubernetes API
  kubectl --kubeconfig /var/lib/kinglet/cloud/kubeconfig get nodes
  cloudcore token                                  a join token for any number of nodes, valid for 24 hours
  cloudcore token --node line3-7 --ttl 15m         for this node only; it may replace the device that had the name
  cloudcore node reset line3-7                     revoke its certificate, deliver everything anew to the next one
  cloudcore preflight --kubeconfig ~/.kube/config  what would be in the way on this cluster
  cloudcore config check /etc/kubeedge/config/cloudcore.yaml";

#[derive(Debug, Parser)]
#[command(
    name = "cloudcore",
    version,
    about = "The cloud side of Kinglet: nodes join it, and get their pods and devices from it."
)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Run,
}

// Everything here also stands in the configuration file; what is given here wins.
#[derive(Debug, Default, Args)]
pub struct Run {
    /// KubeEdge's cloudcore.yaml; without it defaults are used
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keys, records and the embedded API's objects [default: /var/lib/kinglet/cloud]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// A kubeconfig of the cluster to serve [default: in a pod, its cluster; else the embedded API]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Take a cluster over though objects of KubeEdge are in use that have no effect here (`cloudcore preflight` lists them)
    #[arg(long)]
    pub accept_missing: bool,
    /// Address or name that nodes dial; repeat it for several
    #[arg(long, value_name = "IP|NAME", value_delimiter = ',', num_args = 1..)]
    pub advertise_address: Vec<String>,
    /// Where the cluster's API server reaches this replica's stream port; stands in the status of its nodes (kubectl logs, exec)
    #[arg(long, value_name = "IP|NAME")]
    pub kubelet_address: Option<String>,
    /// Where all ports listen [default: the API on 127.0.0.1, the others on 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// Port of the Kubernetes API; 0 takes a free one, as for the other ports [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub api_port: Option<u16>,
    /// Port of the nodes' links [default: 10000]
    #[arg(long, value_name = "PORT")]
    pub hub_port: Option<u16>,
    /// Port where nodes join [default: 10002]
    #[arg(long, value_name = "PORT")]
    pub join_port: Option<u16>,
    /// For example info, or info,cloudcore::hub=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a join token (cloudcore may be running)
    Token(Token),
    /// Look at a cluster before cloudcore works on it: what would reach edge nodes, what of KubeEdge's has no effect; changes nothing
    Preflight(Preflight),
    /// Print the CustomResourceDefinitions that cloudcore applies to a cluster
    Crds,
    /// Nodes that joined
    #[command(subcommand)]
    Node(Node),
    /// End a node's session and refuse its keys everywhere, until `unrevoke`, or a join with `token --node NODE`
    Revoke(Revoke),
    /// Take a revoked node back: its certificate is good again
    Unrevoke {
        name: String,
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// The authority that signs nodes' certificates
    #[command(subcommand)]
    Ca(Ca),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The node
    #[arg(required_unless_present = "list")]
    pub name: Option<String>,
    /// Print the revoked nodes instead
    #[arg(long, conflicts_with = "name")]
    pub list: bool,
    /// Why; the node is told
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    #[command(flatten)]
    pub data_dir: DataDir,
}

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make a new CA that signs from now on; the old one stays trusted until `finish`
    Rotate {
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// Which CAs there are, and which nodes have no certificate of the new one yet
    Status {
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// Trust only the new CA; nodes that have no certificate of it must join again
    Finish {
        /// Although there are such nodes
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        data_dir: DataDir,
    },
}

#[derive(Debug, Args)]
pub struct DataDir {
    /// cloudcore's configuration, to find the data directory
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// [default: /var/lib/kinglet/cloud]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Of the cluster that cloudcore works on, where it is not in the configuration; what it keeps is there then
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Preflight {
    /// cloudcore's configuration, to find the kubeconfig
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// [default: that of the configuration, else $KUBECONFIG; in a pod, its cluster]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Token {
    #[command(flatten)]
    pub data_dir: DataDir,
    /// How long it is valid: 90s, 15m, 24h, 7d
    #[arg(long, default_value = "24h", value_parser = seconds)]
    pub ttl: u64,
    /// The only node that may join with it; it may then also replace the device that has the name
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// How many nodes may join with it [default: any number until it expires]
    #[arg(long, value_name = "N")]
    pub uses: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub enum Node {
    /// Revoke a node's certificate and forget what was delivered to it; the next device with this name gets everything anew
    Reset {
        name: String,
        #[command(flatten)]
        data_dir: DataDir,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a cloudcore.yaml; fails on unknown keys
    Check { file: PathBuf },
    /// Print the keys that have an effect, and those that are accepted without one and why
    Keys,
}

fn seconds(text: &str) -> Result<u64, String> {
    let not_a_time = || format!("{text:?} is not a time; write for example 15m, 24h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(not_a_time()),
    };
    let number: u64 = number.parse().map_err(|_| not_a_time())?;
    match number.checked_mul(factor) {
        Some(seconds) if (1..=10 * 365 * 86400).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{text:?} is not between 1s and 3650d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["cloudcore", "token", "--data-dir", "/d", "--ttl", "15m", "--uses", "3"]);
        let Some(Command::Token(token)) = cli.command else { panic!("not a token") };
        assert_eq!((token.ttl, token.uses), (900, Some(3)));
        let run = [
            "cloudcore",
            "--advertise-address",
            "192.0.2.7",
            "--advertise-address",
            "a.example",
            "--api-port",
            "0",
        ];
        assert_eq!(Cli::parse_from(run).run.advertise_address, ["192.0.2.7", "a.example"]);
    }

    #[test]
    fn times_have_a_unit_and_a_bound() {
        assert_eq!(seconds("24h"), Ok(86400));
        for bad in ["", "h", "5y", "-1h", "0s", "99999999999999999999h", "4000d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
