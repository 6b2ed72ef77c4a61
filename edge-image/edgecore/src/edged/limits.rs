//! Upper bounds of edged, and what happens at them.

use std::time::Duration;

/// The most that `maxPods` may say (kubelet's default is 110). One pod more is reported Failed with reason `OutOfpods`.
pub const PODS_MAX: usize = 500;
/// Left-over groups that are removed in one go; the rest goes at the next start.
pub const CGROUPS_SWEPT_MAX: usize = 1024;
/// Containers of one pod, init containers included. A pod with more is reported Failed.
pub const CONTAINERS_PER_POD_MAX: usize = 64;

/// Deadline of calls that only read.
pub const CRI_QUICK: Duration = Duration::from_secs(10);
/// Deadline of calls that run plugins or processes: 9 s were measured for a sandbox on a loaded small board.
pub const CRI_SLOW: Duration = Duration::from_secs(120);
pub const IMAGE_PULL: Duration = Duration::from_secs(30 * 60);
/// An answer that is larger is refused by the client. A list entry is about 1.5 kB.
pub const CRI_ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Sandboxes and containers being started at once; other pods wait. A small board is slower with more.
pub const STARTS_MAX: usize = 3;
/// Pods whose record and volumes are being written at once; others wait. So many share one sync of the disk.
pub const PREPARES_MAX: usize = 16;
/// Stops wait out a grace period and cost nothing: they have their own, wider bound.
pub const STOPS_MAX: usize = 32;

/// The runtime's events say when something changed; this poll only catches what they missed.
pub const POLL_BUSY: Duration = Duration::from_secs(10);
/// With nothing to run.
pub const POLL_IDLE: Duration = Duration::from_secs(30);
/// Without an event stream (the runtime refuses it).
pub const POLL_WITHOUT_EVENTS: Duration = Duration::from_secs(2);
/// The CRI plugin handles an exit a moment after the event went out.
pub const EVENT_SETTLE: Duration = Duration::from_millis(100);
/// Between attempts to reach a runtime that is down.
pub const RUNTIME_RETRY: Duration = Duration::from_secs(3);

/// Looks that may fail in a row, other than for a missing runtime, before the node is told not ready.
pub const SLOW_LOOKS_MAX: u32 = 2;

/// Back-off of restarts and of image pulls, as kubelet's: 10 s, doubled up to 5 min, forgotten after 10 min of quiet.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
pub const BACKOFF_FORGET: Duration = Duration::from_secs(600);
const _: () = assert!(BACKOFF_FORGET.as_secs() >= BACKOFF_MAX.as_secs());

/// After a container could not be made or started: a kubelet's next round.
pub const RESYNC: Duration = Duration::from_secs(10);

/// When neither pod nor record says.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Left to a container between SIGTERM and SIGKILL, whatever a hook took of its grace (kubelet's bound).
pub const GRACE_MIN: Duration = Duration::from_secs(2);
/// A longer terminationGracePeriodSeconds is cut to this: a node must be able to shut down.
pub const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A log is renamed at this size if the configuration names none; at most `LOG_FILES_MAX` files are kept per container.
pub const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
pub const LOG_FILES_MAX: usize = 10;
/// Between two looks at logs (a kubelet's interval), and while one grows so fast that it would be too large at the next: what is
/// written between two looks is over the cap, and bounded by the disk's threshold alone.
pub const LOG_CHECK: Duration = Duration::from_secs(10);
pub const LOG_CHECK_FAST: Duration = Duration::from_secs(1);
/// A pod keeps so many containers' worth of logs; then its oldest renamed file goes.
pub const LOGS_PER_POD: u64 = 4;

/// Between looks at tokens that are due and at folders of pods that are gone.
pub const UPKEEP: Duration = Duration::from_secs(60);

