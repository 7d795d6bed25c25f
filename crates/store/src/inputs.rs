//! Questions that wait for a person. Sealed: they hold what a tool would do.

use karta_types::event::{Answerer, InputRequired};
use karta_types::message::Decision;
use karta_types::{OrgId, RequestId, SessionId, Timestamp, TurnId};

use crate::journal::Commit;
use crate::row::{Reader, json};
use crate::sql::{Builder, Connection, query};
use crate::{Error, Keyring, Result, Store};

/// A question that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct InputRow {
    /// Whose.
    pub org: OrgId,
    /// The session.
    pub session: SessionId,
    /// The turn.
    pub turn: TurnId,
    /// The question.
    pub input: InputRequired,
    /// When it was asked.
    pub created_at: Timestamp,
}

impl Store {
    /// Questions that wait, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn inputs_pending(
        &self,
        org: OrgId,
        session: Option<SessionId>,
        after: Option<RequestId>,
        limit: u32,
    ) -> Result<Vec<InputRow>> {
        let mut query = Builder::new(
            "SELECT session, turn, id, body, created_at FROM input WHERE decided_at IS NULL AND org = ",
        );
        query.push_bind(org.to_string());
        if let Some(session) = session {
            query.push(" AND session = ").push_bind(session.to_string());
        }
        query.push(" AND id > ").push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        query.push(" ORDER BY id LIMIT ").push_bind(i64::from(limit));
        let rows =
            query.build().fetch_all(self.readers()).await.map_err(Error::database("listing inputs"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                let (session, turn) = (row.parsed("session")?, row.parsed("turn")?);
                let id: RequestId = row.parsed("id")?;
                let body = self.keys().open(&context(org, id), &row.bytes("body")?)?;
                Ok(InputRow {
                    org,
                    session,
                    turn,
                    input: serde_json::from_slice(&body).map_err(|_| Error::Corrupt("body"))?,
                    created_at: row.time("created_at")?,
                })
            })
            .collect()
    }

    /// Whether a question was answered; none if there is no such question.
    ///
    /// # Errors
    /// The database failed.
    pub async fn input_state(
        &self,
        org: OrgId,
        session: SessionId,
        request: RequestId,
    ) -> Result<Option<bool>> {
        let row = query("SELECT decided_at FROM input WHERE org = $1 AND session = $2 AND id = $3")
            .bind(org.to_string())
            .bind(session.to_string())
            .bind(request.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an input"))?;
        row.map(|row| Reader::new(&row).maybe_int("decided_at").map(|at| at.is_some())).transpose()
    }
}

fn context(org: OrgId, request: RequestId) -> Vec<u8> {
    let mut context = b"input".to_vec();
    context.extend_from_slice(&org.as_u128().to_le_bytes());
    context.extend_from_slice(&request.as_u128().to_le_bytes());
    context
}

pub(crate) fn seal(keys: &Keyring, org: OrgId, input: &InputRequired) -> Result<Vec<u8>> {
    keys.seal(&context(org, input.request_id), json(input).as_bytes())
}

pub(crate) async fn ask(
    db: &mut Connection,
    commit: &Commit,
    turn: Option<TurnId>,
    request: RequestId,
    body: Vec<u8>,
) -> Result<()> {
    query("INSERT INTO input (id, org, session, turn, body, created_at) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(request.to_string())
        .bind(commit.org.to_string())
        .bind(commit.session.to_string())
        .bind(turn.map(|id| id.to_string()).unwrap_or_default())
        .bind(body)
        .bind(commit.at.as_micros())
        .execute(db)
        .await
        .map_err(Error::database("keeping a question"))?;
    Ok(())
}

pub(crate) async fn resolve(
    db: &mut Connection,
    commit: &Commit,
    request: RequestId,
    decision: Decision,
    by: &Answerer,
) -> Result<()> {
    query(
        "UPDATE input SET decision = $1, decided_by = $2, decided_at = $3 \
         WHERE org = $4 AND session = $5 AND id = $6 AND decided_at IS NULL",
    )
    .bind(json(&decision))
    .bind(json(by))
    .bind(commit.at.as_micros())
    .bind(commit.org.to_string())
    .bind(commit.session.to_string())
    .bind(request.to_string())
    .execute(db)
    .await
    .map_err(Error::database("keeping an answer"))?;
    Ok(())
}
