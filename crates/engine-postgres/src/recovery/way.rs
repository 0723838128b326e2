//! The way from a base backup through the archived log to a moment.
//!
//! Invariant: a way is handed out only when every segment on it was read to its end: stored bytes as they were stored, every
//! record with its own checksum and behind the one before it.

use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};
use jiff::Timestamp;

use super::branches;
use super::observe::{self, Mark, Wanted};
use super::spaces::LogSpaces;
use crate::physical::PhysicalDetails;
use crate::wal::{Chain, SegmentSize, WalFile, WalSegment, Walker, last_mark, walk};

/// The timeline in the name of a segment.
const TIMELINE_DIGITS: usize = 8;

/// Where a recovering server stops. Never nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// As soon as it is consistent: the moment of the snapshot.
    Consistent,
    /// After the record that begins here.
    After(Lsn),
    /// Before the record that begins here.
    Before(Lsn),
}

/// Which timeline a recovery ends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Branch {
    /// The newest that comes from the base backup.
    Newest,
    /// This one.
    Chosen(u32),
}

impl Branch {
    /// The one that the operator chose: by its number, or by the eight digits that names of segments begin with.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it is no timeline's.
    pub(crate) fn of(log: &SegmentLog) -> Result<Self> {
        let Some(name) = log.branch() else { return Ok(Self::Newest) };
        let text = name.as_str();
        let number = if text.len() == TIMELINE_DIGITS { u32::from_str_radix(text, 16) } else { text.parse() };
        match number {
            Ok(number) if number > 0 => Ok(Self::Chosen(number)),
            _ => Err(Error::new(ErrorKind::Usage, format!("`{text}` is no timeline"))
                .hint("a timeline is a number, as `stackward wal status` shows it")),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) timeline: u32,
    pub(crate) stop: Stop,
    /// What the server needs from the archive, in order; the rest came with the base backup.
    pub(crate) segments: Vec<WalSegment>,
    /// The histories that the archive has: a server that is promoted must not take a number that is taken.
    pub(crate) histories: Vec<u32>,
    pub(crate) segment_bytes: u64,
    /// The time of the last transaction on it; when there is none, when the base backup ended.
    pub(crate) reached: Timestamp,
    /// For the end of the log: when its last bytes were received.
    pub(crate) received: Option<Timestamp>,
    /// What the log does to tablespaces on it.
    pub(crate) spaces: LogSpaces,
}

impl Way {
    /// What will be done, for people.
    pub(crate) fn describe(&self) -> String {
        let stop = match self.stop {
            Stop::Consistent => "where the base backup ended".to_owned(),
            Stop::After(lsn) => format!("with the record at {lsn}"),
            Stop::Before(lsn) => format!("before the record at {lsn}"),
        };
        format!(
            "replay {} segments of timeline {}, and stop {stop} (the last transaction before is of {})",
            self.segments.len(),
            self.timeline,
            self.reached
        )
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Search {
    Found(Way),
    /// The moment is before the end of the base backup.
    TooEarly,
    /// The archive does not have it up to its end, or up to where it was looked.
    NotThere {
        /// The end of the archive, as far as it was walked.
        end: Lsn,
        /// The latest moment that is archived.
        time: Option<Timestamp>,
    },
}

/// Walks from the base backup to `moment`, and no further than `until`.
///
/// # Errors
/// [`ErrorKind::Incomplete`] when a segment or a history is missing, [`ErrorKind::Damaged`] when one is not whole, with its
/// name; [`ErrorKind::Unsupported`] when the archive is that of another server; [`ErrorKind::NotFound`] when the server that
/// went on, on the timeline that is followed, was not there at the moment, and another timeline has it.
pub(crate) async fn find(
    cx: &RunContext,
    details: &PhysicalDetails,
    log: &SegmentLog,
    chain: &Chain,
    moment: &Moment,
    until: Option<Lsn>,
) -> Result<Search> {
    let (search, skipped) = seek(cx, details, log, chain, moment, until).await?;
    match (&search, skipped) {
        (Search::Found(way), Some(left)) => {
            branches::refuse_skipped(cx, details, log, chain, moment, way, left).await?;
        }
        (Search::Found(way), None) => branches::tell_others(cx, log, chain, moment, way).await?,
        _ => {}
    }
    Ok(search)
}

/// The same, whatever other timelines have; and, when the moment lies between what was replayed of one timeline and the first
/// that the next one tells, where that one was left.
pub(super) async fn seek(
    cx: &RunContext,
    details: &PhysicalDetails,
    log: &SegmentLog,
    chain: &Chain,
    moment: &Moment,
    until: Option<Lsn>,
) -> Result<(Search, Option<Lsn>)> {
    let wanted = Wanted::of(moment)?;
    let system = same_server(details, chain)?;
    let too_early = match &wanted {
        Wanted::Time(time) => *time < details.stopped,
        Wanted::Position(position) => *position < details.stop_lsn,
        _ => false,
    };
    if too_early {
        return Ok((Search::TooEarly, None));
    }
    let timeline = timeline(chain, details, Branch::of(log)?)?;
    let road = Road::lay(details, chain, timeline, until)?;
    let mut trip = Trip {
        walker: Walker::new(road.begin(), chain.segment_size(), system),
        search: observe::Search::new(wanted.clone(), details.stop_lsn),
        walked: 0,
    };
    for segment in &road.walked {
        cx.check_cancelled()?;
        if !road.is_known(chain, *segment) {
            return Err(missing(&segment.to_string()));
        }
        cx.step(format!("checking the log: {segment}"));
        let before = trip;
        let (walker, search) = walk(log, chain, *segment, before.walker, before.search).await.map_err(|error| {
            if error.kind() == ErrorKind::NotFound { missing(&segment.to_string()).caused_by(error) } else { error }
        })?;
        trip = Trip { walker, search, walked: before.walked + 1 };
        if trip.search.is_over() {
            break;
        }
        trip.refuse_damage(*segment, chain)?;
    }
    let skipped = skipped(chain, &road, details, &trip.search, &wanted)?;
    Ok((finish(log, chain, details, &road, trip, &wanted).await?, skipped))
}

/// Where the last timeline before the moment was left, when nothing of the moment's own time was replayed since.
fn skipped(
    chain: &Chain,
    road: &Road,
    details: &PhysicalDetails,
    search: &observe::Search,
    wanted: &Wanted,
) -> Result<Option<Lsn>> {
    let Wanted::Time(_) = wanted else { return Ok(None) };
    let stop = search.found.map_or(Lsn(u64::MAX), |mark| mark.record.0);
    let mut left = chain.ancestry(road.timeline)?.into_iter().filter_map(|(_, left)| left);
    let since =
        |left: &Lsn| *left > details.start_lsn && *left <= stop && search.last_at.is_none_or(|last| last < *left);
    Ok(left.rfind(since))
}

/// How far a walk came.
#[derive(Debug)]
struct Trip {
    walker: Walker,
    search: observe::Search,
    /// Segments.
    walked: usize,
}

impl Trip {
    fn refuse_damage(&self, segment: WalSegment, chain: &Chain) -> Result<()> {
        let Some(fault) = self.walker.fault() else { return Ok(()) };
        // The record may have begun in the segment before.
        let began = WalSegment::containing(segment.timeline, fault.at, chain.segment_size());
        let message = format!("the segment {segment} of the log is damaged: at {} {}", fault.at, fault.why);
        Err(Error::new(ErrorKind::Damaged, message).with("record in", began).hint(
            "recover to a moment before it (`--to-lsn`, `--to-time`), or from a snapshot that was taken after it",
        ))
    }
}

/// The segments between a base backup and the end of the archive.
#[derive(Debug)]
struct Road {
    timeline: u32,
    /// Those that are read, in order.
    walked: Vec<WalSegment>,
    /// The base backup brings the log up to this segment, of its own timeline.
    brought: WalSegment,
    size: SegmentSize,
}

impl Road {
    fn lay(details: &PhysicalDetails, chain: &Chain, timeline: u32, until: Option<Lsn>) -> Result<Self> {
        let size = chain.segment_size();
        let brought = WalSegment::containing(details.timeline, Lsn(details.stop_lsn.0.saturating_sub(1)), size);
        let end = chain.end(timeline).unwrap_or(details.stop_lsn).max(details.stop_lsn);
        let end = until.map_or(end, |until| end.min(until.max(details.stop_lsn)));
        let needed = chain.needed(details.timeline, details.start_lsn, timeline, end)?;
        // Whatever the base backup brings need not be in the archive; what is there is checked, too, when the rest follows.
        let is_brought = |segment: &WalSegment| segment.timeline == brought.timeline && *segment <= brought;
        let first = needed.iter().rposition(|segment| is_brought(segment) && !chain.has(*segment));
        let walked = needed[first.map_or(0, |last_missing| last_missing + 1)..].to_vec();
        Ok(Self { timeline, walked, brought, size })
    }

    fn begin(&self) -> Lsn {
        self.walked.first().map_or(self.brought.end(self.size), |segment| segment.start(self.size))
    }

    /// Those that the archive must hand to the server for a recovery that needs the log up to `end`.
    fn fetched(&self, end: Lsn) -> Vec<WalSegment> {
        let brought = |segment: &WalSegment| segment.timeline == self.brought.timeline && *segment <= self.brought;
        self.walked.iter().filter(|segment| !brought(segment) && segment.start(self.size) < end).copied().collect()
    }

    /// Whether the archive has it, or, of the last, at least pieces.
    fn is_known(&self, chain: &Chain, segment: WalSegment) -> bool {
        chain.has(segment) || (self.walked.last() == Some(&segment) && chain.pieces_of(segment) > 0)
    }
}

async fn finish(
    log: &SegmentLog,
    chain: &Chain,
    details: &PhysicalDetails,
    road: &Road,
    trip: Trip,
    wanted: &Wanted,
) -> Result<Search> {
    let Trip { walker, search, walked } = trip;
    if search.too_early {
        return Ok(Search::TooEarly);
    }
    let received = match road.walked.last() {
        Some(last) => last_mark(log, chain, *last).await?,
        None => None,
    };
    let way = |mark: Option<Mark>| {
        let (stop, end) = match mark {
            Some(Mark { record: (start, end), replayed: true, .. }) => (Stop::After(start), end),
            Some(Mark { record: (start, end), replayed: false, .. }) => (Stop::Before(start), end),
            None => (Stop::Consistent, details.stop_lsn),
        };
        let time = mark.map_or(search.last_time, |mark| mark.time);
        let reach = match stop {
            Stop::Consistent => details.stop_lsn,
            Stop::After(last) => Lsn(last.0 + 1),
            Stop::Before(first) => first,
        };
        let all_of_them = road.walked[..walked].to_vec();
        let spaces = search.spaces.clone().over(all_of_them, (details.start_lsn, reach));
        Search::Found(Way {
            timeline: road.timeline,
            stop,
            segments: road.fetched(end),
            histories: chain.histories().collect(),
            segment_bytes: road.size.bytes(),
            reached: time.map_or(details.stopped, |time| time.max(details.stopped)),
            received,
            spaces,
        })
    };
    if search.found.is_some() {
        return Ok(way(search.found));
    }
    // The last record of all, unless the base backup needs more of the log than is archived.
    let last = walker.last().filter(|(_, end)| *end >= details.stop_lsn);
    let all = last.map(|record| Mark { record, replayed: true, time: search.last_time });
    let end = last.map_or(details.stop_lsn, |(_, end)| end);
    let time = search.last_time.max(received).max(Some(details.stopped));
    let is_there = match wanted {
        Wanted::Latest => true,
        Wanted::Position(position) => *position <= end,
        Wanted::Time(wanted) => time.is_some_and(|time| *wanted <= time),
        Wanted::Transaction(_) | Wanted::Point(_) => false,
    };
    Ok(if is_there { way(all) } else { Search::NotThere { end, time } })
}

/// The server's identifier, when the archive is that of the same server.
fn same_server(details: &PhysicalDetails, chain: &Chain) -> Result<u64> {
    let mine = &details.system_identifier;
    if let Some(theirs) = chain.system().filter(|system| system != mine) {
        let message =
            format!("the archive has the log of the server {theirs}, and the base backup is of the server {mine}");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint("a server that was set up anew begins a new history: choose a snapshot that was taken since, or none to recover from"));
    }
    let wrong = |_| Error::new(ErrorKind::Damaged, format!("`{}` is no identifier of a server", mine.escape_debug()));
    mine.parse().map_err(wrong)
}

/// The timeline that a recovery from the base backup ends on.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the chosen one does not come from the base backup, or is nowhere; [`ErrorKind::Incomplete`]
/// when a history is missing that would tell.
pub(super) fn timeline(chain: &Chain, details: &PhysicalDetails, branch: Branch) -> Result<u32> {
    if let Branch::Chosen(chosen) = branch {
        return if comes_from(chain, details, chosen)? { Ok(chosen) } else { Err(apart(chain, details, chosen)) };
    }
    for timeline in chain.timelines().into_iter().rev().filter(|timeline| *timeline > details.timeline) {
        if !chain.has_history(timeline) {
            // Whether it comes from here cannot be told: going elsewhere would lose what is on it without a word.
            return Err(missing(&WalFile::History(timeline).to_string()));
        }
        if comes_from(chain, details, timeline)? {
            return Ok(timeline);
        }
    }
    Ok(details.timeline)
}

/// Whether the log of `timeline` goes on from the base backup.
fn comes_from(chain: &Chain, details: &PhysicalDetails, timeline: u32) -> Result<bool> {
    if timeline == details.timeline {
        return Ok(true);
    }
    if !chain.timelines().contains(&timeline) {
        return Ok(false);
    }
    if timeline > details.timeline && !chain.has_history(timeline) {
        return Err(missing(&WalFile::History(timeline).to_string()));
    }
    Ok(chain.needed(details.timeline, details.stop_lsn, timeline, details.stop_lsn).is_ok())
}

/// The error of a chosen timeline that cannot be reached from the base backup.
fn apart(chain: &Chain, details: &PhysicalDetails, chosen: u32) -> Error {
    let there = chain.timelines();
    let message = if there.contains(&chosen) {
        format!(
            "timeline {chosen} does not come from the base backup, which was taken on timeline {} up to {}",
            details.timeline, details.stop_lsn
        )
    } else {
        format!("there is no timeline {chosen} in the archive")
    };
    let told: Vec<String> = there.iter().map(|timeline| told(chain, *timeline)).collect();
    Error::new(ErrorKind::NotFound, message).hint(format!("timelines of the archive: {}", told.join("; ")))
}

/// A timeline for people: its number, and where it comes from.
fn told(chain: &Chain, timeline: u32) -> String {
    let ancestry = chain.ancestry(timeline).unwrap_or_default();
    match ancestry.iter().rev().nth(1) {
        Some((parent, Some(at))) => format!("{timeline} (left {parent} at {at})"),
        _ => timeline.to_string(),
    }
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::Incomplete, format!("the file {name} of the log is missing in the archive")).hint(
        "if the server still has it in pg_wal, archive it with `stackward wal push`; else recover to a moment before it, or \
         from a snapshot that was taken after it",
    )
}
