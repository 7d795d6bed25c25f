//! Telling each endpoint what happened: a row for each, tried until it is taken or given up.

use karta_types::webhook::{DeliveryState, Happened};
use karta_types::{DeliveryId, EndpointId, HappeningId, OrgId, Timestamp};

use crate::row::Reader;
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// Things that are spread over endpoints in one step.
const STEP: i64 = 100;

/// A delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its id.
    pub id: DeliveryId,
    /// Whose.
    pub org: OrgId,
    /// Where.
    pub endpoint: EndpointId,
    /// What.
    pub happening: HappeningId,
    /// Of which kind.
    pub kind: Happened,
    /// How far.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u64,
    /// When it happened.
    pub happened_at: Timestamp,
    /// When it is tried next.
    pub next_at: Option<Timestamp>,
    /// When it was last tried.
    pub last_at: Option<Timestamp>,
    /// What the endpoint answered last.
    pub status: Option<u64>,
    /// Why it failed last.
    pub error: Option<String>,
}

/// A delivery that is to be tried now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueRow {
    /// Its id.
    pub id: DeliveryId,
    /// Whose.
    pub org: OrgId,
    /// Where.
    pub endpoint: EndpointId,
    /// The endpoint's address.
    pub url: String,
    /// Since when the endpoint failed.
    pub failing_since: Option<Timestamp>,
    /// What.
    pub happening: HappeningId,
    /// Of which kind.
    pub kind: Happened,
    /// When it happened.
    pub happened_at: Timestamp,
    /// Its data, as JSON.
    pub body: String,
    /// How often it was tried before.
    pub attempts: u64,
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The delivery.
    pub id: DeliveryId,
    /// Whose.
    pub org: OrgId,
    /// Where.
    pub endpoint: EndpointId,
    /// When.
    pub at: Timestamp,
    /// Where it stands now.
    pub state: DeliveryState,
    /// When it is tried next.
    pub next_at: Option<Timestamp>,
    /// What the endpoint answered.
    pub status: Option<u16>,
    /// Why it failed.
    pub error: Option<String>,
    /// Nothing is sent to the endpoint from now on; the entry that tells it.
    pub disable: Option<(String, AuditEntry)>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, endpoint, happening, kind, state, attempts, happened_at, next_at, last_at, status, error ",
            "FROM delivery ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<DeliveryRow> {
    let mut row = Reader::new(row);
    Ok(DeliveryRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        endpoint: row.parsed("endpoint")?,
        happening: row.parsed("happening")?,
        kind: row.parsed("kind")?,
        state: row.parsed("state")?,
        attempts: row.count("attempts")?,
        happened_at: row.time("happened_at")?,
        next_at: row.maybe_time("next_at")?,
        last_at: row.maybe_time("last_at")?,
        status: row.maybe_count("status")?,
        error: row.maybe_text("error")?,
    })
}

/// Makes deliveries of the oldest things that were not spread yet. Answers how many things there were.
async fn spread(db: &mut Connection) -> Result<u64> {
    let fail = || Error::database("spreading what happened");
    let rows =
        query("SELECT id, org, kind, subject, at FROM happening WHERE spread = 0 ORDER BY at, id LIMIT $1")
            .bind(STEP)
            .fetch_all(&mut *db)
            .await
            .map_err(fail())?;
    for row in &rows {
        let mut row = Reader::new(row);
        let (id, org): (HappeningId, OrgId) = (row.parsed("id")?, row.parsed("org")?);
        let (kind, subject, at) = (row.parsed::<Happened>("kind")?, row.text("subject")?, row.int("at")?);
        let taken = query("UPDATE happening SET spread = 1 WHERE id = $1 AND org = $2 AND spread = 0")
            .bind(id.to_string())
            .bind(org.to_string())
            .execute(&mut *db)
            .await
            .map_err(fail())?;
        if taken.rows_affected() == 0 {
            continue;
        }
        let endpoints = query("SELECT id, events FROM endpoint WHERE org = $1 AND disabled_at IS NULL")
            .bind(org.to_string())
            .fetch_all(&mut *db)
            .await
            .map_err(fail())?;
        for endpoint in &endpoints {
            let mut endpoint = Reader::new(endpoint);
            let (to, events): (EndpointId, Vec<Happened>) =
                (endpoint.parsed("id")?, endpoint.json("events")?);
            if !events.is_empty() && !events.contains(&kind) {
                continue;
            }
            // Made of both, so that the same again is the same: the time of what happened, the chance of the endpoint.
            let delivery = DeliveryId::from_u128(
                (id.as_u128() & !((1 << 70) - 1)) | ((id.as_u128() ^ to.as_u128()) & ((1 << 70) - 1)),
            );
            query(
                "INSERT INTO delivery (id, org, endpoint, happening, kind, subject, state, attempts, happened_at, next_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, 'pending', 0, $7, $7) ON CONFLICT (endpoint, happening) DO NOTHING",
            )
            .bind(delivery.to_string())
            .bind(org.to_string())
            .bind(to.to_string())
            .bind(id.to_string())
            .bind(kind.as_str())
            .bind(subject.clone())
            .bind(at)
            .execute(&mut *db)
            .await
            .map_err(fail())?;
        }
    }
    Ok(rows.len() as u64)
}

