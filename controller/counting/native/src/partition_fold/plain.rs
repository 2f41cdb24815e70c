//! Events that lie plain in their records, as `scan.rs` reads them: with context, time and headers.

use crate::arms::Bucket;
use crate::fold::Evaluation;
use crate::hashing::digest_of;
use crate::record_batches::Parts;
use crate::scan::{self, Named, Problem, Unplain};

/// Furthest that an event's time may be ahead of its record's: `schemas.envelope.MAX_AHEAD_MS`.
const MAX_AHEAD_MS: i64 = 5 * 60 * 1000;

/// Return the event of a record, or why it does not lie plain in it.
#[inline]
pub fn plain_evaluation<'a>(
    parts: &Parts<'a>,
    latest_ms: i64,
) -> Result<Evaluation<'a>, Unplain<'a>> {
    let event = scanned(parts, scan::evaluation)?;
    evaluation_of(parts, event, latest_ms).ok_or(Unplain::Other)
}

/// What a scan finds in a value that holds a whole event. Of any other value it says nothing.
#[inline]
fn scanned<'a, T>(
    parts: &Parts<'a>,
    scan: impl FnOnce(&'a [u8]) -> Result<T, Unplain<'a>>,
) -> Result<T, Unplain<'a>> {
    match (parts.value, parts.is_structured()) {
        (None | Some(b""), Some(true)) => Err(Unplain::Refused(Problem::EMPTY)),
        (Some(value), Some(true)) => scan(value),
        _ => Err(Unplain::Other),
    }
}

#[inline]
fn evaluation_of<'a>(
    parts: &Parts<'a>,
    event: scan::Evaluation<'a>,
    latest_ms: i64,
) -> Option<Evaluation<'a>> {
    let timestamp_ms = parts.place.timestamp;
    let time_ms = event.time_ms.unwrap_or(timestamp_ms);
    let context_id = event.context_id.or_else(|| parts.key.and_then(scan::context_of_key))?;
    let digest = digest_of(context_id.as_bytes());
    is_plausible(time_ms, timestamp_ms, latest_ms).then_some(Evaluation {
        digest,
        flag_key: event.flag_key,
        variant: event.variant,
        time_ms,
    })
}

/// An outcome that lies plain in its record.
pub struct PlainOutcome<'a> {
    pub digest: u64, // of its context
    pub time_ms: i64,
    pub bucket: Option<Bucket>, // of its latency
    pub found: scan::Outcome<'a>,
}

/// Return the event of a record, or why it does not lie plain in it.
#[inline]
pub fn plain_outcome<'a>(
    parts: &Parts<'a>,
    named: &mut Named<'a>,
    latest_ms: i64,
    bucket_of: impl FnOnce(f64) -> Bucket,
) -> Result<PlainOutcome<'a>, Unplain<'a>> {
    let event = scanned(parts, |value| scan::outcome(value, named))?;
    let bucket = event.duration_seconds.map(|seconds| bucket_of(seconds * 1000.0));
    outcome_of(parts, event, bucket, latest_ms).ok_or(Unplain::Other)
}

#[inline]
fn outcome_of<'a>(
    parts: &Parts<'a>,
    found: scan::Outcome<'a>,
    bucket: Option<Bucket>,
    latest_ms: i64,
) -> Option<PlainOutcome<'a>> {
    let timestamp_ms = parts.place.timestamp;
    let time_ms = found.time_ms.unwrap_or(timestamp_ms);
    let context_id = match found.context_id {
        Some(context_id) => context_id,
        None if found.is_known => parts.key.and_then(scan::context_of_key)?,
        None => return None,
    };
    let digest = digest_of(context_id.as_bytes());
    is_plausible(time_ms, timestamp_ms, latest_ms).then_some(PlainOutcome {
        digest,
        time_ms,
        bucket,
        found,
    })
}

#[inline]
fn is_plausible(time_ms: i64, timestamp_ms: i64, latest_ms: i64) -> bool {
    time_ms >= 0
        && (0..=latest_ms).contains(&timestamp_ms)
        && time_ms <= latest_ms
        && time_ms <= timestamp_ms.saturating_add(MAX_AHEAD_MS)
}
