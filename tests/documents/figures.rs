//! The figures that README and docs quote are those of benches/results, of this minor version.
//! `make figures` writes them.

use std::fmt::Write;

use super::{VERSION, read};

/// What a benchmark has written: its first line says when, of which version and where; then there are tables.
struct Results {
    file: &'static str,
    text: String,
}

impl Results {
    fn of(file: &'static str) -> Self {
        Self { file, text: read(&format!("benches/results/{file}.md")) }
    }

    /// The word after this one in the first line.
    fn about(&self, word: &str) -> &str {
        let first = self.text.lines().next().unwrap_or_default();
        let rest = first.split(&format!("{word} ")).nth(1);
        let rest = rest.unwrap_or_else(|| panic!("{} does not say its {word}: {first}", self.file));
        rest.split([',', ' ', ';']).next().unwrap_or_default()
    }

    fn rows(&self) -> impl Iterator<Item = Vec<&str>> {
        let rows = self.text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
        rows.map(|row| row.split(" | ").map(str::trim).collect())
    }

    /// The row whose first cells are these, without them.
    fn row(&self, first: &[&str]) -> Vec<&str> {
        let row = self.rows().find(|row| row.starts_with(first));
        row.unwrap_or_else(|| panic!("{} has no row {first:?}", self.file)).split_off(first.len())
    }

    /// The result of the figure whose description begins so.
    fn result(&self, figure: &str) -> &str {
        let row = self.rows().find(|row| row.len() == 2 && row[0].starts_with(figure));
        row.unwrap_or_else(|| panic!("{} has no figure {figure:?}", self.file))[1]
    }

    fn version(&self) -> String {
        format!("obanrs {}, commit {}", self.about("obanrs"), self.about("commit"))
    }
}

