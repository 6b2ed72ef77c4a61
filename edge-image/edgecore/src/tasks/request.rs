//! What a message asks for, and what is said back. Values only.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use wire::{Message, Resource};

use super::STATUS;

const PREFIX: &str = "operations.kubeedge.io/";
/// More in one job are refused.
const IMAGES_MAX: usize = 64;
const RETRIES_MAX: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Check,
    Pull,
}

#[derive(Debug, PartialEq)]
pub struct Answer {
    pub operation: String,
    pub resource: String,
    pub content: Value,
}

#[derive(Debug)]
pub enum Asked {
    Prepull(Prepull),
    Refuse(Answer),
    /// Not a task for this node.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    V1alpha1,
    V1alpha2,
}

/// Images to pull.
#[derive(Debug)]
pub struct Prepull {
    generation: Generation,
    resource: String,
    pub steps: Vec<Step>,
    pub images: Vec<String>,
    pub secret: Option<Resource>,
    pub retry_times: u32,
    pub check_items: Vec<String>,
}

pub struct ImageResult {
    pub image: String,
    pub problem: Option<String>,
}

/// `spec` of an ImagePrePullJob, and the older generation's `Item`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Template {
    #[serde(alias = "Images", deserialize_with = "or_null")]
    images: Vec<String>,
    #[serde(alias = "imageSecrets", alias = "Secret", rename = "imageSecret", deserialize_with = "or_null")]
    secret: String,
    #[serde(alias = "RetryTimes", rename = "retryTimes", deserialize_with = "or_null")]
    retry_times: u32,
    #[serde(alias = "CheckItems", alias = "CheckItem", rename = "checkItems", deserialize_with = "or_null")]
    check_items: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "imagePrePullTemplate")]
    template: Template,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OldRequest {
    #[serde(rename = "TaskID", default)]
    task_id: String,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    item: Value,
}

/// The status of one image in a job.
#[derive(Serialize)]
struct ImageStatus<'a> {
    image: &'a str,
    #[serde(rename = "status")]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The same of the older generation.
#[derive(Serialize)]
struct OldImageStatus<'a> {
    image: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// Go's nil slices are null.
fn or_null<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

pub fn read(message: &Message, node: &str) -> Asked {
    if message.route.resource.starts_with(PREFIX) { read_new(message) } else { read_old(message, node) }
}

fn read_new(message: &Message) -> Asked {
    let (resource, action) = (&message.route.resource, message.route.operation.as_str());
    let mut parts = resource[PREFIX.len()..].split('/');
    let kind = parts.nth(1).unwrap_or_default();
    let refuse = |reason: &str| Asked::Refuse(status(resource, action, Err(reason.into()), String::new()));
    match (kind, action) {
        ("imageprepulljob", "Check" | "Pull") => {}
        ("imageprepulljob", _) => return refuse("this node knows the actions Check and Pull only"),
        ("nodeupgradejob", _) => {
            return refuse(
                "a Kinglet node is not upgraded by keadm; install the new edgecore package or image on the device",
            );
        }
        ("configupdatejob", _) => {
            return refuse(
                "this node's configuration is not changed from the cloud; change edgecore.yaml on the device, check it with edgecore \
                 config check, and restart edgecore",
            );
        }
        _ => return refuse("this node does not know this kind of job; no action was taken"),
    }
    let spec: Spec = match message.content_as() {
        Ok(spec) => spec,
        Err(error) => return refuse(&format!("the job's spec cannot be read: {error}")),
    };
    let steps = if action == "Check" { vec![Step::Check, Step::Pull] } else { vec![Step::Pull] };
    match Prepull::new(Generation::V1alpha2, resource.clone(), steps, spec.template) {
        Ok(task) => Asked::Prepull(task),
        Err(reason) => refuse(&reason),
    }
}

fn read_old(message: &Message, node: &str) -> Asked {
    let Ok(request) = message.content_as::<OldRequest>() else { return Asked::Nothing };
    if request.task_id.is_empty() {
        return Asked::Nothing;
    }
    let resource = format!("task/{}/node/{node}", request.task_id);
    let event = |event: &str, failure: Option<String>| {
        Asked::Refuse(old_status(&resource, &message.route.operation, node, event, failure, String::new()))
    };
    if request.r#type != "prepull" {
        let reason = "a Kinglet node is not upgraded by keadm; install the new edgecore package or image on the device";
        let step = if request.state == "Checking" { "Check" } else { "Init" };
        return event(step, Some(reason.into()));
    }
    let step = match request.state.as_str() {
        "Checking" => Step::Check,
        "Pulling" => Step::Pull,
        // Nothing is to be prepared.
        "" | "Init" => return event("Init", None),
        _ => return Asked::Nothing,
    };
    let template: Template = serde_json::from_value(request.item).unwrap_or_default();
    match Prepull::new(Generation::V1alpha1, resource.clone(), vec![step], template) {
        Ok(task) => Asked::Prepull(task),
        Err(reason) => event(if step == Step::Check { "Check" } else { "Pull" }, Some(reason)),
    }
}

