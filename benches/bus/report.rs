//! The table and the plot.

use std::fmt::Write;

use super::common::{self, Spread, median, spread};
use super::support::Cluster;
use super::throughput::{CLIENTS, LISTENERS};
use super::{Arm, Disk, Setup};

/// What one arm did in a few seconds.
pub struct Run {
    pub tps: f64,
    /// How many notifications each listener heard.
    pub receipts: u64,
    pub merged: u64,
    /// Transactions of the relay a second.
    pub relays: f64,
    /// How many sessions waited for the lock of NOTIFY, on average.
    pub in_line: f64,
}

/// The runs of all arms under one setup.
pub struct Cell {
    disk: Disk,
    setup: Setup,
    runs: Vec<(Arm, Run)>,
}

/// A line of the table, as it was measured now or as the results have it.
struct Row {
    disk: Disk,
    setup: Setup,
    /// The ratios of obanrs and of the statement trigger.
    ratios: [Spread; 2],
    line: String,
}

/// From statement to notification, in microseconds: (p50, p99), and the ratios of each round.
pub struct Latency {
    pub load: &'static str,
    pub bus: (f64, f64),
    pub native: (f64, f64),
    pub p50: Spread,
    pub p99: Spread,
}

/// Ratios of the costs of single calls.
pub struct Calls {
    pub poll: Spread,
    pub bulk: Spread,
    pub bulk_queues: Spread,
}

pub struct Report {
    /// Whether results are written to files.
    writes: bool,
    about: String,
    calls: Option<String>,
    latencies: Vec<(Disk, String)>,
    rows: Vec<Row>,
}

impl Row {
    /// Reads a line. `None` means that the line is of another table.
    fn parse(line: &str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
        let [on, listeners, queues, clients, _, bus, statement, ..] = cells[..] else { return None };
        Some(Self {
            disk: parse_disk(on)?,
            setup: Setup {
                listeners: listeners.parse().ok()?,
                queues: queues.parse().ok()?,
                clients: clients.parse().ok()?,
            },
            ratios: [parse_spread(bus)?, parse_spread(statement)?],
            line: line.to_owned(),
        })
    }
}

fn parse_disk(text: &str) -> Option<Disk> {
    [Disk::This, Disk::Slow].into_iter().find(|on| disk(*on) == text)
}

/// Reads the ratios that `spread` writes.
fn parse_spread(text: &str) -> Option<Spread> {
    let numbers = text.trim_matches('*').split(['(', '–', ')']).filter_map(|n| n.trim().parse().ok());
    let [middle, least, most] = numbers.collect::<Vec<f64>>()[..] else { return None };
    Some((middle, least, most))
}

impl Cell {
    pub fn new(disk: Disk, setup: Setup, runs: Vec<(Arm, Run)>) -> Self {
        Self { disk, setup, runs }
    }

    fn of(&self, arm: Arm) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |(a, _)| *a == arm).map(|(_, run)| run)
    }

    /// Commits ÷ those without a trigger, round by round. `None` means that the arm was not measured.
    fn ratio(&self, arm: Arm) -> Option<Spread> {
        let ratios: Vec<f64> =
            self.of(arm).zip(self.of(Arm::Bare)).map(|(run, bare)| run.tps / bare.tps).collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    fn middle(&self, arm: Arm, what: impl Fn(&Run) -> f64) -> f64 {
        median(self.of(arm).map(what).collect()).0
    }

    pub fn line(&self) -> String {
        let ratios =
            [Arm::Bus, Arm::Statement, Arm::Row].map(|arm| self.ratio(arm).map_or("".into(), spread));
        let [bus, statement, row] = ratios;
        let sum = |arm, what: fn(&Run) -> u64| self.of(arm).map(what).sum::<u64>();
        format!(
            "| {} | {} | {} | {} | {:.0} | **{bus}** | {statement} | {row} | {:.1} / {:.1} | {:.0} | {} + {} merged |",
            disk(self.disk),
            self.setup.listeners,
            self.setup.queues,
            self.setup.clients,
            self.middle(Arm::Bare, |r| r.tps),
            self.middle(Arm::Bus, |r| r.in_line),
            self.middle(Arm::Statement, |r| r.in_line),
            self.middle(Arm::Bus, |r| r.relays),
            sum(Arm::Bus, |r| r.receipts),
            sum(Arm::Bus, |r| r.merged),
        )
    }
}

fn disk(disk: Disk) -> &'static str {
    match disk {
        Disk::This => "this",
        Disk::Slow => "+1 ms",
    }
}

impl Report {
    pub fn new(writes: bool) -> Self {
        Self { writes, about: String::new(), calls: None, latencies: Vec::new(), rows: Vec::new() }
    }

