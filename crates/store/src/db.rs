//! The database: read connections, and one writer that commits in groups.
//!
//! Every write is an operation in a queue. The writer takes what is waiting, runs it all in one transaction and commits once, so that
//! a hundred sessions share one commit and one alone waits for nobody. When an operation of a group fails, the group is rolled back
//! and each runs again by itself: operations are functions that can run twice, and one bad one never spoils its neighbours.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::audit::AuditEntry;
use crate::seal::Keyring;
use crate::sql::{Connection, DatabaseError, Place, Readers, query};
use crate::{Error, Result};

/// The most operations in one commit.
const GROUP: usize = 256;
/// Operations that may wait.
const QUEUE: usize = 4096;
/// Connections for reading.
const READERS: u32 = 4;

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// It survives the end of the process, `kill -9` included.
    #[default]
    Process,
    /// It also survives the end of power: a flush to the disk for each group.
    Power,
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// When a write counts as done.
    pub durability: Durability,
    /// The keys that seal what is kept.
    pub keys: Keyring,
    /// Whether it is a data plane's: it changes no tables, and hands over what is the control plane's.
    pub data_plane: bool,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    readers: Readers,
    writes: mpsc::Sender<Box<dyn Job>>,
    writer: Mutex<Option<oneshot::Receiver<()>>>,
    stop: tokio::sync::watch::Sender<bool>,
    keys: Keyring,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// One operation in the queue.
trait Job: Send {
    /// Runs it within the open transaction and keeps the result.
    fn run<'a>(&'a mut self, connection: &'a mut Connection) -> BoxFuture<'a, bool>;
    /// Gives the result, or this error instead, to whoever waits.
    fn finish(self: Box<Self>, instead: Option<Error>);
}

struct Operation<T, F> {
    work: F,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Operation<T, F>
where
    T: Send,
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T>> + Send + Sync,
{
    fn run<'a>(&'a mut self, connection: &'a mut Connection) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let result = (self.work)(connection).await;
            let fine = result.is_ok();
            self.result = Some(result);
            fine
        })
    }

    fn finish(self: Box<Self>, instead: Option<Error>) {
        let result = match instead {
            Some(error) => Err(error),
            None => self.result.unwrap_or(Err(Error::Closed)),
        };
        // Whoever waited may have gone; the write stands all the same.
        let _ = self.reply.send(result);
    }
}

