//! The embedded store: one redb file.
//!
//! A commit is one redb transaction of immediate durability: redb writes new pages beside the old ones and syncs before
//! the root is switched, so a crash leaves the state before or after it, never between.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::{Stored, Table, Write, decode_record, encode_record};
use crate::error::StartError;

/// Version of the tables and records in the file.
const SCHEMA_VERSION: u32 = 1;
/// Where the version is, in [`Table::Meta`].
const SCHEMA_KEY: &str = "schema_version";
/// Marks a store whose content was found not to be what was written, in [`Table::Meta`].
const DAMAGED_KEY: &str = "damaged";
/// Memory for pages that were read, in bytes; the broker keeps every record in memory itself.
const CACHE_LEN_BYTES: usize = 4 << 20;

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another broker has it open")]
    InUse,
    /// Its content is not what redb wrote.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It was made by a version with other records.
    #[error("it has schema version {found}, this broker reads version {SCHEMA_VERSION}")]
    Schema {
        /// The version in the file.
        found: u32,
    },
    /// The disk failed, is full, or the file may not be opened.
    #[error("the disk refused: {0}")]
    Io(String),
}

impl StoreError {
    /// The error of a start that failed on the store at `path`.
    pub fn at_start(&self, path: &Path) -> StartError {
        let fix = match self {
            Self::InUse => "stop the other broker, or give this one another state_dir".to_owned(),
            Self::Damaged(_) => format!(
                "put back a backup of {0}; without one, move {0} aside and apply the topology again (cards keep running \
                 on their last state, and must be enrolled again)",
                path.display()
            ),
            Self::Schema { .. } => "start the version of outboard-broker that wrote it, or a newer one".to_owned(),
            Self::Io(_) => format!("check the owner, mode and free space of {}", path.display()),
        };
        StartError::new(format!("cannot open the store {}: {self}", path.display()), fix)
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => { $(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::from(redb::Error::from(error))
            }
        }
    )* };
}
from_redb!(
    DatabaseError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            // A file that ends before its header or tables say so was cut.
            redb::Error::Io(e) if is_about_content(&e) => Self::Damaged(e.to_string()),
            redb::Error::Io(e) => Self::Io(e.to_string()),
            redb::Error::PreviousIo => Self::Io("an earlier write failed; restart the broker".to_owned()),
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn is_about_content(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof)
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    /// Locked, so that no second broker makes or opens a store here.
    directory: Option<File>,
}

fn definition(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table.name())
}

impl Store {
    /// Opens the file, or makes it (mode 0600) if it is not there. Its directory stays locked while the store is open.
    ///
    /// # Errors
    /// A file that is in use, damaged, of another version, or that the disk refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |e: std::io::Error| StoreError::Io(e.to_string());
        let directory = File::open(path.parent().unwrap_or(Path::new("."))).map_err(io)?;
        directory.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => StoreError::InUse,
            TryLockError::Error(e) => io(e),
        })?;
        if !path.try_exists().map_err(io)? {
            Self::create(path, &directory)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            // redb would make a new store of it, and all that was in the old one would be gone without a word.
            return Err(StoreError::Damaged("it is empty".to_owned()));
        }
        let mut store = guarded(|| Self::prepare(Builder::new().set_cache_size(CACHE_LEN_BYTES).create_file(file)?))?;
        store.directory = Some(directory);
        Ok(store)
    }

    /// Makes the store under another name and gives it its own once it is whole: what a crash leaves of a store in the
    /// making is no store.
    fn create(path: &Path, directory: &File) -> Result<(), StoreError> {
        let io = |e: std::io::Error| StoreError::Io(e.to_string());
        let temporary = path.with_extension("new");
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io)?;
        drop(Self::prepare(
            Builder::new().set_cache_size(CACHE_LEN_BYTES).create_file(file)?,
        )?);
        File::open(&temporary).and_then(|f| f.sync_all()).map_err(io)?;
        std::fs::rename(&temporary, path).map_err(io)?;
        directory.sync_all().map_err(io)
    }

    /// Opens a store on another storage, which a test can make fail.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(backend: impl StorageBackend) -> Result<Self, StoreError> {
        guarded(|| {
            Self::prepare(
                Builder::new()
                    .set_cache_size(CACHE_LEN_BYTES)
                    .create_with_backend(backend)?,
            )
        })
    }

    fn prepare(mut database: Database) -> Result<Self, StoreError> {
        // Opening repairs what a crash leaves. What still fails its checksums after that was changed by somebody else,
        // and going back to an older commit would lose acknowledged operations without a word. The check has gone back
        // already when it tells: the mark keeps the next start from taking that for the whole.
        let whole = database.check_integrity()?;
        let store = Self {
            database,
            directory: None,
        };
        if !whole {
            let value = encode_record(&true).map_err(|e| StoreError::Damaged(e.to_string()))?;
            store.commit(&[Write {
                table: Table::Meta,
                key: DAMAGED_KEY.to_owned(),
                value: Some(value),
            }])?;
        }
        if store.get(Table::Meta, DAMAGED_KEY)?.is_some() {
            return Err(StoreError::Damaged(
                "its checksums did not match its content".to_owned(),
            ));
        }
        match store.get(Table::Meta, SCHEMA_KEY)? {
            None => store.commit(&[Write {
                table: Table::Meta,
                key: SCHEMA_KEY.to_owned(),
                value: Some(encode_record(&SCHEMA_VERSION).map_err(|e| StoreError::Damaged(e.to_string()))?),
            }])?,
            Some(bytes) => match decode_record(&bytes) {
                Ok(SCHEMA_VERSION) => {}
                Ok(found) => return Err(StoreError::Schema { found }),
                Err(e) => return Err(StoreError::Damaged(format!("schema version: {e}"))),
            },
        }
        Ok(store)
    }

    fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.database.begin_read()?.open_table(definition(table)) {
            Ok(table) => Ok(table.get(key)?.map(|value| value.value().to_vec())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Every record but the schema version.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(&self) -> Result<Vec<Stored>, StoreError> {
        guarded(|| {
            let transaction = self.database.begin_read()?;
            let mut records = Vec::new();
            for table in Table::ALL {
                let open = match transaction.open_table(definition(table)) {
                    Ok(open) => open,
                    Err(redb::TableError::TableDoesNotExist(_)) => continue,
                    Err(e) => return Err(e.into()),
                };
                for entry in open.iter()? {
                    let (key, value) = entry?;
                    if (table, key.value()) != (Table::Meta, SCHEMA_KEY) {
                        records.push(Stored {
                            table,
                            key: key.value().to_owned(),
                            value: value.value().to_vec(),
                        });
                    }
                }
            }
            Ok(records)
        })
    }

    /// Makes all of `writes` durable in one transaction. When it returns, they survive a crash; if it fails, none is
    /// there.
    ///
    /// # Errors
    /// If the disk fails or is full.
    pub fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        for write in writes {
            let mut table = transaction.open_table(definition(write.table))?;
            match &write.value {
                Some(value) => table.insert(write.key.as_str(), value.as_slice())?,
                None => table.remove(write.key.as_str())?,
            };
        }
        Ok(transaction.commit()?)
    }
}

/// Runs code that reads a file somebody may have damaged: redb reports most damage, but asserts on some.
fn guarded<T>(read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(StoreError::Damaged(
            text.unwrap_or("its structure is inconsistent").to_owned(),
        ))
    })
}

/// The store's file in a state directory.
pub fn store_path(state_dir: &Path) -> PathBuf {
    state_dir.join("broker.redb")
}

#[cfg(test)]
#[path = "embedded_tests.rs"]
mod tests;
