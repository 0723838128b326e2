//! The pipeline of one run: new chunks are compressed, sealed and packed on all cores, packs are written as they fill.
//!
//! Invariants: a chunk is claimed once, by whoever meets it first and has room for it, and is queued in the same step: a
//! write that is given up while it waits has claimed nothing. Queued bytes are bounded; the first failure stops everything,
//! and [`Pipeline::flush`] reports it, so that a snapshot can only be committed over durable packs.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::content::ChunkId;
use super::crypto::{FRAME_PREFIX, FrameSealer, Key, SessionId, SessionKeys};
use super::index::{self, IdSet, SharedIndex};
use super::layout;
use super::pack::{Class, PackBuilder, PackInfo};
use super::referred::Referred;
use super::store::Store;

/// Chunks that wait for a worker hold at most this much memory.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// The unit in which queued bytes are counted.
const PERMIT_BYTES: usize = 1024;
/// Packs that are being written at the same time.
const UPLOADS: usize = 2;
/// An index object is written after so many packs, so that a run that dies is not all lost.
const PACKS_PER_INDEX: usize = 32;
/// Payloads shorter than this are not worth compressing.
const MIN_COMPRESSED: usize = 64;

/// Counts what one artifact had to store.
#[derive(Debug, Default)]
pub(super) struct Tally {
    stored: AtomicU64,
    pending: AtomicUsize,
    idle: Notify,
}

