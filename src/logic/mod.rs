//! The rules, without Postgres: no pgrx, no `unsafe`, no clock and no memory of their own.
//!
//! Each rule depends on nothing but its arguments, so that a rule can be read, tested and
//! property-tested without a server. Shared memory arrives as slices. Times are in microseconds.
//! Wall times count from 2000-01-01 UTC, as in a `timestamptz`. Deadlines count on readings of
//! `pg::clock`. `shmem` holds the locks; `worker` and the SQL functions act.

pub mod backoff;
pub mod broadcast;
pub mod channel;
pub mod check;
pub mod claimants;
pub mod counter;
pub mod enqueue;
pub mod floor;
pub mod gossip;
pub mod ids;
pub mod ingest;
pub mod iso8601;
pub mod jobs;
pub mod jsonb;
pub mod leadership;
pub mod lifecycle;
pub mod object_text;
pub mod orphans;
pub mod outbox;
pub mod relay;
pub mod repeats;
pub mod retry;
pub mod ring;
pub mod room;
pub mod shape;
pub mod signals;
pub mod staging;
pub mod takers;
pub mod text;
pub mod times;
pub mod watch;
pub mod wire;