/// What is read of a termination message; the rest is ignored (kubelet's bound).
pub const TERMINATION_MESSAGE_BYTES_MAX: u64 = 4096;
/// Of a container's log, when it stands for a missing termination message (kubelet's bounds).
pub const LAST_WORDS_BYTES_MAX: usize = 2048;
pub const LAST_WORDS_LINES_MAX: u32 = 80;
/// What is read of the log for that: the words, and times and tags of 80 lines.
pub const LAST_WORDS_READ_BYTES: u64 = 16 * 1024;
/// All termination messages of one pod's status together; each container has its part of it (kubelet's bound).
pub const TERMINATION_MESSAGES_BYTES_MAX: usize = 12 * 1024;
/// Files of one configMap or secret volume are at most what the cloud lets into one object.
pub const VOLUME_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Passwords taken from the pull secrets of one pod; more are ignored.
pub const REGISTRY_PASSWORDS_MAX: usize = 256;
/// Stars in a pull secret's name of a registry; one with more matches nothing.
pub const REGISTRY_STARS_MAX: usize = 8;
/// How long a failed pull is shown as ErrImagePull before it is shown as the back-off that follows.
pub const PULL_ERROR_SHOWN: Duration = Duration::from_secs(3);
const _: () = assert!(PULL_ERROR_SHOWN.as_secs() < BACKOFF_FIRST.as_secs());
/// Pulls at once when the configuration lets them run side by side and names no number.
pub const PULLS_MAX: usize = 3;

/// Repairs of one image between two starts of the agent; a program that is simply wrong must not cost more.
pub const REPAIRS_MAX: u32 = 3;
/// Before a step is tried again whose image was repaired.
pub const REPAIR_RETRY: Duration = Duration::from_secs(1);
/// Files that a layer may have and still be unpacked again over its folder.
pub const LAYER_FILES_MAX: usize = 1_000_000;
/// A program that ended so soon after its start may never have been loaded.
pub const LOADED_AFTER: Duration = Duration::from_secs(10);

/// Files of network plugins looked at after a boot; more are left as they are.
pub const CNI_CACHE_FILES_MAX: usize = 4096;
/// A larger one is not theirs.
pub const CNI_CACHE_BYTES_MAX: u64 = 1024 * 1024;

/// Between two collections of images (kubelet's interval).
pub const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// Between two looks at what the node has left (kubelet's interval).
pub const PRESSURE_CHECK: Duration = Duration::from_secs(10);
/// Between two looks at the import folders.
pub const IMPORT_CHECK: Duration = Duration::from_secs(10);
/// How long an evicted pod holds up the next eviction.
pub const EVICTION_WAIT: Duration = Duration::from_secs(30);
/// What a pod gets that goes because of a hard threshold.
pub const EVICTION_GRACE_HARD: Duration = Duration::from_secs(1);
/// Files looked at for what one log or volume holds; the rest is not counted.
pub const USAGE_FILES_MAX: usize = 100_000;

/// index.json, manifest and config of an image. Larger ones are refused.
pub const IMAGE_JSON_BYTES_MAX: u64 = 4 * 1024 * 1024;
pub const IMAGE_LAYERS_MAX: usize = 128;
pub const ARCHIVE_ENTRIES_MAX: usize = 4096;
/// Names of images in one archive. One with more is refused.
pub const ARCHIVE_IMAGES_MAX: usize = 256;
/// What an archive in gzip may unpack to; one that goes on is refused.
pub const ARCHIVE_UNPACKED_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Of an archive in gzip, small files are kept while it is read, so that it is unpacked once for its names; what is not kept costs
/// another time.
pub const ARCHIVE_KEPT_ENTRY_BYTES_MAX: u64 = 64 * 1024;
pub const ARCHIVE_KEPT_BYTES_MAX: u64 = 512 * 1024;
pub const PRELOADED_ARCHIVES_MAX: usize = 256;
/// Bytes per message when content goes to containerd; with the copy in the gRPC buffer the cost of an import.
pub const CONTENT_CHUNK_BYTES: usize = 128 * 1024;
/// A lease that an interrupted import left behind is collected after this.
pub const IMPORT_LEASE: Duration = Duration::from_secs(3600);
/// Ended containers kept per name beside the newest, for `lastState` and `kubectl logs --previous`.
pub const DEAD_KEPT: usize = 1;

