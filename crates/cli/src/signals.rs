//! What only a process has: signals that stop it, and the hook that calls a panic what it is, a defect.
//!
//! Invariant: the first SIGINT or SIGTERM cancels cleanly; the second ends the process at once.

use std::any::Any;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::Arc;

use backup_core::{Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;
use crate::output::Output;

/// Listens as long as it lives.
pub(crate) struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Cancels `cancel` at the first signal, ends the process at the second.
pub(crate) fn listen(cancel: CancellationToken, output: Arc<Output>) -> Result<Listening> {
    let register = |kind| {
        signal(kind)
            .map_err(|source| Error::new(ErrorKind::Internal, "signals cannot be listened to").caused_by(source))
    };
    let (mut interrupt, mut terminate) = (register(SignalKind::interrupt())?, register(SignalKind::terminate())?);
    Ok(Listening(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if cancel.is_cancelled() {
                end_at_once();
            }
            output.note("stopping cleanly; once more to stop at once");
            cancel.cancel();
        }
    })))
}

#[expect(clippy::exit, reason = "the user asked twice: nothing may hold the process any longer")]
fn end_at_once() -> ! {
    std::process::exit(i32::from(Exit::Interrupted.code()))
}

/// Says that it is a defect, where, and what to do.
pub(crate) fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
    // Nobody is left to tell when standard error itself is gone.
    let _unheard = std::io::stderr().write_all(defect(info.payload(), &place).as_bytes());
}

fn defect(payload: &dyn Any, place: &str) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let what = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    format!(
        "error: stackward has a defect: {what}{place}\n  \
         hint: please report it with this line and the command that was run\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_called_a_defect() {
        let payloads: [Box<dyn Any + Send>; 3] = [Box::new("lost"), Box::new("lost".to_owned()), Box::new(7)];
        let told = payloads.map(|payload| defect(payload.as_ref(), " (x.rs:1)"));
        assert_eq!(told[0], told[1]);
        insta::assert_snapshot!(told[1].clone() + &told[2], @r"
        error: stackward has a defect: lost (x.rs:1)
          hint: please report it with this line and the command that was run
        error: stackward has a defect: no message (x.rs:1)
          hint: please report it with this line and the command that was run
        ");
    }
}
