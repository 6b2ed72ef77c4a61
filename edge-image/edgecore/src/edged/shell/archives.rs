//! The shell's part of archives of images: those that came with the node, and those that appear in the import folders.

use super::{Happening, Shell};
use crate::{
    contract::{Condition, Handles},
    edged::limits,
};

const PRELOAD: &str = "PreloadedImageUnusable";
const IMPORT: &str = "ImportedImageUnusable";

impl Shell {
    pub(super) fn preloaded(&mut self, problems: Vec<String>) {
        for problem in &problems {
            tracing::error!("{problem}");
        }
        tell(&self.handles, PRELOAD, "AllPresent", &problems);
    }

    /// Apart from the look at pressure: a large archive takes minutes.
    pub(super) fn watch_imports(&mut self) {
        if self.settings.images.import_dirs.is_empty() {
            return;
        }
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            if let Some(problems) = executor.images.import_folders(&executor.events).await {
                tell(&executor.handles, IMPORT, "AllUsable", &problems);
            }
            tokio::time::sleep(limits::IMPORT_CHECK).await;
            Happening::Imported
        }));
    }
}

/// Raises the condition for archives of images that are of no use, or ends it with the reason `well`.
fn tell(handles: &Handles, condition: &str, well: &str, problems: &[String]) {
    handles.conditions.set(Condition {
        condition_type: condition.into(),
        status: !problems.is_empty(),
        reason: if problems.is_empty() { well } else { "ArchiveUnusable" }.into(),
        message: problems.join("; "),
    });
}
