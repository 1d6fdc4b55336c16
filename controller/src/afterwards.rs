//! Work that nobody waits for: done once whoever waits has been answered.

use berth_telemetry::traces::Here;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tracing::Span;

/// Does something after all that is ready to run now, inside the current span. It is lost when the process is killed
/// before its turn comes: for what is good to have, never for what somebody was promised.
///
/// Where there is no runtime, nobody can wait: it is done at once.
pub(crate) fn afterwards(work: impl FnOnce() + Send + 'static) {
    let Ok(runtime) = Handle::try_current() else { return work() };
    let (span, here) = (Span::current(), Here::now());
    let _detached = runtime.spawn(async move {
        // Once to stand behind what is queued, which wakes those that write the answer out.
        yield_now().await;
        span.in_scope(|| here.in_scope(work));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn what_nobody_waits_for_comes_after_what_is_ready() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |what: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().unwrap().push(what)
        };
        afterwards(note("log"));
        let (answered, written) = (note("answered"), note("written"));
        // As an answer's way: what is ready makes another task ready.
        let (answer, write) = tokio::sync::oneshot::channel();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            answered();
            answer.send(()).unwrap();
        });
        tasks.spawn(async move {
            write.await.unwrap();
            written();
        });
        tasks.join_all().await;
        while order.lock().unwrap().len() < 3 {
            yield_now().await;
        }
        assert_eq!(*order.lock().unwrap(), ["answered", "written", "log"]);
    }
}
