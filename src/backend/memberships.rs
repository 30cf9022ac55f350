//! Ends of memberships: by a call, with the session, or with DISCARD ALL in the session.
//!
//! A member that is bound to a session ends with the session, in whatever way the session ends: the
//! exit callback deletes the member and its node's gossip, and wakes the keeper, which elects the
//! next leader. A member with a lease ends by its lease.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::gossip::Key;
use crate::logic::ids::MemberId;
use crate::logic::leadership::{Electorate, Leaderships, Member};
use crate::pg::{clock, latch, session};
use crate::shmem::Segment;

/// Ends a membership and what ends with it. False: there is no such member.
pub fn leave(segment: Segment, id: MemberId) -> bool {
    match segment.leaderships(|l| l.leave(id, clock::now())) {
        Some((electorate, member)) => {
            ended(segment, &electorate, &member);
            true
        }
        None => false,
    }
}

/// Ends what ends with a member that was deleted: the gossip of the member's node, if the member
/// was bound to its session, and the member's leadership, for which it wakes the keeper. Callable
/// after commit.
pub fn ended(segment: Segment, electorate: &Electorate, member: &Member) {
    if member.lease_ends().is_none() {
        let key = Key {
            database: electorate.database,
            schema: electorate.schema,
            name: electorate.name.as_str(),
            node: member.node.as_str(),
            queue: "",
        };
        segment.gossip().delete_node(&key);
    }
    segment.wake_keeper(electorate.database);
}

/// Registers the exit callback of this process, once. A caller does so before the first member of
/// the session, so that no member is ever there without the callback.
pub fn leave_at_exit() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        session::before_exit(exited);
    }
}

#[pg_guard]
#[allow(unsafe_code)] // the signature that Postgres calls
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    leave_all();
}

/// Ends all memberships that are bound to this session. Callable after commit.
pub fn leave_all() {
    let Some(segment) = Segment::attached() else { return };
    let pid = latch::my_pid();
    let leave_one = |l: &mut Leaderships<'_>| {
        let bound = |m: &&Member| !m.id.is_none() && m.pid == pid && m.lease_ends().is_none();
        let id = l.members.iter().find(bound).map(|m| m.id)?;
        l.leave(id, clock::now())
    };
    while let Some((electorate, member)) = segment.leaderships(leave_one) {
        ended(segment, &electorate, &member);
    }
}
