//! Takers: sessions that wait until one of their queues has a job, and claim it. One job wakes one
//! taker.
//!
//! A taker links itself into a FIFO, and then looks: it claims jobs of the queues that it named, in
//! a separate transaction. If it finds none, it sleeps. A process that has committed a job wakes the
//! first taker of the FIFO that has the queue. A woken taker is unlinked, and *owes* the queue a look.
//! It links itself again, at the end, before it looks.
//!
//! The debt ends in one of these ways:
//!
//! * The look finds the queue empty: it has claimed fewer jobs than it may.
//! * The look is full, so more jobs may be there: the taker passes the debt on, by waking the next
//!   taker of the queue. It does so for the queues of the jobs that it has claimed as well, because
//!   their debts may be those of others.
//! * The queue is paused for this taker: it passes the debt on to a taker for which the queue is not
//!   known to be paused.
//! * The taker ends otherwise: its process dies, its call is cancelled, its time is up, or its claim is
//!   rolled back. It passes on the debts of all queues of a look that has not ended.
//!
//! A debt that finds no taker is dropped. Each taker looks before it sleeps, and links itself before it
//! looks. So either a process that publishes a job finds the taker linked, or the taker sees the job.
//!
//! A taker that has found a queue paused is passed over until the queue is resumed. The resume wakes
//! a taker, and so do a retry, a rescue and the stager: whatever makes a job claimable publishes its
//! queue. A resume that comes after the snapshot of a look is remembered (`resumed`), and the taker
//! looks again.
//!
//! Claims by other programs wake no taker, and their rollbacks are not seen. The time limit of a taker
//! covers those.
//!
//! A taker may be *restricted*: row security hides rows from its role. Such a taker can't tell for others
//! that a queue is empty, so it owes nothing, and is not counted as the one taker that is woken. It is
//! woken besides, together with all other restricted takers of the queue. If its look fails, it wakes the
//! next taker as all others do, because the look has locked jobs.
//!
//! The lock Takers guards the slots. `tests` explores all interleavings of a few takers, and shows for
//! each rule that a wakeup is lost without it.

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};

use siphasher::sip128::{Hash128, SipHasher13};

use super::ids::{DatabaseOid, Process, SchemaOid};

/// The most queues of a taker: the number of bits in a `Queues`.
pub const MAX_QUEUES: usize = 32;

/// The most takers that one commit wakes for a queue. A taker that finds more jobs wakes the next one.
pub const MOST_WOKEN: u32 = 4;

/// The name of a queue as a hash, with keys that are random for each start of the server.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QueueKey(pub u64, pub u64);

/// The key of the hashes of queues. Two names with the same hash would share their takers, so no role may
/// find such names.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct QueueHashKey(u64, u64);

impl QueueHashKey {
    /// Returns a random key.
    pub fn random() -> Self {
        let random = || RandomState::new().hash_one(0);
        Self(random(), random())
    }

    /// Returns the hash of a queue's name.
    pub fn hash(&self, queue: &[u8]) -> QueueKey {
        let Hash128 { h1, h2 } = SipHasher13::new_with_keys(self.0, self.1).hash(queue);
        QueueKey(h1, h2)
    }
}

/// A set of queues of one taker, by their numbers.
pub type Queues = u32;

/// No slot, in a link of the FIFO. Zeroed memory has no links.
const NO_SLOT: u32 = 0;

/// What a taker is doing.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Activity {
    /// The slot is free.
    #[default]
    Gone = 0,
    /// It claims jobs, or has claimed some and not committed yet.
    Looks = 1,
    /// It has found no job.
    Sleeps = 2,
}

