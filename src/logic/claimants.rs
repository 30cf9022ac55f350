//! Processes that have claimed jobs while they were members. Their jobs are orphans once their membership
//! has ended, also if they never gossip.
//!
//! A *claimant* is a process, by its node and uuid, together with the member that stood for the node when
//! the process claimed jobs. Shared memory has the time of the first and of the last claim. So the claimant
//! of a job is one of that process whose claims began before the attempt, and ended after it.
//!
//! A claimant has ended when its member is gone, or when the member's lease is over. The search for orphans
//! finds that out, and notes when it has. So a job is an orphan a grace after the first such search.
//!
//! A process may join again, with another member, and go on with its jobs. So the end of one member says
//! nothing while the process has another claimant that lives, or while a member of the node lives that may be
//! the same process. A live member that has claimed with another uuid is another process.

use super::gossip::memory;
use super::ids::{DatabaseOid, MemberId, SchemaOid};
use super::times::{ClockTime, WallTime};

/// The most claimants of one member: a process has one uuid.
const MAX_OF_MEMBER: usize = 4;

/// How many places a group has. The member selects the group.
const PLACES: usize = 8;

/// A node and a uuid, as hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessHash {
    /// The hash of the node.
    pub node: u64,
    /// The hash of node and uuid. Equal to `node`: there is no uuid.
    pub process: u64,
}

impl ProcessHash {
    /// `uuid` is in the server's encoding.
    pub fn of(node: &str, uuid: Option<&[u8]>) -> Self {
        Self { node: memory::hash(node, None), process: memory::hash(node, uuid) }
    }
}

/// A claimant. The lock Claimants guards it. A zeroed claimant is a free place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claimant {
    database: DatabaseOid,
    schema: SchemaOid,
    node: u64,
    process: u64,
    /// The member that stood for the node; `NONE` in a free place.
    member: MemberId,
    /// The wall time of the first claim, which is also the `attempted_at` of the jobs.
    first: WallTime,
    /// The wall time of the last claim.
    last: WallTime,
    /// The clock reading at which the member was found to be gone; 0: it was not.
    ended_at: ClockTime,
}

/// All claimants. The lock Claimants is held exclusively as long as this value exists.
pub struct Claimants<'a>(pub &'a mut [Claimant]);

impl Claimants<'_> {
    /// Notes a claim. False: there is no room, and places of members that are gone have to be found
    /// (`note_ends`) before another attempt.
    pub fn note_claim(
        &mut self,
        (database, schema): (DatabaseOid, SchemaOid),
        hash: ProcessHash,
        member: MemberId,
        at: WallTime,
    ) -> bool {
        let group = self.group_of(member);
        let is_own = |c: &Claimant| c.member == member && (c.database, c.schema) == (database, schema);
        if let Some(known) = group.iter_mut().find(|c| is_own(c) && c.process == hash.process) {
            (known.first, known.last) = (known.first.min(at), known.last.max(at));
            return true;
        }
        let claimant = Claimant {
            database,
            schema,
            node: hash.node,
            process: hash.process,
            member,
            first: at,
            last: at,
            ended_at: ClockTime::ZERO,
        };
        if group.iter().filter(|c| c.member == member).count() >= MAX_OF_MEMBER {
            let oldest = group.iter_mut().filter(|c| c.member == member).min_by_key(|c| c.last);
            return oldest.map(|oldest| *oldest = claimant).is_some();
        }
        // Of those that have ended, the one that ended first makes room.
        let place = group.iter_mut().filter(|c| c.member.is_none() || c.ended_at != ClockTime::ZERO);
        let place = place.min_by_key(|c| if c.member.is_none() { ClockTime::ZERO } else { c.ended_at });
        place.map(|place| *place = claimant).is_some()
    }

    /// Returns the places for the claimants of a member. Ids of members rise by one, so groups fill evenly.
    fn group_of(&mut self, member: MemberId) -> &mut [Claimant] {
        let groups = (self.0.len() / PLACES).max(1);
        let first = member.0 as usize % groups * PLACES;
        let end = (first + PLACES).min(self.0.len());
        &mut self.0[first..end]
    }

    /// Notes which claimants have ended by `now`. `is_live` says whether a member lives.
    pub fn note_ends(&mut self, now: ClockTime, is_live: impl Fn(MemberId) -> bool) {
        let unknown = self.0.iter_mut().filter(|c| !c.member.is_none() && c.ended_at == ClockTime::ZERO);
        unknown.filter(|c| !is_live(c.member)).for_each(|c| c.ended_at = now);
    }

    /// Returns the claimants of a schema.
    pub fn of_schema(&self, database: DatabaseOid, schema: SchemaOid) -> Vec<Claimant> {
        let is_own = |c: &&Claimant| !c.member.is_none() && (c.database, c.schema) == (database, schema);
        self.0.iter().filter(is_own).copied().collect()
    }
}

