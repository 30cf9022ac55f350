//! What do the triggers on oban_jobs cost?
//!
//!     make bench-jobs                     into benches/results/jobs.md (ten minutes)
//!     make bench-jobs BENCH=quick         fewer rounds: to see whether it runs; writes nothing
//!     make bench-jobs BENCH=memory        ten million rows in one statement (takes 6 GB of disk)
//!
//! Each figure is the processor time of one backend with triggers ÷ without, by the kernel's account. The
//! arms take turns on tables of the same shape, in one session. The arms are the triggers of
//! `oban_install`, the same with the test of the row as a WHEN, and the statement trigger of versions before
//! 0.9.0.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
#[allow(dead_code)] // each bench takes a part
mod common;

use std::fmt::Write;

use common::{about, median, on_processor, spread};
use postgres::Client;
use support::{Ask, Cluster};

/// Which triggers a prefix's oban_jobs has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    None,
    Row,
    When,
    Statement,
}

const ARMS: [Arm; 4] = [Arm::None, Arm::Row, Arm::When, Arm::Statement];

impl Arm {
    fn prefix(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Row => "row_trigger",
            Self::When => "with_when",
            Self::Statement => "statement_trigger",
        }
    }

    fn install(self, client: &mut Client) {
        let p = self.prefix();
        let drop = format!(
            "DROP TRIGGER obanrs_jobs_insert ON {p}.oban_jobs; DROP TRIGGER obanrs_jobs_update ON {p}.oban_jobs"
        );
        let more = match self {
            Self::None => drop,
            Self::Row => "SELECT".into(),
            Self::When => format!(
                "{drop};
                 CREATE TRIGGER obanrs_jobs_insert AFTER INSERT ON {p}.oban_jobs FOR EACH ROW
                     WHEN (NEW.state = 'available') EXECUTE FUNCTION obanrs_jobs_insert();
                 CREATE TRIGGER obanrs_jobs_update AFTER UPDATE ON {p}.oban_jobs FOR EACH ROW
                     WHEN (NEW.state = 'available' AND (OLD.state <> 'available' OR OLD.queue <> NEW.queue))
                     EXECUTE FUNCTION obanrs_jobs_insert()"
            ),
            Self::Statement => format!(
                "{drop};
                 CREATE TRIGGER obanrs_jobs_insert AFTER INSERT ON {p}.oban_jobs
                     REFERENCING NEW TABLE AS obanrs_inserted FOR EACH STATEMENT EXECUTE FUNCTION obanrs_jobs_insert()"
            ),
        };
        let install = format!(
            "SELECT oban_install('{p}'); {more}; ALTER TABLE {p}.oban_jobs SET (autovacuum_enabled = off)"
        );
        client.batch_execute(&install).expect("it can be installed");
    }
}

/// A statement, with {p} for the prefix, how often it runs in a round, and what runs before it.
struct Work {
    what: &'static str,
    before: &'static str,
    sql: &'static str,
    times: usize,
}

const FETCH: &str = "UPDATE {p}.oban_jobs j SET state = 'executing', attempted_at = now(), attempted_by = ARRAY['n', 'u'], attempt = attempt + 1
     FROM (SELECT id FROM {p}.oban_jobs WHERE state = 'available' AND queue = 'default' ORDER BY priority, scheduled_at, id
           LIMIT 1 FOR UPDATE SKIP LOCKED) s WHERE j.id = s.id AND j.attempt < j.max_attempts;
     UPDATE {p}.oban_jobs SET state = 'completed', completed_at = now() WHERE id IN (
           SELECT id FROM {p}.oban_jobs WHERE state = 'executing' AND queue = 'default' ORDER BY priority, scheduled_at, id LIMIT 1)";

const WORKS: [Work; 6] = [
    Work {
        what: "INSERT of 50,000 available rows of one queue",
        before: "TRUNCATE {p}.oban_jobs; CHECKPOINT",
        sql: "INSERT INTO {p}.oban_jobs (worker, args) SELECT 'w', '{\"a\": 1}' FROM generate_series(1, 50000)",
        times: 1,
    },
    Work {
        what: "INSERT of 50,000 available rows of 100 queues",
        before: "TRUNCATE {p}.oban_jobs; CHECKPOINT",
        sql: "INSERT INTO {p}.oban_jobs (worker, queue, args) SELECT 'w', 'q' || i % 100, '{\"a\": 1}' FROM generate_series(1, 50000) i",
        times: 1,
    },
    Work {
        what: "INSERT of 50,000 scheduled rows",
        before: "TRUNCATE {p}.oban_jobs; CHECKPOINT",
        sql: "INSERT INTO {p}.oban_jobs (worker, state, scheduled_at) SELECT 'w', 'scheduled', now() + interval '1 day' FROM generate_series(1, 50000)",
        times: 1,
    },
    Work {
        what: "UPDATE of 50,000 rows from available to executing",
        before: "TRUNCATE {p}.oban_jobs; INSERT INTO {p}.oban_jobs (worker) SELECT 'w' FROM generate_series(1, 50000); CHECKPOINT",
        sql: "UPDATE {p}.oban_jobs SET state = 'executing'",
        times: 1,
    },
    Work {
        what: "INSERT of one available row",
        before: "TRUNCATE {p}.oban_jobs; CHECKPOINT",
        sql: "INSERT INTO {p}.oban_jobs (worker, args) VALUES ('w', '{\"a\": 1}')",
        times: 3000,
    },
    Work {
        what: "fetching one job and completing it, of 2,000 that are available",
        before: "TRUNCATE {p}.oban_jobs; INSERT INTO {p}.oban_jobs (worker) SELECT 'w' FROM generate_series(1, 2000); ANALYZE {p}.oban_jobs; CHECKPOINT",
        sql: FETCH,
        times: 500,
    },
];

