//! What nodes report over HTTPS about tasks that a KubeEdge cloudcore gave them: upgrades and image pulls of v1.20 and v1.21.
//!
//! `POST /nodeupgrade` and `POST /task/{type}/name/{task}/node/{node}/status` (kubeedge-wire.md section 1.3). This cloud gives no
//! such tasks; a node that was at one when its cloud was replaced must get its report off, or it asks for ever. The report is
//! logged.

use http::StatusCode;
use serde::Deserialize;

use super::Refusal;

/// A report, from its path.
#[derive(Debug, PartialEq, Eq)]
pub enum Report<'a> {
    NodeUpgrade,
    Task { kind: &'a str, name: &'a str, node: &'a str },
}

pub fn parse(path: &str) -> Option<Report<'_>> {
    if path == "/nodeupgrade" {
        return Some(Report::NodeUpgrade);
    }
    let parts: Vec<&str> = path.strip_prefix("/task/")?.split('/').collect();
    match parts[..] {
        [kind, "name", name, "node", node, "status"] => Some(Report::Task { kind, name, node }),
        _ => None,
    }
}

/// KubeEdge's NodeUpgradeJobResponse and NodeTaskResponse, as far as they are logged.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Body {
    node_name: String,
    #[serde(rename = "UpgradeID")]
    upgrade_id: String,
    to_version: String,
    status: String,
    event: String,
    action: String,
    state: String,
    reason: String,
}

/// Logs the report, if it comes from the node that it is about. `peer`: the node of the certificate.
pub fn take(report: &Report<'_>, peer: Option<&str>, body: &[u8]) -> Result<(), Refusal> {
    let Some(peer) = peer else {
        let reason = "a report needs the node's certificate; join again with a new token (`cloudcore token`)";
        return Err(Refusal(StatusCode::UNAUTHORIZED, reason.into()));
    };
    let body: Body = serde_json::from_slice(body).map_err(|error| {
        let reason = format!("the report of node {peer} is not KubeEdge's: {error}");
        Refusal(StatusCode::BAD_REQUEST, reason)
    })?;
    let node = match report {
        Report::NodeUpgrade => body.node_name.as_str(),
        Report::Task { node, .. } => node,
    };
    if node != peer {
        let reason = format!("node {peer} cannot report for node {node:?}");
        return Err(Refusal(StatusCode::FORBIDDEN, reason));
    }
    match report {
        Report::NodeUpgrade => tracing::info!(
            "node {node} reports on upgrade {:?} to {:?}, which this cloud did not ask for: {:?} {:?}",
            body.upgrade_id,
            body.to_version,
            body.status,
            body.reason
        ),
        Report::Task { kind, name, .. } => tracing::info!(
            "node {node} reports on task {kind:?} {name:?}, which this cloud did not give: {:?} {:?} {:?} {:?}",
            body.event,
            body.action,
            body.state,
            body.reason
        ),
    }
    Ok(())
}

/// Path and body of a report, parted by a line's end, for random bytes: total, never a panic.
pub fn fuzz_report(data: &[u8]) {
    let split = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let path = String::from_utf8_lossy(&data[..split]);
    drop(serde_json::from_slice::<Body>(&data[split..]));
    drop(parse(&path).map(|report| format!("{report:?}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_and_mutated_reports_never_panic() {
        let good = b"/task/prepull/name/j/node/edge-1/status\n{\"NodeName\":\"edge-1\",\"Event\":\"Init\",\"Reason\":\"\"}";
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as usize
        };
        for _ in 0..5_000 {
            let mut bytes = good.to_vec();
            for _ in 0..next() % 6 {
                let at = next() % bytes.len();
                match next() % 3 {
                    0 => bytes[at] = next() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, next() as u8),
                }
            }
            fuzz_report(&bytes);
        }
    }

    #[test]
    fn both_paths_and_nothing_else() {
        assert_eq!(parse("/nodeupgrade"), Some(Report::NodeUpgrade));
        let task = Report::Task { kind: "prepull", name: "j", node: "edge-1" };
        assert_eq!(parse("/task/prepull/name/j/node/edge-1/status"), Some(task));
        for path in
            ["/nodeupgrade/", "/task/prepull/name/j/node/edge-1", "/task/a/b/c/d/e/status", "/task//status"]
        {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_node_reports_for_itself_only_and_with_its_certificate() {
        let upgrade = br#"{"UpgradeID":"u","HistoryID":"h","NodeName":"edge-1","FromVersion":"v1.20.0","ToVersion":"v1.21.0","Status":"upgrade_success","Reason":""}"#;
        assert!(take(&Report::NodeUpgrade, Some("edge-1"), upgrade).is_ok());
        let status = |peer: Option<&str>, body: &[u8]| take(&Report::NodeUpgrade, peer, body).unwrap_err().0;
        assert_eq!(status(Some("edge-2"), upgrade), StatusCode::FORBIDDEN);
        assert_eq!(status(None, upgrade), StatusCode::UNAUTHORIZED);
        assert_eq!(status(Some("edge-1"), b"{"), StatusCode::BAD_REQUEST);
        let task = Report::Task { kind: "upgrade", name: "u", node: "edge-1" };
        assert!(take(&task, Some("edge-1"), br#"{"NodeName":"edge-2","Event":"Init"}"#).is_ok());
        assert!(take(&task, Some("edge-2"), b"{}").is_err());
    }
}
