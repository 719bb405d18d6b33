//! What is told: Markdown on standard output; with `--write` kept by part, in the document and as a plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::aim::Aim;
use crate::{Part, Result, plot};

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// All that was measured, by part.
#[derive(Serialize, Deserialize, Default)]
pub struct Report {
    sections: BTreeMap<Part, Section>,
}

/// What one part measured.
#[derive(Serialize, Deserialize, Default)]
pub struct Section {
    machine: String,
    run: String,
    aims: Vec<Aim>,
    tables: Vec<Table>,
}

/// Figures of one kind.
#[derive(Serialize, Deserialize)]
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

impl Section {
    /// Of a run that begins now.
    pub fn new(seed: u64, quick: bool) -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
            found.map_or("unknown", str::trim).to_owned()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let gib = memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / f64::from(1 << 20);
        let build = if cfg!(debug_assertions) { "debug build: these figures mean nothing" } else { "release build" };
        let sizes = if quick { ", `--quick`: sizes too small for figures that mean much" } else { "" };
        let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
        let (date, version) = (jiff::Zoned::now().date(), env!("CARGO_PKG_VERSION"));
        Self {
            machine: format!("{} cores of {}, {gib:.0} GiB of memory", cores(), field(&read("/proc/cpuinfo"), "model name")),
            run: format!("{date}, kubemeter {version} ({build}), seed {seed}{sizes}, load average before: {load}"),
            ..Self::default()
        }
    }

    /// Notes the engine's version.
    pub fn engine(&mut self, version: &str) {
        let _ = write!(self.machine, "; ClickHouse {version}, embedded, in a process of its own");
    }

    /// Notes how long all of it took.
    pub fn took(&mut self, time: Duration) {
        let _ = write!(self.run, ", took {} s", time.as_secs());
    }

    pub fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    pub fn aim(&mut self, aim: Aim) {
        crate::progress(format_args!("{aim}"));
        self.aims.push(aim);
    }
}

impl Report {
    pub fn put(&mut self, part: Part, section: Section) {
        self.sections.insert(part, section);
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let mut machine = "";
        for (part, section) in &self.sections {
            if section.machine != machine {
                machine = &section.machine;
                let _ = writeln!(out, "- {machine}");
            }
            let _ = writeln!(out, "- {}: {}", part.name(), section.run);
        }
        let aims: Vec<&Aim> = self.aims().collect();
        if !aims.is_empty() {
            let mut table = Table::new("Against the aims", &["figure", "ours", "aim", "met"]);
            table.note("![Each figure as a part of its aim](performance.svg)".to_owned());
            aims.iter().for_each(|aim| table.row([aim.figure.clone(), format!("**{}**", aim.ours()), aim.aim(), aim.met().to_owned()]));
            table.write(&mut out);
        }
        self.sections.values().flat_map(|section| &section.tables).for_each(|table| table.write(&mut out));
        out
    }

    fn aims(&self) -> impl Iterator<Item = &Aim> {
        self.sections.values().flat_map(|section| &section.aims)
    }

    /// Takes these parts' results into those of earlier runs, and writes the document and the plot from all of them.
    pub fn write(self) -> Result<()> {
        let kept = docs("performance.json");
        let mut all: Self = if kept.exists() { serde_json::from_str(&std::fs::read_to_string(&kept)?)? } else { Self::default() };
        all.sections.extend(self.sections);
        std::fs::write(&kept, serde_json::to_string_pretty(&all)? + "\n")?;
        std::fs::write(docs("performance.svg"), plot::svg(&all.aims().collect::<Vec<_>>()))?;
        let file = docs("performance.md");
        let text = std::fs::read_to_string(&file)?;
        let (Some((before, _)), Some((_, after))) = (text.split_once(BEGIN), text.split_once(END)) else {
            return Err(format!("{} has not the markers {BEGIN} and {END}", file.display()).into());
        };
        Ok(std::fs::write(&file, format!("{before}{BEGIN}\n{}\n{END}{after}", all.markdown()))?)
    }
}

impl Table {
    fn write(&self, out: &mut String) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let _ = write!(out, "\n### {}\n\n{}", self.title, line(&self.columns));
        out.push_str(&line(&vec!["---".to_owned(); self.columns.len()]));
        self.rows.iter().for_each(|row| out.push_str(&line(row)));
        if let Some(note) = &self.note {
            let _ = writeln!(out, "\n{note}");
        }
    }
}

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file)
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
