//! Which database has which ring. There are fewer rings than databases may have the extension, as most of those are
//! quiet: a database takes one when something is first published or read there, and keeps it until its slot is freed.
//!
//! A `Pool` exists only while the lock of the databases' slots is held.

/// A ring's place. Zeroed memory is one that is free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// The use of the database slot that has it; 0 for none.
    birth: u64,
    /// Tells this use of the ring from all others.
    life: u64,
}

/// A ring in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub ring: usize,
    pub life: u64,
}

pub struct Pool<'a> {
    pub places: &'a mut [Place],
    /// The last life of a ring.
    pub lives: &'a mut u64,
}

impl Pool<'_> {
    /// The ring that a use of a database slot has.
    pub fn of(&self, birth: u64) -> Option<Use> {
        let ring = self.places.iter().position(|place| birth != 0 && place.birth == birth)?;
        Some(Use { ring, life: self.places[ring].life })
    }

    /// The same, or else a free one, which it takes. `None` when none is free.
    pub fn take(&mut self, birth: u64) -> Option<Use> {
        if let Some(own) = self.of(birth) {
            return Some(own);
        }
        let ring = self.places.iter().position(|place| place.birth == 0)?;
        *self.lives += 1;
        self.places[ring] = Place { birth, life: *self.lives };
        Some(Use { ring, life: *self.lives })
    }

    /// Gives back the ring that a use of a database slot has.
    pub fn give_back(&mut self, birth: u64) {
        self.places
            .iter_mut()
            .filter(|place| place.birth == birth)
            .for_each(|place| *place = Place::default());
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.places.iter().filter(|place| place.birth == 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_taken_once_and_given_back() {
        let (mut places, mut lives) = ([Place::default(); 2], 0);
        let mut pool = Pool { places: &mut places, lives: &mut lives };
        assert_eq!((pool.of(0), pool.of(7), pool.free()), (None, None, 2));
        let seven = pool.take(7);
        assert_eq!(seven, Some(Use { ring: 0, life: 1 }));
        assert_eq!((pool.take(7), pool.of(7)), (seven, seven), "it has one already");
        assert_eq!(pool.take(3), Some(Use { ring: 1, life: 2 }));
        assert_eq!((pool.take(9), pool.free()), (None, 0));
        pool.give_back(8);
        pool.give_back(7);
        assert_eq!((pool.of(7), pool.free()), (None, 1));
        assert_eq!(
            pool.take(2),
            Some(Use { ring: 0, life: 3 }),
            "lives rise, whatever the order of the slots"
        );
    }
}