/// The slot of a taker. Each process has one slot. The lock Takers guards it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TakerSlot<const Q: usize = MAX_QUEUES> {
    /// The process; `Process::NONE` in a free slot.
    process: Process,
    database: DatabaseOid,
    /// The oid of the prefix's schema.
    schema: SchemaOid,
    activity: Activity,
    /// 1: the taker is in the FIFO. 0: it is not.
    linked: u32,
    /// The next slot of the FIFO, counted from 1; `NO_SLOT` for none.
    next: u32,
    /// The slot before in the FIFO, counted from 1; `NO_SLOT` for none.
    previous: u32,
    /// The queues for which the present look answers.
    owes: Queues,
    /// The queues for which the taker was woken since its present look began, or while it sleeps.
    woken: Queues,
    /// The queues that the last look has found paused.
    paused: Queues,
    /// 1: a queue was resumed since the present look began. 0: none was.
    resumed: u32,
    /// 1: row security may hide jobs from the taker. 0: the taker sees all jobs.
    restricted: u32,
    /// 1: the extension was dropped, so the taker has to end. 0: it was not.
    revoked: u32,
    /// How many of `keys` are used.
    count: u32,
    keys: [QueueKey; Q],
}

impl<const Q: usize> Default for TakerSlot<Q> {
    fn default() -> Self {
        Self {
            process: Process::NONE,
            database: DatabaseOid::NONE,
            schema: SchemaOid::NONE,
            activity: Activity::Gone,
            linked: 0,
            next: NO_SLOT,
            previous: NO_SLOT,
            owes: 0,
            woken: 0,
            paused: 0,
            resumed: 0,
            restricted: 0,
            revoked: 0,
            count: 0,
            keys: [QueueKey::default(); Q],
        }
    }
}

impl<const Q: usize> TakerSlot<Q> {
    /// Returns the number of a queue as a set; an empty set if the taker does not have the queue.
    fn bit(&self, key: QueueKey) -> Queues {
        let keys = self.keys.iter().take(self.count as usize);
        keys.zip(0..).find(|(own, _)| **own == key).map_or(0, |(_, number)| 1 << number)
    }

    /// Returns the set of all queues of the taker.
    fn all(&self) -> Queues {
        if self.count as usize >= 32 { u32::MAX } else { (1 << self.count) - 1 }
    }

    /// Returns whether the taker was woken in place of another one. A restricted taker never is. (The jobs
    /// that its look has locked are hidden from others all the same, until the look has ended.)
    fn owes_others(&self) -> bool {
        self.restricted == 0 || !rules::restricted_takers_are_woken_besides()
    }

    /// Returns whether the taker was woken and has not begun to look.
    pub fn is_woken(&self) -> bool {
        self.woken != 0 || self.revoked != 0
    }
}

/// The FIFO, with its two ends as numbers of slots counted from 1; `NO_SLOT` for none. The lock Takers
/// guards it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fifo {
    first: u32,
    last: u32,
    /// How many slots are in use.
    arrived: u32,
    /// How many of these are of restricted takers.
    restricted: u32,
}

impl Fifo {
    /// Returns how many takers there are.
    pub fn arrived(&self) -> u32 {
        self.arrived
    }
}

/// How many processes `Wakes` can name.
const MAX_WAKES: usize = 64;

/// The process numbers of takers to wake, after the lock is released. This is no `Vec`, as nothing may
/// be allocated after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wakes {
    procnos: [i32; MAX_WAKES],
    count: usize,
    /// There are more than fit: all takers that are woken have to be woken (`Takers::woken`).
    pub overflow: bool,
}

impl Default for Wakes {
    fn default() -> Self {
        Self { procnos: [-1; MAX_WAKES], count: 0, overflow: false }
    }
}

impl Wakes {
    /// Returns the processes.
    pub fn procnos(&self) -> &[i32] {
        self.procnos.get(..self.count).unwrap_or_default()
    }

    fn add(&mut self, procno: i32) {
        match self.procnos.get_mut(self.count) {
            Some(place) => (*place, self.count) = (procno, self.count + 1),
            None => self.overflow = true,
        }
    }
}

/// What a taker does after a look that has found no job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It looks again, because it was woken meanwhile.
    Look,
    /// It sleeps.
    Sleep,
}

