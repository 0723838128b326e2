//! What every engine must do, whatever it saves. Run it with [`engine_conformance!`](crate::engine_conformance).

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{Engine, RestoreReport, RestoreTarget, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::event::Recorder;
use backup_core::manifest::Manifest;
use backup_core::plan::OnFailure;
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::{Sink, SnapshotFilter};
use backup_core::{BackupReader, PlanName, RunContext, SourceName};
use tokio_util::sync::CancellationToken;

use crate::{Disturbance, DisturbedSink, MemorySink};

/// A small live system of its own, and the engine under test for it.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The engine, configured for the system.
    fn engine(&self) -> Engine;

    /// The engine, configured for a system that has nothing to save, or is not there.
    fn engine_for_nothing(&self) -> Engine;

    /// Everything that a restore must bring back, in comparable form.
    async fn state(&self) -> String;

    /// Destroys the system's data, so that a restore with [`Subject::target`] is allowed.
    async fn destroy(&self);

    /// Where a restore goes to.
    fn target(&self) -> RestoreTarget {
        RestoreTarget::default()
    }

    /// The folder for temporary files; empty at first.
    fn scratch(&self) -> PathBuf;

    /// Files and folders, by name, that lie around the system: compared to find leftovers.
    fn surroundings(&self) -> Vec<PathBuf>;

    /// The secrets that the engine was configured with.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The name of the source in every test.
fn source() -> SourceName {
    SourceName::new("subject").expect("it is a name")
}

fn context(subject: &dyn Subject) -> RunContext {
    RunContext::new(source()).scratch_in(subject.scratch())
}

fn options(subject: &dyn Subject) -> RunOptions {
    RunOptions {
        scratch: subject.scratch(),
        ..RunOptions::new(PlanName::new("conformance").expect("it is a name"), "here")
    }
}

async fn back_up(engine: &Engine, sink: &dyn Sink, options: &RunOptions) -> Result<Manifest> {
    let task = Task {
        name: source(),
        engine: "subject".to_owned(),
        source: Arc::clone(&engine.source),
        on_failure: OnFailure::Continue,
    };
    run(vec![task], sink, options).await
}

async fn reader(sink: &dyn Sink, manifest: &Manifest) -> BackupReader {
    let snapshot = sink.open(&manifest.id).await.expect("a committed snapshot opens");
    BackupReader::new(snapshot, source()).expect("the source is in it")
}

async fn restore(subject: &dyn Subject, cx: &RunContext, from: &BackupReader) -> Result<RestoreReport> {
    let restorer = subject.engine().restorer;
    let plan = restorer.plan_restore(cx, from, &subject.target()).await?;
    assert!(!plan.steps.is_empty(), "a plan says what it will do");
    restorer.restore(cx, from, plan).await
}

async fn verify(subject: &dyn Subject, from: &BackupReader) -> VerifyReport {
    let verifier = subject.engine().verifier;
    verifier.verify(&context(subject), from).await.expect("damage is a finding, not an error")
}

fn assert_clean(subject: &dyn Subject) {
    let left: Vec<_> =
        std::fs::read_dir(subject.scratch()).expect("scratch is there").flatten().map(|item| item.path()).collect();
    assert!(left.is_empty(), "left in scratch: {left:?}");
}

async fn assert_nothing_visible(sink: &dyn Sink) {
    let visible = sink.snapshots(&SnapshotFilter::default()).await.expect("snapshots can be listed");
    assert!(visible.is_empty(), "visible although the run failed: {visible:?}");
}

/// The operations to disturb: all when there are few, else the first, the last and a spread between them.
fn moments(operations: u64) -> Vec<u64> {
    const MOST: u64 = 40;
    assert!(operations > 0, "the engine did nothing with the sink");
    let step = operations.div_ceil(MOST);
    let mut moments: Vec<u64> = (1..=operations).filter(|number| (number - 1) % step == 0).collect();
    moments.push(operations);
    moments.dedup();
    moments
}

async fn write_operations(subject: &dyn Subject) -> u64 {
    let counting = DisturbedSink::new(Arc::new(MemorySink::default()), Disturbance::None);
    back_up(&subject.engine(), &counting, &options(subject)).await.expect("an undisturbed backup succeeds");
    counting.operations()
}

/// A sink that fails at any operation, the very last one included: nothing is committed, and the next run succeeds.
///
/// # Panics
/// When the engine breaks the contract, like every function here.
pub async fn late_failure_is_not_committed(subject: &dyn Subject) {
    for moment in moments(write_operations(subject).await) {
        let memory = MemorySink::default();
        let full = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::Fail(moment));
        let result = back_up(&subject.engine(), &full, &options(subject)).await;
        let error = result.expect_err("a sink that failed cannot hold a backup");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "operation {moment}: the cause must not be hidden: {error:?}");
        assert_nothing_visible(&memory).await;
        assert_clean(subject);
        if moment == 1 {
            back_up(&subject.engine(), &memory, &options(subject)).await.expect("the next run succeeds");
        }
    }
}