/// What claimants say of the process that runs a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lives {
    /// They say nothing.
    Unknown,
    /// The process lives, or may live.
    Yes,
    /// The process has ended, at the latest at the clock reading `since`. `replaced`: another process has
    /// claimed jobs for its node.
    No { since: ClockTime, replaced: bool },
}

/// The claimants of a schema, and the members that live.
#[derive(Debug, Default)]
pub struct ClaimEvidence {
    pub claimants: Vec<Claimant>,
    /// The nodes of the members that live, by their hashes.
    pub live_nodes: Vec<u64>,
}

impl ClaimEvidence {
    /// Returns whether the process lives whose attempt began at `attempted_at`.
    pub fn lives(&self, hash: ProcessHash, attempted_at: WallTime) -> Lives {
        let lives = |c: &&Claimant| c.ended_at == ClockTime::ZERO;
        let own = || self.claimants.iter().filter(|c| c.process == hash.process);
        let of_job = || own().filter(|c| c.first <= attempted_at && attempted_at <= c.last);
        let Some(since) = of_job().map(|c| c.ended_at).max() else { return Lives::Unknown };
        if of_job().any(|c| lives(&c)) {
            return Lives::Yes;
        }
        if own().any(|c| lives(&c)) {
            // With a uuid it is the same process, which has joined again. Without one nobody knows.
            return if hash.process == hash.node { Lives::Unknown } else { Lives::Yes };
        }
        let of_node = |c: &&Claimant| c.node == hash.node && lives(c);
        let replaced = self.claimants.iter().any(|c| of_node(&c));
        if !replaced && self.live_nodes.contains(&hash.node) {
            return Lives::Yes; // that member may be of the same process
        }
        Lives::No { since, replaced }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: (DatabaseOid, SchemaOid) = (DatabaseOid(1), SchemaOid(2));
    const NEVER: fn(MemberId) -> bool = |_| false;

    fn hash(uuid: &str) -> ProcessHash {
        ProcessHash::of("web.1", (!uuid.is_empty()).then_some(uuid.as_bytes()))
    }

    /// The evidence after some claims, given as uuid, member and time. `live` are the members that live.
    fn evidence(claims: &[(&str, i64, i64)], live: &[i64], now: i64) -> ClaimEvidence {
        let mut places = [Claimant::default(); 8];
        let mut all = Claimants(&mut places);
        for (uuid, member, at) in claims {
            assert!(all.note_claim(PLACE, hash(uuid), MemberId(*member), WallTime(*at)));
        }
        all.note_ends(ClockTime(now), |member| live.contains(&member.0));
        let live_nodes = if live.is_empty() { Vec::new() } else { vec![hash("").node] };
        ClaimEvidence { claimants: all.of_schema(PLACE.0, PLACE.1), live_nodes }
    }

    fn no(since: i64, replaced: bool) -> Lives {
        Lives::No { since: ClockTime(since), replaced }
    }

    #[test]
    fn the_end_of_a_member_is_that_of_its_process_unless_it_joined_again() {
        let claims = [("u", 7, 10), ("u", 7, 20)];
        for (at, expected) in [(9, Lives::Unknown), (10, Lives::Yes), (15, Lives::Yes), (21, Lives::Unknown)]
        {
            assert_eq!(evidence(&claims, &[7], 100).lives(hash("u"), WallTime(at)), expected, "{at}");
        }
        assert_eq!(evidence(&claims, &[], 100).lives(hash("u"), WallTime(15)), no(100, false));
        // A new member of the node may be the same process, until it claims with another uuid.
        assert_eq!(evidence(&claims, &[8], 100).lives(hash("u"), WallTime(15)), Lives::Yes);
        let again = [("u", 7, 10), ("u", 8, 50)];
        assert_eq!(evidence(&again, &[8], 100).lives(hash("u"), WallTime(10)), Lives::Yes);
        let other = [("u", 7, 10), ("v", 8, 50)];
        assert_eq!(evidence(&other, &[8], 100).lives(hash("u"), WallTime(10)), no(100, true));
        assert_eq!(evidence(&other, &[8], 100).lives(hash("v"), WallTime(50)), Lives::Yes);
        // Without a uuid, nobody knows whether the process has joined again.
        let nameless = [("", 7, 10), ("", 8, 50)];
        assert_eq!(evidence(&nameless, &[8], 100).lives(hash(""), WallTime(10)), Lives::Unknown);
        assert_eq!(evidence(&nameless, &[], 100).lives(hash(""), WallTime(10)), no(100, false));
        assert_eq!(evidence(&[], &[], 100).lives(hash("u"), WallTime(10)), Lives::Unknown);
    }

    #[test]
    fn an_end_is_noted_once_and_makes_room() {
        let mut places = [Claimant::default(); 2];
        let mut all = Claimants(&mut places);
        let note = |all: &mut Claimants<'_>, uuid: &str, member| {
            all.note_claim(PLACE, hash(uuid), MemberId(member), WallTime(1))
        };
        assert!(note(&mut all, "a", 1) && note(&mut all, "b", 2));
        assert!(!note(&mut all, "c", 3), "there are two places");
        all.note_ends(ClockTime(5), |member| member.0 == 2);
        all.note_ends(ClockTime(9), NEVER);
        let ends: Vec<i64> = all.of_schema(PLACE.0, PLACE.1).iter().map(|c| c.ended_at.0).collect();
        assert_eq!(ends, [5, 9]);
        assert!(note(&mut all, "c", 3));
        let left = all.of_schema(PLACE.0, PLACE.1);
        assert_eq!(left.iter().map(|c| c.member.0).collect::<Vec<_>>(), [3, 2]);
        assert!(all.of_schema(PLACE.0, SchemaOid(9)).is_empty());
    }

