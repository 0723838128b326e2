//! What a restore will do to a server, decided before the first write: everything that can be known to fail, fails here.
//!
//! Invariant: making a blueprint changes nothing on the server.

use std::collections::BTreeSet;
use std::path::Path;

use backup_core::engine::{Existing, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};

use super::catalog::{self, Connected, missing};
use super::details::{DatabaseDetails, Details};
use super::globals::GlobalsFilter;
use super::subscriptions;
use crate::handover::test;
use crate::psql::Psql;
use crate::server::Server;
use crate::sql::{ident, literal};
use crate::text::shown;
use crate::tools::PgVersion;

/// What databases are called while they are loaded.
pub(crate) const LOADING_PREFIX: &str = "stackward_restore_";
/// What replaced databases are called until they are dropped.
pub(crate) const REPLACED_PREFIX: &str = "stackward_replaced_";
/// A name has at most so many bytes (`NAMEDATALEN` - 1).
const MAX_NAME_BYTES: usize = 63;

/// What the restore is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The operator's server.
    Live,
    /// A scratch server: no tablespace is created, because its location may be in use by the live server.
    Drill,
}

/// What stands under the name of a database that will be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Nothing,
    /// To be replaced: the operator said so, or nobody ever put anything into it.
    Replaced,
}

/// A database to restore.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) details: DatabaseDetails,
    /// The name that it gets.
    pub(crate) name: String,
    pub(crate) standing: Standing,
    /// Whether the original may live on beside it.
    pub(crate) is_copy: bool,
}

/// Whether a database is what an interrupted restore left behind: a prefix, and the twelve digits that follow it.
pub(crate) fn is_leftover(name: &str) -> bool {
    let number = name.strip_prefix(LOADING_PREFIX).or_else(|| name.strip_prefix(REPLACED_PREFIX));
    number.is_some_and(|number| number.len() == 12 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Blueprint {
    pub(crate) items: Vec<Item>,
    /// `None`: the roles are not touched.
    pub(crate) globals: Option<GlobalsFilter>,
    /// Tablespaces that the target does not have and will not get.
    pub(crate) skipped_tablespaces: BTreeSet<String>,
    pub(crate) warnings: Vec<String>,
}

/// Decides what to restore from `details` onto the connected server.
pub(crate) async fn draw(
    server: &Server,
    connected: &mut Connected,
    details: &Details,
    target: &RestoreTarget,
    purpose: Purpose,
) -> Result<Blueprint> {
    let mut blueprint = Blueprint { items: chosen(details, target)?, ..Blueprint::default() };
    for item in &mut blueprint.items {
        item.is_copy = target.rename.is_some() || purpose == Purpose::Drill;
        blueprint.warnings.extend(subscriptions::plan(&item.details, item.is_copy));
    }
    check_versions(connected, details)?;
    check_role(server, connected, target)?;
    check_standing(server, connected, target, &mut blueprint).await?;
    check_extensions(connected, &mut blueprint).await?;
    check_locales(server, connected, &blueprint).await?;
    decide_tablespaces(server, connected, details, target, purpose, &mut blueprint).await?;
    if target.select.is_empty() {
        blueprint.globals = Some(globals(server, connected, details, &mut blueprint).await?);
    } else {
        check_roles(connected, &blueprint).await?;
        check_owners(server, connected, &blueprint).await?;
    }
    let left = format!("SELECT datname AS name FROM pg_database WHERE datname LIKE {}", literal("stackward\\_re%\\_%"));
    for name in catalog::names(&mut connected.session, &left).await? {
        if is_leftover(&name) {
            blueprint.warnings.push(format!("an interrupted restore left the database `{name}` behind; drop it"));
        }
    }
    Ok(blueprint)
}

/// The databases that are asked for, with their new names.
pub(crate) fn chosen(details: &Details, target: &RestoreTarget) -> Result<Vec<Item>> {
    let item = |details: &DatabaseDetails| Item {
        details: details.clone(),
        name: details.name.clone(),
        standing: Standing::Nothing,
        is_copy: false,
    };
    let mut items = Vec::new();
    for name in &target.select {
        let database = details.database(name).ok_or_else(|| {
            let names: Vec<String> = details.databases.iter().map(|database| shown(&database.name)).collect();
            Error::new(ErrorKind::NotFound, format!("the backup has no database `{}`", shown(name)))
                .hint(format!("it has: {}", names.join(", ")))
        })?;
        if !items.iter().any(|item: &Item| item.name == *name) {
            items.push(item(database));
        }
    }
    if target.select.is_empty() {
        items = details.databases.iter().map(item).collect();
    }
    if let Some(new) = &target.rename {
        if target.select.len() != 1 {
            return Err(Error::new(ErrorKind::Usage, "only one selected database can be restored under another name")
                .hint("select one database by its name"));
        }
        if new.is_empty() || new.len() > MAX_NAME_BYTES || new.contains('\0') {
            let message = format!("`{}` cannot be the name of a database", new.escape_debug());
            return Err(Error::new(ErrorKind::Usage, message).hint("a name has 1 to 63 bytes"));
        }
        for item in &mut items {
            item.name.clone_from(new);
        }
    }
    Ok(items)
}

fn check_versions(connected: &Connected, details: &Details) -> Result<()> {
    let (saved, target) = (PgVersion(details.cluster.version_number), connected.facts.version());
    if target.major() < saved.major() {
        let message = format!("the backup is of PostgreSQL {saved}, the server is older: {}", connected.facts.version);
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint(format!("restore onto PostgreSQL {} or newer", saved.major())));
    }
    let (dump, tool) = (PgVersion(details.cluster.dump_version_number), connected.tools.version);
    if tool.major() < dump.major() {
        let message = format!("the dumps were written by pg_dump {dump}; pg_restore is older: {tool}");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint(format!("`apt-get install postgresql-client-{}`, or name its folder: `bin: …`", dump.major())));
    }
    Ok(())
}

