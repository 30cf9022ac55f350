//! Numbers of all benches, and where they were measured.

use std::fs;
use std::process::Command;

use super::support::{Ask, Cluster};

/// The median of some ratios, the least and the greatest.
pub type Spread = (f64, f64, f64);

/// Returns the median, the least and the greatest value.
pub fn median(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    (median, values[0], values[values.len() - 1])
}

/// Returns the value below which this part of the values lies.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

pub fn spread((middle, least, most): Spread) -> String {
    format!("{middle:.2} ({least:.2}–{most:.2})")
}

/// The processor time that a process has used, in seconds.
pub fn on_processor(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it runs");
    text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

/// Runs two statements in turns in one session. Returns the processor time of the first ÷ that of the second,
/// round by round. `prepare` runs before each.
pub fn compare(client: &mut postgres::Client, rounds: usize, prepare: &str, statements: [&str; 2]) -> Spread {
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let ratios = (0..rounds).map(|round| {
        let mut cpu = [0.0, 0.0];
        for turn in 0..2 {
            let which = (turn + round) % 2;
            client.batch_execute(prepare).expect("it is ours");
            let before = on_processor(pid);
            client.batch_execute(statements[which]).expect("it runs");
            cpu[which] = on_processor(pid) - before;
        }
        cpu[0] / cpu[1]
    });
    median(ratios.collect())
}

/// The last commit that changed what is measured, with "and changes" if files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().expect("benches run in a checkout, with git");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let measured = ["--", "src", "sql", "Cargo.toml", "Cargo.lock"];
    let changes = git(&[&["status", "--porcelain"], measured.as_slice()].concat());
    let changes = if changes.is_empty() { "" } else { " and changes" };
    format!(
        "commit {}{changes}",
        git(&[&["log", "-1", "--format=%h", "--abbrev=10"], measured.as_slice()].concat())
    )
}

/// The date, the versions, the commit, the machine.
pub fn about(cluster: &Cluster) -> String {
    let mut client = cluster.client();
    let version: String = client.one("SELECT split_part(version(), ' on ', 1)");
    let own: String = client.one("SELECT oban_version()");
    let date: String = client.one("SELECT current_date::text");
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let kernel = Command::new("uname").args(["-s", "-r", "-m"]).output();
    let kernel = kernel.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    format!(
        "{date}, obanrs {own}, {}, {version}, {cores} cores of {}, {kernel}; clients on the same cores",
        commit(),
        cpu.trim_start_matches([' ', '\t', ':'])
    )
}
