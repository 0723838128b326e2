//! The continuous logs of the plan's sources, as far as `verify` looks at them: damage, and gaps.

use std::sync::Arc;

use backup_core::sink::{CheckDepth, Sink};
use backup_core::snapshots::candidates;
use backup_core::window::overview;
use backup_core::{Error, ErrorKind, Event, Result, SegmentLog, SourceName};
use serde::Serialize;

use crate::args::DepthArg;
use crate::output;
use crate::session::Session;
use crate::stack::Stack;

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct LogFinding {
    pub(super) source: SourceName,
    /// The segment, as `timeline/name`.
    pub(super) segment: String,
    pub(super) problem: String,
}

/// What was found in all logs.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// What was looked at, a line for each source.
    pub(super) checked: Vec<String>,
    pub(super) findings: Vec<LogFinding>,
    /// What is missing, and nobody knows of yet: no damage.
    pub(super) gaps: Vec<LogFinding>,
    /// What is missing, and known.
    pub(super) accepted: Vec<String>,
    /// Why logs could not be looked at. They do not keep the others from it.
    pub(super) failed: Vec<Error>,
}

/// Looks at every segment of every source of the plan: `depth` says how closely.
pub(super) async fn check(session: &Session<'_>, stack: &Stack, sink: &dyn Sink, args: DepthArg) -> Result<Logs> {
    let depth = if args == DepthArg::Manifest { CheckDepth::References } else { CheckDepth::Data };
    let mut found = Logs::default();
    let Some(store) = sink.logs() else { return Ok(found) };
    for part in &stack.parts {
        let (cx, name) = (session.context(part.name()), part.name());
        let log = SegmentLog::new(Arc::clone(&store), name.clone());
        if log.timelines().await?.is_empty() {
            continue;
        }
        cx.report(&Event::Started { source: name.clone(), work: "verify the log", expected_bytes: None });
        let checked = async {
            let mut damage = log.check(&cx, depth).await?;
            let mut looked = overview(&cx, &log).await?;
            looked.accept_bridged(&candidates(sink, &stack.plan.name, name).await?);
            #[cfg(feature = "postgres")]
            if args == DepthArg::Structure && part.config.engine == "postgres" {
                damage.extend(engine_postgres::wal::verify(&cx, &log).await?);
            }
            Ok((damage, looked))
        };
        let checked = checked.await;
        let failure = checked.as_ref().err().map(Error::chain);
        cx.report(&Event::Finished { source: name.clone(), failure });
        let (damage, log) = match checked {
            Ok(looked) => looked,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                found.failed.push(error.during(format!("verify the log of `{name}`")));
                continue;
            }
        };
        let finding = |segment: String, problem: String| LogFinding { source: name.clone(), segment, problem };
        let mut findings: Vec<LogFinding> =
            damage.into_iter().map(|damaged| finding(damaged.id.to_string(), damaged.problem)).collect();
        let known = |id: &str| findings.iter().any(|finding| finding.segment == id);
        // Damage that both see is told once; what damage makes of the chain is no hole besides.
        let unseen: Vec<_> = log.damage.iter().filter(|damaged| !known(&damaged.id.to_string())).cloned().collect();
        findings.extend(unseen.into_iter().map(|damaged| finding(damaged.id.to_string(), damaged.problem)));
        for gap in &log.gaps {
            let damaged = findings.iter().any(|finding| gap.missing.ends_with(&finding.segment));
            if damaged {
                continue;
            }
            let problem = format!("before it, {} is missing", gap.missing);
            match &gap.accepted {
                None => found.gaps.push(finding(gap.before.to_string(), problem)),
                Some(why) => found.accepted.push(format!("{name}: segment {}: {problem}; {why}", gap.before)),
            }
        }
        let segments: u64 = log.chains.iter().map(|chain| chain.segments).sum();
        let bytes: u64 = log.chains.iter().map(|chain| chain.stored_bytes).sum();
        let chains = output::counted(log.chains.len() as u64, "chain");
        found.checked.push(format!(
            "{name}: log: {}, {}, {chains}",
            output::counted(segments, "segment"),
            output::bytes(bytes)
        ));
        found.findings.extend(findings);
    }
    Ok(found)
}