impl Prepull {
    fn new(
        generation: Generation,
        resource: String,
        steps: Vec<Step>,
        template: Template,
    ) -> Result<Prepull, String> {
        if template.images.len() > IMAGES_MAX {
            return Err(format!("the job has more than {IMAGES_MAX} images; make several of it"));
        }
        let secret = match template.secret.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Some(Resource::new(namespace, "secret", name))
            }
            None if template.secret.is_empty() => None,
            _ => return Err("the job's image secret is not NAMESPACE/NAME".into()),
        };
        let retry_times = template.retry_times.min(RETRIES_MAX);
        let Template { images, check_items, .. } = template;
        Ok(Prepull { generation, resource, steps, images, secret, retry_times, check_items })
    }

    pub fn checked(&self, node: &str, result: Result<(), String>) -> Answer {
        match self.generation {
            Generation::V1alpha2 => status(&self.resource, "Check", result, String::new()),
            Generation::V1alpha1 => {
                old_status(&self.resource, "prepull", node, "Check", result.err(), String::new())
            }
        }
    }

    pub fn pulled(&self, node: &str, results: &[ImageResult]) -> Answer {
        let failed = results.iter().any(|result| result.problem.is_some());
        let reason = || "there were some failures when pulling images".to_string();
        match self.generation {
            Generation::V1alpha2 => {
                let images: Vec<ImageStatus> = results
                    .iter()
                    .map(|result| ImageStatus {
                        image: &result.image,
                        status: if result.problem.is_some() { "False" } else { "True" },
                        reason: result.problem.as_deref(),
                    })
                    .collect();
                let result = if failed { Err(reason()) } else { Ok(()) };
                status(&self.resource, "Pull", result, text(&images))
            }
            Generation::V1alpha1 => {
                let images: Vec<OldImageStatus> = results
                    .iter()
                    .map(|result| OldImageStatus {
                        image: &result.image,
                        state: if result.problem.is_some() { "Failed" } else { "Successful" },
                        reason: result.problem.as_deref(),
                    })
                    .collect();
                old_status(&self.resource, "prepull", node, "Pull", failed.then(reason), text(&images))
            }
        }
    }

    /// Nothing was begun.
    pub fn refused(&self, node: &str, reason: &str) -> Answer {
        let step = self.steps.first().copied().unwrap_or(Step::Pull);
        match (self.generation, step) {
            (_, Step::Check) => self.checked(node, Err(reason.into())),
            (Generation::V1alpha2, Step::Pull) => {
                status(&self.resource, "Pull", Err(reason.into()), String::new())
            }
            (Generation::V1alpha1, Step::Pull) => {
                old_status(&self.resource, "prepull", node, "Pull", Some(reason.into()), String::new())
            }
        }
    }
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts serialise")
}

/// The status of one action (KubeEdge `pkg/nodetask/message`, UpstreamMessage).
fn status(resource: &str, action: &str, result: Result<(), String>, extend: String) -> Answer {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let succ = result.is_ok();
    let reason = result.err().unwrap_or_default();
    Answer {
        operation: STATUS.into(),
        resource: resource.into(),
        content: json!({"action": action, "succ": succ, "finishTime": now, "reason": reason, "extend": extend}),
    }
}

/// KubeEdge's NodeTaskResponse.
fn old_status(
    resource: &str,
    operation: &str,
    node: &str,
    event: &str,
    failure: Option<String>,
    external: String,
) -> Answer {
    let action = if failure.is_some() { "Failure" } else { "Success" };
    let content = json!({
        "NodeName": node, "State": "", "Event": event, "Action": action, "Reason": failure.unwrap_or_default(), "Time": "",
        "ExternalMessage": external,
    });
    Answer { operation: operation.into(), resource: resource.into(), content }
}

/// Any message is answered or left; never a panic. For random bytes.
pub fn fuzz_task(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let _ = read(&message, "edge-1");
    }
}