/// The result of a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// How many jobs were claimed.
    pub jobs: u64,
    /// Whether it has claimed as many jobs as it may, so that more may be there.
    pub is_full: bool,
    /// The queues of the jobs.
    pub of: Queues,
    /// The queues that were paused for the taker.
    pub paused: Queues,
}

/// Queues of prefixes, as many as fit. A queue without room counts as new each time.
struct KnownQueues {
    queues: [(SchemaOid, QueueKey); MAX_KNOWN],
    count: usize,
}

/// The most queues that are known: half of the places, so that a search is short.
const MAX_KNOWN: usize = 512;

impl Default for KnownQueues {
    fn default() -> Self {
        Self { queues: [(SchemaOid::NONE, QueueKey(0, 0)); MAX_KNOWN], count: 0 }
    }
}

impl KnownQueues {
    /// Returns whether the queue is new, and remembers it.
    fn is_new(&mut self, schema: SchemaOid, key: QueueKey) -> bool {
        let mut at = (key.0 ^ u64::from(schema.0)) as usize % MAX_KNOWN;
        while !self.queues[at].0.is_none() {
            if self.queues[at] == (schema, key) {
                return false;
            }
            at = (at + 1) % MAX_KNOWN;
        }
        if self.count < MAX_KNOWN / 2 {
            (self.queues[at], self.count) = ((schema, key), self.count + 1);
        }
        true
    }
}

/// All takers. The lock Takers is held exclusively as long as this struct exists.
pub struct Takers<'a, const Q: usize = MAX_QUEUES> {
    pub fifo: &'a mut Fifo,
    pub slots: &'a mut [TakerSlot<Q>],
}

