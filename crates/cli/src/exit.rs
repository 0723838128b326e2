//! Exit codes: the stable part of the command line that scripts rely on.
//!
//! Invariant: a number never changes its meaning; `docs/reference/exit-codes.md` is generated from [`Exit::ALL`].

use backup_core::{Error, ErrorKind};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was asked for was done.
    Done,
    /// It failed for a reason that has no code of its own.
    Failed,
    /// The command line or the plan is wrong; nothing was attempted.
    Usage,
    /// A snapshot was committed, but some sources are not in it; or something was restored, but not all of it.
    Partial,
    /// There is no repository where the plan says, or only half of one.
    NoRepository,
    /// Someone else holds what is needed.
    Busy,
    /// The key at hand does not open the repository.
    WrongKey,
    /// Stored bytes are not what was written.
    Damage,
    /// A drill gave wrong answers, or a promise was missed.
    DrillFailed,
    /// A continuous log has a gap that nobody knows of yet.
    Gap,
    /// The user, or the system, told the program to stop.
    Interrupted,
    /// `status --check`: something should be looked at.
    CheckWarning,
    /// `status --check`: a promise is not kept.
    CheckCritical,
    /// `status --check`: it could not be looked at.
    CheckUnknown,
    /// `wal fetch`: failed for a reason that has no code of its own.
    FetchFailed,
    /// `wal fetch`: the command line or the plan is wrong.
    FetchUsage,
    /// `wal fetch`: there is no repository.
    FetchNoRepository,
    /// `wal fetch`: someone else holds what is needed.
    FetchBusy,
    /// `wal fetch`: the key does not open the repository.
    FetchWrongKey,
    /// `wal fetch`: what is archived is damaged.
    FetchDamage,
    /// `wal fetch`: it is missing, and the archive goes on after it.
    FetchGap,
}

impl Exit {
    /// What `status --check` ends with, in numerical order.
    pub const CHECK: [Self; 4] = [Self::Done, Self::CheckWarning, Self::CheckCritical, Self::CheckUnknown];

    /// What `wal fetch` ends with when it did not fetch, and not because the file is not there, in numerical order.
    pub const FETCH: [Self; 8] = [
        Self::Interrupted,
        Self::FetchFailed,
        Self::FetchUsage,
        Self::FetchNoRepository,
        Self::FetchBusy,
        Self::FetchWrongKey,
        Self::FetchDamage,
        Self::FetchGap,
    ];

