//! Real servers, real clients: commit, workers, failover, restart. Each test has a server of its own.

mod support;

// What sessions send and hear.
#[path = "server/bus/mod.rs"]
mod bus;
#[path = "server/drivers.rs"]
mod drivers;
#[path = "server/encodings.rs"]
mod encodings;
#[path = "server/notify.rs"]
mod notify;
#[path = "server/pooler.rs"]
mod pooler;
#[path = "server/renames.rs"]
mod renames;
#[path = "server/rings.rs"]
mod rings;
#[path = "server/row_triggers.rs"]
mod row_triggers;
#[path = "server/transactions.rs"]
mod transactions;
#[path = "server/verbatim.rs"]
mod verbatim;
#[path = "server/wakeups.rs"]
mod wakeups;
#[path = "server/watch.rs"]
mod watch;

// Members and leaders.
#[path = "server/candidates.rs"]
mod candidates;
#[path = "server/clock.rs"]
mod clock;
#[path = "server/fence.rs"]
mod fence;
#[path = "server/foreign/mod.rs"]
mod foreign;
#[path = "server/leadership.rs"]
mod leadership;
#[path = "server/leases.rs"]
mod leases;
#[path = "server/peers/mod.rs"]
mod peers;
#[path = "server/schemas.rs"]
mod schemas;
#[path = "server/splitbrain.rs"]
mod splitbrain;
#[path = "server/strangers/mod.rs"]
mod strangers;

// Gossip and orphaned jobs.
#[path = "server/broadcast.rs"]
mod broadcast;
#[path = "server/gossip/mod.rs"]
mod gossip;
#[path = "server/ingest.rs"]
mod ingest;
#[path = "server/orphans/mod.rs"]
mod orphans;

// Jobs.
#[path = "server/jobs/mod.rs"]
mod jobs;

// Queue signals.
#[path = "server/signals/mod.rs"]
mod signals;

// The workers, and the one that users copy.
#[path = "server/lifecycle.rs"]
mod lifecycle;
#[path = "server/looks.rs"]
mod looks;
#[path = "server/quiet.rs"]
mod quiet;
#[path = "server/staging/mod.rs"]
mod staging;
#[path = "server/worker.rs"]
mod worker;

// Tables of Oban and of other roles, rights, and hostile calls.
#[path = "server/hostile.rs"]
mod hostile;
#[path = "server/install/mod.rs"]
mod install;
#[path = "server/memory.rs"]
mod memory;
#[path = "server/rights.rs"]
mod rights;
#[path = "server/schema.rs"]
mod schema;
#[path = "server/tenants.rs"]
mod tenants;

// What the database and the documents say.
#[path = "server/errors/mod.rs"]
mod errors;
#[path = "server/health/mod.rs"]
mod health;
#[path = "server/readme.rs"]
mod readme;
#[path = "server/reference.rs"]
mod reference;
#[path = "server/upgrade.rs"]
mod upgrade;

// Bugs that other systems had.
#[path = "server/known_bugs.rs"]
mod known_bugs;
#[path = "server/known_bugs_leaders.rs"]
mod known_bugs_leaders;
