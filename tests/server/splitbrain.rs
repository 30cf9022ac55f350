//! Are there never two leaders, whatever stops, dies and lies?
//!
//! Members of both kinds and foreign nodes of all forms write as leaders under their fences. Meanwhile
//! clients and the keeper are stopped and killed, the server restarts, and rows are deleted. Each writer
//! keeps writing with the terms that it once got.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::elixir::{Form, elect};
use crate::support::history::{self, SCHEMA, Write, check};
use crate::support::{Cluster, wait_for, wait_until};

/// Pseudo-random numbers, the same in each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
    pub fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most)));
    }
}

/// Starts a client process that can be stopped: a psql that joins and writes again and again.
fn process(cluster: &Cluster, node: &str, leased: bool) -> Child {
    let (lease, term) = if leased { ("lease => '1 s', ", "oban_renew(:m)") } else { ("", "oban_term()") };
    let script = format!(
        "SELECT oban_join('{node}', {lease}replace => true, candidate => true) AS m \\gset
         SELECT CASE WHEN random() < 0.03 THEN oban_resign(:m) ELSE act('{node}', {term}) END \\watch 0.02\n"
    );
    let mut psql: Command = cluster.program("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "postgres"]);
    let mut child =
        psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql starts");
    let mut input = child.stdin.take().expect("a pipe");
    // The process may have ended already because the server restarts. Then another one starts soon.
    let _ = input.write_all(script.as_bytes());
    child
}

/// Starts a thread that runs `work` until `stop`, with a new connection after each lost one.
fn thread(
    connect: impl Fn() -> Option<Client> + Send + 'static,
    stop: &Arc<AtomicBool>,
    work: impl Fn(&mut Client, &mut Dice) -> Result<(), postgres::Error> + Send + 'static,
    seed: u64,
) -> JoinHandle<()> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut dice = Dice(seed);
        while !stop.load(Ordering::Relaxed) {
            let Some(mut client) = connect() else {
                dice.pause(50);
                continue;
            };
            while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                if let Err(e) = work(&mut client, &mut dice)
                    && let Some(e) = e.as_db_error().filter(|e| e.severity() == "ERROR")
                {
                    // These are lost elections, members that lapsed, and races of the statements themselves.
                    let expected = ["40001", "40P01", "55000", "23505", "25P02"];
                    assert!(
                        expected.contains(&e.code().code()) || e.code().code().starts_with("57"),
                        "{e:?}"
                    );
                }
            }
        }
    })
}

/// Sends a signal to a process that may have ended meanwhile.
fn signal(signal: &str, pid: i32) {
    let kill = format!("kill -s {signal} {pid}");
    let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
}

