//! The core's thread and the way to reach it.

use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::{Core, Failure};

/// Messages that wait for the core at most; senders beyond that wait.
const QUEUE_LEN_MAX: usize = 256;

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Reaches the core. Cheap to clone; the core's thread ends when the last handle is gone.
#[derive(Clone)]
pub struct CoreHandle {
    jobs: mpsc::Sender<Job>,
}

/// The core's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker is stopping")]
pub struct Gone;

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Self {
        Self::general(503, "stopping", gone.to_string(), "try again when it runs")
    }
}

impl CoreHandle {
    /// Runs `job` on the core's thread, after everything sent before it, and returns what it returns.
    ///
    /// # Errors
    /// If the core has ended.
    pub async fn call<R: Send + 'static>(&self, job: impl FnOnce(&mut Core) -> R + Send + 'static) -> Result<R, Gone> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |core| {
            // Nobody waits any more if the client went away; what was done stays done.
            let _ = answer.send(job(core));
        });
        self.jobs.send(job).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    /// Waits until the core's thread has ended, which it does by itself only if it panics.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }
}

/// Starts the thread that owns `core`.
///
/// # Errors
/// If no thread can be made.
pub fn spawn(mut core: Core) -> std::io::Result<(CoreHandle, JoinHandle<()>)> {
    let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_LEN_MAX);
    let thread = std::thread::Builder::new().name("core".to_owned()).spawn(move || {
        while let Some(job) = queue.blocking_recv() {
            job(&mut core);
        }
    })?;
    Ok((CoreHandle { jobs }, thread))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_core_that_panics_is_noticed_and_nobody_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let core = Core::open(Store::open(&directory.path().join("store")).unwrap()).unwrap();
        let (handle, thread) = spawn(core).unwrap();
        assert!(handle.call(|core| core.inventory().cards.is_empty()).await.unwrap());
        let waited = tokio::time::timeout(Duration::from_millis(20), handle.ended()).await;
        assert!(waited.is_err(), "it runs");
        assert_eq!(handle.call(|_| panic!("for the test")).await, Err::<(), _>(Gone));
        tokio::time::timeout(Duration::from_secs(10), handle.ended())
            .await
            .unwrap();
        assert!(thread.join().is_err());
    }
}