/// Events of one object at once, then one in `EVENT_REFILL_S` (client-go's spam filter); more are dropped.
pub const EVENTS_BURST: u32 = 25;
pub const EVENT_REFILL_S: i64 = 300;
/// An event that was not seen for so long counts anew.
pub const EVENT_FORGET_S: i64 = 600;
/// Different events remembered for their counts; the oldest goes.
pub const EVENTS_KNOWN_MAX: usize = 256;
/// Events that wait for a link; the oldest goes.
pub const EVENTS_WAITING_MAX: usize = 64;

/// Probes by exec at once; the others wait for a place. Each is a process in a container, and up to `EXEC_OUTPUT_BYTES_MAX`.
pub const EXEC_PROBES_MAX: usize = 4;
/// Probes by HTTP, TCP and gRPC at once; the others wait. Each is a connection and some 10 kB.
pub const NETWORK_PROBES_MAX: usize = 16;
/// First probes of containers that start together are spread over this.
pub const PROBE_SPREAD: Duration = Duration::from_secs(1);
/// A longer timeoutSeconds is cut to this: a probe that hangs holds a place that others wait for.
pub const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// The runtime's own time to end an exec that took too long.
pub const EXEC_LATE: Duration = Duration::from_secs(5);
/// What an exec may print (stdout and stderr); with more it has failed.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Of what a probe printed, this much is shown (kubelet's bound; an event takes 1 kB).
pub const PROBE_TEXT_BYTES_MAX: usize = 10 * 1024;
/// Status line and headers of an HTTP answer; a server that sends more has failed the probe.
pub const PROBE_HEAD_BYTES_MAX: usize = 16 * 1024;
pub const PROBE_HEADERS_MAX: usize = 64;
pub const PROBE_REDIRECTS_MAX: usize = 10;
/// A kubelet waits for a postStart hook for ever; here it has failed after this.
pub const POST_START_MAX: Duration = Duration::from_secs(3600);

/// How long newcomers that lack a label of the node wait for the cloud's answer; then what is known decides.
pub const NODE_ASKED: Duration = Duration::from_secs(10);

/// Resources of device plugins; one more is refused at its registration.
pub const DEVICE_RESOURCES_MAX: usize = 64;
/// A plugin that lists more is let go.
pub const DEVICES_PER_RESOURCE_MAX: usize = 4096;
pub const DEVICE_LIST_BYTES_MAX: usize = 1024 * 1024;
pub const DEVICE_REGISTER_BYTES_MAX: usize = 16 * 1024;
/// Open connections to the registration socket; the next waits in the kernel's queue.
pub const DEVICE_CONNECTIONS_MAX: usize = 16;
/// News of plugins that wait for the agent; then plugins wait.
pub const DEVICE_NEWS_WAITING_MAX: usize = 16;
/// How long a plugin that went away may take to come back before its devices count as gone (kubelet's 5 min).
pub const DEVICE_PLUGIN_GRACE: Duration = Duration::from_secs(300);
/// Answer of a plugin.
pub const DEVICE_CALL: Duration = Duration::from_secs(30);

/// Files in the folder of static pods; with more the folder counts as unreadable, and its pods go on as they are.
pub const STATIC_PODS_MAX: usize = 64;
pub const STATIC_POD_BYTES_MAX: u64 = 256 * 1024;
/// Between looks at the folder. A look is one readdir and a stat per file.
pub const STATIC_PODS_POLL: Duration = Duration::from_secs(5);
/// A mirror that did not come is asked for again.
pub const MIRROR_RETRY: Duration = Duration::from_secs(60);

/// Images in the Node's status, the largest first, and names of each (kubelet's bound); more are not shown.
pub const NODE_IMAGES_MAX: usize = 100;
pub const NODE_IMAGE_NAMES_MAX: usize = 5;
/// Between looks at the images for the Node's status.
pub const NODE_IMAGES_POLL: Duration = Duration::from_secs(300);