    /// Keeps the results except those that are measured anew: these setups on these disks, and the latencies
    /// and the calls if told so.
    pub fn keep_all_but(&mut self, disks: &[Disk], setups: &[Setup], latencies: bool, calls: bool) {
        let text = std::fs::read_to_string(RESULTS).expect("there are results");
        let first = text.lines().next().unwrap_or_default();
        self.about = first.trim_start_matches(MEASURED_BY).trim_end_matches('.').to_owned();
        for line in text.lines() {
            if let Some(row) = Row::parse(line) {
                if !(disks.contains(&row.disk) && setups.contains(&row.setup)) {
                    self.rows.push(row);
                }
            } else if let Some(on) = line.strip_prefix("| ").and_then(|l| parse_disk(l.split(" | ").next()?))
                && !(latencies && disks.contains(&on))
            {
                self.latencies.push((on, line.to_owned()));
            }
        }
        if !(calls && disks.contains(&Disk::This)) {
            let calls: Vec<&str> = text.lines().skip_while(|line| *line != CALLS).collect();
            self.calls = Some(calls.join("\n"));
        }
    }

    pub fn cells(&self) -> usize {
        self.rows.len()
    }

    /// Adds a cell, and writes all results so far, because a run takes an hour.
    pub fn add(&mut self, cell: Cell) {
        let line = cell.line();
        eprintln!("{line}");
        self.rows.push(Row::parse(&line).expect("a line can be read as it is written"));
        self.write();
    }

    pub fn write(&self) {
        if self.writes {
            std::fs::create_dir_all("benches/results").expect("it can be made");
            std::fs::write(RESULTS, self.text()).expect("it can be written");
            std::fs::write("benches/results/bus.svg", self.plot()).expect("it can be written");
            std::fs::write("benches/results/wakeup.svg", self.headline()).expect("it can be written");
        }
    }

    /// Sets where this is measured. Asserts that the results which are kept are of the same version and
    /// commit.
    pub fn about(&mut self, cluster: &Cluster) {
        let about = common::about(cluster);
        let version = |about: &str| about.split(", ").skip(1).take(3).collect::<Vec<_>>().join(", ");
        assert!(
            self.about.is_empty() || version(&self.about) == version(&about),
            "{} kept, now {about}",
            self.about
        );
        self.about = about;
    }

    pub fn calls(&mut self, calls: Calls) {
        self.calls = Some(format!(
            "{CALLS}\n| --- | --- |\n\
             | a 10,000-row INSERT into one queue, processor time of its backend ÷ without a trigger | {} |\n\
             | the same into a hundred queues | {} |\n\
             | `oban_poll` with nothing new, processor time ÷ an empty function of the same signature | {} |",
            spread(calls.bulk),
            spread(calls.bulk_queues),
            spread(calls.poll)
        ));
    }

    pub fn latencies(&mut self, on: Disk, latencies: Vec<Latency>) {
        for l in latencies {
            let ((b50, b99), (n50, n99)) = (l.bus, l.native);
            let (p50, p99) = (spread(l.p50), spread(l.p99));
            let line = format!(
                "| {} | {} | {b50:.0} / {b99:.0} | {n50:.0} / {n99:.0} | {p50} | {p99} |",
                disk(on),
                l.load
            );
            self.latencies.push((on, line));
        }
    }

    pub fn text(&self) -> String {
        let mut text = format!("{MEASURED_BY}{}.\n\n", self.about);
        text.push_str(
            "Commits a second of single INSERTs ÷ those into the same table without a trigger: median of 20 \
             rounds of a second (least–most). In line: client sessions waiting for the lock that NOTIFY \
             takes, on average of what was seen every 100 ms (bus / statement). Relays: transactions of the \
             relay a second. Receipts: what each listener of the bus heard, and what the relay merged; with \
             listeners, together the commits. The native arms' listeners heard one for each commit.\n\n\
             | disk | listeners | queues | clients | commits/s without trigger | bus | statement trigger, \
             native | old row trigger, native | in line | relays/s | receipts |\n\
             | --- | --: | --: | --: | --: | --- | --- | --- | --- | --: | --- |\n",
        );
        for on in [Disk::This, Disk::Slow] {
            let mut rows: Vec<&Row> = self.rows.iter().filter(|row| row.disk == on).collect();
            rows.sort_by_key(|row| (row.setup.queues, row.setup.listeners, row.setup.clients));
            rows.iter().for_each(|row| writeln!(text, "{}", row.line).expect("memory"));
        }
        text.push_str(
            "\nFrom the statement that is sent to the notification that another session has received, in µs, \
             on the bus and with the native statement trigger, and bus ÷ native.\n\n\
             | disk | load | bus p50 / p99 | native p50 / p99 | p50 ÷ | p99 ÷ |\n\
             | --- | --- | --- | --- | --- | --- |\n",
        );
        for on in [Disk::This, Disk::Slow] {
            for (_, line) in self.latencies.iter().filter(|(of, _)| *of == on) {
                writeln!(text, "{line}").expect("memory");
            }
        }
        if let Some(calls) = &self.calls {
            writeln!(text, "\n{calls}").expect("memory");
        }
        text
    }