/// Artifacts that are shorter than their manifest says are found by `verify` and refused by `restore`, which leaves nothing.
///
/// # Panics
/// When the engine breaks the contract.
pub async fn truncation_is_refused(subject: &dyn Subject) {
    damage_is_refused(subject, Disturbance::CutShort).await;
}

/// One flipped bit is found by `verify` and refused by `restore`, which leaves nothing.
///
/// # Panics
/// When the engine breaks the contract.
pub async fn verify_finds_one_flipped_bit(subject: &dyn Subject) {
    damage_is_refused(subject, Disturbance::FlipBit).await;
}

async fn damage_is_refused(subject: &dyn Subject, disturbance: Disturbance) {
    let memory = MemorySink::default();
    let manifest = back_up(&subject.engine(), &memory, &options(subject)).await.expect("the backup succeeds");
    let sound = reader(&memory, &manifest).await;
    assert_eq!(verify(subject, &sound).await.findings, [], "a sound backup has no findings");
    let damaged = DisturbedSink::new(Arc::new(memory), disturbance);
    let damaged = reader(&damaged, &manifest).await;
    let findings = verify(subject, &damaged).await.findings;
    assert!(!findings.is_empty(), "verify must find the damage");
    assert!(findings.iter().all(|finding| finding.snapshot == manifest.id && finding.source == source()));
    subject.destroy().await;
    let before = surroundings(subject);
    restore(subject, &context(subject), &damaged).await.expect_err("a damaged backup must not restore");
    assert_eq!(surroundings(subject), before, "a refused restore leaves nothing");
    assert_clean(subject);
}

fn surroundings(subject: &dyn Subject) -> Vec<String> {
    let mut lines = Vec::new();
    for folder in subject.surroundings() {
        let mut names: Vec<String> = std::fs::read_dir(&folder)
            .map(|items| items.flatten().map(|item| item.path().display().to_string()).collect())
            .unwrap_or_default();
        names.sort();
        lines.extend(names);
    }
    lines
}

/// Cancelled at any operation, a backup commits nothing and a restore leaves nothing; both say that they were interrupted.
///
/// # Panics
/// When the engine breaks the contract.
pub async fn cancellation_leaves_nothing_behind(subject: &dyn Subject) {
    for moment in moments(write_operations(subject).await) {
        let memory = MemorySink::default();
        let cancel = CancellationToken::new();
        let sink = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::Cancel(moment, cancel.clone()));
        let options = RunOptions { cancel, ..options(subject) };
        let error = back_up(&subject.engine(), &sink, &options).await.expect_err("it was cancelled");
        assert_eq!(error.kind(), ErrorKind::Interrupted, "operation {moment}: {error:?}");
        assert_nothing_visible(&memory).await;
        assert_clean(subject);
    }
    let memory = MemorySink::default();
    let manifest = back_up(&subject.engine(), &memory, &options(subject)).await.expect("the backup succeeds");
    subject.destroy().await;
    let counting = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::None);
    let from = reader(&counting, &manifest).await;
    restore(subject, &context(subject), &from).await.expect("an undisturbed restore succeeds");
    subject.destroy().await;
    let before = surroundings(subject);
    for moment in moments(counting.operations()) {
        let cancel = CancellationToken::new();
        let sink = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::Cancel(moment, cancel.clone()));
        let from = reader(&sink, &manifest).await;
        let error =
            restore(subject, &context(subject).cancelled_by(cancel), &from).await.expect_err("it was cancelled");
        assert_eq!(error.kind(), ErrorKind::Interrupted, "operation {moment}: {error:?}");
        assert_eq!(surroundings(subject), before, "operation {moment}");
        assert_clean(subject);
    }
}

