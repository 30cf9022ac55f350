//! The table and the plot.

use std::fmt::Write;

use super::common::{self, Spread, median, spread};
use super::support::Cluster;
use super::throughput::{CLIENTS, LISTENERS, QUEUES};
use super::{Arm, Disk};

/// One arm for a few seconds.
pub struct Run {
    pub tps: f64,
    /// What each listener heard.
    pub receipts: u64,
    pub merged: u64,
    /// Relay transactions a second.
    pub relays: f64,
    /// Sessions in line for the lock of NOTIFY, on average.
    pub in_line: f64,
}

/// All arms with one number of clients and listeners.
pub struct Cell {
    disk: Disk,
    listeners: usize,
    queues: usize,
    clients: usize,
    runs: Vec<(Arm, Run)>,
}

/// From statement to notification, in microseconds: (p50, p99), and the ratios of each round.
pub struct Latency {
    pub load: &'static str,
    pub bus: (f64, f64),
    pub native: (f64, f64),
    pub p50: Spread,
    pub p99: Spread,
}

/// Ratios of what single calls cost.
pub struct Calls {
    pub poll: Spread,
    pub bulk: Spread,
    pub bulk_queues: Spread,
}

pub struct Report {
    /// Whether results are written to files.
    writes: bool,
    about: String,
    calls: Option<Calls>,
    latencies: Vec<(Disk, Latency)>,
    cells: Vec<Cell>,
}

impl Cell {
    pub fn new(disk: Disk, listeners: usize, queues: usize, clients: usize, runs: Vec<(Arm, Run)>) -> Self {
        Self { disk, listeners, queues, clients, runs }
    }

