//! The command line: what a person may type, and the help for it.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use lexopt::prelude::{Long, Short, Value, ValueExt};

use crate::{adopt, config::CONFIG_PATH, device_call::Call, join};

pub const HELP: &str = "\
edgecore: the agent of a Kinglet node (KubeEdge's edgecore, small)

  edgecore [--config FILE]
      Runs the agent. Default: /etc/kubeedge/config/edgecore.yaml
      Example: edgecore --config /etc/kubeedge/config/edgecore.yaml

  edgecore join --cloudcore-ipport HOST:10000 --token TOKEN
      Makes this machine a node of a cloud: writes certificates and configuration, then ends.
      The token is what `cloudcore token` (or `keadm gettoken`) prints.
      Example: edgecore join --cloudcore-ipport 192.0.2.1:10000 --token 3f...e1 --edgenode-name line3
        -e, --cloudcore-ipport HOST:PORT        the cloud's hub
        -t, --token TOKEN                       or in the environment: KINGLET_TOKEN
        -s, --certport PORT                     the cloud's join port (10002)
        -i, --edgenode-name NAME                default: the host's name
        -l, --labels KEY=VALUE[,...]            labels of the node
        -p, --remote-runtime-endpoint URL       default: unix:///run/containerd/containerd.sock
            --cgroupdriver cgroupfs|systemd     default: what the runtime uses
            --discovery-prefix PREFIX           show devices to Home Assistant (homeassistant)
            --adopt                             move a node that has joined already; its pods go on running
            --force                             join in spite of what `edgecore doctor` finds
            --root DIR                          put all files below DIR (tests)

  edgecore alone
      Makes this machine a node without a cloud: static pods, and devices from /etc/kinglet/devices. It can join one later.
      Example: edgecore alone --edgenode-name greenhouse --discovery-prefix homeassistant
        -i, --edgenode-name NAME                default: the host's name
        -p, --remote-runtime-endpoint URL       as for join
            --cgroupdriver cgroupfs|systemd     as for join
            --discovery-prefix PREFIX           show devices to Home Assistant (homeassistant)

  edgecore pins DIR
      Prints the block of a Pi's config.txt with the levels from power-on that the device files in DIR ask for.

  edgecore doctor
      Says what on this machine is in the way of a node, why, and what to do; changes nothing. Exit code 1 if there are errors.
      Example: edgecore doctor --cloudcore-ipport 192.0.2.1:10000
        -c, --config FILE                       default: /etc/kubeedge/config/edgecore.yaml, or what join would write
        -e, --cloudcore-ipport HOST:PORT        try this cloud's ports
        -p, --remote-runtime-endpoint URL       as for join
            --cgroupdriver cgroupfs|systemd     as for join
            --json                              for programs: [{level, check, what, why, remedy}]

  edgecore adopt
      Takes this node over from KubeEdge's edgecore: configuration, certificate, database; what runs goes on running.
      Example: edgecore adopt --dry-run && edgecore adopt
        -c, --config FILE                       KubeEdge's (default: /etc/kubeedge/config/edgecore.yaml)
            --dry-run                           only say what would be done
            --undo                              give the node back to KubeEdge's edgecore
            --force                             leave pods alone that run and are in no database

  edgecore device get|history|set|unset NAMESPACE/NAME [PROPERTY [VALUE]]
      Asks the running agent about a device, or wishes something of it on this node, with or without a cloud. A wish stays until
      it is unset or the cloud wishes anew.
      Example: edgecore device set default/led-1 lit true
        -c, --config FILE                       default: /etc/kubeedge/config/edgecore.yaml

  edgecore config check FILE
      Says which keys of a configuration are wrong or unknown; exit code 1 if there are any.
      Example: edgecore config check /etc/kubeedge/config/edgecore.yaml

  edgecore runtime check ROOT
      Before containerd is started: moves databases that a power cut damaged aside (ExecStartPre of a systemd unit).
      Example: edgecore runtime check /var/lib/containerd

  edgecore runtime start ROOT PROGRAM [ARGUMENT...]
      The same, then becomes PROGRAM; one that keeps ending loses its databases once per boot.

  edgecore --help | --version