/// Claims what is due: nobody else tries it before `until`. Of one subject only the oldest that is pending.
async fn claim(db: &mut Connection, at: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<DueRow>> {
    let fail = || Error::database("claiming deliveries");
    let rows = query(
        "SELECT d.id, d.org, d.endpoint, e.url, e.failing_since, d.happening, d.kind, d.happened_at, h.body, d.attempts \
         FROM delivery d JOIN endpoint e ON e.id = d.endpoint JOIN happening h ON h.id = d.happening \
         WHERE d.state = 'pending' AND d.next_at <= $1 AND e.disabled_at IS NULL AND NOT EXISTS \
         (SELECT 1 FROM delivery b WHERE b.endpoint = d.endpoint AND b.subject = d.subject AND b.state = 'pending' \
          AND (b.happened_at < d.happened_at OR (b.happened_at = d.happened_at AND b.happening < d.happening))) \
         ORDER BY d.next_at LIMIT $2",
    )
    .bind(at.as_micros())
    .bind(i64::from(limit))
    .fetch_all(&mut *db)
    .await
    .map_err(fail())?;
    let mut due = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut row = Reader::new(row);
        let row = DueRow {
            id: row.parsed("id")?,
            org: row.parsed("org")?,
            endpoint: row.parsed("endpoint")?,
            url: row.text("url")?,
            failing_since: row.maybe_time("failing_since")?,
            happening: row.parsed("happening")?,
            kind: row.parsed("kind")?,
            happened_at: row.time("happened_at")?,
            body: row.text("body")?,
            attempts: row.count("attempts")?,
        };
        let taken = query(
            "UPDATE delivery SET next_at = $1 WHERE org = $2 AND id = $3 AND state = 'pending' AND next_at <= $4",
        )
        .bind(until.as_micros())
        .bind(row.org.to_string())
        .bind(row.id.to_string())
        .bind(at.as_micros())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
        if taken.rows_affected() > 0 {
            due.push(row);
        }
    }
    Ok(due)
}

async fn settle(db: &mut Connection, outcome: &Outcome) -> Result<()> {
    let fail = || Error::database("noting a delivery");
    query(
        "UPDATE delivery SET state = $1, attempts = attempts + 1, next_at = $2, last_at = $3, status = $4, error = $5 \
         WHERE org = $6 AND id = $7",
    )
    .bind(outcome.state.as_str())
    .bind(outcome.next_at.map(Timestamp::as_micros))
    .bind(outcome.at.as_micros())
    .bind(outcome.status.map(i64::from))
    .bind(outcome.error.clone())
    .bind(outcome.org.to_string())
    .bind(outcome.id.to_string())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    let failing = match outcome.state {
        DeliveryState::Delivered => {
            "UPDATE endpoint SET failing_since = NULL WHERE org = $2 AND id = $3 AND $1 > 0"
        }
        _ => "UPDATE endpoint SET failing_since = COALESCE(failing_since, $1) WHERE org = $2 AND id = $3",
    };
    query(failing)
        .bind(outcome.at.as_micros())
        .bind(outcome.org.to_string())
        .bind(outcome.endpoint.to_string())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    if let Some((why, told)) = &outcome.disable {
        let done = query(
            "UPDATE endpoint SET disabled_at = $1, disabled_why = $2 WHERE org = $3 AND id = $4 AND disabled_at IS NULL",
        )
        .bind(outcome.at.as_micros())
        .bind(why.clone())
        .bind(outcome.org.to_string())
        .bind(outcome.endpoint.to_string())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
        if done.rows_affected() > 0 {
            crate::audit::append(db, told).await?;
        }
    }
    Ok(())
}

