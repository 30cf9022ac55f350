//! The rules, without Postgres: no pgrx, no `unsafe`, no clock and no memory of their own.
//!
//! Everything here is a function of its arguments, so that it can be read, tested and property-tested without a
//! server. Shared memory arrives as slices. Times are microseconds: wall times since 2000-01-01 UTC, as in a
//! `timestamptz`, and readings of `pg::clock`, on which deadlines count. `shmem` holds the locks, `worker` and the SQL functions act.

pub mod backoff;
pub mod broadcast;
pub mod channel;
pub mod check;
pub mod floor;
pub mod gossip;
pub mod ingest;
pub mod iso8601;
pub mod jobs;
pub mod jsonb;
pub mod leadership;
pub mod lifecycle;
pub mod orphans;
pub mod outbox;
pub mod relay;
pub mod ring;
pub mod shape;
pub mod text;
pub mod wire;
