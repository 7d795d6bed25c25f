//! People, what they are in which organisation, and how they sign in.

mod access;
mod devices;
mod invitations;
mod members;

use karta_types::{Timestamp, UserId};

use crate::row::Reader;
use crate::sql::{Connection, Query, query};
use crate::{Error, Result, Store};

pub use access::{AccessHolder, AccessKind, AccessRow};
pub use devices::{DeviceRow, DeviceState};
pub use invitations::InvitationRow;
pub use members::MemberRow;

/// A person. People are the installation's; what they see is by their membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonRow {
    /// Their id.
    pub id: UserId,
    /// Their address, in lower case.
    pub email: String,
    /// Their name.
    pub name: String,
    /// When they were first known.
    pub created_at: Timestamp,
}

macro_rules! select {
    ($which:literal) => {
        concat!("SELECT id, email, name, created_at FROM person WHERE ", $which)
    };
}

/// The person with this address, made if there is none.
pub(crate) async fn ensure(db: &mut Connection, person: &PersonRow) -> Result<UserId> {
    query("INSERT INTO person (id, email, name, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (email) DO NOTHING")
        .bind(person.id.to_string())
        .bind(person.email.clone())
        .bind(person.name.clone())
        .bind(person.created_at.as_micros())
        .execute(&mut *db)
        .await
        .map_err(Error::database("adding a person"))?;
    let row = query("SELECT id FROM person WHERE email = $1")
        .bind(person.email.clone())
        .fetch_one(db)
        .await
        .map_err(Error::database("reading a person"))?;
    Reader::new(&row).parsed("id")
}

impl Store {
    /// A person.
    ///
    /// # Errors
    /// The database failed.
    pub async fn person_get(&self, id: UserId) -> Result<Option<PersonRow>> {
        self.person(query(select!("id = $1")).bind(id.to_string())).await
    }

    /// A person by their address, in lower case.
    ///
    /// # Errors
    /// The database failed.
    pub async fn person_by_email(&self, email: &str) -> Result<Option<PersonRow>> {
        self.person(query(select!("email = $1")).bind(email)).await
    }

    async fn person(&self, which: Query) -> Result<Option<PersonRow>> {
        let row = which.fetch_optional(self.readers()).await.map_err(Error::database("reading a person"))?;
        row.map(|row| {
            let mut row = Reader::new(&row);
            Ok(PersonRow {
                id: row.parsed("id")?,
                email: row.text("email")?,
                name: row.text("name")?,
                created_at: row.time("created_at")?,
            })
        })
        .transpose()
    }

    /// The person with this address, made if there is none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn person_ensure(&self, person: PersonRow) -> Result<UserId> {
        self.write(move |db| {
            let person = person.clone();
            Box::pin(async move { ensure(db, &person).await })
        })
        .await
    }

    /// Who somebody at a provider of identities is here.
    ///
    /// # Errors
    /// The database failed.
    pub async fn identity_get(&self, issuer: &str, subject: &str) -> Result<Option<UserId>> {
        let row = query("SELECT person FROM identity WHERE issuer = $1 AND subject = $2")
            .bind(issuer)
            .bind(subject)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an identity"))?;
        row.map(|row| Reader::new(&row).parsed("person")).transpose()
    }

    /// Notes that somebody at a provider of identities is the person with this address, who is made if there is none.
    ///
    /// # Errors
    /// `Conflict` when the person is somebody else there already, or the identity is somebody else's here.
    pub async fn identity_link(&self, issuer: String, subject: String, person: PersonRow) -> Result<UserId> {
        self.write(move |db| {
            let (issuer, subject, person) = (issuer.clone(), subject.clone(), person.clone());
            Box::pin(async move {
                let id = ensure(db, &person).await?;
                let other = query("SELECT subject FROM identity WHERE issuer = $1 AND person = $2")
                    .bind(issuer.clone())
                    .bind(id.to_string())
                    .fetch_optional(&mut *db)
                    .await
                    .map_err(Error::database("reading an identity"))?;
                if other.is_some() {
                    return Err(Error::Conflict("another identity of this person"));
                }
                query("INSERT INTO identity (issuer, subject, person, created_at) VALUES ($1, $2, $3, $4)")
                    .bind(issuer)
                    .bind(subject)
                    .bind(id.to_string())
                    .bind(person.created_at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::unique("adding an identity", "the identity"))?;
                Ok(id)
            })
        })
        .await
    }
}
