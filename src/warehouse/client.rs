//! Calls to ClickHouse, each with a deadline and an error that says whether trying again can help.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clickhouse::insert_formatted::InsertFormatted;
use clickhouse::{Client, Compression, RowOwned, RowRead};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;

use super::begun::Begun;
use super::customers::{Guesses, guesses};
use super::fence::Fence;
use super::schema::Landings;
use super::sql;
use super::topology::Topology;
use crate::event::{put_bytes, put_varint};
use crate::limits;

/// Deadline of statements that answer at once: DDL, look-ups, listings.
const SHORT: Duration = Duration::from_secs(30);

/// How often an idle connection is looked after.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// How long an idle connection is kept: ClickHouse closes its own after 3 s or more, by its version and configuration.
const POOL_IDLE: Duration = Duration::from_secs(2);

/// Longest bound value that ClickHouse takes (`http_max_field_value_size`), in bytes, escapes included. A set that may be
/// longer is bound in parts.
pub(super) const PARAM_BYTES: usize = 128 * 1_024;

/// Whether these are few enough for one parameter: with quotes, and an escape for each byte.
pub(super) fn fit_param(texts: &[String]) -> bool {
    texts.iter().map(|text| 2 * (text.len() + 2)).sum::<usize>() <= PARAM_BYTES
}

/// How to reach ClickHouse.
#[derive(Clone, Debug)]
pub struct WarehouseOptions {
    /// Its HTTP interface.
    pub url: String,
    /// Database of all tables.
    pub database: String,
    /// User.
    pub user: String,
    /// Password; empty: none.
    pub password: String,
    /// Where the tables are.
    pub topology: Topology,
}

/// One ClickHouse and one database in it. Cheap to clone.
#[derive(Clone)]
pub struct Warehouse {
    client: Client,
    /// The servers that DDL and deletions are sent to.
    nodes: Vec<Client>,
    topology: Arc<Topology>,
    database: String,
    made: Arc<Mutex<Made>>,
    /// See [`Warehouse::learn_to_begin`].
    pub(super) unended: Arc<Mutex<Option<Vec<String>>>>,
    /// Held by the one purge that runs.
    pub(super) purging: Arc<tokio::sync::Mutex<()>>,
    pub(super) guesses: Guesses,
}

/// What was made, or found, in this process's life.
#[derive(Default)]
pub(super) struct Made {
    /// The standing tables, and so how many landing tables there can be.
    pub(super) landings: Option<Landings>,
    /// Landing tables.
    pub(super) tables: HashSet<String>,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No answer, or one that says "not now". Trying again can help.
    #[error("ClickHouse does not answer: {0}")]
    Unavailable(String),
    /// A table is missing that is made on demand, or was dropped a moment ago.
    #[error("ClickHouse has no such table: {0}")]
    UnknownTable(String),
    /// A Meter's table has not all that is stored: what was read of it may be too little.
    #[error("{0}")]
    NotWhole(String),
    /// A purge has begun since it was decided what to write: nothing was written. It has to be decided anew.
    #[error("a purge of subjects has begun since these events came, so ClickHouse refused them: send them again ({0})")]
    Fenced(String),
    /// ClickHouse refused the statement.
    #[error("ClickHouse refused a statement: {0}")]
    Refused(String),
}

/// ClickHouse error codes by which it says "not now": timeouts, memory, parts, read-only tables, disk, a shard that
/// is away or just went, Keeper.
const PASSING_CODES: &[u32] = &[32, 159, 164, 202, 209, 210, 236, 241, 242, 243, 252, 279, 285, 286, 319, 394, 425, 439, 999];
/// `UNKNOWN_TABLE`, `UNKNOWN_DATABASE`, and what `SHOW CREATE` says of these: `CANNOT_GET_CREATE_TABLE_QUERY`.
const UNKNOWN_TABLE_CODES: &[u32] = &[60, 81, 390];
/// `NOT_FOUND_COLUMN_IN_BLOCK`, `NO_SUCH_COLUMN_IN_TABLE`, `UNKNOWN_IDENTIFIER`.
const UNKNOWN_COLUMN_CODES: &[u32] = &[10, 16, 47];

