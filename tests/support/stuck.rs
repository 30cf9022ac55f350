//! A commit that waits for a standby that never comes.
//!
//! A transaction can be held there, after its commit is on disk and before another session sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use postgres::Client;

use super::{Ask, Cluster, wait_until};

pub struct Stuck {
    pub pid: i32,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Stuck {
    /// Makes all commits of the server wait, and a session that runs this statement stand in its commit. (The
    /// setting counts when the checkpointer has read it. Until then the statement runs again and again.)
    pub fn start(cluster: &Cluster, mut client: Client, sql: &'static str) -> Self {
        let mut admin = cluster.client();
        admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nowhere'").expect("it is allowed");
        admin.batch_execute("SELECT pg_reload_conf()").expect("it is allowed");
        let pid = client.one("SELECT pg_backend_pid()");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while client.batch_execute(sql).is_ok() && !stopped.load(Ordering::Relaxed) {}
        });
        let waits =
            format!("SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'");
        wait_until("its commit waits", || admin.one(&waits));
        Self { pid, stop, thread }
    }

    /// Ends the wait with `pg_cancel_backend` or `pg_terminate_backend`, and waits until the session has left
    /// the commit.
    pub fn end(self, admin: &mut Client, function: &str) {
        self.stop.store(true, Ordering::Relaxed);
        admin.query_one(&format!("SELECT {function}({})", self.pid), &[]).expect("it is there");
        self.thread.join().expect("it ends");
    }
}