impl Store {
    /// Opens the database, brings it up to this version, starts the writer.
    ///
    /// # Errors
    /// It can't be opened or migrated.
    pub async fn open(options: Options) -> Result<Self> {
        let place = Place::parse(&options.url, options.durability, options.data_plane)
            .map_err(Error::database("reading the database's address"))?;
        let mut connection = place.connect().await.map_err(Error::database("opening the database"))?;
        match (options.data_plane, &place) {
            (false, _) => crate::migrations::run(&mut connection).await?,
            (true, Place::Postgres { .. }) => crate::migrations::check(&mut connection).await?,
            (true, Place::Sqlite { .. }) => return Err(Error::NeedsPostgres),
        }
        let readers =
            place.readers(READERS).await.map_err(Error::database("opening the database for reading"))?;
        let (submit, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let (over, ended) = oneshot::channel();
        let here = place.clone();
        let groups = async move {
            write_groups(&here, connection, queue, stopped).await;
            let _ = over.send(());
        };
        match place {
            // SQLite works in place: its writer has a thread of its own, so that nothing else waits for the disk.
            Place::Sqlite { .. } => {
                let runtime = tokio::runtime::Handle::current();
                let thread = std::thread::Builder::new().name("store-writer".to_owned());
                thread.spawn(move || runtime.block_on(groups)).map_err(Error::Thread)?;
            }
            Place::Postgres { .. } => {
                #[expect(clippy::disallowed_methods, reason = "close() waits for it")]
                tokio::spawn(groups);
            }
        }
        let writer = Mutex::new(Some(ended));
        Ok(Self(Arc::new(Inner { readers, writes: submit, writer, stop, keys: options.keys })))
    }

    /// Writes what is waiting and closes the database.
    pub async fn close(&self) {
        // Nobody listens any more when the writer ended by itself.
        let _ = self.0.stop.send(true);
        if let Some(ended) = self.0.writer.lock().await.take() {
            // The writer says when it is over; should it be gone without a word, it is over too.
            let _ = ended.await;
        }
        self.0.readers.close().await;
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It doesn't.
    pub async fn ping(&self) -> Result<()> {
        query("SELECT 1").execute(self.readers()).await.map_err(Error::database("asking the database"))?;
        Ok(())
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.0.readers
    }

    pub(crate) fn keys(&self) -> &Keyring {
        &self.0.keys
    }

    /// As [`Store::write`], and tells the audit log in the same transaction if the result says that something was changed.
    pub(crate) async fn write_told<T, F>(
        &self,
        entry: AuditEntry,
        changed: fn(&T) -> bool,
        operation: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T>> + Send + Sync + 'static,
    {
        let told = Arc::new((entry, operation));
        self.write(move |db| {
            let told = told.clone();
            Box::pin(async move { then_tell(db, &told.1, changed, &told.0).await })
        })
        .await
    }

    /// Runs an operation in the next group. It may be run twice, but is committed once.
    pub(crate) async fn write<T, F>(&self, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T>> + Send + Sync + 'static,
    {
        let (reply, result) = oneshot::channel();
        let job = Box::new(Operation { work: operation, result: None, reply });
        self.0.writes.send(job).await.map_err(|_| Error::Closed)?;
        result.await.unwrap_or(Err(Error::Closed))
    }
}

/// Does what an operation does, and tells the audit log in the same transaction.
async fn then_tell<T, F>(
    connection: &mut Connection,
    operation: &F,
    changed: fn(&T) -> bool,
    entry: &AuditEntry,
) -> Result<T>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T>> + Send + Sync + 'static,
{
    let result = operation(connection).await?;
    if changed(&result) {
        crate::audit::append(connection, entry).await?;
    }
    Ok(result)
}

async fn write_groups(
    place: &Place,
    mut connection: Connection,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let mut group: Vec<Box<dyn Job>> = Vec::with_capacity(GROUP);
    loop {
        tokio::select! {
            biased;
            taken = queue.recv_many(&mut group, GROUP) => if taken == 0 { break },
            _ = stopped.wait_for(|stop| *stop) => queue.close(),
        }
        if group.is_empty() {
            continue;
        }
        if together(&mut connection, &mut group).await {
            connection.committed(group.len());
            for job in group.drain(..) {
                job.finish(None);
            }
            continue;
        }
        for mut job in group.drain(..) {
            let instead = alone(place, &mut connection, &mut *job).await;
            job.finish(instead);
        }
    }
    connection.close().await;
}

/// Runs the group in one transaction. Answers whether it was committed.
async fn together(connection: &mut Connection, group: &mut [Box<dyn Job>]) -> bool {
    if connection.begin().await.is_err() {
        return false;
    }
    for job in &mut *group {
        if !job.run(connection).await {
            roll_back(connection).await;
            return false;
        }
    }
    if commit(connection).await.is_err() {
        roll_back(connection).await;
        return false;
    }
    true
}

/// Runs one operation in its own transaction. Answers the error of the transaction, if it has one.
async fn alone(place: &Place, connection: &mut Connection, job: &mut dyn Job) -> Option<Error> {
    if connection.begin().await.is_err() {
        // The connection may be what broke: the database was restarted, or a firewall forgot it.
        let again = match place.connect().await {
            Ok(new) => {
                *connection = new;
                connection.begin().await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = again {
            return Some(Error::database("beginning a transaction")(error));
        }
    }
    if !job.run(connection).await {
        roll_back(connection).await;
        return None;
    }
    if let Err(error) = commit(connection).await {
        roll_back(connection).await;
        return Some(Error::database("committing")(error));
    }
    None
}

async fn roll_back(connection: &mut Connection) {
    // When the database has rolled back by itself this fails, which is as good.
    let _ = query("ROLLBACK").execute(connection).await;
}

async fn commit(connection: &mut Connection) -> std::result::Result<(), DatabaseError> {
    query("COMMIT").execute(connection).await.map(drop)
}
