//! The aims as a picture: a bar a figure, the aim a line, the limit of the same engine a mark.

use std::fmt::Write as _;

use crate::aim::Aim;

const LEFT: f64 = 400.0;
const WIDTH: f64 = 330.0;
const TOP: f64 = 64.0;
const ROW: f64 = 30.0;
/// What the axis shows, as parts of the aim; what lies beyond is drawn at its end.
const AXIS: [f64; 5] = [0.1, 0.3, 1.0, 3.0, 10.0];

/// Draws the figures. On a card of its own, so that it reads on light and on dark pages.
pub fn svg(aims: &[&Aim]) -> String {
    let height = TOP + ROW * aims.len() as f64 + 44.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 {height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" role=\"img\" \
         aria-label=\"Each figure as a part of its aim\">\n\
         <rect width=\"960\" height=\"{height}\" rx=\"10\" fill=\"#fbfbfd\" stroke=\"#d8dae5\"/>\n\
         <style>.t{{fill:#1f2937}}.s{{fill:#5b6475;font-size:12px}}.y{{fill:#3b8f5a}}.n{{fill:#c98a1b}}.g{{stroke:#e3e5ee}}.a{{stroke:#4a5568;stroke-width:1.6}}.m{{fill:none;stroke:#3b6fd4;stroke-width:2}}</style>\n\
         <text class=\"t\" x=\"20\" y=\"28\" font-weight=\"600\">Each figure as a part of its aim: up to the line is reached, shorter is better</text>\n\
         <text class=\"s\" x=\"20\" y=\"47\">green: reached, amber: not; blue ring: the same ClickHouse without Kubemeter; the scale is logarithmic</text>\n"
    );
    let bottom = TOP + ROW * aims.len() as f64;
    for value in AXIS {
        let (x, class) = (at(value), if value == 1.0 { "a" } else { "g" });
        let _ = writeln!(out, "<path class=\"{class}\" d=\"M{x:.1} {TOP}V{bottom}\"/>");
        let name = if value == 1.0 { "the aim".to_owned() } else { format!("{value} ×") };
        let _ = writeln!(out, "<text class=\"s\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", bottom + 20.0);
    }
    for (row, aim) in aims.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let (end, class) = (at(aim.ours_to_aim()), if aim.met() == "yes" { "y" } else { "n" });
        let _ =
            writeln!(out, "<text class=\"t\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 12.0, y + 19.0, escaped(&aim.figure));
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"14\" rx=\"2\"/>",
            y + 8.0,
            (end - LEFT).max(2.0)
        );
        if let Some(limit) = aim.limit_to_aim() {
            let _ = writeln!(out, "<circle class=\"m\" cx=\"{:.1}\" cy=\"{}\" r=\"5\"/>", at(limit), y + 15.0);
        }
        let text = escaped(&format!("{} ({})", aim.ours(), aim.aim()));
        let _ = writeln!(out, "<text class=\"s\" x=\"{}\" y=\"{}\">{text}</text>", LEFT + WIDTH + 12.0, y + 19.0);
    }
    out + "</svg>\n"
}

fn at(part_of_aim: f64) -> f64 {
    let (first, last) = (AXIS[0], AXIS[AXIS.len() - 1]);
    LEFT + WIDTH * (part_of_aim.clamp(first, last) / first).log10() / (last / first).log10()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