Environment: KINGLET_LOG=info,hub=debug sets what is logged.
";

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Run { config: PathBuf },
    Join(join::Options),
    Alone(join::Options),
    Pins { dir: PathBuf },
    Adopt(adopt::Options),
    Doctor { machine: join::Options, config: Option<PathBuf>, json: bool },
    Device { config: PathBuf, device: String, call: Call },
    ConfigCheck { file: PathBuf },
    RuntimeCheck { root: PathBuf },
    RuntimeStart { root: PathBuf, command: Vec<OsString> },
    Help,
    Version,
}

#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("{0}; edgecore --help shows what there is")]
    Arguments(lexopt::Error),
    #[error(
        "edgecore join needs --{0}; example: edgecore join --cloudcore-ipport 192.0.2.1:10000 --token TOKEN"
    )]
    Missing(&'static str),
    #[error("{0}")]
    Join(join::JoinError),
    #[error(
        "edgecore has no command {0:?}; it has join, alone, pins, doctor, adopt, device, config check and runtime check, and runs without one"
    )]
    Command(String),
    #[error("--cgroupdriver {0:?} is not known; use cgroupfs or systemd, as containerd is configured")]
    CgroupDriver(String),
    #[error("--remote-runtime-endpoint {0:?} must start with unix://")]
    Runtime(String),
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        UsageError::Arguments(error)
    }
}

/// `arguments` without the program's name. `token` is the environment's.
pub fn parse(arguments: Vec<OsString>, token: Option<String>) -> Result<Command, UsageError> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut root = PathBuf::from("/");
    let mut config = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") | Short('c') => config = Some(PathBuf::from(parser.value()?)),
            Long("root") => root = parser.value()?.into(),
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") | Short('V') => return Ok(Command::Version),
            Value(word) if word == "help" => return Ok(Command::Help),
            Value(word) if word == "version" => return Ok(Command::Version),
            Value(word) if word == "join" => return parse_join(parser, root, token),
            Value(word) if word == "alone" => return parse_alone(parser, root),
            Value(word) if word == "pins" => return parse_pins(parser),
            Value(word) if word == "doctor" => return parse_doctor(parser, root, config),
            Value(word) if word == "adopt" => return parse_adopt(parser, root, config),
            Value(word) if word == "device" => return parse_device(parser, root, config),
            Value(word) if word == "config" => return parse_config(parser),
            Value(word) if word == "runtime" => return parse_runtime(parser),
            Value(word) => return Err(UsageError::Command(word.to_string_lossy().into_owned())),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Run { config: config.unwrap_or_else(|| root.join(CONFIG_PATH)) })
}

fn parse_device(
    mut parser: lexopt::Parser,
    root: PathBuf,
    mut config: Option<PathBuf>,
) -> Result<Command, UsageError> {
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") | Short('c') => config = Some(parser.value()?.into()),
            Long("help") | Short('h') => return Ok(Command::Help),
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (device, call) = match words[..] {
        ["get", device] => (device, Call::Get),
        ["history", device] => (device, Call::History { property: String::new() }),
        ["history", device, property] => (device, Call::History { property: property.into() }),
        ["set", device, property, value] => {
            (device, Call::Set { property: property.into(), value: value.into() })
        }
        ["unset", device, property] => (device, Call::Unset { property: property.into() }),
        _ => {
            return Err(UsageError::Command("device without get, history, set or unset and a device".into()));
        }
    };
    let config = config.unwrap_or_else(|| root.join(CONFIG_PATH));
    Ok(Command::Device { config, device: device.into(), call })
}

fn parse_config(mut parser: lexopt::Parser) -> Result<Command, UsageError> {
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Command::Help),
            Value(word) => words.push(word),
            other => return Err(other.unexpected().into()),
        }
    }
    match &words[..] {
        [check, file] if check == "check" => Ok(Command::ConfigCheck { file: file.into() }),
        _ => Err(UsageError::Command("config without check FILE".into())),
    }
}

