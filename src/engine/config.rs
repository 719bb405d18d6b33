//! The engine's server settings: those of a small server beside other programs, not of a machine of its own.

use std::path::Path;

/// How much of the disk stays free, bytes.
const KEPT_FREE: u64 = 256 * 1_024 * 1_024;

/// The configuration file's text.
pub(super) fn xml(folder: &Path) -> String {
    let log = escape(&folder.join("clickhouse.log").display().to_string());
    // The free entries that merges and mutations wait for must fit the small pool (pool × ratio = 8); their defaults are
    // for one of 32, and forced merges of quiet partitions would never start.
    // Statistics of every column, which no query of ours uses, would cost a third of all merges.
    // INSERTs and merges are refused while others leave so little of the disk that one of them might fill it.
    format!(
        "<clickhouse>
  <storage_configuration><disks><default><keep_free_space_bytes>{KEPT_FREE}</keep_free_space_bytes></default></disks></storage_configuration>
  <timezone>UTC</timezone>
  <logger><log>{log}</log><console>0</console><size>10M</size><count>2</count></logger>
  <log-level>error</log-level>
  <send_crash_reports><enabled>false</enabled></send_crash_reports>
  <max_connections>1024</max_connections>
  <max_concurrent_queries>400</max_concurrent_queries>
  <keep_alive_timeout>60</keep_alive_timeout>
  <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
  <mark_cache_size>268435456</mark_cache_size>
  <index_mark_cache_size>67108864</index_mark_cache_size>
  <background_pool_size>4</background_pool_size>
  <background_merges_mutations_concurrency_ratio>2</background_merges_mutations_concurrency_ratio>
  <background_schedule_pool_size>8</background_schedule_pool_size>
  <merge_tree>
    <auto_statistics_types></auto_statistics_types>
    <number_of_free_entries_in_pool_to_lower_max_size_of_merge>2</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
    <number_of_free_entries_in_pool_to_execute_mutation>3</number_of_free_entries_in_pool_to_execute_mutation>
    <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>3</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
  </merge_tree>
</clickhouse>
"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
