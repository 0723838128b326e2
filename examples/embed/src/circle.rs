//! The whole circle in one function: what a service does, in the order in which it does it.

use std::path::Path;
use std::sync::Arc;

use backup_core::engine::{DrillReport, Engine, EngineDescriptor, EngineSetup, Place, RestoreReport, RestoreTarget};
use backup_core::event::SharedObserver;
use backup_core::host::LocalHost;
use backup_core::manifest::Manifest;
use backup_core::plan::{self, Plan, SourceConfig};
use backup_core::run::{RunOptions, Task, run as run_tasks};
use backup_core::sink::SnapshotFilter;
use backup_core::{BackupReader, Error, ErrorKind, Result, RunContext};
use storage::{Unlock, keys};

/// The engines that this service knows. They are constants: nothing registers itself behind one's back.
const ENGINES: &[EngineDescriptor] = &[engine_files::FILES, engine_files::SQLITE];

/// What came of it.
pub(crate) struct Circle {
    pub(crate) manifest: Manifest,
    pub(crate) listed: usize,
    pub(crate) drill: DrillReport,
    pub(crate) restored: RestoreReport,
}

/// Saves a small tree below `folder`, lists, drills and restores it.
pub(crate) async fn run(folder: &Path, observer: SharedObserver) -> Result<Circle> {
    let failed = |source| Error::io("cannot make the example's data", folder, source);
    std::fs::create_dir_all(folder.join("uploads")).map_err(failed)?;
    std::fs::write(folder.join("uploads/a.txt"), "one\n").map_err(failed)?;
    std::fs::create_dir(folder.join("scratch")).map_err(failed)?;

    // A plan may come from a file, a database, or be written like this; relative paths start from `folder`.
    let pair = keys::generate();
    let text = format!(
        "version: 1\nname: example\nrepository: {{ url: ./repository, state: state, recipients: [{}] }}\n\
         sources:\n  uploads:\n    files: {{ paths: [uploads] }}\n",
        pair.recipient
    );
    let plan = plan::parse(&text, ENGINES)?;
    storage::create(&plan.sink, folder).await?;

    // To write, no private key is needed. Cancel a run through `options.cancel`; dropping the future is safe, too.
    let writer = storage::open(&plan.sink, folder, &Unlock::default()).await?;
    let options = RunOptions {
        concurrency: plan.concurrency,
        observer: Arc::clone(&observer),
        scratch: folder.join("scratch"),
        ..RunOptions::new(plan.name.clone(), "this-machine")
    };
    let manifest = run_tasks(tasks(&plan, folder)?, writer.as_ref(), &options).await?;

    // To read, one is.
    let unlock = Unlock { identities: vec![pair.identity], passphrase: None };
    let reader = storage::open(&plan.sink, folder, &unlock).await?;
    let listed = reader.snapshots(&SnapshotFilter { plan: Some(plan.name.clone()) }).await?.len();
    let source = plan.sources.first().ok_or_else(|| Error::new(ErrorKind::Plan, "the plan has no source"))?;
    let engine = build(source, folder)?;
    let from = BackupReader::new(reader.open(&manifest.id).await?, source.name.clone())?;
    let cx = RunContext::new(source.name.clone()).observed_by(observer).scratch_in(folder.join("scratch"));
    let drill = engine.driller.drill(&cx, &from).await?;
    let target = RestoreTarget { place: Place::Folder(folder.join("restored")), ..RestoreTarget::default() };
    let planned = engine.restorer.plan_restore(&cx, &from, &target).await?;
    let restored = engine.restorer.restore(&cx, &from, planned).await?;
    Ok(Circle { manifest, listed, drill, restored })
}

/// One task per source. The runner drives them, and is the only one that commits.
fn tasks(plan: &Plan, folder: &Path) -> Result<Vec<Task>> {
    let task = |source: &SourceConfig| {
        Ok(Task {
            name: source.name.clone(),
            engine: source.engine.clone(),
            source: build(source, folder)?.source,
            on_failure: source.on_failure.unwrap_or(plan.on_failure),
        })
    };
    plan.sources.iter().map(task).collect()
}

/// Building is pure: it parses the source's settings and contacts nothing.
fn build(source: &SourceConfig, folder: &Path) -> Result<Engine> {
    let descriptor = ENGINES.iter().find(|engine| engine.name == source.engine);
    let descriptor = descriptor.ok_or_else(|| Error::new(ErrorKind::Plan, "the plan names an unknown engine"))?;
    let host = Arc::new(LocalHost);
    (descriptor.build)(&EngineSetup { name: &source.name, config: &source.config, folder, host })
}
