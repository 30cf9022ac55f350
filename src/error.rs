//! The errors that users see: SQLSTATE, what was wrong with which value, and a hint that names the
//! call or the setting that helps. (`pg` raises a few errors about Postgres itself where they
//! occur.)

use std::sync::OnceLock;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::{PgLogLevel, PgSqlErrorCode};
use thiserror::Error;

use crate::logic::channel::{ChannelError, MAX_CHANNEL};
use crate::logic::lifecycle::Lack;
use crate::logic::text::Text;
use crate::logic::wire::{MAX_PAYLOAD, WireError};

/// An error that a user sees. `code` gives the SQLSTATE, and `hint` gives the hint.
#[derive(Debug, Error)]
pub enum Error {
    #[error("argument \"{0}\" must not be null")]
    NullArgument(&'static str),
    #[error("{message}")]
    BadArgument { message: String, hint: String },
    #[error("node \"{node}\" has already joined \"{name}\"")]
    NodeTaken { node: String, name: String, pid: i32, lease_ends: Option<String> },
    #[error("{0} is no member any more")]
    NoMember(i64),
    #[error("this session is the node \"{node}\" of \"{name}\" already")]
    SessionIsNode { node: String, name: String },
    #[error("a member of this role or database needs a lease")]
    LeaseRequired,
    #[error("{}", not_held(name, *term))]
    TermOver { name: String, term: Option<i64> },
    #[error("prefix \"{0}\" has no table of leaders")]
    NotInstalled(String),
    #[error("prefix \"{0}\" has no table oban_jobs")]
    NoJobs(String),
    #[error("oban_jobs has taken {taken} of {given} jobs")]
    JobsLeftOut { given: usize, taken: usize },
    #[error("the column scheduled_at of oban_jobs in prefix \"{0}\" has a time zone")]
    TimesWithZone(String),
    #[error("prefix \"{prefix}\" holds no elections: its table of leaders can't be used")]
    NoElections { prefix: String, what: String },
    #[error("the name, the term, the boot and the start of a leadership do not change")]
    HolderChanged,
    #[error("prefix \"{0}\" does not exist")]
    NoSuchPrefix(String),
    #[error("role {role} has its share of {setting}: no room for {what}")]
    QuotaUsed { role: String, what: String, setting: &'static str },
    #[error("prefix \"{0}\" is a schema of Postgres' own")]
    ReservedPrefix(String),
    #[error("prefix \"{0}\" was changed by another session meanwhile")]
    PrefixChanged(String),
    #[error("obanrs_queue_signals of prefix \"{0}\" is locked by another transaction")]
    SignalsLocked(String),
    #[error("permission denied for prefix \"{prefix}\"")]
    NotAllowed { prefix: String, needs: &'static str },
    #[error("jobs of prefix \"{prefix}\" can't be staged: their table's owner {owner} has NOLOGIN")]
    StagingNeedsLogin { prefix: String, owner: String },
    #[error("{table} is too large to build the index of due jobs on it at once")]
    TooLargeForIndex { table: String, definition: String },
    #[error("must be owner of table {table}")]
    NotOwner { table: String },
    #[error("permission denied: {0}")]
    NotYours(String),
    #[error("no room for {what}")]
    TableFull { what: String, setting: &'static str },
    #[error("no room for {what}: {lack}")]
    NoPlace { what: &'static str, lack: Lack },
    #[error("payload too large: {0}")]
    PayloadTooLarge(String),
    #[error("{message}")]
    ArgumentTooLarge { message: String, hint: String },
    #[error("this transaction has as many messages as it may: {0}, or 64 MB")]
    TooManyMessages(usize),
    #[error("the jobs are larger than {} MB", most >> 20)]
    AnswerTooLarge { most: usize },
    #[error("out of memory")]
    OutOfMemory,
    #[error("cannot PREPARE a transaction that has executed oban_notify or sent a queue signal")]
    Prepared,
    #[error("obanrs is not loaded at server start")]
    NotPreloaded,
    #[error("the extension obanrs is not in this database")]
    NoExtension,
    #[error("cannot {0} during recovery")]
    InRecovery(&'static str),
    #[error("cannot run {call} in a transaction block")]
    InTransactionBlock { call: &'static str, instead: &'static str },
    #[error("cannot {0} in a read-only transaction")]
    ReadOnly(&'static str),
    #[error("cannot read {table} during recovery: it is unlogged")]
    UnloggedInRecovery { table: String },
    #[error("cannot {0} within security-restricted operation")]
    Restricted(&'static str),
    #[error("{0}")]
    NotSupported(&'static str),
    #[error("obanrs_jobs_insert() is for the triggers that oban_install() puts on oban_jobs")]
    WrongTrigger,
    #[error("obanrs_watched() is for the triggers that oban_watch() puts on tables")]
    WrongWatchTrigger,
    #[error("{table} is {kind}, which cannot be watched")]
    NotWatchable { table: String, kind: &'static str },
    #[error("there is no table with the oid {0}")]
    NoSuchTable(u32),
    #[error("obanrs_peers() is for the triggers that oban_install() puts on oban_peers")]
    WrongPeersTrigger,
}

impl Error {
    /// Returns the error 22023 with this message and this hint.
    pub fn bad(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::BadArgument { message: message.into(), hint: hint.into() }
    }

    /// Returns the error for an argument of `bytes` bytes that must not have more than `most`.
    pub fn too_long(argument: &'static str, bytes: usize, most: usize) -> Self {
        Self::bad(format!("argument \"{argument}\" has {bytes} bytes"), format!("At most {most} bytes fit."))
    }

    /// Returns the error for a payload, or an array of payloads, of `bytes` bytes that must not
    /// have more than `most`.
    pub fn too_large(argument: &'static str, bytes: usize, most: usize) -> Self {
        Self::ArgumentTooLarge {
            message: format!("argument \"{argument}\" has {bytes} bytes"),
            hint: format!("At most {most} bytes are read: a notification has at most {MAX_PAYLOAD}."),
        }
    }

    fn code(&self) -> PgSqlErrorCode {
        use PgSqlErrorCode::*;
        match self {
            Self::NullArgument(_) => ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::BadArgument { .. } | Self::HolderChanged => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::TermOver { .. } | Self::PrefixChanged(_) => ERRCODE_T_R_SERIALIZATION_FAILURE,
            Self::SignalsLocked(_) => ERRCODE_LOCK_NOT_AVAILABLE,
            Self::NodeTaken { .. } => ERRCODE_UNIQUE_VIOLATION,
            Self::NoSuchPrefix(_) => ERRCODE_INVALID_SCHEMA_NAME,
            Self::NoJobs(_) => ERRCODE_UNDEFINED_TABLE,
            Self::TimesWithZone(_) => ERRCODE_DATATYPE_MISMATCH,
            Self::JobsLeftOut { .. } => ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
            Self::ReservedPrefix(_) => ERRCODE_RESERVED_NAME,
            Self::NotAllowed { .. } | Self::NotOwner { .. } | Self::NotYours(_) | Self::Restricted(_) => {
                ERRCODE_INSUFFICIENT_PRIVILEGE
            }
            Self::TableFull { .. } | Self::NoPlace { .. } | Self::QuotaUsed { .. } => {
                ERRCODE_CONFIGURATION_LIMIT_EXCEEDED
            }
            Self::PayloadTooLarge(_)
            | Self::ArgumentTooLarge { .. }
            | Self::AnswerTooLarge { .. }
            | Self::TooManyMessages(_) => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::InTransactionBlock { .. } => ERRCODE_ACTIVE_SQL_TRANSACTION,
            Self::ReadOnly(_) => ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Self::NotPreloaded
            | Self::NoMember(_)
            | Self::SessionIsNode { .. }
            | Self::LeaseRequired
            | Self::NotInstalled(_)
            | Self::NoElections { .. }
            | Self::NoExtension
            | Self::InRecovery(_)
            | Self::StagingNeedsLogin { .. }
            | Self::TooLargeForIndex { .. }
            | Self::UnloggedInRecovery { .. } => ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::OutOfMemory => ERRCODE_OUT_OF_MEMORY,
            Self::NotSupported(_) | Self::Prepared => ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::WrongTrigger | Self::WrongPeersTrigger | Self::WrongWatchTrigger => {
                ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED
            }
            Self::NotWatchable { .. } => ERRCODE_WRONG_OBJECT_TYPE,
            Self::NoSuchTable(_) => ERRCODE_UNDEFINED_TABLE,
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table of hints")]
    fn hint(&self) -> String {
        match self {
            Self::NullArgument(name) => format!("Leave \"{name}\" out for its default, if it has one."),
            Self::BadArgument { hint, .. } | Self::ArgumentTooLarge { hint, .. } => hint.clone(),
            Self::NodeTaken { lease_ends: Some(ends), pid, .. } => format!(
                "That member, joined by the backend with PID {pid}, has a lease until {ends}. Give this node \
                 another name, wait until the lease ends, or join with replace => true."
            ),
            Self::NoMember(_) => {
                "Its lease has ended, or it left, was replaced, or its session ended, or its prefix was \
                 dropped. Join again: what it led, others may lead by now."
                    .into()
            }
            Self::SessionIsNode { .. } => {
                "Two processes seem to share this session, as behind a transaction pooler: join with a \
                 lease, as in lease => '30s'. Or end the other membership with oban_leave first."
                    .into()
            }
            Self::LeaseRequired => {
                "obanrs.require_lease is on: join with a lease, as in lease => '30s', and renew it with oban_renew."
                    .into()
            }
            Self::TermOver { term: None, .. } => {
                "Roll back. This process does not lead: oban_term and oban_renew return NULL to it.".into()
            }
            Self::TermOver { .. } => {
                "Roll back. Another leader has another term: ask oban_renew or oban_term for your own, never \
                 oban_leader."
                    .into()
            }
            Self::NotInstalled(prefix) | Self::NoJobs(prefix) => install_hint(prefix),
            Self::TimesWithZone(_) => {
                "Oban's tables have a timestamp without time zone there, in UTC: ALTER the column's TYPE, \
                 USING scheduled_at AT TIME ZONE 'UTC'."
                    .into()
            }
            Self::JobsLeftOut { .. } => {
                "A trigger of the table leaves jobs out, so none of this call is inserted. Change the \
                 trigger, or use INSERT."
                    .into()
            }
            Self::NoElections { what, .. } => format!("Remove what elections would have to ignore: {what}."),
            Self::HolderChanged => {
                "Delete the row, and insert another; or update its node, which hands the leadership over with a new term."
                    .into()
            }
            Self::NodeTaken { pid, .. } => format!(
                "The backend with PID {pid} is that member. Give this node another name, end that session, \
                 or join with replace => true."
            ),
            Self::NoSuchPrefix(prefix) => {
                format!("Create it and its tables with SELECT oban_install({}).", quote(prefix))
            }
            Self::ReservedPrefix(_) => {
                "Give another schema: those whose names begin with pg_, and information_schema, are no place \
                 for tables of users."
                    .into()
            }
            Self::PrefixChanged(_) => {
                "Its schema, or a table or type in it, was renamed, dropped or replaced. Run it again.".into()
            }
            Self::SignalsLocked(_) => {
                "This transaction is rolled back. Another transaction, or a VACUUM or \
                 REINDEX, holds the lock for long: find it in pg_locks, and run this one again when it has \
                 ended."
                    .into()
            }
            Self::NotAllowed { prefix, needs } => {
                // Without that table the schema's privileges decide. Then this hint leads to an
                // installation.
                format!("It needs {needs} {}.", pgrx::spi::quote_qualified_identifier(&**prefix, "oban_jobs"))
            }
            Self::StagingNeedsLogin { owner, .. } => format!(
                "Before Postgres 17 no worker can connect as that role. ALTER ROLE {owner} LOGIN, have \
                 another role own the table, or install with stage => false."
            ),
            Self::TooLargeForIndex { definition, .. } => format!(
                "No session could write to the table meanwhile. Run CREATE INDEX CONCURRENTLY {definition}; \
                 and install again. (If the table is partitioned, build such an index on each partition, \
                 and then this one without CONCURRENTLY.)"
            ),
            Self::NotOwner { .. } => "Its owner, or a member of that role, has to do this.".into(),
            Self::NotYours(_) => "Ask as that role, or as a member of it.".into(),
            Self::TableFull { setting: setting @ "obanrs.max_rings", .. } => {
                format!("Raise {setting} and restart the server. A ring is free when its database is dropped, or the extension in it.")
            }
            Self::TableFull { setting: setting @ "obanrs.max_members", .. } => {
                format!("Raise {setting} and restart the server, or have members leave (oban_leave) or wait until their leases end.")
            }
            Self::TableFull { setting, .. } => {
                format!("Raise {setting} and restart the server, or delete entries (oban_gossip_delete) or wait until some end.")
            }
            Self::NoPlace { lack, .. } => lack.hint(),
            Self::QuotaUsed { setting: setting @ "obanrs.max_members", .. } => format!(
                "Raise obanrs.role_share and reload the configuration, raise {setting} and restart the \
                 server, or have members of this role leave (oban_leave) or wait until their leases end."
            ),
            Self::QuotaUsed { setting, .. } => format!(
                "Raise obanrs.role_share and reload the configuration, raise {setting} and restart the \
                 server, or delete entries of this role (oban_gossip_delete) or wait until some end."
            ),
            Self::PayloadTooLarge(_) => {
                "Put the data into a table and send its key: a notification is a hint.".into()
            }
            Self::TooManyMessages(_) => {
                "Commit in between, send fewer that differ, or raise obanrs.max_transaction_messages.".into()
            }
            Self::AnswerTooLarge { .. } => "Nothing was claimed. Take fewer jobs by max_jobs.".into(),
            Self::OutOfMemory => {
                "Commit in between, send or ask for less at a time, or give the server more memory.".into()
            }
            Self::Prepared => "Send after COMMIT PREPARED, in a transaction of its own.".into(),
            Self::NotPreloaded => "Add obanrs to shared_preload_libraries and restart the server.".into(),
            Self::NoExtension => "It was dropped, or its CREATE EXTENSION is not committed yet.".into(),
            Self::InRecovery(_) => "Connect to the primary.".into(),
            Self::InTransactionBlock { instead, .. } => format!(
                "CALL it as a statement of its own, with autocommit, and not from a function, an exception \
                 block or a procedure with SET or SECURITY DEFINER: it must not hold a snapshot while it \
                 waits. In a transaction use {instead}."
            ),
            Self::ReadOnly(_) => {
                "Begin it with READ WRITE, or SET default_transaction_read_only = off.".into()
            }
            Self::UnloggedInRecovery { table } => {
                format!("Ask the primary, or have it run ALTER TABLE {table} SET LOGGED.")
            }
            Self::Restricted(_) => {
                "Call it from the session itself, not from an index, a policy or the like.".into()
            }
            Self::NotSupported(_) => "README says what this version does not do yet.".into(),
            Self::WrongTrigger | Self::WrongPeersTrigger => "Let oban_install() create it.".into(),
            Self::WrongWatchTrigger => "Let oban_watch() create it.".into(),
            Self::NotWatchable { .. } => {
                "Tables and partitioned tables can be watched, if they are not temporary. In place of a \
                 view, watch the tables that it reads."
                    .into()
            }
            Self::NoSuchTable(_) => "It may have been dropped meanwhile: give the name of a table.".into(),
        }
    }
}

fn not_held(name: &str, term: Option<i64>) -> String {
    match term {
        Some(term) => format!("term {term} of \"{name}\" is not held"),
        None => format!("no term of \"{name}\" is held here"),
    }
}

/// Returns the hint to install a prefix.
pub fn install_hint(prefix: &str) -> String {
    format!("Run SELECT oban_install({}).", quote(prefix))
}

fn quote(value: &str) -> String {
    pgrx::spi::quote_literal(value)
}

/// How a message is converted for Postgres. `pg`, which knows the database's encoding, gives the
/// function.
static SHOWN: OnceLock<fn(&str) -> String> = OnceLock::new();

/// Sets how a message is converted for Postgres. `_PG_init` calls this before any error.
pub fn show_with(shown: fn(&str) -> String) {
    let _ = SHOWN.set(shown);
}

fn report(code: PgSqlErrorCode, message: &str, hint: &str) -> ErrorReport {
    let shown = SHOWN.get().copied().unwrap_or(str::to_owned);
    let report = ErrorReport::new(code, shown(message), "obanrs");
    if hint.is_empty() { report } else { report.set_hint(shown(hint)) }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        report(error.code(), &error.to_string(), &error.hint())
    }
}

impl From<ChannelError> for Error {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Empty => {
                Error::bad("channel is empty", "Give its name as LISTEN has it, such as object_queue.")
            }
            ChannelError::Name(channel) => Error::bad(
                format!("channel \"{channel}\" is not a channel name"),
                "A channel is lower-case letters, digits and underscores, and does not begin with a digit.",
            ),
            ChannelError::DottedPrefix(prefix) => Error::bad(
                format!("prefix \"{prefix}\" contains a dot"),
                "Oban's nodes split a channel's name at its first dot: rename the schema.",
            ),
            ChannelError::TooLong(full, bytes) => Error::bad(
                format!("channel name \"{full}\" has {bytes} bytes"),
                format!("<prefix>.oban_<channel> may have {MAX_CHANNEL} bytes, as any channel in Postgres."),
            ),
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            WireError::TooLong(bytes) => Error::PayloadTooLarge(format!(
                "{bytes} bytes on the wire, compressed; a notification has at most {MAX_PAYLOAD}"
            )),
            WireError::Bomb => Error::PayloadTooLarge(format!(
                "it unpacks to more than {} bytes",
                crate::logic::wire::MAX_UNPACKED
            )),
            WireError::TooDeep => Error::PayloadTooLarge(format!(
                "it is nested more than {} levels deep",
                crate::logic::wire::MAX_DEPTH
            )),
            WireError::OutOfMemory => Error::OutOfMemory,
            WireError::Malformed(why) => Error::bad(
                format!("not a wire form of Oban's: {why}"),
                "Oban sends JSON, base64 of gzip (H4sI...), or the latter behind \"Z:\".",
            ),
        }
    }
}

/// Writes a message into the server's log, with the hint if it is not empty. At the level ERROR
/// this raises.
pub fn log(level: PgLogLevel, code: PgSqlErrorCode, message: impl Into<String>, hint: impl Into<String>) {
    report(code, &message.into(), &hint.into()).report(level);
}

/// Returns an argument that must not be NULL. `Err`: the argument is NULL (22004). The functions
/// are not STRICT, because a silent NULL result would hide a mistake.
pub fn given<T>(name: &'static str, argument: Option<T>) -> Result<T, Error> {
    argument.ok_or(Error::NullArgument(name))
}

/// A text argument of an SQL function. The text is measured before it is read.
pub trait TextValue {
    /// Returns what `read` returns for the text. `Err`: the text has more than `most` bytes, or is
    /// not a name that this database can hold (22023).
    fn with_text<R>(
        &self,
        argument: &'static str,
        most: usize,
        read: impl FnOnce(&str) -> R,
    ) -> Result<R, Error>;
}

/// Returns a text argument for a slot of `N` bytes in shared memory. `Err`: the argument is NULL
/// (22004), or it is empty or longer than `N` bytes (22023).
pub fn name<const N: usize>(argument: &'static str, value: Option<impl TextValue>) -> Result<Text<N>, Error> {
    let name = given(argument, value)?.with_text(argument, N, Text::truncated)?;
    if name.as_str().is_empty() {
        return Err(Error::bad(format!("argument \"{argument}\" is empty"), "Give it a name."));
    }
    Ok(name)
}
