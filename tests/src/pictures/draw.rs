//! Lines over time as an SVG picture, as Grafana would show the panel.
//!
//! Must never know where the numbers come from.

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SIZE: (u32, u32) = (860, 380);
/// Room for the names of what happened, the title, and the legend.
const TITLE: u32 = 34;
const LEGEND_LINE: u32 = 22;
/// Colours that people who see few of them can tell apart (Okabe and Ito's), the darker ones first.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(196, 182, 0),
];
/// The axis of time counts in minutes, so that it is divided by whole ones.
const MINUTE: f64 = 60.0;
const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(228, 228, 228);
const MARK: RGBColor = RGBColor(110, 110, 110);

/// What an axis counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Time; shown in milliseconds where that is more readable.
    Seconds,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// Seconds since the left end, and the value; none where there was none. All series of a picture have the same times.
    pub points: Vec<(f64, Option<f64>)>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Seconds since the left end.
    pub at: f64,
    /// What.
    pub text: String,
}

/// A picture to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Above it.
    pub title: &'a str,
    /// Of the upright axis.
    pub unit: Unit,
    /// Whether the series lie on one another.
    pub stacked: bool,
    /// What is shown.
    pub series: &'a [Series],
    /// What happened meanwhile.
    pub marks: &'a [Mark],
}

type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Picture<'_> {
    /// The picture.
    ///
    /// # Errors
    /// When there is nothing to draw.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            self.draw(&area)?;
            area.present().map_err(|error| anyhow!("{error}"))?;
        }
        Ok(text)
    }

    fn draw(&self, area: &Area<'_>) -> anyhow::Result<()> {
        let end = self.series.iter().filter_map(|series| series.points.last()).map(|(at, _)| *at).fold(0.0, f64::max);
        anyhow::ensure!(end > 0.0, "there is nothing to draw");
        area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        let title = ("sans-serif", 19).into_font().style(FontStyle::Bold).color(&TEXT);
        area.draw(&Text::new(self.title.to_owned(), (14, 10), title)).map_err(|error| anyhow!("{error}"))?;
        let (_, below) = area.split_vertically(TITLE);
        let rows = self.legend_rows();
        let lines = u32::try_from(rows.len())?;
        let (plot, legend) = below.split_vertically(SIZE.1 - TITLE - 12 - LEGEND_LINE * lines);

        let bands = self.bands();
        let top = bands.iter().flatten().map(|(_, _, high)| *high).fold(0.0, f64::max) * 1.08;
        let top = if top > 0.0 { top } else { 1.0 };
        let mut chart = ChartBuilder::on(&plot)
            .margin_right(22)
            .margin_top(24)
            .x_label_area_size(42)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..end / MINUTE, 0.0..top)
            .map_err(|error| anyhow!("{error}"))?;
        self.axes(&mut chart, top)?;
        // Beside the topmost number rather than on its side: it can be read.
        let unit = ("sans-serif", 13).into_font().color(&TEXT).pos(Pos::new(HPos::Left, VPos::Bottom));
        plot.draw(&Text::new(self.unit.name(top), (14, 20), unit)).map_err(|error| anyhow!("{error}"))?;
        for (number, band) in bands.iter().enumerate() {
            self.band(&mut chart, COLOURS[number % COLOURS.len()], band)?;
        }
        self.marks(&mut chart, &plot, top)?;
        self.legend(&legend, &rows)
    }

    /// Low and high end of each series at each time, in runs without a gap.
    fn bands(&self) -> Vec<Vec<(f64, f64, f64)>> {
        let mut below: Vec<f64> = Vec::new();
        let mut bands = Vec::new();
        // Where some have a value, whoever has none is nothing; where nobody has one, it is not known.
        let known =
            |at: usize| self.series.iter().any(|series| series.points.get(at).is_some_and(|(_, v)| v.is_some()));
        for series in self.series {
            below.resize(below.len().max(series.points.len()), 0.0);
            let mut band = Vec::new();
            for (number, (at, value)) in series.points.iter().enumerate() {
                let value = if self.stacked && known(number) { Some(value.unwrap_or(0.0)) } else { *value };
                // No number at all stands for a gap from here on.
                let Some(value) = value else {
                    band.push((*at, f64::NAN, f64::NAN));
                    continue;
                };
                let low = if self.stacked { below[number] } else { 0.0 };
                band.push((*at, low, low + value));
                if self.stacked {
                    below[number] += value;
                }
            }
            bands.push(band);
        }
        bands
    }

    fn band(&self, chart: &mut Chart<'_, '_>, colour: RGBColor, band: &[(f64, f64, f64)]) -> anyhow::Result<()> {
        for run in band.split(|(_, _, high)| high.is_nan()).filter(|run| !run.is_empty()) {
            if self.stacked {
                let up = run.iter().map(|(at, _, high)| (at / MINUTE, *high));
                let back = run.iter().rev().map(|(at, low, _)| (at / MINUTE, *low));
                let shape = Polygon::new(up.chain(back).collect::<Vec<_>>(), colour.mix(0.55).filled());
                chart.draw_series([shape]).map_err(|error| anyhow!("{error}"))?;
            }
            // A series that is nothing has no edge of its own.
            for edge in run.split(|(_, low, high)| self.stacked && high <= low).filter(|edge| edge.len() > 1) {
                let line = edge.iter().map(|(at, _, high)| (at / MINUTE, *high)).collect::<Vec<_>>();
                chart
                    .draw_series([PathElement::new(line, colour.stroke_width(2))])
                    .map_err(|error| anyhow!("{error}"))?;
            }
        }
        Ok(())
    }

    fn axes(&self, chart: &mut Chart<'_, '_>, top: f64) -> anyhow::Result<()> {
        let small = ("sans-serif", 13).into_font().color(&TEXT);
        let unit = self.unit;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(MARK)
            .x_labels(12)
            .y_labels(8)
            .x_label_formatter(&|at| clock(at * MINUTE))
            .y_label_formatter(&|value| unit.shown(*value, top))
            .x_desc("minutes:seconds since the first request")
            .label_style(small.clone())
            .axis_desc_style(small)
            .draw()
            .map_err(|error| anyhow!("{error}"))
    }

    fn marks(&self, chart: &mut Chart<'_, '_>, plot: &Area<'_>, top: f64) -> anyhow::Result<()> {
        let style = ("sans-serif", 12).into_font().color(&MARK).pos(Pos::new(HPos::Center, VPos::Bottom));
        for mark in self.marks {
            let line =
                DashedPathElement::new([(mark.at / MINUTE, 0.0), (mark.at / MINUTE, top)], 4, 4, MARK.stroke_width(1));
            chart.draw_series([line]).map_err(|error| anyhow!("{error}"))?;
            let (x, y) = chart.backend_coord(&(mark.at / MINUTE, top));
            let (left, above) = plot.get_base_pixel();
            plot.draw(&Text::new(mark.text.clone(), (x - left, y - above - 4), style.clone()))
                .map_err(|error| anyhow!("{error}"))?;
        }
        Ok(())
    }

    /// The series in rows, as many in each as fit beside one another.
    fn legend_rows(&self) -> Vec<Vec<(usize, i32)>> {
        let mut rows: Vec<Vec<(usize, i32)>> = vec![Vec::new()];
        let mut x = 66;
        for (number, series) in self.series.iter().enumerate() {
            let wide = 34 + i32::try_from(series.name.chars().count() * 8).unwrap_or(i32::MAX / 2);
            if x + wide > i32::try_from(SIZE.0).unwrap_or(i32::MAX) {
                rows.push(Vec::new());
                x = 66;
            }
            if let Some(row) = rows.last_mut() {
                row.push((number, x));
            }
            x += wide;
        }
        rows
    }

    fn legend(&self, area: &Area<'_>, rows: &[Vec<(usize, i32)>]) -> anyhow::Result<()> {
        let style = ("sans-serif", 14).into_font().color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        for (row, y) in rows.iter().zip((10..).step_by(usize::try_from(LEGEND_LINE)?)) {
            for (number, x) in row {
                let colour = COLOURS[number % COLOURS.len()];
                let square = Rectangle::new([(*x, y - 6), (x + 12, y + 6)], colour.filled());
                area.draw(&square).map_err(|error| anyhow!("{error}"))?;
                let name = self.series.get(*number).context("a legend of nothing")?.name.clone();
                area.draw(&Text::new(name, (x + 18, y), style.clone())).map_err(|error| anyhow!("{error}"))?;
            }
        }
        Ok(())
    }
}

