//! Pods, what they mount, their status, their streams and their end.

use std::{process::Stdio, time::Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    host::NODE,
    kubectl::Kubectl,
    steps::{Steps, wait_for},
};
use serde_json::{Value, json};

use super::{SOON, Story};
use crate::Running;

const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { mode: "one <two> & three" }
---
apiVersion: v1
kind: Secret
metadata: { name: password }
stringData: { word: first }
---
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 20
  containers:
    - name: main
      image: docker.io/kinglet/busybox:1
      command: [sh, -c, "echo mode $(cat /settings/mode) word $(cat /password/word) from $FROM; trap 'echo asked to stop; sleep 1; exit 0' TERM; while :; do sleep 0.2; done"]
      env: [{ name: FROM, valueFrom: { configMapKeyRef: { name: settings, key: mode } } }]
      volumeMounts:
        - { name: settings, mountPath: /settings }
        - { name: password, mountPath: /password }
        - { name: token, mountPath: /token }
  volumes:
    - { name: settings, configMap: { name: settings } }
    - { name: password, secret: { secretName: password } }
    - { name: token, projected: { sources: [{ serviceAccountToken: { path: vault, audience: vault, expirationSeconds: 700 } }] } }
---
apiVersion: v1
kind: Pod
metadata: { name: breaks }
spec:
  nodeName: NODE
  restartPolicy: Never
  containers:
    - { name: main, image: "docker.io/kinglet/busybox:1", command: [sh, -c, "echo broken; exit 3"] }
---
apiVersion: v1
kind: Pod
metadata: { name: ends }
spec:
  nodeName: NODE
  restartPolicy: Never
  containers:
    - { name: main, image: "docker.io/kinglet/busybox:1", command: ["true"] }
---
apiVersion: v1
kind: Pod
metadata: { name: lacks }
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
    - { name: main, image: "docker.io/kinglet/busybox:1", command: [sleep, "1000"], envFrom: [{ configMapRef: { name: later } }] }
"#;

pub fn tell(story: &mut Story<'_>, steps: &mut Steps) -> Result<Running> {
    let kubectl = story.kubectl.clone();
    steps.step("a pod with config map, secret and tokens runs; status as kubectl shows it", || {
        kubectl.apply_text(story.dir, &OBJECTS.replace("NODE", NODE))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])?;
        let line = kubectl.run(&["get", "pod", "web", "--no-headers"])?;
        ensure!(line.split_whitespace().collect::<Vec<_>>()[1..4] == ["1/1", "Running", "0"], "{line}");
        let pod = kubectl.json(&["get", "pod", "web"])?;
        for key in ["podIP", "hostIP", "startTime"] {
            ensure!(pod["status"][key].is_string(), "{key}: {}", pod["status"]);
        }
        Ok(())
    })?;
    steps.step("pods that end and fail say so; one that lacks a config map says which", || {
        wait_for(SOON, "both ends", || {
            let phase = |pod: &str| kubectl.run(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"]);
            Ok((phase("breaks")? == "Failed" && phase("ends")? == "Succeeded").then_some(()))
        })?;
        let pod = kubectl.json(&["get", "pod", "breaks"])?;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        ensure!(ended["exitCode"] == 3 && ended["reason"] == "Error", "{ended}");
        wait_for(SOON, "why it waits", || {
            let pod = kubectl.json(&["get", "pod", "lacks"])?;
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            Ok((waiting["reason"] == "CreateContainerConfigError").then_some(()))
        })?;
        kubectl.run(&["create", "configmap", "later", "--from-literal=a=b"])?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/lacks", "--timeout=90s"])?;
        kubectl.run(&["delete", "pod", "breaks", "ends", "lacks", "--timeout=60s"]).map(drop)
    })?;
    steps.step("every delivery is acknowledged: ObjectSyncs hold the delivered versions", || {
        wait_for(SOON, "versions", || {
            let all = kubectl.json(&["get", "objectsyncs", "-A"])?;
            let items = all["items"].as_array().context("a list")?;
            let waits = items.iter().find(|item| {
                ["", "0"].contains(&item["status"]["objectResourceVersion"].as_str().unwrap_or_default())
            });
            match waits {
                None if !items.is_empty() => Ok(Some(())),
                waits => anyhow::bail!("not delivered: {waits:?}"),
            }
        })
    })?;
    steps.step("kubectl logs and exec through CloudStream and EdgeStream", || streams(story))?;
    steps.step("a changed config map and secret arrive in the volumes", || {
        kubectl.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"mode":"changed"}}"#])?;
        kubectl.run(&["patch", "secret", "password", "-p", r#"{"stringData":{"word":"second"}}"#])?;
        wait_for(SOON, "the new values", || {
            let seen =
                kubectl.run(&["exec", "web", "--", "sh", "-c", "cat /settings/mode /password/word"])?;
            Ok((seen == "changedsecond").then_some(()))
        })
    })?;
    steps.step("projected service account tokens are valid, for their audience", || {
        let token = |path: &str| kubectl.run(&["exec", "web", "--", "cat", path]);
        let standard = token("/var/run/secrets/kubernetes.io/serviceaccount/token")?;
        let review = review(story, &standard, &[])?;
        ensure!(review["authenticated"] == true, "{review}");
        ensure!(review["user"]["username"] == "system:serviceaccount:default:default", "{review}");
        let vault = token("/token/vault")?;
        ensure!(self::review(story, &vault, &["vault"])?["authenticated"] == true, "the vault's token");
        ensure!(self::review(story, &vault, &[])?["authenticated"] != true, "it is for the vault only");
        let ca = token("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")?;
        ensure!(ca.contains("BEGIN CERTIFICATE"), "{ca}");
        Ok(())
    })?;
    steps.step("a deleted pod ends gracefully and is gone at both ends", || {
        kubectl
            .apply_text(story.dir, &OBJECTS.replace("NODE", NODE).replace("name: web,", "name: short,"))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/short", "--timeout=60s"])?;
        let uid = kubectl.run(&["get", "pod", "short", "-o", "jsonpath={.metadata.uid}"])?;
        let begun = Instant::now();
        kubectl.run(&["delete", "pod", "short", "breaks", "ends", "lacks", "--timeout=60s"])?;
        let took = begun.elapsed().as_secs_f64();
        ensure!(
            (1.0..18.0).contains(&took),
            "its trap takes a second, and its grace is 20: it took {took:.1} s"
        );
        wait_for(SOON, "its ObjectSync's end", || {
            let names = kubectl.run(&["get", "objectsyncs", "-A", "-o", "name"])?;
            Ok((!names.contains(&uid)).then_some(()))
        })
    })?;
    Running::seen(&story.kubectl)
}

