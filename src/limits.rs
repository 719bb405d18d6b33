//! Every bound on what comes from outside, in one place, each with its reason.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Longest `id`, `source`, `type` or `subject` of an event, in bytes. They are part of sorting keys; CloudEvents
/// producers stay far below.
pub const ATTRIBUTE_BYTES: usize = 1_024;
/// Largest single event as JSON, in bytes. CloudEvents asks intermediaries to forward at least 64 KiB.
pub const EVENT_BYTES: usize = 256 * 1_024;
/// Most bytes of one event's values, each with its whole path: as many values as there may be under paths as long as a Meter's, and
/// as many bytes of values as an event can have. Without it a long name above many values would be copied for each of them.
pub const DATA_BYTES: usize = EVENT_BYTES + DATA_LEAVES * PATH_BYTES;
/// Most members of an event's `data`, and most extensions, that are kept while it is read: with more, of at least five bytes each, it
/// is larger than [`EVENT_BYTES`] and refused; a body full of them would take eight times its memory.
pub const EVENT_MEMBERS: usize = EVENT_BYTES / 5;
/// Largest request body after decompression, in bytes.
pub const BODY_BYTES: usize = 16 * 1_024 * 1_024;
/// Most events in one request.
pub const BATCH_EVENTS: usize = 10_000;
/// Most bytes of memory that one request's events take once they are read. Paths may make them larger than the body, without a bound of
/// their own many times so; a body of [`BODY_BYTES`] may double.
pub const BATCH_BYTES: usize = 2 * BODY_BYTES;
/// Most scalar values in one event's `data`: each becomes an entry of a ClickHouse map.
pub const DATA_LEAVES: usize = 1_024;
/// Deepest nesting of an event's `data`.
pub const DATA_DEPTH: usize = 32;
/// Longest JSONPath in a Meter, in bytes.
pub const PATH_BYTES: usize = 256;
/// Most group-bys of one Meter.
pub const GROUP_BYS: usize = 16;
/// Most subjects of one Customer.
pub const SUBJECTS: usize = 1_000;
/// Longest `description`, in bytes.
pub const DESCRIPTION_BYTES: usize = 1_024;
/// Longest `unit` or `displayName`, in bytes.
pub const LABEL_BYTES: usize = 128;
/// Longest retention, in days: what five digits say, beyond every event's time.
pub const RETENTION_DAYS: u32 = 99_999;
/// Longest reason of a cancellation, in bytes.
pub const REASON_BYTES: usize = 1_024;
/// Longest name of a caller that a record keeps, in bytes; a service account's has at most 338.
pub const CALLER_BYTES: usize = 512;
/// Most events named by one cancellation.
pub const CANCEL_EVENTS: usize = 10_000;
/// Most values of one filter, and of `customer=` or `subject=`.
pub const FILTER_VALUES: usize = 1_000;
/// Longest filter value in a query, in bytes.
pub const FILTER_BYTES: usize = 16 * 1_024;
/// Most rows in one usage answer; more is refused with advice to narrow the question.
pub const USAGE_ROWS: u64 = 250_000;
/// Default and greatest page of a listing.
pub const PAGE_DEFAULT: u32 = 100;
/// See [`PAGE_DEFAULT`].
pub const PAGE_MAX: u32 = 1_000;
/// A page of events or of rejects that takes so many bytes of memory ends: a thousand of them may be 256 MiB.
pub const PAGE_BYTES: usize = 4 * 1_024 * 1_024;
/// Largest manifest file in `dev`, in bytes. A Customer with all its subjects at their longest has 1 MiB.
pub const MANIFEST_BYTES: u64 = 8 * 1_024 * 1_024;
/// Most manifest files in `dev`: the folder is read as a whole on each change.
pub const MANIFEST_FILES: usize = 10_000;
/// Longest continue token that is taken back, in bytes.
pub const CONTINUE_BYTES: usize = 4 * 1_024;
/// Most bytes of request bodies in memory at a time, after decompression; more is answered 429. They are held until their
/// request is answered, and with what is made of them (items, rows, their INSERT) measured six times as much: with
/// 32 MiB of them a gateway had 260 MiB at full load with ClickHouse standing still, and is to have 256. A decompressor's window can hold as much once more.
pub const BODIES_BYTES: usize = 24 * 1_024 * 1_024;
/// How many times a body's bytes its events may take of memory; what takes more counts as a larger body among [`BODIES_BYTES`].
/// Small events of few values take three times theirs.
pub const BODY_GROWS: usize = 4;
const _: () = assert!(BATCH_BYTES / BODY_GROWS < BODIES_BYTES, "every request that is within the bounds has room");
/// Longest bearer token, in bytes: Kubernetes' own are about 1 KiB.
pub const TOKEN_BYTES: usize = 16 * 1_024;
/// Longest `x-request-id` that is taken over, in bytes.
pub const REQUEST_ID_BYTES: usize = 128;
/// Most connections that are served at a time; more wait to be accepted. Few in unit tests, where each is two open files.
pub const CONNECTIONS: usize = if cfg!(test) { 64 } else { 4_096 };
/// Largest file of certificates or of a key, in bytes: what a Secret holds at most.
pub const TLS_FILE_BYTES: u64 = 1_024 * 1_024;
/// Most bytes of a request's line and headers; two tokens at their longest fit.
pub const HEAD_BYTES: usize = 64 * 1_024;
/// Most bytes that a connection reads ahead; a head must fit. Left to grow it would be 400 KiB for each of those that send
/// large batches.
pub const READ_BYTES: usize = HEAD_BYTES + 16 * 1_024;
/// How long the API server's yes about a caller is believed: a right that was taken away ends within this.
pub const REVIEW_YES: Duration = Duration::from_secs(60);
/// How long its last yes is believed while it can't be reached: longer than an upgrade of a control plane takes. The
/// default of `--auth-stale-seconds`.
pub const REVIEW_STALE: Duration = Duration::from_secs(15 * 60);
/// How long its no is believed: short, so that a right that was just given works soon, but a stranger who asks all the
/// time asks the API server only so often.
pub const REVIEW_NO: Duration = Duration::from_secs(5);
/// Most tokens that are known at a time, some 0.7 KB each; the least used are asked for again.
pub const KNOWN_TOKENS: u64 = 10_000;
/// Most rights that are known at a time, some 0.6 KB each: a few for each token.
pub const KNOWN_RIGHTS: u64 = 50_000;
/// Most reviews that the API server is asked for at a time; more wait.
pub const REVIEWS: usize = 32;
/// Length of an API key, in bytes: 32 hex digits have 128 bits, which nobody guesses.
pub const API_KEY_BYTES: RangeInclusive<usize> = 32..=512;
/// Largest file of API keys, in bytes: what a Secret holds at most.
pub const API_KEYS_BYTES: u64 = 1_024 * 1_024;
/// Longest name of a ClickHouse cluster, in bytes: what a file name holds.
pub const CLUSTER_NAME_BYTES: usize = 255;
/// Most shards of a ClickHouse cluster: every question asks each of them.
pub const SHARDS: usize = 64;
/// Most replicas of a shard: an INSERT waits for all of them.
pub const REPLICAS: usize = 8;
