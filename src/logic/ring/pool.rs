//! Which database has which ring.
//!
//! By default there are fewer rings than databases that may have the extension, because most
//! databases are quiet. A database takes a ring when something is first published or read there.
//! The database keeps the ring until its slot is freed.
//!
//! A `Pool` exists only while the lock Registry is held exclusively.

/// The owner of a ring. Zeroed memory is a free ring. The lock Registry guards the owner.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RingOwner {
    /// The generation of the database's slot that has the ring; 0 if the ring is free.
    slot_generation: u64,
    /// The generation of the ring: it tells this use of the ring from all others. 0 if the ring is
    /// free.
    generation: u64,
}

/// A ring in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId {
    /// The number of the ring.
    pub ring: usize,
    /// The generation of the ring.
    pub generation: u64,
}

/// The owners of all rings, under the lock Registry.
pub struct Pool<'a> {
    /// The owner of each ring.
    pub owners: &'a mut [RingOwner],
    /// The last generation that a ring was given; 0 before the first.
    pub last_generation: &'a mut u64,
}

impl Pool<'_> {
    /// Returns the ring of the database whose slot is in this generation; `None` if it has no ring.
    pub fn of(&self, slot_generation: u64) -> Option<RingId> {
        let ring = self
            .owners
            .iter()
            .position(|owner| slot_generation != 0 && owner.slot_generation == slot_generation)?;
        Some(RingId { ring, generation: self.owners[ring].generation })
    }

    /// Returns the ring of the database whose slot is in this generation. A database without a ring
    /// takes a free one. `None`: no ring is free.
    pub fn take(&mut self, slot_generation: u64) -> Option<RingId> {
        if let Some(own) = self.of(slot_generation) {
            return Some(own);
        }
        let ring = self.owners.iter().position(|owner| owner.slot_generation == 0)?;
        *self.last_generation += 1;
        self.owners[ring] = RingOwner { slot_generation, generation: *self.last_generation };
        Some(RingId { ring, generation: *self.last_generation })
    }

    /// Frees the ring of the database whose slot is in this generation, if there is one.
    pub fn give_back(&mut self, slot_generation: u64) {
        self.owners
            .iter_mut()
            .filter(|owner| owner.slot_generation == slot_generation)
            .for_each(|owner| *owner = RingOwner::default());
    }

    /// Returns how many rings are free.
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
            "generations rise, whatever the order of the slots"
        );
    }
}
