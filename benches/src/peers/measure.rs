//! What one window measured, and medians over runs.

use hdrhistogram::Histogram;
use postanalytics_loadgen::measure::latency_histogram;

/// CPU share of the generator above which the figure is the generator's.
pub const GENERATOR_BOUND_SHARE: f64 = 0.97;

/// One measured window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Length.
    pub seconds: f64,
    /// Records answered within it.
    pub records: u64,
    /// Messages answered within it.
    pub messages: u64,
    /// CPU time of the server.
    pub server_cpu_seconds: f64,
    /// CPU time of this process.
    pub own_cpu_seconds: f64,
    /// From the intended send time to the answer, µs, one entry a record.
    pub latency: Histogram<u64>,
}

impl Default for Window {
    fn default() -> Self {
        let latency = latency_histogram();
        Self { seconds: 0.0, records: 0, messages: 0, server_cpu_seconds: 0.0, own_cpu_seconds: 0.0, latency }
    }
}

impl Window {
    /// Records per second.
    pub fn rate(&self) -> f64 {
        ratio(self.records as f64, self.seconds)
    }

    /// Records per second of the server's CPU time.
    pub fn per_cpu_second(&self) -> f64 {
        ratio(self.records as f64, self.server_cpu_seconds)
    }

    /// Part of a core that the server used.
    pub fn server_share(&self) -> f64 {
        ratio(self.server_cpu_seconds, self.seconds)
    }

    /// Part of a core that the generator used.
    pub fn own_share(&self) -> f64 {
        ratio(self.own_cpu_seconds, self.seconds)
    }

    /// Records a message.
    pub fn mean_batch(&self) -> f64 {
        ratio(self.records as f64, self.messages as f64)
    }
}

/// What one run of an entry measured: flat out, and at a third of that.
#[derive(Clone, Debug)]
pub struct Run {
    /// As much as is taken; for the fleet, the fleet.
    pub full: Window,
    /// Open loop at a third of it; for the fleet, the fleet again.
    pub third: Window,
}

impl Run {
    /// A latency quantile, µs.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.third.latency.value_at_quantile(quantile) as f64
    }
}

/// The median of a figure over runs.
pub fn median(runs: &[Run], figure: impl Fn(&Run) -> f64) -> f64 {
    let mut figures: Vec<f64> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}

/// A quotient, 0 where there is none.
pub fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let run = |records| Run { full: Window { seconds: 1.0, records, ..Window::default() }, third: Window::default() };
        let rate = |run: &Run| run.full.rate();
        assert!((median(&[run(9), run(1), run(5)], rate) - 5.0).abs() < 1e-9);
        assert!((median(&[run(4), run(1), run(9), run(6)], rate) - 5.0).abs() < 1e-9);
        assert!(median(&[], rate).abs() < 1e-9 && ratio(1.0, 0.0).abs() < 1e-9);
    }
}
