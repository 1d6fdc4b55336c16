//! The page about metrics, as Markdown.

use super::{CHAPTERS, Kind, Metric};
use std::fmt::Write as _;

const HEAD: &str = "# Metrics

Every metric of Berth. Written from the tables in `telemetry/src/metrics`; a test fails when this page is behind them.
How to have them exported: [observability.md](observability.md).

The first name is OpenTelemetry's, as an OTLP collector gets it; the second is what Prometheus finds at `/metrics`. A
histogram has `_bucket`, `_sum` and `_count` behind its name there. Each process also says who it is: `service.name`
(`berth-controller`, `berth-agent`), `service.version`, `service.instance.id`; an agent also `host.name`, which is its node.
";

/// The whole page.
pub fn render() -> String {
    let mut page = HEAD.to_owned();
    for chapter in CHAPTERS {
        // Writing into a string cannot fail.
        let _infallible = write!(page, "\n## {}\n\n{}\n", chapter.title, chapter.about);
        for metric in chapter.metrics {
            show(&mut page, metric);
        }
    }
    page
}

fn show(page: &mut String, metric: &Metric) {
    let _infallible = write!(
        page,
        "\n### `{}`\n\n`{}` · {} · unit `{}`\n\n{}\n",
        metric.name,
        metric.prometheus(),
        metric.kind.name(),
        metric.unit,
        metric.what
    );
    if !metric.labels.is_empty() {
        page.push_str("\n| label | values |\n|---|---|\n");
        for label in metric.labels {
            let _infallible = writeln!(page, "| `{}` | {} |", label.key.replace('.', "_"), label.values);
        }
    }
    if let Kind::Histogram(bounds) = metric.kind {
        let bounds: Vec<_> = bounds.iter().map(ToString::to_string).collect();
        let _infallible = write!(page, "\nBuckets up to: {}\n", bounds.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect_file;

    #[test]
    fn the_page_is_as_the_tables_are() {
        expect_file!["../../../docs/metrics.md"].assert_eq(&render());
    }
}
