//! The plan made live: its engines built, its sink opened, its snapshots chosen.
//!
//! Invariant: building runs nothing and contacts nothing; only [`Stack::open`] does.

mod choose;
pub(crate) mod clock;
mod locate;
mod neighbours;
mod unlock;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::{Engine, EngineSetup};
use backup_core::host::LocalHost;
use backup_core::plan::{self, Plan, SourceConfig};
use backup_core::sink::Sink;
use backup_core::{Error, ErrorKind, Result, SourceName};

pub(crate) use choose::{choose, choose_for, latest, refuse_ahead};
pub(crate) use locate::{DEFAULT_PLAN, key_beside, locate};
pub(crate) use neighbours::{left_out, neighbours, outer_first};
pub(crate) use unlock::{Access, unlock};

use crate::session::Session;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stack {
    /// The plan.
    pub(crate) plan: Plan,
    /// Its file.
    pub(crate) path: PathBuf,
    /// The folder that relative paths of the plan start from: the file's.
    pub(crate) folder: PathBuf,
    /// The sources with their engines, in the plan's order.
    pub(crate) parts: Vec<Part>,
}

/// One source of the plan with its engine.
#[derive(Debug)]
pub(crate) struct Part {
    /// The source as the plan has it.
    pub(crate) config: SourceConfig,
    /// What serves it.
    pub(crate) engine: Engine,
}

impl Part {
    /// The source's name.
    pub(crate) fn name(&self) -> &SourceName {
        &self.config.name
    }
}

impl Stack {
    /// Reads the plan and builds its engines.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`], with the file's name, line and field.
    pub(crate) fn load(session: &Session<'_>) -> Result<Self> {
        let path = locate(session.options.plan.as_deref())?;
        let text = std::fs::read_to_string(&path).map_err(|source| {
            Error::new(ErrorKind::Plan, format!("the plan {} cannot be read", path.display())).caused_by(source)
        })?;
        Self::build(session, &path, &text).map_err(|error| match error.operation() {
            Some(_) => error,
            None => error.during(path.display().to_string()),
        })
    }

    /// Builds the engines of the plan `text` that lies, or would lie, at `path`.
    pub(crate) fn build(session: &Session<'_>, path: &Path, text: &str) -> Result<Self> {
        let plan = plan::parse(text, session.world.engines)?;
        let folder = std::path::absolute(path)
            .ok()
            .and_then(|whole| whole.parent().map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("/"));
        let parts =
            plan.sources.iter().map(|config| build_part(session, config, &folder)).collect::<Result<Vec<Part>>>()?;
        Ok(Self { plan, path: path.to_owned(), folder, parts })
    }

    /// Opens the sink, with the keys that `access` needs.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`], [`ErrorKind::WrongKey`], and those of reading keys.
    pub(crate) async fn open(&self, session: &Session<'_>, access: Access) -> Result<Arc<dyn Sink>> {
        let keys = unlock(session, self, access)?;
        session.unless_interrupted(session.world.sinks.open(&self.plan.sink, &self.folder, &keys)).await
    }

    /// The part of this name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] with the nearest name.
    pub(crate) fn part(&self, name: &SourceName) -> Result<&Part> {
        self.parts.iter().find(|part| part.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.parts.iter().map(|part| part.name().as_str()).collect();
            let hint = match plan::nearest(name.as_str(), names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("sources of the plan: {}", names.join(", ")),
            };
            Error::new(ErrorKind::Usage, format!("the plan `{}` has no source `{name}`", self.plan.name)).hint(hint)
        })
    }

    /// The parts of these names, in the plan's order; all of them when none is named.
    ///
    /// # Errors
    /// As [`Stack::part`].
    pub(crate) fn select(&self, names: &[SourceName]) -> Result<Vec<&Part>> {
        for name in names {
            self.part(name)?;
        }
        Ok(self.parts.iter().filter(|part| names.is_empty() || names.contains(part.name())).collect())
    }
}

fn build_part(session: &Session<'_>, config: &SourceConfig, folder: &Path) -> Result<Part> {
    let known = session.world.engines.iter().find(|engine| engine.name == config.engine);
    let Some(descriptor) = known else {
        return Err(Error::new(ErrorKind::Internal, format!("the engine `{}` vanished", config.engine)));
    };
    let setup = EngineSetup { name: &config.name, config: &config.config, folder, host: Arc::new(LocalHost) };
    let engine = (descriptor.build)(&setup)?;
    Ok(Part { config: config.clone(), engine })
}