impl Store {
    /// Makes deliveries of what happened, and claims those that are due until `until`; of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn deliveries_claim(&self, at: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<DueRow>> {
        self.write(move |db| {
            Box::pin(async move {
                spread(db).await?;
                claim(db, at, until, limit).await
            })
        })
        .await
    }

    /// Whether something waits to be spread, or is due; of all organisations. Cheaper than to claim.
    ///
    /// # Errors
    /// The database failed.
    pub async fn deliveries_wait(&self, at: Timestamp) -> Result<bool> {
        let row = query(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM happening WHERE spread = 0) \
             OR EXISTS (SELECT 1 FROM delivery WHERE state = 'pending' AND next_at <= $1) THEN 1 ELSE 0 END",
        )
        .bind(at.as_micros())
        .fetch_one(self.readers())
        .await
        .map_err(Error::database("looking for deliveries"))?;
        Ok(Reader::new(&row).int("waits")? == 1)
    }

    /// Notes how a try ended.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delivery_settle(&self, outcome: Outcome) -> Result<()> {
        self.write(move |db| {
            let outcome = outcome.clone();
            Box::pin(async move { settle(db, &outcome).await })
        })
        .await
    }

    /// The endpoint's deliveries, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delivery_list(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        state: Option<DeliveryState>,
        before: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Vec<DeliveryRow>> {
        let mut select = crate::sql::Builder::new(select!("WHERE org = "));
        select.push_bind(org.to_string()).push(" AND endpoint = ").push_bind(endpoint.to_string());
        if let Some(state) = state {
            select.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(before) = before {
            select.push(" AND id < ").push_bind(before.to_string());
        }
        select.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        let rows =
            select.build().fetch_all(self.readers()).await.map_err(Error::database("listing deliveries"))?;
        rows.iter().map(read).collect()
    }

    /// A delivery.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delivery_get(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        id: DeliveryId,
    ) -> Result<Option<DeliveryRow>> {
        let row = query(select!("WHERE org = $1 AND endpoint = $2 AND id = $3"))
            .bind(org.to_string())
            .bind(endpoint.to_string())
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a delivery"))?;
        row.as_ref().map(read).transpose()
    }

    /// Tries deliveries again from the beginning of their schedule: one, or all that failed and happened at or after `since`. Answers
    /// how many.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delivery_again(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        which: Result<DeliveryId, Timestamp>,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<u64> {
        self.write_told(told, |again| *again > 0, move |db| {
            Box::pin(async move {
                let (one, since) = match which {
                    Ok(one) => (one.to_string(), i64::MAX),
                    Err(since) => (String::new(), since.as_micros()),
                };
                let done = query(
                    "UPDATE delivery SET state = 'pending', attempts = 0, next_at = $1 WHERE org = $2 AND endpoint = $3 \
                     AND (id = $4 OR (state = 'failed' AND happened_at >= $5)) \
                     AND EXISTS (SELECT 1 FROM happening h WHERE h.id = delivery.happening)",
                )
                .bind(at.as_micros())
                .bind(org.to_string())
                .bind(endpoint.to_string())
                .bind(one)
                .bind(since)
                .execute(db)
                .await
                .map_err(Error::database("delivering again"))?;
                Ok(done.rows_affected())
            })
        })
        .await
    }

    /// Erases what happened before `before` and its deliveries; of all organisations. Answers how much.
    ///
    /// # Errors
    /// The database failed.
    pub async fn happenings_expire(&self, before: Timestamp) -> Result<u64> {
        self.write(move |db| {
            Box::pin(async move {
                let fail = || Error::database("erasing old deliveries");
                query("DELETE FROM delivery WHERE happened_at < $1")
                    .bind(before.as_micros())
                    .execute(&mut *db)
                    .await
                    .map_err(fail())?;
                let gone = query(
                    "DELETE FROM happening WHERE at < $1 AND spread = 1 \
                     AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.happening = happening.id)",
                )
                .bind(before.as_micros())
                .execute(db)
                .await
                .map_err(fail())?;
                Ok(gone.rows_affected())
            })
        })
        .await
    }
}
