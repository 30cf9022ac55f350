//! The segment of shared memory, and the tables in it under their locks.
//!
//! ```text
//! Root │ DatabaseSlot[] │ Hold[] │ Member[] │ Seat[] │ BlockUsage[] │ unannounced[] │ foreign[] │
//!      └── lock Registry ────────┘ └ lock Leaderships ┘└ lock Gossip ┘ └── lock Leaderships ──────┘
//!      │ buckets[] │ GossipEntry[] │ Block[] │ process buckets[] │ GossipProcess[] │ Suspect[] │
//!      └──────────────────────────── lock Gossip ────────────────────────────────────────┘
//!      │ Slot[] │ RingOwner[] │ Waiter[] │ RoleUsage[] │ RingHead[] │
//!      └ lock Registry ───────┘ └─── a lock Ring for each ring ─────┘
//!      │ SlotCounters[] │ polling[] │ SharedCoverage[] │ StagerSlot[] │ Alarms[] │ TakerSlot[] │
//!      └─── atomics of each database's slot, no lock ──┘ └ Stagers ───┘ └ atomics ┘ └ Takers ────┘
//!      │ Claimant[] │ RingEntry[] │ bytes[] │
//!      └ Claimants ─┘ └ a lock Ring each ───┘
//! ```
//!
//! Sizes come from settings that only a restart changes. All of the segment is plain data, for
//! which zeroed memory is an empty table. (The messages of the rings need not even be zeroed.) If a
//! process dies by SIGKILL, the server makes a crash restart and a new segment. A process that ends
//! otherwise clears up in its exit callbacks (`backend`, `worker`).
//!
//! ARCHITECTURE.md says what may run under a lock, and that no process holds two of the locks at a
//! time.
//!
//! | file | what is there |
//! | --- | --- |
//! | `segment` | the layout, and the token `Segment` that gives access |
//! | `locks` | the locks |
//! | `floor` | the file that keeps positions from going back over restarts |
//! | `workers` | the registry and the coordinator (lock Registry) |
//! | `leadership` | members and seats (lock Leaderships) |
//! | `gossip`, `polling`, `coverage` | the gossip table (lock Gossip), and what relays say of it (atomics) |
//! | `slots` | the slot of this process's database (lock Registry) |
//! | `rings` | this database's ring: publish, read, wait; the relay's side (lock Ring) |
//! | `stagers` | the stagers of all databases (lock Stagers), and their alarms (atomics) |
//! | `takers` | the sessions that wait for jobs, of which one is woken for a job (lock Takers) |
//! | `claimants` | the processes that have claimed jobs as members (lock Claimants) |
//! | `stats` | the counters of oban_stats (atomics) |
#![allow(unsafe_code)]

mod claimants;
mod coverage;
mod floor;
pub mod gossip;
mod leadership;
mod locks;
mod polling;
pub mod rings;
mod segment;
pub mod slots;
pub mod stagers;
pub mod stats;
mod takers;
mod workers;

pub use segment::{Segment, request};