fn parse_pins(mut parser: lexopt::Parser) -> Result<Command, UsageError> {
    let words: Vec<OsString> = parser.raw_args()?.collect();
    match &words[..] {
        [dir] => Ok(Command::Pins { dir: dir.into() }),
        _ => Err(UsageError::Command("pins without DIR".into())),
    }
}

fn parse_alone(mut parser: lexopt::Parser, root: PathBuf) -> Result<Command, UsageError> {
    let mut options = no_options(root, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("edgenode-name") | Short('i') => options.node_name = Some(parser.value()?.string()?),
            Long("remote-runtime-endpoint") | Short('p') => {
                options.runtime_endpoint = Some(endpoint(&mut parser)?)
            }
            Long("cgroupdriver") => options.cgroup_driver = Some(cgroup_driver(&mut parser)?),
            Long("discovery-prefix") => options.discovery_prefix = Some(parser.value()?.string()?),
            Long("root") => options.root = parser.value()?.into(),
            Long("help") | Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Alone(options))
}

fn parse_runtime(mut parser: lexopt::Parser) -> Result<Command, UsageError> {
    // Everything behind the folder belongs to the program.
    let words: Vec<OsString> = parser.raw_args()?.collect();
    match &words[..] {
        [check, root] if check == "check" => Ok(Command::RuntimeCheck { root: root.into() }),
        [start, root, command @ ..] if start == "start" && !command.is_empty() => {
            Ok(Command::RuntimeStart { root: root.into(), command: command.to_vec() })
        }
        _ => Err(UsageError::Command("runtime without check ROOT or start ROOT PROGRAM".into())),
    }
}

fn no_options(root: PathBuf, token: Option<String>) -> join::Options {
    join::Options {
        cloud: String::new(),
        token: token.unwrap_or_default(),
        cert_port: 10002,
        node_name: None,
        labels: BTreeMap::new(),
        runtime_endpoint: None,
        cgroup_driver: None,
        discovery_prefix: None,
        root,
        adopt: false,
        force: false,
    }
}

fn parse_doctor(
    mut parser: lexopt::Parser,
    root: PathBuf,
    mut config: Option<PathBuf>,
) -> Result<Command, UsageError> {
    let mut machine = no_options(root, None);
    let mut json = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") | Short('c') => config = Some(parser.value()?.into()),
            Long("cloudcore-ipport") | Short('e') => machine.cloud = parser.value()?.string()?,
            Long("certport") | Short('s') => machine.cert_port = parser.value()?.parse()?,
            Long("remote-runtime-endpoint") | Short('p') => {
                machine.runtime_endpoint = Some(endpoint(&mut parser)?)
            }
            Long("cgroupdriver") => machine.cgroup_driver = Some(cgroup_driver(&mut parser)?),
            Long("json") => json = true,
            Long("root") => machine.root = parser.value()?.into(),
            Long("help") | Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Doctor { machine, config, json })
}

fn parse_adopt(
    mut parser: lexopt::Parser,
    root: PathBuf,
    config: Option<PathBuf>,
) -> Result<Command, UsageError> {
    let config = config.unwrap_or_else(|| root.join(CONFIG_PATH));
    let mut options = adopt::Options { config, dry_run: false, undo: false, force: false };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") | Short('c') => options.config = parser.value()?.into(),
            Long("dry-run") => options.dry_run = true,
            Long("undo") => options.undo = true,
            Long("force") => options.force = true,
            Long("help") | Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Adopt(options))
}

fn endpoint(parser: &mut lexopt::Parser) -> Result<String, UsageError> {
    let endpoint = parser.value()?.string()?;
    if endpoint.starts_with("unix://") { Ok(endpoint) } else { Err(UsageError::Runtime(endpoint)) }
}

