//! What the suites and the demo share: a private copy of the Postgres installation, servers on it, and
//! waiting for conditions.
#![allow(dead_code)] // each user takes a part

mod cluster;
pub mod comments;
pub mod elixir;
pub mod history;
mod installation;
pub mod members;
mod stuck;
mod workspace;

pub use cluster::Cluster;
#[allow(unused_imports)]
pub use cluster::Shell;
#[allow(unused_imports)]
pub use stuck::Stuck;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;

/// The folder in which the servers find control files and scripts of extensions. A test may add some.
pub fn extensions_folder() -> &'static std::path::Path {
    &installation::installation().extensions
}

/// Copies a file to where the servers can read it, as long as this process lives. Returns the path of the
/// copy.
pub fn readable_copy(file: &std::path::Path) -> std::path::PathBuf {
    let copy = workspace::workspace().folder.join(file.file_name().expect("it is a file"));
    std::fs::copy(file, &copy).expect("it can be copied");
    workspace::output(std::process::Command::new("chmod").arg("a+r").arg(&copy));
    copy
}

/// A program that runs as the user that runs the servers.
pub fn program_as_server(program: &std::path::Path) -> std::process::Command {
    workspace::workspace().command(program)
}

/// The longest that a test waits for a condition that has to come true. It is far above the time that the
/// conditions take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives a value. After `PATIENCE` it fails, and says what it waited for.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    patiently(condition).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for: {what}"))
}

/// Waits until `condition` gives a value. Returns `None` after `PATIENCE`.
pub fn patiently<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let since = Instant::now();
    loop {
        let value = condition();
        if value.is_some() || since.elapsed() >= PATIENCE {
            return value;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// The columns of a table of jobs, for CREATE TABLE: the least that oban_install accepts.
pub const JOBS: &str = "(queue text, state text DEFAULT 'available', id bigint, worker text, args jsonb, \
     meta jsonb, tags text[], errors jsonb[], attempt int, max_attempts int, priority int, \
     inserted_at timestamp, scheduled_at timestamp, attempted_at timestamp, attempted_by text[], \
     cancelled_at timestamp, completed_at timestamp, discarded_at timestamp)";

/// The value of a counter of oban_stats.
pub fn stat(client: &mut postgres::Client, counter: &str) -> i64 {
    client.one(&format!("SELECT value FROM oban_stats WHERE counter = '{counter}'"))
}

/// The SQLSTATE with which a statement fails.
pub fn code(client: &mut postgres::Client, sql: &str) -> String {
    let error = client.batch_execute(sql).expect_err(sql);
    error.code().unwrap_or_else(|| panic!("{sql}: {error}")).code().to_owned()
}

/// Returns what a session has heard since the last time, of everything that was committed before. A last
/// message of its own, on the same way as the others, shows that they have come.
pub fn heard(client: &mut postgres::Client) -> Vec<postgres::Notification> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let last = format!("{{\"n\":{}}}", COUNT.fetch_add(1, Ordering::Relaxed));
    let fence = format!("LISTEN fence; SELECT oban_notify('fence', '{last}', '')");
    client.batch_execute(&fence).expect("it listens");
    let mut notifications = client.notifications();
    let mut iter = notifications.timeout_iter(PATIENCE);
    let mut heard = Vec::new();
    loop {
        match iter.next().expect("the connection is open") {
            Some(n) if n.channel() == "fence" && n.payload() == last => return heard,
            Some(n) if n.channel() == "fence" => {}
            Some(n) => heard.push(n),
            None => panic!("waited {PATIENCE:?} in vain for the last message"),
        }
    }
}

/// A query with one answer.
pub trait Ask {
    /// The first column of the only row that a query returns.
    fn one<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T;
}

impl<C: postgres::GenericClient> Ask for C {
    fn one<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T {
        self.query_one(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }
}
