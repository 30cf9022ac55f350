//! Real servers, real clients: commit, workers, failover, restart. Each test has a server of its own.

mod support;

#[path = "server/broadcast.rs"]
mod broadcast;
#[path = "server/bus/mod.rs"]
mod bus;
#[path = "server/candidates.rs"]
mod candidates;
#[path = "server/clock.rs"]
mod clock;
#[path = "server/drivers.rs"]
mod drivers;
#[path = "server/encodings.rs"]
mod encodings;
#[path = "server/errors/mod.rs"]
mod errors;
#[path = "server/fence.rs"]
mod fence;
#[path = "server/foreign/mod.rs"]
mod foreign;
#[path = "server/gossip/mod.rs"]
mod gossip;
#[path = "server/health/mod.rs"]
mod health;
#[path = "server/hostile.rs"]
mod hostile;
#[path = "server/ingest.rs"]
mod ingest;
#[path = "server/install/mod.rs"]
mod install;
#[path = "server/known_bugs.rs"]
mod known_bugs;
#[path = "server/known_bugs_leaders.rs"]
mod known_bugs_leaders;
#[path = "server/leadership.rs"]
mod leadership;
#[path = "server/leases.rs"]
mod leases;
#[path = "server/lifecycle.rs"]
mod lifecycle;
#[path = "server/looks.rs"]
mod looks;
#[path = "server/memory.rs"]
mod memory;
#[path = "server/notify.rs"]
mod notify;
#[path = "server/orphans/mod.rs"]
mod orphans;
#[path = "server/peers/mod.rs"]
mod peers;
#[path = "server/pooler.rs"]
mod pooler;
#[path = "server/quiet.rs"]
mod quiet;
#[path = "server/readme.rs"]
mod readme;
#[path = "server/reference.rs"]
mod reference;
#[path = "server/renames.rs"]
mod renames;
#[path = "server/rights.rs"]
mod rights;
#[path = "server/rings.rs"]
mod rings;
#[path = "server/schema.rs"]
mod schema;
#[path = "server/schemas.rs"]
mod schemas;
#[path = "server/splitbrain.rs"]
mod splitbrain;
#[path = "server/strangers/mod.rs"]
mod strangers;
#[path = "server/tenants.rs"]
mod tenants;
#[path = "server/transactions.rs"]
mod transactions;
#[path = "server/upgrade.rs"]
mod upgrade;
#[path = "server/wakeups.rs"]
mod wakeups;
#[path = "server/worker.rs"]
mod worker;
