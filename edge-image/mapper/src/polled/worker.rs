//! The thread of one device. One job at a time; a bell (a socket) wakes the mapper's loop when its answer is there.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use super::{Failure, Source};
use crate::limits::{WORKER_STACK_BYTES, WORKERS_MAX};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    Read(usize),
    Write(usize, String),
}

#[derive(Debug)]
pub struct Done {
    pub job: Job,
    /// What was read; after a write, what the device has then.
    pub result: Result<String, Failure>,
}

pub struct Worker {
    jobs: SyncSender<Job>,
    answers: Receiver<Done>,
    bell: UnixStream,
}

/// Threads that live, also those that hang in the kernel after their device was given up.
static WORKERS: AtomicUsize = AtomicUsize::new(0);

struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        WORKERS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    pub fn start(mut source: Box<dyn Source>) -> Result<Worker, String> {
        if WORKERS.fetch_add(1, Ordering::Relaxed) >= WORKERS_MAX {
            WORKERS.fetch_sub(1, Ordering::Relaxed);
            return Err(format!(
                "{WORKERS_MAX} devices on slow buses are driven or hang already; put sensors of one bus into one Device"
            ));
        }
        let counted = Counted;
        let failed = |error: std::io::Error| format!("cannot start a thread for the device: {error}");
        let (bell, mut ring) = UnixStream::pair().map_err(failed)?;
        bell.set_nonblocking(true).map_err(failed)?;
        let (jobs, todo) = sync_channel::<Job>(1);
        let (told, answers) = sync_channel::<Done>(1);
        let work = move || {
            let _counted = counted;
            for job in todo {
                let result = match &job {
                    Job::Read(property) => source.read(*property),
                    Job::Write(property, value) => {
                        source.write(*property, value).and_then(|()| source.read(*property))
                    }
                };
                // The driver takes each answer before it gives the next job; it is gone when this fails.
                if told.send(Done { job, result }).is_err() || ring.write_all(&[0]).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("bus".into()).stack_size(WORKER_STACK_BYTES);
        thread.spawn(work).map_err(failed)?;
        Ok(Worker { jobs, answers, bell })
    }

    /// False when the job before is not done.
    pub fn give(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }

    pub fn take(&mut self) -> Option<Done> {
        let mut bells = [0; 8];
        let _ = self.bell.read(&mut bells);
        self.answers.try_recv().ok()
    }

    pub fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}
