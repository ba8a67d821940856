//! What a shard copies of its counters for whoever asks: into memory that the question brought.

use super::timeline::{Cell, MINUTES, oldest_us};
use super::view::{TimelineFilter, TopFilter, TopOf};
use super::{CANDIDATES, Summary, TEXT_BYTES_MAX};
use crate::analytics::reports::{Text, Texts};

/// Rows of a page: two generations of a list, or as many cells of a timeline.
pub const ROWS_MAX: usize = 2 * CANDIDATES;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryAsk {
    /// A top list.
    Top(TopFilter),
    /// A timeline.
    Timeline(TimelineFilter),
}

/// A candidate of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopEntry {
    /// Number of the generation, 0 the newer.
    pub generation: usize,
    /// Application.
    pub application: i32,
    /// What stands for the value, if that is a number.
    pub number: u64,
    /// Its text.
    pub text: Text,
    /// How often, at most.
    pub count: u32,
    /// It may be less by this.
    pub error: u32,
}

/// What is known of a list in a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopGeneration {
    /// When it began, Unix µs; 0: there is none.
    pub since_us: u64,
    /// All that was counted.
    pub total: u64,
    /// A value that is no candidate was seen at most so often.
    pub floor: u32,
}

/// See the module.
#[derive(Debug)]
pub struct SummaryPage {
    /// Echoed.
    pub id: u64,
    /// What is asked.
    pub ask: SummaryAsk,
    /// When, Unix µs.
    pub now_us: u64,
    /// Of a top list.
    pub generations: [TopGeneration; 2],
    /// Of a top list.
    pub entries: Vec<TopEntry>,
    /// Their texts.
    pub texts: Texts,
    /// Of a timeline: minute, application, counters.
    pub cells: Vec<(u64, i32, Cell)>,
    /// The timeline did not fit.
    pub is_cut: bool,
}

impl SummaryPage {
    /// Room for the answer.
    pub fn new(id: u64, ask: SummaryAsk, now_us: u64) -> Self {
        let (entries, texts, cells) = match ask {
            SummaryAsk::Top(TopFilter { of: TopOf::Types, .. }) | SummaryAsk::Timeline(_) => (0, 0, ROWS_MAX.max(MINUTES * 33)),
            SummaryAsk::Top(TopFilter { of: TopOf::Sources, .. }) => (ROWS_MAX, 0, 0),
            SummaryAsk::Top(_) => (ROWS_MAX, ROWS_MAX * TEXT_BYTES_MAX, 0),
        };
        Self {
            id,
            ask,
            now_us,
            generations: [TopGeneration::default(); 2],
            entries: Vec::with_capacity(entries),
            texts: Texts::with_capacity(texts),
            cells: Vec::with_capacity(cells),
            is_cut: false,
        }
    }

    /// Copies what is asked, of a whole timeline 1 MB. So a shard fills one page a turn.
    pub fn fill(&mut self, summary: &Summary) {
        match self.ask {
            SummaryAsk::Timeline(filter) => self.fill_cells(summary, filter.since_us.unwrap_or(0), filter.application),
            SummaryAsk::Top(TopFilter { of: TopOf::Types, application, .. }) => self.fill_cells(summary, 0, application),
            SummaryAsk::Top(filter) => self.fill_top(summary, &filter),
        }
    }

    fn fill_cells(&mut self, summary: &Summary, since_us: u64, application: Option<i32>) {
        for (minute, of, cell) in summary.timeline.cells(since_us.max(oldest_us(self.now_us))) {
            if application.is_some_and(|wanted| wanted != of) {
                continue;
            }
            if self.cells.len() == self.cells.capacity() {
                self.is_cut = true;
                return;
            }
            self.cells.push((minute, of, *cell));
        }
    }

    fn fill_top(&mut self, summary: &Summary, filter: &TopFilter) {
        for (number, generation) in summary.generations(self.now_us).enumerate() {
            let list = match filter.of {
                TopOf::Sources | TopOf::Types => &generation.sources,
                TopOf::Paths => &generation.paths,
                TopOf::UserAgents => &generation.user_agents,
            };
            self.generations[number] = TopGeneration { since_us: generation.since_us, total: list.total, floor: list.floor() };
            for one in list.candidates().filter(|one| filter.application.is_none_or(|wanted| wanted == one.application)) {
                if self.entries.len() < self.entries.capacity() {
                    let text = self.texts.push(one.text);
                    self.entries.push(TopEntry {
                        generation: number,
                        application: one.application,
                        number: one.number,
                        text,
                        count: one.count,
                        error: one.error,
                    });
                }
            }
        }
    }
}