    /// Every code, in numerical order; those of `status --check`, which follow the convention of monitoring, and those of
    /// `wal fetch`, which a server reads, aside.
    pub const ALL: [Self; 11] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Partial,
        Self::NoRepository,
        Self::Busy,
        Self::WrongKey,
        Self::Damage,
        Self::DrillFailed,
        Self::Gap,
        Self::Interrupted,
    ];

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed | Self::CheckWarning => 1,
            Self::Usage | Self::CheckCritical => 2,
            Self::Partial | Self::CheckUnknown => 3,
            Self::NoRepository => 10,
            Self::Busy => 11,
            Self::WrongKey => 12,
            Self::Damage => 20,
            Self::DrillFailed => 21,
            Self::Gap => 22,
            Self::Interrupted => 130,
            Self::FetchFailed => 200,
            Self::FetchUsage => 202,
            Self::FetchNoRepository => 210,
            Self::FetchBusy => 211,
            Self::FetchWrongKey => 212,
            Self::FetchDamage => 220,
            Self::FetchGap => 222,
        }
    }

    /// The name in a few words, and what it means for whoever called.
    #[must_use]
    pub const fn meaning(self) -> (&'static str, &'static str) {
        match self {
            Self::Done => ("done", "Everything that was asked for was done."),
            Self::Failed => (
                "failed",
                "It failed; the message on stderr says why. Nothing was committed, unless the message says that only the report is lost.",
            ),
            Self::Usage => ("usage or plan", "The command line or the plan is wrong; nothing was attempted."),
            Self::Partial => (
                "partial",
                "A snapshot was committed without some sources (`stackward show` says which), or a restore left something out \
                 (it says what).",
            ),
            Self::NoRepository => ("no repository", "There is no repository where the plan says, or only half of one."),
            Self::Busy => ("busy", "Someone else holds what is needed; try again later."),
            Self::WrongKey | Self::FetchWrongKey => ("wrong key", "The key at hand does not open the repository."),
            Self::Damage => ("damage found", "Stored bytes are not what was written; the output names what is hurt."),
            Self::DrillFailed => ("drill failed", "A drill gave wrong answers, or a promise of the plan was missed."),
            Self::Gap => (
                "gap",
                "A continuous log lacks something, and no snapshot was taken since; what is there is sound. \
                 `stackward backup` begins a new window; `stackward log accept-gap` says that it is known.",
            ),
            Self::FetchFailed => ("failed", "It failed; the message on stderr says why."),
            Self::FetchUsage => ("usage or plan", "The command line or the plan is wrong."),
            Self::FetchNoRepository => ("no repository", "There is no repository where the plan says."),
            Self::FetchBusy => ("busy", "Someone else holds what is needed."),
            Self::FetchDamage => ("damage found", "What is archived under this name is not what was written."),
            Self::FetchGap => (
                "gap",
                "It is missing although the archive goes on after it, the server has no copy of its own in `pg_wal`, and \
                 is no standby, which could get it from its primary.",
            ),
            Self::CheckWarning => ("warning", "Something should be looked at; the output says what."),
            Self::CheckCritical => ("critical", "A promise of the plan is not kept, or there is no snapshot."),
            Self::CheckUnknown => ("unknown", "It could not be looked at; the message on stderr says why."),
            Self::Interrupted => ("interrupted", "Stopped by SIGINT or SIGTERM; nothing was committed."),
        }
    }

    /// What `wal fetch` ends with instead. A server takes every code up to 125 for "there is no such file", which ends its
    /// recovery there, and gives up at every other.
    #[must_use]
    pub fn of_fetch(self) -> Self {
        match self {
            Self::Usage => Self::FetchUsage,
            Self::NoRepository => Self::FetchNoRepository,
            Self::Busy => Self::FetchBusy,
            Self::WrongKey => Self::FetchWrongKey,
            Self::Damage => Self::FetchDamage,
            Self::Gap => Self::FetchGap,
            _ if self.code() > 125 => self,
            _ => Self::FetchFailed,
        }
    }

    /// The code that an error deserves.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Usage | ErrorKind::Plan => Self::Usage,
            ErrorKind::NoRepository => Self::NoRepository,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::WrongKey => Self::WrongKey,
            ErrorKind::Damaged => Self::Damage,
            ErrorKind::DrillFailed => Self::DrillFailed,
            ErrorKind::Interrupted => Self::Interrupted,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_scripts_know() {
        let codes = Exit::ALL.map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 130]);
        assert_eq!(Exit::CHECK.map(Exit::code), [0, 1, 2, 3]);
        assert_eq!(Exit::FETCH.map(Exit::code), [130, 200, 202, 210, 211, 212, 220, 222]);
        assert!(Exit::ALL.iter().all(|exit| exit.of_fetch().code() > 125), "a server must not take it for absence");
    }

    #[test]
    fn each_kind_of_error_has_its_code() {
        let cases = [
            (ErrorKind::Usage, 2),
            (ErrorKind::Plan, 2),
            (ErrorKind::NotFound, 1),
            (ErrorKind::AlreadyExists, 1),
            (ErrorKind::PermissionDenied, 1),
            (ErrorKind::Unreachable, 1),
            (ErrorKind::Unsupported, 1),
            (ErrorKind::Incomplete, 1),
            (ErrorKind::Damaged, 20),
            (ErrorKind::NoRepository, 10),
            (ErrorKind::Busy, 11),
            (ErrorKind::WrongKey, 12),
            (ErrorKind::DrillFailed, 21),
            (ErrorKind::NoSpace, 1),
            (ErrorKind::Interrupted, 130),
            (ErrorKind::Io, 1),
            (ErrorKind::Tool, 1),
            (ErrorKind::Internal, 1),
        ];
        for (kind, code) in cases {
            assert_eq!(Exit::of(&Error::new(kind, "x")).code(), code, "{}", kind.name());
        }
    }
}