    /// Draws one panel for each disk and number of listeners, with the ratios over the clients.
    fn plot(&self) -> String {
        const STEP: f64 = 238.0;
        let mut svg = Svg::new(LISTENERS.len() as f64 * STEP + 48.0, 428.0);
        svg.legend(10.0);
        for (row, on) in [Disk::This, Disk::Slow].into_iter().enumerate() {
            for (column, listeners) in LISTENERS.into_iter().enumerate() {
                let panel = Panel {
                    left: 48.0 + column as f64 * STEP,
                    top: 62.0 + row as f64 * 194.0,
                    width: 190.0,
                    height: 130.0,
                };
                let title = format!("{} disk, {listeners} listener{}", disk(on), plural(listeners));
                self.panel(&mut svg, panel, on, listeners, &title);
            }
        }
        svg.text(
            48.0,
            416.0,
            &format!("commits a second ÷ without a wake-up, over clients; {}", self.measured()),
        );
        svg.end()
    }

    /// Draws the plot of README: the slower disk and one listener.
    fn headline(&self) -> String {
        let mut svg = Svg::new(560.0, 300.0);
        svg.legend(10.0);
        let panel = Panel { left: 48.0, top: 62.0, width: 490.0, height: 180.0 };
        let title = "commits a second ÷ without a wake-up; a disk that syncs in 1 ms more, one listener";
        self.panel(&mut svg, panel, Disk::Slow, 1, title);
        svg.text(48.0, 276.0, "clients that insert jobs, each INSERT a transaction");
        svg.text(48.0, 291.0, &self.measured());
        svg.end()
    }

    /// Date, versions and commit.
    fn measured(&self) -> String {
        self.about.split(", ").take(3).collect::<Vec<_>>().join(", ")
    }

    fn panel(&self, svg: &mut Svg, panel: Panel, on: Disk, listeners: usize, title: &str) {
        let Panel { left, top, width, height } = panel;
        let x = |clients: usize| left + (clients as f64).log2() / 6.0 * width;
        let y = |ratio: f64| top + height - ratio.min(1.2) / 1.2 * height;
        svg.text(left, top - 8.0, title);
        for ratio in [0.0, 0.25, 0.5, 0.75, 1.0] {
            svg.line((left, y(ratio)), (left + width, y(ratio)), "#ddd");
            svg.anchored(left - 5.0, y(ratio) + 4.0, "end", &format!("{:.0} %", ratio * 100.0));
        }
        for clients in CLIENTS {
            svg.anchored(x(clients), top + height + 14.0, "middle", &clients.to_string());
        }
        for (which, (_, colour)) in COLOURS.into_iter().enumerate() {
            let shown = |r: &&Row| r.disk == on && r.setup.listeners == listeners && r.setup.queues == 1;
            let mut rows: Vec<&Row> = self.rows.iter().filter(shown).collect();
            rows.sort_by_key(|row| row.setup.clients);
            let mut points = Vec::new();
            for row in rows {
                let ((middle, least, most), at) = (row.ratios[which], x(row.setup.clients));
                svg.line((at, y(least)), (at, y(most)), colour);
                points.push((at, y(middle)));
            }
            svg.polyline(&points, colour);
        }
    }
}

const RESULTS: &str = "benches/results/bus.md";
const MEASURED_BY: &str = "Measured by `make bench-bus`: ";
const CALLS: &str = "| call | ÷ |";

/// The arms of `Row::ratios`.
const COLOURS: [(Arm, &str); 2] = [(Arm::Bus, "#0072b2"), (Arm::Statement, "#d55e00")];

fn plural(number: usize) -> &'static str {
    if number == 1 { "" } else { "s" }
}

/// Where a panel lies, in units of the drawing.
#[derive(Clone, Copy)]
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// A drawing that is written from top to bottom.
struct Svg(String);

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"white\"/>\n"
        ))
    }

    /// The arms with their colours, in one line.
    fn legend(&mut self, top: f64) {
        for (i, (arm, colour)) in COLOURS.into_iter().enumerate() {
            let x = 48.0 + i as f64 * 230.0;
            self.push(format!("<rect x=\"{x}\" y=\"{top}\" width=\"14\" height=\"10\" fill=\"{colour}\"/>"));
            self.text(x + 20.0, top + 9.0, arm.name());
        }
    }

    fn text(&mut self, x: f64, y: f64, text: &str) {
        self.anchored(x, y, "start", text);
    }

    fn anchored(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.push(format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
        self.push(format!(
            "<line x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        ));
    }

    fn polyline(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.push(format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        ));
    }

    fn push(&mut self, element: String) {
        self.0.push_str(&element);
        self.0.push('\n');
    }

    fn end(self) -> String {
        self.0 + "</svg>\n"
    }
}