impl From<clickhouse::error::Error> for Error {
    fn from(error: clickhouse::error::Error) -> Self {
        use clickhouse::error::Error as E;
        match error {
            E::BadResponse(text) => {
                let code =
                    text.split("Code: ").nth(1).and_then(|rest| rest.split('.').next()).and_then(|digits| digits.trim().parse().ok());
                match code {
                    Some(code) if UNKNOWN_TABLE_CODES.contains(&code) => Self::UnknownTable(text),
                    Some(code) if PASSING_CODES.contains(&code) => Self::Unavailable(text),
                    Some(code) if UNKNOWN_COLUMN_CODES.contains(&code) && Fence::is_refused(&text) => Self::Fenced(text),
                    Some(_) => Self::Refused(text),
                    // Not ClickHouse's words: a proxy between, or a server that is going down.
                    None => Self::Unavailable(text),
                }
            }
            E::TimedOut => Self::Unavailable("no answer within the deadline".to_owned()),
            E::Network(why) => Self::Unavailable(innermost(why.as_ref())),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// The cause behind "client error (Connect)" and its like.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Rows of a page.
#[derive(Debug)]
pub struct Rows<T> {
    /// In order.
    pub rows: Vec<T>,
    /// Whether there are more after them.
    pub more: bool,
}

/// What is said of an INSERT besides its rows.
#[derive(Clone, Copy, Debug)]
pub struct Insert<'a> {
    /// Where they go.
    pub table: &'a str,
    /// Their columns, in order.
    pub columns: &'a str,
    /// How many bytes they are, about.
    pub bytes: usize,
    /// By which name `system.processes` shows it, made unique.
    pub name: &'a str,
    /// How long it may take.
    pub deadline: Duration,
    /// Whether nobody else waits: it goes through its views at the same time.
    pub is_alone: bool,
    /// What rows for a landing table were decided under. ClickHouse refuses them when a purge has begun since.
    pub fence: Option<Fence>,
}

impl Insert<'_> {
    /// The statement, and what goes before its rows: the names of the columns that they have.
    pub(super) fn head(&self, warehouse: &Warehouse) -> (String, Bytes) {
        // The fence's column is named and not sent: that it is there is all.
        let fence = self.fence.map(|fence| format!(", {}", sql::identifier(&fence.column()))).unwrap_or_default();
        let sql = format!("INSERT INTO {} ({}{fence}) FORMAT RowBinaryWithNames", warehouse.table(self.table), self.columns);
        let names: Vec<&str> = self.columns.split(", ").collect();
        let mut header = Vec::with_capacity(1 + self.columns.len());
        put_varint(&mut header, names.len());
        names.iter().for_each(|name| put_bytes(&mut header, name.as_bytes()));
        (sql, header.into())
    }
}

/// Bytes of rows below which an INSERT goes through its views in one thread, one after the other: sharing such a few rows out costs
/// an eighth of its CPU. Where there is nothing else to do it takes a quarter less time.
pub(super) const SMALL_INSERT: usize = 64 * 1_024;

/// Linux's nice value of statements in the background: the highest. They get what others leave, and a hundredth at least.
const NICE: &str = "19";

/// A statement with its bound values, deadline and name.
pub struct Query<'a> {
    warehouse: &'a Warehouse,
    inner: clickhouse::query::Query,
    deadline: Duration,
}