impl Tally {
    fn begin(&self) {
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    fn end(&self, stored: u64) {
        self.stored.fetch_add(stored, Ordering::AcqRel);
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// Waits until every chunk of the artifact is packed, and returns the stored bytes.
    pub(super) async fn settle(&self) -> u64 {
        loop {
            let idle = self.idle.notified();
            if self.pending.load(Ordering::Acquire) == 0 {
                return self.stored.load(Ordering::Acquire);
            }
            idle.await;
        }
    }
}

struct Job {
    id: ChunkId,
    class: Class,
    data: Bytes,
    tally: Arc<Tally>,
    _permit: OwnedSemaphorePermit,
}

impl Job {
    fn new(id: ChunkId, class: Class, data: Bytes, tally: &Arc<Tally>, permit: OwnedSemaphorePermit) -> Self {
        tally.begin();
        Self { id, class, data, tally: Arc::clone(tally), _permit: permit }
    }
}

/// What the workers, the uploads and the writers share.
struct Shared {
    store: Store,
    index_key: Key,
    session: SessionId,
    content: FrameSealer,
    meta: FrameSealer,
    level: i32,
    runtime: Handle,
    building: [Mutex<PackBuilder>; 2],
    uploads: Arc<Semaphore>,
    /// Packs that are durable and not yet in an index object.
    unlisted: tokio::sync::Mutex<Vec<PackInfo>>,
    /// Packs that this run wrote: hash and size.
    written: Mutex<Vec<(layout::ObjectHash, u64)>>,
    /// How many chunks are in them.
    stored: AtomicUsize,
    failure: OnceLock<(ErrorKind, String, Option<String>)>,
}

/// See the module.
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    jobs: Mutex<Option<mpsc::UnboundedSender<Job>>>,
    budget: Arc<Semaphore>,
    /// Chunks that this run queued.
    claimed: Mutex<IdSet>,
    referred: Arc<Referred>,
    workers: Mutex<Vec<std::thread::JoinHandle<()>>>,
    id_key: Key,
    meta_id_key: Key,
}

/// What a run's pipeline needs to know.
pub(super) struct PipelineSetup {
    pub(super) store: Store,
    pub(super) index: SharedIndex,
    pub(super) index_key: Key,
    pub(super) id_key: Key,
    pub(super) session: SessionId,
    pub(super) keys: SessionKeys,
    pub(super) level: i32,
    /// Packs that are durable and in no index object: the next one lists them, too.
    pub(super) unlisted: Vec<PackInfo>,
}

impl Pipeline {
    /// Starts the workers. Must be called within a runtime.
    pub(super) fn start(setup: PipelineSetup) -> Result<Self> {
        let content =
            setup.keys.content.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "a run has no content key"))?;
        let shared = Arc::new(Shared {
            store: setup.store,
            index_key: setup.index_key,
            session: setup.session,
            content: FrameSealer::new(content)?,
            meta: FrameSealer::new(&setup.keys.meta)?,
            level: setup.level,
            runtime: Handle::current(),
            building: [Class::Content, Class::Meta].map(|class| Mutex::new(PackBuilder::new(setup.session, class))),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            unlisted: tokio::sync::Mutex::new(setup.unlisted),
            written: Mutex::default(),
            stored: AtomicUsize::new(0),
            failure: OnceLock::new(),
        });
        let (sender, receiver) = mpsc::unbounded_channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let count = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let workers = (0..count).map(|_| {
            let (shared, receiver) = (Arc::clone(&shared), Arc::clone(&receiver));
            let spawned =
                std::thread::Builder::new().name("stackward-pack".to_owned()).spawn(move || work(&shared, &receiver));
            spawned.map_err(|source| Error::from_io("cannot start a worker thread", source))
        });
        let workers = workers.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            shared,
            jobs: Mutex::new(Some(sender)),
            budget: Arc::new(Semaphore::new(QUEUE_BYTES / PERMIT_BYTES)),
            claimed: Mutex::default(),
            referred: Arc::new(Referred::new(setup.index)),
            workers: Mutex::new(workers),
            id_key: setup.id_key,
            meta_id_key: setup.keys.meta_id,
        })
    }

    /// Names a chunk and, when nobody has it yet, queues it. Waits when the workers are behind.
    pub(super) async fn store(&self, class: Class, data: Bytes, tally: &Arc<Tally>) -> Result<ChunkId> {
        let key = match class {
            Class::Content => &self.id_key,
            Class::Meta => &self.meta_id_key,
        };
        let id = ChunkId::of(key, &data);
        if self.is_known(&id) {
            return Ok(id);
        }
        self.shared.check()?;
        let permits = data.len().div_ceil(PERMIT_BYTES).max(1) as u32;
        let budget = Arc::clone(&self.budget).acquire_many_owned(permits).await;
        let permit = budget.map_err(|_| self.shared.stopped())?;
        // Nothing waits from here on. Whoever claims a chunk also queues it, or others would rely on what nobody stores.
        let jobs = lock(&self.jobs);
        let queue = jobs.as_ref().ok_or_else(|| self.shared.stopped())?;
        let mut claimed = lock(&self.claimed);
        if claimed.contains(&id) {
            return Ok(id);
        }
        let job = Job::new(id, class, data, tally, permit);
        queue.send(job).map_err(|_| self.shared.stopped())?;
        claimed.insert(id);
        Ok(id)
    }

    /// Whether the repository has a chunk, or this run has queued it. What is referred to is remembered, to be looked up
    /// once more before the snapshot is committed.
    fn is_known(&self, id: &ChunkId) -> bool {
        self.referred.find(id).is_some() || lock(&self.claimed).contains(id)
    }

    /// What this run refers to that was stored before it.
    pub(super) fn referred(&self) -> &Arc<Referred> {
        &self.referred
    }

    /// Ends the run's writing: every pack and every index object is durable when this returns.
    pub(super) async fn flush(&self) -> Result<()> {
        // Without a sender the workers end once the queue is empty.
        drop(lock(&self.jobs).take());
        let workers = std::mem::take(&mut *lock(&self.workers));
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().all(|worker| worker.join().is_ok())).await;
        if !joined.unwrap_or(false) {
            return Err(Error::new(ErrorKind::Internal, "a worker thread panicked"));
        }
        for class in [Class::Content, Class::Meta] {
            let full = std::mem::replace(
                &mut *lock(&self.shared.building[class as usize]),
                PackBuilder::new(self.shared.session, class),
            );
            if !full.is_empty() {
                let permit = self.upload_permit().await?;
                upload(&self.shared, full, permit).await;
            }
        }
        let _all = Arc::clone(&self.shared.uploads).acquire_many_owned(UPLOADS as u32).await;
        self.shared.check()?;
        let mut unlisted = self.shared.unlisted.lock().await;
        if !unlisted.is_empty() {
            self.shared.write_index(&unlisted).await?;
            unlisted.clear();
        }
        drop(unlisted);
        self.check_claims()?;
        self.read_back().await?;
        self.referred.look_up(&self.shared.store).await
    }

    /// Every chunk that somebody was told is stored is in a pack of this run: each is queued once, so counting tells.
    fn check_claims(&self) -> Result<()> {
        let (claimed, stored) = (lock(&self.claimed).len(), self.shared.stored.load(Ordering::Acquire));
        if claimed == stored {
            return Ok(());
        }
        let message = format!("{stored} chunks were stored where {claimed} are referred to; nothing was committed");
        Err(Error::new(ErrorKind::Internal, message))
    }

    async fn upload_permit(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.uploads).acquire_owned().await.map_err(|_| self.shared.stopped())
    }

    /// Asks the store for every pack that this run wrote, before anything refers to them.
    async fn read_back(&self) -> Result<()> {
        let written = lock(&self.shared.written).clone();
        for (hash, size) in written {
            let path = layout::pack(&hash);
            let found = self.shared.store.size(&path).await?;
            if found != size {
                let message = format!("the store has {found} bytes of the object `{path}`, {size} were written");
                return Err(
                    Error::new(ErrorKind::Damaged, message).hint("the store loses data; do not trust it with backups")
                );
            }
        }
        Ok(())
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // A run that was given up: let the workers end without doing what is still queued.
        self.shared.fail(&Error::new(ErrorKind::Interrupted, "the run was given up"));
        drop(lock(&self.jobs).take());
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("session", &self.shared.session).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn fail(&self, error: &Error) {
        let _first = self.failure.set((error.kind(), error.chain(), error.remedy().map(str::to_owned)));
    }

    fn check(&self) -> Result<()> {
        if self.failure.get().is_some() { Err(self.stopped()) } else { Ok(()) }
    }

    /// The first failure, again: errors cannot be cloned, and everybody must hear of it.
    fn stopped(&self) -> Error {
        let Some((kind, message, hint)) = self.failure.get() else {
            return Error::new(ErrorKind::Internal, "the repository was written to after its run ended");
        };
        let error = Error::new(*kind, message.clone());
        match hint {
            Some(hint) => error.hint(hint.clone()),
            None => error,
        }
    }

    async fn write_index(&self, packs: &[PackInfo]) -> Result<()> {
        let (hash, object) = index::encode(&self.index_key, packs)?;
        self.store.create_hashed(&layout::index(&hash), object).await
    }

    async fn write_pack(&self, builder: PackBuilder) -> Result<()> {
        let (info, bytes) = builder.finish(&self.index_key)?;
        self.store.create_hashed(&layout::pack(&info.hash), bytes).await?;
        lock(&self.written).push((info.hash, info.size));
        self.stored.fetch_add(info.entries.len(), Ordering::AcqRel);
        let mut unlisted = self.unlisted.lock().await;
        unlisted.push(info);
        if unlisted.len() >= PACKS_PER_INDEX {
            self.write_index(&unlisted).await?;
            unlisted.clear();
        }
        Ok(())
    }
}

