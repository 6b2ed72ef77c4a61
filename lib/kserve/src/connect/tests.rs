use serde_json::json;

use super::*;

fn pod() -> Value {
    json!({"metadata": {"namespace": "a", "name": "web"}, "spec": {"nodeName": "pi",
        "containers": [{"name": "one"}, {"name": "two"}], "initContainers": [{"name": "first"}],
        "ephemeralContainers": [{"name": "debugger"}]}})
}

fn small(node: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": "web"}, "spec": {"nodeName": node, "containers": [{"name": "c"}]}})
}

fn query(text: &str) -> Query {
    Query::parse(Some(text))
}

#[test]
fn log_options_become_the_kubelets() {
    let ask = |text: &str| log(&pod(), &query(text)).map(|ask| ask.map(|ask| ask.path));
    let good = "container=two&follow=true&previous=false&timestamps=1&sinceSeconds=60&tailLines=0&limitBytes=5&stream=All\
                &insecureSkipTLSVerifyBackend=true";
    assert_eq!(
        ask(good).unwrap().unwrap(),
        "/containerLogs/a/web/two?follow=true&timestamps=true&sinceSeconds=60&tailLines=0&limitBytes=5"
    );
    assert_eq!(
        ask("container=debugger&sinceTime=2026-01-02T03:04:05%2B01:00&stream=Stderr").unwrap().unwrap(),
        "/containerLogs/a/web/debugger?sinceTime=2026-01-02T03%3A04%3A05%2B01%3A00&stream=Stderr"
    );
    for (text, code, words) in [
        (
            "",
            400,
            "a container name must be specified for pod web, choose one of: [one two] or one of the init containers: [first]",
        ),
        ("container=x", 400, "container x is not valid for pod web"),
        (
            "container=one&tailLines=-1",
            422,
            "PodLogOptions \"web\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "container=one&limitBytes=0&sinceSeconds=0",
            422,
            "PodLogOptions \"web\" is invalid: [sinceSeconds: Invalid value: 0: must be greater than 0, limitBytes: Invalid value: 0: must be greater than 0]",
        ),
        (
            "container=one&sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z",
            422,
            "PodLogOptions \"web\" is invalid: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
        ),
        ("container=one&stream=x", 422, "supported values: \"All\", \"Stderr\", \"Stdout\""),
        ("container=one&stream=Stdout&tailLines=1", 422, "mutually exclusive"),
        ("container=one&tailLines=many", 400, "is not a number"),
        ("container=one&follow=perhaps", 400, "is not true or false"),
        ("container=one&sinceTime=yesterday", 400, "is not a time"),
    ] {
        let error = ask(text).unwrap_err();
        assert_eq!(error.code, code, "{text}");
        assert!(error.message.contains(words), "{text}: {}", error.message);
    }
    assert_eq!(log(&small(""), &query("")).unwrap(), None, "no node: no log, and no error");
}

#[test]
fn commands_name_their_streams() {
    let ask = command(&pod(), &query("container=one&command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=true&stderr=true&tty=true"), "exec").unwrap();
    assert_eq!(ask.node, "pi");
    assert_eq!(
        ask.path,
        "/exec/a/web/one?command=sh&command=-c&command=echo%20a%26b&input=1&output=1&error=1&tty=1"
    );
    let streams = Purpose::Command { pod: "web".into(), stdin: true, stdout: true, stderr: false, tty: true };
    assert_eq!(ask.purpose, streams);
    let attach = command(&small("pi"), &query("stdout=1"), "attach").unwrap();
    assert_eq!(attach.path, "/attach/a/web/c?output=1");
    for (pod, text, words) in [
        (small(""), "command=x&stdout=1", "pod web does not have a host assigned"),
        (small("pi"), "command=x", "at least 1 of stdin, stdout, stderr"),
        (small("pi"), "stdout=1", "at least one command"),
    ] {
        let error = command(&pod, &query(text), "exec").unwrap_err();
        assert_eq!((error.code, error.message.contains(words)), (400, true), "{}", error.message);
    }
}

#[test]
fn ports_to_forward() {
    let ask = |text: &str, websocket| port_forward(&small("pi"), &query(text), websocket);
    assert_eq!(ask("", false).unwrap().path, "/portForward/a/web");
    let two = ask("ports=80,443&ports=8080", true).unwrap();
    assert_eq!(two.path, "/portForward/a/web?port=80%2C443%2C8080");
    assert_eq!(two.purpose, Purpose::PortForward { pod: "web".into(), ports: vec![80, 443, 8080] });
    for bad in ["ports=0", "ports=70000", "ports=x", "ports=,"] {
        assert_eq!(ask(bad, true).unwrap_err().code, 400, "{bad}");
    }
    let many = format!("ports={}", vec!["1"; PORTS_MAX + 1].join(","));
    assert_eq!(ask(&many, true).unwrap_err().code, 400);
    assert_eq!(port_forward(&small(""), &query(""), false).unwrap_err().code, 400);
}
