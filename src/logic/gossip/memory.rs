//! What the server remembers of processes that gossip or have gossiped: whether a process has
//! ended, and since when.
//!
//! A process is a node and a uuid, in a schema. The uuid comes from the states of the process; a
//! process without a uuid is another one. A process lives while it has an entry in the table. A
//! process has ended when its last entry is removed: the entry is deleted, another process replaces
//! it, or it is found to have expired. The time of the removal counts, not the entry's deadline,
//! because a server that was stopped meanwhile has heard nobody. A put that finds no room is a sign
//! of life nevertheless.
//!
//! Memory is bounded. If there is no room, a process that has ended is forgotten, preferably one of
//! the same schema and the same source (local or foreign). A process that is forgotten counts as
//! never heard, and nothing is concluded about it.

use std::hash::Hasher;

use super::super::ids::{DatabaseOid, SchemaOid};
use super::super::times::ClockTime;
use super::{Fnv, Key};

/// How many processes are looked at in order to forget one.
const LOOKED_AT: usize = 256;

/// The process that puts an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub database: DatabaseOid,
    pub schema: SchemaOid,
    /// The hash of node and uuid, as `hash` returns it.
    pub hash: u64,
}

impl Identity {
    /// Returns the process that puts this key with this uuid. The uuid is in the server's encoding.
    pub fn of(key: &Key<'_>, uuid: Option<&[u8]>) -> Self {
        Self { database: key.database, schema: key.schema, hash: hash(key.node, uuid) }
    }
}

/// Returns the hash of a node and a uuid. (Both sides of a comparison are of one schema. A role
/// that can make two hashes equal in a schema can as well gossip under the other node's name.)
pub fn hash(node: &str, uuid: Option<&[u8]>) -> u64 {
    let mut fnv = Fnv::new();
    fnv.write(node.as_bytes());
    fnv.write_u8(0xff);
    if let Some(uuid) = uuid {
        fnv.write_u8(1);
        fnv.write(uuid);
    }
    fnv.finish()
}

/// A process in shared memory, guarded by the lock Gossip. A zeroed item is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GossipProcess {
    /// The hash of node and uuid, as `hash` returns it.
    hash: u64,
    /// The clock reading at the last put of the process, in microseconds.
    heard_at: ClockTime,
    /// A clock reading in microseconds, which counts only while the process has no entry. If it has
    /// passed, the process ended at this time. If it lies ahead, it is a deadline, before which the
    /// process lives without an entry, because the process has put one that was refused or ignored.
    until: ClockTime,
    /// The oid of the database; 0 if the item is free.
    database: DatabaseOid,
    /// The oid of the schema; 0 if the item is free.
    schema: SchemaOid,
    /// The link of the next process of the bucket, or of the free list; 0 for the last one.
    next: u32,
    /// How many entries in the table the process has.
    live: u32,
    /// 1 if a put of the process was ever ingested from NOTIFY, else 0.
    foreign: u32,
    /// 1 if the item is in use, 0 if it is free.
    used: u32,
}

impl GossipProcess {
    fn is_of(&self, identity: &Identity) -> bool {
        (self.hash, self.database, self.schema) == (identity.hash, identity.database, identity.schema)
    }

    /// Returns how many entries in the table the process has.
    #[cfg(test)]
    pub fn entries(&self) -> usize {
        self.live as usize
    }

    /// Returns whether this is a process without an entry.
    fn may_be_forgotten(&self) -> bool {
        self.used != 0 && self.live == 0
    }
}

/// The head of the table of processes, in shared memory, guarded by the lock Gossip. Zeroed memory
/// is an empty table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessesHead {
    /// The link of the first free item below `touched`; 0 if no such item is free.
    free: u32,
    /// How many items were ever used. Memory above this number is free and was never written.
    pub touched: u32,
    /// The index at which the next search for a process to forget begins.
    hand: u32,
    /// Padding.
    unused: u32,
}

/// The table of processes. The caller holds the lock Gossip exclusively as long as this value
/// lives. As in the gossip table, links count from 1, and 0 means none.
pub struct Processes<'a> {
    pub head: &'a mut ProcessesHead,
    pub buckets: &'a mut [u32],
    pub processes: &'a mut [GossipProcess],
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The hash of node and uuid, as `hash` returns it.
    pub hash: u64,
    /// The clock reading at the last put of the process.
    pub heard_at: ClockTime,
    /// The clock reading at which the process ended. `None`: the process lives.
    pub ended_at: Option<ClockTime>,
    /// Whether a put of the process was ever ingested from NOTIFY.
    pub foreign: bool,
}