fn check_role(server: &Server, connected: &Connected, target: &RestoreTarget) -> Result<()> {
    let user = &server.endpoint.user;
    if connected.facts.standby {
        return Err(Error::new(ErrorKind::PermissionDenied, "the server is a standby, which cannot be written to")
            .hint("restore onto its primary"));
    }
    if target.select.is_empty() && !connected.facts.superuser {
        let message = format!("`{user}` is not a superuser, which restoring a whole cluster with its roles needs");
        return Err(Error::new(ErrorKind::PermissionDenied, message)
            .hint("connect as a superuser, or restore single databases"));
    }
    if !connected.facts.creates_databases {
        return Err(Error::new(ErrorKind::PermissionDenied, format!("`{user}` may not create databases"))
            .hint(format!("ALTER ROLE {} CREATEDB;", ident(user))));
    }
    Ok(())
}

/// Refuses names that are taken, unless told to replace. A database that nobody ever used may always be replaced: every
/// new server has one, called `postgres`.
async fn check_standing(
    server: &Server,
    connected: &mut Connected,
    target: &RestoreTarget,
    blueprint: &mut Blueprint,
) -> Result<()> {
    let mut taken = Vec::new();
    for item in &mut blueprint.items {
        if !catalog::exists(&mut connected.session, &item.name).await? {
            continue;
        }
        item.standing = Standing::Replaced;
        if target.existing == Existing::Refuse && !is_unused(server, connected, &item.name).await? {
            taken.push(format!("`{}`", shown(&item.name)));
            continue;
        }
        let name = literal(&item.name);
        let users = format!(
            "SELECT 'the replication slot ' || slot_name AS name FROM pg_replication_slots WHERE database = {name} UNION \
             ALL SELECT 'the subscription ' || subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
             WHERE d.datname = {name}"
        );
        if let Some(user) = catalog::names(&mut connected.session, &users).await?.pop() {
            let (user, name) = (shown(&user), shown(&item.name));
            let message = format!("{user} uses the database `{name}`, which therefore cannot be replaced");
            return Err(Error::new(ErrorKind::Busy, message).hint(
                "drop it first; `ALTER SUBSCRIPTION … DISABLE` and `… SET (slot_name = NONE)` before that keep a subscription's \
                 slot on the publisher",
            ));
        }
        if target.existing == Existing::Replace {
            blueprint.warnings.push(format!(
                "the database `{}` will be replaced when its successor is complete; its connections will be ended then",
                shown(&item.name)
            ));
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let what = if taken.len() == 1 { "the database" } else { "the databases" };
    let verb = if taken.len() == 1 { "exists" } else { "exist" };
    Err(Error::new(ErrorKind::AlreadyExists, format!("{what} {} {verb} already", taken.join(", ")))
        .hint("`--force` replaces what exists, once the restored copy is complete; `--rename NAME` restores one database beside it"))
}

async fn is_unused(server: &Server, connected: &Connected, name: &str) -> Result<bool> {
    if name != "postgres" {
        return Ok(false);
    }
    let mut session = Psql::connect(server, &connected.tools, name).await?;
    let unused = catalog::is_untouched(&mut session).await?;
    session.close().await?;
    Ok(unused)
}

async fn check_extensions(connected: &mut Connected, blueprint: &mut Blueprint) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Available {
        name: String,
        version: String,
    }
    let select = "SELECT name, default_version AS version FROM pg_available_extensions";
    let available: Vec<Available> = connected.session.rows(select).await?;
    let mut missing = BTreeSet::new();
    for item in &blueprint.items {
        for extension in &item.details.extensions {
            match available.iter().find(|candidate| candidate.name == extension.name) {
                None => drop(missing.insert(format!(
                    "`{}` (database `{}`)",
                    shown(&extension.name),
                    shown(&item.details.name)
                ))),
                Some(found) if found.version != extension.version => blueprint.warnings.push(format!(
                    "the extension `{}` of `{}` was saved with version {}; the server has {}",
                    shown(&extension.name),
                    shown(&item.details.name),
                    extension.version,
                    found.version
                )),
                Some(_) => {}
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.into_iter().collect();
    Err(Error::new(ErrorKind::NotFound, format!("the server does not have the extension {}", list.join(", ")))
        .hint("install the package that brings it (`postgresql-contrib`, `postgresql-NN-…`) on the server's machine"))
}

/// Every role that a selected database refers to must exist, because the roles are not restored with it.
async fn check_roles(connected: &mut Connected, blueprint: &Blueprint) -> Result<()> {
    let wanted: BTreeSet<&str> = blueprint
        .items
        .iter()
        .flat_map(|item| {
            let settings = item.details.settings.iter().filter_map(|setting| setting.role.as_ref());
            std::iter::once(&item.details.owner).chain(&item.details.roles).chain(settings)
        })
        .map(String::as_str)
        .collect();
    let missing = missing(&mut connected.session, "SELECT rolname AS name FROM pg_roles", wanted).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|name| format!("`{}`", shown(name))).collect();
    let create: Vec<String> = missing.iter().map(|name| format!("CREATE ROLE {};", shown(&ident(name)))).collect();
    Err(Error::new(ErrorKind::NotFound, format!("the server does not have the role {}", list.join(", ")))
        .hint(format!("create it ({}), or restore the whole cluster, which brings its roles", create.join(" "))))
}

/// Who is no superuser can create databases only for roles that it is a member of.
async fn check_owners(server: &Server, connected: &mut Connected, blueprint: &Blueprint) -> Result<()> {
    if connected.facts.superuser {
        return Ok(());
    }
    let member = "SELECT rolname AS name FROM pg_roles WHERE pg_has_role(oid, 'MEMBER')";
    let owners: BTreeSet<&str> = blueprint.items.iter().map(|item| item.details.owner.as_str()).collect();
    let Some(owner) = missing(&mut connected.session, member, owners).await?.pop() else { return Ok(()) };
    let user = &server.endpoint.user;
    let message = format!("`{user}` is no member of the role `{}`, which owns a database of the backup", shown(&owner));
    Err(Error::new(ErrorKind::PermissionDenied, message).hint(format!(
        "GRANT {} TO {}; or connect as a superuser",
        shown(&ident(&owner)),
        ident(user)
    )))
}

/// Tries each locale that no database of the server uses, in a transaction that is rolled back.
async fn check_locales(server: &Server, connected: &mut Connected, blueprint: &Blueprint) -> Result<()> {
    let used = "SELECT datcollate AS name FROM pg_database UNION SELECT datctype FROM pg_database";
    let used: BTreeSet<String> = catalog::names(&mut connected.session, used).await?.into_iter().collect();
    let has_icu: bool = connected.session.value("EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i')").await?;
    for DatabaseDetails { name, collate, ctype, provider, .. } in blueprint.items.iter().map(|item| &item.details) {
        let name = shown(name);
        if provider.as_deref() == Some("i") && !has_icu {
            let message = format!("the database `{name}` uses ICU collations, which the server was built without");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        for locale in [collate, ctype] {
            if matches!(locale.as_str(), "C" | "POSIX") || used.contains(locale) {
                continue;
            }
            let mut session = Psql::connect(server, &connected.tools, connected.session.database()).await?;
            let probe = format!(
                "BEGIN; CREATE COLLATION pg_temp.stackward_probe (provider = libc, locale = {}); ROLLBACK",
                literal(locale)
            );
            // Other complaints are about the encoding of the database at hand, not about the locale.
            if let Err(error) = session.execute(&probe).await
                && error.chain().contains("could not create locale")
            {
                let message =
                    format!("the server's machine does not have the locale `{locale}` of the database `{name}`");
                return Err(Error::new(ErrorKind::NotFound, message)
                    .hint("generate it (`locale-gen`, `dpkg-reconfigure locales`) and restart the server")
                    .caused_by(error));
            }
        }
    }
    Ok(())
}

async fn decide_tablespaces(
    server: &Server,
    connected: &mut Connected,
    details: &Details,
    target: &RestoreTarget,
    purpose: Purpose,
    blueprint: &mut Blueprint,
) -> Result<()> {
    let present: BTreeSet<String> =
        catalog::tablespaces(&mut connected.session).await?.into_iter().map(|tablespace| tablespace.name).collect();
    for tablespace in details.cluster.tablespaces.iter().filter(|tablespace| !present.contains(&tablespace.name)) {
        let creatable = purpose == Purpose::Live
            && target.select.is_empty()
            && server.endpoint.is_socket()
            && test(server, "-d", Path::new(&tablespace.location)).await;
        if creatable {
            continue;
        }
        blueprint.skipped_tablespaces.insert(tablespace.name.clone());
        if purpose == Purpose::Live {
            blueprint.warnings.push(format!(
                "the tablespace `{}` is not on the server, and cannot be created in {}; everything goes to the default \
                 tablespace",
                shown(&tablespace.name),
                shown(&tablespace.location)
            ));
        }
    }
    Ok(())
}

async fn globals(
    server: &Server,
    connected: &mut Connected,
    details: &Details,
    blueprint: &mut Blueprint,
) -> Result<GlobalsFilter> {
    let roles: BTreeSet<String> =
        catalog::names(&mut connected.session, "SELECT rolname AS name FROM pg_roles").await?.into_iter().collect();
    let keep_role = server.uses_password().then(|| server.endpoint.user.clone());
    if let Some(role) = &keep_role {
        blueprint.warnings.push(format!("the role `{role}`, which restores, keeps its password and attributes"));
    }
    if !details.cluster.role_passwords {
        blueprint.warnings.push("the backup has no passwords of roles; set them anew".to_owned());
    }
    let tablespaces =
        catalog::tablespaces(&mut connected.session).await?.into_iter().map(|tablespace| tablespace.name).collect();
    Ok(GlobalsFilter {
        roles,
        keep_role,
        tablespaces,
        skipped_tablespaces: blueprint.skipped_tablespaces.clone(),
        drop_restrict: !connected.tools.version.knows_restrict(),
    })
}
