//! The figures as a bar chart: an SVG file, a group of bars for each operation, on a logarithmic scale.

use std::path::Path;

use anyhow::{Result, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Figure, value};

/// Pixels.
const WIDTH: u32 = 960;
const LABELS: u32 = 150;
const BAR: u32 = 12;
const GAP: u32 = 8;

/// A colour for each series, told apart in grey too.
const COLOURS: [RGBColor; 3] = [RGBColor(0x1b, 0x6c, 0xa8), RGBColor(0xe0, 0x8e, 0x2b), RGBColor(0xb8, 0xb8, 0xb8)];

/// Draws the instructions of each series, the first of which says which operations there are.
///
/// # Errors
///
/// There is nothing to draw, or the file cannot be written.
pub(super) fn draw(path: &Path, series: &[(&str, Vec<Figure>)]) -> Result<()> {
    let Some((_, first)) = series.first() else { bail!("no series") };
    let rows: Vec<_> = first.iter().filter(|figure| figure.unit == "insn").collect();
    let values = || series.iter().flat_map(|(_, figures)| figures).filter(|figure| figure.unit == "insn");
    let Some(most) = values().map(|figure| figure.value).max() else { bail!("no figures") };
    if series.len() > COLOURS.len() {
        bail!("at most {} series can be told apart", COLOURS.len());
    }
    let group = BAR * series.len() as u32 + GAP;
    let height = group * rows.len() as u32 + 90;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Instructions for one operation", ("sans-serif", 18))
        .margin(10)
        .margin_right(70)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, 30)
        // The first row is at the top.
        .build_cartesian_2d((1.0..most as f64 * 1.5).log_scale(), rows.len() as f64..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .max_light_lines(0)
        .x_label_formatter(&|x| format!("{x}"))
        .draw()?;
    let place = |x: f64, y: f64| chart.plotting_area().map_coordinate(&(x, y));
    let right = Pos::new(HPos::Right, VPos::Center);
    let left = Pos::new(HPos::Left, VPos::Center);
    let share = |pixels: u32| f64::from(pixels) / f64::from(group);
    for (row, figure) in rows.iter().enumerate() {
        let (x, y) = place(1.0, row as f64 + 0.5);
        let style = ("sans-serif", 15).into_font().color(&BLACK).pos(right);
        root.draw(&Text::new(figure.name.clone(), (x - 6, y), style))?;
        for (index, ((_, figures), colour)) in series.iter().zip(COLOURS).enumerate() {
            let top = row as f64 + share(GAP / 2 + BAR * index as u32);
            let middle = top + share(BAR) / 2.0;
            let text = match value(figures, &figure.name) {
                Some(value) => {
                    // A bar on a logarithmic scale starts at 1.
                    let (from, to) = (place(1.0, top), place(value.max(1) as f64, top + share(BAR)));
                    root.draw(&Rectangle::new([from, to], colour.filled()))?;
                    value.to_string()
                }
                None => "–".into(),
            };
            let (x, y) = place(value(figures, &figure.name).unwrap_or(1).max(1) as f64, middle);
            root.draw(&Text::new(text, (x + 4, y), ("sans-serif", 12).into_font().color(&BLACK).pos(left)))?;
        }
    }
    for (index, ((title, _), colour)) in series.iter().zip(COLOURS).enumerate() {
        let (x, y) = (LABELS as i32 + 20 + 140 * index as i32, height as i32 - 14);
        root.draw(&Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()))?;
        root.draw(&Text::new(*title, (x + 16, y), ("sans-serif", 15).into_font().color(&BLACK).pos(left)))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: u64, unit: &str) -> Figure {
        Figure { name: name.into(), value, unit: unit.into() }
    }

    #[test]
    fn every_figure_and_every_gap_is_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        let keel = vec![figure("call", 22, "insn"), figure("nothing", 0, "insn"), figure("image", 9, "bytes")];
        let peer = vec![figure("call", 1773, "insn")];
        draw(&path, &[("keel", keel.clone()), ("KVM", peer.clone())]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for label in ["call", "nothing", "22", "1773", "–", "keel", "KVM"] {
            assert!(text.lines().any(|line| line.trim() == label), "{label} in {text}");
        }
        assert!(!text.contains("image"), "bytes are no instructions");
        // Two bars of `call`, one of `nothing`, and the legend's two.
        let bars = COLOURS.iter().map(|c| text.matches(&format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2)).count());
        assert_eq!(bars.collect::<Vec<_>>(), [3, 2, 0]);
        assert!(draw(&path, &[("keel", vec![figure("image", 9, "bytes")])]).is_err());
    }

    #[test]
    fn a_longer_bar_is_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        draw(&path, &[("keel", vec![figure("a", 10, "insn"), figure("b", 1000, "insn")])]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let widths: Vec<u32> = text
            .lines()
            .filter(|line| line.contains("<rect") && line.contains("#1B6CA8"))
            .filter_map(|line| line.split_once(" width=\"")?.1.split('"').next()?.parse().ok())
            .collect();
        assert!(widths[0] < widths[1], "{widths:?}");
        // The scale is logarithmic: three decades are three times one.
        assert!((widths[1] as i64 - 3 * widths[0] as i64).abs() <= 6, "{widths:?}");
    }
}
