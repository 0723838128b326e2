//! The one error type that crosses crate boundaries: what happened, where, and what to do about it.
//!
//! Invariant: `Display` never repeats its source and never carries a secret; the front end prints the chain once.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// The result of every fallible operation that a contract names.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What sort of trouble it is. The command line maps kinds to exit codes, an embedding service to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense: a wrong flag, an impossible combination.
    Usage,
    /// The plan is not valid, or names something that does not exist.
    Plan,
    /// A named thing is not there: a snapshot, a file, a database.
    NotFound,
    /// Something stands where we were told to write, and we were not told to replace it.
    AlreadyExists,
    /// The system refused: file modes, database privileges.
    PermissionDenied,
    /// A server or a store does not answer.
    Unreachable,
    /// The server, the tool or the format is of a version that this code does not handle.
    Unsupported,
    /// A stream, a process or an artifact ended before it was whole.
    Incomplete,
    /// Stored bytes are not what was written.
    Damaged,
    /// There is no repository at this place, or only half of one.
    NoRepository,
    /// Someone else holds what we need.
    Busy,
    /// The key at hand does not open this repository.
    WrongKey,
    /// A drill ran and its answers were wrong.
    DrillFailed,
    /// The disk, or the quota, is full.
    NoSpace,
    /// The user, or the embedding service, cancelled.
    Interrupted,
    /// Any other failure of the operating system.
    Io,
    /// A tool that we ran failed.
    Tool,
    /// A defect of ours.
    Internal,
}

impl ErrorKind {
    /// The stable name used in JSON output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Plan => "plan",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::Unreachable => "unreachable",
            Self::Unsupported => "unsupported",
            Self::Incomplete => "incomplete",
            Self::Damaged => "damaged",
            Self::NoRepository => "no_repository",
            Self::Busy => "busy",
            Self::WrongKey => "wrong_key",
            Self::DrillFailed => "drill_failed",
            Self::NoSpace => "no_space",
            Self::Interrupted => "interrupted",
            Self::Io => "io",
            Self::Tool => "tool",
            Self::Internal => "internal",
        }
    }
}

/// Whether the same call may succeed later without anybody changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It will fail again until somebody acts.
    Never,
    /// A passing condition: a network fault, a busy server.
    Later,
}

/// An error with everything that an operator needs at three in the morning.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Option<Cow<'static, str>>,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    hint: Option<Cow<'static, str>>,
    retry: Retry,
    source: Option<Cause>,
}

impl Error {
    /// A new error. `message` is a lowercase fragment that names the thing; the remedy belongs in [`Error::hint`].
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: None,
            message: message.into(),
            context: Vec::new(),
            hint: None,
            retry: Retry::Never,
            source: None,
        }))
    }

    /// A failure of the operating system on `path`, with the kind and the hint that its errno deserves.
    #[must_use]
    pub fn io(
        message: impl Into<Cow<'static, str>>,
        path: impl AsRef<std::path::Path>,
        source: std::io::Error,
    ) -> Self {
        let error = Self::from_io(message, source);
        let path = path.as_ref().display().to_string();
        error.with("path", path)
    }

    /// A failure of the operating system that concerns no single path.
    #[must_use]
    pub fn from_io(message: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let (kind, hint) = match source.kind() {
            Io::NotFound => (ErrorKind::NotFound, None),
            Io::PermissionDenied => (ErrorKind::PermissionDenied, Some("run as a user that may, or change its modes")),
            Io::AlreadyExists => (ErrorKind::AlreadyExists, None),
            Io::StorageFull | Io::QuotaExceeded => (
                ErrorKind::NoSpace,
                Some("free some space, or choose another place; nothing that was complete is lost"),
            ),
            Io::ConnectionRefused | Io::ConnectionReset | Io::ConnectionAborted | Io::TimedOut | Io::NotConnected => {
                (ErrorKind::Unreachable, None)
            }
            Io::UnexpectedEof | Io::BrokenPipe => (ErrorKind::Incomplete, None),
            _ => (ErrorKind::Io, None),
        };
        let error = Self::new(kind, message).caused_by(source);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// Says during which operation it happened; the outermost caller that knows better may overwrite it.
    #[must_use]
    pub fn during(mut self, operation: impl Into<Cow<'static, str>>) -> Self {
        self.0.operation = Some(operation.into());
        self
    }

    /// Adds one named fact. Never pass a secret.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// What to do about it, as an instruction.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Marks it as passing.
    #[must_use]
    pub fn retry_later(mut self) -> Self {
        self.0.retry = Retry::Later;
        self
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Cause>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The sort of trouble.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message alone, without operation and context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The operation during which it happened, when somebody said so.
    #[must_use]
    pub fn operation(&self) -> Option<&str> {
        self.0.operation.as_deref()
    }

    /// The named facts, in the order in which they were added.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// The remedy, when one is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether a later attempt may succeed by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The whole chain as one line: this error, then each cause once.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = next.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = &self.0.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&self.0.message)?;
        for (position, (name, value)) in self.0.context.iter().enumerate() {
            let open = if position == 0 { " (" } else { ", " };
            write!(f, "{open}{name} {value}")?;
        }
        if self.0.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())?;
        match &self.0.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_operation_message_and_context_but_not_the_cause() {
        let cause = std::io::Error::other("cause");
        let error = Error::io("cannot open the file", "/x", cause).during("back up `a`").with("attempt", 2);
        assert_eq!(error.to_string(), "back up `a`: cannot open the file (path /x, attempt 2)");
        assert_eq!(error.chain(), "back up `a`: cannot open the file (path /x, attempt 2): cause");
    }

    #[test]
    fn a_full_disk_is_its_own_kind_and_says_what_to_do() {
        let error = Error::io("cannot write", "/x", std::io::Error::from_raw_os_error(28));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.remedy().is_some_and(|hint| hint.contains("space")));
    }

    #[test]
    fn a_cause_that_was_quoted_is_not_printed_twice() {
        let error = Error::new(ErrorKind::Io, "it broke: disk").caused_by("disk");
        assert_eq!(error.chain(), "it broke: disk");
    }
}
