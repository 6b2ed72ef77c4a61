//! `kubectl logs` and `exec` as a cluster's users type them: through the API server, which finds the node's kubelet by the Node's own
//! status at the replica that holds the node's link. No firewall rule redirects anything.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use e2e::{cloud::Cloud, host::NODE, kubectl::Kubectl, steps::wait_for};

use super::SOON;

pub fn through_the_api_server(kubectl: &Kubectl, cloud: &Cloud) -> Result<()> {
    logs_and_exec(kubectl, cloud)?;
    // Not `nodes/proxy`: an API server proxies to no loopback address, where this flow's replica is.
    port_forward(kubectl)
}

/// At this replica, which must be the one that the Node's status names.
pub fn logs_and_exec(kubectl: &Kubectl, cloud: &Cloud) -> Result<()> {
    wait_for(SOON, "the Node's status names the replica", || {
        let status = kubectl.json(&["get", "node", NODE])?["status"].clone();
        let addresses = status["addresses"].as_array().cloned().unwrap_or_default();
        let is_there = addresses.iter().any(|a| a["type"] == "Hostname" && a["address"] == "127.0.0.1");
        let port = &status["daemonEndpoints"]["kubeletEndpoint"]["Port"];
        Ok((is_there && *port == cloud.stream_port()).then_some(()))
    })?;
    wait_for(SOON, "the log", || Ok(kubectl.run(&["logs", "web"])?.contains("mode first").then_some(())))?;
    let failed = kubectl.command(&["exec", "web", "--", "sh", "-c", "exit 7"]).output()?;
    ensure!(
        failed.status.code() == Some(7),
        "exec ended with {}: {}",
        failed.status,
        String::from_utf8_lossy(&failed.stderr)
    );
    let mut echo = kubectl.command(&["exec", "-i", "web", "--", "cat"]);
    let mut echo = echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let bytes: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
    echo.stdin.take().context("piped")?.write_all(&bytes)?;
    let back = echo.wait_with_output()?;
    ensure!(back.stdout == bytes, "{} of {} bytes came back", back.stdout.len(), bytes.len());
    Ok(())
}

/// To a server that is started in the container for it.
fn port_forward(kubectl: &Kubectl) -> Result<()> {
    let serve = "mkdir -p /tmp/www && echo page > /tmp/www/index.html && httpd -p 8080 -h /tmp/www";
    kubectl.run(&["exec", "web", "--", "sh", "-c", serve])?;
    let mut forward = kubectl.command(&["port-forward", "pod/web", ":8080"]);
    let mut forward = forward.stdout(Stdio::piped()).spawn()?;
    let told = (|| {
        let mut line = String::new();
        BufReader::new(forward.stdout.as_mut().context("piped")?).read_line(&mut line)?;
        // Forwarding from 127.0.0.1:PORT -> 8080
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let port: u16 =
            port.and_then(|port| port.parse().ok()).with_context(|| format!("no port in {line:?}"))?;
        let mut server = TcpStream::connect(("127.0.0.1", port))?;
        server.set_read_timeout(Some(SOON))?;
        server.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        server.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("page\n"), "{answer:?}");
        Ok(())
    })();
    forward.kill()?;
    forward.wait()?;
    told
}