/// A source that has nothing to save is an error, not an empty backup.
///
/// # Panics
/// When the engine breaks the contract.
pub async fn empty_run_is_refused(subject: &dyn Subject) {
    let memory = MemorySink::default();
    let error = back_up(&subject.engine_for_nothing(), &memory, &options(subject)).await.expect_err("there is nothing");
    assert!(error.remedy().is_some(), "the error says what to do: {error:?}");
    assert_nothing_visible(&memory).await;
    assert_clean(subject);
}

/// What was saved, destroyed and restored is what it was; a drill agrees; a target that is not empty is refused.
///
/// # Panics
/// When the engine breaks the contract.
pub async fn restore_round_trips(subject: &dyn Subject) {
    let before = subject.state().await;
    let memory = MemorySink::default();
    let manifest = back_up(&subject.engine(), &memory, &options(subject)).await.expect("the backup succeeds");
    let from = reader(&memory, &manifest).await;
    let drill = subject.engine().driller.drill(&context(subject), &from).await.expect("the drill runs");
    assert_eq!(drill.findings, Vec::<String>::new(), "a sound backup passes its drill");
    assert!(drill.items > 0 && !drill.checked.is_empty(), "a drill that asks nothing proves nothing");
    assert_clean(subject);
    subject.destroy().await;
    let report = restore(subject, &context(subject), &from).await.expect("the restore succeeds");
    assert!(report.items > 0 && !report.restored.is_empty());
    assert_eq!(subject.state().await, before);
    let error = restore(subject, &context(subject), &from).await.expect_err("the target is not empty now");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    assert_eq!(subject.state().await, before, "a refused restore changes nothing");
    assert_clean(subject);
}

/// No secret is in the manifest, in an event, in a plan, in a report or in an error.
///
/// # Panics
/// When the engine breaks the contract.
pub async fn secrets_appear_nowhere(subject: &dyn Subject) {
    let recorder = Arc::new(Recorder::default());
    let memory = MemorySink::default();
    let options = RunOptions { observer: recorder.clone(), ..options(subject) };
    let manifest = back_up(&subject.engine(), &memory, &options).await.expect("the backup succeeds");
    let from = reader(&memory, &manifest).await;
    let cx = context(subject).observed_by(recorder.clone());
    let mut said = vec![serde_json::to_string(&manifest).expect("a manifest is JSON")];
    said.push(format!("{:?} {:?}", subject.engine(), verify(subject, &from).await));
    let full = DisturbedSink::new(Arc::new(MemorySink::default()), Disturbance::Fail(1));
    let error = |error: Error| format!("{error:?} {}", error.chain());
    said.push(error(back_up(&subject.engine(), &full, &options).await.expect_err("the sink fails")));
    said.push(error(back_up(&subject.engine_for_nothing(), &memory, &options).await.expect_err("there is nothing")));
    subject.destroy().await;
    said.push(format!("{:?}", restore(subject, &cx, &from).await.expect("the restore succeeds")));
    said.push(format!("{:?}", recorder.events()));
    for secret in subject.secrets() {
        assert!(!secret.is_empty());
        for text in &said {
            assert!(!text.contains(&secret), "a secret appears in: {text}");
        }
    }
}

/// Makes a module of tests of the whole suite: `engine_conformance!(files, Subject::new());`, where the expression makes
/// a new, independent [`Subject`] for each test.
#[macro_export]
macro_rules! engine_conformance {
    ($module:ident, $subject:expr) => {
        $crate::engine_conformance!(@tests $module, $subject,
            late_failure_is_not_committed, truncation_is_refused, cancellation_leaves_nothing_behind, empty_run_is_refused,
            restore_round_trips, verify_finds_one_flipped_bit, secrets_appear_nowhere);
    };
    (@tests $module:ident, $subject:expr, $($name:ident),+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let subject = $subject;
                    $crate::conformance::engine::$name(&subject).await;
                }
            )+
        }
    };
}