fn streams(story: &Story<'_>) -> Result<()> {
    let kubectl = &story.kubectl;
    let said = wait_for(SOON, "the tunnel", || kubectl.run(&["logs", "web"]).map(Some))?;
    ensure!(said.contains("mode one <two> & three word first from one <two> & three"), "{said:?}");
    let stamped = kubectl.run(&["logs", "web", "--tail=1", "--timestamps"])?;
    ensure!(stamped.starts_with("20"), "{stamped}");
    let output =
        kubectl.command(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).output()?;
    ensure!(output.status.code() == Some(3), "exit code {:?}", output.status);
    ensure!(output.stdout == b"out\n" && output.stderr.starts_with(b"err\n"), "{output:?}");
    // Bytes that are no text, both ways.
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut child = kubectl
        .command(&["exec", "-i", "web", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &sent));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    ensure!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());
    // The API server's proxy refuses nodes on the loopback: the stream server is asked as the API server would ask it.
    let (certificate, key) = story.plane.certificate("scraper", "/O=system:masters/CN=scraper")?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {
            "server": format!("https://127.0.0.1:{}", story.cloud.stream), "certificate-authority": story.plane.ca(),
        }}],
        "users": [{"name": "it", "user": {"client-certificate": certificate, "client-key": key}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    let file = story.dir.join("stream.kubeconfig");
    std::fs::write(&file, config.to_string())?;
    let summary =
        Kubectl::new(kubectl.program(), &file, story.dir).run(&["get", "--raw", "/stats/summary"])?;
    ensure!(summary.contains("\"nodeName\"") && summary.contains("\"web\""), "{summary}");
    Ok(())
}

/// The API server's word on a token.
fn review(story: &Story<'_>, token: &str, audiences: &[&str]) -> Result<Value> {
    let mut spec = json!({"token": token.trim()});
    if !audiences.is_empty() {
        spec["audiences"] = json!(audiences);
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {"name": "x"}, "spec": spec});
    let file = story.dir.join("review.json");
    std::fs::write(&file, request.to_string())?;
    let file = file.to_str().context("path is not UTF-8")?;
    let answer = story.kubectl.json(&["create", "-f", file])?;
    Ok(answer["status"].clone())
}
