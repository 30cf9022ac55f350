//! What a wake-up costs: obanrs' trigger on the bus beside no trigger, a statement trigger with native NOTIFY
//! and Oban's old row trigger, on the same tables, on one server, in turns.
//!
//!     make bench                  everything, into benches/results (about an hour)
//!     make bench BENCH=quick      one short round each: to see whether it runs; writes nothing
//!     make bench BENCH='clients=64 listeners=1,10 queues=1 disk=slow'
//!                                 these cells only (latency, calls: these, too;
//!                                 set=obanrs.relay_interval=5ms: with a setting); writes nothing
//!
//! Only ratios within one run mean anything: the arms take turns within each round, and a cell is the median of
//! the rounds' ratios to the arm without a trigger. Receipts are counted: the arms that are compared have
//! delivered the same, or what the relay merged is the difference.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
mod common;

mod latency;
mod listener;
mod report;
mod throughput;

use std::process::Command;
use std::time::Duration;

use support::Cluster;

/// How a table tells of its new jobs. Each has a prefix of its own by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    Bare,
    Bus,
    Statement,
    Row,
}

impl Arm {
    pub const ALL: [Arm; 4] = [Arm::Bare, Arm::Bus, Arm::Statement, Arm::Row];

    pub fn prefix(self) -> &'static str {
        match self {
            Arm::Bare => "bare",
            Arm::Bus => "bus",
            Arm::Statement => "statement",
            Arm::Row => "row",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Arm::Bare => "no trigger",
            Arm::Bus => "obanrs on the bus",
            Arm::Statement => "statement trigger, native NOTIFY",
            Arm::Row => "Oban's old row trigger",
        }
    }
}

/// The length of everything.
pub struct Plan {
    pub clients: Vec<usize>,
    pub listeners: Vec<usize>,
    pub queues: Vec<usize>,
    pub rounds: usize,
    pub cell: Duration,
    pub latencies: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    This,
    Slow,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|a| a == "quick");
    let asked = |name: &str| arguments.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    let some = |name: &str, all: &[usize]| {
        asked(name)
            .map_or(all.to_vec(), |list| list.split(',').map(|n| n.parse().expect("a number")).collect())
    };
    let all = !quick && arguments.iter().all(|a| !a.contains('='));
    let plan = Plan {
        clients: some("clients", &throughput::CLIENTS),
        listeners: some("listeners", &throughput::LISTENERS),
        queues: some("queues", &throughput::QUEUES),
        rounds: if quick { 1 } else { 5 },
        cell: if quick { Duration::from_millis(700) } else { Duration::from_secs(3) },
        latencies: if quick { 50 } else { 1_000 },
    };
    let disks = match asked("disk") {
        None => vec![Disk::This, Disk::Slow],
        Some("slow") => vec![Disk::Slow],
        Some(_) => vec![Disk::This],
    };
    let slow_disk = slow_disk();
    let mut report = report::Report::new(all);
    for (turn, disk) in disks.into_iter().enumerate() {
        let environment: Vec<(&str, &str)> = match disk {
            Disk::This => vec![],
            Disk::Slow => vec![("LD_PRELOAD", slow_disk.as_str())],
        };
        let cluster = server(&environment);
        if turn == 0 {
            report.about(&cluster);
        }
        let named = |what: &str| all || quick || arguments.iter().any(|a| a == what);
        if disk == Disk::This && named("calls") {
            report.calls(throughput::calls(&cluster, &plan));
        }
        if named("latency") {
            report.latencies(disk, latency::measure(&cluster, &plan));
        }
        throughput::measure(&cluster, disk, &plan, &mut report);
    }
    println!("{}", report.text());
}

/// The library that makes the disk slower.
fn slow_disk() -> String {
    let library = std::fs::canonicalize("target").expect("cargo made it").join("slow_disk.so");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg("benches/slow_disk.c").status();
    assert!(built.is_ok_and(|s| s.success()), "cc builds benches/slow_disk.c");
    // The server's user has to read it, wherever the checkout is.
    let copy = support::readable_copy(&library);
    copy.to_str().expect("our paths are text").to_owned()
}

/// A server that keeps what it commits, with a prefix for each arm.
fn server(environment: &[(&str, &str)]) -> Cluster {
    let asked: Vec<String> =
        std::env::args().filter_map(|a| Some(a.strip_prefix("set=")?.to_owned())).collect();
    let mut settings = vec![
        "shared_preload_libraries = 'obanrs'",
        "fsync = on",
        "shared_buffers = 256MB",
        "max_wal_size = 4GB",
        "checkpoint_timeout = 1h",
        "max_connections = 120",
    ];
    settings.extend(asked.iter().map(String::as_str));
    let cluster = Cluster::start_in(&settings, environment);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs").expect("it can be created");
    for arm in Arm::ALL {
        let prefix = arm.prefix();
        client.batch_execute(&format!("SELECT oban_install('{prefix}')")).expect("it can be installed");
        if arm != Arm::Bus {
            client
                .batch_execute(&format!("DROP TRIGGER obanrs_jobs_insert ON {prefix}.oban_jobs"))
                .expect("it is there");
        }
    }
    client
        .batch_execute(
            "CREATE FUNCTION statement.notify() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 PERFORM pg_notify('statement.oban_insert', json_build_object('queue', queue)::text)
                 FROM (SELECT DISTINCT queue FROM inserted WHERE state = 'available') q;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER notify AFTER INSERT ON statement.oban_jobs REFERENCING NEW TABLE AS inserted
             FOR EACH STATEMENT EXECUTE FUNCTION statement.notify();
             CREATE FUNCTION \"row\".notify() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.state = 'available' THEN
                     PERFORM pg_notify('row.oban_insert', json_build_object('queue', NEW.queue)::text);
                 END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER notify AFTER INSERT ON \"row\".oban_jobs FOR EACH ROW EXECUTE FUNCTION \"row\".notify()",
        )
        .expect("the native triggers can be made");
    support::wait_until("the relay runs", || {
        let sql = "SELECT count(*) FROM oban_workers WHERE kind = 'relay' AND state = 'running'";
        client.query_one(sql, &[]).expect("it answers").get::<_, i64>(0) == 1
    });
    cluster
}