impl Processes<'_> {
    /// Counts one more entry of this process. Returns the link of the process, or 0 if there is no
    /// room to remember it.
    pub fn attach(&mut self, identity: &Identity, now: ClockTime, foreign: bool) -> u32 {
        let link = self.heard(identity, now, now, foreign);
        if let Some(process) = self.at(link) {
            process.live += 1;
        }
        link
    }

    /// Notes that a process has put an entry again that was its own already. The link 0 is ignored.
    pub fn again(&mut self, link: u32, now: ClockTime, foreign: bool) {
        if let Some(process) = self.at(link) {
            (process.heard_at, process.until) = (now, now);
            process.foreign |= u32::from(foreign);
        }
    }

    /// Notes a put that did not get into the table. The process lives at least as long as the entry
    /// would have lived.
    pub fn refused(&mut self, identity: &Identity, now: ClockTime, expires_at: ClockTime, foreign: bool) {
        self.heard(identity, now, expires_at, foreign);
    }

    /// Notes that an entry of a process is removed at `now`. `deleted` is false if the entry has
    /// expired. The link 0 is ignored.
    pub fn detach(&mut self, link: u32, now: ClockTime, deleted: bool) {
        if let Some(process) = self.at(link) {
            process.live = process.live.saturating_sub(1);
            if process.live == 0 {
                process.until = if deleted { now } else { process.until.max(now) };
            }
        }
    }

    /// Returns whether a link is the link of this process.
    pub fn is(&self, link: u32, identity: &Identity) -> bool {
        link != 0 && self.processes[link as usize - 1].is_of(identity)
    }

    /// Forgets the processes that were last heard before the clock reading `before` and have no
    /// entry, if `wanted` returns true for the oids of their database and schema.
    pub fn forget(&mut self, before: ClockTime, wanted: impl Fn(DatabaseOid, SchemaOid) -> bool) {
        for index in 0..self.head.touched as usize {
            let process = &self.processes[index];
            let wanted = wanted(process.database, process.schema) && process.heard_at < before;
            if process.may_be_forgotten() && wanted {
                self.remove(index);
            }
        }
    }

    /// Returns the process of a link, or `None` for 0.
    fn at(&mut self, link: u32) -> Option<&mut GossipProcess> {
        self.processes.get_mut((link as usize).checked_sub(1)?)
    }

    /// Notes a put of a process at `now`. The process lives at least until `until`. Returns the
    /// link of the process, or 0 if there is no room to remember it.
    fn heard(&mut self, identity: &Identity, now: ClockTime, until: ClockTime, foreign: bool) -> u32 {
        let mut link = self.find(identity);
        if link == 0 {
            link = self.take(identity, foreign);
        }
        if let Some(process) = self.at(link) {
            process.heard_at = now;
            process.until = process.until.max(until);
            process.foreign |= u32::from(foreign);
        }
        link
    }

    /// Returns the link of a process, or 0 if the process is not remembered.
    fn find(&self, identity: &Identity) -> u32 {
        let mut link = self.buckets[self.bucket(identity.hash)];
        while link != 0 && !self.is(link, identity) {
            link = self.processes[link as usize - 1].next;
        }
        link
    }

    fn bucket(&self, hash: u64) -> usize {
        (hash % self.buckets.len() as u64) as usize
    }

    /// Returns the link of a free item, which is linked into the bucket of this process. Forgets
    /// another process if that is necessary. 0: there is no room.
    fn take(&mut self, identity: &Identity, foreign: bool) -> u32 {
        if self.head.free == 0 && self.head.touched as usize >= self.processes.len() {
            self.forget_one(identity, foreign);
        }
        let link = match self.head.free {
            0 if (self.head.touched as usize) < self.processes.len() => {
                self.head.touched += 1;
                self.head.touched
            }
            free => free,
        };
        let bucket = self.bucket(identity.hash);
        let next = self.buckets[bucket];
        let Some(process) = self.at(link) else { return 0 };
        let free = process.next;
        let Identity { database, schema, hash } = *identity;
        *process = GossipProcess { hash, database, schema, next, used: 1, ..GossipProcess::default() };
        if link == self.head.free {
            self.head.free = free;
        }
        self.buckets[bucket] = link;
        link
    }

    /// Forgets a process that has no entry, to make room. Looks at the next `LOOKED_AT` processes
    /// only. A process of the same schema and source is preferred, then the one that was heard the
    /// longest time ago. Forgets nothing if each of them has an entry.
    fn forget_one(&mut self, identity: &Identity, foreign: bool) {
        let (len, start) = (self.processes.len(), self.head.hand as usize);
        let looked_at = LOOKED_AT.min(len);
        let of_other = |p: &GossipProcess| {
            (p.database, p.schema, p.foreign != 0) != (identity.database, identity.schema, foreign)
        };
        let near = (start..start + looked_at).map(|at| at % len);
        let endable = near.filter(|at| self.processes[*at].may_be_forgotten());
        let oldest = endable.min_by_key(|at| (of_other(&self.processes[*at]), self.processes[*at].heard_at));
        self.head.hand = ((start + looked_at) % len) as u32;
        if let Some(index) = oldest {
            self.remove(index);
        }
    }

    /// Frees the item at `index`.
    fn remove(&mut self, index: usize) {
        let bucket = self.bucket(self.processes[index].hash);
        let (link, next) = (index as u32 + 1, self.processes[index].next);
        if self.buckets[bucket] == link {
            self.buckets[bucket] = next;
        } else {
            let mut at = self.buckets[bucket];
            while at != 0 {
                let before = &mut self.processes[at as usize - 1];
                if before.next == link {
                    before.next = next;
                    break;
                }
                at = before.next;
            }
        }
        self.processes[index] = GossipProcess { next: self.head.free, ..GossipProcess::default() };
        self.head.free = link;
    }
}

/// Returns what is remembered at `now` of the processes of a schema. `processes` are the items that
/// were ever used, or a part of them.
pub fn remembered(
    processes: &[GossipProcess],
    database: DatabaseOid,
    schema: SchemaOid,
    now: ClockTime,
) -> impl Iterator<Item = Remembered> {
    let own = move |p: &&GossipProcess| p.used != 0 && (p.database, p.schema) == (database, schema);
    processes.iter().filter(own).map(move |p| Remembered {
        hash: p.hash,
        heard_at: p.heard_at,
        ended_at: (p.live == 0 && p.until <= now).then_some(p.until),
        foreign: p.foreign != 0,
    })
}