fn run(seconds: u64) {
    let settings = ["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s", "restart_after_crash = on"];
    let cluster = Arc::new(Cluster::start(&settings));
    cluster
        .client()
        .batch_execute(&format!("CREATE EXTENSION obanrs; SELECT oban_install(); {SCHEMA}"))
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let connect = || {
        let cluster = cluster.clone();
        move || cluster.try_client("postgres", "postgres").ok()
    };

    // A pooled member uses any connection, and its term may be old when it writes.
    let pooled = |client: &mut Client, dice: &mut Dice| {
        let member: i64 = client
            .query_one("SELECT oban_join('pooled', lease => '1 s', replace => true, candidate => true)", &[])?
            .get(0);
        for _ in 0..dice.below(20) {
            let term: Option<i64> = client.query_one("SELECT oban_renew($1)", &[&member])?.get(0);
            let most = if dice.below(10) == 0 { 1_500 } else { 20 };
            dice.pause(most);
            client.query_one("SELECT act('pooled', $1)", &[&term])?;
        }
        client.query_one("SELECT oban_resign($1)", &[&member])?;
        dice.pause(200);
        Ok(())
    };
    let mut threads = vec![thread(connect(), &stop, pooled, 1)];
    // A foreign node's upsert decides whether the node believes that it leads. It writes with its own term.
    let foreign = [
        ("elixir-old", Form::ByName, "5 hours"),
        ("elixir-new", Form::ByNode, "-5 hours"),
        ("elixir-now", Form::DoNothing, "0"),
    ];
    for (i, (node, form, skew)) in foreign.into_iter().enumerate() {
        let work = move |client: &mut Client, dice: &mut Dice| {
            // At times an UPDATE hands the leadership over to the node.
            let hand_over = "UPDATE oban_peers SET node = $1, expires_at = timezone('UTC', clock_timestamp()) + interval '30 s'
                             WHERE name = 'Oban'";
            let leads = match dice.below(5) {
                0 => client.execute(hand_over, &[&node])? == 1,
                _ => elect(client, node, form, skew)?,
            };
            let own = "SELECT max(term) FROM oban_peers WHERE name = 'Oban' AND node = $1";
            let term: Option<i64> = client.query_one(own, &[&node])?.get(0);
            for _ in 0..dice.below(5) {
                client.query_one("SELECT act($1, $2)", &[&node, &term.filter(|_| leads)])?;
                let most = if dice.below(10) == 0 { 1_200 } else { 30 };
                dice.pause(most);
            }
            if dice.below(3) > 0 {
                client.execute("DELETE FROM oban_peers WHERE name = 'Oban' AND node = $1", &[&node])?;
            }
            dice.pause(800);
            Ok(())
        };
        threads.push(thread(connect(), &stop, work, 10 + i as u64));
    }

    let nodes = [("bound-1", false), ("bound-2", false), ("leased-1", true)];
    let mut processes: Vec<Child> =
        nodes.iter().map(|(node, leased)| process(&cluster, node, *leased)).collect();
    let (mut dice, since) = (Dice(7), Instant::now());
    let mut restarts = 0;
    let keeper = || -> Option<i32> {
        let mut client = cluster.try_client("postgres", "postgres").ok()?;
        client
            .query_opt("SELECT pid FROM oban_workers WHERE kind = 'keeper' AND pid IS NOT NULL", &[])
            .ok()?
            .map(|r| r.get(0))
    };
    while since.elapsed() < Duration::from_secs(seconds) {
        for (child, (node, leased)) in processes.iter_mut().zip(nodes) {
            if child.try_wait().expect("it is ours").is_some() {
                *child = process(&cluster, node, leased);
            }
        }
        let victim = dice.below(processes.len() as u64) as usize;
        let pid = processes[victim].id() as i32;
        match dice.below(12) {
            0..=3 => {
                cluster.signal("STOP", pid);
                dice.pause(1_500);
                cluster.signal("CONT", pid);
            }
            4 | 5 => {
                processes[victim].kill().expect("it is ours");
                processes[victim].wait().expect("it is ours");
            }
            6 | 7 => {
                if let Some(keeper) = keeper() {
                    signal("STOP", keeper);
                    dice.pause(1_500);
                    signal("CONT", keeper);
                }
            }
            8 => {
                if let Some(keeper) = keeper() {
                    signal(if dice.below(4) == 0 { "KILL" } else { "TERM" }, keeper);
                }
            }
            9 if since.elapsed() > Duration::from_secs(10 * (restarts + 1)) => {
                cluster.stop("immediate");
                cluster.start_again();
                restarts += 1;
            }
            _ => dice.pause(500),
        }
    }
    // There is a leader again within the stated time, which is a lease and an election.
    let mut watch = wait_for("the server is up", || cluster.try_client("postgres", "postgres").ok());
    let led = "SELECT count(*) = 1 FROM oban_leader()";
    wait_until("a member leads", || watch.query_one(led, &[]).is_ok_and(|r| r.get(0)));
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().expect("only what was expected went wrong"));
    for mut child in processes {
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }
    let history = history::read(&mut watch);
    if let Err(wrong) = check(&history) {
        panic!("{wrong}\nof {} writes", history.len());
    }
    // The run proves nothing if nothing happened.
    let wrote = |node: &str| history.iter().filter(|w| w.node.starts_with(node)).count();
    let all = ["bound", "leased", "pooled", "elixir-old", "elixir-new", "elixir-now"];
    let counts: Vec<(&str, usize)> = all.iter().map(|node| (*node, wrote(node))).collect();
    let mut terms: Vec<i64> = history.iter().map(|w| w.term).collect();
    terms.sort_unstable();
    terms.dedup();
    eprintln!("{} writes with {} terms, {restarts} restarts: {counts:?}", history.len(), terms.len());
    assert!(
        wrote("bound") > 0 && wrote("leased") + wrote("pooled") > 0 && wrote("elixir") > 0,
        "each kind has led: {counts:?}"
    );
    assert!(terms.len() > seconds as usize / 4 && restarts > 0, "{} terms, {restarts} restarts", terms.len());

    // The checker also gets a planted writer, which writes without a fence because it believes that it still
    // leads.
    let last = history.iter().max_by_key(|w| w.entered).expect("there are some");
    let lie = format!(
        "INSERT INTO history VALUES ('liar', {}, to_timestamp({}), to_timestamp({}))",
        last.term - 1,
        last.entered as f64 / 1e6 + 0.000_001,
        last.left as f64 / 1e6 + 1.0
    );
    watch.batch_execute(&lie).unwrap();
    check(&history::read(&mut watch)).expect_err("a planted second leader is found");
}

#[test]
fn never_two_leaders() {
    run(60);
}

#[test]
#[ignore = "an hour: make soak"]
fn soak_never_two_leaders() {
    let seconds = std::env::var("OBANRS_SOAK_SECONDS").map_or(3_600, |s| s.parse().expect("a number"));
    run(seconds);
}

/// The checker refuses each history that has two leaders.
#[test]
fn the_checker_finds_planted_double_leaders() {
    let write = |node: &str, term, entered, left| Write { node: node.into(), term, entered, left };
    let good = [write("a", 1, 0, 10), write("a", 1, 5, 8), write("b", 2, 10, 12), write("a", 5, 20, 30)];
    assert!(check(&good).is_ok());
    for (what, wrong) in [
        ("two at a time", write("c", 3, 11, 15)),
        ("two at a time", write("c", 4, 5, 6)),
        ("one term of two nodes", write("c", 5, 40, 41)),
        ("a term that is over", write("b", 2, 31, 32)),
        ("a term that is over", write("a", 1, 10, 11)),
    ] {
        let mut history = good.to_vec();
        history.push(wrong.clone());
        let found = check(&history).expect_err("it is wrong");
        assert!(
            found.contains("at a time") || found.contains("is over") || found.contains(what),
            "{wrong:?}: {found}"
        );
    }
    // Shorter writes of the same term hide a long write of an earlier term.
    assert!(check(&[write("a", 1, 0, 100), write("a", 1, 1, 2), write("b", 2, 50, 60)]).is_err());
}