fn cgroup_driver(parser: &mut lexopt::Parser) -> Result<String, UsageError> {
    let driver = parser.value()?.string()?;
    if ["cgroupfs", "systemd"].contains(&driver.as_str()) {
        Ok(driver)
    } else {
        Err(UsageError::CgroupDriver(driver))
    }
}

fn parse_join(
    mut parser: lexopt::Parser,
    root: PathBuf,
    token: Option<String>,
) -> Result<Command, UsageError> {
    let mut options = no_options(root, token);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("cloudcore-ipport") | Short('e') => options.cloud = parser.value()?.string()?,
            Long("token") | Short('t') => options.token = parser.value()?.string()?,
            Long("certport") | Short('s') => options.cert_port = parser.value()?.parse()?,
            Long("edgenode-name") | Short('i') => options.node_name = Some(parser.value()?.string()?),
            Long("labels") | Short('l') => {
                let text = parser.value()?.string()?;
                options.labels.extend(join::parse_labels(&text).map_err(UsageError::Join)?);
            }
            Long("remote-runtime-endpoint") | Short('p') => {
                options.runtime_endpoint = Some(endpoint(&mut parser)?)
            }
            Long("cgroupdriver") => options.cgroup_driver = Some(cgroup_driver(&mut parser)?),
            Long("discovery-prefix") => options.discovery_prefix = Some(parser.value()?.string()?),
            Long("force") => options.force = true,
            Long("adopt") => options.adopt = true,
            Long("root") => options.root = parser.value()?.into(),
            Long("help") | Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.cloud.is_empty() {
        return Err(UsageError::Missing("cloudcore-ipport"));
    }
    if options.token.is_empty() {
        return Err(UsageError::Missing("token"));
    }
    Ok(Command::Join(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from).collect(), None).map_err(|error| error.to_string())
    }

    #[test]
    fn commands() {
        assert_eq!(
            parse_words("").unwrap(),
            Command::Run { config: "/etc/kubeedge/config/edgecore.yaml".into() }
        );
        assert_eq!(parse_words("--config x.yaml").unwrap(), Command::Run { config: "x.yaml".into() });
        assert_eq!(parse_words("config check f").unwrap(), Command::ConfigCheck { file: "f".into() });
        assert_eq!(parse_words("join --help").unwrap(), Command::Help);
        assert_eq!(parse_words("pins /d").unwrap(), Command::Pins { dir: "/d".into() });
        let alone = parse_words("alone -i n --discovery-prefix homeassistant").unwrap();
        let Command::Alone(options) = alone else { panic!() };
        assert_eq!(
            (options.node_name.as_deref(), options.discovery_prefix.as_deref()),
            (Some("n"), Some("homeassistant"))
        );
        let line = "join --cloudcore-ipport=c:10000 --token t --certport 2 --edgenode-name n --labels a=b,c= \
                    --remote-runtime-endpoint unix:///s --cgroupdriver systemd --root /r";
        let Command::Join(options) = parse_words(line).unwrap() else { panic!() };
        assert_eq!((options.cloud.as_str(), options.cert_port, options.adopt), ("c:10000", 2, false));
        assert_eq!(options.labels, BTreeMap::from([("a".into(), "b".into()), ("c".into(), String::new())]));
        assert_eq!(options.root, PathBuf::from("/r"));
    }

    #[test]
    fn wrong_lines_say_what_to_do() {
        for (line, expected) in [
            ("join --token t", "needs --cloudcore-ipport"),
            ("join -e c:1", "needs --token"),
            ("join -e c:1 -t t --labels x", "is not KEY=VALUE"),
            ("join -e c:1 -t t --cgroupdriver none", "use cgroupfs or systemd"),
            ("join -e c:1 -t t --remote-runtime-endpoint /run/x", "must start with unix://"),
            ("join --frobnicate", "--frobnicate"),
            ("pins", "pins without DIR"),
            ("alone --token t", "--token"),
            ("stop", "has no command \"stop\""),
            ("config", "has no command"),
        ] {
            let error = parse_words(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