/// The ratio and its least and most, as in "**0.98 (0.96–1.00)**".
fn spread(cell: &str) -> (f64, f64, f64) {
    let numbers: Vec<f64> = cell
        .trim_matches('*')
        .split(['(', '–', ')'])
        .filter_map(|number| number.trim().parse().ok())
        .collect();
    let [middle, least, most] = numbers[..] else { panic!("{cell} is no ratio with its spread") };
    (middle, least, most)
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

/// The ratios of a cell: of obanrs, and of NOTIFY by a trigger.
fn commits(bus: &Results, disk: &str, listeners: &str, clients: &str) -> [(f64, f64, f64); 2] {
    let row = bus.row(&[disk, listeners, "1", clients]);
    [spread(row[1]), spread(row[2])]
}

fn headline() -> String {
    let bus = Results::of("bus");
    let with = |listeners| commits(&bus, "+1 ms", listeners, "16");
    let [ours, native] = with("1");
    let all: Vec<f64> = ["0", "1", "10"].map(|listeners| with(listeners)[0].0).to_vec();
    let (least, most) =
        (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
    format!(
        "`NOTIFY` lets one commit at a time pass. With 16 clients that insert jobs, on a disk that takes a millisecond more to\n\
         sync, inserts that wake a worker by `NOTIFY` reach **{}** of the commits of inserts that wake nobody. With obanrs\n\
         they reach **{}** ({} to {} with 0 to 10 listeners). Measured with {}\n\
         ([all figures](docs/costs.md)).\n",
        percent(native.0),
        percent(ours.0),
        percent(least),
        percent(most),
        bus.version(),
    )
}

fn costs() -> String {
    let (bus, leaders, gossip) = (Results::of("bus"), Results::of("leaders"), Results::of("gossip"));
    let mut text = format!(
        "Measured with {}, on two cores that clients, server and listeners\n\
         share. The files have every figure, with machine and spread:\n\
         [commits](../benches/results/bus.md), [leaders](../benches/results/leaders.md),\n\
         [gossip](../benches/results/gossip.md).\n\n\
         ## Commits with a wake-up\n\n\
         ![commits a second, over clients](../benches/results/bus.svg)\n\n\
         Single-row INSERTs that wake a worker, as a part of those into the same table that wake nobody. Each cell: obanrs /\n\
         `NOTIFY` by a trigger. \"+1 ms\" is a disk that takes a millisecond more to sync.\n\n\
         | disk | listeners | 1 client | 4 clients | 16 clients | 64 clients |\n\
         | --- | --- | --- | --- | --- | --- |\n",
        bus.version()
    );
    for disk in ["+1 ms", "this"] {
        for listeners in ["0", "1", "10"] {
            let cells = ["1", "4", "16", "64"].map(|clients| {
                if listeners == "0" && clients != "16" {
                    return String::new(); // not measured
                }
                let [ours, native] = commits(&bus, disk, listeners, clients);
                format!("{} / {}", percent(ours.0), percent(native.0))
            });
            writeln!(text, "| {disk} | {listeners} | {} |", cells.join(" | ")).unwrap();
        }
    }
    let row = bus.row(&["+1 ms", "1", "1", "16"]);
    let (ours, native) = row[4].split_once(" / ").expect("two numbers of sessions");
    writeln!(
        text,
        "\nOf the 16 clients on the slower disk, this many stood in line for the lock of `NOTIFY` at a time: {ours} with\n\
         obanrs, {native} by a trigger. The relay made {} transactions a second meanwhile.",
        row[5]
    )
    .unwrap();
    text.push_str(
        "\n## From the INSERT to the listener\n\n\
         Half of the notifications came within this time, in ms: obanrs / `NOTIFY` by a trigger.\n\n\
         | disk | idle | 1,000 a second | 3,000 a second | 16 clients, all they can |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for disk in ["+1 ms", "this"] {
        let cells = ["idle", "1,000/s", "3,000/s", "saturated, 16 clients"].map(|load| {
            let row = bus.row(&[disk, load]);
            let ms = |cell: &str| {
                let micros: f64 = cell.split(" / ").next().unwrap_or_default().parse().expect("microseconds");
                format!("{:.1}", micros / 1e3)
            };
            format!("{} / {}", ms(row[0]), ms(row[1]))
        });
        writeln!(text, "| {disk} | {} |", cells.join(" | ")).unwrap();
    }
    text.push_str("\n## Single calls, leaders, gossip\n\n| what | measured |\n| --- | --- |\n");
    let quoted = [
        ("a 10,000-row INSERT, processor time ÷ without the trigger", bus.result("a 10,000-row INSERT")),
        ("`oban_poll` with nothing new ÷ an empty function", bus.result("`oban_poll` with nothing new")),
        (
            "`oban_is_leader()` ÷ an empty function, each a statement",
            leaders.result("the same, each a statement"),
        ),
        (
            "a leader's process is killed → another leads and knows it",
            leaders.result("leader's client killed"),
        ),
        ("a leader leaves → another leads", leaders.result("clean leave")),
        ("a lease ends → another leads", leaders.result("leased leader lapsed")),
        ("an election among 1,000 members", leaders.result("1000 members of one name")),
        ("`oban_gossip_put` of ten keys", gossip.result("the put itself")),
        ("the same ÷ an empty function, each a statement", gossip.result("one put of a state of ten keys")),
        (
            "1,000 nodes × 10 queues a second ÷ calls of an empty function",
            gossip.result("1,000 nodes × 10 queues a second"),
        ),
        ("processors that this takes, and the empty function", gossip.result("processors that it takes")),
        ("WAL bytes, transaction ids that this takes", gossip.result("WAL bytes")),
        ("reading `oban_gossip` with 10,000 entries", gossip.result("reading the view with 10,000")),
        (
            "50 nodes that all hear each other ÷ each broadcasting by `NOTIFY`",
            gossip.result("50 nodes × 2 queues a second"),
        ),
        ("a member's process is killed → its gossip is gone", gossip.result("a member's client killed")),
    ];
    for (what, measured) in quoted {
        writeln!(text, "| {what} | {measured} |").unwrap();
    }
    text.push('\n');
    text
}

/// Holds the part of a document between two marks to `text`, or writes it there.
fn hold(document: &str, begin: &str, end: &str, text: &str) {
    let whole = read(document);
    let from = whole.find(begin).unwrap_or_else(|| panic!("{document} has no {begin:?}"));
    let from = from + whole[from..].find('\n').expect("the line ends") + 1;
    let to = from + whole[from..].find(end).unwrap_or_else(|| panic!("{document} has no {end:?}"));
    if std::env::var("OBANRS_WRITE_FIGURES").is_ok() {
        std::fs::write(document, format!("{}{text}{}", &whole[..from], &whole[to..]))
            .expect("it can be written");
    } else {
        assert_eq!(&whole[from..to], text, "{document}: `make figures` writes it");
    }
}

#[test]
fn quoted_figures_are_those_of_the_results() {
    hold("README.md", "<!-- headline:", "<!-- end of headline -->", &headline());
    hold("docs/costs.md", "<!-- figures:", "<!-- end of figures -->", &costs());
}

fn minor(version: &str) -> String {
    version.rsplit_once('.').expect("a version has three parts").0.to_owned()
}

/// Returns the minor versions whose results may be quoted: this one. While this one is unreleased,
/// the newest release's may be, too: figures are measured before a release, not at the first commit
/// of a version.
fn quotable_minors() -> Vec<String> {
    let changelog = read("CHANGELOG.md");
    let mut headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    let mut quotable = vec![minor(VERSION)];
    if headings.next().is_some_and(|newest| newest.ends_with("(unreleased)")) {
        let release = headings.next().and_then(|heading| heading.split_once(" (")).expect("a release");
        quotable.push(minor(release.0));
    }
    quotable
}

#[test]
fn results_are_of_this_minor_version_and_of_a_commit() {
    let quotable = quotable_minors();
    for results in ["bus", "leaders", "gossip"].map(Results::of) {
        let measured = minor(results.about("obanrs"));
        assert!(quotable.contains(&measured), "{}: {measured}, run `make bench`", results.file);
        let commit = results.about("commit");
        assert!(commit.len() >= 9 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{commit} is no commit");
        let first = results.text.lines().next().unwrap_or_default();
        assert!(
            !first.contains("and changes"),
            "{}: measured with files that are in no commit",
            results.file
        );
    }
}

#[test]
fn a_spread_is_read() {
    assert_eq!(spread("**0.98 (0.96–1.00)**"), (0.98, 0.96, 1.0));
    assert_eq!(spread("0.12 (0.11–0.13)"), (0.12, 0.11, 0.13));
}
