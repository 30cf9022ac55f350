//! Hooks into other people's statements.
//!
//! Neither hook is `#[pg_guard]`ed: an error that passes a guarded frame loses its context, position
//! and names (constraint, table, column), for every utility statement of every user. So no function
//! here owns anything with a destructor (an error jumps over it), the next hook is called as a bare
//! pointer, and our own work sits in a guarded function of its own. A test holds us to it.

use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::pg_sys;

/// What a statement is about to do to a whole database.
pub enum DatabaseCommand<'a> {
    /// It needs this one alone: DROP, RENAME, SET TABLESPACE.
    Alone(&'a CStr),
    /// CREATE with this one as template, which it needs alone, too.
    Copies(&'a CStr),
    /// Any other ALTER DATABASE.
    Other,
}

/// What a statement is about to do to what this session LISTENs to.
pub enum Listening {
    /// LISTEN.
    Begins,
    /// UNLISTEN *.
    Ends,
    /// DISCARD ALL.
    Discards,
}

/// Called before the statement runs; may raise.
pub type BeforeDatabaseCommand = fn(DatabaseCommand<'_>);
/// The same.
pub type BeforeListening = fn(Listening);
/// What changes in the catalogs. The change may not be visible yet: the hook runs in the midst of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// This extension was created or is being dropped, also as a part of somebody's CASCADE.
    Extension(u32),
    /// A trigger was created or altered, or is being dropped.
    Trigger,
    /// This schema was altered or is being dropped.
    Schema(u32),
    /// This relation was altered.
    AlteredRelation(u32),
    /// This relation is being dropped.
    DroppedRelation(u32),
    /// This database was created.
    Database(u32),
    /// COMMIT PREPARED or ROLLBACK PREPARED will run: what the prepared transaction changed is not known.
    Prepared,
}

/// Called when that happens; may raise what a look-up in the caches raises.
pub type OnCatalogChange = fn(CatalogChange);

// Postgres' own, not pgrx's wrapper of it, which would guard it.
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

/// Once, while preloading.
pub fn install(before: BeforeDatabaseCommand, listening: BeforeListening, on_change: OnCatalogChange) {
    // SAFETY: single-threaded start of the postmaster; later processes only read these.
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
    // SAFETY: what Postgres gave is handed on as it came.
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

/// Whether a statement is COMMIT PREPARED or ROLLBACK PREPARED. Every BEGIN and COMMIT asks this.
///
/// # Safety
/// `node` is a statement.
unsafe fn ends_prepared(node: *mut pg_sys::Node) -> bool {
    use pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
    // SAFETY: the node's tag says what it is.
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
    // SAFETY: what Postgres gave is handed on as it came.
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
    // SAFETY: set at the start of the postmaster.
    let Some(on_change) = (unsafe { ON_CHANGE }) else { return };
    let object = object.to_u32();
    let change = match (class, access) {
        (pg_sys::ExtensionRelationId, OAT_POST_CREATE | OAT_DROP) => CatalogChange::Extension(object),
        (pg_sys::TriggerRelationId, OAT_POST_CREATE | OAT_POST_ALTER | OAT_DROP) => CatalogChange::Trigger,
        (pg_sys::NamespaceRelationId, OAT_POST_ALTER | OAT_DROP) => CatalogChange::Schema(object),
        (pg_sys::RelationRelationId, OAT_POST_ALTER) => CatalogChange::AlteredRelation(object),
        // A column of it is being dropped.
        (pg_sys::RelationRelationId, OAT_DROP) if sub != 0 => CatalogChange::AlteredRelation(object),
        (pg_sys::RelationRelationId, OAT_DROP) => CatalogChange::DroppedRelation(object),
        (pg_sys::DatabaseRelationId, OAT_POST_CREATE) => CatalogChange::Database(object),
        _ => return,
    };
    on_change(change);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before(node: *mut pg_sys::Node) {
    // SAFETY: the node's tag says what it is, and its strings live as long as the statement.
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

/// # Safety
/// `s` is null or a string that outlives the result.
unsafe fn text<'a>(s: *const c_char) -> &'a CStr {
    // SAFETY: the caller's promise.
    if s.is_null() { c"" } else { unsafe { CStr::from_ptr(s) } }
}

/// The option of this name in a list of DefElem, or null.
///
/// # Safety
/// `options` is null or such a list.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> *mut pg_sys::DefElem {
    if options.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the list has `length` elements, all of them DefElem.
    unsafe {
        (0..(*options).length as usize)
            .map(|i| (*(*options).elements.add(i)).ptr_value.cast::<pg_sys::DefElem>())
            .find(|element| text((**element).defname) == name)
            .unwrap_or(std::ptr::null_mut())
    }
}