impl Query<'_> {
    /// Binds `{name:Type}`.
    #[must_use]
    pub fn bind(mut self, name: &str, value: impl Serialize) -> Self {
        self.inner = self.inner.param(name, value);
        self
    }

    /// Binds several.
    #[must_use]
    pub fn bind_all(self, values: Vec<super::select::Param>) -> Self {
        values.into_iter().fold(self, |query, param| query.bind(&param.name, param.value))
    }

    /// Another deadline than that of short statements.
    #[must_use]
    pub const fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// A name by which `system.processes` shows the statement, made unique.
    #[must_use]
    pub fn named(mut self, prefix: &str) -> Self {
        self.inner = self.inner.with_setting("query_id", format!("{prefix}-{}", uuid::Uuid::new_v4()));
        self
    }

    /// Drops what there is, however large: ClickHouse refuses over 50 GB, for people who err.
    #[must_use]
    pub fn of_any_size(mut self) -> Self {
        self.inner = self.inner.with_setting("max_table_size_to_drop", "0").with_setting("max_partition_size_to_drop", "0");
        self
    }

    /// What a deletion asks of other tables is asked when it comes, once.
    #[must_use]
    pub fn asking_first(mut self) -> Self {
        self.inner = self.inner.with_setting("mutations_execute_subqueries_on_initiator", "1");
        self
    }

    /// Ends what is read when the connection does: a table that is read can't be dropped.
    #[must_use]
    pub fn while_waited_for(mut self) -> Self {
        self.inner = self.inner.with_setting("cancel_http_readonly_queries_on_client_close", "1");
        self
    }

    /// Leaves the processors to others that want them. A ClickHouse without the right to set priorities (`CAP_SYS_NICE`) does
    /// as if nothing had been said.
    #[must_use]
    pub fn in_background(mut self) -> Self {
        self.inner = self.inner.with_setting("os_thread_priority", NICE);
        self
    }

    /// Writes in two threads where there is much to write, two blocks and more: one sorts and compresses less than two can read.
    #[must_use]
    pub fn written_in_two_threads(mut self) -> Self {
        self.inner = self.inner.with_setting("max_insert_threads", "2");
        self
    }

    /// Runs a statement without a result.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(self) -> Result<(), Error> {
        self.warehouse.timed(self.deadline, bounded(self.inner, self.deadline).execute()).await
    }

    /// Reads all rows.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rows<T: RowOwned + RowRead>(self) -> Result<Vec<T>, Error> {
        self.warehouse.timed(self.deadline, bounded(self.inner, self.deadline).fetch_all()).await
    }

    /// Reads a page: at most `most` rows of a statement that gives one more where there are more, and of fewer bytes than
    /// [`limits::PAGE_BYTES`] but for the last row.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn page<T: RowOwned + RowRead>(self, most: usize, bytes: impl Fn(&T) -> usize) -> Result<Rows<T>, Error> {
        self.warehouse
            .timed(self.deadline, async {
                let mut found = bounded(self.inner, self.deadline).fetch::<T>()?;
                let (mut rows, mut weight) = (Vec::new(), 0);
                while let Some(row) = found.next().await? {
                    if rows.len() == most || weight >= limits::PAGE_BYTES {
                        return Ok(Rows { rows, more: true });
                    }
                    weight += size_of::<T>() + bytes(&row);
                    rows.push(row);
                }
                Ok(Rows { rows, more: false })
            })
            .await
    }

    /// Reads rows one by one, however many.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn each<T: RowOwned + RowRead>(self, mut each: impl FnMut(T)) -> Result<(), Error> {
        self.warehouse
            .timed(self.deadline, async {
                let mut rows = bounded(self.inner, self.deadline).fetch::<T>()?;
                while let Some(row) = rows.next().await? {
                    each(row);
                }
                Ok(())
            })
            .await
    }

    /// Reads the one row of a query that always has one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn one<T: RowOwned + RowRead>(self) -> Result<T, Error> {
        self.warehouse.timed(self.deadline, bounded(self.inner, self.deadline).fetch_one()).await
    }
}

/// Lets ClickHouse end a statement that nobody waits for any more.
fn bounded(query: clickhouse::query::Query, deadline: Duration) -> clickhouse::query::Query {
    query.with_setting("max_execution_time", deadline.as_secs().to_string())
}

/// What makes several servers answer as one does.
fn on_shards(client: Client) -> Client {
    client
        // Confirmed is an INSERT when every shard has confirmed its rows.
        .with_setting("distributed_foreground_insert", "1")
        // What stands after IN and JOIN is of all shards, too, and read once.
        .with_setting("distributed_product_mode", "global")
        .with_setting("parallel_distributed_insert_select", "0")
        // A shard that is away is an error, not a smaller number.
        .with_setting("skip_unavailable_shards", "0")
}

/// A client whose connections send what they have at once. The crate's own let the system gather small packets: the rows of an INSERT
/// that was begun would wait until ClickHouse's system has acknowledged the statement, which it puts off for 40 ms.
fn without_delay() -> Client {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    match HttpsConnectorBuilder::new().with_provider_and_webpki_roots(rustls::crypto::ring::default_provider()) {
        Ok(builder) => {
            let connector = builder.https_or_http().enable_http1().wrap_connector(connector);
            Client::with_http_client(HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).build(connector))
        }
        // Never so: it lacks no version of TLS.
        Err(_) => Client::default(),
    }
}