    #[test]
    fn a_member_with_many_uuids_takes_few_places() {
        let mut places = [Claimant::default(); 8];
        let mut all = Claimants(&mut places);
        for n in 0..100 {
            assert!(all.note_claim(PLACE, hash(&format!("u{n}")), MemberId(1), WallTime(n)));
        }
        assert_eq!(all.of_schema(PLACE.0, PLACE.1).len(), MAX_OF_MEMBER);
    }

    proptest! {
        /// A job is never an orphan while the process that claimed it is a member.
        #[test]
        fn a_member_that_lives_loses_no_job(
            claims in proptest::collection::vec((0usize..3, 1i64..4, 0i64..50), 1..6),
            live in proptest::collection::vec(1i64..4, 0..3)
        ) {
            let uuids = ["", "u", "v"];
            let named = claims.iter().map(|(uuid, member, at)| (uuids[*uuid], *member, *at));
            let claims: Vec<_> = named.collect();
            let evidence = evidence(&claims, &live, 100);
            for (uuid, member, at) in claims {
                let found = evidence.lives(hash(uuid), WallTime(at));
                if live.contains(&member) {
                    prop_assert_eq!(found, Lives::Yes);
                } else if live.is_empty() {
                    prop_assert_eq!(found, no(100, false));
                }
            }
        }
    }
}
