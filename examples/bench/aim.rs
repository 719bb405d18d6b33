//! What a figure should reach.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A figure beside its aim.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Aim {
    /// What was measured.
    pub figure: String,
    measured: f64,
    aim: f64,
    /// Follows the number.
    unit: String,
    /// Whether the aim is the least that should be, not the most.
    at_least: bool,
    /// What the same engine does without Kubemeter, where that was measured.
    limit: Option<f64>,
}

impl Aim {
    /// At most so much.
    pub fn at_most(figure: &str, measured: f64, aim: f64, unit: &str) -> Self {
        Self { figure: figure.to_owned(), measured, aim, unit: unit.to_owned(), at_least: false, limit: None }
    }

    /// At least so much.
    pub fn at_least(figure: &str, measured: f64, aim: f64, unit: &str) -> Self {
        Self { at_least: true, ..Self::at_most(figure, measured, aim, unit) }
    }

    /// With what the same engine does without Kubemeter.
    pub fn limit(self, limit: f64) -> Self {
        Self { limit: Some(limit), ..self }
    }

    pub fn ours(&self) -> String {
        self.show(self.measured)
    }

    pub fn aim(&self) -> String {
        format!("{} {}", if self.at_least { "≥" } else { "≤" }, self.show(self.aim))
    }

    pub const fn met(&self) -> &'static str {
        if self.score(self.measured) <= 1.0 { "yes" } else { "no" }
    }

    /// Ours as a part of the aim: 1 is the aim itself, and less is better.
    pub const fn ours_to_aim(&self) -> f64 {
        self.score(self.measured)
    }

    /// The same of the limit.
    pub fn limit_to_aim(&self) -> Option<f64> {
        self.limit.map(|limit| self.score(limit))
    }

    const fn score(&self, value: f64) -> f64 {
        if self.at_least { self.aim / value } else { value / self.aim }
    }

    fn show(&self, value: f64) -> String {
        let decimals = if value >= 100.0 || value.fract() == 0.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        format!("{value:.decimals$} {}", self.unit).trim_end().to_owned()
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, aim {}: {}", self.figure, self.ours(), self.aim(), if self.met() == "yes" { "met" } else { "not met" })
    }
}