impl Warehouse {
    /// Sets up a client; nothing is sent yet.
    pub fn new(options: &WarehouseOptions) -> Self {
        let mut client = without_delay()
            .with_url(&options.url)
            .with_user(&options.user)
            .with_compression(Compression::None)
            .with_product_info("kubemeter", env!("CARGO_PKG_VERSION"))
            // Late events may touch more months than the default bound of 100.
            .with_setting("max_partitions_per_insert_block", "0")
            // Rows of one key of a Meter's table may be in partitions of several kinds (`counted`).
            .with_setting("do_not_merge_across_partitions_select_final", "0")
            // A question that reads a table several times sees it at one moment (`counted`).
            .with_setting("enable_shared_storage_snapshot_in_query", "1")
            // `value` in a condition is the column, whatever the result calls `value`.
            .with_setting("prefer_column_name_to_alias", "1")
            .with_setting("async_insert", "0")
            .with_setting("parallel_view_processing", "1")
            .with_setting("materialized_views_ignore_errors", "0")
            // A statement that takes too long is an error, not a part of itself that is told as done.
            .with_setting("timeout_overflow_mode", "throw")
            .with_setting("mutations_sync", "2");
        if !options.password.is_empty() {
            client = client.with_password(&options.password);
        }
        let mut nodes = vec![client.clone()];
        if let Topology::Cluster(cluster) = &options.topology {
            client = super::replicas::on_replicas(on_shards(client), cluster);
            nodes = match cluster.nodes() {
                [] => vec![client.clone()],
                nodes => nodes.iter().map(|url| client.clone().with_url(url)).collect(),
            };
        }
        let topology = Arc::new(options.topology.clone());
        Self {
            client,
            nodes,
            topology,
            database: options.database.clone(),
            made: Arc::default(),
            unended: Arc::default(),
            purging: Arc::default(),
            guesses: guesses(),
        }
    }

    /// A statement; `sql` has `{name:Type}` where values go.
    pub fn query(&self, sql: &str) -> Query<'_> {
        self.query_of(&self.client, sql)
    }

    /// The same statement for each server that DDL is sent to.
    pub(super) fn query_each(&self, sql: &str) -> impl Iterator<Item = Query<'_>> {
        self.nodes.iter().map(move |node| self.query_of(node, sql))
    }

    fn query_of(&self, node: &Client, sql: &str) -> Query<'_> {
        Query { warehouse: self, inner: node.query_raw(sql), deadline: SHORT }
    }

    /// Where the tables are.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A table's full name, quoted.
    pub fn table(&self, name: &str) -> String {
        format!("{}.{}", sql::identifier(&self.database), sql::identifier(name))
    }

    /// Name of the database, unquoted.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Inserts RowBinary, in pieces that are made when they are sent. Ok means that ClickHouse has written every row, through every
    /// view.
    ///
    /// # Errors
    /// See [`Error`]; after any of them the rows may or may not be there.
    pub async fn insert(&self, insert: Insert<'_>, pieces: impl Iterator<Item = Bytes>) -> Result<(), Error> {
        let (sql, header) = insert.head(self);
        let mut prepared = self.prepared(&insert, &sql);
        if insert.bytes < SMALL_INSERT && !insert.is_alone {
            prepared = prepared.with_setting("max_threads", "1").with_setting("parallel_view_processing", "0");
        }
        let insert = Begun { insert: prepared, deadline: insert.deadline };
        self.finish(insert, std::iter::once(header).chain(pieces)).await
    }

    pub(super) fn prepared(&self, insert: &Insert<'_>, sql: &str) -> InsertFormatted {
        self.client
            .insert_formatted_with(sql)
            .with_setting("query_id", format!("{}-{}", insert.name, uuid::Uuid::new_v4()))
            .with_setting("max_execution_time", insert.deadline.as_secs().to_string())
            // No key comes twice in a round: collapsing a block before it is written would cost an eighth of the INSERT for nothing.
            .with_setting("optimize_on_insert", "0")
    }

    /// Whether ClickHouse answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ping(&self) -> Result<(), Error> {
        self.query("SELECT 1").within(Duration::from_secs(3)).one::<u8>().await.map(drop)
    }

    /// What was made, or found, in this process's life.
    pub(super) fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure of all tables again when they are next needed: these may be others.
    pub fn forget_made(&self) {
        *self.made() = Made::default();
    }

    pub(super) async fn timed<T>(&self, deadline: Duration, call: impl Future<Output = clickhouse::error::Result<T>>) -> Result<T, Error> {
        match tokio::time::timeout(deadline, call).await {
            Ok(result) => result.map_err(Error::from).inspect_err(|error| {
                // ClickHouse lost its tables (restored, or another one), or they may be others: make them again when next needed.
                if matches!(error, Error::UnknownTable(_) | Error::Fenced(_)) {
                    self.forget_made();
                }
            }),
            Err(_) => Err(Error::Unavailable(format!("no answer within {} s", deadline.as_secs()))),
        }
    }
}
