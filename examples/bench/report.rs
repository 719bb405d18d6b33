//! What is told: Markdown on standard output, and in the document.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::Result;

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// All that was measured.
pub struct Report {
    machine: Vec<String>,
    tables: Vec<Table>,
}

/// Figures of one kind.
pub struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    note: Option<String>,
}

impl Table {
    pub fn new(title: &str, columns: &[&str]) -> Self {
        Self { title: title.to_owned(), columns: columns.iter().map(|&column| column.to_owned()).collect(), rows: Vec::new(), note: None }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// How the figures were taken.
    pub fn note(&mut self, note: String) {
        self.note = Some(note);
    }
}

impl Report {
    pub fn new(seed: u64, quick: bool) -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
            found.map_or("unknown", str::trim).to_owned()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let gib = memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / f64::from(1 << 20);
        let build = if cfg!(debug_assertions) { "debug build: these figures mean nothing" } else { "release build" };
        let mut machine = vec![
            format!("{} cores of {}, {gib:.0} GiB of memory", cores(), field(&read("/proc/cpuinfo"), "model name")),
            format!("load average before: {}", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
            format!("{}, kubemeter {} ({build}), seed {seed}", jiff::Zoned::now().date(), env!("CARGO_PKG_VERSION")),
        ];
        if quick {
            machine.push("`--quick`: sizes too small for figures that mean much".to_owned());
        }
        Self { machine, tables: Vec::new() }
    }

    /// Notes the engine's version.
    pub fn engine(&mut self, version: &str) {
        self.machine.push(format!("ClickHouse {version}, embedded, in a process of its own"));
    }

    /// Notes how long all of it took.
    pub fn took(&mut self, time: Duration) {
        self.machine.push(format!("took {} s", time.as_secs()));
    }

    pub fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for line in &self.machine {
            let _ = writeln!(out, "- {line}");
        }
        for Table { title, columns, rows, note } in &self.tables {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            let _ = write!(out, "\n### {title}\n\n{}", line(columns));
            out.push_str(&line(&vec!["---".to_owned(); columns.len()]));
            rows.iter().for_each(|row| out.push_str(&line(row)));
            if let Some(note) = note {
                let _ = writeln!(out, "\n{note}");
            }
        }
        out
    }

    /// Writes the result into the document.
    pub fn write(&self) -> Result<()> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
        let text = std::fs::read_to_string(&file)?;
        let (Some((before, _)), Some((_, after))) = (text.split_once(BEGIN), text.split_once(END)) else {
            return Err(format!("{} has not the markers {BEGIN} and {END}", file.display()).into());
        };
        Ok(std::fs::write(&file, format!("{before}{BEGIN}\n{}\n{END}{after}", self.markdown()))?)
    }
}

/// Cores that this program may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The time that so many percent of times don't exceed, in seconds.
pub fn percentile(seconds: &[f64], percent: usize) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

pub fn milliseconds(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

pub fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}")
}
