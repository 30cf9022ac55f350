//! The processes that have claimed jobs as members, under the lock Claimants (`logic::claimants`).

use std::cell::Cell;
use std::collections::HashSet;

use super::Segment;
use super::locks::Lock;
use super::segment::layout;
use crate::logic::claimants::{ClaimEvidence, Claimants, ProcessHash};
use crate::logic::gossip::memory;
use crate::logic::ids::{DatabaseOid, MemberId, SchemaOid};
use crate::logic::times::{ClockTime, WallTime};
use crate::pg::clock;
use crate::pg::lwlock::Mode;

/// How long this process believes that a node has no member, in microseconds. Finding that out reads the
/// slots of all members.
const NO_MEMBER: i64 = 1_000_000;

/// What this process has found out about the member of a node.
#[derive(Clone, Copy)]
struct KnownMember {
    schema: SchemaOid,
    node: u64,
    /// The slot and the id of the member. `None`: there was none.
    member: Option<(usize, MemberId)>,
    at: ClockTime,
}

thread_local! {
    static KNOWN: Cell<Option<KnownMember>> = const { Cell::new(None) };
}

impl Segment {
    /// Runs `body` with the claimants, under the lock Claimants in exclusive mode.
    fn claimants<R>(self, body: impl FnOnce(&mut Claimants<'_>) -> R) -> R {
        let l = layout();
        let _guard = Lock::Claimants.acquire(Mode::Exclusive);
        // SAFETY: an area of the lock that is held exclusively until `body` has returned.
        let mut claimants = unsafe { Claimants(self.area(l.claimants, l.max_claimants)) };
        body(&mut claimants)
    }

    /// Notes that a process claims jobs at the wall time `at`, if a member stands for its node. `uuid` is in
    /// the server's encoding.
    pub fn note_claim(self, place: (DatabaseOid, SchemaOid), node: &str, uuid: Option<&[u8]>, at: WallTime) {
        let hash = ProcessHash::of(node, uuid);
        let Some(member) = self.member_of(place, node, hash.node) else { return };
        if !self.claimants(|c| c.note_claim(place, hash, member, at)) {
            self.note_ends_of_claimants();
            // If all places are taken, gossip has to say whether the process lives.
            let _ = self.claimants(|c| c.note_claim(place, hash, member, at));
        }
    }

    /// Returns the member that stands for a node. `None`: no member does.
    fn member_of(self, place: (DatabaseOid, SchemaOid), node: &str, hash: u64) -> Option<MemberId> {
        let (now, schema) = (clock::now(), place.1);
        if let Some(known) = KNOWN.get().filter(|known| (known.schema, known.node) == (schema, hash)) {
            match known.member {
                Some((slot, id)) if self.leaderships_view(|l| l.has_live(slot, id, now)) => return Some(id),
                None if now - known.at < NO_MEMBER => return None,
                _ => {}
            }
        }
        let member = self.leaderships_view(|l| l.any_member_of_node(place, node, now));
        KNOWN.set(Some(KnownMember { schema, node: hash, member, at: now }));
        member.map(|(_, id)| id)
    }

    fn note_ends_of_claimants(self) {
        let now = clock::now();
        let live: HashSet<MemberId> =
            self.leaderships_view(|l| l.members.iter().filter(|m| m.is_live(now)).map(|m| m.id).collect());
        self.claimants(|c| c.note_ends(now, |id| live.contains(&id)));
    }

    /// Returns what claimants say of the processes of a schema.
    pub fn claim_evidence(self, database: DatabaseOid, schema: SchemaOid) -> ClaimEvidence {
        self.note_ends_of_claimants();
        let claimants = self.claimants(|c| c.of_schema(database, schema));
        let now = clock::now();
        let live_nodes = self.leaderships_view(|l| {
            l.live_nodes((database, schema), now).map(|node| memory::hash(node, None)).collect()
        });
        ClaimEvidence { claimants, live_nodes }
    }
}
