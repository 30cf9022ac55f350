//! What does a wakeup cost?
//!
//! The trigger of obanrs, no trigger, and a statement trigger with native NOTIFY take turns on the same
//! tables of one server. In one cell for each disk Oban's old row trigger takes part.
//!
//!     make bench-bus                  everything, into benches/results (about 35 minutes)
//!     make bench-bus BENCH=quick      one short round each: to see whether it runs; writes nothing
//!     make bench-bus BENCH='again disk=this listeners=10 latency'
//!                                     these anew, where the machine was disturbed; the other results stay
//!     make bench-bus BENCH='clients=64 listeners=1,10 queues=1 disk=slow'
//!                                     these cells only (latency, calls: these, too;
//!                                     set=obanrs.relay_interval=5ms: with a setting); writes nothing
//!
//! Only ratios within one run mean anything. The arms take turns within each round, and a cell is the median
//! of the ratios of 20 rounds to the arm without a trigger. Receipts are counted: the compared arms have
//! delivered the same number, or the relay has merged the difference.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
mod common;

mod latency;
#[path = "../common/listener.rs"]
mod listener;
mod report;
mod throughput;

use std::process::Command;
use std::time::Duration;

use support::Cluster;

/// How a table announces its new jobs. Each arm has a prefix of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    Bare,
    Bus,
    Statement,
    Row,
}

impl Arm {
    pub const ALL: [Arm; 4] = [Arm::Bare, Arm::Bus, Arm::Statement, Arm::Row];
    /// The arms of most cells. The row trigger is not among them: it costs what the statement trigger does,
    /// where a statement inserts one row.
    pub const USUAL: [Arm; 3] = [Arm::Bare, Arm::Bus, Arm::Statement];

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
            Arm::Bus => "obanrs",
            Arm::Statement => "NOTIFY by a statement trigger",
            Arm::Row => "Oban's old row trigger",
        }
    }
}

/// The conditions under which one cell of the table compares the arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub listeners: usize,
    pub queues: usize,
    pub clients: usize,
}

impl Setup {
    /// The setup without listeners. More clients make no other figure there.
    pub const UNHEARD: Setup = Setup { listeners: 0, queues: 1, clients: 16 };

    /// The setup that is also measured with the row trigger.
    pub const WITH_ROW_TRIGGER: Setup = Setup { listeners: 1, queues: 100, clients: 16 };

    pub fn arms(self) -> &'static [Arm] {
        if self.queues == Self::WITH_ROW_TRIGGER.queues { &Arm::ALL } else { &Arm::USUAL }
    }
}

/// How often and how long each thing is measured.
pub struct Plan {
    pub setups: Vec<Setup>,
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
    let some = |name: &str, all: &[usize]| -> Vec<usize> {
        asked(name)
            .map_or(all.to_vec(), |list| list.split(',').map(|n| n.parse().expect("a number")).collect())
    };
    let again = arguments.iter().any(|a| a == "again");
    let all = !again && !quick && arguments.iter().all(|a| !a.contains('='));
    let (clients, listeners) =
        (some("clients", &throughput::CLIENTS), some("listeners", &throughput::LISTENERS));
    let mut setups = Vec::new();
    for queues in some("queues", &[1]) {
        for &listeners in &listeners {
            setups.extend(clients.iter().map(|&clients| Setup { listeners, queues, clients }));
        }
    }
    if all || quick {
        setups.extend([Setup::UNHEARD, Setup::WITH_ROW_TRIGGER]);
    }
    let plan = Plan {
        setups,
        rounds: if quick { 1 } else { 20 },
        cell: Duration::from_secs(1),
        latencies: if quick { 50 } else { 1_000 },
    };
    let disks = match asked("disk") {
        None => vec![Disk::This, Disk::Slow],
        Some("slow") => vec![Disk::Slow],
        Some(_) => vec![Disk::This],
    };
    let slow_disk = slow_disk();
    let named = |what: &str| all || quick || arguments.iter().any(|a| a == what);
    let mut report = report::Report::new(all || again);
    if again {
        report.keep_all_but(&disks, &plan.setups, named("latency"), named("calls"));
    }
    for (turn, disk) in disks.into_iter().enumerate() {
        let environment: Vec<(&str, &str)> = match disk {
            Disk::This => vec![],
            Disk::Slow => vec![("LD_PRELOAD", slow_disk.as_str())],
        };
        let cluster = server(&environment);
        if turn == 0 {
            report.about(&cluster);
        }
        if disk == Disk::This && named("calls") {
            report.calls(throughput::calls(&cluster, &plan));
        }
        if named("latency") {
            report.latencies(disk, latency::measure(&cluster, &plan));
        }
        throughput::measure(&cluster, disk, &plan, &mut report);
    }
    report.write();
    println!("{}", report.text());
}

/// The library that makes the disk slower.
fn slow_disk() -> String {
    let library = std::fs::canonicalize("target").expect("cargo made it").join("slow_disk.so");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg("benches/slow_disk.c").status();
    assert!(built.is_ok_and(|s| s.success()), "cc builds benches/slow_disk.c");
    // The server's user has to read the library, wherever the checkout is.
    let copy = support::readable_copy(&library);
    copy.to_str().expect("our paths are text").to_owned()
}

/// Starts a server that keeps what it commits, with a prefix for each arm.
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
                .batch_execute(&format!("DROP TRIGGER obanrs_jobs_insert ON {prefix}.oban_jobs; DROP TRIGGER obanrs_jobs_update ON {prefix}.oban_jobs"))
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
