//! Who the key speaks for, and what was used.

use karta_types::page::Page;
use karta_types::usage::Metered;
use karta_types::{OrgId, Timestamp};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::client::{Client, append};
use crate::error::Error;

/// Who a credential is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Principal {
    /// `key`, `end_user`, `member` …
    pub kind: String,
    /// Which one.
    pub id: String,
}

/// An organisation by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OrgRef {
    /// The organisation.
    pub id: OrgId,
    /// Its readable name in URLs.
    #[serde(default)]
    pub slug: String,
    /// Its name for people.
    #[serde(default)]
    pub name: String,
}

/// What a credential is and may do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Whoami {
    /// Who it is.
    pub principal: Principal,
    /// Where it belongs.
    pub org: OrgRef,
    /// The role of the member behind it.
    #[serde(default)]
    pub role: Option<String>,
    /// What it may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The one project it reaches, if it is bound to one.
    #[serde(default)]
    pub project: Option<Value>,
}

/// Which usage to sum.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// From this moment.
    pub from: Option<Timestamp>,
    /// Up to this moment.
    pub to: Option<Timestamp>,
    /// Of this project alone, by id or slug.
    pub project: Option<String>,
    /// A row for each of these: `day`, `project`, `model`, `key`, `end_user`.
    pub group_by: Vec<String>,
}

/// What was used, by one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    /// How many turns.
    #[serde(default)]
    pub turns: u64,
    /// Tokens and cost.
    #[serde(flatten)]
    pub metered: Metered,
    /// What the row is of: one member for each of `group_by`.
    #[serde(flatten)]
    pub keys: Map<String, Value>,
}

impl Client {
    /// Who the key speaks for.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        self.json("asking who the key is", self.request(Method::GET, self.url(&["whoami"]))).await
    }

    /// Sums what was used: one row, or one for each group.
    ///
    /// # Errors
    /// See [`Client::whoami`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<Page<UsageRow>, Error> {
        let group_by = (!query.group_by.is_empty()).then(|| query.group_by.join(","));
        let mut url = self.url(&["usage"]);
        append(
            &mut url,
            &[
                ("from", query.from.map(|from| from.to_string())),
                ("to", query.to.map(|to| to.to_string())),
                ("project", query.project.clone()),
                ("group_by", group_by),
            ],
        );
        self.json("summing what was used", self.request(Method::GET, url)).await
    }
}