impl<const Q: usize> Takers<'_, Q> {
    /// Takes the slot of a process for one wait, with at most `Q` queues. `begin_look`
    /// follows. A slot that is in use belongs to an earlier wait of the process, and is given back first.
    pub fn arrive(
        &mut self,
        slot: usize,
        process: Process,
        database: DatabaseOid,
        schema: SchemaOid,
        queues: &[QueueKey],
    ) -> Wakes {
        let wakes = self.leave(slot);
        let mut taker =
            TakerSlot { process, database, schema, activity: Activity::Looks, ..TakerSlot::default() };
        for (key, queue) in taker.keys.iter_mut().zip(queues) {
            *key = *queue;
        }
        taker.count = queues.len().min(Q) as u32;
        self.slots[slot] = taker;
        self.fifo.arrived += 1;
        wakes
    }

    /// Begins a look: links the taker if it is not linked, and makes it answer for the queues for which
    /// it was woken. The snapshot of the claim is taken after this. `restricted`: row security hides rows
    /// from the taker. False: the taker has to end, because the extension was dropped.
    pub fn begin_look(&mut self, slot: usize, restricted: bool) -> bool {
        let taker = &mut self.slots[slot];
        self.fifo.restricted -= taker.restricted;
        taker.restricted = u32::from(restricted);
        self.fifo.restricted += taker.restricted;
        taker.activity = Activity::Looks;
        taker.owes |= std::mem::take(&mut taker.woken);
        (taker.paused, taker.resumed) = (0, 0);
        let goes_on = taker.revoked == 0;
        self.link(slot);
        goes_on
    }

    /// Ends a look that has found no job. `paused`: the queues that were paused for the taker.
    pub fn found_nothing(&mut self, slot: usize, paused: Queues) -> (Next, Wakes) {
        let taker = &mut self.slots[slot];
        if taker.is_woken() || (rules::resume_during_a_look() && taker.resumed != 0) {
            return (Next::Look, Wakes::default()); // it still answers for what it owes
        }
        (taker.activity, taker.paused) = (Activity::Sleeps, paused);
        let owed = std::mem::take(&mut taker.owes) & paused;
        let mut wakes = Wakes::default();
        if rules::paused_is_passed_on() && taker.owes_others() {
            self.pass_on(slot, owed, &mut wakes);
        }
        (Next::Sleep, wakes)
    }

    /// Ends a look whose claim is committed, and frees the slot.
    pub fn took(&mut self, slot: usize, claimed: Claimed) -> Wakes {
        let taker = &self.slots[slot];
        let seen = if claimed.is_full { taker.owes | claimed.of } else { taker.owes & claimed.paused };
        let passes_on = rules::success_wakes_the_next() && taker.owes_others();
        let owed = if passes_on { seen | taker.woken } else { 0 };
        self.free(slot, owed)
    }

    /// Frees the slot of a taker that ends without a job: its time is up, its call is cancelled, its
    /// claim is rolled back, or its process exits. Does nothing for a slot that is free.
    pub fn leave(&mut self, slot: usize) -> Wakes {
        let taker = &self.slots[slot];
        let owed = match taker.activity {
            Activity::Gone => return Wakes::default(),
            Activity::Looks if rules::a_look_that_fails_is_passed_on() => taker.all(),
            Activity::Looks => 0,
            Activity::Sleeps if rules::a_sleeper_that_leaves_passes_on() && taker.owes_others() => {
                taker.woken
            }
            Activity::Sleeps => 0,
        };
        self.free(slot, owed)
    }

    /// Wakes takers of a queue of which `jobs` jobs were committed, at least 1.
    pub fn publish(&mut self, database: DatabaseOid, schema: SchemaOid, queue: QueueKey, jobs: u32) -> Wakes {
        let mut wakes = Wakes::default();
        for _ in 0..jobs.min(MOST_WOKEN) {
            if !self.wake_next(database, schema, queue, &mut wakes) {
                break;
            }
        }
        wakes
    }

    /// Does what `resume` does, for all queues of all prefixes of a database.
    pub fn resume_all(&mut self, database: DatabaseOid) -> Wakes {
        let mut wakes = Wakes::default();
        self.resume_each(|taker| taker.database == database, None, &mut wakes);
        wakes
    }

    /// Wakes all takers of a database, which have to end, because the extension was dropped.
    pub fn revoke(&mut self, database: DatabaseOid) -> Wakes {
        let mut wakes = Wakes::default();
        let is_of = |taker: &TakerSlot<Q>| taker.activity != Activity::Gone && taker.database == database;
        for taker in self.slots.iter_mut().filter(|taker| is_of(taker)) {
            taker.revoked = 1;
            wakes.add(taker.process.procno);
        }
        wakes
    }

    /// Returns the process number of the taker in a slot that was woken and has not begun to look. `None`:
    /// there is no such taker.
    pub fn woken(&self, slot: usize) -> Option<i32> {
        self.slots.get(slot).filter(|taker| taker.is_woken()).map(|taker| taker.process.procno)
    }

    /// Makes takers look at a queue again that was resumed; `None` for all queues of a prefix.
    pub fn resume(&mut self, database: DatabaseOid, schema: SchemaOid, queue: Option<QueueKey>) -> Wakes {
        let mut wakes = Wakes::default();
        self.resume_each(|taker| (taker.database, taker.schema) == (database, schema), queue, &mut wakes);
        if let Some(key) = queue {
            self.wake_next(database, schema, key, &mut wakes);
        }
        wakes
    }

    /// Lets the takers of which `concerns` is true forget that a queue was paused. With `None` for all of
    /// their queues, and then it wakes a taker for each of these queues.
    fn resume_each(
        &mut self,
        concerns: impl Fn(&TakerSlot<Q>) -> bool,
        queue: Option<QueueKey>,
        wakes: &mut Wakes,
    ) {
        for taker in self.slots.iter_mut().filter(|taker| taker.activity != Activity::Gone) {
            let queues = if concerns(taker) { queue.map_or(taker.all(), |key| taker.bit(key)) } else { 0 };
            if queues != 0 {
                taker.paused &= !queues;
                taker.resumed = u32::from(taker.activity == Activity::Looks);
            }
        }
        let mut known = KnownQueues::default();
        for slot in 0..if queue.is_none() { self.slots.len() } else { 0 } {
            let TakerSlot { schema, keys, count, .. } = self.slots[slot];
            if concerns(&self.slots[slot]) {
                let new = (0..count).filter(|n| known.is_new(schema, keys[*n as usize]));
                let new = new.fold(0, |all, number| all | 1 << number);
                self.pass_on(slot, new, wakes);
            }
        }
    }

    /// Wakes the next taker of each of these queues of the taker in `slot`.
    fn pass_on(&mut self, slot: usize, queues: Queues, wakes: &mut Wakes) {
        let TakerSlot { database, schema, keys, .. } = self.slots[slot];
        for (number, key) in keys.into_iter().enumerate() {
            if queues & (1 << number) != 0 {
                self.wake_next(database, schema, key, wakes);
            }
        }
    }

    /// Wakes the first taker of the FIFO that has the queue and has not found it paused, and all restricted
    /// takers of which this is true. False: no taker is left that is not restricted.
    fn wake_next(
        &mut self,
        database: DatabaseOid,
        schema: SchemaOid,
        queue: QueueKey,
        wakes: &mut Wakes,
    ) -> bool {
        let (mut at, mut found) = (self.fifo.first, false);
        // The walk goes to the end only where there are restricted takers.
        while at != NO_SLOT && (!found || self.fifo.restricted > 0) {
            let slot = at as usize - 1;
            let taker = &mut self.slots[slot];
            at = taker.next;
            let restricted = taker.restricted != 0 && rules::restricted_takers_are_woken_besides();
            let is_of_prefix = (taker.database, taker.schema) == (database, schema);
            let bit = if is_of_prefix { taker.bit(queue) } else { 0 };
            if bit & !taker.paused != 0 && (restricted || !found) {
                found |= !restricted;
                taker.woken |= bit;
                wakes.add(taker.process.procno);
                self.unlink(slot);
            }
        }
        found
    }

    fn free(&mut self, slot: usize, owed: Queues) -> Wakes {
        let mut wakes = Wakes::default();
        self.unlink(slot);
        self.pass_on(slot, owed, &mut wakes);
        self.fifo.arrived -= 1;
        self.fifo.restricted -= self.slots[slot].restricted;
        self.slots[slot] = TakerSlot::default();
        wakes
    }

    fn link(&mut self, slot: usize) {
        if self.slots[slot].linked != 0 {
            return;
        }
        let last = self.fifo.last;
        (self.slots[slot].linked, self.slots[slot].previous) = (1, last);
        self.fifo.last = slot as u32 + 1;
        match last {
            NO_SLOT => self.fifo.first = self.fifo.last,
            last => self.slots[last as usize - 1].next = self.fifo.last,
        }
    }

    fn unlink(&mut self, slot: usize) {
        let TakerSlot { linked, next, previous, .. } = self.slots[slot];
        if linked == 0 {
            return;
        }
        match previous {
            NO_SLOT => self.fifo.first = next,
            previous => self.slots[previous as usize - 1].next = next,
        }
        match next {
            NO_SLOT => self.fifo.last = previous,
            next => self.slots[next as usize - 1].previous = previous,
        }
        let taker = &mut self.slots[slot];
        (taker.linked, taker.next, taker.previous) = (0, NO_SLOT, NO_SLOT);
    }
}

/// The rules that tests leave out one by one. Outside of tests each function returns true.
mod rules {
    macro_rules! rules {
        ($($name:ident),*) => { $(
            #[cfg(not(test))]
            pub const fn $name() -> bool { true }
            #[cfg(test)]
            pub fn $name() -> bool { super::tests::holds(stringify!($name)) }
        )* };
    }
    rules!(
        resume_during_a_look,
        paused_is_passed_on,
        success_wakes_the_next,
        a_look_that_fails_is_passed_on,
        a_sleeper_that_leaves_passes_on,
        restricted_takers_are_woken_besides
    );
}
