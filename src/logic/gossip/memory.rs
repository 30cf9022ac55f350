//! What the server remembers of processes that gossip or have gossiped: since when one is gone.
//!
//! A process is a node and the uuid that its states have (or that they have none), in a schema. It lives
//! while an entry of it is in the table. It has ended when the last one is taken out: when somebody deletes
//! it, when another process takes its place, or when it is found to have expired. That is the time which
//! counts, not the deadline that it had: a server that was stopped meanwhile has heard nobody. A process
//! whose put finds no room is heard all the same.
//!
//! Memory is bounded. Where there is no room, what has ended is forgotten, first what is of the same schema
//! and the same way in; a process that is forgotten is one that was never heard of, about which nothing is
//! concluded.

use std::hash::Hasher;

use super::{Fnv, Key};

/// How many are looked at for one to forget.
const LOOKED_AT: usize = 256;

/// Of which process an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub database: u32,
    pub schema: u32,
    pub hash: u64,
}

impl Identity {
    /// The process that puts this key with this uuid (in the server's encoding).
    pub fn of(key: &Key<'_>, uuid: Option<&[u8]>) -> Self {
        Self { database: key.database, schema: key.schema, hash: hash(key.node, uuid) }
    }
}

/// The hash of a node and a uuid. (Both sides of a comparison are of one schema. A role that can make two hashes equal
/// there can as well gossip under the other node's name.)
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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    hash: u64,
    /// A clock reading: when it was heard last.
    heard_at: i64,
    /// When the last of its entries ended; or a deadline, before which it lives without any.
    until: i64,
    database: u32,
    schema: u32,
    /// The next of its bucket, or of the free list.
    next: u32,
    /// How many entries are of it.
    live: u32,
    /// Not 0: it was heard by NOTIFY, ever.
    foreign: u32,
    /// 0: free.
    used: u32,
}

impl Process {
    fn is_of(&self, identity: &Identity) -> bool {
        (self.hash, self.database, self.schema) == (identity.hash, identity.database, identity.schema)
    }

    /// How many entries are of it.
    #[cfg(test)]
    pub fn entries(&self) -> usize {
        self.live as usize
    }

    fn may_be_forgotten(&self) -> bool {
        self.used != 0 && self.live == 0
    }
}

/// Zeroed memory is an empty one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessesHead {
    free: u32,
    pub touched: u32,
    /// Where to look for one to forget.
    hand: u32,
    unused: u32,
}

/// The caller holds the lock Gossip exclusively as long as this value lives. As in the gossip table, 0 means none.
pub struct Processes<'a> {
    pub head: &'a mut ProcessesHead,
    pub buckets: &'a mut [u32],
    pub processes: &'a mut [Process],
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub hash: u64,
    pub heard_at: i64,
    /// When it ended. `None`: it lives.
    pub ended_at: Option<i64>,
    pub foreign: bool,
}

impl Processes<'_> {
    /// Another entry is of this process: its link, 0 when there is no room to remember it.
    pub fn attach(&mut self, identity: &Identity, now: i64, foreign: bool) -> u32 {
        let link = self.heard(identity, now, now, foreign);
        if let Some(process) = self.at(link) {
            process.live += 1;
        }
        link
    }

    /// A process has put an entry again.
    pub fn again(&mut self, link: u32, now: i64, foreign: bool) {
        if let Some(process) = self.at(link) {
            (process.heard_at, process.until) = (now, now);
            process.foreign |= u32::from(foreign);
        }
    }

    /// A process has put what did not get into the table. It lives as long as that would have.
    pub fn refused(&mut self, identity: &Identity, now: i64, expires_at: i64, foreign: bool) {
        self.heard(identity, now, expires_at, foreign);
    }

    /// An entry of a process is taken out at `now`. `deleted`: not because it has expired.
    pub fn detach(&mut self, link: u32, now: i64, deleted: bool) {
        if let Some(process) = self.at(link) {
            process.live = process.live.saturating_sub(1);
            if process.live == 0 {
                process.until = if deleted { now } else { process.until.max(now) };
            }
        }
    }

    /// Whether a link is of this process.
    pub fn is(&self, link: u32, identity: &Identity) -> bool {
        link != 0 && self.processes[link as usize - 1].is_of(identity)
    }

    /// Forgets those that were heard last before that clock reading and have no entry.
    pub fn forget(&mut self, before: i64, wanted: impl Fn(u32, u32) -> bool) {
        for index in 0..self.head.touched as usize {
            let process = &self.processes[index];
            let wanted = wanted(process.database, process.schema) && process.heard_at < before;
            if process.may_be_forgotten() && wanted {
                self.remove(index);
            }
        }
    }

    fn at(&mut self, link: u32) -> Option<&mut Process> {
        self.processes.get_mut((link as usize).checked_sub(1)?)
    }

    fn heard(&mut self, identity: &Identity, now: i64, until: i64, foreign: bool) -> u32 {
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

    /// A free one, linked into its bucket; 0 if there is none.
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
        *process = Process { hash, database, schema, next, used: 1, ..Process::default() };
        if link == self.head.free {
            self.head.free = free;
        }
        self.buckets[bucket] = link;
        link
    }

    /// Forgets one that has ended, to make room: of the same schema and way in if there is one near by, else
    /// the one that was heard the longest time ago.
    fn forget_one(&mut self, identity: &Identity, foreign: bool) {
        let (len, start) = (self.processes.len(), self.head.hand as usize);
        let looked_at = LOOKED_AT.min(len);
        let of_other = |p: &Process| {
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
        self.processes[index] = Process { next: self.head.free, ..Process::default() };
        self.head.free = link;
    }
}

/// What is remembered at `now` of the processes of a schema. `processes` are those that were ever used, or a
/// part of them.
pub fn remembered(
    processes: &[Process],
    database: u32,
    schema: u32,
    now: i64,
) -> impl Iterator<Item = Remembered> {
    let own = move |p: &&Process| p.used != 0 && (p.database, p.schema) == (database, schema);
    processes.iter().filter(own).map(move |p| Remembered {
        hash: p.hash,
        heard_at: p.heard_at,
        ended_at: (p.live == 0 && p.until <= now).then_some(p.until),
        foreign: p.foreign != 0,
    })
}
