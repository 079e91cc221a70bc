//! A figure that is on a page and a file of its own, and the parts of a page that hold such figures.

use super::chart::LineChart;
use super::figures::at_width;
use super::heat_grid::HeatGrid;
use super::html::{Block, Figure, NARROW, Section, WIDE};
use super::multiples::SmallMultiples;
use super::svg::Target;
use super::table::Table;

/// A figure with its file.
pub(super) struct Plate {
    /// Name of the file, `loss.svg`.
    file: String,
    /// Its content.
    svg: String,
    figure: Figure,
}

impl Plate {
    fn new(file: String, caption: &str, table: Table, draw: impl Fn(f64, Target) -> String) -> Self {
        let figure = Figure::new(caption, |width| draw(width, Target::Page)).with_table(table);
        Self { file, svg: draw(WIDE, Target::File), figure }
    }

    /// A line chart.
    pub(super) fn lines(file: &str, caption: &str, chart: &LineChart, table: Table) -> Self {
        Self::new(format!("{file}.svg"), caption, table, |width, target| match target {
            Target::Page => at_width(chart, width),
            Target::File => LineChart { width, ..chart.clone() }.render(target),
        })
    }

    /// Small multiples, on narrow screens two in a row at most.
    pub(super) fn multiples(file: &str, caption: &str, panels: Vec<LineChart>, table: Table) -> Self {
        let columns = square(panels.len(), 4);
        Self::new(format!("{file}.svg"), caption, table, |width, target| {
            let columns = if width <= NARROW { columns.min(2) } else { columns };
            SmallMultiples { panels: panels.clone(), columns, width }.render(target)
        })
    }

    /// Heat maps, on narrow screens below one another.
    pub(super) fn heat(file: &str, caption: &str, grid: &HeatGrid, table: Table) -> Self {
        let columns = square(grid.panels.len(), 3);
        Self::new(format!("{file}.svg"), caption, table, |width, target| {
            let columns = if width <= NARROW { 1 } else { columns };
            HeatGrid { columns, width, ..grid.clone() }.render(target)
        })
    }
}

/// Columns of a grid of so many panels that is as square as `most` columns allow.
fn square(panels: usize, most: usize) -> usize {
    (1..=most).find(|c| c * c >= panels).unwrap_or(most)
}

/// What a part of a page holds.
pub(super) enum Item {
    /// A figure that is a file too.
    Plate(Plate),
    /// Anything else.
    Block(Block),
}

impl From<Plate> for Item {
    fn from(plate: Plate) -> Self {
        Item::Plate(plate)
    }
}

impl From<Block> for Item {
    fn from(block: Block) -> Self {
        Item::Block(block)
    }
}

/// A section of a page, with the files of its figures.
pub(super) struct Part {
    pub(super) title: String,
    pub(super) items: Vec<Item>,
}

impl Part {
    /// The section without its files.
    pub(super) fn into_section(self) -> Section {
        let block = |item| match item {
            Item::Plate(plate) => Block::Figure(plate.figure),
            Item::Block(block) => block,
        };
        Section { title: self.title, blocks: self.items.into_iter().map(block).collect() }
    }

    /// The files, name and content.
    pub(super) fn take_files(&mut self) -> impl Iterator<Item = (String, String)> {
        self.items.iter_mut().filter_map(|item| match item {
            Item::Plate(plate) => Some((plate.file.clone(), std::mem::take(&mut plate.svg))),
            Item::Block(_) => None,
        })
    }
}

/// A run's name as a part of a file's name: what is no letter, digit, dot, dash or underscore is a dash.
pub(super) fn file_part(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().map(plain).collect()
}
