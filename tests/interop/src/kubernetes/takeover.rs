//! In the place of KubeEdge's cloudcore, and back: no node joins again, no pod restarts, nothing is sent that was there.

use anyhow::{Context, Result, ensure};
use e2e::{
    cloud::Cloud,
    host::{NODE, Node},
    kubectl::Kubectl,
    process::tail,
    steps::{Steps, wait_for},
};

use super::{LATE, READY, SOON, pod_runs, recorded};
use crate::{Bench, ControlPlane, Peer, stock_cloud::cloudcore::StockCloud};

const RULE: &str = r#"
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata: { name: to-the-cloud, namespace: default }
spec: { source: a, sourceResource: {}, target: b, targetResource: {} }
"#;

pub fn run(bench: &Bench, steps: &mut Steps) -> Result<()> {
    let peers = bench.peers()?;
    let (plane, _) = steps.step("a control plane starts", || ControlPlane::start(peers, &bench.dir, &[]))?;
    let mut stock = StockCloud::new(&peers.get(Peer::Cloudcore)?, &plane, &bench.dir)?;
    steps.step(&format!("KubeEdge cloudcore {} starts", stock.version), || stock.start())?;
    let mut node = Node::new(&bench.programs, &bench.dir)?;
    let ours = Cloud::new(&bench.programs.cloudcore, &bench.dir.join("ours"), &["127.0.0.1", "localhost"])?
        .on_cluster(&plane.kubeconfig())
        .with_flags(&["--log", "info,cloudcore::hub=debug"]);
    let mut ours = ours.at(stock.hub, stock.join, Some(stock.tunnel));
    let told = tell(bench, &plane.kubectl(), &mut stock, &mut ours, &mut node, steps);
    told.with_context(|| {
        let (edge, cloud) = (tail(&node.log(), 20), tail(&stock.log(), 10));
        format!("edgecore's log:\n{edge}\nKubeEdge's log:\n{cloud}\nour log:\n{}", tail(&ours.log(), 30))
    })
}

fn tell(
    bench: &Bench,
    kubectl: &Kubectl,
    stock: &mut StockCloud,
    ours: &mut Cloud,
    node: &mut Node,
    steps: &mut Steps,
) -> Result<()> {
    steps.step("edgecore joins KubeEdge's cloudcore by its token", || {
        let token = stock.token(kubectl)?;
        node.join_at(stock.hub, stock.join, Some(stock.tunnel), &token, NODE)?;
        node.start()?;
        wait_for(READY, "node Ready", || Ok(kubectl.node_is_ready(NODE)?.then_some(())))
    })?;
    let (before, _) = steps.step("a pod runs", || {
        let before = pod_runs(kubectl, &bench.dir)?;
        recorded(kubectl, &[("Pod", "web"), ("ConfigMap", "settings"), ("Secret", "password")])?;
        Ok(before)
    })?;
    steps.step("KubeEdge's cloudcore ends; ours does not start while a Rule is in use", || {
        settled(kubectl)?;
        stock.kill();
        kubectl.apply_text(&bench.dir, RULE)?;
        let error = ours.start().err().context("it started")?;
        ensure!(format!("{error:#}").contains("Rule (default/to-the-cloud)"), "{error:#}");
        kubectl.run(&["delete", "rules.rules.kubeedge.io", "to-the-cloud"]).map(drop)
    })?;
    steps.step(
        "ours takes its place: the node is back by its certificate, the pod untouched, nothing sent again",
        || {
            ours.start()?;
            kubectl.fresh_lease(NODE, READY)?;
            before.goes_on(kubectl)?;
            nothing_sent_again(ours)
        },
    )?;
    works(bench, kubectl, steps, "ours")?;
    steps.step("a pod is made, and ours ends", || {
        kubectl.apply_text(&bench.dir, &LATE.replace("NODE", NODE))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=90s"])?;
        recorded(kubectl, &[("Pod", "late")])?;
        ours.stop()
    })?;
    steps.step("KubeEdge's is back: the node too, the pods untouched", || {
        stock.start()?;
        kubectl.fresh_lease(NODE, READY)?;
        before.goes_on(kubectl)
    })?;
    steps.step("KubeEdge's deletes what ours had delivered", || {
        kubectl.run(&["delete", "pod", "late", "--timeout=90s"])?;
        before.goes_on(kubectl)
    })?;
    works(bench, kubectl, steps, "KubeEdge's")?;
    steps.step("and ours once more", || {
        settled(kubectl)?;
        stock.kill();
        ours.start()?;
        kubectl.fresh_lease(NODE, READY)?;
        before.goes_on(kubectl)
    })?;
    Ok(())
}

/// KubeEdge writes down what its node acknowledged, a moment later.
fn settled(kubectl: &Kubectl) -> Result<()> {
    wait_for(SOON, "KubeEdge's record of the pod as it is", || {
        let pod = kubectl.json(&["get", "pod", "web"])?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a uid")?;
        let sync = kubectl.json(&["get", "objectsync", &format!("{NODE}.{uid}")])?;
        Ok((sync["status"]["objectResourceVersion"] == pod["metadata"]["resourceVersion"]).then_some(()))
    })
}

/// Neither the pod nor what it mounts.
fn nothing_sent_again(ours: &Cloud) -> Result<()> {
    let log = std::fs::read_to_string(ours.log())?;
    let again: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(&format!("node {NODE}: ")))
        .filter(|line| {
            ["default/pod/", "default/configmap/", "default/secret/"].iter().any(|what| line.contains(what))
        })
        .collect();
    ensure!(again.is_empty(), "sent again: {again:?}");
    Ok(())
}

/// A config map's change reaches the pod, and a new pod runs and goes.
fn works(bench: &Bench, kubectl: &Kubectl, steps: &mut Steps, whose: &str) -> Result<()> {
    steps.step(&format!("a pod is made and deleted under {whose} cloudcore"), || {
        kubectl.apply_text(&bench.dir, &LATE.replace("NODE", NODE).replace("late", "brief"))?;
        kubectl.run(&["wait", "--for=condition=Ready", "pod/brief", "--timeout=90s"])?;
        kubectl.run(&["delete", "pod", "brief", "--timeout=90s"]).map(drop)
    })?;
    Ok(())
}
