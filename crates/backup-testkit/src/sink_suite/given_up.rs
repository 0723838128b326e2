//! Writes that are given up while they wait: by a time-out, say. Nobody else may lose by it, and the writer itself is told.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::run::{RunOptions, run};
use backup_core::sink::{ChunkHint, Sink};
use backup_core::{BackupReader, BackupWriter, Evidence, SourceName};
use bytes::Bytes;

use super::{ScriptedSource, artifact, noise, plan, write_stream};

/// Pairs of sources with the same bytes. The first of the pair number *n* is given up at its *n*th wait.
const PAIRS: usize = 24;
/// Together more than a sink keeps in memory, so that writers wait.
const BYTES: usize = 2_000_000;

/// Two sources have the same bytes and write at the same time; one gives up at every wait in turn. The other one is whole,
/// or failed, and never "complete" without its bytes.
pub async fn a_write_that_is_given_up_spoils_no_other(sink: Arc<dyn Sink>) {
    let name = |kind: &str, number: usize| format!("{kind}-{number}");
    let mut tasks = Vec::new();
    for number in 0..PAIRS {
        let content = noise(BYTES, 5000 + number as u64);
        let same = content.clone();
        let first = ScriptedSource::new(move |out| Box::pin(give_up_at(out, content.clone(), number)));
        let second = ScriptedSource::new(move |out| {
            let content = same.clone();
            Box::pin(async move { write_stream(&out, "a", content).await })
        });
        tasks.extend([first.task(&name("first", number)), second.task(&name("second", number))]);
    }
    let mut options = RunOptions::new(plan(), "host");
    options.concurrency = tasks.len();
    let manifest = run(tasks, &*sink, &options).await.expect("the second sources succeed");
    let snapshot = sink.open(&manifest.id).await.expect("the snapshot opens");
    for number in 0..PAIRS {
        for kind in ["first", "second"] {
            let source = SourceName::new(name(kind, number)).expect("a valid name");
            let record = manifest.source(&source).expect("it is in the manifest");
            if kind == "first" && !record.is_complete() {
                continue;
            }
            assert!(record.is_complete(), "{source}: {:?}", record.outcome);
            let reader = BackupReader::new(Arc::clone(&snapshot), source.clone()).expect("the source is complete");
            let read =
                reader.read(&artifact("a"), u64::MAX).await.unwrap_or_else(|error| panic!("{source}: {error:?}"));
            assert!(read == noise(BYTES, 5000 + number as u64), "{source}");
        }
    }
}

/// Writes `content`, and gives up the write that waits for the `waits`th time. What was given up cannot be sealed.
async fn give_up_at(out: BackupWriter, content: Bytes, waits: usize) -> Result<()> {
    let mut left = waits;
    let mut writer = out.artifact(artifact("a"), ChunkHint::Stream).await?;
    for piece in content.chunks(300_000) {
        let piece = content.slice_ref(piece);
        let Some(written) = until_wait(writer.write(piece.clone()), &mut left).await else {
            assert_eq!(writer.write(piece).await.expect_err("it is refused").kind(), ErrorKind::Incomplete);
            let sealed = writer.seal(Evidence::ExactLength(content.len() as u64)).await;
            assert_eq!(sealed.expect_err("it is refused").kind(), ErrorKind::Incomplete);
            return Err(Error::new(ErrorKind::Incomplete, "it took too long"));
        };
        written?;
    }
    writer.seal(Evidence::ExactLength(content.len() as u64)).await.map(drop)
}

/// Runs `work` until it waits once `left` waits are used up; then drops it and returns `None`.
async fn until_wait<T>(work: impl Future<Output = T>, left: &mut usize) -> Option<T> {
    let mut work = Box::pin(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if *left == 0 => Poll::Ready(None),
        Poll::Pending => {
            *left -= 1;
            Poll::Pending
        }
    })
    .await
}