impl Unit {
    fn name(self, top: f64) -> &'static str {
        match self {
            Self::Count => "number",
            Self::Seconds if top < 1.0 => "milliseconds",
            Self::Seconds => "seconds",
        }
    }

    fn shown(self, value: f64, top: f64) -> String {
        let value = if self == Self::Seconds && top < 1.0 { value * 1000.0 } else { value };
        if (value - value.round()).abs() < 1e-6 { format!("{value:.0}") } else { format!("{value:.1}") }
    }
}

fn clock(seconds: f64) -> String {
    let minutes = (seconds / MINUTE).floor();
    format!("{minutes:.0}:{:02.0}", seconds - minutes * MINUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, values: &[Option<f64>]) -> Series {
        let points = values.iter().zip(0_u32..).map(|(value, at)| (f64::from(at), *value)).collect();
        Series { name: name.to_owned(), points }
    }

    fn picture<'a>(stacked: bool, series: &'a [Series]) -> Picture<'a> {
        Picture { title: "GPUs", unit: Unit::Count, stacked, series, marks: &[] }
    }

    #[test]
    fn stacked_series_lie_on_one_another_and_gaps_stay() {
        let all = [series("a", &[Some(1.0), Some(2.0), None]), series("b", &[Some(3.0), None, None])];
        let tops = |stacked| {
            let bands = picture(stacked, &all).bands().into_iter();
            bands.map(|band| band.iter().map(|(_, _, high)| *high).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(format!("{:?}", tops(true)), "[[1.0, 2.0, NaN], [4.0, 2.0, NaN]]");
        assert_eq!(format!("{:?}", tops(false)), "[[1.0, 2.0, NaN], [3.0, NaN, NaN]]");
    }

    #[test]
    fn a_picture_names_what_it_shows() {
        let all = [series("Attached", &[Some(1.0), Some(2.0)]), series("Host", &[Some(3.0), Some(2.0)])];
        let marks = [Mark { at: 1.0, text: "leader killed".to_owned() }];
        let svg = Picture { marks: &marks, ..picture(true, &all) }.svg().unwrap();
        for text in ["GPUs", "Attached", "Host", "leader killed", "number", "minutes:seconds", "0:00"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<polygon").count(), 2);
        assert!(picture(true, &[]).svg().is_err(), "a picture of nothing");
    }

    #[test]
    fn times_are_shown_in_what_is_readable() {
        assert_eq!((Unit::Seconds.shown(0.0125, 0.05), Unit::Seconds.name(0.05)), ("12.5".to_owned(), "milliseconds"));
        assert_eq!((Unit::Seconds.shown(2.0, 3.0), Unit::Seconds.name(3.0)), ("2".to_owned(), "seconds"));
        assert_eq!((clock(0.0), clock(95.0)), ("0:00".to_owned(), "1:35".to_owned()));
    }
}