    fn of(&self, arm: Arm) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |(a, _)| *a == arm).map(|(_, run)| run)
    }

    /// Commits ÷ those without a trigger, round by round.
    fn ratio(&self, arm: Arm) -> Spread {
        median(self.of(arm).zip(self.of(Arm::Bare)).map(|(run, bare)| run.tps / bare.tps).collect())
    }

    fn middle(&self, arm: Arm, what: impl Fn(&Run) -> f64) -> f64 {
        median(self.of(arm).map(what).collect()).0
    }

    pub fn line(&self) -> String {
        let ratios = [Arm::Bus, Arm::Statement, Arm::Row].map(|arm| {
            let (middle, least, most) = self.ratio(arm);
            format!("{middle:.2} ({least:.2}–{most:.2})")
        });
        let [bus, statement, row] = ratios;
        let sum = |arm, what: fn(&Run) -> u64| self.of(arm).map(what).sum::<u64>();
        format!(
            "| {} | {} | {} | {} | {:.0} | **{bus}** | {statement} | {row} | {:.1} / {:.1} / {:.1} | {:.0} | {} + {} merged |",
            disk(self.disk),
            self.listeners,
            self.queues,
            self.clients,
            self.middle(Arm::Bare, |r| r.tps),
            self.middle(Arm::Bus, |r| r.in_line),
            self.middle(Arm::Statement, |r| r.in_line),
            self.middle(Arm::Row, |r| r.in_line),
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
        Self { writes, about: String::new(), calls: None, latencies: Vec::new(), cells: Vec::new() }
    }

    pub fn cells(&self) -> usize {
        self.cells.len()
    }

    /// One more; what there is so far is written, as an hour is long.
    pub fn add(&mut self, cell: Cell) {
        eprintln!("{}", cell.line());
        self.cells.push(cell);
        if self.writes {
            std::fs::create_dir_all("benches/results").expect("it can be made");
            std::fs::write("benches/results/bus.md", self.text()).expect("it can be written");
            std::fs::write("benches/results/bus.svg", self.plot()).expect("it can be written");
        }
    }

    /// Where this was measured.
    pub fn about(&mut self, cluster: &Cluster) {
        self.about = common::about(cluster);
    }

    pub fn calls(&mut self, calls: Calls) {
        self.calls = Some(calls);
    }

    pub fn latencies(&mut self, disk: Disk, latencies: Vec<Latency>) {
        self.latencies.extend(latencies.into_iter().map(|l| (disk, l)));
    }

    pub fn text(&self) -> String {
        let mut text = format!("Measured by `make bench`: {}.\n\n", self.about);
        text.push_str(
            "Commits a second of single INSERTs ÷ those into the same table without a trigger: median of the rounds \
             (least–most). In line: client sessions waiting for the lock that NOTIFY takes, on average of what was seen \
             every 100 ms (bus / statement / row). Relays: transactions of the relay a second. Receipts: what each \
             listener of the bus heard, and what the relay merged; with listeners, together the commits. The native arms' \
             listeners heard one for each commit.\n\n\
             | disk | listeners | queues | clients | commits/s without trigger | bus | statement trigger, native | \
             old row trigger, native | in line | relays/s | receipts |\n\
             | --- | --: | --: | --: | --: | --- | --- | --- | --- | --: | --- |\n",
        );
        for cell in &self.cells {
            writeln!(text, "{}", cell.line()).expect("memory");
        }
        text.push_str(
            "\nFrom the statement that is sent to the notification that another session has received, in µs, on the bus \
             and with the native statement trigger, and bus ÷ native.\n\n\
             | disk | load | bus p50 / p99 | native p50 / p99 | p50 ÷ | p99 ÷ |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        for (on, l) in &self.latencies {
            let ((b50, b99), (n50, n99)) = (l.bus, l.native);
            let (p50, p99) = (spread(l.p50), spread(l.p99));
            writeln!(
                text,
                "| {} | {} | {b50:.0} / {b99:.0} | {n50:.0} / {n99:.0} | {p50} | {p99} |",
                disk(*on),
                l.load
            )
            .expect("memory");
        }
        if let Some(calls) = &self.calls {
            writeln!(
                text,
                "\n| call | ÷ |\n| --- | --- |\n\
                 | a 10,000-row INSERT into one queue, processor time of its backend ÷ without a trigger | {} |\n\
                 | the same into a hundred queues | {} |\n\
                 | `oban_poll` with nothing new, processor time ÷ an empty function of the same signature | {} |",
                spread(calls.bulk),
                spread(calls.bulk_queues),
                spread(calls.poll)
            )
            .expect("memory");
        }
        text
    }

    /// One panel for each disk, number of listeners and of queues: ratios over clients.
    pub fn plot(&self) -> String {
        const W: f64 = 190.0;
        const H: f64 = 130.0;
        const GAP: f64 = 48.0;
        let columns = LISTENERS.len() * QUEUES.len();
        let width = columns as f64 * (W + GAP) + GAP;
        let height = 2.0 * (H + 64.0) + 40.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let colours = [(Arm::Bus, "#0072b2"), (Arm::Statement, "#d55e00"), (Arm::Row, "#999999")];
        for (i, (arm, colour)) in colours.iter().enumerate() {
            let x = GAP + i as f64 * 230.0;
            writeln!(
                svg,
                "<rect x=\"{x}\" y=\"10\" width=\"14\" height=\"10\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"19\">{}</text>",
                x + 20.0,
                arm.name()
            )
            .expect("memory");
        }
        for (row, on) in [Disk::This, Disk::Slow].into_iter().enumerate() {
            for (column, (listeners, queues)) in
                LISTENERS.iter().flat_map(|l| QUEUES.iter().map(move |q| (*l, *q))).enumerate()
            {
                let (left, top) = (GAP + column as f64 * (W + GAP), 62.0 + row as f64 * (H + 64.0));
                let x = |clients: usize| left + (clients as f64).log2() / 6.0 * W;
                let y = |ratio: f64| top + H - ratio.min(1.2) / 1.2 * H;
                writeln!(
                    svg,
                    "<text x=\"{left}\" y=\"{}\">{} disk, {listeners} listeners, {queues} queue{}</text>",
                    top - 8.0,
                    disk(on),
                    if queues == 1 { "" } else { "s" }
                )
                .expect("memory");
                for ratio in [0.0, 0.5, 1.0] {
                    let at = y(ratio);
                    writeln!(
                        svg,
                        "<line x1=\"{left}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"#ddd\"/>\
                         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{ratio}</text>",
                        left + W,
                        left - 5.0,
                        at + 4.0
                    )
                    .expect("memory");
                }
                for clients in CLIENTS {
                    let at = x(clients);
                    writeln!(
                        svg,
                        "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{clients}</text>",
                        top + H + 14.0
                    )
                    .expect("memory");
                }
                for (arm, colour) in colours {
                    let cells = self
                        .cells
                        .iter()
                        .filter(|c| c.disk == on && c.listeners == listeners && c.queues == queues);
                    let mut line = String::new();
                    for cell in cells {
                        let ((middle, least, most), at) = (cell.ratio(arm), x(cell.clients));
                        write!(line, "{at:.1},{:.1} ", y(middle)).expect("memory");
                        writeln!(
                            svg,
                            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" opacity=\"0.4\"/>",
                            y(least),
                            y(most)
                        )
                        .expect("memory");
                    }
                    writeln!(
                        svg,
                        "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
                    )
                    .expect("memory");
                }
            }
        }
        writeln!(
            svg,
            "<text x=\"{GAP}\" y=\"{}\">commits a second ÷ without a trigger, over clients; {}</text>\n</svg>",
            height - 12.0,
            self.about.split(';').next().unwrap_or_default()
        )
        .expect("memory");
        svg
    }
}
