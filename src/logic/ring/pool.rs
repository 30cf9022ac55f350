//! Which database has which ring. There are fewer rings than databases may have the extension, as most of those are
//! quiet: a database takes one when something is first published or read there, and keeps it until its slot is freed.
//!
//! A `Pool` exists only while the lock of the databases' slots is held.

/// A ring's place. Zeroed memory is one that is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RingOwner {
    /// The use of the database slot that has it; 0 for none.
    slot_generation: u64,
    /// Tells this use of the ring from all others.
    generation: u64,
}

/// A ring in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId {
    pub ring: usize,
    pub generation: u64,
}

pub struct Pool<'a> {
    pub owners: &'a mut [RingOwner],
    /// The last life of a ring.
    pub last_generation: &'a mut u64,
}

impl Pool<'_> {
    /// The ring that a use of a database slot has.
    pub fn of(&self, slot_generation: u64) -> Option<RingId> {
        let ring = self
            .owners
            .iter()
            .position(|owner| slot_generation != 0 && owner.slot_generation == slot_generation)?;
        Some(RingId { ring, generation: self.owners[ring].generation })
    }

    /// The same, or else a free one, which it takes. `None` when none is free.
    pub fn take(&mut self, slot_generation: u64) -> Option<RingId> {
        if let Some(own) = self.of(slot_generation) {
            return Some(own);
        }
        let ring = self.owners.iter().position(|owner| owner.slot_generation == 0)?;
        *self.last_generation += 1;
        self.owners[ring] = RingOwner { slot_generation, generation: *self.last_generation };
        Some(RingId { ring, generation: *self.last_generation })
    }

    /// Gives back the ring that a use of a database slot has.
    pub fn give_back(&mut self, slot_generation: u64) {
        self.owners
            .iter_mut()
            .filter(|owner| owner.slot_generation == slot_generation)
            .for_each(|owner| *owner = RingOwner::default());
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.owners.iter().filter(|owner| owner.slot_generation == 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_taken_once_and_given_back() {
        let (mut owners, mut last_generation) = ([RingOwner::default(); 2], 0);
        let mut pool = Pool { owners: &mut owners, last_generation: &mut last_generation };
        assert_eq!((pool.of(0), pool.of(7), pool.free()), (None, None, 2));
        let seven = pool.take(7);
        assert_eq!(seven, Some(RingId { ring: 0, generation: 1 }));
        assert_eq!((pool.take(7), pool.of(7)), (seven, seven), "it has one already");
        assert_eq!(pool.take(3), Some(RingId { ring: 1, generation: 2 }));
        assert_eq!((pool.take(9), pool.free()), (None, 0));
        pool.give_back(8);
        pool.give_back(7);
        assert_eq!((pool.of(7), pool.free()), (None, 1));
        assert_eq!(
            pool.take(2),
            Some(RingId { ring: 0, generation: 3 }),
            "lives rise, whatever the order of the slots"
        );
    }
}