async fn upload(shared: &Shared, builder: PackBuilder, permit: OwnedSemaphorePermit) {
    if let Err(error) = shared.write_pack(builder).await {
        shared.fail(&error);
    }
    drop(permit);
}

/// One of those who wait sleeps in the queue, the others behind its lock: nobody spins while the source is slow.
fn next_job(jobs: &Mutex<mpsc::UnboundedReceiver<Job>>) -> Option<Job> {
    lock(jobs).blocking_recv()
}

fn work(shared: &Arc<Shared>, jobs: &Mutex<mpsc::UnboundedReceiver<Job>>) {
    let mut compressor = match zstd::bulk::Compressor::new(shared.level) {
        Ok(compressor) => compressor,
        Err(source) => return shared.fail(&Error::from_io("cannot start the compressor", source)),
    };
    let mut frame = Vec::new();
    while let Some(job) = next_job(jobs) {
        let mut stored = 0;
        // After a failure the queue is only drained, so that nobody waits for ever.
        if shared.failure.get().is_none() {
            match pack_one(shared, &mut compressor, &mut frame, &job) {
                Ok(bytes) => stored = bytes,
                Err(error) => shared.fail(&error),
            }
        }
        job.tally.end(stored);
    }
}

/// Compresses, seals and packs one chunk; hands the pack on when it is full. Returns the stored bytes.
fn pack_one(
    shared: &Arc<Shared>,
    compressor: &mut zstd::bulk::Compressor<'_>,
    frame: &mut Vec<u8>,
    job: &Job,
) -> Result<u64> {
    fill_frame(compressor, frame, &job.data)?;
    let sealer = match job.class {
        Class::Content => &shared.content,
        Class::Meta => &shared.meta,
    };
    sealer.seal(&job.id.0, frame)?;
    let mut building = lock(&shared.building[job.class as usize]);
    building.push(job.id, job.data.len() as u32, frame);
    if building.is_full() {
        // Waiting with the pack in its place makes the other workers wait too: a slow store must not pile up packs.
        let permit =
            shared.runtime.block_on(Arc::clone(&shared.uploads).acquire_owned()).map_err(|_| shared.stopped())?;
        let full = std::mem::replace(&mut *building, PackBuilder::new(shared.session, job.class));
        drop(building);
        let shared = Arc::clone(shared);
        let runtime = shared.runtime.clone();
        runtime.spawn(async move { upload(&shared, full, permit).await });
    }
    Ok(frame.len() as u64)
}

