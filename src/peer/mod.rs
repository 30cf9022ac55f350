//! Members and leaders: the SQL functions. What leading means is in `logic::peer`, who elects in
//! `worker::election`.
//!
//! Joining and leaving act at once and survive a rollback, for they are about this process, not about
//! data. A session's members end with it in whatever way it ends: the exit callback takes them out,
//! with their gossip, and wakes the keeper, which elects the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::{self, Error, given};
use crate::logic::gossip;
use crate::logic::peer::{Electorate, JoinError, Leadership, MAX_NODE, Member, View};
use crate::logic::text::Text;
use crate::pg::acl::{self, Right};
use crate::pg::row::{Column, Row};
use crate::pg::scan::{self, Locked};
use crate::pg::{catalog, latch, session, spi, time};
use crate::shmem;

/// How long `oban_join` waits for the election: long enough for a keeper that is just starting.
const JOIN_WAIT: Duration = Duration::from_secs(1);

fn electorate(name: Option<&str>, prefix: Option<&str>) -> Result<Electorate, Error> {
    Ok(Electorate {
        database: session::database(),
        prefix: error::name("prefix", prefix)?,
        name: error::name("name", name)?,
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_join(
    node: Option<&str>,
    name: default!(Option<&str>, "'Oban'"),
    lease: default!(Option<Interval>, "NULL"),
    replace: default!(Option<bool>, "false"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<i64, ErrorReport> {
    let electorate = electorate(name, prefix)?;
    let node = error::name("node", node)?;
    let replace = given("replace", replace)?;
    if lease.is_some() {
        return Err(Error::NotSupported("members with a lease are not supported yet").into());
    }
    acl::require(electorate.prefix.as_str(), Right::Write)?;
    if session::in_recovery() {
        return Err(Error::InRecovery("join").into());
    }
    if session::is_restricted() {
        return Err(Error::Restricted("join").into());
    }
    let member = Member {
        id: shmem::new_member_id()?,
        electorate,
        node,
        role: session::role(),
        pid: latch::my_pid(),
        procno: latch::my_procno(),
        considered: 0,
        joined_at: time::now(),
    };
    leave_at_exit();

    let mut instead_of = None;
    let id = loop {
        match shmem::peers(|p| p.join(member, instead_of))? {
            Ok(id) => break id,
            Err(JoinError::Full) => {
                return Err(Error::TableFull {
                    what: "another member".into(),
                    setting: "obanrs.max_members",
                }
                .into());
            }
            Err(JoinError::Taken { member, pid, role }) => {
                if !replace {
                    let (node, name) = (node.as_str().to_owned(), electorate.name.as_str().to_owned());
                    return Err(Error::NodeTaken { node, name, pid }.into());
                }
                if !session::acts_for(role) {
                    return Err(not_yours(member).into());
                }
                instead_of = Some(member);
            }
        }
    };
    shmem::wake_keeper(electorate.database);
    wait_for_election(id)?;
    Ok(id)
}

/// Until the keeper has held an election with this member, at most for `JOIN_WAIT`.
fn wait_for_election(id: i64) -> Result<(), Error> {
    let since = Instant::now();
    loop {
        latch::reset();
        let waiting = shmem::peers_view(|v| v.member(id).is_some_and(|m| m.considered == 0))?;
        let left = JOIN_WAIT.saturating_sub(since.elapsed());
        if !waiting || left.is_zero() {
            return Ok(());
        }
        latch::wait(Some(left));
    }
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_leave(member: Option<i64>) -> Result<bool, ErrorReport> {
    let id = given("member", member)?;
    let known = shmem::peers_view(|v| v.member(id).copied())?;
    let Some(known) = known.filter(|m| m.electorate.database == session::database()) else {
        return Ok(false);
    };
    if !session::acts_for(known.role) {
        return Err(not_yours(id).into());
    }
    let left = shmem::peers(|p| p.leave(id))?;
    if let Some(member) = &left {
        ended(member);
    }
    Ok(left.is_some())
}

fn not_yours(member: i64) -> Error {
    Error::NotYours(format!("member {member} was joined by another role"))
}

/// What ends with a member, once it is out of the table: its node's gossip, and its leadership.
fn ended(member: &Member) {
    let Electorate { database, prefix, name } = &member.electorate;
    let key = gossip::Key {
        database: *database,
        prefix: prefix.as_str(),
        name: name.as_str(),
        node: member.node.as_str(),
        queue: "",
    };
    let _ = shmem::gossip(|table, _| table.delete(&key, None, time::now()));
    shmem::wake_keeper(*database);
}

/// Registers this backend's exit callback, once and before its first member: what it clears up is
/// never there without it.
fn leave_at_exit() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        session::before_exit(leave_all);
    }
}

#[pg_guard]
#[allow(unsafe_code)]
unsafe extern "C-unwind" fn leave_all(_code: i32, _argument: pg_sys::Datum) {
    let pid = latch::my_pid();
    loop {
        let own = |p: &mut crate::logic::peer::Peers<'_>| {
            let id = p.members.iter().find(|m| m.id != 0 && m.pid == pid).map(|m| m.id)?;
            p.leave(id)
        };
        match shmem::peers(own) {
            Ok(Some(member)) => ended(&member),
            _ => return,
        }
    }
}

/// The leadership that counts as "mine": of a member of this session, or of the named node.
fn led_by<'a>(view: &View<'a>, electorate: &Electorate, node: Option<&str>) -> Option<Leadership> {
    let held = view.held(electorate, time::now())?;
    let mine = match node {
        Some(node) => held.node.as_str() == node,
        None => view.member(held.member).is_some_and(|m| m.pid == latch::my_pid()),
    };
    mine.then_some(*held)
}

/// What others do needs a right to see it; what this session does it knows.
fn leadership_of(
    name: Option<&str>,
    node: Option<&str>,
    prefix: Option<&str>,
) -> Result<Option<Leadership>, Error> {
    let electorate = electorate(name, prefix)?;
    let node: Option<Text<MAX_NODE>> = node.map(|n| error::name("node", Some(n))).transpose()?;
    if node.is_some() {
        acl::require(electorate.prefix.as_str(), Right::Read)?;
    }
    shmem::peers_view(|v| led_by(&v, &electorate, node.as_ref().map(Text::as_str)))
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_is_leader(
    name: default!(Option<&str>, "'Oban'"),
    node: default!(Option<&str>, "NULL"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<bool, ErrorReport> {
    Ok(leadership_of(name, node, prefix)?.is_some())
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_term(
    name: default!(Option<&str>, "'Oban'"),
    node: default!(Option<&str>, "NULL"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<Option<i64>, ErrorReport> {
    Ok(leadership_of(name, node, prefix)?.map(|l| l.term))
}

/// A leader as its row in oban_peers has it.
struct LeaderRow {
    name: String,
    node: String,
    term: Option<i64>,
    started_at: Option<TimestampWithTimeZone>,
    expires_at: Option<TimestampWithTimeZone>,
}

/// The longest name of an instance or a node that is shown. Oban's own are host names and the like.
const LONGEST_SHOWN: usize = 1_024;

/// The unexpired rows of a prefix's oban_peers, of one name or of all in their order; `None` when the table
/// can't be read. The table, not shared memory: it knows foreign leaders of names that nobody of ours has
/// joined, and it is there on a standby. Who may ask is tested by our rules, so the table's own rights and
/// policies are not, and its owner's code never runs in the asking session.
fn leaders(prefix: &str, name: Option<&str>, locked: Locked) -> Result<Option<Vec<LeaderRow>>, Error> {
    type Columns = (Column, Column, Column, Column, Option<Column>);
    let now = time::now();
    let find = |column: &dyn Fn(&str) -> Option<Column>| -> Option<Columns> {
        let typed = |name: &str, kind: pg_sys::Oid| column(name).filter(|c| c.type_oid == kind);
        let text = |name: &str| typed(name, pg_sys::TEXTOID);
        let time = |name: &str| typed(name, pg_sys::TIMESTAMPOID);
        let term = typed("term", pg_sys::INT8OID);
        Some((text("name")?, text("node")?, time("started_at")?, time("expires_at")?, term))
    };
    let read = |row: &Row, columns: &Columns| {
        let (of_name, node, started_at, expires_at, term) = columns;
        let ends = row.i64(*expires_at).filter(|ends| *ends > now)?;
        let own =
            row.short_text(*of_name, LONGEST_SHOWN).filter(|own| name.is_none_or(|name| own == name))?;
        Some(LeaderRow {
            name: own,
            node: row.short_text(*node, LONGEST_SHOWN)?,
            term: term.and_then(|term| row.i64(term)),
            started_at: row.i64(*started_at).and_then(time::timestamptz),
            expires_at: time::timestamptz(ends),
        })
    };
    // Again if the table was another one by the time of its lock; who keeps replacing it gets no answer.
    for _ in 0..3 {
        let Some(table) = catalog::peers_table(prefix) else { return Ok(None) };
        let admit = |unlogged: bool| {
            acl::require(prefix, Right::Read)?;
            if unlogged && session::in_recovery() {
                return Err(Error::UnloggedInRecovery { table: spi::qualified(prefix, "oban_peers") });
            }
            Ok(catalog::peers_table(prefix).is_some_and(|now| now.oid == table.oid))
        };
        if let Some(mut rows) = scan::rows(table.oid, locked, admit, find, read)? {
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok(Some(rows));
        }
        if locked == Locked::Skip {
            break;
        }
    }
    Ok(None)
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_leader(
    name: default!(Option<&str>, "'Oban'"),
    prefix: default!(Option<&str>, "'public'"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(node, String),
            name!(term, Option<i64>),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let electorate = electorate(name, prefix)?;
    let (name, prefix) = (electorate.name.as_str(), electorate.prefix.as_str());
    acl::require(prefix, Right::Read)?;
    let rows = leaders(prefix, Some(name), Locked::Wait)?.unwrap_or_default();
    Ok(TableIterator::new(rows.into_iter().map(|r| (r.node, r.term, r.started_at, r.expires_at))))
}

/// The rows of the view oban_leadership: of every prefix that the caller may read, but those whose table
/// can't be read at the moment. A tenant's lock must not hold up who asks about all.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_leadership() -> TableIterator<
    'static,
    (
        name!(prefix, String),
        name!(name, String),
        name!(node, String),
        name!(term, Option<i64>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(expires_at, Option<TimestampWithTimeZone>),
    ),
> {
    let prefixes = spi::schemas_with_peers().into_iter().filter(|prefix| acl::allows(prefix, Right::Read));
    let installed = prefixes.filter(|prefix| catalog::peers_table(prefix).is_some_and(|t| t.installed));
    let rows: Vec<_> = installed
        .flat_map(|prefix| {
            let rows = leaders(&prefix, None, Locked::Skip).ok().flatten().unwrap_or_default().into_iter();
            rows.map(move |r| (prefix.clone(), r.name, r.node, r.term, r.started_at, r.expires_at))
        })
        .collect();
    TableIterator::new(rows)
}

/// The rows of the view oban_members: of this database and the prefixes that the caller may read.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_members() -> Result<
    TableIterator<
        'static,
        (
            name!(prefix, String),
            name!(name, String),
            name!(node, String),
            name!(member, i64),
            name!(kind, &'static str),
            name!(pid, i32),
            name!(leader, bool),
            name!(joined_at, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let (database, now) = (session::database(), time::now());
    let mut members: Vec<(Member, bool)> = shmem::peers_view(|v| {
        let own = v.members.iter().filter(|m| m.id != 0 && m.electorate.database == database);
        let leads = |m: &Member| v.held(&m.electorate, now).is_some_and(|l| l.member == m.id);
        own.map(|m| (*m, leads(m))).collect()
    })?;
    members.retain(|(m, _)| acl::allows(m.electorate.prefix.as_str(), Right::Read));
    members.sort_by_key(|(m, _)| m.id);
    Ok(TableIterator::new(members.into_iter().map(|(m, leader)| {
        (
            m.electorate.prefix.as_str().to_owned(),
            m.electorate.name.as_str().to_owned(),
            m.node.as_str().to_owned(),
            m.id,
            "session",
            m.pid,
            leader,
            time::timestamptz(m.joined_at),
            None,
        )
    })))
}
