//! Ending memberships: by a call, with the session, or with its DISCARD ALL.
//!
//! A member that is bound to a session ends with it in whatever way it ends: the exit callback takes it
//! out, with its node's gossip, and wakes the keeper, which elects the next. One with a lease ends by that.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::logic::gossip::Key;
use crate::logic::leadership::{Electorate, Leaderships, Member};
use crate::pg::{clock, latch, session};

/// Ends a membership and what ends with it. `None` when it is none.
pub fn leave(id: i64) -> Option<()> {
    let left = super::peers(|p| p.leave(id, clock::now())).ok().flatten();
    left.map(|(electorate, member)| ended(&electorate, &member))
}

/// What ends with a member, once it is out of the table: its node's gossip if it was bound to its session,
/// and its leadership.
pub fn ended(electorate: &Electorate, member: &Member) {
    if member.lease_ends().is_none() {
        let key = Key {
            database: electorate.database,
            schema: electorate.schema,
            name: electorate.name.as_str(),
            node: member.node.as_str(),
            queue: "",
        };
        let _ = super::gossip::delete_node(&key);
    }
    super::wake_keeper(electorate.database);
}

/// Registers this backend's exit callback, once and before its first member: what it clears up is
/// never there without it.
pub fn leave_at_exit() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        session::before_exit(exited);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exited(_code: i32, _argument: pg_sys::Datum) {
    leave_all();
}

/// Ends all memberships that are bound to this session. Callable after commit.
pub fn leave_all() {
    let pid = latch::my_pid();
    let own = |p: &mut Leaderships<'_>| {
        let bound = |m: &&Member| m.id != 0 && m.pid == pid && m.lease_ends().is_none();
        let id = p.members.iter().find(bound).map(|m| m.id)?;
        p.leave(id, clock::now())
    };
    while let Ok(Some((electorate, member))) = super::peers(own) {
        ended(&electorate, &member);
    }
}
