//! Hooks that run for the statements of every session.
//!
//! Neither hook is `#[pg_guard]`ed. An error that passes a guarded frame loses its context,
//! position and names (constraint, table, column), and that would happen to every utility statement
//! of every user. So three rules hold here. No hook owns a value with a destructor, because an
//! error jumps over the destructor. The next hook is called as a bare pointer. This library's own
//! work sits in separate functions, which are guarded. A test checks the rules.

use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::pg_sys;

use crate::logic::ids::{DatabaseOid, SchemaOid, TableOid};

/// What a statement is about to do to a whole database.
pub enum DatabaseCommand<'a> {
    /// The statement needs this database without any other session: DROP, RENAME, SET TABLESPACE.
    Alone(&'a CStr),
    /// CREATE DATABASE with this database as the template. The statement needs the template without
    /// any other session, too.
    Copies(&'a CStr),
    /// Any other ALTER DATABASE.
    Other,
}

/// What a statement is about to do to the channels to which this session LISTENs.
pub enum Listening {
    /// LISTEN.
    Begins,
    /// UNLISTEN *.
    Ends,
    /// DISCARD ALL.
    Discards,
}

/// A function that is called before the statement runs. The function may raise.
pub type BeforeDatabaseCommand = fn(DatabaseCommand<'_>);
/// A function that is called before the statement runs. The function may raise.
pub type BeforeListening = fn(Listening);
/// A change in the catalogs. The change may not be visible yet, because the hook runs in the middle
/// of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// This extension was created or is being dropped, possibly by a CASCADE.
    Extension(u32),
    /// A trigger was created or altered, or is being dropped.
    Trigger,
    /// This schema was altered or is being dropped.
    Schema(SchemaOid),
    /// This relation was altered.
    AlteredRelation(TableOid),
    /// This relation is being dropped.
    DroppedRelation(TableOid),
    /// This database was created.
    Database(DatabaseOid),
    /// COMMIT PREPARED or ROLLBACK PREPARED will run. What the prepared transaction changed is not
    /// known.
    Prepared,
}

/// A function that is called for each such change. The function may raise what a lookup in the
/// caches raises.
pub type OnCatalogChange = fn(CatalogChange);

// This is Postgres' own function. pgrx's wrapper would guard it.
unsafe extern "C-unwind" {
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        env: *mut pg_sys::QueryEnvironment,
        dest: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

static mut NEXT_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut NEXT_ACCESS: pg_sys::object_access_hook_type = None;
static mut BEFORE_DATABASE_COMMAND: Option<BeforeDatabaseCommand> = None;
static mut BEFORE_LISTENING: Option<BeforeListening> = None;
static mut ON_CHANGE: Option<OnCatalogChange> = None;

/// Installs the hooks, once, while the library is preloaded.
pub fn install(before: BeforeDatabaseCommand, listening: BeforeListening, on_change: OnCatalogChange) {
    // SAFETY: the postmaster has one thread at its start, and later processes only read these
    // variables.
    unsafe {
        BEFORE_DATABASE_COMMAND = Some(before);
        BEFORE_LISTENING = Some(listening);
        ON_CHANGE = Some(on_change);
        NEXT_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
        NEXT_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(access);
    }
}

unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are passed on as Postgres gave them.
    unsafe {
        let node = (*statement).utilityStmt;
        if matches!(
            (*node).type_,
            pg_sys::NodeTag::T_DropdbStmt
                | pg_sys::NodeTag::T_CreatedbStmt
                | pg_sys::NodeTag::T_RenameStmt
                | pg_sys::NodeTag::T_AlterDatabaseStmt
                | pg_sys::NodeTag::T_ListenStmt
                | pg_sys::NodeTag::T_UnlistenStmt
                | pg_sys::NodeTag::T_DiscardStmt
        ) || ends_prepared(node)
        {
            before(node);
        }
        match NEXT_UTILITY {
            Some(next) => next(statement, query, read_only, context, params, env, dest, completion),
            None => {
                standard_ProcessUtility(statement, query, read_only, context, params, env, dest, completion);
            }
        }
    }
}

/// Returns whether a statement is COMMIT PREPARED or ROLLBACK PREPARED. The hook asks this for
/// every BEGIN and COMMIT.
///
/// # Safety
/// `node` is a statement.
unsafe fn ends_prepared(node: *mut pg_sys::Node) -> bool {
    use pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
    // SAFETY: the caller promises a statement, whose tag says what the node is.
    unsafe {
        (*node).type_ == pg_sys::NodeTag::T_TransactionStmt
            && matches!(
                (*node.cast::<pg_sys::TransactionStmt>()).kind,
                TRANS_STMT_COMMIT_PREPARED | TRANS_STMT_ROLLBACK_PREPARED
            )
    }
}

unsafe extern "C-unwind" fn access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: c_int,
    arg: *mut c_void,
) {
    // SAFETY: the arguments are passed on as Postgres gave them.
    unsafe {
        if matches!(
            class,
            pg_sys::ExtensionRelationId
                | pg_sys::TriggerRelationId
                | pg_sys::NamespaceRelationId
                | pg_sys::RelationRelationId
                | pg_sys::DatabaseRelationId
        ) && access != pg_sys::ObjectAccessType::OAT_NAMESPACE_SEARCH
        {
            changed(access, class, object, sub);
        }
        if let Some(next) = NEXT_ACCESS {
            next(access, class, object, sub, arg);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn changed(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: c_int,
) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE};
    // SAFETY: the postmaster sets the variable at its start, and later processes only read it.
    let Some(on_change) = (unsafe { ON_CHANGE }) else { return };
    let change = match (class, access) {
        (pg_sys::ExtensionRelationId, OAT_POST_CREATE | OAT_DROP) => {
            CatalogChange::Extension(object.to_u32())
        }
        (pg_sys::TriggerRelationId, OAT_POST_CREATE | OAT_POST_ALTER | OAT_DROP) => CatalogChange::Trigger,
        (pg_sys::NamespaceRelationId, OAT_POST_ALTER | OAT_DROP) => CatalogChange::Schema(object.into()),
        (pg_sys::RelationRelationId, OAT_POST_ALTER) => CatalogChange::AlteredRelation(object.into()),
        // Postgres is about to drop a column of the relation.
        (pg_sys::RelationRelationId, OAT_DROP) if sub != 0 => CatalogChange::AlteredRelation(object.into()),
        (pg_sys::RelationRelationId, OAT_DROP) => CatalogChange::DroppedRelation(object.into()),
        (pg_sys::DatabaseRelationId, OAT_POST_CREATE) => CatalogChange::Database(object.into()),
        _ => return,
    };
    on_change(change);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before(node: *mut pg_sys::Node) {
    // SAFETY: the node's tag says what the node is, and the node's strings live as long as the
    // statement.
    unsafe {
        let (Some(before), Some(listening)) = (BEFORE_DATABASE_COMMAND, BEFORE_LISTENING) else { return };
        match (*node).type_ {
            pg_sys::NodeTag::T_TransactionStmt => {
                if let Some(on_change) = ON_CHANGE {
                    on_change(CatalogChange::Prepared);
                }
            }
            pg_sys::NodeTag::T_ListenStmt => listening(Listening::Begins),
            pg_sys::NodeTag::T_UnlistenStmt
                if (*node.cast::<pg_sys::UnlistenStmt>()).conditionname.is_null() =>
            {
                listening(Listening::Ends);
            }
            pg_sys::NodeTag::T_DiscardStmt
                if (*node.cast::<pg_sys::DiscardStmt>()).target == pg_sys::DiscardMode::DISCARD_ALL =>
            {
                listening(Listening::Discards);
            }
            pg_sys::NodeTag::T_DropdbStmt => {
                before(DatabaseCommand::Alone(text((*node.cast::<pg_sys::DropdbStmt>()).dbname)));
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                if rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                    before(DatabaseCommand::Alone(text(rename.subname)));
                }
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                if option(alter.options, c"tablespace").is_null() {
                    before(DatabaseCommand::Other);
                } else {
                    before(DatabaseCommand::Alone(text(alter.dbname)));
                }
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let template = option((*node.cast::<pg_sys::CreatedbStmt>()).options, c"template");
                if template.is_null() || (*template).arg.is_null() {
                    before(DatabaseCommand::Copies(c"template1"));
                } else {
                    before(DatabaseCommand::Copies(text(pg_sys::defGetString(template))));
                }
            }
            _ => {}
        }
    }
}

/// Returns a string. Returns an empty string for null.
///
/// # Safety
/// `s` is null or a string that outlives the result.
unsafe fn text<'a>(s: *const c_char) -> &'a CStr {
    // SAFETY: the caller promises a string that outlives the result.
    if s.is_null() { c"" } else { unsafe { CStr::from_ptr(s) } }
}

/// Returns the option of this name in a list of DefElem, or null.
///
/// # Safety
/// `options` is null or a list of DefElem.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> *mut pg_sys::DefElem {
    if options.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the list has `length` elements, and each of them is a DefElem.
    unsafe {
        (0..(*options).length as usize)
            .map(|i| (*(*options).elements.add(i)).ptr_value.cast::<pg_sys::DefElem>())
            .find(|element| text((**element).defname) == name)
            .unwrap_or(std::ptr::null_mut())
    }
}
