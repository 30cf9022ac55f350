//! What the suites and the demo share: a private copy of the Postgres installation, servers on it, and
//! waiting for conditions.
#![allow(dead_code)] // each user takes a part

mod cluster;
mod installation;
mod workspace;

pub use cluster::Cluster;
#[allow(unused_imports)]
pub use cluster::Shell;

use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;

/// Where the servers under test find control files and scripts of extensions; a test may add some.
pub fn extensions_folder() -> &'static std::path::Path {
    &installation::installation().extensions
}

/// The longest that a test waits for a condition that has to come true: far above what it takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives a value, and fails with what was waited for after `PATIENCE`.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(since.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// The SQLSTATE with which a statement fails.
pub fn code(client: &mut postgres::Client, sql: &str) -> String {
    let error = client.batch_execute(sql).expect_err(sql);
    error.code().unwrap_or_else(|| panic!("{sql}: {error}")).code().to_owned()
}

/// What a session has heard since the last time, without waiting: a notification of its own comes last.
pub fn heard(client: &mut postgres::Client) -> Vec<postgres::Notification> {
    client.batch_execute("LISTEN fence; NOTIFY fence").expect("it listens");
    let mut notifications = client.notifications();
    let all = notifications.blocking_iter().take_while(|n| Ok(n.channel() != "fence"));
    all.collect().expect("the fence comes")
}

/// For a question with one answer.
pub trait Ask {
    /// The first column of the one row that a query gives.
    fn one<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T;
}

impl<C: postgres::GenericClient> Ask for C {
    fn one<T: for<'a> postgres::types::FromSql<'a>>(&mut self, sql: &str) -> T {
        self.query_one(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }
}