/// Puts the payload into `frame`, compressed if that makes it smaller, and leaves room for the prefix.
fn fill_frame(compressor: &mut zstd::bulk::Compressor<'_>, frame: &mut Vec<u8>, data: &[u8]) -> Result<()> {
    frame.clear();
    frame.resize(FRAME_PREFIX, 0);
    if data.len() >= MIN_COMPRESSED {
        frame.reserve(zstd::zstd_safe::compress_bound(data.len()));
        let mut behind = io::Cursor::new(&mut *frame);
        behind.set_position(FRAME_PREFIX as u64);
        let written = compressor
            .compress_to_buffer(data, &mut behind)
            .map_err(|source| Error::from_io("cannot compress", source))?;
        if written < data.len() {
            return Ok(());
        }
    }
    frame.truncate(FRAME_PREFIX);
    frame.extend_from_slice(data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use object_store::memory::InMemory;

    use super::super::crypto::random_key;
    use super::super::index::Index;
    use super::super::load::IndexLoader;
    use super::*;

    /// A source that gives up while it waits for room leaves the chunk to others that have it, too.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_write_that_is_given_up_claims_nothing() {
        let store = Store::new(Arc::new(InMemory::new()), "a test");
        let (index_key, session) = (random_key().unwrap(), SessionId([1; 16]));
        let setup = PipelineSetup {
            store: store.clone(),
            index: SharedIndex::default(),
            index_key: index_key.clone(),
            id_key: random_key().unwrap(),
            session,
            keys: SessionKeys::generate(&random_key().unwrap(), session).unwrap(),
            level: 1,
            unlisted: Vec::new(),
        };
        let pipeline = Pipeline::start(setup).unwrap();
        let (data, tally) = (Bytes::from(vec![7; 100_000]), Arc::<Tally>::default());
        let full = Arc::clone(&pipeline.budget).acquire_many_owned((QUEUE_BYTES / PERMIT_BYTES) as u32).await.unwrap();
        let mut waiting = Box::pin(pipeline.store(Class::Content, data.clone(), &tally));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop((waiting, full));
        let id = pipeline.store(Class::Content, data, &tally).await.unwrap();
        pipeline.flush().await.unwrap();
        let index = Arc::new(RwLock::new(Index::default()));
        IndexLoader::new(store, Arc::clone(&index), index_key).refresh().await.unwrap();
        assert!(index::read(&index).contains(&id), "it was named and not stored");
    }
}
