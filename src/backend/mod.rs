//! What a process remembers of the session and the transaction, and what it tells shared memory
//! when they end.
//!
//! Each part keeps thread-locals and registers callbacks: for the end of a transaction or a
//! subtransaction (`pg::xact`), and for the end of the process (`pg::session`). A callback that
//! runs after a commit must not raise, because an ERROR would be a PANIC of the whole server. Such
//! a callback takes locks of `shmem`, changes plain memory and sets latches. A process that dies in
//! between takes its thread-locals along. An exit aborts the open transaction first, and that is an
//! end of the transaction as well.
//!
//! | file | what a process remembers |
//! | --- | --- |
//! | `xact_end` | what its transaction has to tell the workers |
//! | `ddl_changes` | which tables and schemas its transaction has altered |
//! | `peer_row_changes` | which rows of oban_peers its transaction has changed |
//! | `memberships` | which members are bound to its session |
//! | `due_jobs` | when the jobs that its transaction has written become due |
//! | `available_jobs` | of which queues its transaction has made jobs available, or which it has resumed |
//! | `taker` | whether it waits for jobs, and what it has claimed |
//! | `listening` | whether its session is counted as one that LISTENs |

pub mod available_jobs;
pub mod ddl_changes;
pub mod due_jobs;
pub mod listening;
pub mod memberships;
pub mod peer_row_changes;
pub mod taker;
pub mod xact_end;

/// Registers the callbacks of transactions. `_PG_init` calls this while Postgres preloads the
/// library.
pub fn register() {
    xact_end::register();
    listening::register();
    peer_row_changes::register();
    ddl_changes::register();
    due_jobs::register();
    available_jobs::register();
    taker::register();
}