/// Returns the processor time of the session, in seconds, for one round of the work on each arm.
fn round(client: &mut Client, pid: i32, work: &Work, first: usize) -> [f64; ARMS.len()] {
    let mut used = [0.0; ARMS.len()];
    for turn in 0..ARMS.len() {
        let arm = (first + turn) % ARMS.len();
        let with = |sql: &str| sql.replace("{p}", ARMS[arm].prefix());
        client.batch_execute(&with(work.before).replace("; CHECKPOINT", "")).expect("it is ours");
        client.batch_execute("CHECKPOINT").expect("it is a superuser's");
        let statements: Vec<_> =
            with(work.sql).split(";\n").map(|sql| client.prepare(sql).expect("it is ours")).collect();
        let before = on_processor(pid);
        for _ in 0..work.times {
            for statement in &statements {
                client.execute(statement, &[]).expect("it runs");
            }
        }
        used[arm] = on_processor(pid) - before;
    }
    used
}

/// The memory of a backend at its highest, in bytes.
fn highest_memory(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
}

/// Inserts ten million rows with one statement. Returns how much memory the backend has used at its highest.
fn ten_million_rows(cluster: &Cluster, arm: Arm) -> f64 {
    let mut client = cluster.client();
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let sql = "INSERT INTO {p}.oban_jobs (worker) SELECT 'w' FROM generate_series(1, 10000000)";
    client.batch_execute(&sql.replace("{p}", arm.prefix())).expect("it runs");
    let highest = highest_memory(pid);
    client.batch_execute(&format!("TRUNCATE {}.oban_jobs", arm.prefix())).expect("it is ours");
    highest
}

fn main() {
    let asked = |word: &str| std::env::args().any(|a| a == word);
    let rounds = if asked("quick") { 2 } else { 24 };
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'obanrs'",
        "shared_buffers = 512MB",
        "max_wal_size = 8GB",
        "fsync = off",
        "autovacuum = off",
    ]);
    let mut client = cluster.client();
    client
        .batch_execute("CREATE EXTENSION obanrs; CREATE EXTENSION IF NOT EXISTS plpgsql")
        .expect("they can be made");
    ARMS.iter().for_each(|arm| arm.install(&mut client));
    let mut text = format!("Measured by `make bench-jobs`: {}.\n\n", about(&cluster));
    if asked("memory") {
        let [without, with] = [Arm::None, Arm::Row].map(|arm| ten_million_rows(&cluster, arm));
        eprintln!(
            "ten million rows in one statement: {:.0} MB more memory with triggers than without ({:.0} and {:.0} MB)",
            (with - without) / 1e6,
            with / 1e6,
            without / 1e6
        );
        return;
    }
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    writeln!(
        text,
        "Processor time of the backend with triggers ÷ without, {rounds} rounds in turns: median (least–most).\n\n\
         | work | triggers of `oban_install` | with the test as a WHEN | trigger before 0.9.0 | µs a row without |\n\
         | --- | --- | --- | --- | --- |"
    )
    .expect("memory");
    for work in &WORKS {
        let used: Vec<_> = (0..rounds).map(|n| round(&mut client, pid, work, n)).collect();
        let ratio = |arm: usize| spread(median(used.iter().map(|round| round[arm] / round[0]).collect()));
        let rows = if work.times == 1 { 50_000.0 } else { work.times as f64 };
        let alone = median(used.iter().map(|round| round[0] / rows * 1e6).collect()).0;
        let line = format!("| {} | {} | {} | {} | {alone:.1} |", work.what, ratio(1), ratio(2), ratio(3));
        eprintln!("{line}");
        writeln!(text, "{line}").expect("memory");
    }
    if !asked("quick") {
        std::fs::write("benches/results/jobs.md", text).expect("it can be written");
    }
}
