//! The shell: looks at the folder, remembers what it said, tells what is wrong.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Changes, DeviceFolder, KIND, Overlay, read};
use crate::{
    contract::{Condition, Handles},
    limits::DEVICE_FOLDER_POLL,
};

/// Node condition that lists what is wrong in the folder.
const CONDITION: &str = "DeviceFolderInvalid";

/// The folder as it was last seen; it outlives a restart of the task.
#[derive(Clone)]
pub struct Shared {
    path: PathBuf,
    folder: Arc<Mutex<DeviceFolder>>,
    pub overlay: Arc<Overlay>,
}

/// What was kept and one first look, before any module asks: else the modules would take the node's devices for deleted. Blocks for
/// the time of reading the folder.
pub fn open(handles: &Handles, path: &Path) -> Shared {
    let mut folder = DeviceFolder::new(&handles.node_name, handles.meta.list_local(KIND));
    let reading = read(path, &folder.stamps());
    // The records are written by the task, which looks again.
    folder.take(path, reading);
    let overlay = Overlay::new(handles, folder.objects());
    Shared { path: path.to_owned(), folder: Arc::new(Mutex::new(folder)), overlay }
}

/// Runs until the drain.
pub async fn run(handles: Handles, shared: Shared, drain: rt::Drain) {
    let mut told: Option<Vec<String>> = None;
    let mut cloud = handles.meta.changes();
    // What the first look found, and what a task before this one did not write.
    let whole = {
        let folder = shared.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |name: &String| !folder.has_file(name);
        let forget =
            handles.meta.list_local(KIND).into_iter().map(|(name, _)| name).filter(is_gone).collect();
        Changes { store: folder.records(), forget, ..Changes::default() }
    };
    keep(&handles, whole).await;
    loop {
        tell(&handles, &shared, &mut told);
        tokio::select! {
            () = drain.wait() => return,
            Ok(()) = cloud.changed() => {
                cloud.borrow_and_update();
                shared.overlay.changed();
            }
            () = tokio::time::sleep(DEVICE_FOLDER_POLL) => look(&handles, &shared).await,
        }
    }
}

async fn look(handles: &Handles, shared: &Shared) {
    let Shared { path, folder, overlay } = shared.clone();
    let changes = rt::blocking(move || {
        let mut folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = read(&path, &folder.stamps());
        let changes = folder.take(&path, reading);
        if changes.objects {
            overlay.replace(folder.objects());
        }
        changes
    });
    keep(handles, changes.await).await;
}

async fn keep(handles: &Handles, changes: Changes) {
    for (name, record) in changes.store {
        if handles.meta.get_local(KIND, &name).as_ref() == Some(&record) {
            continue;
        }
        if let Err(error) = handles.meta.put_local(KIND, &name, record, true).await {
            tracing::warn!("devices of {name} are not kept: {}", rt::error_chain(&error));
        }
    }
    for name in changes.forget {
        if let Err(error) = handles.meta.delete_local(KIND, &name).await {
            tracing::warn!("devices of {name} stay in the store: {}", rt::error_chain(&error));
        }
    }
}

fn tell(handles: &Handles, shared: &Shared, told: &mut Option<Vec<String>>) {
    let mut problems = {
        let folder = shared.folder.lock().unwrap_or_else(PoisonError::into_inner);
        folder.problems(&shared.path)
    };
    problems.extend(shared.overlay.hiding().into_iter().map(|resource| {
        format!(
            "{} {}/{} of the cloud is not used, because a file in {} describes it; remove one",
            resource.kind,
            resource.namespace,
            resource.name,
            shared.path.display()
        )
    }));
    if told.as_ref() == Some(&problems) {
        return;
    }
    for problem in &problems {
        tracing::error!("device folder: {problem}");
    }
    let broken = !problems.is_empty();
    // A node without trouble and without a history of it has no such condition.
    if broken || told.is_some() {
        handles.conditions.set(Condition {
            condition_type: CONDITION.into(),
            status: broken,
            reason: if broken { "FileUnusable" } else { "AllRead" }.into(),
            message: problems.join("; "),
        });
    }
    *told = Some(problems);
}
